"""Lists for people: columns and ages.  Floor 7: the commands that list what is in a store write by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"))


def age(milliseconds: int) -> str:
    """How long ago something was, in the largest unit of which there is a whole one; `now` within a second."""
    for size, unit in _UNITS:
        if milliseconds >= size:
            return f"{milliseconds // size} {unit}"
    return "now"


def table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """The rows as lines, each column as wide as it needs."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
