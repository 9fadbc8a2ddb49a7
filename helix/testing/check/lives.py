"""Rule 2, and the fields of a run_start: an agent's life from its run_start to its run_end.

Above `documents` and `conversation`, which judge what a run_start brings along; below the judge.
"""

from __future__ import annotations

from helix.chunks import RunEnd, RunStart
from helix.testing.check.calls import calls_of
from helix.testing.check.conversation import history_is_settled
from helix.testing.check.documents import document_begins
from helix.testing.check.log import Agent, Log


def life_begins(log: Log, agent: Agent, chunk: RunStart) -> None:
    if agent.started:
        log.broken("run-start-once", chunk, f"{agent.agent_id} has a second run_start")
        return
    agent.started = True
    if agent is log.root:
        _root_begins(log, chunk)
    else:
        _child_begins(log, agent, chunk)
    document_begins(log, agent, chunk)
    history_is_settled(log, chunk)
    messages = (chunk.history or []) + chunk.input
    agent.asked.update(call.tool_call_id for message in messages for call in calls_of(message))


def _root_begins(log: Log, chunk: RunStart) -> None:
    if not chunk.agent_id or "." in chunk.agent_id:
        log.broken("root-id", chunk, f"the root's id {chunk.agent_id!r} is empty or has a dot")
    if chunk.protocol is None or chunk.options is None or chunk.parent_id is not None:
        message = f"the run_start of the root {chunk.agent_id} lacks protocol or options, or has a parent_id"
        log.broken("root-fields", chunk, message)


def _child_begins(log: Log, agent: Agent, chunk: RunStart) -> None:
    delegation = log.delegations.get(agent.agent_id)
    if chunk.protocol is not None or chunk.options is not None or chunk.history is not None:
        log.broken("root-fields", chunk, f"{agent.agent_id} is not the root and has protocol, options or history")
    if delegation is None and chunk.parent_id is None:
        log.broken("one-root", chunk, f"{agent.agent_id} has no parent, and the log has a root")
    elif delegation is None:
        log.broken("child-announced", chunk, f"no subagent_start came before the run_start of {agent.agent_id}")
    elif (chunk.parent_id, chunk.agent_type) != (delegation.parent.agent_id, delegation.start.sub_agent_type):
        message = f"{agent.agent_id} is {chunk.agent_type!r} of {chunk.parent_id}, but its subagent_start says "
        message += f"{delegation.start.sub_agent_type!r} of {delegation.parent.agent_id}"
        log.broken("child-start-matches", chunk, message)


def life_ends(log: Log, agent: Agent, chunk: RunEnd) -> None:
    agent.end = chunk
    if agent.step is not None:
        log.broken("step-ended", chunk, f"step {agent.step.number} of {agent.agent_id} is open at its run_end")
        log.open_steps.pop(agent.agent_id)
    problem = (chunk.error, chunk.error_code)
    if (chunk.status == "failed" and None in problem) or (chunk.status == "completed" and problem != (None, None)):
        message = f"the {chunk.status} run_end of {agent.agent_id} has error {chunk.error!r}, code {chunk.error_code!r}"
        log.broken("run-end-error", chunk, message)
