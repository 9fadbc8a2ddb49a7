"""Asking first: a call that waits for a person's approval, or for a client's result.

Floor 3: above `call` and `steps`; the loop asks it before a body begins. Only the branch that asks waits here. The
answer comes through the log, whoever gave it: `owner.take` appends it and wakes the call.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal, TypeAlias, cast

import anyio
import anyio.to_thread

from helix import chunks as c
from helix.call import Delegate, ask_user_code
from helix.commands import Answer, Approve, ClientResult, Deny, Respond
from helix.endings import end_call
from helix.errors import HelixError
from helix.fold import CallNode
from helix.live import LiveAgent, OnApproval
from helix.log import now_ms
from helix.owner import take
from helix.steps import answered, describe, validated
from helix.tools import Tool

Verdict: TypeAlias = Literal["run", "answered", "parked"]


async def ask_first(live: LiveAgent, call: CallNode, tool: Tool[..., Any], delegate: Delegate) -> Verdict:
    """Gets the answer that a call needs: its body may run; or it is answered without one; or the run parks first."""
    if call.request is None and not await _request(live, call, tool, delegate):
        return "answered" if _now(live, call).ended else "run"
    if not await _answer(live, call):
        return "parked"
    call = _now(live, call)
    answer = cast(c.ApprovalResponse, call.answer)
    if answer.decision == "approve":
        return "run"
    log = live.run.log
    log.append(*end_call(log, live.node, call, **_ending(answer, tool)))
    return "answered"


def _now(live: LiveAgent, call: CallNode) -> CallNode:
    """The call as it is now: the fold may have been made anew meanwhile."""
    return live.node.calls[call.tool_call_id]


def _ending(answer: c.ApprovalResponse, tool: Tool[..., Any]) -> dict[str, Any]:
    if answer.decision == "result":
        return answered(answer.result, tool)
    if answer.decision == "deny":
        return {"error": f"denied: {answer.reason}" if answer.reason else "denied", "code": "tool_denied"}
    within = f"within {tool.approval_timeout:g} s" if tool.approval_timeout else "in time"
    if tool.runs_on == "client":
        return {"error": f"the client gave no result {within}", "code": "tool_timeout"}
    return {"error": f"nobody approved this {within}; nothing was run", "code": "tool_denied"}


# --- the request


async def _request(live: LiveAgent, call: CallNode, tool: Tool[..., Any], delegate: Delegate) -> bool:
    """Writes the request; False if there is no need for one, or the call has failed."""
    log, node = live.run.log, live.node
    arguments = validated(live, call, tool)
    if arguments is None:
        return False
    try:
        reason = await _reason(live, call, tool, arguments, delegate)
    except Exception as error:
        text = f"requires_approval of {tool.name}: {describe(error)}"
        log.append(*end_call(log, live.node, _now(live, call), error=text, code="tool_failed"))
        return False
    if reason is None:
        return False
    log.append(
        c.ApprovalRequest(
            node.agent_id,
            node.agent_type,
            f"{node.agent_id}/{call.tool_call_id}",
            call.tool_call_id,
            call.tool_name,
            cast(dict[str, Any], call.arguments),
            "client_tool" if tool.runs_on == "client" else "approval",
            reason=reason or None,
            deadline=None if tool.approval_timeout is None else now_ms() + round(tool.approval_timeout * 1000),
        )
    )
    return True


async def _reason(
    live: LiveAgent, call: CallNode, tool: Tool[..., Any], arguments: dict[str, Any], delegate: Delegate
) -> str | None:
    """Why somebody is to be asked, possibly an empty text; None: nobody is."""
    asks = tool.requires_approval
    if isinstance(asks, bool):
        return ""
    given = await ask_user_code(live, delegate, asks, arguments, tool_call_id=call.tool_call_id)
    if not isinstance(given, bool | str):  # a forgotten `return` must not let the call through
        raise TypeError(f"it must give a bool or a text, not {type(given).__name__}")
    return (c.clean_text(given) or None) if isinstance(given, str) else ("" if given else None)


# --- the answer


async def _answer(live: LiveAgent, call: CallNode) -> bool:
    """Waits until the request is answered or too old; False if the run parks first."""
    run, request, is_answered = live.run, cast(c.ApprovalRequest, _now(live, call).request), False
    if _now(live, call).answer is None and request.deadline is not None and request.deadline <= now_ms():
        _expire(live, request)
    if run.on_approval is None or _now(live, call).answer is not None:
        run.park_if_quiet()
        return await _wait(live, call)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_ask, live, request, run.on_approval)
        is_answered = await _wait(live, call)
        tasks.cancel_scope.cancel()
    return is_answered


async def _wait(live: LiveAgent, call: CallNode) -> bool:
    run, request = live.run, cast(c.ApprovalRequest, _now(live, call).request)
    try:
        while _now(live, call).answer is None:
            if live.stopping or run.ending:  # nobody goes on with it: a body that is cut here does not run twice
                return False
            run.waiting[request.approval_id] = anyio.Event()
            left = None if request.deadline is None else max(0, request.deadline - now_ms()) / 1000
            with anyio.move_on_after(left) as clock:
                await run.waiting[request.approval_id].wait()
            if clock.cancelled_caught and _now(live, call).answer is None:
                _expire(live, request)
    finally:
        run.waiting.pop(request.approval_id, None)
    return True


def _expire(live: LiveAgent, request: c.ApprovalRequest) -> None:
    ids = (request.agent_id, request.agent_type, request.approval_id)
    live.run.log.append(c.ApprovalResponse(*ids, "expired"))


async def _ask(live: LiveAgent, request: c.ApprovalRequest, function: OnApproval) -> None:
    """Asks `on_approval`. Whatever goes wrong in it is a denial."""
    try:
        answer = _as_answer(await _called(function, request), request)
        take(live.run.log, live.run, Respond("", request.approval_id, answer))
    except (Exception, SystemExit) as error:
        _deny(live, request, f"on_approval failed: {describe(error)}")
    except anyio.get_cancelled_exc_class():
        if anyio.current_effective_deadline() == float("-inf"):
            raise
        _deny(live, request, "on_approval was cancelled from inside")


def _deny(live: LiveAgent, request: c.ApprovalRequest, reason: str) -> None:
    try:
        take(live.run.log, live.run, Respond("", request.approval_id, Deny(reason)))
    except HelixError:
        pass  # somebody else has answered meanwhile


async def _called(on_approval: OnApproval, request: c.ApprovalRequest) -> Any:
    function = cast(Any, on_approval)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        return await function(request)
    # In a thread, because it may block while a person thinks; in a tuple, because trio refuses a thread's coroutine.
    (given,) = await anyio.to_thread.run_sync(lambda: (function(request),), abandon_on_cancel=True)
    return await given if inspect.isawaitable(given) else given


def _as_answer(given: Any, request: c.ApprovalRequest) -> Answer:
    if isinstance(given, bool):
        return Approve() if given else Deny()
    if not isinstance(given, Approve | Deny | ClientResult):
        raise TypeError(f"it must give Approve, Deny, ClientResult or a bool, not {type(given).__name__}")
    return given
