"""The overlay over the live document: what its objects, lists and sets have in common.

Above `spec` and `rendering`, below `objects`, `lists` and `sets`; `draft`, at the top, hands in how nodes are made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

from helix.state.rendering import Rendering
from helix.state.spec import Spec
from helix.state.values import JsonPath

MakeNode: TypeAlias = "Callable[[Spec, Any, JsonPath, Session], Node]"


class Session:
    """What all nodes of one draft share: is it open, and how are nodes made, each with its proxy?"""

    __slots__ = ("closed", "make")

    def __init__(self, make: MakeNode) -> None:
        self.closed = False
        self.make = make


class Node(ABC):
    """What a draft has touched of one container of the document.

    `base` is the container itself, not a copy: it shows what others write meanwhile. Own writes lie over it, so that
    nothing is copied that is not touched, and throwing the draft away is forgetting it.
    """

    __slots__ = ("base", "hint", "path", "proxy", "session", "spec")

    def __init__(self, spec: Spec, base: Any, path: JsonPath, session: Session) -> None:
        self.spec = spec
        self.base = base
        self.path = path
        self.session = session
        self.hint = 0  # of a list's item: where it was when it was looked into
        self.proxy: Any = None  # whoever makes the node sets it

    @property
    def closed(self) -> bool:
        return self.session.closed

    @property
    def python_type(self) -> type[Any]:
        return self.spec.python_type

    @abstractmethod
    def changed(self) -> bool:
        """Is anything written, here or below?"""

    @abstractmethod
    def plain(self) -> Any:
        """The container as this draft sees it, as JSON of its own."""

    @abstractmethod
    def render(self, live: Any, path: JsonPath, out: Rendering) -> None:
        """Writes the operations that bring what was changed into `live`, which stands at `path`."""

    def value(self) -> Any:
        """The container as a fresh Python value of its declared type."""
        return self.spec.load(self.plain(), self.path)

    def make(self, spec: Spec, raw: Any, key: str) -> Node | None:
        """A node for the member `raw`, or None when it is read and written whole."""
        inside = spec.container(raw)
        return None if inside is None else self.session.make(inside, raw, (*self.path, key), self.session)
