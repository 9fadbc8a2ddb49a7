"""Rule 3, its outer half: how steps begin, count and end. Above `streamed` and `calls`, below the judge."""

from __future__ import annotations

from helix.chunks import StepEnd, StepStart
from helix.testing.check.calls import calls_open
from helix.testing.check.log import Agent, Log, Step
from helix.testing.check.streamed import message_is_what_was_streamed


def step_begins(log: Log, agent: Agent, chunk: StepStart) -> None:
    if agent.step is not None:
        message = f"step {chunk.step} of {agent.agent_id} begins while step {agent.step.number} is open"
        log.broken("step-overlap", chunk, message)
    elif (chunk.step, chunk.attempt) != agent.expects:
        name, expected = _step_name(chunk.step, chunk.attempt), _step_name(*agent.expects)
        log.broken("step-number", chunk, f"{agent.agent_id} begins {name}, expected {expected}")
    agent.step = Step(chunk.step, chunk.attempt, trimmed=chunk.sequence <= log.floor)
    agent.stray = False
    log.open_steps[agent.agent_id] = agent


def _step_name(step: int, attempt: int) -> str:
    return f"step {step} attempt {attempt}"


def step_ends(log: Log, agent: Agent, chunk: StepEnd) -> None:
    step, expects = agent.step, (chunk.step, chunk.attempt + 1) if chunk.outcome == "abandoned" else (chunk.step + 1, 1)
    name = f"{_step_name(chunk.step, chunk.attempt)} of {agent.agent_id}"
    if step is None:
        log.broken("step-end-opened", chunk, f"{name} ends and is not open")
        if expects == agent.expects:  # the same step_end a second time: it counts for nothing
            return
    elif (chunk.step, chunk.attempt) != (step.number, step.attempt):
        message = f"{name} ends while {_step_name(step.number, step.attempt)} is open"
        log.broken("step-end-matches", chunk, message)
    agent.step, agent.expects = None, expects
    log.open_steps.pop(agent.agent_id, None)
    agent.usage += chunk.usage
    agent.cut = chunk.outcome == "cut"
    _outcome_fits(log, chunk, name)
    if step is not None and chunk.outcome != "abandoned":
        message_is_what_was_streamed(log, step, chunk)
    if chunk.outcome == "committed":
        agent.committed += 1
        calls_open(log, agent, chunk)


def _outcome_fits(log: Log, chunk: StepEnd, name: str) -> None:
    message = chunk.message
    if chunk.outcome == "committed" and (message is None or message.cut):
        log.broken("committed-message", chunk, f"{name} is committed without a message, or with a cut one")
    if chunk.outcome == "abandoned" and message is not None:
        log.broken("abandoned-message", chunk, f"{name} is abandoned and has a message")
    if chunk.outcome == "cut" and message is not None:
        if message.tool_calls:
            log.broken("cut-message", chunk, f"{name} is cut and asks for {len(message.tool_calls)} calls")
        if not message.cut:
            log.broken("cut-marked", chunk, f"{name} is cut and its message is not marked as cut")
