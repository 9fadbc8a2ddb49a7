"""The live side of a run: what cannot be folded from the log, because it is only true while it runs.

Floor 3: above `agent` and `log`. One `Run` a tree, one `LiveAgent` for each agent that is at work.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import anyio
from anyio.lowlevel import current_token

from helix.agent import OUTPUT_TOOL, Agent
from helix.chunks import ApprovalRequest
from helix.commands import Approve, ClientResult, Deny
from helix.fold import AgentNode, CallNode, RunTree
from helix.limits import Usage
from helix.log import RunLog
from helix.model import Model, ToolDefinition
from helix.prices import Prices
from helix.providers import Gates
from helix.results import RunResult
from helix.tools import Tool, Toolset

WaitMode: TypeAlias = Literal["hold", "suspend"]
"""What a run does while nothing can go on before somebody has answered: stay live, or park."""
Decision: TypeAlias = Approve | Deny | ClientResult | bool
"""What `on_approval` gives."""
OnApproval: TypeAlias = Callable[[ApprovalRequest], Decision | Awaitable[Decision]]
"""Answers a request, at once or after a while."""


@dataclass(slots=True, eq=False)
class Run:
    """What the agents of one tree share while they run.

    Attributes:
        log: where everything goes.
        deps: what tools find as `ctx.deps`.
        model: replaces the model of every agent, when given.
        resolve: gives the model that a name or an agent's argument means, opened for this executor.
        opened: gives the tools of an opened toolset.
        scopes: the cancel scope of each agent at work.
        cancelled: the agents whom a caller has cancelled.
        post: has a function called on the run's event loop, soon and in order; for other threads than `thread`.
        clock: the event loop's time, in what `post` has called too.
        outputs: the validated output of each agent that has one; the log has its JSON.
        stop: set once nobody shall begin another step; the run parks.
        ending: it ends as cancelled where it would park.
        wait: whether to park once everything that is left waits for answers.
        on_approval: asked first, for each request.
        parking: the run parks because all that is left waits; answers are taken once it is parked.
        at_work: the agents whose loop runs.
        gates: what all runs of the executor share of each provider.
        prices: what models cost.
        waiting: what wakes the call that waits for an answer, by approval id.
    """

    log: RunLog
    deps: Any
    model: Model | None
    resolve: Callable[[str | Model], Model]
    opened: Callable[[Toolset], Sequence[Tool[..., Any]]]
    scopes: dict[str, anyio.CancelScope] = field(default_factory=dict[str, anyio.CancelScope])
    cancelled: set[str] = field(default_factory=set[str])
    stop: anyio.Event = field(default_factory=anyio.Event)
    post: Callable[[Callable[[], Any]], Any] = field(default_factory=lambda: _poster())
    clock: Callable[[], float] = field(default_factory=lambda: _clock())
    thread: int = field(default_factory=threading.get_ident)
    outputs: dict[str, Any] = field(default_factory=dict[str, Any])
    ending: bool = False
    wait: WaitMode = "hold"
    on_approval: OnApproval | None = None
    gates: Gates = field(default_factory=Gates)
    prices: Prices = field(default_factory=Prices)
    parking: bool = False
    at_work: dict[str, LiveAgent] = field(default_factory=lambda: dict[str, LiveAgent]())
    waiting: dict[str, anyio.Event] = field(default_factory=dict[str, anyio.Event])

    @property
    def tree(self) -> RunTree:
        """The run, folded up to now."""
        return self.log.tree

    def cancel(self, agent_id: str) -> None:
        """Cuts an agent and everything below it, at once."""
        self.cancelled.add(agent_id)
        if agent_id in self.scopes:
            self.scopes[agent_id].cancel()

    def halt(self) -> None:
        """Nobody begins another step from now on, and nobody waits for an answer; the run parks."""
        self.stop.set()
        self.log.make_room()
        for approval_id in self.waiting:
            self.wake(approval_id)

    def wake(self, approval_id: str) -> None:
        """The call that waits for this answer looks again."""
        if approval_id in self.waiting:
            self.waiting[approval_id].set()

    def park_if_quiet(self) -> None:
        """Parks the run if it is to, and everything that is left waits for an answer.

        Asked whenever a call begins to wait, and whenever something ends beside others that may wait.
        """
        if self.wait == "hold" or not self.tree.requests or self.on_approval is not None or self.stop.is_set():
            return
        if all(live.only_waits for live in self.at_work.values()):
            self.parking = True
            self.halt()


@dataclass(slots=True, eq=False)
class LiveAgent:
    """An agent at work: its definition, its place in the run, and what it was resolved to.

    Attributes:
        parkable: whether its run may stop before a next step; not inside a tool body that must not run twice.
    """

    run: Run
    agent_id: str
    agent: Agent[Any, Any, Any]
    model: Model
    parkable: bool = True
    tools: dict[str, Tool[..., Any]] = field(init=False)
    definitions: tuple[ToolDefinition, ...] = field(init=False)
    _prices: dict[Usage, float | None] = field(init=False, default_factory=dict[Usage, float | None])

    def __post_init__(self) -> None:
        opened = [tool for toolset in self.agent.toolsets for tool in self.run.opened(toolset)]
        self.tools = self.agent.toolbox(opened)
        self.definitions = tuple(tool.definition for tool in self.tools.values())

    @property
    def node(self) -> AgentNode:
        """What the log says of it."""
        return self.run.tree.agents[self.agent_id]

    def price(self, usage: Usage) -> float | None:
        """What so much of its model costs at most, in US dollars; None when that is not known."""
        if usage not in self._prices:
            self._prices[usage] = self.run.prices.most(self.model, usage)
        return self._prices[usage]

    @property
    def stopping(self) -> bool:
        """Whether it is to park before its next step."""
        return self.parkable and self.run.stop.is_set()

    @property
    def only_waits(self) -> bool:
        """Whether all that it has left are answers that it may be parked under, its own or its children's."""
        calls = [call for call in self.node.open_calls if not self.is_output(call)]
        if any(self.is_sequential(call) for call in calls):
            calls = calls[:1]
        return bool(calls) and all(self._call_waits(call) for call in calls)

    def is_output(self, call: CallNode) -> bool:
        """Whether the call gives the structured output."""
        return self.agent.output_schema.structured and call.tool_name == OUTPUT_TOOL

    def is_sequential(self, call: CallNode) -> bool:
        """Whether the calls beside it wait until it is answered."""
        tool = self.tools.get(call.tool_name)
        return tool is not None and tool.sequential

    def _call_waits(self, call: CallNode) -> bool:
        if call.request is not None and call.answer is None:
            return self.parkable
        return call.attempt > 0 and any(agent_id in self.run.at_work for agent_id in call.children)


def result_of(
    agent: Agent[Any, Any, Any], tree: RunTree, agent_id: str, outputs: Mapping[str, Any] | None = None
) -> RunResult[Any, Any]:
    """What that agent's run has come to, typed by its definition; `outputs` are those validated in this process."""
    node = tree.agents[agent_id]
    output = node.result
    if node.status == "completed" and agent.output_schema.structured:
        known = outputs is not None and agent_id in outputs
        output = outputs[agent_id] if outputs is not None and known else agent.output_schema.load(node.output)
    return RunResult(tree, agent_id, output=output, state=agent.state_schema.load(tree.document(agent_id)))


def _clock() -> Callable[[], float]:
    loop: Any = current_token().native_token
    return loop.time if isinstance(loop, asyncio.AbstractEventLoop) else anyio.current_time


def _poster() -> Callable[[Callable[[], Any]], Any]:
    """anyio has no way to hand work to a loop without waiting for it; both of its backends have one of their own."""
    loop: Any = current_token().native_token
    return loop.call_soon_threadsafe if isinstance(loop, asyncio.AbstractEventLoop) else loop.run_sync_soon
