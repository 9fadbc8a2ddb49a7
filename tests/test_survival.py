"""Runs survive their process: killed anywhere, stopped and overtaken, answered from elsewhere, cut from their store."""

from __future__ import annotations

import json
import random
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from helix import Executor, chunk_to_json
from helix import chunks as c
from helix.stores import open_store
from helix.testing import check_stream
from tests import services
from tests.survivor import POINTS, Fate, Job, World, boss, finish, job_to_json

# ruff: noqa: ASYNC240 - tests may block: nothing else runs


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
    run_id = secrets.token_hex(8)
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
    return Executor(store=job.url, agents=[boss(fate)], deps=World(Path(job.directory) / "effects", fate))


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
    job = new_job(url, tmp_path, mode=mode)
    assert not await survives(nursery, job)
    print(lines_of(job, "counts"), len(lines_of(job, "seen")))


# --- the matrix: every place to die


def deaths(mode: str) -> list[dict[str, Any]]:
    """All ways to die in that mode; a few lie behind the end of the run, and then nobody dies."""
    stores = [{"kind": "store", "at": n, "when": when} for n in range(1, 22) for when in ("before", "during", "after")]
    numbered = [{"kind": kind, "at": n} for kind in ("append", "seen") for n in range(1, 101)]
    points = [{"kind": "point", "at": name} for name in POINTS]
    return [{"mode": mode, **death} for death in [*stores, *numbered, *points]]


ALL_DEATHS = [death for mode in MODES for death in deaths(mode)]
NAMED = [
    *({"mode": mode, "kind": "point", "at": name} for mode, name in zip(MODES * 9, POINTS[:-10], strict=False)),
]


@pytest.mark.anyio
async def test_a_run_survives_death_anywhere(url: str, nursery: Nursery, tmp_path: Path) -> None:
    some = random.Random(url[:6]).sample(ALL_DEATHS, 12)
    killed = [await survives(nursery, new_job(url, tmp_path, **death), offsets=12) for death in some]
    assert sum(killed) > 6


@pytest.mark.full
@pytest.mark.anyio
@pytest.mark.parametrize("mode", MODES)
async def test_a_run_survives_death_everywhere(url: str, nursery: Nursery, tmp_path: Path, mode: str) -> None:
    killed = [await survives(nursery, new_job(url, tmp_path, **death)) for death in deaths(mode)]
    print(f"{sum(killed)} of {len(killed)} were killed")
    assert sum(killed) > len(killed) * 0.8
