"""The executor: where runs live, and the handles by which they are watched and steered.

Floor 5: above `loop` and `log`; `helix.run` and its siblings (in `helix.api`) are short forms of this.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, Self, cast, overload

import anyio
from anyio.abc import TaskGroup
from typing_extensions import TypeVar

from helix import chunks as c
from helix.agent import Agent, as_text
from helix.endings import end_agent, end_call
from helix.errors import (
    DefinitionError,
    SessionBusy,
    UnknownAgent,
    UsageError,
    did_you_mean,
    which_agent,
)
from helix.fold import RunTree, fold
from helix.limits import Limits
from helix.live import LiveAgent, Run, result_of
from helix.log import LogReader, MemoryStore, RunLog
from helix.loop import run_agent
from helix.messages import Message, UserMessage
from helix.model import Model
from helix.models import resolve_model
from helix.results import RunResult
from helix.tools import Tool, Toolset

OutputT = TypeVar("OutputT", default=Any)
StateT = TypeVar("StateT", default=Any)
DepsT = TypeVar("DepsT", contravariant=True, default=object)

_UNSET: Any = object()


class RunHandle(Generic[OutputT, StateT]):
    """One run, live or not: read it, wait for it, stop it.

    Attributes:
        run_id: the root agent's id.
        session_id: its session's.
    """

    def __init__(self, agent: Agent[OutputT, StateT, Any], log: RunLog) -> None:
        self._agent = agent
        self._log = log
        self._run: Run | None = None
        self.run_id = log.run_id
        self.session_id: str | None = log.tree.root.session_id

    def __repr__(self) -> str:
        tree = self._log.tree
        agents = f"{len(tree.agents)} agent{'' if len(tree.agents) == 1 else 's'}"
        name, where = self._agent.name, f"at sequence {tree.sequence}"
        return f"RunHandle({name}, run_id={self.run_id!r}, {tree.status}, {agents}, {where})"

    @property
    def agent(self) -> Agent[OutputT, StateT, Any]:
        """The root's definition."""
        return self._agent

    @property
    def run(self) -> Run | None:
        """The live side of it, as it is or was last in this executor; for the executor only."""
        return self._run

    @property
    def tree(self) -> RunTree:
        """The run as it is now, folded. Not to be changed."""
        return self._log.tree

    @property
    def status(self) -> str:
        """`running`, or as in the last `run_end` or `run_pause`."""
        return self._log.tree.status

    @overload
    def stream(
        self, from_offset: int = 0, *, follow: bool = False, coalesce: bool = False, control: Literal[False] = False
    ) -> LogReader[c.Chunk]: ...
    @overload
    def stream(
        self, from_offset: int = 0, *, follow: bool = False, coalesce: bool = False, control: bool
    ) -> LogReader[c.Chunk | c.Control]: ...
    def stream(
        self, from_offset: int = 0, *, follow: bool = False, coalesce: bool = False, control: bool = False
    ) -> LogReader[Any]:
        """The chunks above `from_offset`, in order: what is there at once, then live, until the run rests.

        Any number of readers may read at any time, also after the end. Leaving one detaches it; the run goes on.

        Args:
            from_offset: the `sequence` of the last chunk that was seen; 0 for all.
            follow: go on when the run is parked, until it is resumed and ends.
            coalesce: join adjacent deltas of one agent when the reader is behind; the joined chunk has the number of
                its last part, so nothing is lost and offsets keep their meaning.
            control: deliver the `stream_end` control message too, last.
        """
        return self._log.read(from_offset, follow=follow, coalesce=coalesce, control=control)

    async def result(self) -> RunResult[OutputT, StateT]:
        """What the run has come to, once it has ended or is parked. Needs no reader, and never raises for a failure."""
        await self._log.rest()
        return self.snapshot()

    def snapshot(self) -> RunResult[OutputT, StateT]:
        """How far the run is now."""
        outputs = None if self._run is None else self._run.outputs
        return result_of(self._agent, self._log.tree, self.run_id, outputs)

    def at(self, sequence: int) -> RunTree:
        """The run as it was after that chunk, folded from the log."""
        return fold(self._log.chunks[:sequence])

    async def cancel(self, agent_id: str | None = None) -> None:
        """Stops the run, or one agent and what is below it, at once; returns when that has ended.

        The parent of a cancelled branch sees a failed call and goes on. Does nothing for what has ended.

        Raises:
            UsageError: there is no such agent, or the run is parked and one branch of it is meant.
        """
        target = agent_id or self.run_id
        self.cancel_nowait(target)
        while self._log.live and not self._log.tree.agents[target].ended:
            await self._log.news()
        if target == self.run_id:
            await self._log.rest()

    def cancel_nowait(self, agent_id: str | None = None) -> None:
        """`cancel`, without waiting for the end.

        Raises:
            UsageError: there is no such agent; or the run is not live and one branch of it is meant; or it is live in
                another executor.
        """
        target, tree = agent_id or self.run_id, self._log.tree
        if target not in tree.agents:
            raise UsageError(f"no agent {target!r} in this run.{which_agent(target, tree.agents.values())}")
        if tree.agents[target].ended:
            return
        if not self._log.live:
            self._end_ownerless(target)
        elif self._run is None:
            raise UsageError(f"run {self.run_id} is live in another executor; cancel it there")
        else:
            self._run.cancel(target)

    async def interrupt(self) -> None:
        """Stops the run before its next model calls; running tools finish. Returns when it rests.

        `Executor.resume` goes on with it. A run that had nothing more to ask ends instead. Not to be awaited in a tool
        of the same run: it would wait for itself.
        """
        if self._run is not None:
            self._run.stop.set()
            self._log.make_room()
        await self._log.rest()

    def attach(self, run: Run) -> None:
        """A new owner has begun to run it. Only the executor calls this."""
        self._run = run

    def _end_ownerless(self, target: str) -> None:
        if target != self.run_id:
            raise UsageError("the run is not live; resume it to cancel one branch, or cancel all of it")
        self._log.append(*_resumption(self._log.tree, self.run_id))
        self._log.append(*end_agent(self._log, self._log.tree.root, "cancelled"))
        self._log.leave()


@dataclass(slots=True, frozen=True)
class _Opened:
    """What this executor has opened: models by name or identity, toolsets by identity."""

    models: dict[Any, Model]
    toolsets: dict[int, Sequence[Tool[..., Any]]]


class Executor:
    """Runs agents, keeps their logs, and opens what they need once.

    `async with Executor() as executor:` leaving it waits for the live runs; leaving it by an exception cancels them.

    Args:
        store: where logs are kept; in memory by default.
        agents: the agents that runs are resumed with, found by name. Those that are executed are added.
        deps: what tools find as `ctx.deps`, unless a run is given its own.
    """

    def __init__(
        self, *, store: MemoryStore | None = None, agents: Sequence[Agent[Any, Any, Any]] = (), deps: Any = None
    ) -> None:
        self._store = MemoryStore() if store is None else store
        self._agents: dict[str, Agent[Any, Any, Any]] = {}
        for agent in agents:
            if self._agents.setdefault(agent.name, agent) is not agent:
                raise DefinitionError(f"two agents of this executor are called {agent.name!r}")
        self._deps = deps
        self._handles: dict[str, RunHandle[Any, Any]] = {}
        self._opened = _Opened({}, {})
        self._tasks: TaskGroup | None = None
        self._stack = AsyncExitStack()
        self._opening = anyio.Lock()

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise UsageError("this executor is already entered; use one `async with` for each Executor()")
        await self._stack.__aenter__()
        self._tasks = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tasks, self._tasks = self._tasks, None
        assert tasks is not None
        if error is not None:
            tasks.cancel_scope.cancel()
        try:
            # Not given the error: it goes on as it is, not wrapped into a group. The tasks raise nothing themselves.
            await tasks.__aexit__(None, None, None)
        finally:
            self._opened = _Opened({}, {})
            with anyio.CancelScope(shield=True):
                await self._stack.__aexit__(kind, error, traceback)

    async def execute(
        self,
        agent: Agent[OutputT, StateT, Any],
        input: Any,
        *,
        session_id: str | None = None,
        run_id: str | None = None,
        state: StateT | None = None,
        deps: Any = _UNSET,
        model: str | Model | None = None,
        limits: Limits | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> RunHandle[OutputT, StateT]:
        """Starts a run and returns its handle; the run goes on by itself.

        Args:
            agent: the root.
            input: a text, a message, a list of messages, or any value with a JSON form.
            session_id: the conversation that this run goes on with: its history and, unless given, its state.
            run_id: the root's id; random by default. Letters, digits, `_`, `-`; no dot.
            state: the initial state; by default the session's, else the state type's defaults.
            deps: for `ctx.deps`; never logged.
            model: replaces the model of every agent of the tree.
            limits: bounds for the whole run, over the agent's own.
            metadata: kept in the log.

        Raises:
            UsageError: the executor is not entered, or `run_id` is not usable.
            DefinitionError, UnknownModel, MissingKey: something of the tree of agents cannot work.
            SessionBusy: the session has a live run.
        """
        tasks = self._check_entered()
        override = None if model is None else self._check_model(model)
        await self._open_tree(agent, override)
        self._agents.setdefault(agent.name, agent)
        root_model = override or self._check_model(_model_of(agent))
        log = self._begin(agent, root_model, input, run_id, session_id, state, limits, metadata)
        given = self._deps if deps is _UNSET else deps
        handle = self._handles[log.run_id] = RunHandle(agent, log)
        return self._start(tasks, handle, log, root_model, override, given)

    async def resume(
        self, run_id: str, input: Any = None, *, deps: Any = _UNSET, model: str | Model | None = None
    ) -> RunHandle[Any, Any]:
        """Goes on with a parked run, by the same loop; `input` joins the root's conversation first.

        Args:
            run_id: which run.
            input: what to say to the root before it goes on.
            deps, model: as in `execute`. This executor remembers them for the runs that it had itself; they are not
                in the log, so for others they are given again.

        Raises:
            UnknownRun: the store has no such run.
            UnknownAgent: its agent is not one of this executor's.
            UsageError: it is live, or has ended.
        """
        tasks = self._check_entered()
        log = self._store.get(run_id)
        handle = self._handle(log)
        _check_resumable(log)
        agent = handle.agent
        before = handle.run
        override = (before and before.model) if model is None else self._check_model(model)
        await self._open_tree(agent, override)
        root_model = override or self._check_model(_model_of(agent))
        _check_resumable(log)  # somebody may have been faster
        log.append(*_resumption(log.tree, run_id), *_steering(log.tree, input))
        if deps is _UNSET:
            deps = self._deps if before is None else before.deps
        return self._start(tasks, handle, log, root_model, override, deps)

    async def get_handle(self, run_id: str) -> RunHandle[Any, Any]:
        """The handle of a run in the store: of a live one the very handle, of another one a handle to read it.

        Raises:
            UnknownRun: the store has no such run.
            UnknownAgent: its agent is not one of this executor's.
        """
        return self._handle(self._store.get(run_id))

    def session_messages(self, session_id: str) -> list[Message]:
        """The session's conversation so far, oldest first; empty for a new one."""
        runs = self._store.session(session_id)
        return list(runs[-1].tree.root.messages) if runs else []

    # --- starting

    def _start(
        self,
        tasks: TaskGroup,
        handle: RunHandle[OutputT, StateT],
        log: RunLog,
        model: Model,
        override: Model | None,
        deps: Any,
    ) -> RunHandle[OutputT, StateT]:
        run = Run(log, deps, override, self._check_model, self._toolset)
        log.live = True
        handle.attach(run)
        tasks.start_soon(_run_root, LiveAgent(run, log.run_id, handle.agent, model))
        return handle

    def _handle(self, log: RunLog) -> RunHandle[Any, Any]:
        """The one handle that this executor has for a log."""
        if log.run_id not in self._handles:
            self._handles[log.run_id] = RunHandle(self._agent_named(log.tree.root.agent_type), log)
        return self._handles[log.run_id]

    def _begin(
        self,
        agent: Agent[Any, Any, Any],
        model: Model,
        input: Any,
        run_id: str | None,
        session_id: str | None,
        state: Any,
        limits: Limits | None,
        metadata: Mapping[str, Any] | None,
    ) -> RunLog:
        run_id = secrets.token_hex(16) if run_id is None else _checked_run_id(run_id)
        session_id = secrets.token_hex(8) if session_id is None else session_id
        earlier = self._store.session(session_id)
        if earlier and not earlier[-1].tree.ended:
            what = "live" if earlier[-1].live else "parked"
            advice = "wait for it or cancel it" if earlier[-1].live else "resume it or cancel it"
            raise SessionBusy(f"session {session_id!r} has a {what} run, {earlier[-1].run_id}; {advice}")
        before = earlier[-1].tree if earlier else None
        bounds = (limits or Limits()).over(agent.limits or Limits())
        options = {} if metadata is None else {"metadata": c.to_json_value(dict(metadata), where="metadata")}
        start = c.RunStart(
            run_id,
            agent.name,
            _messages(input),
            model.name,
            _initial_state(agent, state, before),
            session_id=session_id,
            protocol=c.PROTOCOL,
            options=options,
            history=list(before.root.messages) if before else None,
            limits=bounds.given() or None,
        )
        log = RunLog(run_id)
        log.append(start)
        self._store.add(log)
        return log

    def _check_entered(self) -> TaskGroup:
        if self._tasks is None:
            raise UsageError("this executor is not running; write `async with Executor() as executor:` around its use")
        return self._tasks

    def _agent_named(self, name: str) -> Agent[Any, Any, Any]:
        agent = self._agents.get(name)
        if agent is None:
            near = did_you_mean(name, self._agents)
            raise UnknownAgent(f"this executor knows no agent {name!r}.{near} Give it as Executor(agents=[…])")
        return agent

    # --- opening what runs need

    async def _open_tree(self, agent: Agent[Any, Any, Any], override: Model | None) -> None:
        """Resolves and enters every model and toolset of the tree, before anything runs."""
        async with self._opening:
            await self._open_all(agent, override)

    async def _open_all(self, agent: Agent[Any, Any, Any], override: Model | None) -> None:
        agents = [agent, *agent.descendants()]
        models = [override] if override else [self._check_model(_model_of(agent))]
        if override is None:
            models += [self._check_model(item.model) for item in agents if item.model is not None]
        for model in models:
            await self._enter_model(model)
        for item in agents:
            for toolset in item.toolsets:
                if id(toolset) not in self._opened.toolsets:
                    await self._stack.enter_async_context(toolset)
                    self._opened.toolsets[id(toolset)] = tuple(toolset.tools())
            item.toolbox([tool for toolset in item.toolsets for tool in self._toolset(toolset)])

    async def _enter_model(self, model: Model) -> None:
        key = ("entered", id(model))
        if key not in self._opened.models:
            if hasattr(model, "__aenter__"):
                await self._stack.enter_async_context(model)  # pyright: ignore - the seam allows it, not demands it
            self._opened.models[key] = model

    def _check_model(self, model: str | Model) -> Model:
        if not isinstance(model, str):
            return model
        if model not in self._opened.models:
            self._opened.models[model] = resolve_model(model)
        return self._opened.models[model]

    def _toolset(self, toolset: Toolset) -> Sequence[Tool[..., Any]]:
        tools = self._opened.toolsets.get(id(toolset))
        if tools is None:
            raise UsageError(
                f"the toolset {toolset!r} was not open when the run began; agents started with ctx.run_agent may only "
                "use toolsets of the run's own tree"
            )
        return tools


async def _run_root(live: LiveAgent) -> None:
    """The root's task: the border. It returns, it does not raise; only its own cancellation goes through it."""
    log = live.run.log
    try:
        if not await run_agent(live):
            _end_cancelled_branches(live.run)
            if not log.tree.ended:
                log.append(c.RunPause(live.agent_id, live.agent.name, "interrupted"))
    finally:
        try:
            if not log.tree.at_rest:  # cancelled from outside: the tasks below have unwound, and said nothing
                log.append(*end_agent(log, live.node, "cancelled"))
        finally:
            log.leave()


def _end_cancelled_branches(run: Run) -> None:
    """Who was cancelled after having parked ends now, before the rest is parked."""
    for agent_id in sorted(run.cancelled):
        node = run.tree.agents[agent_id]
        if node.ended:
            continue
        run.log.append(*end_agent(run.log, node, "cancelled"))
        call = node.parent and node.parent.calls.get(node.call_id or "")
        if node.parent and call and all(child.ended for child in run.tree.child_of(call)):
            text = f"{node.agent_type} cancelled"
            run.log.append(*end_call(run.log, node.parent, call, error=text, code="cancelled"))


def _check_resumable(log: RunLog) -> None:
    if log.tree.ended:
        status = log.tree.status
        raise UsageError(f"run {log.run_id} has {status}; start a new one, in its session to go on with it")
    if log.live:
        raise UsageError(f"run {log.run_id} is live; interrupt it first")


def _resumption(tree: RunTree, run_id: str) -> list[c.Chunk]:
    """What a new owner writes first: `run_resume`, and an end for each step that was open."""
    reason = "pause" if tree.at_rest else "crash"
    chunks: list[c.Chunk] = [c.RunResume(run_id, tree.root.agent_type, tree.epoch + 1, reason)]
    for node in tree.agents.values():
        if node.step_open is not None:
            usage = c.Usage(requests=1)
            chunks.append(
                c.StepEnd(node.agent_id, node.agent_type, node.step, node.attempt, "abandoned", usage, reason="crash")
            )
    return chunks


def _steering(tree: RunTree, input: Any) -> list[c.Chunk]:
    if input is None:
        return []
    root = tree.root
    return [c.MessageChunk(root.agent_id, root.agent_type, message, "steering") for message in _messages(input)]


def _messages(input: Any) -> list[Message]:
    items = cast(list[Any], input) if isinstance(input, list) else [input]
    if items and all(_is_message(item) for item in items):
        return items
    return [UserMessage(as_text(c.to_json_value(input, where="input")))]


def _is_message(item: Any) -> bool:
    return getattr(item, "role", None) in ("user", "assistant", "tool") and hasattr(item, "content")


def _initial_state(agent: Agent[Any, Any, Any], state: Any, before: RunTree | None) -> Any:
    if state is None and before is not None and before.root.agent_type == agent.name:
        return c.to_json_value(before.document(before.root_id))
    return agent.state_schema.initial(state)


def _model_of(agent: Agent[Any, Any, Any]) -> str | Model:
    if agent.model is None:
        raise DefinitionError(
            f"agent {agent.name!r} has no model; write Agent({agent.name!r}, model='openai:…') or give the run one: "
            "model=…"
        )
    return agent.model


def _checked_run_id(run_id: str) -> str:
    if not run_id or not all(char.isalnum() or char in "_-" for char in run_id):
        raise UsageError(f"run_id {run_id!r} is not usable: letters, digits, '_' and '-' only")
    return run_id
