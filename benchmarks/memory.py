"""What helix keeps: per delta of a log, and per run that waits for its model."""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from benchmarks.contenders import UNLIMITED
from benchmarks.table import Ratio, Row, Table
from helix import Agent, Executor
from helix.chunks import TextDelta
from helix.model import Emit, ModelReply, ModelRequest
from helix.models.openai_chat import OpenAIChatModel

DELTAS = 20_000
RUNS = 1000


def memory(url: str, repeats: int) -> Table:
    """Bytes that are still there, as tracemalloc counts them."""
    delta, run = asyncio.run(_per_delta(url)), asyncio.run(_per_run())
    return Table(
        "memory",
        "bytes",
        [Row("a delta of a finished run, but its text", delta), Row("a run whose model has not answered", run)],
        [Ratio("bytes per delta", delta, 150), Ratio("bytes per run", run, 25_000)],
    )


async def _per_delta(url: str) -> float:
    """Of a run that has ended and whose log is kept. The text objects themselves are taken off, each counted once."""
    async with helix_executor(url) as (executor, agent):
        await (await executor.execute(agent, "go")).result()
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        handle = await executor.execute(agent, "go")
        result = await handle.result()
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        texts = {id(chunk.delta): chunk.delta async for chunk in handle.stream() if type(chunk) is TextDelta}
    return (kept - sum(map(sys.getsizeof, texts.values())) - sys.getsizeof(result.output)) / DELTAS


@asynccontextmanager
async def helix_executor(url: str) -> AsyncGenerator[tuple[Executor, Agent]]:
    """An executor, and an agent whose model streams from the server."""
    agent: Agent = Agent("a", model=OpenAIChatModel("mock", api_key="none", base_url=f"{url}/{DELTAS}/v1"))
    async with Executor() as executor:
        yield executor, agent


class _Silent:
    """A model that never answers."""

    name = "silent"

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        """Waits."""
        await asyncio.Event().wait()
        raise AssertionError


async def _per_run() -> float:
    agent: Agent = Agent("a", model=_Silent())
    async with Executor() as executor:
        first = await executor.execute(agent, "go")
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        handles = [await executor.execute(agent, "go", limits=UNLIMITED) for _ in range(RUNS)]
        for handle in handles:
            async for chunk in handle.stream():
                if chunk.type == "step_start":
                    break
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        for handle in (first, *handles):
            await handle.cancel()
    return kept / RUNS
