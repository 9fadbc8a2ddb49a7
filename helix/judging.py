"""Judging what is to be an agent's output: by its type, then by the agent's validators.

Floor 3: above `live`, `call` and `endings`; the loop appends what comes of it. What is not valid is told to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from helix import chunks as c
from helix.agent import OUTPUT_TOOL
from helix.call import Delegate, ask_user_code
from helix.endings import end_call
from helix.errors import ModelRetry
from helix.fold import CallNode
from helix.live import LiveAgent
from helix.messages import UserMessage
from helix.parts import as_words
from helix.schema import is_json

_CUT = "The reply was cut off, because it had as many tokens as it may. Be shorter."


async def judge_text(live: LiveAgent, text: str, delegate: Delegate) -> c.Chunk:
    """The output that the model's words are, or what it is told of them."""
    schema = live.agent.output_schema
    try:
        return await _output(live, lambda: schema.validate_text(text) if schema.structured else text, delegate)
    except ModelRetry as error:
        if not schema.structured:
            return _feedback(live, str(error))
        again = f"Give it again, by calling {OUTPUT_TOOL} or as JSON."
        return _feedback(live, f"That is not a valid final result.\n{error}\n{again}")


async def judge_results(live: LiveAgent, calls: Sequence[CallNode], delegate: Delegate) -> c.Chunk:
    """The output that the first valid result of these calls is, or what the model is told of them all."""
    problems: list[str] = []
    for call in calls:
        try:
            return await _output(live, partial(_result_of, live, call), delegate)
        except ModelRetry as error:
            problems.append(f"The result of {call.tool_name} is not a valid final result.\n{error}")
    return _feedback(live, "\n".join(problems))


def _result_of(live: LiveAgent, call: CallNode) -> Any:
    schema, result = live.agent.output_schema, call.result
    if not schema.structured:
        return as_words(call.content)
    try:
        return schema.validate(result)
    except ValueError:
        if isinstance(result, str) and is_json(result):
            return schema.validate_text(result)
        raise


async def judge_call(live: LiveAgent, call: CallNode, delegate: Delegate) -> None:
    """Answers a call of the output tool. Of several in a step the first valid one counts."""
    log, node, schema, given = live.run.log, live.node, live.agent.output_schema, call.arguments
    if node.has_output:
        log.append(*end_call(log, node, call, "The final result was given already."))
        return
    try:
        load = partial(schema.validate_text, given) if isinstance(given, str) else partial(schema.validate, given)
        output = await _output(live, load, delegate)
    except ModelRetry as error:
        log.append(*end_call(log, live.node, call, error=str(error), code="output_invalid"))
    else:
        log.append(output, *end_call(log, live.node, call, "This is the final result."))


async def _output(live: LiveAgent, load: Callable[[], Any], delegate: Delegate) -> c.Output:
    """What `load` gives, as the output; the validated object is kept for the result.

    Raises:
        ModelRetry: it is not valid; the message is meant for the model.
    """
    node = live.node
    with _told_to_model(node.finish_reason):
        output = load()
    for validator in live.agent.output_validators:
        changed = await ask_user_code(live, delegate, validator, output)
        output = output if changed is None else live.agent.output_schema.check(changed)
    with _told_to_model(node.finish_reason):
        value = live.agent.output_schema.to_json(output)
    live.run.outputs[live.agent_id] = output
    return c.Output(node.agent_id, node.agent_type, value)


@contextmanager
def _told_to_model(finish_reason: c.FinishReason | None) -> Generator[None]:
    try:
        yield
    except ValueError as error:
        raise ModelRetry(f"{error}\n{_CUT}" if finish_reason == "length" else str(error)) from None


def _feedback(live: LiveAgent, why: str) -> c.MessageChunk:
    return c.MessageChunk(live.node.agent_id, live.node.agent_type, UserMessage(why), "feedback")
