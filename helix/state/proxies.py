"""What the user holds of a draft: proxies that look like the declared types.

Above `proxy` and the overlay, whose nodes they read and write; below `draft`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSequence, MutableSet
from functools import cached_property
from inspect import getattr_static
from typing import Any, cast

from pydantic import BaseModel

from helix.errors import StateError, did_you_mean
from helix.state.lists import ListNode
from helix.state.objects import ObjectNode
from helix.state.proxy import Proxy, open_node, unwrap
from helix.state.sets import SetNode
from helix.state.values import GONE


class DraftRecord(Proxy[ObjectNode]):
    """A model or a dataclass. Its methods and properties work on the draft; pydantic's own on a copy."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        node = open_node(self)
        if name in node.spec.fields or node.has(name):
            value = node.get(name)
            if value is not GONE:
                return value
        return _class_attribute(self, node, name)

    def __setattr__(self, name: str, value: Any) -> None:
        node = open_node(self)
        member = getattr(node.python_type, name, None)
        if name not in node.spec.fields and isinstance(member, property):
            member.__set__(self, value)
        else:
            node.set(name, value)

    def __delattr__(self, name: str) -> None:
        node = open_node(self)
        if not node.has(name):
            raise AttributeError(name)
        node.drop([name])

    def __dir__(self) -> list[str]:
        return sorted({*dir(self._helix_node.python_type), *self._helix_node.spec.fields})


def _class_attribute(proxy: DraftRecord, node: ObjectNode, name: str) -> Any:
    cls = cast(Any, node.python_type)
    if name in node.spec.fields or name.startswith("__") or not hasattr(cls, name):
        near = did_you_mean(name, node.spec.fields)
        raise AttributeError(f"{cls.__name__} has no {name!r} here.{near}")
    if hasattr(BaseModel, name) and issubclass(cls, BaseModel):
        return getattr(node.value(), name)
    found = getattr_static(cls, name)
    if isinstance(getattr(found, "wrapped", found), cached_property):  # it would keep its value in the proxy
        return getattr(node.value(), name)
    return found.__get__(proxy, cls) if hasattr(found, "__get__") else found


class DraftDict(Proxy[ObjectNode], MutableMapping[Any, Any]):
    """A dict, or a TypedDict."""

    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        node = open_node(self)
        value = node.get(_known_key(node, key))
        if value is GONE:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        node = open_node(self)
        node.set(node.spec.key_in(key, node.path), value)

    def __delitem__(self, key: Any) -> None:
        node = open_node(self)
        node.drop([_present_key(node, key)])

    def __contains__(self, key: object) -> bool:
        node = open_node(self)
        try:
            return node.has(_known_key(node, key))
        except KeyError:
            return False

    def __iter__(self) -> Iterator[Any]:
        node = open_node(self)
        return iter([node.spec.key_out(key) for key in node.names()])

    def __len__(self) -> int:
        return len(open_node(self).names())

    def __or__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        return open_node(self).value() | unwrap(other)

    def __ror__(self, other: Mapping[Any, Any]) -> dict[Any, Any]:
        return unwrap(other) | open_node(self).value()

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self

    def copy(self) -> dict[Any, Any]:
        """A plain dict, detached from the draft."""
        return open_node(self).value()

    def update(self, other: Any = (), /, **more: Any) -> None:
        node = open_node(self)
        values: dict[Any, Any] = {**dict(unwrap(other)), **more}
        node.merge({node.spec.key_in(key, node.path): value for key, value in values.items()})

    def pop(self, key: Any, default: Any = GONE, /) -> Any:
        node = open_node(self)
        if key in self:
            return node.take(_present_key(node, key))
        if default is GONE:
            raise KeyError(key)
        return default

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def popitem(self) -> tuple[Any, Any]:
        node = open_node(self)
        names = node.names()
        if not names:
            raise KeyError("popitem(): dictionary is empty")
        return node.spec.key_out(names[-1]), node.take(names[-1])

    def clear(self) -> None:
        node = open_node(self)
        node.drop(node.names())


def _known_key(node: ObjectNode, key: Any) -> str:
    try:
        return node.spec.key_in(key, node.path)
    except StateError:
        raise KeyError(key) from None


def _present_key(node: ObjectNode, key: Any) -> str:
    name = _known_key(node, key)
    if not node.has(name):
        raise KeyError(key)
    return name


class DraftList(Proxy[ListNode], MutableSequence[Any]):
    """A list."""

    __slots__ = ()

    def __len__(self) -> int:
        return open_node(self).size()

    def __getitem__(self, index: Any) -> Any:
        node = open_node(self)
        if isinstance(index, slice):
            return [node.get(n) for n in _indices(node, index)]
        return node.get(_index(node, index))

    def __setitem__(self, index: Any, value: Any) -> None:
        node = open_node(self)
        if isinstance(index, slice):
            _set_slice(node, cast(Any, index), list(unwrap(value)))
        else:
            node.set(_index(node, index), value)

    def __delitem__(self, index: Any) -> None:
        node = open_node(self)
        if isinstance(index, slice):
            gone = set(_indices(node, index))
            node.keep([n for n in range(node.size()) if n not in gone])
        else:
            at = _index(node, index)
            node.splice(at, at + 1, [])

    def insert(self, index: Any, value: Any) -> None:
        node = open_node(self)
        at = slice(index, None).indices(node.size())[0]
        if at == node.size():
            node.extend([value])
        else:
            node.splice(at, at, [node.accept(value, at)])

    def append(self, value: Any) -> None:
        open_node(self).extend([value])

    def extend(self, values: Iterable[Any]) -> None:
        open_node(self).extend(list(unwrap(values)))

    def pop(self, index: Any = -1) -> Any:
        node = open_node(self)
        at = _index(node, index)
        value = node.spec.items.load(node.member(node.raw(at)))
        node.splice(at, at + 1, [])
        return value

    def clear(self) -> None:
        open_node(self).keep([])

    def reverse(self) -> None:
        node = open_node(self)
        node.keep(range(node.size() - 1, -1, -1))

    def sort(self, *, key: Callable[[Any], Any] | None = None, reverse: bool = False) -> None:
        node = open_node(self)
        by = [item if key is None else key(item) for item in self]
        node.keep(sorted(range(node.size()), key=by.__getitem__, reverse=reverse))

    def copy(self) -> list[Any]:
        """A plain list, detached from the draft."""
        return open_node(self).value()

    def __add__(self, other: list[Any]) -> list[Any]:
        return open_node(self).value() + unwrap(other)

    def __radd__(self, other: list[Any]) -> list[Any]:
        return unwrap(other) + open_node(self).value()

    def __mul__(self, times: int) -> list[Any]:
        return open_node(self).value() * times

    __rmul__ = __mul__

    def __imul__(self, times: int) -> Any:
        if times <= 0:
            self.clear()
        else:
            self.extend(open_node(self).value() * (times - 1))
        return self


def _indices(node: ListNode, index: Any) -> range:
    return cast(range, range(node.size()).__getitem__(index))


def _index(node: ListNode, index: Any) -> int:
    try:
        return cast(int, range(node.size()).__getitem__(index))
    except IndexError:
        raise IndexError("list index out of range") from None


def _set_slice(node: ListNode, index: Any, values: list[Any]) -> None:
    at = _indices(node, index)
    raws = [node.accept(value, at.start + n) for n, value in enumerate(values)]
    if at.step == 1:
        node.splice(at.start, max(at.start, at.stop), raws)
    elif len(raws) != len(at):
        raise ValueError(f"attempt to assign sequence of size {len(raws)} to extended slice of size {len(at)}")
    else:
        for n, raw in zip(at, raws, strict=True):
            node.splice(n, n + 1, [raw])


class DraftSet(Proxy[SetNode], MutableSet[Any]):
    """A set."""

    __slots__ = ()

    @classmethod
    # What `|`, `&`, `-` and `^` give is a plain set. `Set` allows any set here; its stub wants this very class.
    def _from_iterable(cls, it: Iterable[Any]) -> set[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return set(it)

    def __contains__(self, value: object) -> bool:
        return value in open_node(self).value()

    def __iter__(self) -> Iterator[Any]:
        return iter(open_node(self).value())

    def __len__(self) -> int:
        return len(open_node(self).raws())

    def add(self, value: Any) -> None:
        self.update([value])

    def discard(self, value: Any) -> None:
        self.difference_update([value])

    def clear(self) -> None:
        node = open_node(self)
        node.change((), node.raws())

    def copy(self) -> set[Any]:
        """A plain set, detached from the draft."""
        return open_node(self).value()

    def update(self, *others: Iterable[Any]) -> None:
        node = open_node(self)
        node.change([node.accept(value) for other in others for value in unwrap(other)])

    def difference_update(self, *others: Iterable[Any]) -> None:
        node = open_node(self)
        gone = {value for other in others for value in unwrap(other)} & node.value()
        node.change((), [node.accept(value) for value in gone])

    def intersection_update(self, *others: Iterable[Any]) -> None:
        value: set[Any] = open_node(self).value()
        self.difference_update(value - value.intersection(*map(unwrap, others)))

    def symmetric_difference_update(self, other: Iterable[Any]) -> None:
        node = open_node(self)
        given: set[Any] = set(unwrap(other))
        both = given & node.value()
        node.change([node.accept(value) for value in given - both], [node.accept(value) for value in both])

    def __ior__(self, other: Iterable[Any]) -> Any:
        self.update(other)
        return self

    def __isub__(self, other: Iterable[Any]) -> Any:
        self.difference_update(other)
        return self

    def __iand__(self, other: Iterable[Any]) -> Any:
        self.intersection_update(other)
        return self

    def __ixor__(self, other: Iterable[Any]) -> Any:
        self.symmetric_difference_update(other)
        return self

    def union(self, *others: Iterable[Any]) -> set[Any]:
        return open_node(self).value().union(*map(unwrap, others))

    def intersection(self, *others: Iterable[Any]) -> set[Any]:
        return open_node(self).value().intersection(*map(unwrap, others))

    def difference(self, *others: Iterable[Any]) -> set[Any]:
        return open_node(self).value().difference(*map(unwrap, others))

    def symmetric_difference(self, other: Iterable[Any]) -> set[Any]:
        return open_node(self).value().symmetric_difference(unwrap(other))

    def issubset(self, other: Iterable[Any]) -> bool:
        return open_node(self).value().issubset(unwrap(other))

    def issuperset(self, other: Iterable[Any]) -> bool:
        return open_node(self).value().issuperset(unwrap(other))
