"""State as a reader of the stream sees it. Above `patches` and `schema`; users hold it."""

from __future__ import annotations

import copy
from typing import Any, cast

from helix.chunks import Resync, RunStart, StatePatch
from helix.errors import InvalidPatch
from helix.state.patches import apply_patches
from helix.state.schema import StateSchema, StateT


class StateMirror:
    """The state documents of a run, folded from its chunks, in order and from the first one, or from a `Resync`.

    Attributes:
        documents: each agent's document by `agent_id`, as of the last chunk. They are the mirror's own, and it changes
            them in place. An agent that works on another's document (`share_state`) has none itself.
    """

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {}
        self._shared: dict[str, str] = {}
        self._schemas: dict[Any, StateSchema[Any]] = {}

    def apply(self, chunk: object) -> None:
        """Takes one chunk in. Chunks that say nothing about state, of whatever kind, are passed over.

        Raises:
            InvalidPatch: a patch does not apply, or its agent's `run_start` was not seen; nothing was changed.
        """
        if isinstance(chunk, RunStart):
            self._begin(chunk.agent_id, chunk.state_id, chunk.state)
        elif isinstance(chunk, Resync):
            for agent_id, agent in chunk.snapshot.agents.items():
                self._begin(agent_id, agent.state_id, agent.state)
        elif isinstance(chunk, StatePatch):
            owner = chunk.state_id or self._owner(chunk.agent_id)
            if owner not in self.documents:
                raise InvalidPatch(f"a patch for the state of {owner!r}, whose run_start was not seen")
            self.documents[owner] = apply_patches(self.documents[owner], chunk.patches)

    def _begin(self, agent_id: str, state_id: str | None, document: Any) -> None:
        if state_id is None:
            self.documents[agent_id] = copy.deepcopy(document)
        else:
            self._shared[agent_id] = state_id

    def _owner(self, agent_id: str) -> str:
        return self._shared.get(agent_id, agent_id)

    def state(self, agent_id: str, state_type: type[StateT]) -> StateT:
        """The state that an agent works on, as a fresh object of `state_type`.

        Raises:
            KeyError: its `run_start` was not seen.
            StateError: the document does not fit the type.
        """
        if state_type not in self._schemas:
            self._schemas[state_type] = StateSchema(state_type)
        return cast(StateT, self._schemas[state_type].load(self.documents[self._owner(agent_id)]))
