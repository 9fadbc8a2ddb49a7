"""Rule 5: children, announced and closed by the call that runs them. Above `calls` and `usage`, below the judge."""

from __future__ import annotations

from helix.chunks import SubagentEnd, SubagentStart
from helix.testing.check.calls import note_body
from helix.testing.check.log import Agent, Delegation, Log
from helix.testing.check.usage import same_usage, settle


def child_is_announced(log: Log, agent: Agent, chunk: SubagentStart) -> None:
    agent.delegations += 1
    expected = f"{agent.agent_id}.{chunk.sub_agent_type}-{agent.delegations}"
    if chunk.sub_agent_run_id != expected:
        message = f"delegation {agent.delegations} of {agent.agent_id} has the id {chunk.sub_agent_run_id}"
        log.broken("child-id", chunk, f"{message}, expected {expected}")
    if chunk.sub_agent_run_id in log.delegations:
        return
    call = agent.calls.get(chunk.call_id)
    if call is None or not call.attempt or call.ended:
        message = f"{chunk.sub_agent_run_id} begins in call {chunk.call_id} of {agent.agent_id}, which does not run"
        log.broken("child-in-call", chunk, message)
    else:
        call.children.add(chunk.sub_agent_run_id)
        note_body(log, agent, call)
    log.delegations[chunk.sub_agent_run_id] = Delegation(agent, chunk, call)


def child_is_closed(log: Log, agent: Agent, chunk: SubagentEnd) -> None:
    child_id = chunk.sub_agent_run_id
    delegation = log.delegations.get(child_id)
    if delegation is None or delegation.parent is not agent or delegation.ended:
        log.broken("child-end-known", chunk, f"subagent_end for {child_id}, no open child of {agent.agent_id}")
        return
    delegation.ended = True
    if (chunk.call_id, chunk.sub_agent_type) != (delegation.start.call_id, delegation.start.sub_agent_type):
        message = f"{child_id} ends as {chunk.sub_agent_type!r} of call {chunk.call_id}, it began as "
        message += f"{delegation.start.sub_agent_type!r} of call {delegation.start.call_id}"
        log.broken("child-end-matches", chunk, message)
    if delegation.call is not None:
        delegation.call.children.discard(child_id)
        note_body(log, agent, delegation.call)
    _child_end_fits(log, log.agents.get(child_id), chunk)


def _child_end_fits(log: Log, child: Agent | None, chunk: SubagentEnd) -> None:
    if child is None or child.end is None:
        log.broken("child-ended-first", chunk, f"{chunk.sub_agent_run_id} has a subagent_end before its run_end")
        settle(child)
        return
    if chunk.status != child.end.status:
        message = f"{child.agent_id} ended {child.end.status}, its subagent_end says {chunk.status}"
        log.broken("child-status", chunk, message)
    if not same_usage(chunk.usage, child.end.tree_usage):
        log.broken("child-usage", chunk, f"the subagent_end of {child.agent_id} has not the tree_usage of its run_end")
