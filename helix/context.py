"""What a tool's body gets from the run that calls it: `ToolContext`, and the protocols around it.

Floor 2: above `results`, below `tools`, from which the others take it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol

from typing_extensions import TypeForm, TypeVar

from helix.chunks import Channel
from helix.limits import Limits
from helix.results import RunResult

StateT = TypeVar("StateT", default=None)
DepsT = TypeVar("DepsT", contravariant=True, default=object)
ChildOutputT = TypeVar("ChildOutputT")
ChildStateT = TypeVar("ChildStateT")
OutputT_co = TypeVar("OutputT_co", covariant=True)
StateT_co = TypeVar("StateT_co", covariant=True)


class Runnable(Protocol[OutputT_co, StateT_co]):
    """What can be run as a child: an `Agent`. (A protocol, so that the context need not know agents.)"""

    @property
    def name(self) -> str:
        """The agent's name."""
        ...

    @property
    def output_type(self) -> TypeForm[OutputT_co]:
        """The type of its output."""
        ...

    @property
    def state_type(self) -> type[StateT_co]:
        """The type of its state."""
        ...


class ChildRun(Protocol[OutputT_co, StateT_co]):
    """A child that runs: iterate it for its chunks and those of its subtree, await `result()` for what it came to."""

    @property
    def agent_id(self) -> str:
        """The child's run id."""
        ...

    def __aiter__(self) -> ChildRun[OutputT_co, StateT_co]: ...
    async def __anext__(self) -> Any: ...
    async def result(self) -> RunResult[OutputT_co, StateT_co]:
        """What it came to; never raises for a failed child."""
        ...


class CallHost(Protocol):
    """What stands behind a `ToolContext`: a running call, or the test double in `helix.testing`."""

    @property
    def cancelled(self) -> bool: ...
    def read_state(self) -> Any: ...
    def emit(self, name: str, data: Any) -> None: ...
    def write(self, text: str, channel: Channel) -> None: ...
    def update_state(self) -> AbstractContextManager[Any]: ...
    def remaining_time(self) -> float | None: ...
    async def run_agent(
        self, agent: Runnable[Any, Any], input: Any, *, key: str | None, limits: Limits | None
    ) -> RunResult[Any, Any]: ...
    def stream_agent(
        self, agent: Runnable[Any, Any], input: Any, *, key: str | None
    ) -> AbstractAsyncContextManager[ChildRun[Any, Any]]: ...


class _Done:
    """An awaitable that is done already: `ctx.emit(...)` has happened, `await ctx.emit(...)` is allowed too."""

    def __await__(self) -> Generator[Any, Any, None]:
        return
        yield


_DONE = _Done()


@dataclass(slots=True, frozen=True)
class ToolContext(Generic[StateT, DepsT]):
    """What a tool, or dynamic instructions, get as their first argument when they ask for it.

    Every method may be called from an async tool and from a sync tool's thread. After the call has ended (cancelled,
    timed out) they raise `ToolEnded`.

    Attributes:
        deps: what the run was given as `deps`; never logged.
        agent_id, run_id, session_id: where this happens: the agent's id, the root's, the session's.
        tool_call_id: this call's id; empty in dynamic instructions.
        attempt: how often this body has begun, from 1.
    """

    deps: DepsT = field(repr=False)
    agent_id: str
    run_id: str
    session_id: str | None
    tool_call_id: str
    attempt: int
    _host: CallHost = field(repr=False)

    @property
    def state(self) -> StateT:
        """The agent's state now: a validated copy. Change state with `update_state`, not here."""
        return self._host.read_state()

    @property
    def cancelled(self) -> bool:
        """True once the call has been cancelled; a long sync tool looks here and returns."""
        return self._host.cancelled

    def emit(self, name: str, data: Any = None) -> Awaitable[None]:
        """Appends a `custom` chunk at once. `data` is any JSON-able or pydantic value. May be awaited, need not be.

        Raises:
            ValueError: the data has no JSON form.
        """
        self._host.emit(name, data)
        return _DONE

    def write(self, text: str, *, channel: Channel = "text") -> None:
        """Appends a `tool_output_delta`: a piece of what the tool puts out while it runs."""
        self._host.write(text, channel)

    def update_state(self) -> AbstractContextManager[StateT]:
        """`with ctx.update_state() as draft:` records changes and appends them as one `state_patch` when it ends.

        An exception inside discards the draft.

        Raises:
            StateError: a value that the state's type does not allow, at the line that sets it.
        """
        return self._host.update_state()

    def remaining_time(self) -> float | None:
        """Seconds until this call's timeout or a time limit above it cuts it; None without one."""
        return self._host.remaining_time()

    async def run_agent(
        self,
        agent: Runnable[ChildOutputT, ChildStateT],
        input: Any,
        *,
        key: str | None = None,
        limits: Limits | None = None,
    ) -> RunResult[ChildOutputT, ChildStateT]:
        """Runs a child inside this call and returns what it came to; `result.output` raises if it failed.

        Args:
            agent: what to run.
            input: as in `Executor.execute`: a text, texts and images, or the child's typed input.
            key: a name for this child. When the body runs again, the child with the same agent and key (without a
                key: with equal input) is found in the log and not run again.
            limits: bounds for the child's subtree.
        """
        return await self._host.run_agent(agent, input, key=key, limits=limits)

    def stream_agent(
        self, agent: Runnable[ChildOutputT, ChildStateT], input: Any, *, key: str | None = None
    ) -> AbstractAsyncContextManager[ChildRun[ChildOutputT, ChildStateT]]:
        """Like `run_agent`, and watched: `async with ctx.stream_agent(…) as child: async for chunk in child: …`.

        Leaving the block cancels the child if it still runs.
        """
        return self._host.stream_agent(agent, input, key=key)
