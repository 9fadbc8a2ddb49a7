"""Rule 3, its inner half: what the model writes inside a step, and that it is what the step's message has.

Above `log`, below `steps` and the judge.
"""

from __future__ import annotations

import json
from typing import Any, cast

from helix.chunks import Chunk, OutputDelta, StepEnd, TextDelta, Thinking, ToolInputDelta, ToolInputEnd, ToolInputStart
from helix.messages import AssistantMessage, RefusalPart, TextPart, ToolCall
from helix.testing.check.log import Agent, Input, Log, Step, is_as_streamed


def message_is_what_was_streamed(log: Log, step: Step, chunk: StepEnd) -> None:
    message = chunk.message or AssistantMessage()
    if chunk.outcome == "cut":  # what was being written of an output call is void, of a native output it is text
        unwritten, streamed = [], step.words if _said(message) == "".join(step.words) else step.text
    else:
        unwritten = [call for call in message.tool_calls if call.tool_call_id not in step.inputs]
        streamed = step.text if unwritten else step.words
        _inputs_are_calls(log, step, chunk, message)
        _unwritten_call_is_the_output(log, step, chunk, unwritten)
    if not is_as_streamed(step, streamed, _said(message)):
        name = "output-joined" if step.output and not unwritten else "text-joined"
        log.broken(name, chunk, _parting("words", "".join(streamed), _said(message)))
    _thinking_is_what_was_streamed(log, step, chunk, message)


def _said(message: AssistantMessage) -> str:
    return "".join(part.text for part in message.content if isinstance(part, TextPart | RefusalPart))


def _parting(what: str, streamed: str, final: str) -> str:
    shorter = min(len(streamed), len(final))
    at = next((index for index in range(shorter) if streamed[index] != final[index]), shorter)
    return f"the {what} part at character {at}: streamed {streamed[at : at + 30]!r}, in the end {final[at : at + 30]!r}"


def _thinking_is_what_was_streamed(log: Log, step: Step, chunk: StepEnd, message: AssistantMessage) -> None:
    if chunk.outcome == "cut" and not message.thinking:  # unfinished thinking need not be kept: providers refuse it
        return
    if not is_as_streamed(step, step.thinking, message.thinking):
        log.broken("thinking-joined", chunk, _parting("thoughts", "".join(step.thinking), message.thinking))


def _inputs_are_calls(log: Log, step: Step, chunk: StepEnd, message: AssistantMessage) -> None:
    asked = {call.tool_call_id: call for call in message.tool_calls}
    for call_id, written in step.inputs.items():
        call = asked.get(call_id)
        if written.arguments is None:
            log.broken("tool-input-ended", chunk, f"the step commits and call {call_id} is not written to its end")
        elif call is None:
            log.broken("tool-input-asked", chunk, f"call {call_id} was written and is not in the step's message")
        elif (call.tool_name, call.arguments) != (written.tool_name, written.arguments):
            as_written, as_asked = f"{written.tool_name}({written.arguments})", f"{call.tool_name}({call.arguments})"
            log.broken("tool-input-message", chunk, f"call {call_id} was written as {as_written}, not {as_asked}")


def _unwritten_call_is_the_output(log: Log, step: Step, chunk: StepEnd, unwritten: list[ToolCall]) -> None:
    """One call may have come as output deltas: that of the output tool."""
    text = "".join(step.output)
    for index, call in enumerate(unwritten):
        if index == 0 and step.trimmed:
            continue
        if index > 0 or (not text and call.arguments not in ({}, "")):
            log.broken("call-streamed", chunk, f"call {call.tool_call_id} is in the message and was not streamed")
        elif call.arguments != _parsed(text):
            message = f"the output deltas {text[:60]!r} are not the arguments of call {call.tool_call_id}"
            log.broken("output-joined", chunk, message)


def _parsed(text: str) -> dict[str, Any] | str:
    """The arguments that a text means: an object, or the text itself when it is none; nothing means `{}`."""
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # refuses what has no form on the wire
    except (ValueError, RecursionError):
        return text
    return cast(dict[str, Any], value) if isinstance(value, dict) else text


def _open_step(log: Log, agent: Agent, chunk: Chunk) -> Step | None:
    if agent.step is None and not agent.stray:
        agent.stray = True
        log.broken("delta-in-step", chunk, f"{chunk.type} of {agent.agent_id} comes while none of its steps is open")
    return agent.step


def text_is_written(log: Log, agent: Agent, chunk: TextDelta) -> None:
    if step := _open_step(log, agent, chunk):
        step.text.append(chunk.delta)
        step.words.append(chunk.delta)


def output_is_written(log: Log, agent: Agent, chunk: OutputDelta) -> None:
    if step := _open_step(log, agent, chunk):
        step.output.append(chunk.delta)
        step.words.append(chunk.delta)


def thought_is_written(log: Log, agent: Agent, chunk: Thinking) -> None:
    step = _open_step(log, agent, chunk)
    if step is None:
        return
    if not chunk.is_complete:
        step.pieces.append(chunk.content)
        step.thinking.append(chunk.content)
        return
    if not step.pieces:
        step.thinking.append(chunk.content)
    elif not is_as_streamed(step, step.pieces, chunk.content):
        log.broken("thinking-complete", chunk, _parting("thoughts", "".join(step.pieces), chunk.content))
    step.pieces = []


def input_begins(log: Log, agent: Agent, chunk: ToolInputStart) -> None:
    step = _open_step(log, agent, chunk)
    if step is None:
        return
    if chunk.tool_call_id in step.inputs:
        log.broken("input-id-unique", chunk, f"call {chunk.tool_call_id} is begun a second time in one step")
    else:
        step.inputs[chunk.tool_call_id] = Input(chunk.tool_name)


def _open_input(log: Log, agent: Agent, chunk: ToolInputDelta | ToolInputEnd) -> Input | None:
    step = _open_step(log, agent, chunk)
    if step is None:
        return None
    written = step.inputs.get(chunk.tool_call_id)
    if written is None or written.arguments is not None:
        state = "has not begun" if written is None else "was written to its end"
        log.broken("tool-input-order", chunk, f"{chunk.type} for call {chunk.tool_call_id}, which {state}")
        return None
    return written


def input_is_written(log: Log, agent: Agent, chunk: ToolInputDelta) -> None:
    if written := _open_input(log, agent, chunk):
        written.deltas.append(chunk.delta)


def input_ends(log: Log, agent: Agent, chunk: ToolInputEnd) -> None:
    if written := _open_input(log, agent, chunk):
        written.arguments = chunk.arguments
        text, trimmed = "".join(written.deltas), agent.step is not None and agent.step.trimmed
        if not trimmed and _parsed(text) != chunk.arguments:
            message = f"call {chunk.tool_call_id} was written as {text[:60]!r}, which is not {chunk.arguments!r}"
            log.broken("tool-input-joined", chunk, message)
