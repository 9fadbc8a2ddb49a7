"""The stores: what a chunk costs to append and to tail, and how long it takes from a model to a reader elsewhere.

Two store objects, as two processes would have, in one event loop: a reader also waits for the writers' Python. Time,
not CPU: servers do their part elsewhere. A service that is not there is skipped, and the table says so.
"""

from __future__ import annotations

import math
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from benchmarks.table import Ratio, Row, Table, ratio
from helix import Agent, Executor
from helix.chunks import TextDelta
from helix.errors import StoreError
from helix.journal import BATCH_SECONDS
from helix.limits import Usage
from helix.model import Emit, ModelReply, ModelRequest
from helix.store import NewRun, Store, Write
from helix.stores import open_store
from helix.stores.sqlite import SqliteStore

POSTGRES = os.environ.get("HELIX_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
REDIS = os.environ.get("HELIX_TEST_REDIS", "redis://127.0.0.1:6379/0")
DURABLE = ("sqlite", "postgres", "redis")
STORES = ("memory", "sqlite", "sqlite (normal)", "postgres", "redis")
BATCH, SIZE, PRODUCERS, SECONDS = 10, 200, (1, 16), 0.5
RUNS, PACE, PACED_SECONDS = 16, 50, 2
_LINE = b'{"type":"text_delta","agentId":"run","agentType":"a","timestamp":1,"_sequence":1,"delta":"%s"}'
LINE = _LINE % (b"x" * (SIZE - len(_LINE) + 2))


@dataclass
class Pair:
    """A store to write to, and another one to read from, on the same data."""

    writer: Store
    reader: Store


Measure = Callable[[Pair], Awaitable[float]]


@dataclass
class Measured:
    """Medians by store and by what was measured, and what was skipped."""

    costs: dict[str, float] = field(default_factory=dict[str, float])
    notes: list[str] = field(default_factory=list[str])

    def names(self, measure: str) -> list[str]:
        """The stores that have it."""
        return [name.removesuffix(f", {measure}") for name in self.costs if name.endswith(f", {measure}")]


def measured(stores: Sequence[str], measures: Mapping[str, Measure], repeats: int) -> Measured:
    """Runs each measure on fresh data of each store; the stores take turns."""
    return anyio.run(_measured, stores, measures, repeats)


async def _measured(stores: Sequence[str], measures: Mapping[str, Measure], repeats: int) -> Measured:
    found, times = Measured(), dict[str, list[float]]()
    there = list(stores)
    with tempfile.TemporaryDirectory(dir=".") as directory:
        for _ in range(repeats):
            for name in tuple(there):
                try:
                    for what, measure in measures.items():
                        async with _opened(name, Path(directory)) as pair:
                            cost = await measure(pair)
                        times.setdefault(f"{name}, {what}", []).append(cost)
                except (StoreError, ImportError) as error:
                    there.remove(name)
                    found.notes.append(f"{name} is skipped: {error}")
    found.costs = {name: statistics.median(values) for name, values in times.items()}
    return found


@asynccontextmanager
async def _opened(name: str, directory: Path) -> AsyncGenerator[Pair]:
    """Two stores on fresh data, which is deleted afterwards."""
    tag = f"helix_bench_{secrets.token_hex(4)}"
    memory = open_store("memory:")
    makers: dict[str, Callable[[], Store]] = {
        "memory": lambda: memory,
        "sqlite": lambda: SqliteStore(directory / f"{tag}.db"),
        "sqlite (normal)": lambda: SqliteStore(directory / f"{tag}.db", synchronous="normal"),
        "postgres": lambda: open_store(f"{POSTGRES}?schema={tag}"),
        "redis": lambda: open_store(f"{REDIS}?prefix={tag}"),
    }
    async with makers[name]():  # else it is skipped, before anything is measured
        pass
    try:
        yield Pair(makers[name](), makers[name]())
    finally:
        async with makers[name]() as store:
            for run in await store.runs(limit=10_000):
                await store.delete(run.run_id)
        if name == "postgres":
            await _drop(tag)


async def _drop(schema: str) -> None:
    import psycopg  # not everybody has it
    from psycopg import sql

    async with await psycopg.AsyncConnection.connect(POSTGRES, autocommit=True) as connection:
        await connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


# --- throughput


def append(url: str, repeats: int) -> Table:
    """Batches of 10 chunks of 200 bytes, from 1 and from 16 producers, each with a run of its own."""
    del url
    return _throughput("append, batches of 10 chunks", repeats, tail=False)


def tail(url: str, repeats: int) -> Table:
    """The same, with a reader elsewhere that follows each run until it has its last chunk."""
    del url
    return _throughput("append and tail, a reader for each producer", repeats, tail=True)


def _throughput(title: str, repeats: int, *, tail: bool) -> Table:
    def by(producers: int) -> Measure:
        return lambda pair: _seconds_a_chunk(pair, producers, tail=tail)

    bound = None if tail else 1.5  # readers that fall behind catch up in larger pages: no measure of the store alone
    found = measured(STORES, {f"{number}": by(number) for number in PRODUCERS}, min(repeats, 3))
    costs, stores = found.costs, found.names("16")
    ratios = [ratio(f"{name}, 16 producers ÷ 1", costs, f"{name}, 16", f"{name}, 1", bound) for name in stores]
    ratios += [ratio(f"{name} ÷ memory, 16", costs, f"{name}, 16", "memory, 16") for name in stores[1:]]
    rows = [Row(f"{name} producers", cost * 1e6) for name, cost in costs.items()]
    return Table(title, "µs of time per chunk", rows, ratios, found.notes)


async def _seconds_a_chunk(pair: Pair, producers: int, *, tail: bool) -> float:
    """From the first append until the last reader has the last chunk, or until the last append."""
    sizes: list[int] = []

    async def one(run_id: str) -> None:
        last: list[int] = []
        async with anyio.create_task_group() as tasks:
            if tail:
                tasks.start_soon(_follow, pair.reader, run_id, last)
            last.append(await _append_for(pair.writer, run_id, SECONDS))
        sizes.extend(last)

    async with pair.writer, pair.reader:
        run_ids = [await _create(pair.writer) for _ in range(producers)]
        started = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for run_id in run_ids:
                tasks.start_soon(one, run_id)
        return (time.perf_counter() - started) / sum(sizes)


async def _create(store: Store) -> str:
    """A run with one chunk, whose lease has run out."""
    run = NewRun(secrets.token_hex(8), "bench")
    await store.create(run, [LINE], owner="bench", lease=0)
    return run.run_id


async def _append_for(store: Store, run_id: str, seconds: float) -> int:
    """Appends batches for so long; how many chunks the run has then."""
    end, after = time.perf_counter() + seconds, 1
    while time.perf_counter() < end:
        await store.append(Write(run_id, 1, after, [LINE] * BATCH, lease=0))
        after += BATCH
    return after


async def _follow(store: Store, run_id: str, last: Sequence[int]) -> None:
    """Reads a run as it grows, until it has the chunk of the number that is in `last` one day."""
    position = 0
    while not last or position < last[0]:
        found = await store.read(run_id, position)
        if found:
            position = found[-1][0]
        else:
            await store.wait(run_id, chunks_after=position, timeout=0.5)


# --- latency


def latency(url: str, repeats: int) -> Table:
    """From a model's word to a reader at another executor: 16 runs, 50 chunks a second each, written behind."""
    del url
    measures: dict[str, Measure] = {"p50": lambda pair: _latency(pair, 0.5), "p99": lambda pair: _latency(pair, 0.99)}
    found = measured(STORES, measures, min(repeats, 3))
    batches = [
        Ratio(f"{name} ÷ a batch of {BATCH_SECONDS * 1e3:g} ms", cost / BATCH_SECONDS)
        for name, cost in found.costs.items()
    ]
    rows = [Row(name, cost * 1e3) for name, cost in found.costs.items()]
    return Table("from a word to a reader elsewhere, 16 × 50 chunks a second", "ms", rows, batches, found.notes)


class _Paced:
    """A model that says what time it is, 50 times a second."""

    name = "paced"

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        begun = time.perf_counter()
        for number in range(PACE * PACED_SECONDS):
            await anyio.sleep(max(0.0, begun + number / PACE - time.perf_counter()))
            emit.text(f"{time.perf_counter_ns()}")
        return ModelReply("stop", Usage(requests=1))


async def _latency(pair: Pair, quantile: float) -> float:
    """Seconds that so many of the words did not exceed."""
    agent: Agent = Agent("a", model=_Paced())
    found: list[float] = []

    async def follow(number: int) -> None:
        await anyio.sleep(number / RUNS / PACE)  # not all at the same moment
        handle = await owner.execute(agent, "go")
        async for chunk in (await other.get_handle(handle.run_id)).stream():
            if isinstance(chunk, TextDelta):
                found.append((time.perf_counter_ns() - int(chunk.delta)) / 1e9)

    async with (
        Executor(store=pair.writer, agents=[agent]) as owner,
        Executor(store=pair.reader, agents=[agent]) as other,
        anyio.create_task_group() as tasks,
    ):
        for number in range(RUNS):
            tasks.start_soon(follow, number)
    assert len(found) == RUNS * PACE * PACED_SECONDS
    return sorted(found)[math.floor(len(found) * quantile)]
