"""The decision: what an agent does next, computed from the fold alone. This is the loop's specification.

Floor 3: above `fold` and `agent`; pure and synchronous, tested with tables. `loop` does what it says, and asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from helix.agent import OUTPUT_TOOL, Agent
from helix.chunks import ErrorCode
from helix.fold import AgentNode, CallNode
from helix.limits import MAX_CRASHES, Usage, dollars, money
from helix.messages import AssistantMessage
from helix.schema import is_json
from helix.tools import Tool

EXPECTED_TOKENS = 1000
"""What a first call reserves when the settings give no `max_tokens`; later ones: as much as those before them took."""


@dataclass(slots=True, frozen=True)
class Ask:
    """Make a model call: this step, this attempt; under a limit of tokens or costs, with this reservation.

    With `force_output` the model may give its structured output, and nothing else.
    """

    step: int
    attempt: int
    reserve: Usage | None = None
    force_output: bool = False


@dataclass(slots=True, frozen=True)
class Answer:
    """Answer these calls; they are in call order."""

    calls: tuple[CallNode, ...]


@dataclass(slots=True, frozen=True)
class Judge:
    """The model gave its output as this text: validate it."""

    text: str


@dataclass(slots=True, frozen=True)
class Finish:
    """These calls, in call order, are of tools that finish: the first result that is valid is the output."""

    calls: tuple[CallNode, ...]


@dataclass(slots=True, frozen=True)
class Wait:
    """A limit leaves no room until another model call has ended."""


@dataclass(slots=True, frozen=True)
class Park:
    """The run is to stop here; it can be resumed."""


@dataclass(slots=True, frozen=True)
class End:
    """The agent has come to its end."""

    status: Literal["completed", "failed"]
    error: str | None = None
    code: ErrorCode | None = None


Action: TypeAlias = Ask | Answer | Judge | Finish | Wait | Park | End
PriceOf: TypeAlias = Callable[[Usage], float | None]
"""What a usage costs in US dollars; None when that is not known."""


def decide(
    node: AgentNode,
    agent: Agent[Any, Any, Any],
    *,
    tools: Mapping[str, Tool[..., Any]] | None = None,
    stopping: bool = False,
    price: PriceOf = lambda usage: None,
) -> Action:
    """What the agent does next.

    Args:
        node: how it stands with it.
        agent: its definition.
        tools: all its tools by name; without them, those of its definition.
        stopping: whether it is to park before its next model call.
        price: what so much of its model costs.
    """
    if node.open_calls:
        return Answer(tuple(node.open_calls))
    if node.error_code is not None:
        return End("failed", node.error, node.error_code)
    if node.has_output:
        return End("completed")
    tools = agent.toolbox() if tools is None else tools
    finishing = tuple(call for call in node.calls.values() if call.error is None and _finishes(call, tools))
    if finishing and not node.output_refused:
        return Finish(finishing)
    failure = _too_many_failures(node, agent, tools)
    if failure is not None:
        return failure
    if node.last is not None and not node.last.tool_calls and not node.inbox and node.attempt == 0:
        judged = agent.output_schema.structured or agent.output_validators
        return Judge(node.last.text or node.last.refusal) if judged else End("completed")
    if stopping:
        return Park()
    return _admit(node, agent, price)


def _finishes(call: CallNode, tools: Mapping[str, Tool[..., Any]]) -> bool:
    tool = tools.get(call.tool_name)
    return tool is not None and tool.finishes


def _too_many_failures(node: AgentNode, agent: Agent[Any, Any, Any], tools: Mapping[str, Tool[..., Any]]) -> End | None:
    if node.output_failures > agent.output_retries:
        return End("failed", f"no valid output in {node.output_failures} tries", "output_invalid")
    if node.last is not None and node.last.refusal and agent.output_schema.structured and not node.last.tool_calls:
        return End("failed", f"the model refused: {node.last.refusal}", "model_filtered")
    for call in node.calls.values():
        tool = tools.get(call.tool_name)
        retries = None if tool is None else tool.retries
        failures = node.failures.get(call.tool_name, 0)
        if call.error_code == "tool_outcome_unknown" and failures >= MAX_CRASHES:
            return End("failed", f"tool {call.tool_name!r} was cut off by crashes too often", "recovery_limit")
        if retries is not None and failures > retries:
            return End("failed", f"tool {call.tool_name!r} failed too often: {call.error}", "tool_failed")
    return None


def _admit(node: AgentNode, agent: Agent[Any, Any, Any], price: PriceOf) -> Action:
    """Ask, if the limits of the agent and of all above it have room for one more model call."""
    steps, may_force = node.limits.steps, agent.output_schema.structured
    is_over = steps is not None and node.steps >= steps
    if is_over and not (may_force and node.steps == steps):  # one more, for the output alone
        return End("failed", f"the limit of {steps} steps is reached", "limit_steps")
    reserve = _reservation(node, agent, price)
    wait = False
    for scope in node.lineage():
        bounds, owed = scope.bounds, scope.tree_owed - node.owes_answer
        if bounds.requests is not None and scope.tree_requests + owed >= bounds.requests:
            return End("failed", f"the limit of {bounds.requests} requests is reached", "limit_requests")
        if bounds.total_tokens is not None and reserve is not None:
            left = bounds.total_tokens - scope.tree_usage.total_tokens
            if left <= 0:
                return End("failed", f"the limit of {bounds.total_tokens} tokens is reached", "limit_tokens")
            wait = wait or 0 < scope.tree_reserved > left - reserve.total_tokens
        if bounds.cost is not None and reserve is not None:
            if reserve.cost is None or scope.tree_usage.unpriced:
                text = f"the limit of {money(bounds.cost)} cannot hold: the price of {node.model} is not known"
                return End("failed", text, "limit_cost")
            left = dollars(bounds.cost - (scope.tree_usage.cost or 0))
            if left <= 0:
                return End("failed", f"the limit of {money(bounds.cost)} is reached", "limit_cost")
            wait = wait or 0 < scope.tree_reserved_cost > dollars(left - reserve.cost)
        wait = wait or (bounds.concurrency is not None and scope.tree_open_steps >= bounds.concurrency)
    if wait:
        return Wait()
    step = node.step if node.attempt else node.step + 1
    return Ask(step, node.attempt + 1, reserve, may_force and (is_over or _gave_no_output(node)))


def _gave_no_output(node: AgentNode) -> bool:
    """Whether the last step would have been the end, but said no JSON: mere words, or an output that was cut off."""
    last = node.last or AssistantMessage()
    if last.tool_calls:
        return all(call.tool_name == OUTPUT_TOOL and isinstance(call.arguments, str) for call in last.tool_calls)
    return node.output_refused and not is_json(last.text)


def _reservation(node: AgentNode, agent: Agent[Any, Any, Any], price: PriceOf) -> Usage | None:
    """What the next call is expected to use, where that is bounded: as those before it; at first what it may write."""
    bounds = [scope.bounds for scope in node.lineage()]
    tokens = node.usage.total_tokens // max(1, node.steps) or agent.settings.max_tokens or EXPECTED_TOKENS
    if any(bound.cost is not None for bound in bounds):
        cost = (node.usage.cost or 0) / max(1, node.steps) or price(Usage(output_tokens=tokens, total_tokens=tokens))
        return Usage(total_tokens=tokens, cost=None if cost is None else dollars(cost))
    return Usage(total_tokens=tokens) if any(bound.total_tokens is not None for bound in bounds) else None
