"""The words of a stream whose named events repeat one seen before.  Floor 3: below `_anthropic`.

As `_template`, for events as Anthropic frames them: named, and padded with blanks before the last brace. What is
recognised would have parsed to the same event but for its words; whatever is not, is parsed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_core import from_json, to_json

from helix.models._sse import ServerSentEvent
from helix.models._template import WORDS, word

_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


class DeltaTemplate:
    """The bytes of a delta's event around its words."""

    __slots__ = ("_head", "_middle", "_push")

    def __init__(self) -> None:
        self._push: Callable[[str], None] | None = None
        self._head = b"\0"  # begins no event
        self._middle = b""

    def take(self, data: bytes, at: int) -> int:
        """Pushes the words of the events at `at` that are recognised; returns where the first other one begins.

        The stream must be between two events at `at`.
        """
        head, middle, push = self._head, self._middle, self._push
        if push is None:
            return at
        while data.startswith(head, at):
            start = at + len(head)
            stop = data.find(b'"', start)
            if not data.startswith(middle, stop):
                break
            after = data.find(b"}\n\n", stop + len(middle))
            if after < 0 or data[stop + len(middle) : after].strip(b" "):
                break
            raw = data[start:stop]
            text = WORDS.get(raw) or word(raw)
            if not text:
                break
            push(text)
            at = after + 3
        return at

    def learn(self, event: ServerSentEvent, text: str, kind: str, push: Callable[[str], None]) -> None:
        """Takes an event for the shape of those to come, once for each block; `push` takes their words."""
        if push is self._push or not text.isprintable():
            return
        raw = to_json(text)
        at = event.data.rfind(raw)
        if at < 0 or b"\\" in raw or not event.data.endswith(b"}"):
            return
        self._push, self._head = push, b"\0"
        name = b"" if event.event == "message" else b"event: %b\n" % event.event.encode()
        head, tail = event.data[: at + 1], event.data[at + len(raw) - 1 :]
        try:
            marked: Any = from_json(head + _MARK.encode() + tail)
            holds = marked["delta"][kind] == _MARK
        except (ValueError, LookupError, TypeError):
            return
        if holds:  # the place is the inside of the words, and of nothing else
            self._head, self._middle = name + b"data: " + head, tail[:-1].rstrip(b" ")
