"""The root's task: it owns the run's log, runs the root to its end or rest, and lets go of the log.

Floor 4: above `loop`, `owner` and `shelf`; the executor starts one for each run.
"""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import Any

import anyio

from helix import chunks as c
from helix.endings import end_agent
from helix.fold import RunTree
from helix.inputs import messages_of
from helix.limits import MAX_CRASHES
from helix.live import LiveAgent
from helix.log import RunLog
from helix.loop import run_agent
from helix.owner import end_cancelled_branches, pause, resumption, take
from helix.shelf import journal_of


def resumes(log: RunLog, input: Any) -> bool:
    """Writes what a new owner writes first; False if the run has ended by that."""
    if log.tree.ended:
        return False
    log.append(*resumption(log.tree), *steering(log.tree, input))
    if log.tree.crashes < MAX_CRASHES:
        return True
    text = f"its owner was lost {MAX_CRASHES} times, and nothing had been done in between"
    log.append(*end_agent(log, log.tree.root, "failed", error=text, code="recovery_limit"))
    return False


def steering(tree: RunTree, input: Any) -> list[c.Chunk]:
    """What is said to the root when a run goes on; nothing for None."""
    if input is None:
        return []
    root = tree.root
    return [c.MessageChunk(root.agent_id, root.agent_type, message, "steering") for message in messages_of(input)]


def run_root(live: LiveAgent) -> Coroutine[Any, Any, None]:
    """Runs the root. It returns, it does not raise; only its own cancellation goes through it."""
    return _run(live) if live.run.log.kept is None else _own(live)


async def _own(live: LiveAgent) -> None:
    """Runs the root with its log kept as it goes; stops without a trace if another owner has taken the run."""
    log, run = live.run.log, live.run
    journal, scope = journal_of(log), anyio.CancelScope()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(journal.keep, scope.cancel)
            tasks.start_soon(journal.listen, partial(take, log, run))
            with scope:
                await _run(live)
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await give_up(log)
            if journal.lost is not None:
                await journal.load_if_possible()


async def _run(live: LiveAgent) -> None:
    log = live.run.log
    try:
        if log.kept is not None:  # else a run that kills each owner at once would do so for ever: nobody could count it
            await log.kept.barrier()
        if not await run_agent(live):
            end_cancelled_branches(live.run)
            if live.run.ending:
                log.append(*end_agent(log, live.node, "cancelled"))
            elif not log.tree.ended:
                log.append(pause(log.tree, "suspended" if live.run.parking else "interrupted"))
    finally:
        try:
            if not log.tree.at_rest:  # cancelled from outside: the tasks below have unwound, and said nothing
                log.append(*end_agent(log, live.node, "cancelled"))
        finally:
            log.leave()


async def read_mail(log: RunLog) -> None:
    """Takes what was said to a parked run, and nobody has read."""
    if log.kept is not None and log.tree.at_rest:
        await journal_of(log).take_posts(partial(take, log, None))


async def give_up(log: RunLog) -> None:
    """Nobody here writes the run any more; what was appended is kept."""
    if log.kept is not None:
        await journal_of(log).finish()
