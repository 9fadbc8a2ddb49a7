"""The cases that stream from the mock provider: CPU of this process per delta, beside loops written by hand."""

from __future__ import annotations

import asyncio
import statistics
import time
from functools import partial

from benchmarks import loops
from benchmarks.contenders import Contender, bare_openai, by_hand, helix_agent
from benchmarks.table import Row, Table, ratio

HAND_HTTPX2, HAND_AIOHTTP = by_hand(loops.httpx2_reads), by_hand(loops.aiohttp_reads)
HELIX_HTTPX2, HELIX_AIOHTTP = helix_agent("httpx2"), helix_agent("aiohttp")


def server(url: str, repeats: int) -> Table:
    """100 runs at once, 50 deltas a second each."""
    contenders: dict[str, tuple[Contender, str]] = {
        "by hand, httpx2": (HAND_HTTPX2, "/250@50/v1"),
        "helix, httpx2": (HELIX_HTTPX2, "/250@50/v1"),
        "by hand, aiohttp": (HAND_AIOHTTP, "/250@50/v1"),
        "helix, aiohttp": (HELIX_AIOHTTP, "/250@50/v1"),
        "bare openai": (bare_openai, "/250@50/v1"),
    }
    cost = interleaved(contenders, url, min(repeats, 3), at_once=100)
    return Table(
        "100 runs at once, 50 deltas a second each",
        "µs of CPU per delta",
        [Row(name, value * 1e6) for name, value in cost.items()],
        [
            ratio("helix ÷ by hand, on httpx2", cost, "helix, httpx2", "by hand, httpx2", 1.3),
            ratio("helix ÷ by hand, on aiohttp", cost, "helix, aiohttp", "by hand, aiohttp", 1.3),
            ratio("bare openai ÷ by hand, on aiohttp", cost, "bare openai", "by hand, aiohttp"),
        ],
    )


def deltas(url: str, repeats: int) -> Table:
    """One agent, 5,000 deltas as fast as they come."""
    path = "/5000/v1"
    contenders = {
        "by hand, httpx2": (HAND_HTTPX2, path),
        "helix, httpx2": (HELIX_HTTPX2, path),
        "by hand, aiohttp": (HAND_AIOHTTP, path),
        "helix, aiohttp": (HELIX_AIOHTTP, path),
        "bare openai": (bare_openai, path),
    }
    cost = interleaved(contenders, url, repeats)
    return Table(
        "one agent, 5,000 deltas",
        "µs of CPU per delta",
        [Row(name, value * 1e6) for name, value in cost.items()],
        [
            ratio("helix ÷ by hand, on httpx2", cost, "helix, httpx2", "by hand, httpx2", 1.2),
            ratio("helix ÷ by hand, on aiohttp", cost, "helix, aiohttp", "by hand, aiohttp", 1.5),
            ratio("bare openai ÷ helix, on aiohttp", cost, "bare openai", "helix, aiohttp", 20, at_least=True),
        ],
    )


def tree(url: str, repeats: int) -> Table:
    """16 children at once, and a child eight levels down."""
    contenders = {
        "one agent × 8,000": (HELIX_HTTPX2, "/8000/v1"),
        "16 children × 500": (helix_agent("httpx2", fan=16), "/500/v1"),
        "one agent × 8,000, depth 1": (helix_agent("httpx2", depth=1), "/8000/v1"),
        "one agent × 8,000, depth 8": (helix_agent("httpx2", depth=8), "/8000/v1"),
    }
    cost = interleaved(contenders, url, repeats)
    return Table(
        "trees, read by one consumer",
        "µs of CPU per delta",
        [Row(name, value * 1e6) for name, value in cost.items()],
        [
            ratio("16 children ÷ one agent", cost, "16 children × 500", "one agent × 8,000", 1.25),
            ratio("depth 8 ÷ depth 1", cost, "one agent × 8,000, depth 8", "one agent × 8,000, depth 1", 1.1),
        ],
    )


def rounds(url: str, repeats: int) -> Table:
    """A tool loop of 100 rounds: 20 deltas and a tool call each."""
    contenders = {
        "by hand, 100 rounds": (by_hand(loops.httpx2_reads, 100), "/20/tools-100/v1"),
        "helix, 100 rounds": (helix_agent("httpx2", rounds=100), "/20/tools-100/v1"),
        "helix, 20 rounds": (helix_agent("httpx2", rounds=20), "/20/tools-20/v1"),
    }
    cost = {name: value * 20 for name, value in interleaved(contenders, url, repeats).items()}
    return Table(
        "a tool loop",
        "µs of CPU per round",
        [Row(name, value * 1e6) for name, value in cost.items()],
        [
            ratio("helix ÷ by hand, 100 rounds", cost, "helix, 100 rounds", "by hand, 100 rounds", 1.5),
            ratio("helix, 100 rounds ÷ 20 rounds", cost, "helix, 100 rounds", "helix, 20 rounds", 1.5),
        ],
    )


def first(url: str, repeats: int) -> Table:
    """From the call to the first delta, on warm connections."""
    contenders = {"by hand, httpx2": HAND_HTTPX2, "helix, httpx2": HELIX_HTTPX2, "bare openai": bare_openai}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            times[name] += asyncio.run(_walls(contender, f"{url}/2@100/v1", 40))
    wall = {name: statistics.median(values) for name, values in times.items()}
    return Table(
        "from the call to the first delta",
        "µs of time",
        [Row(name, value * 1e6) for name, value in wall.items()],
        [ratio("helix ÷ by hand, on httpx2", wall, "helix, httpx2", "by hand, httpx2", 1.5)],
    )


async def _walls(contender: Contender, base_url: str, samples: int) -> list[float]:
    async with contender(base_url) as run:
        await run()
        walls: list[float] = []
        for _ in range(samples):
            await run(partial(_lap, walls, time.perf_counter()))
    return walls


def _lap(walls: list[float], begun: float) -> None:
    walls.append(time.perf_counter() - begun)


def interleaved(
    contenders: dict[str, tuple[Contender, str]], url: str, repeats: int, *, at_once: int = 1
) -> dict[str, float]:
    """CPU seconds per delta of each, the median of `repeats` turns; the contenders take turns within one run."""
    costs: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, (contender, path) in contenders.items():
            costs[name].append(asyncio.run(_cpu(contender, url + path, at_once)))
    return {name: statistics.median(values) for name, values in costs.items()}


async def _cpu(contender: Contender, base_url: str, at_once: int) -> float:
    async with contender(base_url) as run:
        await run()  # clients, connections and imports are there, as in a server
        begun = time.process_time()
        counts = await asyncio.gather(*(run() for _ in range(at_once)))
        return (time.process_time() - begun) / sum(counts)
