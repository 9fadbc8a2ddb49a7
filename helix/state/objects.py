"""The overlay over a record or a dict. Above `node`, below `proxies`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from helix.state.node import Node, Session
from helix.state.rendering import Rendering
from helix.state.spec import Spec
from helix.state.values import GONE, JsonPath


class ObjectNode(Node):
    """A record or a dict: what was written, by key, and the members that were looked into."""

    __slots__ = ("children", "written")

    def __init__(self, spec: Spec, base: Any, path: JsonPath, session: Session) -> None:
        super().__init__(spec, base, path, session)
        self.written: dict[str, Any] = {}
        self.children: dict[str, Node] = {}

    def raw(self, key: str) -> Any:
        return self.written[key] if key in self.written else self.base.get(key, GONE)

    def has(self, key: str) -> bool:
        return self.raw(key) is not GONE or self._filled(key)

    def _filled(self, key: str) -> bool:
        """Was a default, which the document does not have, looked into and changed?"""
        child = self.children.get(key)
        return child is not None and child.changed()

    def names(self) -> list[str]:
        present = [key for key in list(self.base) if self.has(key)]
        own = dict.fromkeys((*self.written, *self.children))
        return present + [key for key in own if key not in self.base and self.has(key)]

    def child(self, key: str) -> Node | None:
        """The member's node, when it is a container that can be drafted."""
        raw, known = self.raw(key), self.children.get(key)
        if known is not None and (known.base is raw or raw is GONE or known.changed()):
            return known
        if known is not None and self.spec.at(key).container(raw) is known.spec:
            known.base = raw  # others replaced the container: whoever holds the proxy goes on with the new one
            return known
        raw = self.spec.default(key) if raw is GONE else raw
        made = self.make(self.spec.at(key), raw, key)
        if made is not None:
            self.children[key] = made
        return made

    def get(self, key: str) -> Any:
        """The member as a user reads it: a proxy, or a value; `GONE` when there is none."""
        child = self.child(key)
        if child is not None:
            return child.proxy
        raw = self.raw(key)
        raw = self.spec.default(key) if raw is GONE else raw
        return GONE if raw is GONE else self.spec.at(key).load(raw, (*self.path, key))

    def merge(self, values: Mapping[str, Any]) -> None:
        """Writes all of the members or, when one is not valid, none."""
        for key in values:
            self.spec.check_key(key, self.path)
        raws = {key: self.spec.at(key).accept(value, (*self.path, key)) for key, value in values.items()}
        self._check_size(sum(not self.has(key) for key in raws))
        for key, raw in raws.items():
            self.children.pop(key, None)
            self.written[key] = raw

    def set(self, key: str, value: Any) -> None:
        child = self.children.get(key)
        if child is None or value is not child.proxy:  # `draft.items += [...]` ends by assigning what it has changed
            self.merge({key: value})

    def drop(self, keys: Sequence[str]) -> None:
        """Removes all of the members or, when one has to stay, none."""
        for key in keys:
            self.spec.check_removable(key, self.path)
        self._check_size(-len(keys))
        for key in keys:
            self.children.pop(key, None)
            self.written[key] = GONE

    def _check_size(self, more: int) -> None:
        if more and self.spec.bounded:
            self.spec.check_size(len(self.names()) + more, self.path)

    def take(self, key: str) -> Any:
        """Removes a member and gives its value."""
        value = self.spec.at(key).load(self.member(key), (*self.path, key))
        self.drop([key])
        return value

    def member(self, key: str) -> Any:
        """The member as JSON of its own, or `GONE`."""
        child, raw = self.children.get(key), self.raw(key)
        if child is not None and (child.changed() or child.base is raw):
            return child.plain()
        return copy.deepcopy(raw) if raw is not GONE else GONE

    def changed(self) -> bool:
        return bool(self.written) or any(child.changed() for child in self.children.values())

    def plain(self) -> Any:
        return {key: self.member(key) for key in self.names()}

    def render(self, live: Any, path: JsonPath, out: Rendering) -> None:
        size = len(live)
        for key in dict.fromkeys((*self.written, *self.children)):
            target, place, child = live.get(key, GONE), (*path, key), self.children.get(key)
            if key not in self.written:
                if child is None or not child.changed():
                    continue
                if self.spec.at(key).container(target) is child.spec:
                    child.render(target, place, out)
                    continue
            value = self.member(key)
            grown = size + (value is not GONE) - (target is not GONE)
            if grown != size and self.spec.bounded and not self.spec.fits(grown):
                out.conflict(place)  # others have filled (or emptied) the dict: what they wrote stays valid
            else:
                size = grown
                out.write(place, target, value)
