"""Rule 6: pauses of the tree, and owners that come back. Above `log`, below the judge."""

from __future__ import annotations

from helix.chunks import RunPause, RunResume
from helix.testing.check.log import Agent, Log


def tree_pauses(log: Log, agent: Agent, chunk: RunPause) -> None:
    log.after_pause = log.parked = True
    if agent is not log.root:
        log.broken("pause-tagged-root", chunk, f"the run_pause is tagged with {agent.agent_id}, not with the root")
    if log.open_steps:
        log.broken("pause-no-step", chunk, f"the tree pauses in the steps of {', '.join(sorted(log.open_steps))}")
    if log.bodies:
        calls = ", ".join(sorted(f"{agent_id}/{call_id}" for agent_id, call_id in log.bodies))
        log.broken("pause-no-body", chunk, f"the tree pauses while calls run: {calls}")
    waiting_for = set(chunk.waiting_for or ())
    if closed := waiting_for - log.pending:
        log.broken("pause-waiting-for", chunk, f"the tree waits for what nobody asks: {', '.join(sorted(closed))}")
    if untold := log.pending - waiting_for:
        log.broken("pause-waiting-for", chunk, f"the tree waits, and does not say so, for {', '.join(sorted(untold))}")


def owner_resumes(log: Log, agent: Agent, chunk: RunResume) -> None:
    owner = agent.owner
    if agent.parent is not None and agent.parent.owner is owner:
        message = f"the run_resume is tagged with {agent.agent_id}, which has no owner of its own"
        log.broken("resume-tagged-owner", chunk, message)
    if chunk.epoch <= owner.epoch:
        log.broken("resume-epoch", chunk, f"the epoch {chunk.epoch} is not higher than {owner.epoch}")
    owner.epoch = chunk.epoch
    owner.resumes += 1
    if chunk.reason == "crash":  # the bodies went down with their process
        log.bodies = {(of, call_id) for of, call_id in log.bodies if log.agents[of].owner is not owner}
    owner.found_open = {found.agent_id for found in log.open_steps.values() if found.owner is owner}
    if log.root is not None and owner is log.root.owner:
        if chunk.reason == ("crash" if log.parked else "pause"):
            state = "parked" if log.parked else "not parked"
            log.broken("resume-reason", chunk, f"the run_resume says {chunk.reason!r}, and the tree was {state}")
        log.parked = False
