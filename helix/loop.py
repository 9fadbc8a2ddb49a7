"""The loop: decide, do it, repeat, for one agent; its calls and its children are nested tasks of the same loop.

Floor 4: above `decide` and `steps`; the executor runs it for the root. A resumed run goes through the same loop: it
decides from the fold, which does not care which process wrote the log. A task returns, it does not raise: `False` means
parked.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, cast

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from helix import chunks as c
from helix.agent import Agent, AgentTool
from helix.approvals import ask_first
from helix.call import ask_user_code
from helix.context import Runnable
from helix.decide import Action, Answer, Ask, End, Finish, Judge, Park, Wait, decide
from helix.endings import end_agent, end_call
from helix.errors import LimitReached, did_you_mean
from helix.fold import AgentNode, CallNode
from helix.judging import judge_call, judge_results, judge_text
from helix.limits import NO_LIMITS, Limits
from helix.live import LiveAgent, result_of
from helix.log import now_ms
from helix.messages import UserMessage
from helix.results import RunResult
from helix.steps import call_model, describe, run_tool
from helix.tools import Tool

logger = logging.getLogger("helix")


async def run_agent(live: LiveAgent) -> bool:
    """Runs an agent until it has ended (True) or is parked (False), and writes its end whatever happens.

    Only a cancellation from outside leaves it open: then whoever is cancelled above it writes the end.
    """
    run = live.run
    run.at_work[live.agent_id] = live
    scope = run.scopes[live.agent_id] = anyio.CancelScope(deadline=_deadline(live))
    if live.agent_id in run.cancelled:
        scope.cancel()
    try:
        with scope:
            try:
                return await _turns(live)
            except anyio.get_cancelled_exc_class() as error:
                if anyio.current_effective_deadline() == -math.inf:
                    raise
                _fail(live, error)  # nobody cancelled it: something that it awaited was cancelled
            except Exception as error:
                _fail(live, error)
            return True
    finally:
        del run.scopes[live.agent_id], run.at_work[live.agent_id]
    _cut(live)
    return True


def _fail(live: LiveAgent, error: BaseException) -> None:
    logger.error("helix: agent %s failed", live.agent_id, exc_info=error)
    text = f"internal error: {describe(error)}"
    live.run.log.append(*end_agent(live.run.log, live.node, "failed", error=text, code="internal"))


def _cut(live: LiveAgent) -> None:
    """Writes the end of an agent whose own scope was cancelled: by a caller, or by its time limit."""
    if live.node.ended:
        return
    log, seconds = live.run.log, live.node.bounds.seconds
    if live.agent_id in live.run.cancelled:
        log.append(*end_agent(log, live.node, "cancelled"))
    else:
        text = f"the limit of {seconds:g} s is reached"
        log.append(*end_agent(log, live.node, "failed", error=text, code="limit_time"))


def _deadline(live: LiveAgent) -> float:
    seconds = live.node.bounds.seconds
    if seconds is None:
        return float("inf")
    return anyio.current_time() + seconds - live.run.tree.elapsed_ms(live.node, now_ms()) / 1000


async def _turns(live: LiveAgent) -> bool:
    run = live.run
    while True:
        await checkpoint_if_cancelled()
        action = _decide(live)
        match action:
            case Answer(calls):
                if not await _answer(live, calls):
                    return False
            case Ask():
                await _ask(live, action)
            case Judge() | Finish():
                await _conclude(live, action)
            case Wait():
                await run.log.room()
            case Park():
                return False
            case End(status, error, code):
                run.log.append(*end_agent(run.log, live.node, status, error=error, code=code))
                return True


def _decide(live: LiveAgent) -> Action:
    return decide(live.node, live.agent, tools=live.tools, stopping=live.stopping, price=live.price)


async def _ask(live: LiveAgent, action: Ask) -> None:
    instructions = live.agent.instructions
    if not isinstance(instructions, str):
        instructions = await _instructions(live, instructions)
        if _decide(live) != action:
            return  # it awaited, and a limit or a stop came in between
    delay = await call_model(live, action, instructions)
    if delay:
        with anyio.move_on_after(delay):
            await (live.run.stop.wait() if live.parkable else anyio.sleep_forever())


async def _instructions(live: LiveAgent, function: Any) -> str:
    text = await ask_user_code(live, DELEGATE, function)
    if not isinstance(text, str):
        raise TypeError(f"instructions must give a text, not {type(text).__name__}")
    return text


async def _conclude(live: LiveAgent, action: Judge | Finish) -> None:
    """Ends the run with the output that the model or a tool gave, or tells the model why that is none."""
    match action:
        case Judge(text):
            verdict = await judge_text(live, text, DELEGATE)
        case Finish(calls):
            verdict = await judge_results(live, calls, DELEGATE)
    if _decide(live) == action:
        live.run.log.append(verdict)  # else a validator awaited, and something was said to the agent


# --- answering calls


async def _answer(live: LiveAgent, calls: Sequence[CallNode]) -> bool:
    """Answers the calls of a step, all at once; False if one of them is parked."""
    output_calls = [call for call in calls if live.is_output(call)]
    others = [call for call in calls if call not in output_calls]
    _refuse_surplus(live, others)
    others = [call for call in others if not call.ended]
    if any(live.is_sequential(call) for call in others):
        for call in others:
            if not await _answer_one(live, call):
                return False
        done = [True]
    elif len(others) == 1:
        done = [await _answer_one(live, others[0])]
    else:
        done = await _answer_together(live, others)
    if not all(done):
        return False
    for call in output_calls:
        await judge_call(live, call, DELEGATE)
    return True


async def _answer_together(live: LiveAgent, calls: Sequence[CallNode]) -> list[bool]:
    done: list[bool] = []

    async def one(call: CallNode) -> None:
        done.append(await _answer_one(live, call))
        live.run.park_if_quiet()

    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(one, call)
    return done


async def _answer_one(live: LiveAgent, call: CallNode) -> bool:
    tool = live.tools.get(call.tool_name)
    problem = _cannot_run(live, call, tool)
    if problem is not None:
        live.run.log.append(*end_call(live.run.log, live.node, call, error=problem[1], code=problem[0]))
        return True
    known = cast(Tool[..., Any], tool)
    if known.asks and not call.attempt:
        verdict = await ask_first(live, call, known, DELEGATE)
        if verdict != "run":
            return verdict == "answered"
        call = live.node.calls[call.tool_call_id]
    if isinstance(tool, AgentTool):
        return await _delegate(live, call, tool)
    return await run_tool(live, call, known, DELEGATE)


def _cannot_run(live: LiveAgent, call: CallNode, tool: Tool[..., Any] | None) -> tuple[str, str] | None:
    if tool is None:
        known = ", ".join(live.tools) or "none"
        near = did_you_mean(call.tool_name, live.tools)
        return "tool_unknown", f"there is no tool {call.tool_name!r}.{near} The tools are: {known}"
    if isinstance(call.arguments, str):
        return "tool_invalid_arguments", "the arguments are not a JSON object; nothing was run"
    if call.attempt and tool.replay != "safe" and not isinstance(tool, AgentTool):
        return "tool_outcome_unknown", "the process stopped while this tool ran; it may or may not have had its effect"
    return None


def _refuse_surplus(live: LiveAgent, calls: Sequence[CallNode]) -> None:
    limit, log = live.node.limits.fan_out, live.run.log
    for call in calls[limit:] if limit is not None else ():
        if not call.attempt:
            text = f"only {limit} calls are allowed in one step; this one was not run"
            log.append(*end_call(log, live.node, call, error=text, code="limit_fan_out"))


# --- delegating


async def _delegate(live: LiveAgent, call: CallNode, tool: AgentTool) -> bool:
    """A sub-agent's call: its body is the child's run."""
    log = live.run.log
    try:
        child = _begin_or_go_on(live, call, tool)
    except ValueError as error:
        log.append(*end_call(log, live.node, call, error=str(error), code="tool_invalid_arguments"))
        return True
    except LimitReached as error:
        log.append(*end_call(log, live.node, call, error=str(error), code=error.code))
        return True
    except Exception as error:  # of the user's own: prompt=
        log.append(*end_call(log, live.node, call, error=describe(error), code="tool_failed"))
        return True
    ended = True
    with anyio.move_on_after(tool.timeout) as clock:
        ended = child.node.ended or await run_agent(child)
    if clock.cancelled_caught:
        text = f"the agent did not finish within {tool.timeout:g} s"
        log.append(*end_call(log, live.node, call, error=text, code="tool_timeout"))
        return True
    if ended:
        log.append(*_answer_of(live, call, child.node))
    return ended


def _begin_or_go_on(live: LiveAgent, call: CallNode, tool: AgentTool) -> LiveAgent:
    begun = live.run.tree.child_of(call)
    if begun:
        return DELEGATE.again(live, begun[-1].agent_id, tool.agent, parkable=live.parkable)
    arguments = cast(dict[str, Any], call.arguments)
    node = live.node
    start = c.ToolStart(node.agent_id, node.agent_type, call.tool_call_id, call.tool_name, arguments)
    return DELEGATE.start(
        live,
        call.tool_call_id,
        tool.agent,
        UserMessage(tool.message(arguments)),
        before=() if call.attempt else (start,),
        share_state=tool.share_state,
        limits=tool.limits,
        parkable=live.parkable,
    )


def _answer_of(live: LiveAgent, call: CallNode, child: AgentNode) -> Any:
    if child.status == "completed":
        return end_call(live.run.log, live.node, call, child.result)
    text = f"{child.agent_type} {child.status}" + (f": {child.error}" if child.error else "")
    code = "cancelled" if child.status == "cancelled" else "subagent_failed"
    return end_call(live.run.log, live.node, call, error=text, code=code)


class _Delegate:
    """Children, for the floor below; see `helix.call.Delegate`."""

    def start(
        self,
        live: LiveAgent,
        call_id: str,
        agent: Runnable[Any, Any],
        message: UserMessage,
        *,
        before: tuple[c.Chunk, ...] = (),
        share_state: bool = False,
        limits: Limits | None = None,
        key: str | None = None,
        parkable: bool,
    ) -> LiveAgent:
        node, definition = live.node, cast(Agent[Any, Any, Any], agent)
        depth = node.limits.depth
        if depth is not None and node.depth + 1 > depth:
            raise LimitReached("limit_depth", f"the limit of {depth} levels of delegation is reached")
        child_id = f"{node.agent_id}.{definition.name}-{len(node.children) + 1}"
        model = _model_of(live, definition)
        bounds = (limits or NO_LIMITS).over(definition.limits or NO_LIMITS)
        start = c.RunStart(
            child_id,
            definition.name,
            [message],
            model.name,
            c.to_json_value(live.run.tree.document(node.agent_id))
            if share_state
            else definition.state_schema.initial(None),
            session_id=node.session_id,
            parent_id=node.agent_id,
            state_id=node.state_id if share_state else None,
            limits=bounds.given() or None,
            key=key,
        )
        announced = c.SubagentStart(node.agent_id, node.agent_type, definition.name, child_id, call_id)
        live.run.log.append(*before, announced, start)
        return LiveAgent(live.run, child_id, definition, model, parkable)

    def again(self, live: LiveAgent, child_id: str, agent: Runnable[Any, Any], *, parkable: bool) -> LiveAgent:
        definition = cast(Agent[Any, Any, Any], agent)
        return LiveAgent(live.run, child_id, definition, _model_of(live, definition), parkable)

    async def run(self, child: LiveAgent) -> bool:
        return child.node.ended or await run_agent(child)

    def result(self, child: LiveAgent) -> RunResult[Any, Any]:
        return result_of(child.agent, child.run.tree, child.agent_id, child.run.outputs)


DELEGATE = _Delegate()


def _model_of(live: LiveAgent, agent: Agent[Any, Any, Any]) -> Any:
    run = live.run
    return run.model or (live.model if agent.model is None else run.resolve(agent.model))
