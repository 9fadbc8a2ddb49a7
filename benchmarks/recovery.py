"""Taking over a run that somebody has left: its structure is read from the store, its deltas are not."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from benchmarks.table import Row, Table, ratio
from helix import chunks as c
from helix.chunks import Resync, chunk_to_json, parse_chunk
from helix.fold import RunTree, fold
from helix.journal import Journal
from helix.limits import Usage
from helix.log import RunLog
from helix.messages import AssistantMessage, TextPart, UserMessage
from helix.store import NewRun, Store
from helix.stores.sqlite import SqliteStore

STEPS, DELTAS = 1000, 20
RUN = "run"


def recovery(url: str, repeats: int) -> Table:
    """A claim with all that a new owner has to know, and the same from every chunk."""
    del url
    with tempfile.TemporaryDirectory(dir=".") as directory:
        costs = anyio.run(_measure, Path(directory) / "runs.db", repeats)
    return Table(
        f"taking over {STEPS:,} steps with {DELTAS} deltas each, SQLite",
        "ms",
        [Row(name, cost * 1e3) for name, cost in costs.items()],
        [ratio("recovery ÷ everything", costs, "recovery (deltas not read)", "everything read", 0.5)],
    )


async def _measure(path: Path, repeats: int) -> dict[str, float]:
    async with SqliteStore(path) as store:
        lines = [chunk_to_json(chunk) for chunk in _log().chunks]
        await store.create(NewRun(RUN, "a"), lines, owner="dead", lease=0)
        contenders: dict[str, Callable[[Store], Awaitable[RunTree]]] = {
            "recovery (deltas not read)": _recover,
            "everything read": _read_all,
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(repeats):
            for name, contender in contenders.items():
                started = time.perf_counter()
                tree = await contender(store)
                times[name].append(time.perf_counter() - started)
                assert tree.root.steps == STEPS
    return {name: statistics.median(values) for name, values in times.items()}


async def _recover(store: Store) -> RunTree:
    log = RunLog(RUN)
    await Journal(store, log, "new", lease=0).claim()
    return log.tree


async def _read_all(store: Store) -> RunTree:
    chunks: list[c.Chunk] = []
    while page := await store.read(RUN, len(chunks), limit=1000):
        chunks += [chunk for _, line in page if not isinstance(chunk := parse_chunk(line), Resync | c.StreamEnd)]
    return fold(chunks)


def _log() -> RunLog:
    log, ids = RunLog(RUN), (RUN, "a")
    log.append(c.RunStart(*ids, [UserMessage("go")], "m", None))
    for step in range(1, STEPS + 1):
        log.append(c.StepStart(*ids, step, 1, "m"))
        for _ in range(DELTAS):
            log.append(c.TextDelta(*ids, "some words "))
        message = AssistantMessage([TextPart("some words " * DELTAS)])
        log.append(c.StepEnd(*ids, step, 1, "committed", Usage(requests=1), message, "stop"))
    return log
