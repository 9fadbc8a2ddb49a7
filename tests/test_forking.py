"""A run's beginning as the beginning of another: in memory and from a store."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from helix import Agent, Executor, UsageError, tool
from helix.chunks import Chunk
from helix.testing import Call, ScriptedModel, Turn, check_stream

ran: list[str] = []


@tool
async def look(place: str) -> str:
    """Look."""
    ran.append(place)
    return f"nothing in {place}"


bees: Agent = Agent("bees", tools=[look])
boss: Agent = Agent("boss", sub_agents=[bees])

SCRIPT = {
    "boss": [
        Turn(text="I ask.", calls=[Call("bees", input="?")]),
        Turn(text="Once more.", calls=[Call("bees", input="!")]),
        "Done.",
    ],
    "bees-1": [Turn(calls=[Call("look", place="hive")]), "Nothing."],
    "bees-2": [Turn(calls=[Call("look", place="tree")]), "Still nothing."],
}


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "memory" else f"sqlite:///{tmp_path}/runs.db"


@asynccontextmanager
async def finished(store: str | None) -> AsyncGenerator[tuple[Executor, str]]:
    """An executor that knows a finished run."""
    ran.clear()
    with anyio.fail_after(20):
        async with Executor(store=store, agents=[boss]) as executor:
            handle = await executor.execute(boss, "How?", model=ScriptedModel(SCRIPT))
            assert (await handle.result()).output == "Done."
            yield executor, handle.run_id


async def chunks_of(executor: Executor, run_id: str) -> list[Chunk]:
    return [chunk async for chunk in (await executor.get_handle(run_id)).stream()]


@pytest.mark.anyio
async def test_a_fork_goes_on_before_a_step_without_running_again_what_had_run(store: str | None) -> None:
    async with finished(store) as (executor, run_id):
        before = await chunks_of(executor, run_id)
        model = ScriptedModel({"boss": ["Enough."]})
        fork = await executor.fork(run_id, step=2, input="Stop asking.", model=model)
        result = await fork.result()
        assert result.output == "Enough."
        assert ran == ["hive", "tree"]
        words = [getattr(message, "content", "") for message in model.requests[0].messages]
        assert words[0] == "How?"
        assert words[-1] == "Stop asking."
        chunks = await chunks_of(executor, fork.run_id)
        check_stream(chunks)
        assert not any(run_id in repr(chunk) for chunk in chunks if chunk.type != "run_resume")
        assert await chunks_of(executor, run_id) == before
        assert fork.session_id != (await executor.get_handle(run_id)).session_id


@pytest.mark.anyio
@pytest.mark.parametrize("step", [1, 2, 3, 4])
async def test_a_run_can_be_forked_before_each_step_and_behind_the_last(store: str | None, step: int) -> None:
    async with finished(store) as (executor, run_id):
        fork = await executor.fork(run_id, step=step, input="And?", model=ScriptedModel({"boss": ["Other."]}))
        assert (await fork.result()).output == "Other."
        check_stream(await chunks_of(executor, fork.run_id))


@pytest.mark.anyio
@pytest.mark.parametrize("step", [0, 5, -1])
async def test_a_step_that_never_was_is_said(store: str | None, step: int) -> None:
    async with finished(store) as (executor, run_id):
        with pytest.raises(UsageError, match=rf"has had 3 steps; it can be forked before step 1 to 4, not {step}"):
            await executor.fork(run_id, step=step)


@pytest.mark.anyio
async def test_a_run_as_it_was_is_a_prefix_folded(store: str | None) -> None:
    async with finished(store) as (executor, run_id):
        handle = await executor.get_handle(run_id)
        chunks = await chunks_of(executor, run_id)
        begun = next(chunk.sequence for chunk in chunks if chunk.type == "subagent_start")
        assert list(handle.at(begun + 1).agents) == [run_id, f"{run_id}.bees-1"]
        assert handle.at(len(chunks)).status == "completed"
