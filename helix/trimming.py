"""Trimming: which deltas of a kept log may be dropped, and the snapshot that stands for them.

Floor 2: above `fold` and `store`. Deltas are pieces of what a later chunk holds whole, so what a run is stays the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta

from helix import chunks as c
from helix.errors import UnknownRun
from helix.fold import RunTree
from helix.nodes import AgentNode, CallNode
from helix.store import ENDED, RunRecord, Store

_PAGE = 1000


async def trim_run(store: Store, run_id: str) -> int:
    """Drops a run's deltas, but for those of model calls and tools that are still at work; says how many.

    Raises:
        UnknownRun, StoreError: see `Store.trim`.
    """
    return await _trim(store, await store.get(run_id))


async def trim_ended(store: Store, older_than: timedelta) -> int:
    """Drops the deltas of every run that ended so long ago; says how many.

    Raises:
        StoreError: the store cannot be read or written.
    """
    due = time.time_ns() // 1_000_000 - older_than // timedelta(milliseconds=1)
    dropped, before = 0, None
    while records := await _older(store, before):
        for record in records:
            if record.updated_at <= due and record.floor < record.last_sequence:
                dropped += await _trim_if_there(store, record)
        before = records[-1].run_id
    return dropped


async def _older(store: Store, before: str | None) -> list[RunRecord]:
    """A page of runs that have ended; the first one, if the run to go on behind is deleted in this moment."""
    try:
        return await store.runs(statuses=ENDED, limit=_PAGE, before=before)
    except UnknownRun:
        return await store.runs(statuses=ENDED, limit=_PAGE)


async def _trim_if_there(store: Store, record: RunRecord) -> int:
    try:
        return await _trim(store, record)
    except UnknownRun:  # deleted in this moment
        return 0


async def _trim(store: Store, record: RunRecord) -> int:
    last = record.last_sequence
    if record.status not in ENDED:
        last = settled_up_to(await read_structure(store, record.run_id, last), last)
    return await store.trim(record.run_id, last)


async def read_structure(store: Store, run_id: str, up_to: int | None = None) -> list[c.Chunk]:
    """The chunks of a run that are no deltas, in order; those up to a number, or all.

    Raises:
        UnknownRun, StoreError: see `Store.read`.
    """
    chunks: list[c.Chunk] = []
    offset = 0
    while page := await store.read(run_id, offset, limit=_PAGE, deltas=False):
        offset = page[-1][0]
        chunks += [chunk_of(line) for number, line in page if up_to is None or number <= up_to]
        if up_to is not None and offset >= up_to:
            break
    return chunks


def chunk_of(line: bytes) -> c.Chunk:
    """A chunk from its line in a store, which keeps no control messages."""
    chunk = c.parse_chunk(line)
    assert not isinstance(chunk, c.Resync | c.StreamEnd)
    return chunk


def settled_up_to(structure: Iterable[c.Chunk], last: int) -> int:
    """The number up to which no delta belongs to a model call or a tool that is still at work; at most `last`.

    A tool that delegates counts as long as it has not begun to: what is below it may take days.
    """
    at_work: dict[tuple[str, str | None], int] = {}
    for chunk in structure:
        match chunk:
            case c.StepStart():
                at_work[chunk.agent_id, None] = chunk.sequence
            case c.StepEnd():
                at_work.pop((chunk.agent_id, None), None)
            case c.ToolStart():
                at_work[chunk.agent_id, chunk.tool_call_id] = chunk.sequence
            case c.ToolEnd():
                at_work.pop((chunk.agent_id, chunk.tool_call_id), None)
            case c.SubagentStart():
                at_work.pop((chunk.agent_id, chunk.call_id), None)
            case _:
                pass
    return min(at_work.values(), default=last + 1) - 1


# --- what stands for them


def snapshot(tree: RunTree) -> c.Snapshot:
    """What a `resync` gives: the run, folded up to its floor."""
    agents = {node.agent_id: _agent(node) for node in tree.agents.values()}
    return c.Snapshot(status=tree.status, agents=agents, requests=tree.pending)


def _agent(node: AgentNode) -> c.AgentSnapshot:
    shared = node.state_id != node.agent_id
    return c.AgentSnapshot(
        agent_type=node.agent_type,
        status=node.status,
        model=node.model,
        state=None if shared else node.state,
        state_id=node.state_id if shared else None,
        parent_id=node.parent.agent_id if node.parent else None,
        call_id=node.call_id,
        messages=list(node.messages),
        inbox=list(node.inbox),
        calls=[_call(call) for call in node.calls.values()],
        children=list(node.children),
        usage=node.usage,
        output=node.output if node.has_output else None,
        error=node.error,
        error_code=node.error_code,
    )


def _call(call: CallNode) -> c.CallSnapshot:
    return c.CallSnapshot(
        tool_call_id=call.tool_call_id,
        tool_name=call.tool_name,
        arguments=call.arguments,
        attempt=call.attempt,
        ended=call.ended,
        result=call.result,
        error=call.error,
        error_code=call.error_code,
        content=call.parts,
    )
