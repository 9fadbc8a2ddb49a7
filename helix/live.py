"""The live side of a run: what cannot be folded from the log, because it is only true while it runs.

Floor 3: above `agent` and `log`. One `Run` a tree, one `LiveAgent` for each agent that is at work.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.lowlevel import current_token

from helix.agent import Agent
from helix.fold import AgentNode, RunTree
from helix.log import RunLog
from helix.model import Model, ToolDefinition
from helix.results import RunResult
from helix.tools import Tool, Toolset


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

    @property
    def tree(self) -> RunTree:
        """The run, folded up to now."""
        return self.log.tree

    def cancel(self, agent_id: str) -> None:
        """Cuts an agent and everything below it, at once."""
        self.cancelled.add(agent_id)
        if agent_id in self.scopes:
            self.scopes[agent_id].cancel()


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

    def __post_init__(self) -> None:
        opened = [tool for toolset in self.agent.toolsets for tool in self.run.opened(toolset)]
        self.tools = self.agent.toolbox(opened)
        self.definitions = tuple(tool.definition for tool in self.tools.values())

    @property
    def node(self) -> AgentNode:
        """What the log says of it."""
        return self.run.tree.agents[self.agent_id]

    @property
    def stopping(self) -> bool:
        """Whether it is to park before its next step."""
        return self.parkable and self.run.stop.is_set()


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
