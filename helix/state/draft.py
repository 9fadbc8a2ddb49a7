"""What one `update_state` block wants to change. Above the overlay: it alone knows every kind of node and proxy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, Generic

from helix.errors import UsageError
from helix.state.footprint import Footprint
from helix.state.lists import ListNode
from helix.state.node import Node, Session
from helix.state.objects import ObjectNode
from helix.state.proxies import DraftDict, DraftList, DraftRecord, DraftSet
from helix.state.proxy import Proxy
from helix.state.rendering import Rendered, Rendering
from helix.state.schema import StateSchema, StateT
from helix.state.sets import SetNode
from helix.state.spec import Spec
from helix.state.values import JsonPath


class Draft(Generic[StateT]):
    """What one `update_state` block wants to change.

    Reads go through to `document`, which others may go on changing, with the draft's own writes over it; nothing is
    written until the caller renders the draft and applies what comes out. To discard a draft, do not render it.

    Args:
        schema: the state's type.
        document: the live document, the one that patches are applied to in place.

    Raises:
        UsageError: the agent has no state.
    """

    def __init__(self, schema: StateSchema[StateT], document: Any) -> None:
        if schema.state_type is NoneType:
            raise UsageError("this agent has no state to update; give it a state_type")
        self._session = Session(_make)
        self._root = _make(schema.spec, document, (), self._session)

    @property
    def proxy(self) -> StateT:
        """What the block works on: it reads and writes like an object of the state type, and records the writes."""
        return self._root.proxy

    def render(self, document: Any, others: Sequence[Mapping[str, Any]] = ()) -> Rendered:
        """The operations that bring this draft into `document` as it is now. Changes nothing, and may be called again.

        Args:
            document: the live document, or a copy of it.
            others: the operations that were applied to it since this draft was made, in order, but for the draft's own.
        """
        out = Rendering(Footprint.of(others, document))
        if isinstance(document, dict):
            self._root.render(document, (), out)
        elif self._root.changed():
            out.write((), document, self._root.plain())
        return Rendered(out.patches, list(out.conflicts))

    def close(self) -> None:
        """Ends the block: from now on its proxies raise `UsageError`. `render` still works."""
        self._session.closed = True


_NODES: dict[str, type[Node]] = {"record": ObjectNode, "dict": ObjectNode, "list": ListNode, "set": SetNode}
_PROXIES: dict[str, Callable[[Any], Proxy[Any]]] = {
    "record": DraftRecord,
    "dict": DraftDict,
    "list": DraftList,
    "set": DraftSet,
}


def _make(spec: Spec, base: Any, path: JsonPath, session: Session) -> Node:
    node = _NODES[spec.kind](spec, base, path, session)
    node.proxy = _PROXIES["dict" if spec.is_typed_dict else spec.kind](node)
    return node
