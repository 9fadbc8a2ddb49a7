"""One streamed reply: the network's bytes to events, and what is no event stream to an error; no I/O.

Floor 3, below the decoders of each dialect.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from pydantic_core import from_json

from helix.errors import ModelError
from helix.limits import Usage
from helix.model import Emit, ModelReply
from helix.models._errors import MAX_DETAIL, from_event, scrub, secrets_in
from helix.models._sse import EventStreamDecoder, ServerSentEvent
from helix.models._template import TextTemplate

_MAX_FOREIGN_BODY = 1 << 20
_MAX_WHOLE = 1 << 27
IN_ONE_PIECE = "The server answered in one piece instead of streaming. ModelSettings(stream_fallback=True) takes that."
_MAX_TAIL = 2048


class StreamDecoder(ABC):
    """Decodes one reply: bytes in, pushes out.

    Attributes:
        done: the provider has said that the reply is complete; what follows is ignored.
        sent: the request's headers, whose secrets no error may repeat.
        takes_whole: whether a reply in one piece is one, too.
    """

    __slots__ = (
        "_emit",
        "_events",
        "_foreign",
        "_sniffed",
        "_tail",
        "_usage",
        "_usual",
        "done",
        "sent",
        "takes_whole",
    )

    _named: ClassVar[tuple[str, str, str]]
    """What a reply is called, the field that tells a whole one, and the sign that ends a stream."""

    def __init__(self, emit: Emit) -> None:
        """Pushes into `emit`."""
        self.done = False
        self._usage: Usage | None = None
        self.sent: Mapping[str, str] = {}
        self.takes_whole = False
        self._emit = emit
        self._events = EventStreamDecoder()
        self._usual = TextTemplate()
        self._tail = b""
        self._sniffed = False
        self._foreign: bytearray | None = None  # a body that is no event stream

    @property
    def _secrets(self) -> Sequence[str]:
        return secrets_in(self.sent)

    @property
    def usage(self) -> Usage | None:
        """What the provider told so far."""
        return self._usage

    @abstractmethod
    def _take(self, event: ServerSentEvent) -> None:
        """Pushes what an event holds. Raises ModelError."""

    @abstractmethod
    def _take_whole(self, fields: dict[str, Any]) -> None:
        """Pushes a reply that came in one piece. Raises ModelError."""

    @abstractmethod
    def _usage_in(self, fields: dict[str, Any]) -> Usage | None:
        """The usage that a whole reply tells."""

    @abstractmethod
    def _ending(self) -> ModelReply:
        """The ending of a reply that is complete. Raises ModelError."""

    def feed(self, data: bytes) -> None:
        """Pushes all that `data` completes.

        Raises:
            ModelError: the provider sent an error, or what cannot be read.
        """
        if not self._sniffed:
            self._sniff(data)
        if self._foreign is not None:
            self._foreign += data[: (_MAX_WHOLE if self.takes_whole else _MAX_FOREIGN_BODY) - len(self._foreign)]
            return
        if self._tail:
            data, self._tail = self._tail + data, b""
        at, size, events = 0, len(data), self._events
        while at < size and not self.done:
            if events.is_between:
                at = self._usual.take(data, at)
                if at == size:
                    return
                if self._is_tail(data, at):
                    self._tail = data[at:]
                    return
            after = data.find(b"\n\n", at) + 2
            for event in events.feed(data[at:after] if after > 1 else data[at:]):
                if not self.done:
                    self._take(event)
            at = after if after > 1 else size

    def _is_tail(self, data: bytes, at: int) -> bool:
        """Whether the rest can wait for the next read: an event that has begun, and can have no end as yet.

        So an event that the network split is still recognised; long ones, and other line ends, are not for this.
        """
        return len(data) - at < _MAX_TAIL and data.find(b"\n\n", at) < 0 and data.find(b"\r", at) < 0

    def end(self) -> ModelReply:
        """The reply's ending, once the body has ended or `done` is set.

        Raises:
            ModelError: the reply is not complete.
        """
        if self._foreign is not None:
            return self._end_whole(bytes(self._foreign))
        if not self.done:
            raise self.dropped(f"the body ended without {self._named[2]}")
        return self._ending()

    def dropped(self, detail: str) -> ModelError:
        """The error for a reply that broke off."""
        return ModelError(
            "model_stream_dropped",
            "The model's reply broke off before it was complete.",
            retryable=True,
            detail=scrub(detail, self._secrets)[:MAX_DETAIL],
            usage=self.usage,
        )

    def _parse(self, event: ServerSentEvent) -> dict[str, Any]:
        try:
            chunk = from_json(event.data)
        except ValueError:
            chunk = self._parse_damaged(event)
        if isinstance(chunk, dict):
            return cast("dict[str, Any]", chunk)
        if event.event == "error":
            raise self._error(chunk)
        if not chunk:
            return {}  # an empty event keeps a connection open
        raise self.dropped(f"an event is no object: {event.data!r}")

    def _parse_damaged(self, event: ServerSentEvent) -> object:
        """An event that is no strict JSON. Half characters stay as they are: a text's next piece may have the rest."""
        text = event.data.decode("utf-8", "replace")
        if not text.strip():
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise (self._error(text) if event.event == "error" else self.dropped(f"no JSON: {text!r}")) from None

    def _sniff(self, data: bytes) -> None:
        """Notices a body that is JSON or a web page, whatever its headers call it."""
        head = data.lstrip(b"\xef\xbb\xbf\r\n\t ")
        if head:
            self._sniffed = True
            self._foreign = bytearray() if head[:1] in (b"{", b"[", b"<") else None

    def _end_whole(self, body: bytes) -> ModelReply:
        """The ending of a body that is no event stream: of a reply in one piece, if it is one and may be."""
        error = self._foreign_error(body)
        if error is not None:
            raise error
        parsed: Any = from_json(body)
        for fields in as_objects(parsed) or [as_object(parsed)]:
            self._take_whole(fields)
        return self._ending()

    def _foreign_error(self, body: bytes) -> ModelError | None:
        text = scrub(body.decode("utf-8", "replace"), self._secrets)[:MAX_DETAIL]
        if b"<" in body[:8]:
            page = "The server answered with a web page instead of a reply: check the base URL."
            return ModelError("model_rejected", page, detail=text)
        try:
            parsed: Any = from_json(body)
        except ValueError:
            return self.dropped(text)
        fields = (as_objects(parsed) or [as_object(parsed)])[0]
        self._usage = self._usage_in(fields)
        if fields.get("error") or fields.get("object") == "error":
            return self._error(fields.get("error") or fields)
        name, field, _ = self._named
        if self.takes_whole and field in fields:
            return None
        other = f"The server answered with JSON that is no {name}: check the base URL."
        return ModelError("model_rejected", IN_ONE_PIECE if field in fields else other, detail=text, usage=self.usage)

    def _error(self, error: object) -> ModelError:
        return from_event(error, secrets=self._secrets, usage=self.usage)


# What servers send is not always what they should: a value of another type is one that was not sent.


def as_object(value: object) -> dict[str, Any]:
    """The object, or an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def as_objects(value: object) -> list[dict[str, Any]]:
    """The objects of the list, or none."""
    return [item for item in cast("list[Any]", value) if isinstance(item, dict)] if isinstance(value, list) else []


def as_text(value: object) -> str:
    """The text, or an empty one."""
    return value if isinstance(value, str) else ""


def as_count(told: dict[str, Any], name: str) -> int:
    """The number of that name, or 0."""
    value = told.get(name)
    return value if isinstance(value, int) else 0
