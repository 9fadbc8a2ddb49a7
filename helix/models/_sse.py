"""Server-sent events from bytes, as the HTML standard reads them: bytes in, events out, no I/O.

Floor 3, below the adapters and the client; imports nothing of helix.
"""

from __future__ import annotations

from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"
_PREFIX = b"data: "


class ServerSentEvent(NamedTuple):
    """One dispatched event."""

    event: str
    """Its name; `message` when the stream gave none."""
    data: bytes
    """Its data lines, joined with LF: UTF-8 as it was sent, not yet checked."""
    last_id: str
    """The last event id at this moment; empty when there was none."""


class EventStreamDecoder:
    """Decodes one event stream, however the network split it.

    An event is given out by the very `feed` that completes its blank line. A block that the stream's end left
    unfinished is never given out, and its id does not count.

    Attributes:
        last_id: the id with which a reconnect would go on.
        retry: milliseconds to wait before a reconnect, if the stream said so.
        is_between: whether the next byte begins an event, however lines end.
    """

    __slots__ = (
        "_after_cr",
        "_data",
        "_event",
        "_id",
        "_in_block",
        "_pending",
        "_started",
        "is_between",
        "last_id",
        "retry",
    )

    def __init__(self) -> None:
        self.last_id = ""
        self.retry: int | None = None
        self.is_between = False
        self._pending: list[bytes] = []  # pieces of the unfinished last line: joined once, so long lines stay linear
        self._started = False  # past the place where a byte order mark may stand
        self._after_cr = False  # the last byte was CR: an LF that follows belongs to it
        self._in_block = False  # the current block has fields
        self._data: list[bytes] = []
        self._event = ""
        self._id = ""

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """The events that `data` completes, in order."""
        events = self._feed(data)
        self.is_between = self._started and not (self._pending or self._in_block or self._after_cr)
        return events

    def _feed(self, data: bytes) -> list[ServerSentEvent]:
        data = self._with_plain_line_ends(data)
        if b"\n" not in data:
            if data:
                self._pending.append(data)
            return []
        if self._pending:
            data = b"".join((*self._pending, data))
            self._pending.clear()
        start = 0 if self._started else self._after_bom(data)
        events: list[ServerSentEvent] = []
        while (end := data.find(b"\n", start)) >= 0:
            if data.startswith(_PREFIX, start) and data.startswith(b"\n", end + 1) and not self._in_block:
                events.append(ServerSentEvent("message", data[start + 6 : end], self.last_id))  # nearly all there is
                start = end + 2
                continue
            line = data[start:end]
            start = end + 1
            if line:
                self._take_field(line)
            elif self._in_block and (event := self._end_block()) is not None:
                events.append(event)
        if start < len(data):
            self._pending.append(data[start:])
        return events

    def _with_plain_line_ends(self, data: bytes) -> bytes:
        """`data` with LF for CR and CRLF, also where the split fell between the two."""
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data

    def _after_bom(self, data: bytes) -> int:
        self._started = True
        return len(_BOM) if data.startswith(_BOM) else 0

    def _take_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit():
            self.retry = int(value)
            return
        else:
            return  # a comment, or a field that the standard does not know
        self._in_block = True

    def _end_block(self) -> ServerSentEvent | None:
        """What a blank line dispatches; a block without data gives nothing but its id."""
        self.last_id = self._id
        event = ServerSentEvent(self._event or "message", b"\n".join(self._data), self.last_id) if self._data else None
        self._data.clear()
        self._event = ""
        self._in_block = False
        return event
