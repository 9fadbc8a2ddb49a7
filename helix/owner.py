"""What the owner of a run writes: when it takes over, when it parks, and what follows from a command.

Floor 3: above `endings` and `live`; the executor and its handles stand on it. `take` is the one place where commands
become chunks, for a live run and for a parked one, wherever they came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic_core import to_json

from helix import chunks as c
from helix.agent import as_message
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
from helix.fold import RunTree
from helix.live import Run
from helix.log import RunLog, now_ms
from helix.messages import UserMessage


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
        node = run.tree.agents[agent_id]
        if node.ended:
            continue
        run.log.append(*end_agent(run.log, node, "cancelled"))
        call = node.parent and node.parent.calls.get(node.call_id or "")
        if node.parent and call and all(child.ended for child in run.tree.child_of(call)):
            text = f"{node.agent_type} cancelled"
            run.log.append(*end_call(run.log, node.parent, call, error=text, code="cancelled"))


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
        UsageError: there is no such agent; or the run has to be resumed first.
    """
    if command.command_id and command.command_id in log.tree.commands:
        return
    match command:
        case Respond():
            _write(log, *_response(log.tree, run, command), closes=command.approval_id)
            if run is not None:
                run.wake(command.approval_id)
        case Send():
            _write(log, _steering(log.tree, command))
        case Cancel():
            _cancel(log, run, command.agent_id or log.run_id)
        case Interrupt():
            if run is not None and log.live:
                run.halt()


def _write(log: RunLog, *chunks: c.Chunk, closes: str | None = None) -> None:
    if log.live:
        log.append(*chunks)
    elif not log.tree.at_rest:
        raise UsageError(f"run {log.run_id} was left by its owner; resume it first")
    else:
        status = cast(Literal["interrupted", "suspended"], log.tree.status)
        log.append(*resumption(log.tree), *chunks, pause(log.tree, status, without=closes))


# --- answers


def _response(tree: RunTree, run: Run | None, command: Respond) -> Sequence[c.Chunk]:
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
                response.arguments = _checked(run, request, arguments)
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


def _checked(run: Run | None, request: c.ApprovalRequest, arguments: dict[str, Any]) -> dict[str, Any]:
    """Edited arguments as JSON; checked here if the tool is at hand, else before the call runs."""
    if not isinstance(arguments, dict):
        raise InvalidAnswer(f"Approve(arguments=…) takes the arguments as a dict, not {type(arguments).__name__}")
    value: dict[str, Any] = c.to_json_value(arguments, where="arguments")
    live = None if run is None else run.at_work.get(request.agent_id)
    tool = None if live is None else live.tools.get(request.tool_name)
    if tool is not None:
        try:
            tool.validate(value)
        except ValueError as error:
            raise InvalidAnswer(f"the arguments do not fit {request.tool_name}: {error}") from None
    return value


def _told(request: c.ApprovalRequest, arguments: dict[str, Any]) -> c.Chunk:
    """The model is told that its call was run with other arguments."""
    text = f"The call {request.tool_call_id} of {request.tool_name} was approved with other arguments, and run with: "
    text += to_json(arguments).decode()
    return c.MessageChunk(request.agent_id, request.agent_type, UserMessage(text), "notice")


# --- words, stops


def _steering(tree: RunTree, command: Send) -> c.Chunk:
    agent_id = command.to or tree.root_id
    node = tree.agents.get(agent_id)
    if node is None:
        raise UsageError(f"no agent {agent_id!r} in this run.{which_agent(agent_id, tree.agents.values())}")
    if node.ended:
        raise AgentEnded(f"agent {agent_id!r} has {node.status}; it reads nothing any more")
    message, command_id = as_message(command.text), command.command_id or None
    return c.MessageChunk(node.agent_id, node.agent_type, message, "steering", command_id=command_id)


def _cancel(log: RunLog, run: Run | None, agent_id: str) -> None:
    tree = log.tree
    if agent_id not in tree.agents:
        raise UsageError(f"no agent {agent_id!r} in this run.{which_agent(agent_id, tree.agents.values())}")
    if tree.agents[agent_id].ended:
        return
    if log.live and run is not None:
        run.cancel(agent_id)
    elif agent_id != log.run_id:
        raise UsageError("the run is not live; resume it to cancel one branch, or cancel all of it")
    else:
        log.append(*resumption(tree))
        log.append(*end_agent(log, tree.root, "cancelled"))
        log.leave()
