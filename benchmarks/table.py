"""What a case found: rows, and the ratios that it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One contender's cost, in the table's unit."""

    name: str
    cost: float


@dataclass(frozen=True)
class Ratio:
    """One cost over another, and the bound that helix wants to keep, if there is one."""

    name: str
    value: float
    bound: float | None = None
    at_least: bool = False

    @property
    def kept(self) -> bool:
        """Whether the bound is kept."""
        return self.bound is None or (self.value >= self.bound if self.at_least else self.value <= self.bound)


@dataclass(frozen=True)
class Table:
    """One case."""

    title: str
    unit: str
    rows: Sequence[Row]
    ratios: Sequence[Ratio]
    notes: Sequence[str] = ()

    def lines(self) -> Iterator[str]:
        """The table as text."""
        yield f"{self.title}  ({self.unit})"
        for row in self.rows:
            yield f"  {row.name:<36}{row.cost:>10.2f}"
        for found in self.ratios:
            bound = "" if found.bound is None else f"   {'≥' if found.at_least else '≤'} {found.bound:g}"
            verdict = "" if found.bound is None else "   kept" if found.kept else "   NOT KEPT"
            yield f"  {found.name:<36}{found.value:>9.2f}×{bound}{verdict}"
        yield from (f"  {note}" for note in self.notes)


def ratio(
    name: str, costs: Mapping[str, float], over: str, under: str, bound: float | None = None, *, at_least: bool = False
) -> Ratio:
    """The ratio of two contenders' costs."""
    return Ratio(name, costs[over] / costs[under], bound, at_least)
