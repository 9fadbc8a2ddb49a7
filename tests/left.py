"""Runs as a dead process has left them in a store."""

from __future__ import annotations

from collections.abc import Sequence

from helix import chunk_to_json
from helix.chunks import Chunk
from helix.fold import fold
from helix.store import NewRun, Store, Write


async def leave(store: Store, chunks: Sequence[Chunk]) -> None:
    """A run of which only these chunks are kept, and whose owner is dead."""
    lines, tree = [chunk_to_json(chunk) for chunk in chunks], fold(chunks)
    await store.create(NewRun(tree.root_id, tree.root.agent_type, tree.root.session_id), lines, owner="dead", lease=0)
    if tree.status != "running":
        await store.append(Write(tree.root_id, 1, len(lines), status=tree.status))
