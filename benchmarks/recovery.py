"""Taking over a run that somebody has left: its structure is read from the store, its deltas are not."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from benchmarks.stores import DURABLE, Measure, Pair, measured
from benchmarks.table import Row, Table, ratio
from helix import chunks as c
from helix.chunks import Resync, chunk_to_json, parse_chunk
from helix.fold import RunTree, fold
from helix.journal import Journal
from helix.limits import Usage
from helix.log import RunLog
from helix.messages import AssistantMessage, TextPart, UserMessage
from helix.store import NewRun, Store

STEPS, DELTAS = 1000, 20
RUN = "run"


def recovery(url: str, repeats: int) -> Table:
    """A claim with all that a new owner has to know, and the same from every chunk; on each durable store."""
    del url
    lines = [chunk_to_json(chunk) for chunk in _log().chunks]

    def timed(contender: Callable[[Store], Awaitable[RunTree]]) -> Measure:
        async def measure(pair: Pair) -> float:
            async with pair.writer, pair.reader:
                await pair.writer.create(NewRun(RUN, "a"), lines, owner="dead", lease=0)
                started = time.perf_counter()
                tree = await contender(pair.reader)
                taken = time.perf_counter() - started
            assert tree.root.steps == STEPS
            return taken

        return measure

    measures = {"without deltas": timed(_recover), "everything": timed(_read_all)}
    found = measured(DURABLE, measures, min(repeats, 3))
    return Table(
        f"taking over {STEPS:,} steps with {DELTAS} deltas each",
        "ms",
        [Row(name, cost * 1e3) for name, cost in found.costs.items()],
        [
            ratio(f"{name}, recovery ÷ everything", found.costs, f"{name}, without deltas", f"{name}, everything", 0.5)
            for name in found.names("everything")
        ],
        found.notes,
    )


async def _recover(store: Store) -> RunTree:
    log = RunLog(RUN)
    await Journal(store, log, "new", lease=0).claim()
    assert len(list(log.structure)) == 1 + 2 * STEPS  # no delta was read
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
