"""Rule 10: outputs and errors. Above `log`, below the judge."""

from __future__ import annotations

from helix.chunks import ERROR_CODES, ErrorChunk, Output, RunEnd, StepStart, ToolEnd
from helix.testing.check.log import Agent, Log


def output_comes(log: Log, agent: Agent, chunk: Output) -> None:
    if agent.output:
        log.broken("output-once", chunk, f"{agent.agent_id} has a second output")
    if agent.step is not None:
        log.broken("output-after-steps", chunk, f"{agent.agent_id} has its output while its step is open")
    agent.output = True


def no_output_yet(log: Log, agent: Agent, chunk: StepStart) -> None:
    if agent.output:
        log.broken("output-after-steps", chunk, f"{agent.agent_id} begins step {chunk.step} after its output")


def output_was_given(log: Log, agent: Agent, chunk: RunEnd) -> None:
    if chunk.status == "completed" and chunk.finish_reason == "output" and not agent.output:
        log.broken("output-required", chunk, f"{agent.agent_id} completed with an output and has none")


def code_is_known(log: Log, agent: Agent, chunk: ErrorChunk | ToolEnd | RunEnd) -> None:
    code: str | None = chunk.code if isinstance(chunk, ErrorChunk) else chunk.error_code
    if code is not None and code not in ERROR_CODES:
        log.broken("error-code", chunk, f"{chunk.type} of {agent.agent_id} has the code {code!r}, which is none")
    if isinstance(chunk, ErrorChunk) and code == "cancelled":
        log.cancel_errors.append(chunk)


def stop_is_no_error(log: Log, agent: Agent, chunk: RunEnd) -> None:
    if agent is log.root and chunk.status == "cancelled":
        for error in log.cancel_errors:
            message = f"{error.agent_id} has an error for what was a stop by the caller"
            log.broken("cancel-no-error", error, message)
