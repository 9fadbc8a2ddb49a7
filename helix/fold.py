"""The fold: what a run *is*, computed from its chunks by one function, live and after a restart alike.

Floor 2: above `nodes`, beside `state`; the log applies it to every chunk, and everything that decides reads it.
Deltas have no entry in the table, so a log without them folds to the same tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from helix import chunks as c
from helix.errors import InvalidChunk, which_agent
from helix.limits import DEFAULT_LIMITS, NO_LIMITS, Limits, Usage, dollars
from helix.messages import AssistantMessage, Message, ToolCall, ToolMessage
from helix.model import History
from helix.nodes import AgentNode, CallNode
from helix.state import apply_patches


class RunTree:
    """A run, folded from its chunks: the agents, their messages, state, usage and what is open.

    Attributes:
        agents: every agent by its id, in the order in which they started; `root_id` is the first one's.
        status: `pending` before the first chunk, `running`, or as in `run_end` and `run_pause`.
        sequence, timestamp: the number and the time (Unix ms) of the last chunk applied.
        epoch: which owner writes, from 1.
        crashes: how often an owner was lost since the last model call or tool ended.
        steps_ended: how many model calls have ended, in whatever way.
        options: the root's `run_start.options`.
        requests: what waits for a person or a client, by approval id; `pending` is the list.
        closed: how each request that is closed was closed: its decision, or `ended` with its call.
        commands: the ids of the commands that are in the log.
        downtime_ms: how long the run was parked or without an owner.
    """

    __slots__ = (
        "agents",
        "closed",
        "commands",
        "crashes",
        "downtime_ms",
        "epoch",
        "options",
        "requests",
        "root_id",
        "sequence",
        "status",
        "steps_ended",
        "timestamp",
    )

    def __init__(self) -> None:
        self.agents: dict[str, AgentNode] = {}
        self.root_id = ""
        self.crashes = 0
        self.status = "pending"
        self.sequence = 0
        self.timestamp = 0
        self.epoch = 1
        self.steps_ended = 0
        self.options: dict[str, Any] = {}
        self.downtime_ms = 0
        self.requests: dict[str, c.ApprovalRequest] = {}
        self.closed: dict[str, str] = {}
        self.commands: set[str] = set()

    def __repr__(self) -> str:
        return f"RunTree({self.root_id!r}, {self.status}, {len(self.agents)} agents, at sequence {self.sequence})"

    @property
    def root(self) -> AgentNode:
        """The root agent."""
        return self.agents[self.root_id]

    @property
    def ended(self) -> bool:
        """Whether nothing can follow any more."""
        return self.status in ("completed", "failed", "cancelled")

    @property
    def at_rest(self) -> bool:
        """Whether the run has ended or is parked."""
        return self.status not in ("running", "pending")

    @property
    def pending(self) -> list[c.ApprovalRequest]:
        """What waits for a person or a client, oldest first: each with its agent, tool and arguments."""
        return list(self.requests.values())

    def agent(self, agent_id: str) -> AgentNode:
        """The agent of that id.

        Raises:
            InvalidChunk: there is none.
        """
        node = self.agents.get(agent_id)
        if node is None:
            hint = which_agent(agent_id, self.agents.values())
            raise InvalidChunk(f"no agent {agent_id!r} has started in this run.{hint}")
        return node

    def document(self, agent_id: str) -> Any:
        """The state document that the agent works on, as JSON data. Not to be changed."""
        return self.agent(self.agent(agent_id).state_id).state

    def child_of(self, call: CallNode) -> list[AgentNode]:
        """The agents that a call started, in order; without those that are announced but have not begun."""
        return [self.agents[agent_id] for agent_id in call.children if agent_id in self.agents]

    def subtree(self, agent_id: str) -> Iterator[AgentNode]:
        """The agent and all below it, in the order in which they started."""
        below = f"{agent_id}."
        return (node for key, node in self.agents.items() if key == agent_id or key.startswith(below))

    def elapsed_ms(self, node: AgentNode, now: int) -> int:
        """How long the agent has lived until `now` (Unix ms), pauses not counted; never negative."""
        return max(0, now - node.started_at - (self.downtime_ms - node.downtime_before))

    def apply(self, chunk: c.Chunk) -> None:
        """Takes one chunk in. Chunks are applied in order, each once.

        Raises:
            InvalidChunk, InvalidPatch: the chunk does not fit; the tree may be half-changed and must be folded anew.
        """
        handler = _HANDLERS.get(type(chunk))
        if handler is not None:
            handler(self, chunk)
        self.sequence, self.timestamp = chunk.sequence, chunk.timestamp


def fold(chunks: Iterable[c.Chunk]) -> RunTree:
    """The tree that the chunks of a log, or of a prefix of it, add up to."""
    tree = RunTree()
    for chunk in chunks:
        tree.apply(chunk)
    return tree


def settled(node: AgentNode) -> Iterator[Message]:
    """What joins the history next: the answers in call order, then the inbox."""
    for call in node.calls.values():
        yield ToolMessage(call.tool_call_id, call.tool_name, call.content, is_error=call.error is not None)
    yield from node.inbox


# One function a chunk class; together they are the fold.


def _run_start(tree: RunTree, chunk: c.RunStart) -> None:
    if chunk.agent_id in tree.agents:
        raise InvalidChunk(f"agent {chunk.agent_id!r} has already started")
    parent = tree.agent(chunk.parent_id) if chunk.parent_id else None
    if parent is None:
        tree.root_id, tree.status, tree.options = chunk.agent_id, "running", chunk.options or {}
    bounds = Limits(**chunk.limits) if chunk.limits else NO_LIMITS
    call = _call_that_started(chunk.agent_id, parent)
    tree.agents[chunk.agent_id] = AgentNode(
        agent_id=chunk.agent_id,
        agent_type=chunk.agent_type,
        parent=parent,
        call_id=call and call.tool_call_id,
        key=chunk.key,
        depth=0 if parent is None else parent.depth + 1,
        model=chunk.model,
        input=chunk.input,
        session_id=chunk.session_id,
        started_at=chunk.timestamp,
        limits=bounds.over(DEFAULT_LIMITS if parent is None else parent.limits),
        bounds=bounds,
        state=c.to_json_value(chunk.state),
        state_id=chunk.state_id or chunk.agent_id,
        messages=History([*(chunk.history or ()), *chunk.input]),
        call_ids={call.tool_call_id for call in _calls_in(chunk.history or ())},
        downtime_before=tree.downtime_ms,
    )


def _calls_in(messages: Iterable[Message]) -> Iterator[ToolCall]:
    return (call for message in messages if isinstance(message, AssistantMessage) for call in message.tool_calls)


def _call_that_started(agent_id: str, parent: AgentNode | None) -> CallNode | None:
    if parent is None:
        return None
    return next((call for call in parent.calls.values() if agent_id in call.children), None)


def _run_end(tree: RunTree, chunk: c.RunEnd) -> None:
    node = tree.agent(chunk.agent_id)
    node.status, node.error, node.error_code = chunk.status, chunk.error, chunk.error_code
    node.finish_reason = chunk.finish_reason
    _settle(node)
    if node.owes_answer:
        _owe(node, -1)
    if node.parent is None:
        tree.status = chunk.status


def _run_pause(tree: RunTree, chunk: c.RunPause) -> None:
    tree.status = chunk.status


def _run_resume(tree: RunTree, chunk: c.RunResume) -> None:
    tree.downtime_ms += max(0, chunk.timestamp - tree.timestamp)  # since the pause, or since the last sign of life
    tree.status, tree.epoch = "running", chunk.epoch
    tree.crashes = tree.crashes + 1 if chunk.reason == "crash" else 0


def _step_start(tree: RunTree, chunk: c.StepStart) -> None:
    node = tree.agent(chunk.agent_id)
    _settle(node)
    if node.owes_answer:
        _owe(node, -1)
    node.step, node.attempt, node.step_open = chunk.step, chunk.attempt, chunk.sequence
    node.asked, node.reserve = chunk.model, chunk.reserve or Usage()
    for above in node.lineage():
        above.tree_requests += 1
        above.tree_open_steps += 1
    _reserve(node, 1)


def _step_end(tree: RunTree, chunk: c.StepEnd) -> None:
    node = tree.agent(chunk.agent_id)
    tree.steps_ended += 1
    node.usage += chunk.usage
    node.usage_by_model[node.asked] = node.usage_by_model.get(node.asked, Usage()) + chunk.usage
    for above in node.lineage():
        above.tree_usage += chunk.usage
        above.tree_open_steps -= 1
    _reserve(node, -1)
    node.step_open, node.reserve = None, Usage()
    if chunk.message is not None:
        node.messages.append(chunk.message)
    if chunk.outcome == "abandoned":
        node.failed_attempts.append(chunk.reason or "")
    if chunk.outcome == "committed":
        tree.crashes = 0
        node.steps += 1
        node.attempt = 0
        node.finish_reason = chunk.finish_reason
        node.last = chunk.message or AssistantMessage()
        node.output_refused = False
        node.calls = {
            call.tool_call_id: CallNode(call.tool_call_id, call.tool_name, call.arguments)
            for call in node.last.tool_calls
        }
        node.call_ids.update(node.calls)


def _tool_start(tree: RunTree, chunk: c.ToolStart) -> None:
    call = _call(tree, chunk.agent_id, chunk.tool_call_id)
    call.attempt, call.started_at = chunk.attempt or 1, chunk.timestamp


def _tool_end(tree: RunTree, chunk: c.ToolEnd) -> None:
    node = tree.agent(chunk.agent_id)
    call = _call(tree, chunk.agent_id, chunk.tool_call_id)
    if chunk.error_code != "tool_outcome_unknown":  # that is the crash itself, and nothing done
        tree.crashes = 0
    call.ended, call.result, call.parts = True, chunk.result, chunk.content
    call.error, call.error_code = chunk.error, chunk.error_code
    if call.request is not None and call.answer is None:
        del tree.requests[call.request.approval_id]
        tree.closed[call.request.approval_id] = "ended"
    others = [other for other in node.calls.values() if other.tool_name == call.tool_name and other is not call]
    if call.error is None:
        node.failures.pop(call.tool_name, None)
    elif not any(other.ended for other in others):  # a step counts once, however many calls of it failed
        if call.error_code == "output_invalid":
            node.output_failures += 1
        node.failures[call.tool_name] = node.failures.get(call.tool_name, 0) + 1


def _subagent_start(tree: RunTree, chunk: c.SubagentStart) -> None:
    node = tree.agent(chunk.agent_id)
    node.children.append(chunk.sub_agent_run_id)
    _call(tree, chunk.agent_id, chunk.call_id).children.append(chunk.sub_agent_run_id)
    if not node.owes_answer:
        _owe(node, 1)


def _subagent_end(tree: RunTree, chunk: c.SubagentEnd) -> None:
    _call(tree, chunk.agent_id, chunk.call_id).reported.add(chunk.sub_agent_run_id)


def _message(tree: RunTree, chunk: c.MessageChunk) -> None:
    node = tree.agent(chunk.agent_id)
    node.inbox.append(chunk.message)
    if chunk.kind == "feedback":
        node.output_failures += 1
        node.output_refused = True
    if chunk.command_id is not None:
        tree.commands.add(chunk.command_id)


def _approval_request(tree: RunTree, chunk: c.ApprovalRequest) -> None:
    call = _call(tree, chunk.agent_id, chunk.tool_call_id)
    if call.request is not None:
        raise InvalidChunk(f"{chunk.approval_id!r} has been asked already")
    call.request = tree.requests[chunk.approval_id] = chunk


def _approval_response(tree: RunTree, chunk: c.ApprovalResponse) -> None:
    request = tree.requests.pop(chunk.approval_id, None)
    if request is None:
        raise InvalidChunk(f"{chunk.approval_id!r} does not wait for an answer")
    call = _call(tree, chunk.agent_id, request.tool_call_id)
    call.answer = chunk
    if chunk.arguments is not None:
        call.arguments = chunk.arguments
    tree.closed[chunk.approval_id] = chunk.decision
    if chunk.command_id is not None:
        tree.commands.add(chunk.command_id)


def _state_patch(tree: RunTree, chunk: c.StatePatch) -> None:
    owner = tree.agent(chunk.state_id or chunk.agent_id)
    owner.state = apply_patches(owner.state, chunk.patches)
    owner.state_version += 1


def _error(tree: RunTree, chunk: c.ErrorChunk) -> None:
    if not chunk.recoverable and chunk.tool_call_id is None:
        node = tree.agent(chunk.agent_id)
        node.error, node.error_code = chunk.error, chunk.code


def _output(tree: RunTree, chunk: c.Output) -> None:
    node = tree.agent(chunk.agent_id)
    node.has_output, node.output = True, chunk.output


def _call(tree: RunTree, agent_id: str, tool_call_id: str) -> CallNode:
    call = tree.agent(agent_id).calls.get(tool_call_id)
    if call is None or call.ended:
        raise InvalidChunk(f"agent {agent_id!r} has no open call {tool_call_id!r}")
    return call


def _settle(node: AgentNode) -> None:
    for message in settled(node):
        node.messages.append(message)
    node.calls, node.inbox = {}, []


def _reserve(node: AgentNode, sign: int) -> None:
    tokens, cost = sign * node.reserve.total_tokens, sign * (node.reserve.cost or 0)
    for above in node.lineage():
        above.tree_reserved += tokens
        above.tree_reserved_cost = dollars(above.tree_reserved_cost + cost)


def _owe(node: AgentNode, change: int) -> None:
    node.owes_answer = change > 0
    for above in node.lineage():
        above.tree_owed += change


_Handler: TypeAlias = Callable[[RunTree, Any], None]
_HANDLERS: dict[type[Any], _Handler] = {
    c.RunStart: _run_start,
    c.RunEnd: _run_end,
    c.RunPause: _run_pause,
    c.RunResume: _run_resume,
    c.StepStart: _step_start,
    c.StepEnd: _step_end,
    c.ToolStart: _tool_start,
    c.ToolEnd: _tool_end,
    c.SubagentStart: _subagent_start,
    c.SubagentEnd: _subagent_end,
    c.MessageChunk: _message,
    c.ApprovalRequest: _approval_request,
    c.ApprovalResponse: _approval_response,
    c.StatePatch: _state_patch,
    c.ErrorChunk: _error,
    c.Output: _output,
}
