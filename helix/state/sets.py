"""The overlay over a set. Above `node`, below `proxies`."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from helix.state.node import Node, Session
from helix.state.rendering import Rendering
from helix.state.spec import Spec
from helix.state.values import GONE, JsonPath, json_mark


class SetNode(Node):
    """A set, which in JSON is a list in no order that means anything: merged by element, not by index."""

    __slots__ = ("added", "removed")

    def __init__(self, spec: Spec, base: Any, path: JsonPath, session: Session) -> None:
        super().__init__(spec, base, path, session)
        self.added: dict[Any, Any] = {}
        self.removed: set[Any] = set()

    def raws(self) -> list[Any]:
        marked = {json_mark(raw): raw for raw in list(self.base)}
        return [raw for mark, raw in (marked | self.added).items() if mark not in self.removed]

    def accept(self, value: Any) -> Any:
        return self.spec.items.accept(value, (*self.path, "-"))

    def change(self, add: Iterable[Any], remove: Iterable[Any] = ()) -> None:
        """Raw elements; all of it or, when the set's bounds forbid it, nothing."""
        added, removed = {json_mark(raw): raw for raw in add}, {json_mark(raw) for raw in remove}
        now = {json_mark(raw) for raw in self.raws()}
        after = (now - removed) | added.keys()
        if after != now:
            self.spec.check_size(len(after), self.path)
        self.removed = (self.removed | removed) - added.keys()
        self.added = {mark: raw for mark, raw in (self.added | added).items() if mark not in self.removed}

    def changed(self) -> bool:
        return bool(self.added or self.removed)

    def plain(self) -> Any:
        return copy.deepcopy(self.raws())

    def render(self, live: Any, path: JsonPath, out: Rendering) -> None:
        marks = [json_mark(raw) for raw in live]
        present = set(marks)
        dropped = [index for index, mark in enumerate(marks) if mark in self.removed]
        fresh = [raw for mark, raw in self.added.items() if mark not in present]
        result = [raw for raw, mark in zip(live, marks, strict=True) if mark not in self.removed] + fresh
        if not self.spec.fits(len(result)):  # together with what others did it would be too large or too small
            out.conflict(path)
            if self.spec.fits(len(self.raws())):
                out.write(path, live, self.plain())
        elif len(dropped) + len(fresh) > max(1, len(result)):
            out.write(path, live, copy.deepcopy(result))
        else:
            for index in reversed(dropped):
                out.emit("remove", (*path, str(index)), GONE)
            for n, raw in enumerate(fresh):
                out.add((*path, str(len(live) - len(dropped) + n)), copy.deepcopy(raw))
