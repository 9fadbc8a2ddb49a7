"""The proxy as the rest of the state sees it: how to tell one, and how to make a value of one.

Above `errors`, below `spec`, which takes parts of a draft as values; the classes that users hold are in `proxies`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, cast

from helix.errors import UsageError


class Behind(Protocol):
    """What stands behind a proxy: in helix, a node of a draft's overlay."""

    @property
    def closed(self) -> bool:
        """Has its draft ended?"""
        ...

    @property
    def python_type(self) -> type[Any]:
        """What `isinstance` is to answer."""
        ...

    def value(self) -> Any:
        """A fresh Python value of the declared type."""
        ...

    def plain(self) -> Any:
        """JSON of its own."""
        ...


BehindT = TypeVar("BehindT", bound=Behind)


class Proxy(Generic[BehindT]):
    """Reads through to a node, and writes into it.

    `isinstance` answers as the state type's annotation says (`isinstance(draft.sources, list)` is true): user code is
    checked against that annotation. The real class is none of the builtin ones, because C code would read their
    storage past the draft: so `json.dumps(draft.sources)` fails loudly instead of writing an empty list.
    """

    __slots__ = ("_helix_node",)
    __hash__ = None  # pyright: ignore[reportAssignmentType] -- the usual way to say "mutable, not hashable"
    _helix_node: BehindT

    def __init__(self, node: BehindT) -> None:
        object.__setattr__(self, "_helix_node", node)

    @property
    def __class__(self) -> type[Any]:  # pyright: ignore[reportIncompatibleMethodOverride] -- as wrapt and mock do
        return self._helix_node.python_type

    def __eq__(self, other: object) -> bool:
        return open_node(self).value() == unwrap(other)

    def __repr__(self) -> str:
        node = self._helix_node
        return "<closed state draft>" if node.closed else f"<draft of {node.value()!r}>"

    def __str__(self) -> str:
        return str(open_node(self).value())  # what a prompt made with an f-string should read

    def __copy__(self) -> Any:
        return open_node(self).value()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return open_node(self).value()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _itself, (open_node(self).value(),)


def _itself(value: Any) -> Any:
    return value


def open_node(proxy: Proxy[BehindT]) -> BehindT:
    """What stands behind the proxy, if its draft is open."""
    node = proxy._helix_node  # pyright: ignore[reportPrivateUsage] -- the name must not meet a field's
    if node.closed:
        raise UsageError("this state draft has ended with its `with` block; open a new one with ctx.update_state()")
    return node


def unwrap(value: Any) -> Any:
    """`value` with a plain copy in place of each part of a draft in it."""
    kind = cast(Any, type(value))  # not isinstance: proxies answer that like what they stand for
    if issubclass(kind, Proxy):
        return open_node(value).value()
    if kind is dict:
        return {key: unwrap(item) for key, item in value.items()}
    made = _MADE_OF_ITEMS.get(kind)
    return value if made is None else made([unwrap(item) for item in value])


def part_to_json(value: Any) -> Any:
    """JSON of a part of a draft that the user has put into a model."""
    if issubclass(cast(Any, type(value)), Proxy):
        return open_node(value).plain()
    raise ValueError(f"{value.__class__.__name__} has no JSON form")


_MADE_OF_ITEMS: dict[Any, Callable[[list[Any]], Any]] = {list: list, tuple: tuple, set: set, frozenset: frozenset}
