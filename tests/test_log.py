"""The log: numbering, all-or-nothing appends, and cursors that see the same whenever and however they read."""

from __future__ import annotations

import copy
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import helix
from helix import Chunk, InvalidChunk, InvalidPatch, Usage
from helix import chunks as c
from helix.fold import RunTree, fold
from helix.log import RunLog
from helix.messages import AssistantMessage, TextPart, ToolCall

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


ME = ("r", "root")
CHILD = ("r.helper-1", "helper")


def start() -> Chunk:
    return c.RunStart(*ME, [], "m", {"n": 0}, session_id="s")


def end(status: Any = "completed") -> Chunk:
    return c.RunEnd(*ME, status, Usage(), Usage(), 1, 5)


def words(*pieces: str) -> list[Chunk]:
    return [c.TextDelta(*ME, piece) for piece in pieces]


def patch(value: Any, path: str = "/n") -> Chunk:
    return c.StatePatch(*ME, [{"op": "replace", "path": path, "value": value}])


def step(number: int, *parts: Any) -> Chunk:
    return c.StepEnd(*ME, number, 1, "committed", Usage(), AssistantMessage(list(parts)), "stop")


def grown(*chunks: Chunk) -> RunLog:
    log = RunLog("r")
    log.append(start(), *chunks)
    return log


def busy_run() -> list[Chunk]:
    """A run of two agents with runs of every kind of delta, and with neighbours that must not be joined."""
    return [
        start(),
        c.StepStart(*ME, 1, 1, "m"),
        c.Thinking(*ME, "h", False),
        c.Thinking(*ME, "m", False),
        c.Thinking(*ME, "hm", True),
        c.Thinking(*ME, "o", False),
        *words("a", "b", "", "c"),
        c.ToolInputStart(*ME, "t1", "helper"),
        c.ToolInputDelta(*ME, "t1", "{"),
        c.ToolInputDelta(*ME, "t1", "}"),
        c.ToolInputDelta(*ME, "t2", "{"),
        c.ToolInputDelta(*ME, "t2", "}"),
        c.ToolInputEnd(*ME, "t1", {}),
        step(1, TextPart("abc"), ToolCall("t1", "helper", {}), ToolCall("t2", "print", {})),
        c.ToolStart(*ME, "t1", "helper", {}),
        c.ToolStart(*ME, "t2", "print", {}),
        c.SubagentStart(*ME, "helper", CHILD[0], "t1"),
        c.RunStart(*CHILD, [], "m", None, parent_id="r"),
        c.StepStart(*CHILD, 1, 1, "m"),
        c.OutputDelta(*CHILD, "["),
        c.OutputDelta(*CHILD, "1]"),
        c.ToolOutputDelta(*ME, "t2", "print", "x"),
        c.ToolOutputDelta(*ME, "t2", "print", "y"),
        c.ToolOutputDelta(*ME, "t2", "print", "e", "stderr"),
        c.TextDelta(*CHILD, "d"),
        c.TextDelta(*ME, "e"),
        c.TextDelta(*ME, "f"),
        c.OutputDelta(*ME, "g"),
        c.StepEnd(*CHILD, 1, 1, "committed", Usage(), AssistantMessage([TextPart("d")]), "stop"),
        c.RunEnd(*CHILD, "completed", Usage(), Usage(), 1, 5),
        c.SubagentEnd(*ME, "helper", CHILD[0], "t1", "d", "completed", Usage()),
        c.ToolEnd(*ME, "t1", "helper", "d"),
        c.ToolEnd(*ME, "t2", "print", None),
        end(),
    ]


def busy_log() -> RunLog:
    log = RunLog("r")
    log.append(*busy_run())
    return log


def seen_in(tree: RunTree) -> Any:
    """What a fold says, for comparing two of them."""
    agents = {
        agent_id: (node.status, node.state, node.state_version, list(node.messages), list(node.calls), node.step)
        for agent_id, node in tree.agents.items()
    }
    return copy.deepcopy((tree.status, tree.sequence, tree.timestamp, tree.epoch, agents))


async def test_chunks_are_numbered_densely_and_stamped() -> None:
    log = grown(*words("a", "b"))
    log.append()
    log.append(*words("c"))
    log.append(end())
    assert [chunk.sequence for chunk in log.chunks] == [1, 2, 3, 4, 5]
    stamps = [chunk.timestamp for chunk in log.chunks]
    assert stamps == sorted(stamps)
    assert stamps[0] > 1_700_000_000_000
    assert (log.tree.sequence, log.tree.timestamp) == (5, stamps[-1])


async def test_a_batch_with_a_bad_patch_leaves_nothing_behind() -> None:
    log = grown(patch(1), c.StepStart(*ME, 1, 1, "m"))
    before, chunks = seen_in(log.tree), list(log.chunks)
    said = step(1, TextPart("x"))
    with pytest.raises(InvalidPatch):
        log.append(said, patch(2), patch(3, "/no/where"))
    assert log.chunks == chunks
    assert seen_in(log.tree) == before == seen_in(fold(log.chunks))
    with pytest.raises(InvalidChunk):
        log.append(patch(4), c.ToolEnd(*ME, "t9", "print", None))
    assert (log.chunks, seen_in(log.tree)) == (chunks, before)
    log.append(patch(2))
    assert [chunk.sequence for chunk in log.chunks] == [1, 2, 3, 4]
    assert log.tree.root.state == {"n": 2}


async def test_a_refused_batch_wakes_nobody() -> None:
    log = grown()
    got: list[list[Chunk]] = []

    async def read() -> None:
        got.append(await log.read(1).next_batch())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(InvalidPatch):
                log.append(patch(1), patch(2, "/no/where"))
            await anyio.wait_all_tasks_blocked()
            assert got == []
            log.append(*words("a"))
    assert [chunk.type for chunk in got[0]] == ["text_delta"]


async def test_nothing_follows_the_roots_end() -> None:
    for status in ("completed", "failed", "cancelled"):
        log = grown(end(status))
        before = list(log.chunks)
        for late in (words("x")[0], end(), patch(1), c.RunResume(*ME, 2, "pause"), c.Custom(*ME, "late", None)):
            with pytest.raises(InvalidChunk):
                log.append(late)
        assert log.chunks == before
        assert log.tree.status == status


async def test_nothing_follows_the_roots_end_within_one_batch() -> None:
    log = grown()
    with pytest.raises(InvalidChunk):
        log.append(end(), *words("late"))
    assert [chunk.type for chunk in log.chunks] == ["run_start"]
    assert log.tree.status == "running"


async def test_a_log_read_again_is_the_same() -> None:
    log = busy_log()
    again = RunLog("r", log.chunks)
    assert again.chunks == log.chunks
    assert seen_in(again.tree) == seen_in(log.tree)
    with pytest.raises(InvalidChunk):
        again.append(*words("x"))


@pytest.mark.parametrize("coalesce", [False, True])
async def test_readers_from_every_offset_see_the_same_live_and_afterwards(coalesce: bool) -> None:
    run = busy_run()
    log = RunLog("r")
    live: dict[int, list[Chunk]] = {}

    async def read(offset: int) -> None:
        live[offset] = await helix.collect(log.read(offset))

    async def read_batches(offset: int) -> None:
        reader, got = log.read(offset), list[Chunk]()
        while batch := await reader.next_batch():
            got.extend(batch)
        live[-offset - 1] = got

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for offset in range(len(run) + 1):
                tasks.start_soon(read, offset)
                tasks.start_soon(read_batches, offset)
            for number, chunk in enumerate(run):
                log.append(chunk)
                if number % 3:
                    await checkpoint()
        assert len(live) == 2 * (len(run) + 1)
        for offset in range(len(run) + 1):
            assert live[offset] == live[-offset - 1] == log.chunks[offset:]
            assert await helix.collect(log.read(offset)) == log.chunks[offset:]
            assert "".join(map(spoken, await helix.collect(log.read(offset, coalesce=coalesce)))) == "".join(
                map(spoken, log.chunks[offset:])
            )


async def test_a_long_log_is_read_whole() -> None:
    log = grown(*words(*map(str, range(1500))), end())
    with anyio.fail_after(5):
        assert [chunk.sequence for chunk in await helix.collect(log.read())] == list(range(1, 1503))


async def test_an_offset_beyond_the_end_ends_at_once() -> None:
    log = busy_log()
    with anyio.fail_after(5):
        for offset in (len(log.chunks), len(log.chunks) + 1, 10_000):
            assert await helix.collect(log.read(offset)) == []
            assert await log.read(offset).next_batch() == []
            assert [item.type for item in await helix.collect(log.read(offset, control=True))] == ["stream_end"]


async def test_an_offset_beyond_a_live_log_waits_for_its_place() -> None:
    log = grown()
    got: list[Chunk] = []

    async def read() -> None:
        got.extend(await helix.collect(log.read(3)))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            log.append(*words("a", "b"))
            await anyio.wait_all_tasks_blocked()
            log.append(*words("c"), end())
    assert [chunk.sequence for chunk in got] == [4, 5]


async def test_a_negative_offset_is_refused() -> None:
    with pytest.raises(ValueError, match="from_offset must be 0 or more, not -1"):
        busy_log().read(-1)


def spoken(chunk: Any) -> str:
    """The words of a delta, marked with where they belong."""
    if not is_delta(chunk):
        return f"<{chunk.type} {chunk.sequence}>"
    piece = chunk.content if chunk.type == "thinking" else chunk.delta
    return "".join(f"{letter}@{place_of(chunk)} " for letter in piece)


def is_delta(chunk: Any) -> bool:
    return chunk.type.endswith("_delta") or (chunk.type == "thinking" and not chunk.is_complete)


def place_of(chunk: Any) -> tuple[Any, ...]:
    call, channel = getattr(chunk, "tool_call_id", ""), getattr(chunk, "channel", "")
    return chunk.type, is_delta(chunk), chunk.agent_id, call, channel


async def test_coalescing_loses_nothing_and_its_numbers_resume() -> None:
    log = busy_log()
    with anyio.fail_after(5):
        joined = await helix.collect(log.read(coalesce=True))
        assert len(joined) < len(log.chunks)
        assert "".join(map(spoken, joined)) == "".join(map(spoken, log.chunks))
        assert joined[-1].sequence == len(log.chunks)
        for number, chunk in enumerate(joined):
            assert await helix.collect(log.read(chunk.sequence)) == log.chunks[chunk.sequence :]
            assert await helix.collect(log.read(chunk.sequence, coalesce=True)) == joined[number + 1 :]
            assert chunk.timestamp == log.chunks[chunk.sequence - 1].timestamp
    assert log.chunks == stamped_like(log)


def stamped_like(log: RunLog) -> list[Chunk]:
    """The same run as it was first appended, with the log's stamps: reading must not have changed a chunk."""
    fresh = busy_run()
    for number, chunk in enumerate(fresh, start=1):
        chunk.sequence, chunk.timestamp = number, log.chunks[number - 1].timestamp
    return fresh


async def test_only_adjacent_deltas_of_one_place_are_joined() -> None:
    log = busy_log()
    with anyio.fail_after(5):
        joined = await helix.collect(log.read(coalesce=True))
    expected: list[int] = []
    for before, chunk in zip([None, *log.chunks], log.chunks, strict=False):
        if before is not None and is_delta(before) and is_delta(chunk) and place_of(before) == place_of(chunk):
            expected.pop()
        expected.append(chunk.sequence)
    assert [chunk.sequence for chunk in joined] == expected
    whole = {chunk.sequence for chunk in log.chunks if not is_delta(chunk)}
    assert [chunk for chunk in joined if chunk.sequence in whole] == [
        chunk for chunk in log.chunks if chunk.sequence in whole
    ]


async def test_a_coalescing_reader_that_keeps_up_joins_nothing() -> None:
    log = grown()
    reader = log.read(1, coalesce=True)
    got: list[str] = []
    with anyio.fail_after(5):
        for piece in "abc":
            log.append(*words(piece))
            chunk = await reader.__anext__()
            got.append(spoken(chunk)[0])
        log.append(*words("d", "e"), end())
        got.extend([chunk.delta async for chunk in reader if chunk.type == "text_delta"])
    assert got == ["a", "b", "c", "de"]


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_the_control_message_comes_once_and_last(status: Any) -> None:
    log = grown(c.StepStart(*ME, 1, 1, "m"), step(1, TextPart("said")))
    got: list[Any] = []

    async def read() -> None:
        got.extend(await helix.collect(log.read(control=True)))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            log.append(end(status))
        after = await helix.collect(log.read(control=True))
        plain = await helix.collect(log.read())
        reader, batched = log.read(control=True), list[Any]()
        while batch := await reader.next_batch():
            batched.extend(batch)
        assert await reader.next_batch() == []
        with pytest.raises(StopAsyncIteration):
            await reader.__anext__()
    for items in (got, after, batched):
        assert items[:-1] == plain == log.chunks
        last = items[-1]
        assert isinstance(last, c.StreamEnd)
        assert (last.stream_id, last.status, last.last_sequence) == ("r", status, 4)
        assert last.final_output == ("said" if status == "completed" else None)
    assert log.tree.sequence == 4


async def test_a_paused_log_ends_its_readers_unless_they_follow() -> None:
    log = grown(c.RunPause(*ME, "interrupted"))
    followed: list[Chunk] = []

    async def follow() -> None:
        followed.extend(await helix.collect(log.read(follow=True)))

    with anyio.fail_after(5):
        assert [item.type for item in await helix.collect(log.read(control=True))] == [
            "run_start",
            "run_pause",
            "stream_end",
        ]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            log.append(c.RunResume(*ME, 2, "pause"))
            await anyio.wait_all_tasks_blocked()
            log.append(end())
        assert followed == log.chunks == await helix.collect(log.read())


async def test_closing_a_reader_ends_its_iteration_and_nothing_else() -> None:
    log = grown(*words("a", "b"))
    with anyio.fail_after(5):
        reader, other = log.read(control=True), log.read()
        assert (await reader.__anext__()).type == "run_start"
        await reader.aclose()
        await reader.aclose()
        assert [chunk async for chunk in reader] == []
        assert await reader.next_batch() == []
        log.append(end())
        assert await helix.collect(other) == log.chunks


async def test_a_waiting_reader_is_woken_once_a_batch() -> None:
    log = grown()
    batches: list[list[int]] = []

    async def read() -> None:
        reader = log.read(1)
        while batch := await reader.next_batch():
            batches.append([chunk.sequence for chunk in batch])

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            log.append(*words("a"))
            log.append(*words("b"))
            log.append(*words("c"))
            await anyio.wait_all_tasks_blocked()
            assert batches == [[2, 3, 4]]
            log.append(*words("d", "e"))
            await anyio.wait_all_tasks_blocked()
            assert batches == [[2, 3, 4], [5, 6]]
            log.append(end())
    assert batches == [[2, 3, 4], [5, 6], [7]]


async def test_a_cancelled_reader_can_go_on_where_it_was() -> None:
    log = grown()
    reader = log.read()
    with anyio.fail_after(5):
        assert (await reader.__anext__()).sequence == 1
        with anyio.CancelScope() as scope:
            scope.cancel()
            await reader.__anext__()
        assert scope.cancelled_caught
        log.append(*words("a"), end())
        with anyio.CancelScope() as scope:
            scope.cancel()
            await reader.next_batch()
        assert scope.cancelled_caught
        assert [chunk.sequence for chunk in await helix.collect(reader)] == [2, 3]
