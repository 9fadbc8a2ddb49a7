"""The events of a stream that repeat one seen before, but for the text in them.  Floor 3: below the decoders.

Providers send a whole envelope with each token: 300 bytes around five. Once one such event has been parsed, the next is
recognised by its bytes and only its text is read. What is recognised would have parsed to the same event but for that
text; whatever is not, is parsed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_core import from_json, to_json

_FILLER = b'"obfuscation":"'  # OpenAI's random padding: the one other string that differs from event to event
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"
_LESSONS = 8  # a stream whose envelopes differ each time is not worth more


class TextTemplate:
    """The bytes of one event around its text."""

    __slots__ = ("_end", "_head", "_lessons", "_middle", "_push")

    def __init__(self) -> None:
        self._push: Callable[[str], None]
        self._head = b"\0"  # begins no event
        self._middle = b""
        self._end = b""
        self._lessons = _LESSONS

    def take(self, data: bytes, at: int) -> int:
        """Pushes the texts of the events at `at` that are recognised; returns where the first other one begins.

        The stream must be between two events at `at`.
        """
        head, middle, end = self._head, self._middle, self._end
        while data.startswith(head, at):
            start = at + len(head)
            stop = data.find(b'"', start)
            if not data.startswith(middle, stop):
                break
            after = stop + len(middle)
            if end:
                filler = after
                after = data.find(b'"', filler)
                if not (data.startswith(end, after) and data[filler:after].isalnum()):
                    break
                after += len(end)
            try:
                text = data[start:stop].decode()
            except UnicodeDecodeError:
                break
            if not text.isprintable() or not text or "\\" in text:  # strings in JSON hold no control characters
                break
            self._push(text)
            at = after
        return at

    def learn(self, data: bytes, text: str, read: Callable[[Any], object], push: Callable[[str], None]) -> None:
        """Takes an event for the shape of those to come, if its text can be found in its bytes.

        Args:
            data: the event's data.
            text: the text that the event consists of; all else in it has no effect.
            read: finds that text in the parsed event.
            push: takes the texts of those to come.
        """
        raw = to_json(text)
        at = data.rfind(raw)
        if self._lessons == 0 or at < 0 or b"\\" in raw:
            return
        self._lessons -= 1
        head, middle, end = data[: at + 1], data[at + len(raw) - 1 :], b""
        if (filler := middle.find(_FILLER)) >= 0:
            filler += len(_FILLER)
            middle, end = middle[:filler], middle[middle.index(b'"', filler) :]
        if _holds(head + _MARK.encode() + middle + end, read):
            self._head, self._push = b"data: " + head, push
            self._middle, self._end = (middle, end + b"\n\n") if end else (middle + b"\n\n", b"")


def _holds(marked: bytes, read: Callable[[Any], object]) -> bool:
    """Whether the place that was marked is the inside of the text, and of nothing else."""
    try:
        return read(from_json(marked)) == _MARK
    except (ValueError, LookupError, TypeError):
        return False
