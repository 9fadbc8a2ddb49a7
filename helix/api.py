"""The short forms: one agent, one run.  `run`, `run_sync`, `stream`, `stream_sync`, `Session`.

Floor 5: above `executor`, which does the work; nothing here adds a second way.
"""

from __future__ import annotations

import inspect
import queue
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

import anyio
import anyio.from_thread
from anyio.lowlevel import current_token
from typing_extensions import TypeVar as TypeVarWithDefault

from helix.agent import Agent
from helix.chunks import Chunk
from helix.errors import UsageError, check_arguments
from helix.executor import Executor, RunHandle
from helix.fold import RunTree
from helix.limits import Limits
from helix.log import LogReader
from helix.messages import Message
from helix.model import Model
from helix.results import RunResult

OutputT = TypeVarWithDefault("OutputT", default=Any)
StateT = TypeVarWithDefault("StateT", default=Any)
DepsT = TypeVarWithDefault("DepsT", default=object)
T = TypeVar("T")

_OPTIONS = inspect.signature(Executor.execute).parameters.keys() - {"self", "agent", "input"}


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


@overload
def stream(
    agent: Agent[OutputT, StateT, object],
    input: Any,
    *,
    deps: object = None,
    session_id: str | None = None,
    state: StateT | None = None,
    model: str | Model | None = None,
    limits: Limits | None = None,
) -> RunStream[OutputT, StateT]: ...
@overload
def stream(
    agent: Agent[OutputT, StateT, DepsT],
    input: Any,
    *,
    deps: DepsT,
    session_id: str | None = None,
    state: StateT | None = None,
    model: str | Model | None = None,
    limits: Limits | None = None,
) -> RunStream[OutputT, StateT]: ...
def stream(agent: Agent[Any, Any, Any], input: Any, **options: Any) -> RunStream[Any, Any]:
    """Starts a run to be watched: an async context manager that is also the stream of its chunks.

    Arguments and errors are those of `Executor.execute`; errors come at `async with`.
    """
    check_arguments("stream", options, _OPTIONS)
    return RunStream(lambda executor: executor.execute(agent, input, **options))


@overload
async def run(
    agent: Agent[OutputT, StateT, object],
    input: Any,
    *,
    deps: object = None,
    session_id: str | None = None,
    state: StateT | None = None,
    model: str | Model | None = None,
    limits: Limits | None = None,
) -> RunResult[OutputT, StateT]: ...
@overload
async def run(
    agent: Agent[OutputT, StateT, DepsT],
    input: Any,
    *,
    deps: DepsT,
    session_id: str | None = None,
    state: StateT | None = None,
    model: str | Model | None = None,
    limits: Limits | None = None,
) -> RunResult[OutputT, StateT]: ...
async def run(agent: Agent[Any, Any, Any], input: Any, **options: Any) -> RunResult[Any, Any]:
    """Runs an agent to its end. Arguments are those of `Executor.execute`.

    Raises:
        RunFailed, RunCancelled, RunSuspended: it did not complete; each has `.result`.
        DefinitionError, UnknownModel, MissingKey: it cannot work; nothing has run.
    """
    check_arguments("run", options, _OPTIONS)
    async with Executor() as executor:
        handle = await executor.execute(agent, input, **options)
        result = await handle.result()
    result.raise_for_status()
    return result


@overload
def run_sync(
    agent: Agent[OutputT, StateT, object],
    input: Any,
    *,
    deps: object = None,
    session_id: str | None = None,
    state: StateT | None = None,
    model: str | Model | None = None,
    limits: Limits | None = None,
) -> RunResult[OutputT, StateT]: ...
@overload
def run_sync(
    agent: Agent[OutputT, StateT, DepsT],
    input: Any,
    *,
    deps: DepsT,
    session_id: str | None = None,
    state: StateT | None = None,
    model: str | Model | None = None,
    limits: Limits | None = None,
) -> RunResult[OutputT, StateT]: ...
def run_sync(agent: Agent[Any, Any, Any], input: Any, **options: Any) -> RunResult[Any, Any]:
    """`run` for code that is not async: works in threads, again and again, and inside a running loop (notebooks).

    Inside a running event loop it works on a thread of its own and blocks that loop meanwhile.
    """
    check_arguments("run_sync", options, _OPTIONS)

    async def main() -> RunResult[Any, Any]:
        return await run(agent, input, **options)

    return _run_on_a_loop(main)


class SyncRunStream(Generic[OutputT, StateT]):
    """A run that is watched by plain `for`: `with helix.stream_sync(agent, "…") as run: for chunk in run: …`.

    The run lives on a thread of its own; chunks are handed over in batches. Leaving the block cancels it.
    """

    def __init__(self, stream: RunStream[OutputT, StateT]) -> None:
        self._stream = stream
        self._batches: queue.SimpleQueue[list[Chunk]] = queue.SimpleQueue()
        self._batch: Iterator[Chunk] = iter(())
        self._ended = False
        self._left = False

    def __enter__(self) -> Self:
        self._portal_context = anyio.from_thread.start_blocking_portal()
        self._portal = self._portal_context.__enter__()
        self._context = self._portal.wrap_async_context_manager(self._stream)
        try:
            self._context.__enter__()
        except BaseException as error:
            self._portal_context.__exit__(type(error), error, error.__traceback__)
            raise
        self._pump = self._portal.start_task_soon(self._hand_over)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left = True
        try:
            self._context.__exit__(kind, error, traceback)
            self._pump.result()
        finally:
            self._portal_context.__exit__(kind, error, traceback)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        while not self._ended:
            for chunk in self._batch:
                return chunk
            batch = self._batches.get()
            self._batch, self._ended = iter(batch), not batch
        raise StopIteration

    def result(self) -> RunResult[OutputT, StateT]:
        """What the run has come to; waits for it. May be asked after the block, too."""
        if self._left:
            return self._stream.handle.snapshot()
        return self._portal.call(self._stream.result)

    def cancel(self, agent_id: str | None = None) -> None:
        """Stops the run, or one branch of it; see `RunHandle.cancel`."""
        self._portal.call(self._stream.cancel, agent_id)

    @property
    def run_id(self) -> str:
        """The root agent's id."""
        return self._stream.run_id

    async def _hand_over(self) -> None:
        reader = self._stream.handle.stream()
        batch = await reader.next_batch()
        while batch:
            self._batches.put(batch)
            batch = await reader.next_batch()
        self._batches.put([])


@overload
def stream_sync(
    agent: Agent[OutputT, StateT, object],
    input: Any,
    *,
    deps: object = None,
    session_id: str | None = None,
    state: StateT | None = None,
    model: str | Model | None = None,
    limits: Limits | None = None,
) -> SyncRunStream[OutputT, StateT]: ...
@overload
def stream_sync(
    agent: Agent[OutputT, StateT, DepsT],
    input: Any,
    *,
    deps: DepsT,
    session_id: str | None = None,
    state: StateT | None = None,
    model: str | Model | None = None,
    limits: Limits | None = None,
) -> SyncRunStream[OutputT, StateT]: ...
def stream_sync(agent: Agent[Any, Any, Any], input: Any, **options: Any) -> SyncRunStream[Any, Any]:
    """`stream` for code that is not async. Arguments and errors are those of `Executor.execute`."""
    check_arguments("stream_sync", options, _OPTIONS)
    return SyncRunStream(RunStream(lambda executor: executor.execute(agent, input, **options)))


class Session(Generic[OutputT, StateT]):
    """A conversation with an agent: each turn knows the ones before it, and the state goes on.

    Args:
        agent: whom one talks to.
        executor: where the runs live; it must be entered.
        session_id: an earlier conversation to go on with; a new one by default.
    """

    def __init__(self, agent: Agent[OutputT, StateT, Any], executor: Executor, session_id: str | None = None) -> None:
        self._agent = agent
        self._executor = executor
        self._last: RunHandle[OutputT, StateT] | None = None
        self.session_id = secrets.token_hex(8) if session_id is None else session_id

    async def send(self, input: Any, **options: Any) -> RunResult[OutputT, StateT]:
        """One turn, to its end; never raises for a failed run. Options are those of `Executor.execute`.

        Raises:
            SessionBusy: an earlier turn is still going.
        """
        check_arguments("send", options, _OPTIONS - {"session_id"})
        handle = await self._execute(input, options)
        return await handle.result()

    def stream(self, input: Any, **options: Any) -> SessionStream[OutputT, StateT]:
        """One turn, as the stream of its chunks. Leaving the iteration detaches; the turn goes on.

        Raises:
            SessionBusy: at the first step of the iteration: an earlier turn is still going.
        """
        check_arguments("stream", options, _OPTIONS - {"session_id"})
        return SessionStream(lambda: self._execute(input, options))

    @property
    def result(self) -> RunResult[OutputT, StateT]:
        """What the latest turn has come to.

        Raises:
            UsageError: there was none yet, or it is still going.
        """
        if self._last is None:
            raise UsageError("this session has had no turn yet; call send or stream first")
        if not self._last.tree.at_rest:
            raise UsageError("the latest turn is still going; read its stream to the end first")
        return self._last.snapshot()

    def history(self) -> list[Message]:
        """The conversation so far, oldest first."""
        return self._executor.session_messages(self.session_id)

    async def _execute(self, input: Any, options: dict[str, Any]) -> RunHandle[OutputT, StateT]:
        self._last = await self._executor.execute(self._agent, input, session_id=self.session_id, **options)
        return self._last


class SessionStream(Generic[OutputT, StateT]):
    """The chunks of a session's turn; the turn begins with the first one that is asked for."""

    def __init__(self, execute: Callable[[], Coroutine[Any, Any, RunHandle[OutputT, StateT]]]) -> None:
        self._execute = execute
        self._reader: LogReader[Chunk] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._reader is None:
            self._reader = (await self._execute()).stream()
        return await self._reader.__anext__()

    async def aclose(self) -> None:
        """Ends the iteration; the turn goes on."""
        if self._reader is not None:
            await self._reader.aclose()


def _run_on_a_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    try:
        current_token()
    except anyio.NoEventLoopError:
        return anyio.run(main)
    return _in_thread(lambda: anyio.run(main))


def _in_thread(work: Callable[[], T]) -> T:
    """Runs `work` on a fresh thread, and gives or raises what it gave or raised.

    The thread has no context variables of this one: they would say that an event loop is running here.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="helix-run-sync")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
