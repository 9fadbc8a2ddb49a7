"""The overlay over a list. Above `node` and `merging`, below `proxies`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from helix.state.merging import Edit, Merge, align
from helix.state.node import Node, Session
from helix.state.rendering import Rendering
from helix.state.spec import Spec
from helix.state.values import JsonPath, same_json


class ListNode(Node):
    """A list. Appends and changes inside items lie over the live list; an edit by index takes the list's references.

    Until the first edit by index the list is `base` and then `tail`. From then on it is `own`, and `origin` says for
    each item of it where in `pinned`, the list as it was then, it came from: an index, or `~index` for a value that was
    put in the place of that item, or None for a new one.
    """

    __slots__ = ("children", "origin", "own", "pinned", "tail")

    def __init__(self, spec: Spec, base: Any, path: JsonPath, session: Session) -> None:
        super().__init__(spec, base, path, session)
        self.tail: list[Any] = []
        self.own: list[Any] | None = None
        self.origin: list[int | None] = []
        self.pinned: list[Any] = []
        self.children: dict[int, Node] = {}  # by id of the item, which its node keeps alive: a node follows its item

    def size(self) -> int:
        return len(self.base) + len(self.tail) if self.own is None else len(self.own)

    def raws(self) -> list[Any]:
        return [*self.base, *self.tail] if self.own is None else list(self.own)

    def raw(self, index: int) -> Any:
        if self.own is not None:
            return self.own[index]
        length = len(self.base)
        return self.base[index] if index < length else self.tail[index - length]

    def child(self, index: int) -> Node | None:
        raw = self.raw(index)
        known = self.children.get(id(raw))
        if known is None and type(raw) in (dict, list):
            known = self.make(self.spec.items, raw, str(index))
            if known is not None:
                known.hint = index
                self.children[id(raw)] = known
        return known

    def get(self, index: int) -> Any:
        child = self.child(index)
        if child is not None:
            return child.proxy
        return self.spec.items.load(self.raw(index), (*self.path, str(index)))

    def member(self, raw: Any) -> Any:
        child = self.children.get(id(raw))
        return child.plain() if child is not None else copy.deepcopy(raw)

    def accept(self, value: Any, index: int) -> Any:
        return self.spec.items.accept(value, (*self.path, str(index)))

    def set(self, index: int, value: Any) -> None:
        raw = self.raw(index)
        known = self.children.get(id(raw))
        if known is None or value is not known.proxy:
            fresh = self.accept(value, index)
            if not same_json(self.member(raw), fresh):
                self.splice(index, index + 1, [fresh])

    def extend(self, values: Iterable[Any]) -> None:
        """All of them or, when one is not valid, none."""
        start = self.size()
        raws = [self.accept(value, start + n) for n, value in enumerate(values)]
        self.spec.check_size(start + len(raws), self.path)
        if self.own is None:
            self.tail.extend(raws)
        else:
            self.own.extend(raws)
            self.origin.extend([None] * len(raws))

    def splice(self, start: int, stop: int, raws: list[Any]) -> None:
        self.spec.check_size(self.size() - (stop - start) + len(raws), self.path)
        live = len(self.base)
        if self.own is None and start >= live:  # among its own appends: the live list is not concerned
            for gone in self.tail[start - live : stop - live]:
                self.children.pop(id(gone), None)
            self.tail[start - live : stop - live] = raws
            return
        self._pin()[start:stop] = raws
        over = self.origin[start:stop][: len(raws)]
        replaced = [origin if origin is None or origin < 0 else ~origin for origin in over]
        self.origin[start:stop] = [*replaced, *([None] * (len(raws) - len(replaced)))]

    def keep(self, order: Sequence[int]) -> None:
        """Leaves the items of these indices, in this order."""
        if list(order) != list(range(self.size())):
            self.spec.check_size(len(order), self.path)
            own, origin = self._pin(), self.origin
            self.own, self.origin = [own[index] for index in order], [origin[index] for index in order]

    def _pin(self) -> list[Any]:
        if self.own is None:
            self.pinned = list(self.base)
            self.own = [*self.pinned, *self.tail]
            self.origin = [*range(len(self.pinned)), *([None] * len(self.tail))]
            self.tail = []
        return self.own

    def changed(self) -> bool:
        return self.own is not None or bool(self.tail) or any(child.changed() for child in self.children.values())

    def plain(self) -> Any:
        return [self.member(raw) for raw in self.raws()]

    def render(self, live: Any, path: JsonPath, out: Rendering) -> None:
        if self.own is not None:
            self._render_edits(self.own, live, path, out)
            return
        size = len(live)
        fresh = {id(raw) for raw in self.tail}
        touched = [child for key, child in self.children.items() if key not in fresh and child.changed()]
        for child, index in self._located(touched, live, path, out):
            if index is None:  # others removed the item that this draft changed: it comes back as this draft has it
                out.add((*path, str(min(child.hint, size))), child.plain(), conflict=True)
                size += 1
            else:
                self._enter(child, live, path, index, out)
        for raw in self.tail:
            if not self.spec.fits(size + 1):
                out.conflict(path)  # others have filled the list meanwhile
                break
            out.add((*path, str(size)), self.member(raw))
            size += 1

    def _located(
        self, touched: list[Node], live: list[Any], path: JsonPath, out: Rendering
    ) -> list[tuple[Node, int | None]]:
        """Where the items are now, those that others removed last: items move, and take their identity with them."""
        if all(child.hint < len(live) and live[child.hint] is child.base for child in touched):
            return [(child, child.hint) for child in touched]
        in_place = out.footprint.keeps_places(path)
        places = {id(raw): index for index, raw in enumerate(self.base)}
        where = align(self.base, live, positional=in_place)

        def place(child: Node) -> int | None:
            index = places.get(id(child.base))
            if index is not None:
                return where[index]
            return child.hint if in_place and child.hint < len(live) else None  # others replaced the item

        found = [(child, place(child)) for child in touched]
        return sorted(found, key=lambda entry: entry[1] is None)

    def _render_edits(self, own: list[Any], live: list[Any], path: JsonPath, out: Rendering) -> None:
        in_place = out.footprint.keeps_places(path)
        where = align(self.pinned, live, positional=in_place)
        merge = Merge(own, self.origin, live, where, plain=self.member, changed=self._item_changed)
        shifted = not in_place
        overfull = not self.spec.fits(merge.size)  # together with what others did it would be too long or too short
        edits = None if overfull else merge.edits()
        if edits is None or len(edits) > max(1, merge.size):
            out.write(path, live, self.plain() if overfull else merge.whole())
        else:
            for raw, index in merge.kept() if self.children else ():
                if self._item_changed(raw):
                    self._enter(self.children[id(raw)], live, path, index, out)
            for op, index, _, value in edits:
                out.emit(op, (*path, str(index)), value)
            shifted = bool(edits) and (shifted or self._meets_others(edits, path, out))
        if shifted or overfull or merge.moved:
            out.conflict(path)

    def _item_changed(self, raw: Any) -> bool:
        child = self.children.get(id(raw))
        return child is not None and child.changed()

    def _enter(self, child: Node, live: list[Any], path: JsonPath, index: int, out: Rendering) -> None:
        """What changed inside an item that is now at `index`; all of it when what stands there is of another shape."""
        target, place = live[index], (*path, str(index))
        if self.spec.items.container(target) is child.spec:
            child.render(target, place, out)
        else:
            out.write(place, target, child.plain())

    def _meets_others(self, edits: list[Edit], path: JsonPath, out: Rendering) -> bool:
        """Notes conflicts of single items; and does the list as a whole conflict?"""
        for op, index, before, _ in edits:
            if op == "replace" and out.footprint.covers((*path, str(before))):
                out.conflict((*path, str(index)))
        return any(op != "replace" for op, *_ in edits) and out.footprint.edited(path)
