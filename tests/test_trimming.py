"""Trimmed runs: what stays, and that every reader is told of what is gone, once, and goes on from there."""

from __future__ import annotations

import copy
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel

import helix
from helix import (
    Agent,
    Approve,
    Executor,
    StateMirror,
    ToolContext,
    UnknownRun,
    UsageError,
    chunk_to_dict,
    chunk_to_json,
    collect,
    filter_stream_by_agent,
    filter_stream_by_type,
    parse_chunk,
    partial_items,
    partial_outputs,
    tool,
    trimming,
)
from helix.chunks import Chunk, Control, Resync, StepStart, StreamEnd, TextDelta, chunk_schema
from helix.fold import fold
from helix.journal import Journal
from helix.log import RunLog
from helix.store import NewRun, RunRecord, Store, Write, is_delta
from helix.stores import open_store
from helix.stores.memory import MemoryStore
from helix.testing import Call, FunctionModel, ScriptedModel, Turn, check_stream
from helix.trimming import read_structure, settled_up_to, snapshot
from tests import services
from tests.js_client import fold_streams
from tests.random_trees import drive

MakeStore = Callable[[], Store]


class Notes(BaseModel):
    found: list[str] = []


class Report(BaseModel):
    title: str
    places: list[str]


@tool
async def look(ctx: ToolContext[Notes], place: str) -> str:
    """Look."""
    with ctx.update_state() as draft:
        draft.found.append(place)
    ctx.write(f"looking at {place}\n")
    return f"nothing in {place}"


@tool(requires_approval=True)
async def remove(ctx: ToolContext[Notes], path: str) -> str:
    """Remove."""
    with ctx.update_state() as draft:
        draft.found.append(path)
    return f"{path} is gone"


bees: Agent[str, Notes] = Agent("bees", state_type=Notes, tools=[look])
boss: Agent[Report, Notes] = Agent("boss", output_type=Report, state_type=Notes, sub_agents=[bees], tools=[remove])
ANSWER = Turn(text=['{"title": "Bees", "pla', 'ces": ["hive", "tr', 'ee"]}'])
TREE: dict[str, Any] = {
    "boss": [Turn(text=["I ", "ask."], calls=[Call("bees", input="a"), Call("bees", input="b")]), ANSWER],
    "bees-1": [Turn(text=["I ", "look."], calls=[Call("look", place="hive")]), Turn(text=["No", "thing."])],
    "bees-2": [Turn(thinking=["Well", "…"], calls=[Call("look", place="tree")]), Turn(text=["No", "body."])],
}
ASKS = {"boss": [Turn(text=["May ", "I?"], calls=[Call("remove", path="x")]), ANSWER]}


@pytest.fixture(params=["memory", "sqlite", "postgresql", "redis"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: Any) -> Iterator[MakeStore]:
    if request.param == "memory":
        store = MemoryStore()
        yield lambda: store
    elif request.param == "sqlite":
        yield lambda: open_store(f"sqlite:///{tmp_path}/runs.db")
    elif "trio" in str(anyio_backend):
        pytest.skip("PostgreSQL and Redis are for asyncio")
    else:
        with services.postgres() if request.param == "postgresql" else services.redis_server() as url:
            yield lambda: open_store(url)


def executor(make_store: MakeStore) -> Executor:
    return Executor(store=make_store(), agents=[boss])


async def ended(make_store: MakeStore) -> tuple[str, list[Chunk]]:
    """A run that has ended, and what its reader saw."""
    async with executor(make_store) as first:
        handle = await first.execute(boss, "How?", model=ScriptedModel(TREE))
        seen = await collect(handle.stream())
        check_stream(seen)
        return handle.run_id, seen


def goes_on_rightly(seen: Sequence[Chunk | Control], whole: Sequence[Chunk], offset: int) -> None:
    """What a reader was given from there on: all of it, or a resync and then the rest; and together it is legal."""
    resyncs = [item for item in seen if isinstance(item, Resync)]
    if not resyncs:
        assert list(seen) == list(whole[offset:])
        return
    [resync] = resyncs
    at = list(seen).index(resync)
    floor = resync.floor
    assert offset < floor
    assert list(seen[:at]) == list(whole[offset : offset + at])
    assert list(seen[at + 1 :]) == list(whole[floor:])
    assert resync.snapshot == snapshot(fold(whole[:floor]))
    kept = [chunk for chunk in whole if chunk.sequence > floor or not is_delta(chunk_to_json(chunk))]
    check_stream([*kept[: len(kept) - len(whole[floor:])], *seen[at:]], floor=floor, finished=False)


# --- the user's ways to trim


@pytest.mark.anyio
async def test_a_trimmed_run_is_what_it_was(make_store: MakeStore) -> None:
    with anyio.fail_after(60):
        run_id, whole = await ended(make_store)
        deltas = [chunk for chunk in whole if is_delta(chunk_to_json(chunk))]
        async with executor(make_store) as second:
            before = await (await second.get_handle(run_id)).result()
            assert await second.trim(run_id) == len(deltas)
            assert await second.trim(run_id) == 0
        async with executor(make_store) as third:
            handle = await third.get_handle(run_id)
            after = await handle.result()
            assert (after.output, after.state, after.messages, after.usage) == (
                before.output,
                before.state,
                before.messages,
                before.usage,
            )
            for chunk in whole:  # at a delta it is as at the chunk before
                assert snapshot(handle.at(chunk.sequence)) == snapshot(fold(whole[: chunk.sequence]))
            with pytest.raises(UsageError, match="trimmed"):
                await third.fork(run_id, step=1)
        async with make_store() as store:
            kept = [parse_chunk(line) for _, line in await store.read(run_id)]
            assert [chunk for chunk in kept if chunk in deltas] == []
            check_stream(kept, floor=(await store.get(run_id)).floor)


@pytest.mark.anyio
async def test_runs_that_ended_long_ago_are_trimmed_together(make_store: MakeStore) -> None:
    with anyio.fail_after(60):
        run_ids = [(await ended(make_store))[0] for _ in range(2)]
        async with executor(make_store) as second:
            parked = await second.execute(boss, "Go.", model=ScriptedModel(ASKS), wait="suspend")
            await parked.result()
            assert await second.trim(older_than=timedelta(hours=1)) == 0
            assert await second.trim(older_than=timedelta(0)) > 0
            assert await second.trim(older_than=timedelta(0)) == 0
        async with make_store() as store:
            records = {record.run_id: record for record in await store.runs()}
            assert all(records[run_id].floor == records[run_id].last_sequence for run_id in run_ids)
            assert records[parked.run_id].floor == 0


class Forgetful(MemoryStore):
    """Forgets the runs of the page that somebody has just read."""

    async def runs(self, **which: Any) -> list[RunRecord]:
        found = await super().runs(**which)
        if which.get("before") is None:
            for record in found:
                await self.delete(record.run_id)
        return found


@pytest.mark.anyio
async def test_runs_that_are_deleted_while_all_are_trimmed_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trimming, "_PAGE", 2)
    store = Forgetful()
    async with Executor(store=store) as executor:
        for _ in range(5):
            await (await executor.execute(boss, "Go.", model=ScriptedModel(["Done."]))).result()
        assert await executor.trim(older_than=timedelta(0)) == 0
        assert await store.runs() == []


@pytest.mark.anyio
async def test_what_cannot_be_trimmed_is_said(tmp_path: Path) -> None:
    async with Executor(store=f"sqlite:///{tmp_path}/runs.db") as durable:
        with pytest.raises(UnknownRun, match="nobody"):
            await durable.trim("nobody")
        with pytest.raises(UsageError, match="older_than=timedelta"):
            await durable.trim()
        with pytest.raises(UsageError, match="older_than=timedelta"):
            await durable.trim("run", older_than=timedelta(0))
    async with Executor() as in_memory:
        with pytest.raises(UsageError, match="no store"):
            await in_memory.trim(older_than=timedelta(0))


# --- readers of ended, parked and live runs


@pytest.mark.anyio
async def test_a_reader_of_an_ended_run_is_told_once_from_every_offset(make_store: MakeStore) -> None:
    with anyio.fail_after(60):
        run_id, whole = await ended(make_store)
        async with executor(make_store) as second:
            await second.trim(run_id)
            handle = await second.get_handle(run_id)
            for offset in range(len(whole) + 1):
                goes_on_rightly(await collect(handle.stream(offset)), whole, offset)
            first, end = await collect(handle.stream(control=True))
            assert isinstance(first, Resync)
            assert isinstance(end, StreamEnd)
            assert (end.status, end.last_sequence, end.final_output) == (
                "completed",
                len(whole),
                first.snapshot.output(),
            )
            for chunk in (first, end):
                Draft202012Validator(chunk_schema()).validate(chunk_to_dict(chunk))


@pytest.mark.anyio
async def test_a_parked_run_that_was_trimmed_goes_on_and_its_followers_with_it(make_store: MakeStore) -> None:
    with anyio.fail_after(60):
        async with executor(make_store) as first:
            handle = await first.execute(boss, "Go.", model=ScriptedModel(ASKS), wait="suspend")
            await handle.result()
            parked = await collect(handle.stream())
        script = ScriptedModel({"boss": [ANSWER]})
        async with (
            executor(make_store) as second,
            Executor(store=make_store(), agents=[boss.replace(model=script)]) as third,
        ):
            assert await second.trim(handle.run_id) > 0
            there = await second.get_handle(handle.run_id)
            followers: list[list[Any]] = [[] for _ in parked]

            async def follow(offset: int) -> None:
                async for chunk in there.stream(offset, follow=True):
                    followers[offset].append(chunk)

            async with anyio.create_task_group() as tasks:
                for offset in range(len(parked)):
                    tasks.start_soon(follow, offset)
                [request] = there.tree.pending
                [resync] = await collect(there.stream())
                assert isinstance(resync, Resync)
                assert resync.snapshot.requests == [request]
                handle = await third.resume(handle.run_id)
                await handle.respond(request.approval_id, Approve())
                assert (await handle.result()).output == Report(title="Bees", places=["hive", "tree"])
            whole = parked + await collect(handle.stream(parked[-1].sequence))
            for offset, seen in enumerate(followers):
                goes_on_rightly(seen, whole, offset)


@pytest.mark.anyio
async def test_a_live_run_keeps_the_deltas_of_what_is_at_work(make_store: MakeStore) -> None:
    gate, arrived = anyio.Event(), anyio.Event()

    @tool
    async def wait(ctx: ToolContext[Notes]) -> str:
        """Wait."""
        ctx.write("waiting\n")
        arrived.set()
        await gate.wait()
        ctx.write("waited\n")
        return "done"

    agent: Agent[Report, Notes] = boss.replace(tools=[wait, *bees.tools])
    calls = [
        Turn(text=["I ", "look."], calls=[Call("look", place="x")]),
        Turn(text=["I ", "wait."], calls=[Call("wait")]),
    ]
    with anyio.fail_after(60):
        async with (
            Executor(store=make_store(), agents=[agent]) as first,
            Executor(store=make_store(), agents=[agent]) as second,
        ):
            here = await first.execute(agent, "Go.", model=ScriptedModel({"boss": [*calls, ANSWER]}))
            await arrived.wait()
            there = await second.get_handle(here.run_id)
            early = there.stream()  # reads before the trimming, and goes on behind it
            seen_early: list[Any] = [await anext(early) for _ in range(2)]
            async for chunk in there.stream():
                if chunk.type == "tool_output_delta" and chunk.delta == "waiting\n":
                    break
            assert await second.trim(here.run_id) > 0
            readers: dict[int, list[Any]] = {offset: [] for offset in range(chunk.sequence)}

            async def read(offset: int) -> None:
                async for item in there.stream(offset):
                    readers[offset].append(item)

            async with anyio.create_task_group() as tasks:
                for offset in readers:
                    tasks.start_soon(read, offset)
                await anyio.wait_all_tasks_blocked()
                gate.set()
                await here.result()
            seen_early += await collect(early)
            whole = await collect(here.stream())
            check_stream(whole)
            for offset, seen in readers.items():
                goes_on_rightly(seen, whole, offset)
            assert any(isinstance(seen[0], Resync) for seen in readers.values())
            assert "waiting\n" in [getattr(item, "delta", None) for item in readers[0]]
            check_stream(seen_early)  # they had been read in one page


@pytest.mark.anyio
async def test_every_floor_and_every_offset() -> None:
    """Whatever number a store was trimmed up to, also in mid-step."""
    whole = list((await drive(3)).log.chunks)
    lines = [chunk_to_json(chunk) for chunk in whole]
    store, run_id = MemoryStore(), whole[0].agent_id
    await store.create(NewRun(run_id, "root"), lines[:1], owner="me", lease=60)
    await store.append(Write(run_id, 1, 1, lines[1:], status="failed"))
    final = fold(whole)
    for floor in range(1, len(whole), 3):
        await store.trim(run_id, floor)
        for offset in {0, floor - 1, floor, random.randrange(len(whole))}:
            log = RunLog(run_id)
            await Journal(store, log, "reader").load()
            seen = await collect(log.read(offset))
            goes_on_rightly(seen, whole, offset)
            if isinstance(seen[0], Resync):
                mirror = StateMirror()
                for item in copy.deepcopy(seen):
                    mirror.apply(item)
                assert mirror.documents == {
                    node.agent_id: node.state for node in final.agents.values() if node.state_id == node.agent_id
                }


@pytest.mark.anyio
async def test_a_page_without_a_gap_is_one_round_trip(tmp_path: Path) -> None:
    run_id, whole = await ended(lambda: open_store(f"sqlite:///{tmp_path}/runs.db"))
    async with open_store(f"sqlite:///{tmp_path}/runs.db") as store:
        asked: list[str] = []

        class Counted:
            def __getattr__(self, name: str) -> Any:
                asked.append(name)
                return getattr(store, name)

        counted: Any = Counted()
        journal = Journal(counted, RunLog(run_id), "reader")
        assert await journal.page(0) == whole
        assert asked == ["read"]
        await store.trim(run_id, 10)
        [resync] = await journal.page(0)
        assert isinstance(resync, Resync)
        assert await journal.page(resync.floor) == whole[10:]


# --- what stands on a stream


@pytest.mark.anyio
async def test_filters_and_coalescing_over_a_trimmed_log(make_store: MakeStore) -> None:
    with anyio.fail_after(60):
        run_id, whole = await ended(make_store)
        floor = next(chunk.sequence for chunk in reversed(whole) if isinstance(chunk, StepStart)) - 1
        async with make_store() as store:
            await store.trim(run_id, floor)
        async with executor(make_store) as second:
            handle = await second.get_handle(run_id)
            for filtered in (
                filter_stream_by_type(handle.stream(), "tool_end"),
                filter_stream_by_agent(handle.stream(), f"{run_id}.bees-1", descendants=True),
                helix.filter_stream(handle.stream(), lambda chunk: False),
            ):
                assert [chunk.type for chunk in await collect(filtered)] == ["resync"]
            joined = await collect(handle.stream(coalesce=True))
            assert [chunk.type for chunk in joined] == [
                "resync",
                "step_start",
                "output_delta",
                "step_end",
                "output",
                "run_end",
            ]
            assert joined[2].sequence == whole[-4].sequence
            assert "".join(ANSWER.text) == getattr(joined[2], "delta", None)


@pytest.mark.anyio
async def test_partial_outputs_and_items_and_words_over_a_trimmed_log(make_store: MakeStore) -> None:
    with anyio.fail_after(60):
        run_id, whole = await ended(make_store)
        async with executor(make_store) as second:
            await second.trim(run_id)
            handle = await second.get_handle(run_id)
            output = {"title": "Bees", "places": ["hive", "tree"]}
            assert await collect(partial_outputs(handle.stream(), Report)) == [output]
            assert await collect(partial_items(handle.stream(), str, "places")) == ["hive", "tree"]
            assert await collect(partial_outputs(handle.stream(), Report, f"{run_id}.bees-1")) == []
            words = helix.text(handle.stream())
            with pytest.raises(UsageError, match=f"the words up to chunk {len(whole)} were dropped"):
                await collect(words)
            assert await collect(words) == []
            mirror = StateMirror()
            async for chunk in handle.stream():
                mirror.apply(chunk)
            assert mirror.state(f"{run_id}.bees-2", Notes) == Notes(found=["tree"])


@pytest.mark.anyio
async def test_what_was_given_before_a_resync_is_not_given_again() -> None:
    whole = await wrote(FunctionModel(lambda request: ANSWER))
    at = [chunk.type for chunk in whole].index("output_delta") + 2
    resync = Resync(len(whole) - 1, snapshot(fold(whole[:-1])))

    async def stream() -> AsyncIterator[Any]:
        for chunk in [*whole[:at], resync, whole[-1]]:
            yield chunk

    assert await collect(partial_items(stream(), str, "places")) == ["hive", "tree"]
    [*_, last] = await collect(partial_outputs(stream(), Report))
    assert last == {"title": "Bees", "places": ["hive", "tree"]}


async def wrote(model: Any) -> list[Chunk]:
    async with helix.stream(boss, "How?", model=model) as run:
        return await collect(run)


def test_what_is_at_work_holds_the_floor() -> None:
    whole = random_log(3)
    for end in range(1, len(whole) + 1):
        structure = [chunk for chunk in whole[:end] if not is_delta(chunk_to_json(chunk))]
        floor = settled_up_to(structure, end)
        assert 0 <= floor <= end
        open_steps = [node.step_open for node in fold(structure).agents.values() if node.step_open]
        assert all(floor < step for step in open_steps)
    assert settled_up_to(whole, len(whole)) == len(whole)


@pytest.mark.anyio
async def test_structure_is_read_up_to_a_number(make_store: MakeStore) -> None:
    with anyio.fail_after(60):
        run_id, whole = await ended(make_store)
        structure = [chunk for chunk in whole if not is_delta(chunk_to_json(chunk))]
        async with make_store() as store:
            assert await read_structure(store, run_id) == structure
            assert await read_structure(store, run_id, 9) == [chunk for chunk in structure if chunk.sequence <= 9]


# --- in the browser


def test_a_javascript_client_goes_on_from_the_snapshot() -> None:
    """fast-json-patch folds the rest of the stream, from every floor, to the documents that the whole of it gives."""
    streams: list[tuple[list[bytes], dict[str, Any]]] = []
    for seed in range(12):
        whole = random_log(seed)
        tree = fold(whole)
        documents = {node.agent_id: node.state for node in tree.agents.values() if node.state_id == node.agent_id}
        for floor in range(1, len(whole), 5):
            resync = Resync(floor, snapshot(fold(whole[:floor])))
            streams.append(([chunk_to_json(item) for item in [resync, *whole[floor:]]], documents))
    assert any(b"state_patch" in line for lines, _ in streams for line in lines)
    fold_streams(streams)


def test_the_schema_is_what_is_written() -> None:
    validator = Draft202012Validator(chunk_schema())
    Draft202012Validator.check_schema(chunk_schema())
    for seed in range(6):
        whole = random_log(seed)
        for chunk in whole:
            validator.validate(chunk_to_dict(chunk))
        validator.validate(chunk_to_dict(Resync(len(whole), snapshot(fold(whole)))))
    good = chunk_to_dict(TextDelta("r", "a", "x", timestamp=1, sequence=1))
    for wrong in ({**good, "delta": 1}, {**good, "type": "text"}, {k: v for k, v in good.items() if k != "_sequence"}):
        assert not validator.is_valid(wrong)


def random_log(seed: int) -> list[Chunk]:
    """The log of a random tree."""
    outcome = anyio.run(drive, seed) if seed not in _logs else _logs[seed]
    _logs[seed] = outcome
    return list(outcome.log.chunks)


_logs: dict[int, Any] = {}
