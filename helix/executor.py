"""The executor: where runs live. It starts them, resumes them, and finds them again.

Floor 5: above `handle`, `resources` and `root`; `helix.run` and its siblings (in `helix.api`) are short forms of this.
"""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, get_args
from weakref import WeakValueDictionary

import anyio
from anyio.abc import TaskGroup
from typing_extensions import TypeVar

from helix import chunks as c
from helix.agent import Agent
from helix.errors import DefinitionError, RunBusy, UnknownAgent, UnknownRun, UsageError, did_you_mean
from helix.fold import RunTree
from helix.forking import forked
from helix.handle import RunHandle
from helix.inputs import messages_of
from helix.limits import NO_LIMITS, Limits
from helix.live import LiveAgent, OnApproval, Run, WaitMode
from helix.log import RunLog
from helix.messages import HistoryPage, Message
from helix.model import Model
from helix.prices import Price, Prices
from helix.providers import Gates, ProviderLimits
from helix.resources import Resources
from helix.root import give_up, read_mail, resumes, run_root, steering
from helix.shelf import MemoryShelf, Shelf, StoreShelf
from helix.store import SessionRecord, Store
from helix.stores import open_store
from helix.turns import OnBusy, Turns, check_on_busy

OutputT = TypeVar("OutputT", default=Any)
StateT = TypeVar("StateT", default=Any)

_UNSET: Any = object()


class Executor:
    """Runs agents, keeps their logs, and opens what they need once.

    `async with Executor() as executor:` leaving it waits for the live runs; leaving it by an exception cancels them.

    Args:
        store: where logs are kept: a `Store` (see `helix.stores`) or its URL, such as `sqlite:///runs.db`; by default
            this executor's own memory.
        agents: the agents that runs are resumed with, found by name. Those that are executed are added.
        deps: what tools find as `ctx.deps`, unless a run is given its own.
        provider_limits: how all its runs together treat each provider, or the providers of these prefixes, such as
            `{"openai": ProviderLimits(max_concurrency=8, max_failures=5)}`.
        prices: what models cost that no list has, or that cost you something else: by a model's name a `Price`, or the
            name of the model that it costs as much as. The other prices are those of the extra `cost`.
    """

    def __init__(
        self,
        *,
        store: Store | str | None = None,
        agents: Sequence[Agent[Any, Any, Any]] = (),
        deps: Any = None,
        provider_limits: ProviderLimits | Mapping[str, ProviderLimits] | None = None,
        prices: Mapping[str, Price | str] | None = None,
    ) -> None:
        opened = open_store(store) if isinstance(store, str) else store
        self._shelf: Shelf = MemoryShelf() if opened is None else StoreShelf(opened)
        self._turns = Turns(self._shelf, lambda run_id: self._mine[run_id].run)
        if not isinstance(agents, Iterable) or not all(isinstance(agent, Agent) for agent in agents):
            raise DefinitionError(f"agents= is to be a list of agents, not {agents!r}")
        self._agents: dict[str, Agent[Any, Any, Any]] = {}
        for agent in agents:
            if self._agents.setdefault(agent.name, agent) is not agent:
                raise DefinitionError(f"two agents of this executor are called {agent.name!r}")
        self._deps = deps
        self._gates = Gates(provider_limits)
        self._handles: WeakValueDictionary[str, RunHandle[Any, Any]] = WeakValueDictionary()
        self._mine: dict[str, RunHandle[Any, Any]] = {}  # those that it has run, until a store alone keeps them
        self._tasks: TaskGroup | None = None
        self._stack = AsyncExitStack()
        self._resources = Resources(self._stack, Prices(prices))

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise UsageError("this executor is already entered; use one `async with` for each Executor()")
        await self._stack.__aenter__()
        await self._shelf.open(self._stack)
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
            self._resources.forget()
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
        on_busy: OnBusy = "error",
        on_approval: OnApproval | None = None,
        wait: WaitMode = "hold",
        metadata: Mapping[str, Any] | None = None,
    ) -> RunHandle[OutputT, StateT]:
        """Starts a run and returns its handle; the run goes on by itself.

        Args:
            agent: the root.
            input: a text; an `Image`, `Audio` or `File`, or a list of texts and those; a message (also as a dict with
                `role` and `content`), or a list of messages; or any value with a JSON form. Only what is new: what was
                said before in the session is there already.
            session_id: the conversation that this run goes on with: its history and, unless given, its state.
            run_id: the root's id; random by default. Letters, digits, `_`, `-`; no dot.
            state: the initial state; by default the session's, else the state type's defaults.
            deps: for `ctx.deps`; never logged.
            model: replaces the model of every agent of the tree.
            limits: bounds for the whole run, over the agent's own.
            on_busy: what to do if the session's last run has not ended. `error` refuses. `queue` waits until its turn
                has come: nothing of the run is there before that. `interrupt` stops that run before its next model
                calls, and ends it as cancelled; a parked one, too. What it has said and done stays in the conversation.
            on_approval: answers what needs a person or a client: called with the `ApprovalRequest` chunk, gives
                `Approve`, `Deny`, `ClientResult` or a bool. Async, or sync (then in a thread). An exception in it is a
                denial. Without one, `RunHandle.respond` answers.
            wait: what to do once nothing can go on before somebody answers: `hold` stays live, `suspend` parks the run
                until it is resumed.
            metadata: kept in the log.

        Raises:
            UsageError: the executor is not entered, `run_id` is not usable, or the input is none.
            DefinitionError, UnknownModel, MissingKey: something of the tree of agents cannot work.
            ImportError: a limit of costs needs the extra `cost`.
            RunExists: there is a run of that id already.
            SessionBusy: the session's last run has not ended; with `queue`, it is parked, or its owner is gone.
            StoreError: the store cannot be written.
        """
        tasks = self._check_entered()
        override = None if model is None else self._resources.model(model)
        root_model = await self._resources.open(agent, override, limits)
        self._agents.setdefault(agent.name, agent)
        check_on_busy(on_busy)
        session_id = secrets.token_hex(8) if session_id is None else session_id
        start = c.RunStart(
            secrets.token_hex(16) if run_id is None else _checked_run_id(run_id),
            agent.name,
            messages_of(input),
            root_model.name,
            agent.state_schema.initial(state),
            session_id=session_id,
            protocol=c.PROTOCOL,
            options=_options(wait, metadata),
            limits=(limits or NO_LIMITS).over(agent.limits or NO_LIMITS).given() or None,
        )

        def begin(before: RunTree | None) -> RunLog:
            self._check_entered()  # it may have been left by now
            return _going_on(start, before, keeps_state=state is None)

        try:
            log = await self._turns.begin(session_id, on_busy, begin)
        except Exception:
            self._check_entered()  # if it was left meanwhile, the store is closed, and may say anything
            raise
        given = self._deps if deps is _UNSET else deps
        handle = self._handles[log.run_id] = RunHandle(agent, log)
        return self._start(tasks, handle, log, root_model, override, given, on_approval)

    async def resume(
        self,
        run_id: str,
        input: Any = None,
        *,
        deps: Any = _UNSET,
        model: str | Model | None = None,
        on_approval: OnApproval | None = None,
    ) -> RunHandle[Any, Any]:
        """Goes on with a parked run, by the same loop; `input` joins the root's conversation first.

        What was answered while it was parked takes effect now. If all that is left still waits, a run with
        `wait="suspend"` parks again.

        Args:
            run_id: which run.
            input: what to say to the root before it goes on.
            deps, model, on_approval: as in `execute`. This executor remembers them for the runs that it had itself;
                they are not in the log, so for others they are given again.

        Raises:
            UnknownRun: the store has no such run.
            UnknownAgent: its agent is not one of this executor's.
            UsageError: it is live, or has ended.
        """
        tasks = self._check_entered()
        self._agent_named(await self._shelf.agent_type(run_id))
        log = await self._shelf.get(run_id)
        handle = self._handle(log)
        _check_resumable(log)
        agent = handle.agent
        before = handle.run
        override = (before and before.model) if model is None else self._resources.model(model)
        root_model = await self._resources.open(agent, override, log.tree.root.bounds)
        _check_resumable(log)  # somebody may have been faster
        await self._shelf.claim(log)
        try:
            await read_mail(log)
            if not resumes(log, input):
                await give_up(log)
                return handle
        except BaseException:
            with anyio.CancelScope(shield=True):
                await give_up(log)
            raise
        if deps is _UNSET:
            deps = self._deps if before is None else before.deps
        on_approval = on_approval or (before and before.on_approval)
        return self._start(tasks, handle, log, root_model, override, deps, on_approval)

    async def fork(
        self,
        run_id: str,
        *,
        step: int,
        input: Any = None,
        deps: Any = _UNSET,
        model: str | Model | None = None,
        on_approval: OnApproval | None = None,
    ) -> RunHandle[Any, Any]:
        """Begins another run with what had happened before the root's model call number `step`, and goes on from there.

        The run that is forked stays as it is. Tools that had run do not run again. The new run has its own session.

        Args:
            run_id: the run to fork; live or not.
            step: from 1; one more than it has had goes on behind its last one.
            input: what to say to the root before it goes on.
            deps, model, on_approval: as in `execute`.

        Raises:
            UnknownRun: the store has no such run.
            UnknownAgent: its agent is not one of this executor's.
            UsageError: it has had no such step.
        """
        tasks = self._check_entered()
        agent = self._agent_named(await self._shelf.agent_type(run_id))
        chunks = await self._shelf.whole(run_id)
        new_id, session_id = secrets.token_hex(16), secrets.token_hex(8)
        log = RunLog(new_id, forked(chunks, run_id, new_id, step, session_id))
        override = None if model is None else self._resources.model(model)
        root = log.tree.root
        root_model = await self._resources.open(agent, override, root.bounds)
        log.append(c.RunResume(new_id, root.agent_type, log.tree.epoch + 1, "fork", run_id))
        log.append(*steering(log.tree, input))
        await self._shelf.keep(log)
        handle = self._handles[new_id] = RunHandle(agent, log)
        return self._start(
            tasks, handle, log, root_model, override, self._deps if deps is _UNSET else deps, on_approval
        )

    async def recover(self) -> list[RunHandle[Any, Any]]:
        """Goes on with what a dead process has left, with parked runs that have mail, and with those that are due.

        Of many executors that recover at the same time, each run gets one. Runs of agents that this executor does not
        know are left to others. A run that was interrupted takes its mail, and stays parked.

        Returns:
            The handles of the runs that go on.

        Raises:
            StoreError: the store cannot be read.
        """
        handles: list[RunHandle[Any, Any]] = []
        for run_id in await self._shelf.claimable():
            known = await self._shelf.agent_type(run_id) in self._agents
            log = await self._shelf.get(run_id) if known else None
            if log is None or log.live or log.tree.ended:
                continue
            try:
                if log.tree.status == "interrupted":
                    await self._take_mail(log)
                else:
                    handles.append(await self.resume(run_id))
            except (RunBusy, UsageError):  # somebody was faster
                continue
        return handles

    async def _take_mail(self, log: RunLog) -> None:
        await self._shelf.claim(log)
        try:
            await read_mail(log)
        finally:
            with anyio.CancelScope(shield=True):
                await give_up(log)

    async def get_handle(self, run_id: str) -> RunHandle[Any, Any]:
        """The handle of a run in the store: of a live one the very handle, of another one a handle to read it.

        Raises:
            UnknownRun: the store has no such run.
            UnknownAgent: its agent is not one of this executor's.
        """
        self._agent_named(await self._shelf.agent_type(run_id))
        return self._handle(await self._shelf.get(run_id))

    async def trim(self, run_id: str | None = None, *, older_than: timedelta | None = None) -> int:
        """Drops deltas from the store, of one run or of all that ended long ago; says how many.

        What runs are, their words, results, state and usage, stays: each delta is a piece of what a later chunk has
        whole. Of a run that has not ended, deltas of model calls and tools that are still at work stay too. Who reads
        on from a place in what was dropped gets a `Resync`, with the run as it was behind that, and goes on there.

        Args:
            run_id: the run, whatever its status.
            older_than: instead of a run: every run that ended so long ago.

        Raises:
            UnknownRun: the store has no such run.
            UsageError: the executor has no store; or both or none of the two were given.
            StoreError: the store cannot be written.
        """
        self._check_entered()
        return await self._shelf.trim(run_id, older_than)

    # --- sessions

    async def sessions(self, *, limit: int = 100, before: str | None = None) -> list[SessionRecord]:
        """The sessions, by their newest run, newest first.

        Args:
            limit: how many at most.
            before: the last session of the page before; only those behind it.

        Raises:
            StoreError: the store cannot be read.
        """
        return await self._shelf.sessions(limit, before)

    async def history(self, session_id: str, *, limit: int | None = None, before: int | None = None) -> HistoryPage:
        """The session's conversation up to now, oldest first, whoever ran it; empty for a session that is not known.

        Args:
            session_id: which session.
            limit: how many messages at most: the newest ones; by default all.
            before: the `start` of the page before; only messages older than that.

        Raises:
            StoreError: the store cannot be read.
        """
        messages: Sequence[Message] = ()
        with suppress(UnknownRun):  # deleted in this moment
            if turn := await self._shelf.newest(session_id):
                messages = (await self._shelf.get(turn.run_id)).tree.root.messages
        return HistoryPage(messages, limit, before)

    async def delete_session(self, session_id: str) -> int:
        """Forgets all runs of a session, with all that belongs to them; parked ones, too. Says how many; 0 for none.

        Raises:
            SessionBusy: one of them is live; then none is forgotten.
            StoreError: the store cannot be written.
        """
        deleted = await self._shelf.delete_session(session_id)
        for handle in [handle for handle in self._handles.values() if handle.session_id == session_id]:
            self._forget(handle.run_id)
        return deleted

    # --- starting

    def _start(
        self,
        tasks: TaskGroup,
        handle: RunHandle[OutputT, StateT],
        log: RunLog,
        model: Model,
        override: Model | None,
        deps: Any,
        on_approval: OnApproval | None,
    ) -> RunHandle[OutputT, StateT]:
        run = Run(
            log,
            deps,
            override,
            self._resources.model,
            self._resources.toolset,
            on_approval=on_approval,
            gates=self._gates,
            prices=self._resources.prices,
        )
        run.wait = log.tree.options.get("wait", "hold")
        log.live = True
        handle.attach(run)
        live = LiveAgent(run, log.run_id, handle.agent, model)
        self._mine[log.run_id] = handle
        tasks.start_soon(self._run, live)
        return handle

    async def _run(self, live: LiveAgent) -> None:
        log = live.run.log
        try:
            await run_root(live)
        finally:
            if log.kept is not None and (log.tree.ended or not log.tree.at_rest):  # parked ones are gone on with here
                self._mine.pop(log.run_id, None)

    def _forget(self, run_id: str) -> None:
        self._handles.pop(run_id, None)
        self._mine.pop(run_id, None)

    def _handle(self, log: RunLog) -> RunHandle[Any, Any]:
        """The one handle that this executor has for a log."""
        handle = self._handles.get(log.run_id)
        if handle is None:
            handle = self._handles[log.run_id] = RunHandle(self._agent_named(log.tree.root.agent_type), log)
        return handle

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


EXECUTE_OPTIONS = inspect.signature(Executor.execute).parameters.keys() - {"self", "agent", "input"}
"""The options of a run. Those of the short forms are `helix.api.RunOptions`."""


def _check_resumable(log: RunLog) -> None:
    if log.tree.ended:
        status = log.tree.status
        raise UsageError(f"run {log.run_id} has {status}; start a new one, in its session to go on with it")
    if log.live:
        raise UsageError(f"run {log.run_id} is live; interrupt it first")


def _options(wait: WaitMode, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """What later decisions use, and what the user wants kept, for the root's `run_start`."""
    if wait not in get_args(WaitMode):
        raise UsageError(f"wait={wait!r} is neither 'hold' nor 'suspend'")
    options: dict[str, Any] = {} if wait == "hold" else {"wait": wait}
    if metadata is not None:
        options["metadata"] = c.to_json_value(dict(metadata), where="metadata")
    return options


def _going_on(start: c.RunStart, before: RunTree | None, *, keeps_state: bool) -> RunLog:
    """The log of a new run, with the conversation of the session's last one; and with its state, if it may."""
    if before is not None:
        start = replace(start, history=list(before.root.messages))
        if keeps_state and before.root.agent_type == start.agent_type:
            start.state = c.to_json_value(before.document(before.root_id))
    log = RunLog(start.agent_id)
    log.append(start)
    return log


def _checked_run_id(run_id: str) -> str:
    if not run_id or not all(char.isalnum() or char in "_-" for char in run_id):
        raise UsageError(f"run_id {run_id!r} is not usable: letters, digits, '_' and '-' only")
    return run_id
