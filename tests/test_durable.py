"""Runs in a durable store: what was written is what was seen, and another executor goes on with it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from helix import (
    Agent,
    AgentEnded,
    AlreadyAnswered,
    Approve,
    Deny,
    Executor,
    RunHandle,
    SessionBusy,
    UnknownAgent,
    UnknownRun,
    UsageError,
    tool,
)
from helix.chunks import Chunk, RunEnd
from helix.testing import Call, ScriptedModel, Turn, check_stream
from tests import services

ran: list[str] = []


@tool(replay="safe")
async def look(place: str) -> str:
    """Look."""
    ran.append(place)
    return f"nothing in {place}"


@tool(requires_approval=True, replay="safe")
async def remove(path: str) -> str:
    """Remove."""
    ran.append(path)
    return f"{path} is gone"


bees: Agent = Agent("bees", tools=[look])
boss: Agent = Agent("boss", sub_agents=[bees], tools=[remove])
TREE = {
    "boss": [Turn(text="I ask.", calls=[Call("bees", input="a"), Call("bees", input="b")]), "Done."],
    "bees-1": [Turn(calls=[Call("look", place="hive")]), "Nothing."],
    "bees-2": [Turn(calls=[Call("look", place="tree")]), "Nothing either."],
}
ASKS = {"boss": [Turn(calls=[Call("remove", path="x")]), "Removed."]}


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: Any) -> Iterator[str]:
    ran.clear()
    with services.store(request.param, tmp_path, anyio_backend) as found:
        yield found


def executor(url: str) -> Executor:
    return Executor(store=url, agents=[boss])


async def chunks_of(handle: RunHandle[Any, Any], offset: int = 0) -> list[Chunk]:
    return [chunk async for chunk in handle.stream(offset)]


async def finished(url: str, session_id: str | None = None) -> tuple[str, list[Chunk]]:
    """A run that has ended, and what its reader saw."""
    async with executor(url) as first:
        handle = await first.execute(boss, "How?", model=ScriptedModel(TREE), session_id=session_id)
        seen = await chunks_of(handle)
        assert (await handle.result()).output == "Done."
        return handle.run_id, seen


async def suspended(url: str) -> str:
    """A run that waits for a person, parked by an executor that is gone."""
    async with executor(url) as first:
        handle = await first.execute(boss, "Go.", model=ScriptedModel(ASKS), wait="suspend")
        assert (await handle.result()).status == "suspended"
        return handle.run_id


@pytest.mark.anyio
async def test_another_executor_reads_what_was_seen_from_every_offset(url: str) -> None:
    with anyio.fail_after(60):
        run_id, seen = await finished(url)
        check_stream(seen)
        async with executor(url) as second:
            handle = await second.get_handle(run_id)
            assert await chunks_of(handle) == seen
            for offset in range(0, len(seen), 7):
                assert await chunks_of(handle, offset) == seen[offset:]
            assert (await handle.result()).output == "Done."
            assert isinstance(seen[-1], RunEnd)
            assert handle.tree.root.tree_usage == seen[-1].tree_usage
            assert await second.recover() == []
        assert sorted(ran) == ["hive", "tree"]


@pytest.mark.anyio
async def test_a_session_goes_on_over_executors_and_has_one_run_at_a_time(url: str) -> None:
    with anyio.fail_after(60):
        await finished(url, "talk")
        async with executor(url) as second:
            model = ScriptedModel({"boss": ["Again."]})
            result = await (await second.execute(boss, "And?", model=model, session_id="talk")).result()
            assert [message.role for message in result.messages if message.role == "user"] == ["user", "user"]
            handle = await second.execute(boss, "Go.", model=ScriptedModel(ASKS), wait="suspend", session_id="talk")
            await handle.result()
        async with executor(url) as third:
            assert [message.role for message in await third.history("talk")].count("user") == 3
            assert await third.history("nothing") == []
            with pytest.raises(SessionBusy, match="resume it or cancel it"):
                await third.execute(boss, "More?", model=ScriptedModel({}), session_id="talk")


@pytest.mark.anyio
@pytest.mark.parametrize("answer", [Approve(), Deny("no")])
async def test_an_answer_given_elsewhere_lets_a_third_executor_finish(url: str, answer: Approve | Deny) -> None:
    with anyio.fail_after(60):
        run_id = await suspended(url)
        async with executor(url) as second:
            handle = await second.get_handle(run_id)
            (request,) = handle.tree.pending
            await handle.respond(request.approval_id, answer)
            with pytest.raises(AlreadyAnswered):
                await handle.respond(request.approval_id, Approve())
        script = ScriptedModel({"boss": ["Removed."]})
        async with Executor(store=url, agents=[boss.replace(model=script)]) as third:
            (handle,) = await third.recover()
            assert handle.run_id == run_id
            assert (await handle.result()).output == "Removed."
            check_stream(await chunks_of(handle))
        assert ran == (["x"] if isinstance(answer, Approve) else [])


@pytest.mark.anyio
async def test_a_suspended_run_without_an_answer_is_left_alone(url: str) -> None:
    with anyio.fail_after(60):
        run_id = await suspended(url)
        async with executor(url) as second:
            assert await second.recover() == []
            assert (await second.get_handle(run_id)).status == "suspended"


@pytest.mark.anyio
async def test_a_parked_run_is_cancelled_from_elsewhere_and_takes_nothing_more(url: str) -> None:
    with anyio.fail_after(60):
        run_id = await suspended(url)
        async with executor(url) as second:
            handle = await second.get_handle(run_id)
            await handle.cancel()
            assert (await handle.result()).status == "cancelled"
            with pytest.raises(AgentEnded):
                await handle.send("hello?")
            with pytest.raises(UsageError, match="has cancelled"):
                await second.resume(run_id)
            check_stream(await chunks_of(handle))


@pytest.mark.anyio
async def test_a_live_run_is_read_and_stopped_from_another_executor(url: str) -> None:
    with anyio.fail_after(60):
        async with executor(url) as first, executor(url) as second:
            here = await first.execute(boss, "Go.", model=ScriptedModel(ASKS))
            there = await second.get_handle(here.run_id)
            async for chunk in there.stream():
                if chunk.type == "approval_request":
                    break
            await there.cancel()
            assert (await here.result()).status == "cancelled"
            assert await chunks_of(there) == await chunks_of(here)


@pytest.mark.anyio
async def test_an_answer_from_another_executor_reaches_a_live_run(url: str) -> None:
    with anyio.fail_after(60):
        async with executor(url) as first, executor(url) as second:
            here = await first.execute(boss, "Go.", model=ScriptedModel(ASKS))
            there = await second.get_handle(here.run_id)
            async for chunk in there.stream():
                if chunk.type == "approval_request":
                    await there.respond(chunk.approval_id, Approve())
                    break
            assert (await here.result()).output == "Removed."
            assert (await there.result()).output == "Removed."


@pytest.mark.anyio
async def test_what_cannot_be_found_is_said(url: str) -> None:
    run_id, _ = await finished(url)
    async with Executor(store=url) as stranger:
        with pytest.raises(UnknownAgent, match="knows no agent 'boss'"):
            await stranger.get_handle(run_id)
        with pytest.raises(UnknownRun):
            await stranger.get_handle("nobody")


@pytest.mark.anyio
async def test_an_executor_forgets_a_run_that_has_ended_and_finds_it_again_in_the_store(url: str) -> None:
    async with Executor(store=url, agents=[boss]) as executor:
        handle = await executor.execute(boss, "go", model=ScriptedModel(TREE))
        run_id, before = handle.run_id, await handle.result()
        seen = weakref.ref(handle), weakref.ref(handle._log)
        del handle
        while any(found() for found in seen):  # its task ends a moment after its run
            await anyio.lowlevel.checkpoint()
            gc.collect()
        again = await executor.get_handle(run_id)
        assert (await again.result()).to_dict() == before.to_dict()
        assert await executor.get_handle(run_id) is again


@pytest.mark.anyio
async def test_an_executor_remembers_a_run_that_is_parked(url: str) -> None:
    async with Executor(store=url, agents=[boss]) as executor:
        handle = await executor.execute(boss, "go", model=ScriptedModel(ASKS), wait="suspend")
        await handle.result()
        run_id, approval_id = handle.run_id, handle.tree.pending[0].approval_id
        del handle
        gc.collect()
        parked = await executor.get_handle(run_id)
        await parked.respond(approval_id, Approve())
        del parked
        gc.collect()
        result = await (await executor.resume(run_id)).result()  # by the model that it was given at first
        assert (result.status, result.output) == ("completed", "Removed.")
