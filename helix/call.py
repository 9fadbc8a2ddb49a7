"""A tool's call while its body runs: what stands behind the `ToolContext`, and the children that it starts.

Floor 3: above `live`; `steps` opens and closes it, the loop runs the children (handed in as `Delegate`).
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol, TypeVar

import anyio
from anyio.abc import TaskGroup

from helix import chunks as c
from helix.agent import as_message
from helix.context import ChildRun, Runnable, ToolContext
from helix.endings import end_agent
from helix.errors import ToolEnded, UsageError
from helix.fold import AgentNode
from helix.limits import Limits
from helix.live import LiveAgent
from helix.log import LogReader
from helix.messages import UserMessage
from helix.results import RunResult
from helix.state import Draft

T = TypeVar("T")

_TOO_LATE = "this tool's call has ended; it cannot write to the run any more"


class Delegate(Protocol):
    """The loop, as a call sees it: it stands above this floor, so it is handed in."""

    def start(
        self,
        live: LiveAgent,
        call_id: str,
        agent: Runnable[Any, Any],
        message: UserMessage,
        *,
        before: tuple[c.Chunk, ...] = (),
        share_state: bool = False,
        limits: Limits | None = None,
        key: str | None = None,
        parkable: bool,
    ) -> LiveAgent:
        """Begins a child's life in the log, behind the chunks in `before`.

        Raises:
            LimitReached: the tree would get too deep.
        """
        ...

    def again(self, live: LiveAgent, child_id: str, agent: Runnable[Any, Any], *, parkable: bool) -> LiveAgent:
        """A child that the log knows already."""
        ...

    async def run(self, child: LiveAgent) -> bool:
        """Runs a child until it has ended (True) or is parked (False)."""
        ...

    def result(self, child: LiveAgent) -> RunResult[Any, Any]:
        """What it has come to."""
        ...


class LiveCall:
    """The host of one body's `ToolContext`; with an empty `call_id`, that of other user code.

    Attributes:
        scope: cancels the body.
        parked: whether the body was left because its children are parked; it runs again when the run is resumed.
    """

    def __init__(self, live: LiveAgent, call_id: str, delegate: Delegate, *, parkable: bool = False) -> None:
        self._live = live
        self._call_id = call_id
        self._delegate = delegate
        self._parkable = parkable
        self._closed = False
        self._lock = threading.Lock()
        self._asked: set[Future[Any]] = set()  # what threads wait for
        self._all_stopped: anyio.Event | None = None
        self._running: set[str] = set()  # children
        self._claimed: set[str] = set()  # children that this attempt of the body has asked for
        self._state: tuple[int, Any] | None = None
        self.deadline = math.inf  # on the event loop's clock
        self.scope = anyio.CancelScope()
        self.parked = False

    @property
    def context(self) -> ToolContext[Any, Any]:
        """The body's first argument."""
        live, node = self._live, self._live.node
        call = node.calls.get(self._call_id)
        return ToolContext(
            deps=live.run.deps,
            agent_id=live.agent_id,
            run_id=live.run.log.run_id,
            session_id=live.run.tree.root.session_id,
            tool_call_id=self._call_id,
            attempt=call.attempt if call else 1,
            _host=self,
        )

    def close(self) -> None:
        """The call has ended: a thread that could not be stopped gets an error from now on, also where it waits."""
        with self._lock:
            self._closed = True
            for answer in list(self._asked):
                answer.cancel()

    @property
    def cancelled(self) -> bool:
        """See `ToolContext.cancelled`."""
        return self._closed or self.scope.cancel_called

    def read_state(self) -> Any:
        """See `ToolContext.state`. The same object until the document changes."""
        owner = self._owner()
        if self._state is None or self._state[0] != owner.state_version:
            self._state = (owner.state_version, self._live.agent.state_schema.load(owner.state))
        return self._state[1]

    def emit(self, name: str, data: Any) -> None:
        """See `ToolContext.emit`."""
        value = c.to_json_value(data, where=f"emit({name!r})")
        self._append(
            lambda node: c.Custom(node.agent_id, node.agent_type, name, value, tool_call_id=self._call_id or None)
        )

    def write(self, text: str, channel: c.Channel) -> None:
        """See `ToolContext.write`."""
        if not self._call_id:
            raise UsageError("there is no call here to write for; use ctx.emit")
        if text:
            self._append(lambda node: self._output(node, c.clean_text(text), channel))

    def update_state(self) -> AbstractContextManager[Any]:
        """See `ToolContext.update_state`."""
        return _StateUpdate(self)

    def remaining_time(self) -> float | None:
        """See `ToolContext.remaining_time`."""
        if math.isinf(self.deadline):
            return None
        return max(0.0, self.deadline - self.on_loop(self._live.run.clock))

    async def run_agent(
        self, agent: Runnable[Any, Any], input: Any, *, key: str | None, limits: Limits | None
    ) -> RunResult[Any, Any]:
        """See `ToolContext.run_agent`."""
        child = self.begin(agent, input, key=key, limits=limits)
        await self.finish(child)
        return self._delegate.result(child)

    def stream_agent(
        self, agent: Runnable[Any, Any], input: Any, *, key: str | None
    ) -> AbstractAsyncContextManager[ChildRun[Any, Any]]:
        """See `ToolContext.stream_agent`."""
        return LiveChild(self, lambda: self.begin(agent, input, key=key, limits=None))

    # --- children

    def begin(self, agent: Runnable[Any, Any], input: Any, *, key: str | None, limits: Limits | None) -> LiveAgent:
        """Starts a child, or finds it: a body that runs again gets the children that it started before."""
        self._check_open()
        if not self._call_id:
            raise UsageError("agents are run in a tool, not in instructions, requires_approval or validators")
        message = as_message(input)
        known = self._known(agent.name, message, key)
        if known is not None:
            self._claimed.add(known.agent_id)
            return self._delegate.again(self._live, known.agent_id, agent, parkable=self._parkable)
        child = self._delegate.start(
            self._live, self._call_id, agent, message, limits=limits, key=key, parkable=self._parkable
        )
        self._claimed.add(child.agent_id)
        return child

    async def finish(self, child: LiveAgent) -> None:
        """Runs a child to its end. If it parks, the body is left once no child works any more."""
        self._running.add(child.agent_id)
        ended = True
        try:
            ended = await self._delegate.run(child)
        finally:
            self._running.discard(child.agent_id)
            if ended and not child.node.ended:  # cut by something in the body itself, such as move_on_after
                log = child.run.log
                log.append(*end_agent(log, child.node, "cancelled"))
            if self._all_stopped is not None and not self._running:
                self._all_stopped.set()
        self.parked = self.parked or not ended
        if self.parked and not self._running:
            self.scope.cancel()
        self._live.run.park_if_quiet()
        if not ended:
            await anyio.sleep_forever()

    async def stop_children(self) -> None:
        """Stops the children that the body has left running, such as in a task of its own, and waits for them."""
        if self._running:
            self._all_stopped = anyio.Event()
            for agent_id in list(self._running):
                self._live.run.cancel(agent_id)
            with anyio.CancelScope(shield=True):
                await self._all_stopped.wait()

    def result(self, child: LiveAgent) -> RunResult[Any, Any]:
        """What a child has come to."""
        return self._delegate.result(child)

    def read_child(self, child: LiveAgent) -> LogReader[c.Chunk]:
        """The log from the child's first chunk on."""
        log = self._live.run.log
        first = next(
            chunk for chunk in reversed(list(log.structure)) if chunk.agent_id == child.agent_id and _begins(chunk)
        )
        return log.read(first.sequence - 1, follow=True)

    def _known(self, name: str, message: UserMessage, key: str | None) -> AgentNode | None:
        node = self._live.node
        for child in self._live.run.tree.child_of(node.calls[self._call_id]):
            if child.agent_id in self._claimed or child.agent_type != name or child.key != key:
                continue
            if key is not None or child.input == [message]:
                return child
        return None

    # --- the log, from any thread

    def on_loop(self, function: Callable[[], T]) -> T:
        """Runs `function` on the run's event loop, at once or, from a tool's thread, in order.

        A thread never waits for longer than the call lives: the end of the call answers it with `ToolEnded`.
        """
        run = self._live.run
        if threading.get_ident() == run.thread:
            return function()
        answer: Future[T] = Future()
        with self._lock:
            self._check_open()
            self._asked.add(answer)
        try:
            run.post(lambda: _fulfil(answer, function))
        except RuntimeError:  # the loop is closed
            raise ToolEnded(_TOO_LATE) from None
        try:
            return answer.result()
        except CancelledError:
            raise ToolEnded(_TOO_LATE) from None
        finally:
            with self._lock:
                self._asked.discard(answer)

    def append_patch(self, draft: Draft[Any], opened_at: int) -> None:
        """Renders a draft against the document as it is now, and appends the patch."""
        owner, node = self._owner(), self._live.node
        others = [
            patch
            for chunk in self._live.run.log.above(opened_at)
            if isinstance(chunk, c.StatePatch) and (chunk.state_id or chunk.agent_id) == owner.agent_id
            for patch in chunk.patches
        ]
        rendered = draft.render(owner.state, others)
        if rendered.patches or rendered.conflicts:
            patch = c.StatePatch(
                node.agent_id,
                node.agent_type,
                rendered.patches,
                tool_call_id=self._call_id or None,
                state_id=None if owner.agent_id == node.agent_id else owner.agent_id,
                conflicts=rendered.conflicts or None,
            )
            self._append(lambda _: patch)

    def open_draft(self) -> tuple[Draft[Any], int]:
        """A draft of the document, and where the log stood when it was opened."""
        self._check_open()
        owner = self._owner()
        return Draft(self._live.agent.state_schema, owner.state), self._live.run.log.last_sequence

    def _append(self, make: Callable[[AgentNode], c.Chunk]) -> None:
        self.on_loop(lambda: self._append_here(make))

    def _append_here(self, make: Callable[[AgentNode], c.Chunk]) -> None:
        self._check_open()
        self._live.run.log.append(make(self._live.node))

    def _check_open(self) -> None:
        if self._closed:
            raise ToolEnded(_TOO_LATE)

    def _owner(self) -> AgentNode:
        return self._live.run.tree.agents[self._live.node.state_id]

    def _output(self, node: AgentNode, text: str, channel: c.Channel) -> c.Chunk:
        name = node.calls[self._call_id].tool_name
        return c.ToolOutputDelta(node.agent_id, node.agent_type, self._call_id, name, text, channel)


async def ask_user_code(
    live: LiveAgent, delegate: Delegate, function: Callable[..., Any], *arguments: Any, tool_call_id: str = ""
) -> Any:
    """What a function gives that is no tool's body, such as instructions: sync or async, its context first."""
    host = LiveCall(live, "", delegate)
    try:
        given = function(replace(host.context, tool_call_id=tool_call_id), *arguments)
        return await given if inspect.isawaitable(given) else given
    except SystemExit as error:  # which would end the event loop, and all runs with it
        raise RuntimeError(f"it called sys.exit({error.code!r})") from error
    finally:
        host.close()


class _StateUpdate:
    """`with ctx.update_state() as draft:`."""

    def __init__(self, call: LiveCall) -> None:
        self._call = call

    def __enter__(self) -> Any:
        self._draft, self._opened_at = self._call.on_loop(self._call.open_draft)
        return self._draft.proxy

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._call.on_loop(lambda: self._call.append_patch(self._draft, self._opened_at))
        finally:
            self._draft.close()


class LiveChild:
    """A child that is watched while it runs: `async with ctx.stream_agent(…) as child`."""

    def __init__(self, call: LiveCall, begin: Callable[[], LiveAgent]) -> None:
        self._call = call
        self._begin = begin
        self._done = anyio.Event()
        self._over = False
        self._tasks: TaskGroup = anyio.create_task_group()

    async def __aenter__(self) -> LiveChild:
        self._child = self._begin()
        self._reader = self._call.read_child(self._child)
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._done.is_set():
            self._child.run.cancel(self._child.agent_id)
        await self._tasks.__aexit__(None, None, None)  # not given the error, which would be wrapped into a group

    @property
    def agent_id(self) -> str:
        """The child's run id."""
        return self._child.agent_id

    def __aiter__(self) -> LiveChild:
        return self

    async def __anext__(self) -> c.Chunk:
        mine, below = self._child.agent_id, f"{self._child.agent_id}."
        while not self._over:
            chunk = await self._reader.__anext__()
            if chunk.agent_id == mine or chunk.agent_id.startswith(below):
                self._over = isinstance(chunk, c.RunEnd) and chunk.agent_id == mine
                return chunk
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the iteration. The child goes on until the block is left."""
        self._over = True

    async def result(self) -> RunResult[Any, Any]:
        """What it has come to, once it has ended; never raises for a failed child."""
        await self._done.wait()
        return self._call.result(self._child)

    async def _run(self) -> None:
        try:
            await self._call.finish(self._child)
        finally:
            self._done.set()


def _begins(chunk: c.Chunk) -> bool:
    return isinstance(chunk, c.RunStart)


def _fulfil(answer: Future[T], function: Callable[[], T]) -> None:
    if answer.set_running_or_notify_cancel():
        try:
            answer.set_result(function())
        except Exception as error:
            answer.set_exception(error)
