"""The beginning of a run as the beginning of another one.

Floor 3: above `chunks`, below the executor. Pure: chunks in, chunks out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from helix.chunks import Chunk, Output, RunEnd, RunPause, RunStart, StepStart
from helix.errors import UsageError

_IDS = ("agent_id", "parent_id", "state_id", "sub_agent_run_id", "approval_id")


def forked(chunks: Iterable[Chunk], run_id: str, new_id: str, step: int, session_id: str) -> list[Chunk]:
    """What had happened before the root's model call number `step`, as the log of another run.

    That is a quiet moment by construction: every call of the steps before has been answered, so no other agent is at
    work. The numbers begin at 1 again; the times are those of the first run.

    Args:
        chunks: the run's log, deltas included.
        run_id: its id.
        new_id: the other run's id.
        step: from 1; one more than the run has had gives all of it, without its end.
        session_id: the other run's session.

    Raises:
        UsageError: the root has had no such step, and is not about to begin it.
    """
    taken: list[Chunk] = []
    steps = 0
    for chunk in chunks:
        if chunk.agent_id == run_id:
            if isinstance(chunk, StepStart):
                steps = chunk.step
                if chunk.step == step:
                    return taken
            if isinstance(chunk, Output | RunEnd):
                break
        taken.append(_moved(chunk, run_id, new_id, len(taken) + 1, session_id))
    if step == steps + 1:
        return taken
    raise UsageError(f"run {run_id} has had {steps} steps; it can be forked before step 1 to {steps + 1}, not {step}")


def _moved(chunk: Chunk, run_id: str, new_id: str, sequence: int, session_id: str) -> Chunk:
    """The chunk with the ids of the other run."""
    names = {field.name for field in fields(chunk)}
    changes: dict[str, Any] = {"sequence": sequence}
    for name in _IDS:
        value = getattr(chunk, name) if name in names else None
        if isinstance(value, str) and (value == run_id or value.startswith((f"{run_id}.", f"{run_id}/"))):
            changes[name] = new_id + value[len(run_id) :]
    if isinstance(chunk, RunPause) and chunk.waiting_for:
        changes["waiting_for"] = [new_id + each[len(run_id) :] for each in chunk.waiting_for]
    if isinstance(chunk, RunStart) and chunk.parent_id is None:
        changes["session_id"] = session_id
    return replace(chunk, **changes)
