"""What the owner of a run writes: when it takes over, when it parks, and what follows from a command.

Floor 3: above `endings` and `live`; the executor and its handles stand on it. `take` is the one place where commands
become chunks, for a live run and for a parked one, wherever they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, cast

from pydantic_core import to_json

from helix import chunks as c
from helix.agent import Agent, as_message
from helix.commands import Approve, Cancel, ClientResult, Command, Deny, Interrupt, Respond, Send
from helix.endings import end_agent, end_call
from helix.errors import (
    AgentEnded,
    AlreadyAnswered,
    InvalidAnswer,
    UnknownApproval,
    UsageError,
    did_you_mean,
    which_agent,
)
from helix.fold import AgentNode, RunTree
from helix.live import Run
from helix.log import RunLog, now_ms
from helix.messages import UserMessage
from helix.tools import Tool

_FindTool: TypeAlias = Callable[[c.ApprovalRequest], Tool[..., Any] | None]
"""The tool that a request is for, if it is at hand."""


def resumption(tree: RunTree) -> list[c.Chunk]:
    """What a new owner writes first: `run_resume`, and an end for each step that was open."""
    root = tree.root
    reason = "pause" if tree.at_rest else "crash"
    chunks: list[c.Chunk] = [c.RunResume(root.agent_id, root.agent_type, tree.epoch + 1, reason)]
    for node in tree.agents.values():
        if node.step_open is not None:
            usage = c.Usage(requests=1)
            chunks.append(
                c.StepEnd(node.agent_id, node.agent_type, node.step, node.attempt, "abandoned", usage, reason="crash")
            )
    return chunks


def pause(tree: RunTree, status: Literal["interrupted", "suspended"], *, without: str | None = None) -> c.RunPause:
    """What an owner writes last when the tree is parked; `without` is a request that will be closed by then."""
    waiting_for = [approval_id for approval_id in tree.requests if approval_id != without]
    return c.RunPause(tree.root.agent_id, tree.root.agent_type, status, waiting_for or None)


def end_cancelled_branches(run: Run) -> None:
    """Who was cancelled after having parked ends now, before the rest is parked."""
    for agent_id in sorted(run.cancelled):
        if not run.tree.agents[agent_id].ended:
            _end_branch(run.log, agent_id)


def _end_branch(log: RunLog, agent_id: str) -> None:
    """Ends an agent that is not at work, and the call of its parent that has waited for it."""
    node = log.tree.agents[agent_id]
    log.append(*end_agent(log, node, "cancelled"))
    call = node.parent and node.parent.calls.get(node.call_id or "")
    if node.parent and call and all(child.ended for child in log.tree.child_of(call)):
        log.append(*end_call(log, node.parent, call, error=f"{node.agent_type} cancelled", code="cancelled"))


def take(log: RunLog, run: Run | None, command: Command) -> None:
    """Does what a command says: appends what follows from it, and wakes or stops whom it concerns.

    A live run is written to as it goes. A parked one is taken up and parked again around what is said, so that its log
    has it at once. A command whose id is in the log already has been taken, and is done.

    Args:
        log: the run's log; whoever calls this owns it.
        run: the live side, if it is live.
        command: what is wanted.

    Raises:
        UnknownApproval, AlreadyAnswered, InvalidAnswer: the answer has no request to go to, or does not fit it.
        AgentEnded: the agent to talk to has ended.
        UsageError: there is no such agent; or its owner has left it, and it has to be resumed first.
    """
    if command.command_id and command.command_id in log.tree.commands:
        return
    match command:
        case Respond():
            _write(
                log, *_response(log.tree, command, lambda request: _at_work(run, request)), closes=command.approval_id
            )
            if run is not None:
                run.wake(command.approval_id)
        case Send():
            _write(log, _steering(log.tree, command))
        case Cancel():
            _cancel(log, run, command.agent_id or log.run_id)
        case Interrupt(end=end):
            if run is not None and log.live:
                run.ending = run.ending or end
                run.halt()
            elif end:
                _cancel(log, run, log.run_id)
            elif not log.live and not log.tree.at_rest:  # its owner has left it
                log.append(*resumption(log.tree), pause(log.tree, "interrupted"))


def check(log: RunLog, command: Command, agent: Agent[Any, Any, Any] | None = None) -> None:
    """Says what is wrong with a command, as far as the log tells; for who does not own the run.

    Args:
        log: the run's log as it is kept; it is left as it is.
        command: what is wanted.
        agent: the root's definition, if it is at hand: edited arguments are validated by it.

    Raises:
        UnknownApproval, AlreadyAnswered, InvalidAnswer, AgentEnded, UsageError: as `take`.
    """
    if command.command_id and command.command_id in log.tree.commands:
        return
    match command:
        case Respond():
            _response(log.tree, command, lambda request: _defined(agent, log.tree.agents[request.agent_id], request))
        case Send():
            _steering(log.tree, command)
        case Cancel():
            _node(log.tree, command.agent_id or log.run_id)
        case Interrupt():
            pass


def _write(log: RunLog, *chunks: c.Chunk, closes: str | None = None) -> None:
    if log.live:
        log.append(*chunks)
    elif not log.tree.at_rest:
        raise UsageError(f"run {log.run_id} was left by its owner; resume it first")
    else:
        status = cast(Literal["interrupted", "suspended"], log.tree.status)
        log.append(*resumption(log.tree), *chunks, pause(log.tree, status, without=closes))


# --- answers


def _response(tree: RunTree, command: Respond, find: _FindTool) -> Sequence[c.Chunk]:
    request = _open_request(tree, command.approval_id)
    answer, ids = command.answer, (request.agent_id, request.agent_type)
    response = c.ApprovalResponse(
        *ids, request.approval_id, "deny", by=command.by, command_id=command.command_id or None
    )
    match answer:
        case Deny(reason):
            response.reason = c.clean_text(reason) or None
        case ClientResult(value):
            _check_kind(request, "client_tool", answer)
            response.decision, response.result = "result", c.to_json_value(value, where="result")
        case Approve(arguments):
            _check_kind(request, "approval", answer)
            response.decision = "approve"
            if arguments is not None and arguments != request.arguments:
                response.arguments = _checked(find(request), request, arguments)
                return response, _told(request, response.arguments)
    return (response,)


def _open_request(tree: RunTree, approval_id: str) -> c.ApprovalRequest:
    request = tree.requests.get(approval_id)
    if request is None:
        decision = tree.closed.get(approval_id)
        if decision is None:
            hint = _which_request(approval_id, tree)
            raise UnknownApproval(f"nothing in this run waits for an answer to {approval_id!r}.{hint}")
        how = "its call has ended" if decision == "ended" else f"the answer was {decision!r}"
        raise AlreadyAnswered(f"{approval_id!r} is closed: {how}", decision)
    if request.deadline is not None and now_ms() > request.deadline:
        raise AlreadyAnswered(f"{approval_id!r} is closed: its deadline has passed", "expired")
    return request


def _which_request(given: str, tree: RunTree) -> str:
    """A hint for who gave something else of a request, or mistyped its id."""
    named = [
        repr(approval_id)
        for approval_id, request in tree.requests.items()
        if given in (request.tool_call_id, request.tool_name, request.agent_id, request.agent_type)
    ]
    if named:
        return f" An approval's id is wanted; of {given!r}: {', '.join(named[:5])}"
    return did_you_mean(given, [*tree.requests, *tree.closed])


def _check_kind(request: c.ApprovalRequest, kind: str, answer: Any) -> None:
    if request.kind == kind:
        return
    what, wanted = ("approval", "Approve") if request.kind == "approval" else ("a client's result", "ClientResult")
    who, given = f"{request.tool_name} of {request.agent_type}", type(answer).__name__
    raise InvalidAnswer(f"{who} waits for {what}: answer with {wanted} or Deny, not {given}")


def _checked(tool: Tool[..., Any] | None, request: c.ApprovalRequest, arguments: dict[str, Any]) -> dict[str, Any]:
    """Edited arguments as JSON; checked here if the tool is at hand, else before the call runs."""
    if not isinstance(arguments, dict):
        raise InvalidAnswer(f"Approve(arguments=…) takes the arguments as a dict, not {type(arguments).__name__}")
    value: dict[str, Any] = c.to_json_value(arguments, where="arguments")
    if tool is not None:
        try:
            tool.validate(value)
        except ValueError as error:
            raise InvalidAnswer(f"the arguments do not fit {request.tool_name}: {error}") from None
    return value


def _at_work(run: Run | None, request: c.ApprovalRequest) -> Tool[..., Any] | None:
    live = None if run is None else run.at_work.get(request.agent_id)
    return None if live is None else live.tools.get(request.tool_name)


def _defined(agent: Agent[Any, Any, Any] | None, node: AgentNode, request: c.ApprovalRequest) -> Tool[..., Any] | None:
    """The tool as the definitions have it; None for one of a toolset, or of an agent that a tool's body has started."""
    for below in [*node.lineage()][-2::-1]:
        known = () if agent is None else agent.sub_agents
        agent = next((tool.agent for tool in known if tool.agent.name == below.agent_type), None)
    return None if agent is None else agent.toolbox().get(request.tool_name)


def _told(request: c.ApprovalRequest, arguments: dict[str, Any]) -> c.Chunk:
    """The model is told that its call was run with other arguments."""
    text = f"The call {request.tool_call_id} of {request.tool_name} was approved with other arguments, and run with: "
    text += to_json(arguments).decode()
    return c.MessageChunk(request.agent_id, request.agent_type, UserMessage(text), "notice")


# --- words, stops


def _steering(tree: RunTree, command: Send) -> c.Chunk:
    node = _node(tree, command.to or tree.root_id)
    if node.ended:
        raise AgentEnded(f"agent {node.agent_id!r} has {node.status}; it reads nothing any more")
    message, command_id = as_message(command.text), command.command_id or None
    return c.MessageChunk(node.agent_id, node.agent_type, message, "steering", command_id=command_id)


def _node(tree: RunTree, agent_id: str) -> AgentNode:
    node = tree.agents.get(agent_id)
    if node is None:
        raise UsageError(f"no agent {agent_id!r} in this run.{which_agent(agent_id, tree.agents.values())}")
    return node


def _cancel(log: RunLog, run: Run | None, agent_id: str) -> None:
    if _node(log.tree, agent_id).ended:
        return
    if log.live and run is not None:
        run.cancel(agent_id)
        return
    status = log.tree.status
    log.append(*resumption(log.tree))
    _end_branch(log, agent_id)
    if status != "running" and not log.tree.ended:
        log.append(pause(log.tree, cast(Literal["interrupted", "suspended"], status)))
    log.leave()
