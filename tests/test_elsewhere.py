"""Telling a run something from elsewhere: what is wrong is said, what is right counts once, whoever owns it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import pytest

from helix import (
    Agent,
    AgentEnded,
    AlreadyAnswered,
    Approve,
    ClientResult,
    Deny,
    Executor,
    InvalidAnswer,
    RunHandle,
    UnknownApproval,
    UsageError,
    chunk_to_json,
    tool,
)
from helix import chunks as c
from helix.store import NewRun, Store
from helix.stores import open_store
from helix.testing import Call, ScriptedModel, Turn, check_stream
from tests import services
from tests.around import Around

pytestmark = pytest.mark.anyio

Handle: TypeAlias = RunHandle[Any, Any]
ran: list[str] = []


@tool(requires_approval=True, replay="safe")
async def remove(path: str) -> str:
    """Remove."""
    ran.append(path)
    return f"{path} is gone"


bees: Agent = Agent("bees", tools=[remove])
boss: Agent = Agent("boss", tools=[remove], sub_agents=[bees])


def own_turn(request: Any) -> Turn | str:
    """The root asks; once it was told something, it is done."""
    return "Done." if any(m.role == "tool" for m in request.messages) else Turn(calls=[Call("remove", path="x")])


def childs_turn(request: Any) -> Turn | str:
    """The root delegates; the child asks."""
    if any(m.role == "tool" for m in request.messages):
        return "Done."
    return Turn(calls=[Call("remove", path="y") if "." in request.agent_id else Call("bees", input="go")])


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: Any) -> Iterator[str]:
    ran.clear()
    with services.store(request.param, tmp_path, anyio_backend) as found:
        yield found


def executor(store: str | Store, turn: Any = own_turn) -> Executor:
    return Executor(store=store, agents=[boss.replace(model=ScriptedModel(turn))])


async def asked(handle: Handle) -> c.ApprovalRequest:
    """What it asks."""
    async for chunk in handle.stream():
        if isinstance(chunk, c.ApprovalRequest):
            return chunk
    raise AssertionError("nothing was asked")


@asynccontextmanager
async def live_elsewhere(
    url: str,
) -> AsyncGenerator[tuple[Handle, Handle, c.ApprovalRequest]]:
    """A run that waits for an answer, its handle where it lives, and one in another executor."""
    with anyio.fail_after(30):
        async with executor(url) as first, executor(url) as second:
            here = await first.execute(boss.replace(model=ScriptedModel(own_turn)), "Go.")
            there = await second.get_handle(here.run_id)
            yield here, there, await asked(there)
            assert (await here.result()).output == "Done."


async def test_what_is_wrong_with_an_answer_is_said_across_processes(url: str) -> None:
    async with live_elsewhere(url) as (_, there, request):
        with pytest.raises(UnknownApproval, match="nothing in this run waits for an answer to 'nonsense'"):
            await there.respond("nonsense", Approve())
        with pytest.raises(InvalidAnswer, match="answer with Approve or Deny, not ClientResult"):
            await there.respond(request.approval_id, ClientResult("x"))
        with pytest.raises(InvalidAnswer, match="the arguments do not fit remove"):
            await there.respond(request.approval_id, Approve({"path": 7}))
        await there.respond(request.approval_id, Approve({"path": "z"}), command_id="mine")
        await there.respond(request.approval_id, Approve({"path": "z"}), command_id="mine")
        with pytest.raises(AlreadyAnswered) as late:
            await there.respond(request.approval_id, Deny())
        assert late.value.decision == "approve"
    assert ran == ["z"]


async def test_what_is_wrong_with_a_message_or_a_stop_is_said_across_processes(url: str) -> None:
    async with live_elsewhere(url) as (here, there, request):
        for tell in (lambda: there.send("hello", to="nobody"), lambda: there.cancel("nobody")):
            with pytest.raises(UsageError, match="no agent 'nobody' in this run"):
                await tell()
        await there.respond(request.approval_id, Deny())
        await here.result()
        with pytest.raises(AgentEnded):
            await there.send("hello")


class Together(Around):
    """A store in which nobody posts before all have come to do so."""

    def __init__(self, inner: Store, gate: Gate) -> None:
        super().__init__(inner)
        self._gate = gate

    async def post(self, run_id: str, command_id: str, data: bytes) -> bool:
        await self._gate.all_are_there()
        return await self._inner.post(run_id, command_id, data)


class Gate:
    """Opens when so many stand before it."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._open = anyio.Event()

    async def all_are_there(self) -> None:
        self._wanted -= 1
        if not self._wanted:
            self._open.set()
        await self._open.wait()


async def test_of_two_answers_that_cross_one_counts_and_the_other_is_told(url: str) -> None:
    async with live_elsewhere(url) as (here, _, request):
        gate = Gate(2)
        told: dict[str, str] = {}

        async def answer(given: Approve | Deny) -> None:
            store: Any = Together(open_store(url), gate)
            async with executor(store) as another:
                handle = await another.get_handle(here.run_id)
                try:
                    await handle.respond(request.approval_id, given)
                    told[given.type] = "counts"
                except AlreadyAnswered as late:
                    told[given.type] = late.decision

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer, Approve())
            tasks.start_soon(answer, Deny())
    assert told in ({"approve": "counts", "deny": "approve"}, {"approve": "deny", "deny": "counts"})
    assert ran == (["x"] if told["approve"] == "counts" else [])


# --- without an owner


async def left(url: str, lease: float, turn: Any = own_turn) -> tuple[str, c.ApprovalRequest]:
    """A run that waits for an answer, and whose owner has died, a moment ago if its lease is fresh."""
    async with executor("memory:", turn) as before:
        handle = await before.execute(boss.replace(model=ScriptedModel(turn)), "Go.", wait="suspend")
        chunks = [chunk async for chunk in handle.stream()][:-1]
    run_id = await put(url, lease, chunks)
    return run_id, next(chunk for chunk in chunks if isinstance(chunk, c.ApprovalRequest))


async def put(url: str, lease: float, chunks: list[c.Chunk]) -> str:
    """A run of which only these chunks are kept, and whose owner is dead."""
    lines, start = [chunk_to_json(chunk) for chunk in chunks], chunks[0]
    async with open_store(url) as store:
        await store.create(NewRun(start.agent_id, "boss"), lines, owner="dead", lease=lease)
    return start.agent_id


async def whole(handle: Handle) -> list[c.Chunk]:
    """All its chunks, which are a whole log."""
    chunks = [chunk async for chunk in handle.stream()]
    check_stream(chunks)
    return chunks


@pytest.mark.parametrize("lease", [0.0, 0.4])
async def test_what_a_dead_owner_was_told_waits_for_the_next_one(url: str, lease: float) -> None:
    with anyio.fail_after(30):
        run_id, request = await left(url, lease)
        async with executor(url) as second:
            handle = await second.get_handle(run_id)
            await handle.respond(request.approval_id, Approve())
            await handle.send("Be quick.")
            with pytest.raises(AlreadyAnswered, match="nobody has gone on with the run yet") as late:
                await handle.respond(request.approval_id, Deny())
            assert late.value.decision == "approve"
            assert handle.status == "running"
        async with executor(url) as third:
            [handle] = await third.recover()
            assert (await handle.result()).output == "Done."
            chunks = await whole(handle)
        assert [chunk.kind for chunk in chunks if isinstance(chunk, c.MessageChunk)] == ["steering"]
        assert ran == ["x"]


async def test_who_cancels_a_run_that_has_just_lost_its_owner_ends_it_once_the_lease_has_passed(url: str) -> None:
    with anyio.fail_after(30):
        run_id, _ = await left(url, 0.4)
        async with executor(url) as second:
            handle = await second.get_handle(run_id)
            await handle.cancel()
            assert handle.status == "cancelled"
            chunks = await whole(handle)
            assert isinstance(chunks[-1], c.RunEnd)
            assert await second.recover() == []
    assert ran == []


async def test_who_interrupts_a_run_that_has_just_lost_its_owner_parks_it(url: str) -> None:
    with anyio.fail_after(30):
        run_id, request = await left(url, 0.4)
        async with executor(url) as second:
            handle = await second.get_handle(run_id)
            await handle.interrupt()
            assert handle.status == "interrupted"
            check_stream([chunk async for chunk in handle.stream()], finished=False)
            assert await second.recover() == []
            await handle.respond(request.approval_id, Approve())
            assert (await (await second.resume(run_id)).result()).output == "Done."
            await whole(handle)
    assert ran == ["x"]


async def test_a_body_that_died_with_its_owner_does_not_run_while_the_run_is_parked(url: str) -> None:
    def turn(request: Any) -> Turn | str:
        return "Done." if any(m.role == "tool" for m in request.messages) else Turn(calls=[Call("act")])

    @tool
    async def act() -> None:
        ran.append("act")

    agent = Agent("boss", tools=[act], model=ScriptedModel(turn))
    with anyio.fail_after(30):
        async with Executor(store="memory:") as before:
            chunks = [chunk async for chunk in (await before.execute(agent, "Go.")).stream()]
        start = next(chunk for chunk in chunks if isinstance(chunk, c.ToolStart))
        run_id = await put(url, 0.0, chunks[: start.sequence])
        async with Executor(store=url, agents=[agent]) as second:
            handle = await second.get_handle(run_id)
            await handle.interrupt()
            assert handle.status == "interrupted"
            assert (await (await second.resume(run_id)).result()).output == "Done."
            [end] = [chunk for chunk in await whole(handle) if isinstance(chunk, c.ToolEnd)]
        assert end.error_code == "tool_outcome_unknown"
        assert ran == ["act"]


# --- one branch


@pytest.mark.parametrize("owner", ["parked", "dead"])
async def test_a_branch_of_a_run_that_nobody_runs_is_cancelled_and_its_parent_goes_on(url: str, owner: str) -> None:
    with anyio.fail_after(30):
        if owner == "dead":
            run_id, request = await left(url, 0.0, childs_turn)
        else:
            async with executor(url, childs_turn) as first:
                handle = await first.execute(boss.replace(model=ScriptedModel(childs_turn)), "Go.", wait="suspend")
                [request] = (await handle.result()).tree.pending
                run_id = handle.run_id
        async with executor(url, childs_turn) as second:
            handle = await second.get_handle(run_id)
            await handle.cancel(request.agent_id)
            assert handle.tree.agents[request.agent_id].status == "cancelled"
            assert handle.status == ("suspended" if owner == "parked" else "running")
            with pytest.raises(AlreadyAnswered, match="its call has ended"):
                await handle.respond(request.approval_id, Approve())
        async with executor(url, childs_turn) as third:
            [handle] = await third.recover()
            assert (await handle.result()).output == "Done."
            ends = [chunk for chunk in await whole(handle) if isinstance(chunk, c.ToolEnd)]
        assert [(end.tool_name, end.error_code) for end in ends] == [("remove", "cancelled"), ("bees", "cancelled")]
    assert ran == []


async def test_a_branch_of_a_run_that_lives_elsewhere_is_cancelled_and_waited_for(url: str) -> None:
    model = ScriptedModel(childs_turn)
    with anyio.fail_after(30):
        async with executor(url) as first, executor(url) as second:
            here = await first.execute(boss.replace(model=model), "Go.")
            there = await second.get_handle(here.run_id)
            request = await asked(there)
            await there.cancel(request.agent_id)
            assert there.tree.agents[request.agent_id].status == "cancelled"
            assert (await here.result()).output == "Done."
