"""Rules 4 and 7: calls, their bodies and their approvals. Above `usage`, below `steps` and `children`."""

from __future__ import annotations

from helix.chunks import (
    ApprovalRequest,
    ApprovalResponse,
    Custom,
    ErrorChunk,
    RunEnd,
    StatePatch,
    StepEnd,
    StepStart,
    ToolEnd,
    ToolOutputDelta,
    ToolStart,
)
from helix.messages import AssistantMessage, Message, ToolCall
from helix.testing.check.log import Agent, Call, Log
from helix.testing.check.usage import settle


def calls_of(message: Message | None) -> list[ToolCall]:
    return message.tool_calls if isinstance(message, AssistantMessage) else []


def calls_open(log: Log, agent: Agent, chunk: StepEnd) -> None:
    agent.calls = {}
    for call in calls_of(chunk.message):
        if call.tool_call_id in agent.asked:
            message = f"{agent.agent_id} asks for call {call.tool_call_id}, an id that is in its history already"
            log.broken("call-id-unique", chunk, message)
        agent.asked.add(call.tool_call_id)
        agent.calls[call.tool_call_id] = Call(call)


def calls_are_answered(log: Log, agent: Agent, chunk: StepStart | RunEnd) -> None:
    for call_id, call in agent.calls.items():
        if not call.ended and not call.overdue:
            call.overdue = True
            message = f"call {call_id} of {agent.agent_id} has no tool_end before the agent's {chunk.type}"
            log.broken("call-answered", chunk, message)
            _close_children(log, call)


def _asked_call(log: Log, agent: Agent, chunk: ToolStart | ToolEnd | ApprovalRequest) -> Call | None:
    call = agent.calls.get(chunk.tool_call_id)
    if call is None:
        what = "of an earlier step" if chunk.tool_call_id in agent.asked else "that nobody asked for"
        log.broken("call-asked", chunk, f"{chunk.type} of {agent.agent_id} for call {chunk.tool_call_id}, {what}")
    else:
        _name_fits(log, call, chunk)
    return call


def _name_fits(log: Log, call: Call, chunk: ToolStart | ToolEnd | ApprovalRequest | ToolOutputDelta) -> None:
    if chunk.tool_name != call.asked.tool_name:
        message = f"{chunk.type} calls call {chunk.tool_call_id} {chunk.tool_name!r}, it is {call.asked.tool_name!r}"
        log.broken("call-name", chunk, message)


def body_begins(log: Log, agent: Agent, chunk: ToolStart) -> None:
    call = _asked_call(log, agent, chunk)
    if call is None:
        return
    if call.ended:
        log.broken("tool-start-open", chunk, f"a body begins for call {chunk.tool_call_id}, which was answered")
        return
    if why := _reason_not_to_begin(call):
        log.broken("body-permitted", chunk, f"a body begins for call {chunk.tool_call_id}, which {why}")
    elif chunk.arguments != _arguments(call):
        message = f"a body begins for call {chunk.tool_call_id} with other arguments than were asked for or approved"
        log.broken("body-arguments", chunk, message)
    attempt = 1 if chunk.attempt is None else chunk.attempt
    if attempt != call.attempt + 1:
        message = f"attempt {attempt} of call {chunk.tool_call_id} begins, expected {call.attempt + 1}"
        log.broken("attempt-number", chunk, message)
    if call.attempt and call.began_after == agent.owner.resumes:
        message = f"call {chunk.tool_call_id} begins again without a run_resume in between"
        log.broken("attempt-after-resume", chunk, message)
    call.attempt, call.began_after = attempt, agent.owner.resumes
    note_body(log, agent, call)


def _reason_not_to_begin(call: Call) -> str | None:
    if isinstance(call.asked.arguments, str):
        return "has no object as arguments"
    if call.request is not None and call.answer is None:
        return "waits for an answer"
    if call.request is not None and call.request.kind == "client_tool":
        return "runs on the client"
    decision = call.answer and call.answer.decision
    return f"was answered with {decision!r}" if decision in ("deny", "expired") else None


def _arguments(call: Call) -> object:
    edited = call.answer and call.answer.arguments
    return call.asked.arguments if edited is None else edited


def note_body(log: Log, agent: Agent, call: Call) -> None:
    key = (agent.agent_id, call.asked.tool_call_id)
    if call.attempt and not call.ended and not call.children:
        log.bodies.add(key)
    else:
        log.bodies.discard(key)


def call_ends(log: Log, agent: Agent, chunk: ToolEnd) -> None:
    call = _asked_call(log, agent, chunk)
    if call is None:
        return
    if call.ended:
        log.broken("tool-end-once", chunk, f"call {chunk.tool_call_id} of {agent.agent_id} is answered a second time")
        return
    if call.children:
        names = ", ".join(sorted(call.children))
        log.broken("children-ended", chunk, f"call {chunk.tool_call_id} is answered before its children end: {names}")
        _close_children(log, call)
    call.ended = True
    _answer_is_kept(log, call, chunk)
    log.pending.discard(_approval_id(agent, chunk.tool_call_id))
    note_body(log, agent, call)


def body_runs(log: Log, agent: Agent, chunk: Custom | ToolOutputDelta | StatePatch | ErrorChunk) -> None:
    if chunk.tool_call_id is None:
        return
    call = agent.calls.get(chunk.tool_call_id)
    if call is None or not call.attempt or call.ended:
        message = f"{chunk.type} of {agent.agent_id} comes from call {chunk.tool_call_id}, which does not run"
        log.broken("body-in-call", chunk, message)
    elif isinstance(chunk, ToolOutputDelta):
        _name_fits(log, call, chunk)


def _approval_id(agent: Agent, tool_call_id: str) -> str:
    return f"{agent.agent_id}/{tool_call_id}"


def approval_is_asked(log: Log, agent: Agent, chunk: ApprovalRequest) -> None:
    if chunk.approval_id != _approval_id(agent, chunk.tool_call_id):
        message = f"the approval of call {chunk.tool_call_id} of {agent.agent_id} has the id {chunk.approval_id!r}"
        log.broken("approval-id", chunk, message)
    call = _asked_call(log, agent, chunk)
    if call is None:
        return
    agent.requests[chunk.approval_id] = call
    if call.attempt or call.ended:
        message = f"approval of call {chunk.tool_call_id} is asked for after it began or was answered"
        log.broken("approval-before-body", chunk, message)
    elif call.request is not None:
        log.broken("approval-once", chunk, f"approval of call {chunk.tool_call_id} is asked for a second time")
    else:
        call.request = chunk
        log.pending.add(chunk.approval_id)
        if chunk.arguments != call.asked.arguments:
            message = f"approval of call {chunk.tool_call_id} is asked for with other arguments than the call's"
            log.broken("approval-arguments", chunk, message)


def approval_is_answered(log: Log, agent: Agent, chunk: ApprovalResponse) -> None:
    call = agent.requests.get(chunk.approval_id)
    if call is None:
        message = f"{agent.agent_id} has an answer to {chunk.approval_id!r}, which it did not ask"
        log.broken("approval-asked", chunk, message)
        return
    if call.answer is not None or call.ended:
        log.broken("approval-open", chunk, f"{chunk.approval_id!r} is answered after it was closed")
    elif call.attempt:
        log.broken("approval-before-body", chunk, f"{chunk.approval_id!r} is answered after the body began")
    elif call.request is not None and not _decision_fits(call.request, chunk):
        message = f"{chunk.approval_id!r} is of the kind {call.request.kind}, and the answer {chunk.decision!r}"
        log.broken("approval-decision", chunk, message)
    call.answer = call.answer or chunk
    log.pending.discard(chunk.approval_id)


def _decision_fits(request: ApprovalRequest, chunk: ApprovalResponse) -> bool:
    if chunk.arguments is not None and chunk.decision != "approve":
        return False
    wanted = {"approve": "approval", "result": "client_tool"}.get(chunk.decision, request.kind)
    return request.kind == wanted


def _answer_is_kept(log: Log, call: Call, chunk: ToolEnd) -> None:
    if call.answer is None or call.attempt:  # that a body began is told by another rule
        return
    fails = call.answer.decision in ("deny", "expired")
    gives = call.answer.decision == "result" and chunk.error is None and not chunk.truncated
    if (fails and chunk.error is None) or (gives and chunk.result != call.answer.result):
        message = f"call {chunk.tool_call_id} does not end as it was answered, with {call.answer.decision!r}"
        log.broken("approval-kept", chunk, message)


def _close_children(log: Log, call: Call) -> None:
    """Count children whose end is missing as ended, so that only that is told."""
    for child_id in call.children:
        settle(log.agents.get(child_id))
