"""A context to call one tool alone: `await my_tool(context(state=…), "x")`.

Floor 6: a second, small implementation of what stands behind a `ToolContext`; nothing runs, everything is kept.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, TypeVar, cast

from helix.chunks import Channel, to_json_value
from helix.context import ChildRun, Runnable, ToolContext
from helix.errors import UsageError
from helix.limits import Limits
from helix.results import RunResult
from helix.state import Draft, StateSchema, apply_patches

StateT = TypeVar("StateT")
_NONE: Any = None
DepsT = TypeVar("DepsT")


class ContextRecord:
    """What a tool did with its context.

    Attributes:
        events: `(name, data)` of each `ctx.emit`.
        written: the texts of each `ctx.write`.
        patches: the RFC 6902 operations of each `ctx.update_state` block.
        state: the state now, as JSON data.
    """

    def __init__(self, state: Any) -> None:
        self.events: list[tuple[str, Any]] = []
        self.written: list[str] = []
        self.patches: list[list[dict[str, Any]]] = []
        self._schema: StateSchema[Any] = StateSchema(cast(Any, type(state)))
        self.state: Any = self._schema.initial(state)

    @property
    def cancelled(self) -> bool:
        """Always false."""
        return False

    def read_state(self) -> Any:
        """See `ToolContext.state`."""
        return self._schema.load(self.state)

    def emit(self, name: str, data: Any) -> None:
        """See `ToolContext.emit`."""
        self.events.append((name, to_json_value(data, where=f"emit({name!r})")))

    def write(self, text: str, channel: Channel) -> None:
        """See `ToolContext.write`."""
        self.written.append(text)

    def update_state(self) -> AbstractContextManager[Any]:
        """See `ToolContext.update_state`."""
        return _Update(self, Draft(self._schema, self.state))

    def remaining_time(self) -> float | None:
        """Always None."""
        return None

    async def run_agent(
        self, agent: Runnable[Any, Any], input: Any, *, key: str | None, limits: Limits | None
    ) -> RunResult[Any, Any]:
        """Not to be had here."""
        raise _no_agents(agent)

    def stream_agent(
        self, agent: Runnable[Any, Any], input: Any, *, key: str | None
    ) -> AbstractAsyncContextManager[ChildRun[Any, Any]]:
        """Not to be had here."""
        raise _no_agents(agent)


def _no_agents(agent: Runnable[Any, Any]) -> UsageError:
    return UsageError(f"context() runs no agents; run an agent with this tool, and a ScriptedModel for {agent.name!r}")


class _Update:
    def __init__(self, recorded: ContextRecord, draft: Draft[Any]) -> None:
        self._recorded, self._draft = recorded, draft

    def __enter__(self) -> Any:
        return self._draft.proxy

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            rendered = self._draft.render(self._recorded.state)
            self._recorded.state = apply_patches(self._recorded.state, rendered.patches)
            self._recorded.patches.append(rendered.patches)
        self._draft.close()


def context(
    *, state: StateT = None, deps: DepsT = _NONE, tool_call_id: str = "call_1", attempt: int = 1
) -> ToolContext[StateT, DepsT]:
    """A context for calling one tool alone.

    `recorded(ctx)` tells what the tool did with it; `ctx.state` is the state now.
    """
    return ToolContext(
        deps=deps,
        agent_id="test",
        run_id="test",
        session_id=None,
        tool_call_id=tool_call_id,
        attempt=attempt,
        _host=ContextRecord(state),
    )


def recorded(ctx: ToolContext[Any, Any]) -> ContextRecord:
    """What a tool did with a context that `context` made."""
    return cast(ContextRecord, ctx._host)  # pyright: ignore[reportPrivateUsage] - the two are one piece
