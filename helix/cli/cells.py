"""Text measured in the cells of a terminal: a CJK character or an emoji takes two.

Floor 7: used by the live view; needs rich. What enters is neutralised first, so that a cell here is a cell on screen.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from rich.cells import get_character_cell_size

from helix.cli.console import printable

_VARIATIONS = frozenset("\ufe0e\ufe0f")
_FLAGS = range(0x1F1E6, 0x1F200)
_SKIN = range(0x1F3FB, 0x1F400)


def flat(text: str) -> str:
    """The text on one line, with those characters left out whose width terminals do not agree on."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_agreed, " ".join(printable(text).split())))


def _agreed(char: str) -> str:
    code = ord(char)
    if code < 0x7F:
        return char
    if code in _FLAGS:  # half of a flag: its letter
        return chr(ord("A") + code - _FLAGS.start)
    if char in _VARIATIONS or code in _SKIN or unicodedata.category(char) in ("Cf", "Co", "Cn"):
        return ""
    return char


def cells(text: str) -> int:
    """How many cells a flat text takes."""
    return len(text) if text.isascii() else sum(map(_size, text))


@lru_cache(4096)
def _size(char: str) -> int:
    """The most that a terminal takes for it: on spacing marks they do not agree."""
    return max(get_character_cell_size(char), unicodedata.category(char) == "Mc")


def fit(text: str, width: int, *, right: bool = False) -> str:
    """A flat text in exactly `width` cells: filled up with spaces, or cut with an ellipsis."""
    missing = width - cells(text)
    if missing < 0:
        text = cut(text, width)
        missing = width - cells(text)
    return f"{' ' * missing}{text}" if right else f"{text}{' ' * missing}"


def cut(text: str, width: int) -> str:
    """A flat text in at most `width` cells; its end is left out."""
    return text if cells(text) <= width else f"{text[: _room(text, width - 1)]}…" if width > 0 else ""


def cut_start(text: str, width: int) -> str:
    """A flat text in at most `width` cells; its beginning is left out, as of words that are still being written."""
    if cells(text) <= width:
        return text
    return f"…{text[len(text) - _room(text[::-1], width - 1) :]}" if width > 0 else ""


def _room(text: str, width: int) -> int:
    """How many characters fit."""
    for index, char in enumerate(text):
        width -= _size(char)
        if width < 0:
            return index
    return len(text)


def wrap(text: str, width: int) -> list[str]:
    """The lines of a printable text, broken between words (or in one that is too long) at `width` cells."""
    lines: list[str] = []
    for line in text.split("\n"):
        while cells(line) > width:
            room = max(1, _room(line, width))
            space = line.rfind(" ", 0, room + 1)
            at = space if space > room // 2 else room
            lines.append(line[:at].rstrip())
            line = line[at:].lstrip()
        lines.append(line)
    return lines
