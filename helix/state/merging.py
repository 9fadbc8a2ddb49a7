"""A list as one draft and as others have changed it, made one: pure, over lists of raw JSON.

Above `values`, below `lists`.
"""

from __future__ import annotations

import copy
from bisect import bisect
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from operator import is_
from sys import maxsize
from typing import Any, TypeAlias

from helix.state.values import GONE, json_mark


class Merge:
    """An edited list, and the same list as others have it now, made one.

    `own` is the edited list, and `origin` says where in the list before the edits each of its items came from, as in
    `ListNode`; `where` says for each item of that list where it is in the live one, None: others removed it. `plain`
    gives an item as JSON of its own; `changed` says whether it was changed inside.
    """

    def __init__(
        self,
        own: list[Any],
        origin: list[int | None],
        live: list[Any],
        where: list[int | None],
        *,
        plain: Callable[[Any], Any],
        changed: Callable[[Any], bool],
    ) -> None:
        self.own = own
        self.live = live
        self.where = where
        self.plain = plain
        self.changed = changed
        self.moved = where != list(range(len(live)))
        self.slots = list(map(self._slot, own, origin)) if self.moved else origin
        self.size = len(own) - self.slots.count(_LOST) + len(live) - len(where) + where.count(None)

    def _slot(self, raw: Any, origin: int | None) -> int | None:
        """As `origin`, but by the live list's indices; `_LOST` when others removed the item, and it is left out."""
        if origin is None:
            return None
        index = self.where[_place(origin)]
        if index is not None:
            return index if origin >= 0 else ~index
        return None if origin < 0 or self.changed(raw) else _LOST

    def whole(self) -> list[Any]:
        """The merged list: this draft's order, and behind it what only others have."""
        mine = [self.plain(raw) for raw, slot in zip(self.own, self.slots, strict=True) if slot != _LOST]
        matched = set(self.where)
        theirs = [copy.deepcopy(raw) for index, raw in enumerate(self.live) if index not in matched]
        return mine + theirs

    def kept(self) -> Iterator[tuple[Any, int]]:
        """The items that stay the ones that they are, each with its index in the live list."""
        for raw, slot in zip(self.own, self.slots, strict=True):
            if slot is not None and 0 <= slot < _LOST:
                yield raw, slot

    def edits(self) -> list[Edit] | None:
        """The edits between each two kept items, from left to right; None when the order of the kept ones changed."""
        kept = {_place(slot) for slot in self.slots if slot is not None}
        dropped = sorted(index for index in self.where if index is not None and index not in kept)
        edits, fresh, last, end = _Edits(), list[Any](), -1, len(self.live)
        for raw, slot in zip([*self.own, None], [*self.slots, end], strict=True):
            if slot is None:
                fresh.append(self.plain(raw))
            elif slot != _LOST:
                place = _place(slot)
                if place <= last:
                    return None
                if fresh or place != last + 1:
                    gap = dropped[bisect(dropped, last) : bisect(dropped, place - 1)]
                    edits.gap(fresh, gap, end if place == end else last + 1)
                    fresh = []
                if slot < 0:
                    edits.replace(place, self.plain(raw))
                last = place
        return edits.ops


_LOST = maxsize


def _place(slot: int) -> int:
    return slot if slot >= 0 else ~slot


Edit: TypeAlias = tuple[str, int, int, Any]
"""Operation, index, the index as it was before all edits, value."""


class _Edits:
    """Operations on one list, written from left to right."""

    def __init__(self) -> None:
        self.ops: list[Edit] = []
        self.shift = 0  # how many items more there are by now, left of here

    def replace(self, place: int, value: Any) -> None:
        self.ops.append(("replace", place + self.shift, place, value))

    def gap(self, fresh: list[Any], dropped: list[int], at: int) -> None:
        """Between two kept items: `dropped` go, and `fresh` come in at `at`."""
        middle = bisect(dropped, at - 1)
        self._remove(dropped[:middle])
        for value in fresh:
            self.ops.append(("add", at + self.shift, at, value))
            self.shift += 1
        self._remove(dropped[middle:])

    def _remove(self, places: list[int]) -> None:
        for place in places:
            self.ops.append(("remove", place + self.shift, place, GONE))
            self.shift -= 1


def align(old: list[Any], new: list[Any], *, positional: bool) -> list[int | None]:
    """For each item of `old` its index in `new`; None when it is not there any more."""
    if len(old) == len(new) and (positional or all(map(is_, old, new))):
        return list(range(len(old)))
    a, b = _marks(old, new)
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    end = 0
    while end < min(len(a), len(b)) - start and a[-1 - end] == b[-1 - end]:
        end += 1
    where: list[int | None] = [*range(start), *([None] * (len(a) - start))]
    for n in range(end):
        where[len(a) - 1 - n] = len(b) - 1 - n
    matcher = SequenceMatcher(None, a[start : len(a) - end], b[start : len(b) - end])
    for i, j, size in matcher.get_matching_blocks():
        for n in range(size):
            where[start + i + n] = start + j + n
    _match_moved(where, a, b)
    return where


def _match_moved(where: list[int | None], old: list[Any], new: list[Any]) -> None:
    """What has no place in order yet may stand elsewhere: others sorted the list."""
    matched = set(where)
    spare: dict[Any, list[int]] = {}
    for index in reversed(range(len(new))):
        if index not in matched:
            spare.setdefault(new[index], []).append(index)
    for index, mark in enumerate(old):
        if where[index] is None and spare.get(mark):
            where[index] = spare[mark].pop()


def _marks(old: list[Any], new: list[Any]) -> tuple[list[Any], list[Any]]:
    """Hashable marks by which items are recognised: containers by identity, or by content when `new` is a copy."""
    mine = {id(raw) for raw in old if type(raw) in (dict, list)}
    moved = not mine or any(id(raw) in mine for raw in new)

    def mark(raw: Any) -> Any:
        if moved and type(raw) in (dict, list):
            return ("at", id(raw))
        return json_mark(raw)

    return [mark(raw) for raw in old], [mark(raw) for raw in new]
