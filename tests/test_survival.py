"""Runs survive their process: killed anywhere, stopped and overtaken, answered from elsewhere, cut from their store."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

import helix.root as root_module
from helix import Agent, Executor, RunHandle, chunk_to_json, parse_chunk, tool
from helix import chunks as c
from helix.fold import fold
from helix.limits import MAX_CRASHES
from helix.owner import resumption
from helix.store import Write
from helix.stores import open_store
from helix.stores.memory import MemoryStore
from helix.testing import Call, FunctionModel, Turn, check_stream
from tests import services
from tests.left import leave
from tests.survivor import (
    AMID,
    BETWEEN,
    PARKING,
    POINTS,
    WAITING,
    Fate,
    Job,
    World,
    approve,
    boss,
    chief,
    finish,
    job_to_json,
    kind,
)
from tests.test_store_failures import Wire


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# --- places, and processes


@contextmanager
def sqlite_file(directory: Path) -> Generator[str]:
    """A file that is not there yet."""
    yield f"sqlite:///{directory / 'runs.db'}"


PLACES: dict[str, Callable[[Path], AbstractContextManager[str]]] = {
    "sqlite": sqlite_file,
    "postgresql": lambda _: services.postgres(),
    "redis": lambda _: services.redis_server(),
}


@pytest.fixture(params=list(PLACES))
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with PLACES[request.param](tmp_path) as found:
        yield found


class Nursery:
    """Starts processes that die; see `tests.survivor`."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "error", "-m", "tests.survivor"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, job: Job) -> int:
        """The id of a process that does the job now."""
        assert self._process.stdin is not None
        self._process.stdin.write(job_to_json(job) + "\n")
        self._process.stdin.flush()
        return int(self._line())

    def stopped(self) -> None:
        """Returns once the last one has stopped."""
        assert self._line() == "stopped\n"

    def end(self) -> int:
        """How the last one has ended."""
        return int(self._line())

    def live_and_die(self, job: Job) -> bool:
        """Whether the process was killed; if not, it has done all of its job."""
        self.start(job)
        code = self.end()
        assert code in (0, -9), f"{job} ended with {code}"
        return code == -9

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def close(self) -> None:
        """No more."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()


# --- what must be true of a run that has been killed


def new_job(url: str, directory: Path, **given: Any) -> Job:
    """A job of a run that nobody has."""
    run_id = ("chief-" if given.get("mode") == "branches" else "") + secrets.token_hex(8)
    place = directory / run_id
    place.mkdir()
    return Job(url, run_id, str(place), **given)


def lines_of(job: Job, name: str) -> list[bytes]:
    """The lines of a file that the process has left."""
    path = Path(job.directory) / name
    return path.read_bytes().splitlines() if path.exists() else []


def executor_of(job: Job) -> Executor:
    """Another process's executor, with the same agents."""
    fate = Fate(replace(job, kind=""))
    return Executor(store=job.url, agents=[boss(fate), chief(fate)], deps=World(Path(job.directory) / "effects", fate))


async def nobody(chunk: c.Chunk) -> None:
    """Watches, and does nothing."""


async def go_on(job: Job) -> None:
    """Goes on with a run that a dead process has left, to its end."""
    async with executor_of(job) as executor:
        recovered = {handle.run_id for handle in await executor.recover()}
        handle = await executor.get_handle(job.run_id)
        assert handle.tree.at_rest or recovered == {job.run_id}
        assert (await finish(executor, job.run_id, nobody)).tree.ended


async def judge(job: Job, *, offsets: int | None = None) -> None:
    """The run has ended well, whatever has happened to it."""
    async with executor_of(job) as executor:
        handle = await executor.get_handle(job.run_id)
        chunks = [chunk async for chunk in handle.stream()]
        check_stream(chunks)
        assert (await handle.result()).output == "All done."
        numbers = range(len(chunks) + 1)
        for offset in numbers if offsets is None else random.Random(job.run_id).sample(numbers, offsets):
            assert [chunk async for chunk in handle.stream(offset)] == chunks[offset:]
    seen = lines_of(job, "seen")
    assert [chunk_to_json(chunk) for chunk in chunks[: len(seen)]] == seen, "what a reader saw is lost"
    judge_words(chunks)
    judge_effects(chunks, Counter(line.decode() for line in lines_of(job, "effects")))


def judge_words(chunks: Sequence[c.Chunk]) -> None:
    """The deltas of each step that counts add up to its message."""
    words: dict[str, str] = {}
    for chunk in chunks:
        if isinstance(chunk, c.StepStart):
            words[chunk.agent_id] = ""
        elif isinstance(chunk, c.TextDelta):
            words[chunk.agent_id] += chunk.delta
        elif isinstance(chunk, c.StepEnd) and chunk.message is not None and chunk.outcome == "committed":
            assert chunk.message.text == words[chunk.agent_id]


def judge_effects(chunks: Sequence[c.Chunk], effects: Counter[str]) -> None:
    """Each call has its effect once; after a crash a safe one perhaps more often, an unsafe one perhaps not at all."""
    ends = {
        f"{chunk.tool_name} {chunk.agent_id} {chunk.tool_call_id}": chunk
        for chunk in chunks
        if isinstance(chunk, c.ToolEnd) and chunk.tool_name in ("look", "note", "pay")
    }
    assert set(effects) <= set(ends)
    assert len(ends) == 5
    for name, end in ends.items():
        if name.startswith("look"):
            assert effects[name] >= 1
            assert end.error is None
        elif end.error_code == "tool_outcome_unknown":
            assert effects[name] <= 1, f"{name} ran twice"
        else:
            assert effects[name] == 1, f"{name} ran {effects[name]} times"
            assert end.error is None


async def is_known(job: Job) -> bool:
    """Whether the run has got into the store."""
    async with open_store(job.url) as store:
        return job.run_id in {run.run_id for run in await store.runs()}


async def survives(nursery: Nursery, job: Job, *, offsets: int | None = None) -> bool:
    """Lets the process live and die, and goes on with its run; whether it was killed."""
    killed = nursery.live_and_die(job)
    try:
        if not await is_known(job):
            assert killed
            assert not lines_of(job, "effects")
            assert not lines_of(job, "seen")
        else:
            with anyio.fail_after(120):
                await go_on(job)
                await judge(job, offsets=offsets)
    except BaseException as error:
        error.add_note(str(job))
        raise
    return killed


MODES = ("hold", "suspend", "interrupt")


@pytest.mark.anyio
@pytest.mark.parametrize("mode", MODES)
async def test_nobody_dies(url: str, nursery: Nursery, tmp_path: Path, mode: Any) -> None:
    assert not await survives(nursery, new_job(url, tmp_path, mode=mode), offsets=5)


# --- the matrix: every place to die

NAMED: dict[str, dict[str, Any]] = {
    "before a step": {"at": "before step 2 of boss"},
    "mid-stream": {"at": AMID},
    "after the last delta": {"at": "behind step 1 of boss"},
    "between step_end and tool_start": {"at": BETWEEN},
    "in a safe tool": {"at": "in look of boss"},
    "in an unsafe tool": {"at": "behind note of boss"},
    "between two parallel tools": {"at": "behind look of boss"},
    "in a child three levels down": {"at": "behind note of worker"},
    "while waiting": {"at": WAITING},
    "while parking": {"at": PARKING, "mode": "suspend"},
    "during flush": {"kind": "store", "at": 5, "when": "during"},
}
"""One of each; `test_who_goes_on_may_die_too` has the one between claim and first append."""


@pytest.mark.anyio
@pytest.mark.parametrize("place", list(NAMED))
async def test_a_run_survives_death_at(url: str, nursery: Nursery, tmp_path: Path, place: str) -> None:
    assert await survives(nursery, new_job(url, tmp_path, **({"kind": "point"} | NAMED[place])), offsets=3)


def deaths(mode: str) -> list[dict[str, Any]]:
    """All ways to die in that mode; a few lie behind the end of the run, and then nobody dies."""
    stores = [{"kind": "store", "at": n, "when": when} for n in range(1, 22) for when in ("before", "during", "after")]
    numbered = [{"kind": kind, "at": n} for kind in ("append", "seen") for n in range(1, 101)]
    points = [{"kind": "point", "at": name} for name in POINTS]
    return [{"mode": mode, **death} for death in [*stores, *numbered, *points]]


ALL_DEATHS = [death for mode in MODES for death in deaths(mode)]


@pytest.mark.anyio
async def test_a_run_survives_death_anywhere(url: str, nursery: Nursery, tmp_path: Path) -> None:
    some = random.Random(url[:6]).sample(ALL_DEATHS, 4)
    killed = [await survives(nursery, new_job(url, tmp_path, **death), offsets=5) for death in some]
    assert sum(killed) >= 2


@pytest.mark.full
@pytest.mark.anyio
@pytest.mark.parametrize("mode", MODES)
async def test_a_run_survives_death_everywhere(url: str, nursery: Nursery, tmp_path: Path, mode: str) -> None:
    killed = [await survives(nursery, new_job(url, tmp_path, **death)) for death in deaths(mode)]
    print(f"{sum(killed)} of {len(killed)} were killed")
    assert sum(killed) > len(killed) * 0.8


@pytest.mark.anyio
@pytest.mark.parametrize("at", [1, 2, 3, 5, 8])
async def test_who_goes_on_may_die_too(url: str, nursery: Nursery, tmp_path: Path, at: int) -> None:
    """Among others between its claim and its first append: operation 1 of who recovers is the claim."""
    for when in ("before", "during", "after") if at == 1 else ("after",):
        job = new_job(url, tmp_path, kind="point", at="behind note of worker")
        assert nursery.live_and_die(job)
        assert nursery.live_and_die(replace(job, mode="recover", kind="store", at=at, when=when))
        await go_on(job)
        await judge(job, offsets=5)


# --- overtaken


async def overtaken(nursery: Nursery, job: Job) -> tuple[int, int]:
    """An owner is stopped in mid-stream, another one takes over, it wakes; how many of its chunks have come since.

    Its process stays stopped, behind its first attempt to write. The run is left to whoever recovers it.
    """
    process_id = nursery.start(job)
    nursery.stopped()
    async with open_store(job.url) as store:
        claim = await store.claim(job.run_id, owner="another", lease=60)
        os.kill(process_id, signal.SIGCONT)
        nursery.stopped()
        stale = (await store.get(job.run_id)).last_sequence - claim.last_sequence
        assert claim.last_sequence > 1
        await store.append(Write(job.run_id, claim.epoch, claim.last_sequence + stale, release=True))
    return process_id, stale


@pytest.mark.anyio
async def test_who_was_overtaken_in_its_sleep_writes_nothing_and_reads_on(
    url: str, nursery: Nursery, tmp_path: Path
) -> None:
    job = new_job(url, tmp_path, kind="stop")
    process_id, stale = await overtaken(nursery, job)
    assert stale == 0
    await go_on(job)
    os.kill(process_id, signal.SIGCONT)
    assert nursery.end() == 0
    await judge(job)
    async with executor_of(job) as executor:
        chunks = [chunk async for chunk in (await executor.get_handle(job.run_id)).stream()]
    assert lines_of(job, "seen") == [chunk_to_json(chunk) for chunk in chunks]


@pytest.mark.anyio
async def test_without_a_fence_it_would_write(url: str, nursery: Nursery, tmp_path: Path) -> None:
    job = new_job(url, tmp_path, kind="stop", mutation="no fence")
    process_id, stale = await overtaken(nursery, job)
    os.kill(process_id, signal.SIGKILL)
    assert nursery.end() == -9
    assert stale > 0


# --- what the matrix would notice


@pytest.mark.anyio
async def test_without_the_barrier_something_would_happen_twice(url: str, nursery: Nursery, tmp_path: Path) -> None:
    death: dict[str, Any] = {"kind": "point", "at": "behind note of boss"}
    assert await survives(nursery, new_job(url, tmp_path, **death), offsets=1)
    with pytest.raises(AssertionError, match="ran 2 times"):
        await survives(nursery, new_job(url, tmp_path, mutation="no barrier", **death), offsets=1)


@pytest.mark.anyio
async def test_without_the_end_of_the_cut_step_the_log_would_be_wrong(
    url: str, nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mutated in (False, True):
        job = new_job(url, tmp_path, kind="stop")
        process_id = nursery.start(job)
        nursery.stopped()
        os.kill(process_id, signal.SIGKILL)
        assert nursery.end() == -9
        if not mutated:
            await go_on(job)
            await judge(job, offsets=5)
            continue
        monkeypatch.setattr(root_module, "resumption", lambda tree: resumption(tree)[:1])
        with pytest.raises(AssertionError):
            await go_on(job)
            await judge(job, offsets=5)


# --- three branches


@pytest.mark.anyio
async def test_another_process_answers_what_a_dead_one_has_asked(url: str, nursery: Nursery, tmp_path: Path) -> None:
    job = new_job(url, tmp_path, mode="branches")
    assert nursery.live_and_die(job)
    async with executor_of(job) as executor:
        handle = await executor.get_handle(job.run_id)
        [request] = handle.tree.pending
        ended = {kind(node.agent_id) for node in handle.tree.agents.values() if node.ended}
        assert (request.agent_id, ended) == (f"{job.run_id}.middle-3.till-1", {"left", "right"})
        await approve(handle, request.approval_id)
        assert [found.run_id for found in await executor.recover()] == [job.run_id]
        assert (await handle.result()).output == "All done."
        check_stream([chunk async for chunk in handle.stream()])
    effects = Counter(line.split()[2] for line in lines_of(job, "effects"))
    assert effects == {b"n1": 1, b"n2": 1, b"n3": 1, b"p1": 1}


# --- commands


async def chunk_of(handle: RunHandle[Any, Any], *types: type[c.Chunk], offset: int = 0) -> c.Chunk:
    """The next chunk of one of these types."""
    async for chunk in handle.stream(offset, follow=True):
        if isinstance(chunk, types):
            return chunk
    raise AssertionError("the run has ended")


COMMANDS: dict[str, tuple[Callable[[RunHandle[Any, Any]], Coroutine[Any, Any, Any]], type[Any]]] = {
    "cancel": (lambda handle: handle.cancel(), c.RunEnd),
    "interrupt": (lambda handle: handle.interrupt(), c.RunPause),
    "send": (lambda handle: handle.send("hurry"), c.MessageChunk),
    "respond": (lambda handle: approve(handle, handle.tree.pending[0].approval_id), c.ApprovalResponse),
}


@pytest.mark.anyio
@pytest.mark.parametrize("command", list(COMMANDS))
async def test_the_owner_does_what_another_process_says_within_half_a_second(
    url: str, nursery: Nursery, tmp_path: Path, command: str
) -> None:
    job, (tell, effect) = new_job(url, tmp_path, mode="wait", lease=60), COMMANDS[command]
    process_id = nursery.start(job)
    async with executor_of(job) as executor:
        handle = await begun(executor, job)
        asked = await chunk_of(handle, c.ApprovalRequest)
        handle = await executor.get_handle(job.run_id)
        with anyio.fail_after(0.5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(tell, handle)
                await chunk_of(handle, effect, offset=asked.sequence)
        if command == "send":
            os.kill(process_id, signal.SIGKILL)
    assert nursery.end() == (-9 if command == "send" else 0)


async def begun(executor: Executor, job: Job) -> RunHandle[Any, Any]:
    """The handle of a run that is about to begin in another process."""
    with anyio.fail_after(20):
        while not await is_known(job):  # noqa: ASYNC110 - there is nothing to wait on before there is a run
            await anyio.sleep(0.01)
    return await executor.get_handle(job.run_id)


@pytest.mark.anyio
async def test_a_run_that_nobody_owns_can_be_cancelled(url: str, nursery: Nursery, tmp_path: Path) -> None:
    job = new_job(url, tmp_path, kind="point", at="behind step 1 of worker")
    assert nursery.live_and_die(job)
    async with executor_of(job) as executor:
        handle = await executor.get_handle(job.run_id)
        await handle.cancel()
        assert handle.status == "cancelled"
        check_stream([chunk async for chunk in handle.stream()])
        assert await executor.recover() == []


# --- every prefix


async def recorded(tmp_path: Path) -> tuple[Job, list[c.Chunk]]:
    """A run that nothing has happened to, which was parked once."""
    job = new_job("memory:", tmp_path)
    async with executor_of(job) as executor:
        agent = boss(Fate(job))
        await executor.execute(agent, "go", run_id=job.run_id, wait="suspend")
        handle = await finish(executor, job.run_id, nobody, at_once=False)
        return job, [chunk async for chunk in handle.stream()]


@pytest.mark.anyio
async def test_a_run_goes_on_from_every_prefix_that_may_be_kept(tmp_path: Path) -> None:
    job, chunks = await recorded(tmp_path)
    for length in range(1, len(chunks)):
        kept = [item for item in map(parse_chunk, map(chunk_to_json, chunks[:length])) if isinstance(item, c.ChunkBase)]
        try:
            with anyio.fail_after(10):
                await go_on_from(job, kept)
        except BaseException as error:
            error.add_note(f"of {len(chunks)} chunks, {length} were kept")
            raise


async def go_on_from(job: Job, kept: list[Any]) -> None:
    """All bodies that have begun have had their effect, and the process has died."""
    effects = Path(job.directory) / "effects"
    begun = [item for item in kept if isinstance(item, c.ToolStart) and item.tool_name in ("look", "note", "pay")]
    effects.write_text("".join(f"{item.tool_name} {item.agent_id} {item.tool_call_id}\n" for item in begun))
    store = MemoryStore()
    async with Executor(store=store, agents=[boss(Fate(job))], deps=World(effects, Fate(job))) as executor:
        await leave(store, kept)
        recovered = await executor.recover()
        assert len(recovered) == (fold(kept).status == "running")
        handle = await finish(executor, job.run_id, nobody)
        found = [chunk async for chunk in handle.stream()]
        assert found[: len(kept)] == kept
        assert (await handle.result()).output == "All done."
        for offset in range(0, len(found), 7):
            assert [chunk async for chunk in handle.stream(offset)] == found[offset:]
    check_stream(found)
    judge_words(found)
    judge_effects(found, Counter(line.decode() for line in lines_of(job, "effects")))


# --- the end of patience, and lost connections


@pytest.mark.anyio
async def test_a_run_that_kills_its_owner_five_times_fails(url: str, nursery: Nursery, tmp_path: Path) -> None:
    job = new_job(url, tmp_path, kind="point", at="before step 1 of boss")
    assert nursery.live_and_die(job)
    for _ in range(4):
        assert nursery.live_and_die(replace(job, mode="recover"))
    async with executor_of(job) as executor:
        [handle] = await executor.recover()
        with anyio.fail_after(10):
            result = await handle.result()
        assert (result.status, handle.tree.root.error_code) == ("failed", "recovery_limit")
        check_stream([chunk async for chunk in handle.stream()])


@pytest.mark.anyio
@pytest.mark.parametrize("calls", [1, 10], ids=["in each step", "one call after the other"])
async def test_a_tool_that_kills_its_owner_again_and_again_ends_its_agent(calls: int) -> None:
    @tool(sequential=True)
    async def deadly() -> None:
        await anyio.sleep_forever()

    model = FunctionModel(lambda request: Turn(calls=[Call("deadly") for _ in range(calls)]))
    agent = Agent("boss", tools=[deadly], model=model)
    kept: list[Any] = []
    deaths = 0
    with anyio.fail_after(30):
        while not kept or isinstance(kept[-1], c.ToolStart):
            store, last = MemoryStore(), len(kept)
            async with Executor(store=store, agents=[agent]) as executor:
                if kept:
                    await leave(store, kept)
                    [handle] = await executor.recover()
                else:
                    handle = await executor.execute(agent, "go", run_id="r")
                kept = []
                async for chunk in handle.stream():
                    kept.append(chunk)
                    if isinstance(chunk, c.ToolStart) and chunk.sequence > last:
                        deaths += 1
                        break
                await handle.cancel()
    assert (kept[-1].status, kept[-1].error_code) == ("failed", "recovery_limit")
    assert deaths == MAX_CRASHES
    check_stream(kept)


@pytest.mark.anyio
@pytest.mark.parametrize("place", ["postgresql", "redis"])
async def test_a_lost_connection_loses_nothing(place: str, tmp_path: Path) -> None:
    with PLACES[place](tmp_path) as url:
        job, wire = new_job(url, tmp_path), Wire(url)

        async def cut(chunk: c.Chunk) -> None:
            if chunk.sequence in (5, 30, 60):
                wire.cut()

        async with wire.at(url) as through, executor_of(replace(job, url=through)) as executor:
            await executor.execute(boss(Fate(job)), "go", run_id=job.run_id)
            with anyio.fail_after(30):
                await finish(executor, job.run_id, cut)
        await judge(job, offsets=5)
