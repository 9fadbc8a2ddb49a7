"""How fast the stores are: `python -m benchmarks.stores [memory] [sqlite] [postgres] [redis] [--seconds 3]`.

Batches of 10 chunks of 200 bytes, from 1 and from 16 producers, each with a run of its own; the same with a reader that
follows each run from a second store object, as another process would; and how long a chunk takes to such a reader at
16 × 50 chunks a second, each appended by itself. All in one event loop: a reader also waits for the writers' Python.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import psycopg
from psycopg import sql

from helix.store import NewRun, Store, Write
from helix.stores import open_store
from helix.stores.sqlite import SqliteStore

POSTGRES = os.environ.get("HELIX_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
REDIS = os.environ.get("HELIX_TEST_REDIS", "redis://127.0.0.1:6379/0")
BATCH, SIZE, PRODUCERS = 10, 200, (1, 16)
CHUNK = b'{"type":"text_delta","agentId":"run","agentType":"a","timestamp":1,"_sequence":1,"delta":"%s"}'
LINE = CHUNK % (b"x" * (SIZE - len(CHUNK) + 2))


@dataclass
class Pair:
    """A store to write to, and another one to read from, on the same data."""

    writer: Store
    reader: Store


@asynccontextmanager
async def opened(name: str, directory: Path) -> AsyncGenerator[Pair]:
    """Two stores on fresh data, which is deleted afterwards (but for the file)."""
    tag = f"helix_bench_{secrets.token_hex(4)}"
    memory = open_store("memory:")
    makers: dict[str, Callable[[], Store]] = {
        "memory": lambda: memory,
        "sqlite": lambda: SqliteStore(directory / f"{tag}.db"),
        "sqlite (normal)": lambda: SqliteStore(directory / f"{tag}.db", synchronous="normal"),
        "postgres": lambda: open_store(f"{POSTGRES}?schema={tag}"),
        "redis": lambda: open_store(f"{REDIS}?prefix={tag}"),
    }
    async with makers[name]() as writer, makers[name]() as reader:
        try:
            yield Pair(writer, reader)
        finally:
            for run in await writer.runs(limit=10_000):
                await writer.delete(run.run_id)
    if name == "postgres":
        async with await psycopg.AsyncConnection.connect(POSTGRES, autocommit=True) as connection:
            await connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(tag)))


async def create(store: Store) -> str:
    """A run with one chunk, whose lease has run out."""
    run = NewRun(secrets.token_hex(8), "bench")
    await store.create(run, [LINE], owner="bench", lease=0)
    return run.run_id


async def append_for(store: Store, run_id: str, seconds: float, sizes: list[int]) -> int:
    """Appends batches for so long; how many chunks the run has then."""
    end, after = time.perf_counter() + seconds, 1
    while time.perf_counter() < end:
        await store.append(Write(run_id, 1, after, [LINE] * BATCH, lease=0))
        after += BATCH
    sizes.append(after)
    return after


async def follow(store: Store, run_id: str, until: Callable[[], int | None], seen: Callable[[bytes], None]) -> None:
    """Reads a run as it grows, until it has the chunk of that number."""
    position = 0
    while (last := until()) is None or position < last:
        found = await store.read(run_id, position)
        for _, data in found:
            seen(data)
        position = found[-1][0] if found else position
        if not found:
            await store.wait(run_id, chunks_after=position, timeout=0.5)


async def throughput(pair: Pair, producers: int, seconds: float, *, tail: bool) -> float:
    """Chunks a second, from the first append until the last reader has the last of them (or the last append)."""
    run_ids, sizes = [await create(pair.writer) for _ in range(producers)], list[int]()
    started = time.perf_counter()

    async def one(run_id: str) -> None:
        last: list[int] = []

        async def produce() -> None:
            last.append(await append_for(pair.writer, run_id, seconds, sizes))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(produce)
            if tail:
                tasks.start_soon(follow, pair.reader, run_id, lambda: last[0] if last else None, _ignore)

    async with anyio.create_task_group() as tasks:
        for run_id in run_ids:
            tasks.start_soon(one, run_id)
    return sum(sizes) / (time.perf_counter() - started)


def _ignore(data: bytes) -> None:
    del data


async def latencies(pair: Pair, seconds: float) -> list[float]:
    """Milliseconds from before the append until a reader has the chunk: 16 runs, 50 chunks a second each."""
    run_ids, found = [await create(pair.writer) for _ in range(16)], list[float]()
    count = int(seconds * 50)

    def seen(data: bytes) -> None:
        if data != LINE:
            found.append((time.perf_counter_ns() - int(data.split(b'"')[-2])) / 1e6)

    async def produce(run_id: str, shift: float) -> None:
        begin = time.perf_counter() + shift
        for number in range(count):
            await anyio.sleep(max(0.0, begin + number / 50 - time.perf_counter()))
            line = CHUNK % b"%d" % time.perf_counter_ns()
            await pair.writer.append(Write(run_id, 1, number + 1, [line], lease=0))

    async with anyio.create_task_group() as tasks:
        for number, run_id in enumerate(run_ids):
            tasks.start_soon(produce, run_id, number / 16 / 50)
            tasks.start_soon(follow, pair.reader, run_id, lambda: count + 1, seen)
    return sorted(found)


async def measure(name: str, seconds: float, directory: Path) -> None:
    """One row of the table."""
    cells: list[str] = []
    for tail in (False, True):
        for producers in PRODUCERS:
            async with opened(name, directory) as pair:
                cells.append(f"{await throughput(pair, producers, seconds, tail=tail):,.0f}")
    async with opened(name, directory) as pair:
        found = await latencies(pair, seconds)
    cells += [f"{statistics.median(found):.1f}", f"{found[int(len(found) * 0.99)]:.1f}"]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Prints a table."""
    names = ["memory", "sqlite", "sqlite (normal)", "postgres", "redis"]
    parser = argparse.ArgumentParser(prog="benchmarks.stores")
    parser.add_argument("stores", nargs="*", default=names, help=f"of {', '.join(names)}")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measurement")
    given = parser.parse_args()
    print("| store | append, 1 | append, 16 | append and tail, 1 | append and tail, 16 | latency p50 | p99 |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory(dir=".") as directory:
        for name in given.stores:
            run: Callable[[str, float, Path], Awaitable[None]] = measure
            anyio.run(run, name, given.seconds, Path(directory))


if __name__ == "__main__":
    main()
