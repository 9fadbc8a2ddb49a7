"""The two steps that touch the world: asking the model, and running a tool's body.

Floor 3: above `live`, `reply`, `call` and `endings`; the loop decides when they are taken. Each appends what came of
it; neither raises for what models and tools do wrong.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, cast

import anyio
import anyio.to_thread
from pydantic_core import to_json

from helix import chunks as c
from helix.call import Delegate, LiveCall
from helix.decide import Ask
from helix.endings import end_call
from helix.errors import LimitReached, ModelError, ModelRetry
from helix.fold import CallNode
from helix.limits import Usage
from helix.live import LiveAgent
from helix.model import Choice, ChoosingModel, Model, ModelReply, ModelRequest, ModelSettings
from helix.parts import as_words
from helix.reply import Reply
from helix.tools import Tool

DEFAULT_RETRIES = 2
DEFAULT_RETRY_DELAY = 0.5
MAX_RETRY_DELAY = 8.0
MAX_RETRY_AFTER = 3600.0
"""Seconds; a server that asks for more is asked after that all the same."""


async def call_model(live: LiveAgent, ask: Ask, instructions: str) -> float:
    """One model call: `step_start` … `step_end`. Returns the seconds to wait before it is tried again.

    Nothing is awaited between the call of this and its `step_start`, which is the reservation under the limits.
    """
    log, node, output = live.run.log, live.node, live.agent.output_definition
    step, attempt = ask.step, ask.attempt
    failures = tuple(node.failed_attempts)
    choice = _choose(live.model, failures, attempt)
    log.append(c.StepStart(node.agent_id, node.agent_type, step, attempt, choice.model.name, ask.reserve))
    reply = Reply(log.append, node.agent_id, node.agent_type, output, node.call_ids)
    request = ModelRequest(
        agent_id=node.agent_id,
        agent_type=node.agent_type,
        step=step,
        attempt=attempt,
        instructions=instructions,
        messages=node.messages.snapshot(),
        tools=live.definitions,
        output=output,
        settings=live.agent.settings,
        force_output=ask.force_output,
        failures=failures,
    )
    try:
        answer = await _ask_in_turn(live, choice.model, request, reply)
        message, reason = reply.finish(), answer.finish_reason
    except ModelError as error:
        return _abandon(live, request, choice, error)
    finally:
        reply.close()
    usage = live.run.prices.priced(node.asked, answer.usage)
    log.append(c.StepEnd(node.agent_id, node.agent_type, step, attempt, "committed", usage, message, reason))
    return 0


def _choose(model: Model, failures: Sequence[str], attempt: int) -> Choice:
    if hasattr(model, "choose"):  # isinstance would look at each member of the protocol
        return cast(ChoosingModel, model).choose(failures, attempt)
    return Choice(model, attempt - 1)


async def _ask_in_turn(live: LiveAgent, model: Model, request: ModelRequest, reply: Reply) -> ModelReply:
    """Asks once the provider's gate lets it through."""
    gate = live.run.gates.of(model)
    if gate is None:
        return await _ask(model, request, reply)

    def waits() -> None:
        told = {"model": model.name, "max_concurrency": gate.limits.max_concurrency}
        live.run.log.append(c.Custom(request.agent_id, request.agent_type, "waiting_for_model", told))

    return await gate.through(lambda: _ask(model, request, reply), waits)


async def _ask(model: Model, request: ModelRequest, reply: Reply) -> ModelReply:
    timeout = None if getattr(model, "keeps_timeout", False) else request.settings.timeout
    try:
        if timeout is None:
            return await model.respond(request, reply)
        with anyio.fail_after(timeout):
            return await model.respond(request, reply)
    except ModelError:
        raise
    except TimeoutError as error:
        text = f"the model did not answer within {timeout:g} s" if timeout else describe(error)
        raise ModelError("model_unavailable", text, retryable=True) from None
    except Exception as error:
        raise _Broken(describe(error)) from error


class _Broken(ModelError):
    """What a model raised that is no `ModelError`; whoever reads it has to know whose it is."""

    def __init__(self, message: str) -> None:
        super().__init__("internal", message)


def _abandon(live: LiveAgent, request: ModelRequest, choice: Choice, error: ModelError) -> float:
    node, settings = live.node, request.settings
    code = cast(c.ErrorCode, error.code if error.code in c.ERROR_CODES else "internal")
    following = choice.following if code in choice.on else None
    retries = DEFAULT_RETRIES if settings.max_retries is None else settings.max_retries
    again = following is not None or (error.retryable and choice.retries < retries)
    named = choice.model is not live.model or isinstance(error, _Broken)
    text = f"{choice.model.name}: {error.message}" if named else error.message
    if following is not None:
        text = f"{text.rstrip('.')}; next: {following.name}"
    usage = live.run.prices.priced(node.asked, error.usage or Usage(requests=1))
    live.run.log.append(
        c.ErrorChunk(node.agent_id, node.agent_type, text, code, again, detail=error.detail),
        c.StepEnd(node.agent_id, node.agent_type, request.step, request.attempt, "abandoned", usage, reason=code),
    )
    return _wait(choice.retries, error, settings) if again and following is None else 0


def _wait(retries: int, error: ModelError, settings: ModelSettings) -> float:
    """Seconds before the next retry; `retries` have been made."""
    if error.retry_after is not None:
        return min(error.retry_after, MAX_RETRY_AFTER)
    first = DEFAULT_RETRY_DELAY if settings.retry_delay is None else settings.retry_delay
    return min(first * 2**retries, MAX_RETRY_DELAY) * random.uniform(0.5, 1)


def validated(live: LiveAgent, call: CallNode, tool: Tool[..., Any]) -> dict[str, Any] | None:
    """The arguments of a call as its tool takes them; None if they do not fit, and the call has ended with that."""
    try:
        return tool.validate(cast(dict[str, Any], call.arguments))
    except ValueError as error:
        live.run.log.append(*end_call(live.run.log, live.node, call, error=str(error), code="tool_invalid_arguments"))
        return None


async def run_tool(live: LiveAgent, call: CallNode, tool: Tool[..., Any], delegate: Delegate) -> bool:
    """Runs a tool's body: `tool_start` … `tool_end`. False if it parked under a child; then there is no `tool_end`.

    The arguments are those of the call; if they do not fit, the body does not begin.
    """
    log, node = live.run.log, live.node
    arguments = validated(live, call, tool)
    if arguments is None:
        return True
    attempt = call.attempt + 1
    log.append(
        c.ToolStart(
            node.agent_id,
            node.agent_type,
            call.tool_call_id,
            call.tool_name,
            cast(dict[str, Any], call.arguments),
            attempt=attempt if attempt > 1 else None,
        )
    )
    if log.kept is not None:  # after a crash nobody may believe that the body has not begun
        await log.kept.barrier()
    host = LiveCall(live, call.tool_call_id, delegate, parkable=live.parkable and tool.replay == "safe")
    try:
        ending = await _body(host, tool, arguments)
    finally:
        await host.stop_children()
    if host.parked:
        return False
    log.append(*end_call(log, live.node, call, **ending))
    return True


async def _body(host: LiveCall, tool: Tool[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Runs the body within its bounds; returns how the call ends, as arguments of `end_call`."""
    try:
        with host.scope, anyio.move_on_after(tool.timeout) as clock:
            host.deadline = anyio.current_effective_deadline()
            try:
                return answered(await _call(host, tool, arguments), tool)
            except ModelRetry as error:
                return {"error": str(error) or "try again", "code": "tool_failed"}
            except LimitReached as error:
                return {"error": str(error), "code": error.code}
            except (Exception, SystemExit) as error:
                return {"error": describe(error), "code": "tool_failed"}
            except anyio.get_cancelled_exc_class():
                if anyio.current_effective_deadline() == float("-inf"):
                    raise
                return {"error": "the tool was cancelled from inside", "code": "tool_failed"}
    finally:
        host.close()
    if clock.cancelled_caught:
        return {"error": f"the tool did not finish within {tool.timeout:g} s", "code": "tool_timeout"}
    return {}


async def _call(host: LiveCall, tool: Tool[..., Any], arguments: dict[str, Any]) -> Any:
    function = cast(Any, tool.function)
    given = (host.context,) if tool.takes_context else ()
    if _is(inspect.isasyncgenfunction, function):
        return await _drain(host, function(*given, **arguments))
    if _is(inspect.iscoroutinefunction, function):
        return await function(*given, **arguments)

    def in_thread() -> tuple[Any]:  # in a tuple, because trio refuses a thread that returns a coroutine
        value = function(*given, **arguments)
        return (_drain_sync(host, value) if inspect.isgenerator(value) else value,)

    (value,) = await anyio.to_thread.run_sync(in_thread, abandon_on_cancel=True)
    return await value if inspect.isawaitable(value) else value


def _is(test: Any, function: Any) -> bool:
    return test(function) or test(getattr(function, "func", None)) or test(getattr(function, "__call__", None))  # noqa: B004


async def _drain(host: LiveCall, pieces: AsyncIterator[Any]) -> str:
    texts: list[str] = []
    try:
        async for piece in pieces:
            host.write(_text(piece), "text")
            texts.append(piece)
    finally:
        with anyio.CancelScope(shield=True):
            await cast(Any, pieces).aclose()
    return "".join(texts)


def _drain_sync(host: LiveCall, pieces: Iterator[Any]) -> str:
    texts: list[str] = []
    for piece in pieces:
        host.write(_text(piece), "text")
        texts.append(piece)
    return "".join(texts)


def _text(piece: Any) -> str:
    if not isinstance(piece, str):
        raise TypeError(f"a generator tool yields texts, not {type(piece).__name__}; use ctx.emit for other data")
    return piece


def answered(result: Any, tool: Tool[..., Any]) -> dict[str, Any]:
    """A result as arguments of `end_call`: in its JSON form, its words cut if they are too long."""
    content = c.to_content(result, where="result")
    if content is not None:
        parts = [_cut(part, tool) if isinstance(part, str) else part for part in content]
        return {"result": as_words(parts), "content": parts, "truncated": parts != content}
    value = c.to_json_value(result, where="result")
    text = value if isinstance(value, str) else to_json(value).decode()
    kept = _cut(text, tool)
    return {"result": value} if kept is text else {"result": kept, "truncated": True}


def _cut(text: str, tool: Tool[..., Any]) -> str:
    """The text, without its end if it is too long."""
    data = text.encode()
    if len(data) <= tool.max_result_bytes:
        return text
    kept = data[: tool.max_result_bytes].decode(errors="ignore")
    return f"{kept}\n[cut: {len(data)} bytes, {tool.max_result_bytes} kept]"


def describe(error: BaseException) -> str:
    """An exception as one sentence for a model and a user: its kind and its text, of a group the first of them."""
    while isinstance(error, BaseExceptionGroup):
        error = cast(BaseExceptionGroup[BaseException], error).exceptions[0]
    try:
        text = c.clean_text(str(error))
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
