"""The short forms: one agent, one run.  `run` and `stream`; `sync` has the same for code that is not async.

Floor 5: above `executor`, which does the work; nothing here adds a second way.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Generic, Self, TypedDict, Unpack, overload

from typing_extensions import TypeVar

from helix.agent import Agent
from helix.chunks import ApprovalRequest, Chunk
from helix.commands import Approve, ClientResult, Deny
from helix.errors import UsageError, check_arguments
from helix.executor import Executor
from helix.fold import RunTree
from helix.handle import RunHandle
from helix.limits import Limits
from helix.live import OnApproval, WaitMode
from helix.log import LogReader
from helix.model import Model
from helix.results import RunResult

OutputT = TypeVar("OutputT", default=Any)
StateT = TypeVar("StateT", default=Any)
DepsT = TypeVar("DepsT", default=object)


class RunOptions(TypedDict, Generic[StateT], total=False):
    """The options of the short forms, beside `deps`: as in `Executor.execute`, but for `on_busy`.

    Each short form has an executor of its own, so `session_id` only names the session: no other run is in it.
    """

    session_id: str | None
    run_id: str | None
    state: StateT | None
    model: str | Model | None
    limits: Limits | None
    on_approval: OnApproval | None
    wait: WaitMode
    metadata: Mapping[str, Any] | None


def check_options(function: str, options: Mapping[str, Any]) -> None:
    """Refuses what is no option of a short form.

    Raises:
        TypeError: one of them is none; says what to do instead.
    """
    if "on_busy" in options:
        raise TypeError(
            f"{function}() has no argument 'on_busy': no other run is in its session. Give it to Executor.execute, or "
            "to a turn of a Session"
        )
    check_arguments(function, options, {"deps", *RunOptions.__annotations__})


class RunStream(Generic[OutputT, StateT]):
    """A run that is watched, and owned: `async with helix.stream(agent, "…") as run: async for chunk in run: …`.

    Leaving the block cancels the run if it is still going; awaiting `result()` needs no reading before it.
    """

    def __init__(self, start: Callable[[Executor], Coroutine[Any, Any, RunHandle[OutputT, StateT]]]) -> None:
        self._start = start
        self._executor = Executor()
        self._handle: RunHandle[OutputT, StateT] | None = None

    async def __aenter__(self) -> Self:
        await self._executor.__aenter__()
        try:
            self._handle = await self._start(self._executor)
        except BaseException as error:
            await self._executor.__aexit__(type(error), error, error.__traceback__)
            raise
        self._reader = self._handle.stream()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._handle is not None and error is None:
            self._handle.cancel_nowait()
        await self._executor.__aexit__(kind, error, traceback)

    def __aiter__(self) -> LogReader[Chunk]:
        _ = self.handle  # says what to write, outside of `async with`
        return self._reader

    async def __anext__(self) -> Chunk:
        return await self._reader.__anext__()

    async def aclose(self) -> None:
        """Ends the iteration; the run goes on until the block is left."""
        await self._reader.aclose()

    @property
    def handle(self) -> RunHandle[OutputT, StateT]:
        """The run's handle: more readers, `cancel` of a branch, `at`.

        Raises:
            UsageError: outside of `async with`.
        """
        if self._handle is None:
            raise UsageError("this stream is not running; write `async with helix.stream(…) as run:` around its use")
        return self._handle

    @property
    def run_id(self) -> str:
        """The root agent's id."""
        return self.handle.run_id

    @property
    def tree(self) -> RunTree:
        """The run as it is now, folded."""
        return self.handle.tree

    async def result(self) -> RunResult[OutputT, StateT]:
        """What the run has come to; never raises for a failed run."""
        return await self.handle.result()

    async def cancel(self, agent_id: str | None = None) -> None:
        """Stops the run, or one branch of it; see `RunHandle.cancel`."""
        await self.handle.cancel(agent_id)

    async def respond(self, approval_id: str, answer: Approve | Deny | ClientResult, *, by: str | None = None) -> None:
        """Answers a request of the run; see `RunHandle.respond`."""
        await self.handle.respond(approval_id, answer, by=by)

    async def send(self, text: Any, *, to: str | None = None) -> None:
        """Says something to an agent of the run; see `RunHandle.send`."""
        await self.handle.send(text, to=to)


@overload
def stream(
    agent: Agent[OutputT, StateT, object],
    input: Any,
    *,
    deps: object = None,
    **options: Unpack[RunOptions[StateT]],
) -> RunStream[OutputT, StateT]: ...
@overload
def stream(
    agent: Agent[OutputT, StateT, DepsT],
    input: Any,
    *,
    deps: DepsT,
    **options: Unpack[RunOptions[StateT]],
) -> RunStream[OutputT, StateT]: ...
def stream(agent: Agent[Any, Any, Any], input: Any, **options: Any) -> RunStream[Any, Any]:
    """Starts a run to be watched: an async context manager that is also the stream of its chunks.

    Arguments (but for `on_busy`) and errors are those of `Executor.execute`; errors come at `async with`.
    """
    check_options("stream", options)
    return RunStream(lambda executor: executor.execute(agent, input, **options))


@overload
async def run(
    agent: Agent[OutputT, StateT, object],
    input: Any,
    *,
    deps: object = None,
    **options: Unpack[RunOptions[StateT]],
) -> RunResult[OutputT, StateT]: ...
@overload
async def run(
    agent: Agent[OutputT, StateT, DepsT],
    input: Any,
    *,
    deps: DepsT,
    **options: Unpack[RunOptions[StateT]],
) -> RunResult[OutputT, StateT]: ...
async def run(agent: Agent[Any, Any, Any], input: Any, **options: Any) -> RunResult[Any, Any]:
    """Runs an agent to its end. Arguments are those of `Executor.execute`, but for `on_busy`.

    Nobody else has the run's handle, so a call that needs approval is denied, unless `on_approval` is given.

    Raises:
        RunFailed, RunCancelled, RunSuspended: it did not complete; each has `.result`.
        DefinitionError, UnknownModel, MissingKey: it cannot work; nothing has run.
    """
    check_options("run", options)
    options = answering(options)
    async with Executor() as executor:
        handle = await executor.execute(agent, input, **options)
        result = await handle.result()
    result.raise_for_status()
    return result


def answering(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a run whose handle nobody will have: what needs an answer is denied, unless somebody is given."""
    if options.get("on_approval") is None and options.get("wait", "hold") == "hold":
        return {**options, "on_approval": _nobody}
    return options


async def _nobody(request: ApprovalRequest) -> Deny:
    return Deny("there is nobody to ask; give the run on_approval=, or start it with Executor.execute")
