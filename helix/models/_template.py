"""The events of a stream that repeat one seen before, but for the text in them.  Floor 3: below the decoders.

Providers send a whole envelope with each token: 300 bytes around five. Once one such event has been parsed, the next is
recognised by its bytes and only its text is read. What is recognised would have parsed to the same event but for that
text, OpenAI's random padding, and the event's number or counts; whatever is not, is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from pydantic_core import from_json, to_json

_FILLER = re.compile(rb'"obfuscation": ?"([0-9A-Za-z]*)"')
_NUMBER = re.compile(rb'"sequence_number": ?([0-9]+)[,}]')
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"
_MAX_WORD, _MAX_WORDS = 32, 8192
WORDS: dict[bytes, str] = {}
"""Tokens that `word` has read, by their bytes: they come again and again, and a log need not keep each twice."""
Kinds: TypeAlias = Mapping[re.Pattern[bytes], Callable[[bytes], bool]]
"""Where events differ without effect, a group each, and whether something may stand there."""
_LESSONS = 8  # a stream whose envelopes differ each time is not worth more


def is_number(data: bytes) -> bool:
    """Whether every parser would read a whole number of JSON; a bare 0 is left to them."""
    return data.isdigit() and data[0] != 48 and len(data) < 19


class _Hole(NamedTuple):
    """A place where events differ without effect."""

    fits: Callable[[bytes], bool]
    """Whether something may stand there."""
    end: bytes
    """The one byte that ends it."""
    rest: bytes
    """All bytes from that one to the next hole, the text or the end."""


class TextTemplate:
    """The bytes of one event around its text.

    An event is its head, its text, the middle, and behind that what the holes leave. A number may stand before the text
    too: it is the neck.
    """

    __slots__ = ("_head", "_holes", "_kinds", "_lesson", "_lessons", "_middle", "_neck", "_neck_end", "_push")

    def __init__(self, kinds: Kinds | None = None) -> None:
        """`kinds` are the holes that there may be behind the text: by default OpenAI's."""
        self._kinds = {_FILLER: bytes.isalnum, _NUMBER: is_number} if kinds is None else kinds
        self._push: Callable[[str], None]
        self._head = b"\0"  # begins no event
        self._neck = self._neck_end = b""
        self._middle = b""
        self._holes: list[_Hole] = []
        self._lesson: tuple[bytes, str, Callable[[Any], object], Callable[[str], None], str] | None = None
        self._lessons = _LESSONS

    def take(self, data: bytes, at: int) -> int:
        """Pushes the texts of the events at `at` that are recognised; returns where the first other one begins.

        The stream must be between two events at `at`.
        """
        if self._lesson is not None:  # not sooner: the first words of a reply are not to wait for it
            lesson, self._lesson = self._lesson, None
            self._study(*lesson)
        head, neck, middle, holes = self._head, self._neck, self._middle, self._holes
        while data.startswith(head, at):
            start = at + len(head)
            if neck:
                hole, start = start, data.find(self._neck_end, start)
                number = data[hole:start]
                if not (data.startswith(neck, start) and number.isdigit() and number[0] != 48 and len(number) < 19):
                    break  # the first event's 0 is for the parser, as is what no JSON would have
                start += len(neck)
            stop = data.find(b'"', start)
            if not data.startswith(middle, stop):
                break
            after = stop + len(middle)
            for fits, end, rest in holes:
                hole, after = after, data.find(end, after)
                if not (data.startswith(rest, after) and fits(data[hole:after])):
                    return at
                after += len(rest)
            raw = data[start:stop]
            text = WORDS.get(raw) or word(raw)
            if not text:
                break
            self._push(text)
            at = after
        return at

    def learn(
        self, data: bytes, text: str, read: Callable[[Any], object], push: Callable[[str], None], name: str = "message"
    ) -> None:
        """Takes an event for the shape of those to come, if its text can be found in its bytes.

        Args:
            data: the event's data.
            text: the text that the event consists of; all else in it has no effect.
            read: finds that text in the parsed event.
            push: takes the texts of those to come.
            name: the event's name.
        """
        if self._lessons and text.isprintable():
            self._lesson = data, text, read, push, name

    def _study(
        self, data: bytes, text: str, read: Callable[[Any], object], push: Callable[[str], None], name: str
    ) -> None:
        raw = to_json(text)
        at = data.rfind(raw)
        if at < 0 or b"\\" in raw:
            return
        self._lessons -= 1
        head, middle = data[: at + 1], data[at + len(raw) - 1 :]
        if not _holds(head + _MARK.encode() + middle, read):
            return
        line = b"" if name == "message" else b"event: %b\n" % name.encode()
        self._head, necks = _split(line + b"data: " + head, {_NUMBER: is_number})
        self._neck = necks[0].rest if necks else b""
        self._neck_end = self._neck[:1]
        self._middle, self._holes = _split(middle + b"\n\n", self._kinds)
        self._push = push


def word(raw: bytes) -> str:
    """The text of the inside of a JSON string; empty if it is for the parser to judge, or was not all of the string."""
    text = raw.decode("utf-8", "surrogateescape")
    if not text.isprintable():  # strings in JSON hold no control characters, nor half ones
        return ""
    if "\\" in text:
        try:
            text = from_json(b'"%b"' % raw)
        except ValueError:
            return ""
    if len(raw) <= _MAX_WORD:
        if len(WORDS) >= _MAX_WORDS:
            WORDS.clear()
        WORDS[raw] = text
    return text


def _split(data: bytes, kinds: Kinds) -> tuple[bytes, list[_Hole]]:
    """What stands before the first hole, and the holes; each kind makes one at most.

    A match begins at a string's opening quote and ends behind its value: what fits its hole leaves the JSON around it
    as it is.
    """
    spans = sorted((*found.span(1), fits) for kind, fits in kinds.items() if (found := kind.search(data)))
    holes: list[_Hole] = []
    for number, (_, stop, fits) in enumerate(spans, 1):
        end = spans[number][0] if number < len(spans) else len(data)
        holes.append(_Hole(fits, data[stop : stop + 1], data[stop:end]))
    return data[: spans[0][0]] if spans else data, holes


def _holds(marked: bytes, read: Callable[[Any], object]) -> bool:
    """Whether the place that was marked is the inside of the text, and of nothing else."""
    try:
        return read(from_json(marked)) == _MARK
    except (ValueError, LookupError, TypeError):
        return False
