"""What others have changed while a draft was open: the places that a rendering has to look out for.

Above `values`, below `rendering`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from helix.state.values import JsonPath, path_of


class Footprint:
    """Which paths others have changed, at the indices as they are now: a tree with a node for each token."""

    __slots__ = ("below", "shifted", "top", "written")

    def __init__(self) -> None:
        self.below: dict[str, Footprint] = {}
        self.top = -1  # no index above this one was noted: an append, the common case, moves nothing
        self.written = False
        self.shifted = False

    @classmethod
    def of(cls, others: Iterable[Mapping[str, Any]], document: Any) -> Footprint:
        root = cls()
        for operation in others:
            if operation["op"] == "move":
                root._note("remove", path_of(operation["from"]), document)
            if operation["op"] != "test":
                root._note(operation["op"], path_of(operation["path"]), document)
        return root

    def _note(self, op: str, path: JsonPath, document: Any) -> None:
        node, here = self, document
        for token in path[:-1]:
            node, here = node._enter(token), _step(here, token)
        if not path:
            node.written = True
            return
        in_list = isinstance(here, list)
        if in_list and op != "replace":
            node._shift(path[-1], -1 if op == "remove" else 1)
        if not (in_list and op == "remove"):
            node._enter(path[-1]).written = True

    def _enter(self, token: str) -> Footprint:
        if token.isdigit():
            self.top = max(self.top, int(token))
        return self.below.setdefault(token, Footprint())

    def _shift(self, token: str, by: int) -> None:
        self.shifted = True
        if not token.isdigit() or int(token) > self.top:
            return
        if by < 0:
            self.below.pop(token, None)
        moved = [int(key) for key in self.below if key.isdigit() and int(key) >= int(token)]
        for index in sorted(moved, reverse=by > 0):
            self.below[str(index + by)] = self.below.pop(str(index))
        self.top += by

    def covers(self, path: JsonPath) -> bool:
        """Did others write this path, one above it, or one below it?"""
        return self.above(path) or self._at(path) is not None

    def above(self, path: JsonPath) -> bool:
        """Did others write one of the containers that this path leads through?"""
        node = self
        for token in path:
            if node.written:
                return True
            if token not in node.below:
                return False
            node = node.below[token]
        return False

    def keeps_places(self, path: JsonPath) -> bool:
        """Is the list at this path the one that it was, its items where they were? (Some may have been replaced.)"""
        node = self._at(path)
        return not (node is not None and node.shifted) and not self.above((*path, "0"))

    def edited(self, path: JsonPath) -> bool:
        """Did others insert, append, remove or replace items of the list at this path?"""
        node = self._at(path)
        return node is not None and (node.shifted or any(item.written for item in node.below.values()))

    def _at(self, path: JsonPath) -> Footprint | None:
        node: Footprint | None = self
        for token in path:
            node = node.below.get(token) if node else None
        return node


def _step(container: Any, token: str) -> Any:
    if isinstance(container, dict):
        return cast(dict[str, Any], container).get(token)
    if isinstance(container, list) and token.isdigit() and int(token) < len(cast(list[Any], container)):
        return cast(list[Any], container)[int(token)]
    return None
