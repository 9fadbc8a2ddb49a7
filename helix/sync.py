"""The short forms for code that is not async: `run_sync` and `stream_sync`.

Floor 5: above `api`, which they put on an event loop of their own.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack, overload

import anyio
import anyio.from_thread
from anyio.lowlevel import current_token
from typing_extensions import TypeVar as TypeVarWithDefault

from helix.agent import Agent
from helix.api import RunOptions, RunStream, check_options, run, stream
from helix.chunks import Chunk
from helix.commands import Approve, ClientResult, Deny
from helix.results import RunResult

OutputT = TypeVarWithDefault("OutputT", default=Any)
StateT = TypeVarWithDefault("StateT", default=Any)
DepsT = TypeVarWithDefault("DepsT", default=object)
T = TypeVar("T")


@overload
def run_sync(
    agent: Agent[OutputT, StateT, object],
    input: Any,
    *,
    deps: object = None,
    **options: Unpack[RunOptions[StateT]],
) -> RunResult[OutputT, StateT]: ...
@overload
def run_sync(
    agent: Agent[OutputT, StateT, DepsT],
    input: Any,
    *,
    deps: DepsT,
    **options: Unpack[RunOptions[StateT]],
) -> RunResult[OutputT, StateT]: ...
def run_sync(agent: Agent[Any, Any, Any], input: Any, **options: Any) -> RunResult[Any, Any]:
    """`run` for code that is not async: works in threads, again and again, and inside a running loop (notebooks).

    Inside a running event loop it works on a thread of its own and blocks that loop meanwhile.
    """
    check_options("run_sync", options)

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

    def respond(self, approval_id: str, answer: Approve | Deny | ClientResult, *, by: str | None = None) -> None:
        """Answers a request of the run; see `RunHandle.respond`."""
        self._portal.call(partial(self._stream.respond, approval_id, answer, by=by))

    def send(self, text: str, *, to: str | None = None) -> None:
        """Says something to an agent of the run; see `RunHandle.send`."""
        self._portal.call(partial(self._stream.send, text, to=to))

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
    **options: Unpack[RunOptions[StateT]],
) -> SyncRunStream[OutputT, StateT]: ...
@overload
def stream_sync(
    agent: Agent[OutputT, StateT, DepsT],
    input: Any,
    *,
    deps: DepsT,
    **options: Unpack[RunOptions[StateT]],
) -> SyncRunStream[OutputT, StateT]: ...
def stream_sync(agent: Agent[Any, Any, Any], input: Any, **options: Any) -> SyncRunStream[Any, Any]:
    """`stream` for code that is not async. Arguments and errors are those of `Executor.execute`."""
    check_options("stream_sync", options)
    return SyncRunStream(stream(agent, input, **options))


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
