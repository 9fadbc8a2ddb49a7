"""The judge itself: which chunk is put to which checks, and the frame that every chunk is put to.

Above all of the checks; `find_violations` and `check_stream` are what users call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from helix.chunks import (
    ApprovalRequest,
    ApprovalResponse,
    Chunk,
    Control,
    Custom,
    ErrorChunk,
    MessageChunk,
    Output,
    OutputDelta,
    Resync,
    RunEnd,
    RunPause,
    RunResume,
    RunStart,
    StatePatch,
    StepEnd,
    StepStart,
    StreamEnd,
    SubagentEnd,
    SubagentStart,
    TextDelta,
    Thinking,
    ToolEnd,
    ToolInputDelta,
    ToolInputEnd,
    ToolInputStart,
    ToolOutputDelta,
    ToolStart,
    UnknownChunk,
)
from helix.testing.check.calls import (
    approval_is_answered,
    approval_is_asked,
    body_begins,
    body_runs,
    call_ends,
    calls_are_answered,
)
from helix.testing.check.children import child_is_announced, child_is_closed
from helix.testing.check.conversation import user_speaks
from helix.testing.check.documents import patch_applies
from helix.testing.check.lives import life_begins, life_ends
from helix.testing.check.log import Agent, Log, Owner
from helix.testing.check.outputs import code_is_known, no_output_yet, output_comes, output_was_given, stop_is_no_error
from helix.testing.check.pauses import owner_resumes, tree_pauses
from helix.testing.check.steps import step_begins, step_ends
from helix.testing.check.streamed import (
    input_begins,
    input_ends,
    input_is_written,
    output_is_written,
    text_is_written,
    thought_is_written,
)
from helix.testing.check.usage import usage_adds_up
from helix.testing.check.violations import GrammarError, Violation


def find_violations(chunks: Iterable[Chunk | Control], *, finished: bool = True, floor: int = 0) -> list[Violation]:
    """All places in which a log breaks the grammar, in the order in which they show; none for a legal log.

    The log is read once, in linear time, from its first chunk, and is not changed. Judging goes on behind a violation;
    what only follows from one is left out where that can be known. Chunks of unknown types may stand anywhere between
    the root's run_start and its run_end. What readers make themselves (`StreamEnd`, `Resync`) is passed over.

    Args:
        chunks: the log, or its beginning.
        finished: False judges the beginning of a log: runs, steps and calls may be open at its end.
        floor: of a trimmed log: deltas up to that number may be missing. What is left of them has to fit all the same.
    """
    log = Log(floor=floor)
    for chunk in chunks:
        if not isinstance(chunk, StreamEnd | Resync):
            _judge(log, chunk)
    _judge_end(log, finished)
    return log.violations


def check_stream(chunks: Iterable[Chunk | Control], *, finished: bool = True, floor: int = 0) -> None:
    """Assert that a log keeps the grammar; see `find_violations`.

    Raises:
        GrammarError: it does not; `violations` has all the places.
    """
    if violations := find_violations(chunks, finished=finished, floor=floor):
        raise GrammarError(violations)


def _judge(log: Log, chunk: Chunk) -> None:
    _fields_fit(log, chunk)
    if log.root is not None and log.root.end is not None:
        log.broken("root-end-last", chunk, f"{chunk.type} of {chunk.agent_id} comes after the root's run_end")
        return
    if isinstance(chunk, UnknownChunk):
        if log.root is None:
            log.broken("run-start-first", chunk, f"the log begins with a chunk of the unknown type {chunk.wire_type}")
        return
    _pause_is_over(log, chunk)
    agent = _agent_of(log, chunk)
    if agent.end is not None:
        log.broken("run-end-last", chunk, f"{chunk.type} of {agent.agent_id} comes after the agent's run_end")
        return
    _agent_may_write(log, agent, chunk)
    _open_steps_were_abandoned(log, agent, chunk)
    for check in _CHECKS[type(chunk)]:
        check(log, agent, chunk)


def _judge_end(log: Log, finished: bool) -> None:
    if not finished and (log.root is None or log.root.end is None):
        return
    for agent in log.agents.values():
        if agent.end is None:
            message = f"{agent.agent_id} has no run_end"
            log.violations.append(Violation(2, "run-end-missing", log.sequence, message))
    if not log.agents:
        log.violations.append(Violation(2, "run-end-missing", log.sequence, "the log is empty"))


def _fields_fit(log: Log, chunk: Chunk) -> None:
    expected = log.sequence + 1
    if chunk.sequence != expected and not expected < chunk.sequence <= log.floor + 1:
        log.broken("sequence-dense", chunk, f"the chunk has the number {chunk.sequence}, expected {expected}")
    log.sequence = chunk.sequence
    timestamp: object = chunk.timestamp
    if not isinstance(timestamp, int) or isinstance(timestamp, bool) or timestamp < 0:
        log.broken("timestamp", chunk, f"the timestamp {timestamp!r} is not an integer of milliseconds from 0")


def _pause_is_over(log: Log, chunk: Chunk) -> None:
    if log.after_pause and not isinstance(chunk, RunResume):
        log.broken("pause-then-resume", chunk, f"{chunk.type} of {chunk.agent_id} comes right after a run_pause")
        log.parked = False
    log.after_pause = False


def _agent_of(log: Log, chunk: Chunk) -> Agent:
    agent = log.agents.get(chunk.agent_id)
    if agent is None:
        agent = log.agents[chunk.agent_id] = _new_agent(log, chunk)
        log.root = log.root or agent
        if not _NAME.fullmatch(chunk.agent_type):
            log.broken("agent-name", chunk, f"{chunk.agent_type!r} is not an agent's name")
        if not isinstance(chunk, RunStart):
            log.broken("run-start-first", chunk, f"{agent.agent_id} begins with {chunk.type}, not with run_start")
    return agent


_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def _new_agent(log: Log, chunk: Chunk) -> Agent:
    delegation = log.delegations.get(chunk.agent_id)
    parent = delegation.parent if delegation else log.agents.get(chunk.agent_id.rpartition(".")[0])
    elsewhere = delegation is not None and delegation.start.placement not in (None, "inline")
    owner = Owner() if parent is None or elsewhere else parent.owner
    return Agent(chunk.agent_id, chunk.agent_type, parent, owner)


def _agent_may_write(log: Log, agent: Agent, chunk: Chunk) -> None:
    if chunk.agent_type != agent.agent_type:
        message = f"{agent.agent_id} is called {chunk.agent_type!r} here, and {agent.agent_type!r} before"
        log.broken("agent-type-constant", chunk, message)
    if agent.cut and not isinstance(chunk, ToolEnd | SubagentEnd | ErrorChunk | RunEnd | RunResume):
        log.broken("cut-last", chunk, f"{chunk.type} of {agent.agent_id} comes after its step was cut")
        agent.cut = False


def _open_steps_were_abandoned(log: Log, agent: Agent, chunk: Chunk) -> None:
    left = agent.owner.found_open
    if not left or isinstance(chunk, RunResume):
        return
    if isinstance(chunk, StepEnd) and chunk.outcome == "abandoned" and chunk.agent_id in left:
        left.discard(chunk.agent_id)
        return
    names = ", ".join(sorted(left))
    message = f"{chunk.type} of {agent.agent_id} comes before the steps that the run_resume found open end: {names}"
    log.broken("resume-abandons", chunk, message)
    left.clear()


# Which chunk is put to which check, in this order

_Check = Callable[[Log, Agent, Any], None]

_CHECKS: dict[type[Any], tuple[_Check, ...]] = {
    RunStart: (life_begins,),
    RunEnd: (calls_are_answered, life_ends, usage_adds_up, output_was_given, code_is_known, stop_is_no_error),
    RunPause: (tree_pauses,),
    RunResume: (owner_resumes,),
    StepStart: (calls_are_answered, no_output_yet, step_begins),
    StepEnd: (step_ends,),
    TextDelta: (text_is_written,),
    OutputDelta: (output_is_written,),
    Thinking: (thought_is_written,),
    ToolInputStart: (input_begins,),
    ToolInputDelta: (input_is_written,),
    ToolInputEnd: (input_ends,),
    ToolStart: (body_begins,),
    ToolOutputDelta: (body_runs,),
    Custom: (body_runs,),
    StatePatch: (body_runs, patch_applies),
    ErrorChunk: (body_runs, code_is_known),
    ToolEnd: (call_ends, code_is_known),
    ApprovalRequest: (approval_is_asked,),
    ApprovalResponse: (approval_is_answered,),
    SubagentStart: (child_is_announced,),
    SubagentEnd: (child_is_closed,),
    Output: (output_comes,),
    MessageChunk: (user_speaks,),
}
