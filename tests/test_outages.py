"""A database that is away for a while: what was shown is not lost, and the run goes on, there or elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from helix import Executor, chunk_to_json
from helix import chunks as c
from helix.errors import StoreError
from helix.stores import open_store
from helix.stores.postgres import PostgresStore
from helix.testing.store_races import begin
from tests import services
from tests.survivor import Fate, Job, World, append_line, boss, finish
from tests.test_store_failures import Wire, patient
from tests.test_survival import PLACES, judge, new_job, nobody

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["postgresql", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with PLACES[request.param](tmp_path) as found:
        yield found


class Outage(Wire):
    """A wire that can be down: then all connections are dropped, and new ones refused."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._down = False
        self._refused = 0
        self._one_more = asyncio.Event()

    def begin(self) -> None:
        self._down = True
        self.cut()

    def end(self) -> None:
        self._down = False

    async def lasts(self, attempts: int) -> None:
        """Returns when so many have been refused."""
        while self._refused < attempts:
            self._one_more.clear()
            await self._one_more.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._down:
            self._refused += 1
            self._one_more.set()
            writer.transport.abort()
        else:
            await super()._serve(reader, writer)


def append_seen(job: Job, chunk: c.Chunk) -> None:
    """A reader has seen it."""
    append_line(Path(job.directory) / "seen", chunk_to_json(chunk))


def executor(job: Job, store: Any) -> Executor:
    fate = Fate(job)
    return Executor(store=store, agents=[boss(fate)], deps=World(Path(job.directory) / "effects", fate))


@pytest.mark.parametrize("sequence", [5, 60])
async def test_an_outage_of_some_seconds_is_ridden_out(url: str, tmp_path: Path, sequence: int) -> None:
    job, wire = new_job(url, tmp_path), Outage(url)
    begun = anyio.Event()

    async def watch(chunk: c.Chunk) -> None:
        append_seen(job, chunk)
        if chunk.sequence == sequence:
            wire.begin()
            begun.set()

    async def mend() -> None:
        await begun.wait()
        await wire.lasts(20)
        wire.end()

    with anyio.fail_after(60):
        async with wire.at(url) as through, executor(job, through) as first, executor(job, through) as second:
            handle = await first.execute(boss(Fate(job)), "go", run_id=job.run_id)
            elsewhere = (await second.get_handle(job.run_id)).stream()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(mend)
                await finish(first, job.run_id, watch)
            assert [chunk async for chunk in elsewhere] == [chunk async for chunk in handle.stream()]
        await judge(job, offsets=5)


async def test_after_an_outage_longer_than_its_lease_a_run_is_stopped_and_recovered(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helix.journal.LEASE_SECONDS", 1.0)
    job, wire = new_job(url, tmp_path), Outage(url)

    async def watch(chunk: c.Chunk) -> None:
        append_seen(job, chunk)
        if chunk.sequence == 30:
            wire.begin()

    with anyio.fail_after(60):
        async with wire.at(url) as through, executor(job, patient(through, 0.2)) as first:
            handle = await first.execute(boss(Fate(job)), "go", run_id=job.run_id)
            with pytest.raises(StoreError):
                await finish(first, job.run_id, watch)
            with pytest.raises(StoreError, match="cannot be reached"):
                await handle.result()
            wire.end()
            with pytest.raises(StoreError, match=r"could not be written for 1 s, .*recover\(\)"):
                await handle.result()
            async with executor(job, url) as second:
                [handle] = await second.recover()
                assert (await finish(second, job.run_id, nobody)).status == "completed"
        await judge(job, offsets=5)


async def test_a_wait_is_cancelled_at_any_moment_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with services.postgres() as url, anyio.fail_after(60):
        async with open_store(url) as store:
            run_id = await begin(store)
            for steps in range(60):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(lambda: store.wait(run_id, posts_after=0, timeout=20))
                    for _ in range(steps):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
        for steps in range(60):
            store = PostgresStore(url)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_opened, store)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
    assert caplog.text == ""


async def _opened(store: PostgresStore) -> None:
    async with store:
        pass
