"""Stores when things go wrong: connections lost at the worst moment, full disks, damaged files, a killed process."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

from helix.errors import RunBusy, SessionBusy, StaleWriter, StoreError
from helix.store import Claim, NewRun, Post, Store, Write
from helix.stores import open_store
from helix.stores.postgres import PostgresStore
from helix.stores.redis import RedisStore
from helix.stores.sqlite import SqliteStore
from helix.testing.store_races import begin, line
from tests import services

# ruff: noqa: ASYNC220, ASYNC240 - tests may block: nothing else runs

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# --- lost connections


class Wire:
    """Stands between a store and its server, and cuts connections.

    Attributes:
        mark: the next request that has these bytes is cut: every connection is closed.
        lose: `request`: the server does not get it; `reply`: the server does it, and the store does not hear of it.
        meanwhile: what happens before the store is let in again.
        cuts: how many there were.
    """

    def __init__(self, url: str) -> None:
        self._target = services.address(url)
        self._open: set[asyncio.StreamWriter] = set()
        self._back = asyncio.Event()
        self._back.set()
        self.mark: bytes | None = None
        self.lose = "reply"
        self.meanwhile: Callable[[], Awaitable[Any]] | None = None
        self.cuts = 0

    @asynccontextmanager
    async def at(self, url: str) -> AsyncGenerator[str]:
        """The URL that leads through the wire."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        parts = urlsplit(url)
        user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        try:
            yield parts._replace(netloc=f"{user}127.0.0.1:{port}").geturl()
        finally:
            server.close()
            self.cut()
            await server.wait_closed()

    def cut(self) -> None:
        """Closes all connections."""
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._back.wait()
        ends = {writer}
        try:
            from_server, to_server = await asyncio.open_connection(*self._target)
            ends.add(to_server)
            self._open |= ends
            swallowing, swallowed = asyncio.Event(), asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._requests(reader, to_server, swallowing, swallowed))
                tasks.create_task(self._replies(from_server, writer, swallowing, swallowed))
        except* OSError:
            pass
        finally:
            self._open -= ends
            for end in ends:
                end.transport.abort()

    async def _requests(
        self,
        reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        swallowing: asyncio.Event,
        swallowed: asyncio.Event,
    ) -> None:
        seen = b""
        while data := await reader.read(65536):
            seen = seen[-100:] + data
            if self.mark is None or self.mark not in seen:
                server.write(data)
                await server.drain()
                continue
            self.mark = None
            self._back.clear()
            if self.lose == "reply":
                swallowing.set()
                server.write(data)
                await swallowed.wait()
            await self._lose()
            raise ConnectionError("cut")
        server.transport.abort()

    async def _lose(self) -> None:
        self.cuts += 1
        self.cut()
        if self.meanwhile is not None:
            await self.meanwhile()
        self._back.set()

    async def _replies(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        swallowing: asyncio.Event,
        swallowed: asyncio.Event,
    ) -> None:
        while data := await reader.read(65536):
            if swallowing.is_set():
                swallowed.set()
                continue
            writer.write(data)
            await writer.drain()
        writer.transport.abort()


@pytest.fixture(params=["postgresql", "redis"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with {"postgresql": services.postgres, "redis": services.redis_server}[request.param]() as found:
        yield found


def patient(url: str, patience: float) -> Store:
    """A store that goes on trying for so long."""
    return (PostgresStore if url.startswith("postgres") else RedisStore)(url, patience=patience)


@pytest.mark.parametrize("lose", ["request", "reply"])
async def test_what_was_cut_off_is_done_once(url: str, lose: str) -> None:
    wire = Wire(url)
    wire.lose = lose
    async with wire.at(url) as through, open_store(through) as store:
        with anyio.fail_after(30):
            wire.mark = b"new-run"
            assert await store.create(NewRun("new-run", "root", "s"), [line("1")], owner="me", lease=0) == Claim(1, 1)
            wire.mark = b"second"
            assert await store.claim("new-run", owner="second", lease=60) == Claim(2, 1)
            with pytest.raises(RunBusy):
                await store.claim("new-run", owner="second", lease=60)
            wire.mark = b"marked"
            await store.append(Write("new-run", 2, 1, [line("marked"), line("3", "text_delta")]))
            wire.mark = b"command"
            assert await store.post("new-run", "command", b"{}") is True
            assert await store.post("new-run", "command", b"{}") is False
            wire.mark = b"acknowledged-with"
            await store.append(Write("new-run", 2, 3, [line("acknowledged-with")], acknowledge=["command"]))
            wire.mark = b"interrupted"
            await store.append(Write("new-run", 2, 4, status="interrupted"))
            wire.mark = b"new-run"
            await store.delete("new-run")
        assert wire.cuts == 7
        assert await store.runs() == []


async def test_an_append_that_was_written_counts_though_another_owner_came_in_between(url: str) -> None:
    wire = Wire(url)
    async with open_store(url) as direct, wire.at(url) as through, open_store(through) as store:
        run_id = await begin(store, lease=0)

        async def take_over() -> None:
            claim = await direct.claim(run_id, owner="second", lease=60)
            await direct.append(Write(run_id, claim.epoch, claim.last_sequence, [line("theirs")]))

        wire.meanwhile = take_over
        with anyio.fail_after(30):
            wire.mark = b"mine"
            await store.append(Write(run_id, 1, 1, [line("mine")], lease=0))
            assert [data for _, data in await store.read(run_id, 1)] == [line("mine"), line("theirs")]
            with pytest.raises(StaleWriter):
                await store.append(Write(run_id, 1, 2, [line("more")]))


async def test_an_append_that_was_not_written_is_refused_when_another_owner_came_in_between(url: str) -> None:
    wire = Wire(url)
    wire.lose = "request"
    async with open_store(url) as direct, wire.at(url) as through, open_store(through) as store:
        run_id = await begin(store, lease=0)

        async def take_over() -> None:
            claim = await direct.claim(run_id, owner="second", lease=60)
            await direct.append(Write(run_id, claim.epoch, claim.last_sequence, [line("theirs")]))

        wire.meanwhile = take_over
        wire.mark = b"mine"
        with anyio.fail_after(30), pytest.raises(StaleWriter):
            await store.append(Write(run_id, 1, 1, [line("mine")], lease=0))
        assert await store.take(run_id) == list[Post]()


async def test_readers_and_waiters_go_on_after_a_cut(url: str) -> None:
    wire = Wire(url)
    async with open_store(url) as direct, wire.at(url) as through, open_store(through) as store:
        run_id = await begin(direct)
        with anyio.fail_after(30):
            for number in range(1, 6):
                assert len(await store.read(run_id)) == number
                wire.cut()
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(lambda after: store.wait(run_id, chunks_after=after, timeout=20), number)
                    await direct.append(Write(run_id, 1, number, [line("x")]))


async def test_a_server_that_is_gone_is_told_without_the_password(url: str) -> None:
    wire = Wire(url)
    async with wire.at(url) as through, patient(through, 0.3) as store:
        run_id = await begin(store)
        wire._target = ("127.0.0.1", 1)
        wire.cut()
        with anyio.fail_after(10), pytest.raises(StoreError, match=r"cannot be reached .*; see that it runs"):
            await store.append(Write(run_id, 1, 1, [line("x")]))
        wire._target = services.address(url)
        await store.append(Write(run_id, 1, 1, [line("x")]))


@pytest.mark.parametrize(
    "url", ["postgresql://me:hush@127.0.0.1:1/d", "redis://:hush@127.0.0.1:1/0"], ids=["pg", "redis"]
)
async def test_a_server_that_was_never_there_is_told_at_once(url: str) -> None:
    with anyio.fail_after(10), pytest.raises(StoreError, match=r"\*\*\*@127.0.0.1:1/.* cannot be reached") as caught:
        await open_store(url).__aenter__()
    error: BaseException | None = caught.value
    while error is not None:
        assert "hush" not in str(error)
        error = error.__cause__


async def test_a_newer_schema_is_refused_and_left(url: str) -> None:
    async with open_store(url) as store:
        run_id = await begin(store)
    change(url, 99)
    with pytest.raises(StoreError, match=r"newer helix \(schema 99, this one knows \d\); upgrade helix") as caught:
        await open_store(url).__aenter__()
    change(url, int(str(caught.value).partition("this one knows ")[2][0]))
    async with open_store(url) as store:
        assert (await store.get(run_id)).last_sequence == 1


def change(url: str, version: int) -> None:
    """Sets the schema's version."""
    name = url.rpartition("=")[2]
    if url.startswith("postgres"):
        services.sql(f"UPDATE {name}.version SET version = {version}")
    else:
        with services.plain_redis() as client:
            client.set(f"{{{name}}}:schema", version)


async def test_runs_of_an_older_schema_follow_one_another() -> None:
    with services.postgres() as url:
        name = url.rpartition("=")[2]
        async with open_store(url) as store:
            runs = [await begin(store)]
            for follows in (None, 1):
                runs.append(await begin(store, session_id="s", follows=follows and runs[follows]))
                await store.append(Write(runs[-1], 1, 1, status="completed"))
        services.sql(f"ALTER TABLE {name}.runs DROP COLUMN follows")  # and its index, as it was before
        change(url, 1)
        async with open_store(url) as store:
            assert [run.run_id for run in await store.runs(session_id="s")] == [runs[2], runs[1]]
            with pytest.raises(SessionBusy, match=runs[2]):
                await begin(store, session_id="s", follows=runs[1])
            await begin(store, session_id="s", follows=runs[2])
        assert services.sql(f"SELECT follows FROM {name}.runs ORDER BY number") == [
            (None,),
            (None,),
            (runs[1],),
            (runs[2],),
        ]


async def test_tables_that_are_gone_are_told() -> None:
    with services.postgres() as url:
        async with open_store(url) as store:
            run_id = await begin(store)
            services.sql(f"DROP SCHEMA {url.rpartition('=')[2]} CASCADE")
            with pytest.raises(StoreError, match="its tables are gone; enter the store again to make them"):
                await store.append(Write(run_id, 1, 1, [line("x")]))
        async with open_store(url) as store:
            await begin(store)


async def test_redis_without_memory_refuses_and_has_all_it_had(tmp_path: Path) -> None:
    async with own_redis(tmp_path, "--maxmemory", "3mb") as url, open_store(url) as store:
        run_id, after = await begin(store), 1
        with pytest.raises(StoreError, match=r"memory is full\. Nothing of this was written"):
            while True:
                await store.append(Write(run_id, 1, after, [line("x" * 50_000)] * 4))
                after += 4
        assert len(await store.read(run_id)) == after
        assert (await store.get(run_id)).last_sequence == after


@pytest.mark.parametrize(
    ("user", "words"),
    [("", "wants a password: redis://:PASSWORD@HOST"), (":wrong@", "the user name or the password is wrong")],
)
async def test_redis_with_a_password_is_told_how(tmp_path: Path, user: str, words: str) -> None:
    async with own_redis(tmp_path, "--requirepass", "hush") as url:
        with anyio.fail_after(5), pytest.raises(StoreError, match=words):
            await open_store(url.replace("unix://", f"unix://{user}")).__aenter__()
        async with open_store(url.replace("unix://", "unix://:hush@")) as store:
            await begin(store)


async def test_a_redis_that_may_not_write_is_tried_again_for_a_while(tmp_path: Path) -> None:
    async with own_redis(tmp_path) as url, RedisStore(url, patience=0.2) as store:
        run_id = await begin(store)
        await redis_cli(tmp_path, "replicaof", "127.0.0.1", "1")
        with anyio.fail_after(5), pytest.raises(StoreError, match="read only replica"):
            await store.append(Write(run_id, 1, 1, [line("x")]))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.append, Write(run_id, 1, 1, [line("x")]))
            await redis_cli(tmp_path, "replicaof", "no", "one")
        assert len(await store.read(run_id)) == 2


async def test_redis_in_a_cluster_keeps_all_in_one_slot(tmp_path: Path) -> None:
    async with own_redis(tmp_path, "--cluster-enabled", "yes") as url, open_store(url) as store:
        run_id = await begin(store, session_id="s")
        await store.post(run_id, "a", b"a")
        await store.append(Write(run_id, 1, 1, [line("x")], status="suspended", acknowledge=["a"]))
        assert [run.run_id for run in await store.runs(session_id="s")] == [run_id]
        assert len(await store.read(run_id)) == 2
        assert await store.trim(run_id, 2) == 0
        assert await store.delete_session("s") == 1


@asynccontextmanager
async def own_redis(directory: Path, *options: str) -> AsyncGenerator[str]:
    """A server of the test's own, at a socket."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed")
    path = directory / "s"
    common = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(directory)]
    if "--cluster-enabled" in options:
        common[1] = "21379"
    with subprocess.Popen([program, *common, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            while "ready to accept connections" not in (said := process.stdout.readline()):
                assert said, "redis-server did not start"
            if "--cluster-enabled" in options:
                await redis_cli(directory, "cluster", "addslotsrange", "0", "16383")
                while b"cluster_state:ok" not in await redis_cli(directory, "cluster", "info"):
                    pass
            yield f"unix://{path}"
        finally:
            process.terminate()
            process.communicate()


async def redis_cli(directory: Path, *words: str) -> bytes:
    """What that server answers."""
    return (await anyio.run_process(["redis-cli", "-s", str(directory / "s"), *words])).stdout


# --- one file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


async def test_a_full_disk_undoes_the_append_and_nothing_else(path: Path) -> None:
    async with SqliteStore(path) as store:
        run_id = await begin(store)
        writer = store._file._opened()[0]
        [pages] = writer.execute("PRAGMA page_count").fetchone()
        writer.execute(f"PRAGMA max_page_count = {pages + 30}")
        after = 1
        with pytest.raises(
            StoreError, match=r"the disk is full\. Nothing of this was written; what was there is whole"
        ):
            while True:
                await store.append(Write(run_id, 1, after, [line("x" * 2000)] * 10))
                after += 10
        assert (await store.get(run_id)).last_sequence == len(await store.read(run_id)) == after
        writer.execute("PRAGMA max_page_count = 1000000")
        await store.append(Write(run_id, 1, after, [line("x" * 2000)] * 10))


async def test_of_appends_that_share_a_transaction_only_the_one_too_large_fails(path: Path) -> None:
    async with SqliteStore(path) as store:
        runs = [await begin(store) for _ in range(4)]
        writer = store._file._opened()[0]
        [pages] = writer.execute("PRAGMA page_count").fetchone()
        writer.execute(f"PRAGMA max_page_count = {pages + 20}")
        failed: list[str] = []

        async def append(run_id: str, size: int) -> None:
            try:
                await store.append(Write(run_id, 1, 1, [line("x" * size)]))
            except StoreError:
                failed.append(run_id)

        async with anyio.create_task_group() as tasks:
            for number, run_id in enumerate(runs):
                tasks.start_soon(append, run_id, 1_000_000 if number == 2 else 10)
        assert failed == [runs[2]]
        assert [(await store.get(run_id)).last_sequence for run_id in runs] == [2, 2, 1, 2]


@pytest.mark.parametrize("size", [0, 2000], ids=["empty wal", "part of the wal"])
async def test_what_was_not_whole_in_the_write_ahead_log_was_never_there(path: Path, size: int) -> None:
    async with SqliteStore(path) as store:
        run_id = await begin(store)
        await store.append(Write(run_id, 1, 1, [line("2")]))
        await store.append(Write(run_id, 1, 2, [line("x" * 10_000)]))
        copy = path.with_name("copy.db")
        shutil.copy(path, copy)
        wal = path.with_name("runs.db-wal").read_bytes()
        copy.with_name("copy.db-wal").write_bytes(wal[: len(wal) - 9000] if size else wal)
    async with SqliteStore(copy) as store:
        found = await store.read(run_id)
        assert [number for number, _ in found] == ([1, 2] if size else [1, 2, 3])
        await store.append(Write(run_id, 1, len(found), [line("next")]))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"\x00" * 100 + data[100:], "it is no SQLite file, or its beginning is damaged"),
        (lambda data: data[: len(data) // 2], "the file is damaged. Copy it with its -wal"),
        (lambda data: data[:4096] + b"\xff" * (len(data) - 4096), "the file is damaged"),
        (lambda data: b"not a database, but a text" * 100, "it is no SQLite file"),
    ],
    ids=["header", "cut", "pages", "text"],
)
async def test_a_damaged_file_is_told_and_left(path: Path, damage: Callable[[bytes], bytes], words: str) -> None:
    async with SqliteStore(path) as store:
        run_id = await begin(store)
        await store.append(Write(run_id, 1, 1, [line("x" * 3000)] * 200))
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(StoreError, match=words) as caught:
        async with SqliteStore(path) as store:
            await store.read(run_id)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == damaged


async def test_a_database_of_another_program_is_left(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE runs (mine)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="is a database of another program; it was left as it is"):
        await SqliteStore(path).__aenter__()
    assert path.read_bytes() == before


async def test_a_newer_file_is_refused_and_left(path: Path) -> None:
    async with SqliteStore(path) as store:
        await begin(store)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"written by a newer helix \(schema 99, this one knows \d\); upgrade helix"):
        await SqliteStore(path).__aenter__()
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", ["nowhere/runs.db", "file/runs.db", "directory"])
async def test_a_place_where_no_file_can_be_is_told(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "directory").mkdir()
    words = "cannot be opened or made here: see whether its directory exists and may be written"
    with pytest.raises(StoreError, match=f"{re.escape(str(tmp_path / place))}: it {words}"):
        await SqliteStore(tmp_path / place).__aenter__()


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a directory that not even root can write")
async def test_a_read_only_directory_is_told() -> None:
    with pytest.raises(StoreError, match=r"/sys/kernel/runs.db: it cannot be opened or made here"):
        await SqliteStore("/sys/kernel/runs.db").__aenter__()


async def test_another_process_that_keeps_the_file_locked_is_told(path: Path) -> None:
    async with SqliteStore(path, patience=0.1) as store:
        run_id = await begin(store)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process has kept it locked for too long; nothing of this was"):
            await store.append(Write(run_id, 1, 1, [line("x")]))
        assert len(await store.read(run_id)) == 1
        other.close()
        await store.append(Write(run_id, 1, 1, [line("x")]))


WRITE = """
import sys, anyio
from helix.store import Write
from helix.stores import open_store
from helix.testing.store_races import begin, line

async def main():
    async with open_store(sys.argv[1]) as store:
        run_id, after = await begin(store), 1
        while True:
            await store.append(Write(run_id, 1, after, [line("x" * 500)] * 7, lease=0))
            after += 7
            print(f'["{run_id}", {after}]', flush=True)

anyio.run(main)
"""


@pytest.mark.parametrize("lines", [1, 10, 57])
async def test_what_was_said_to_be_written_survives_kill_9(path: Path, lines: int) -> None:
    command = [sys.executable, "-c", WRITE, f"sqlite:///{path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        said += process.stdout.read().splitlines(keepends=True)
    run_id, after = json.loads([text for text in said if text.endswith("\n")][-1])
    async with SqliteStore(path) as store:
        last = (await store.get(run_id)).last_sequence
        assert last - after in (0, 7)
        assert [number for number, _ in await store.read(run_id)] == list(range(1, min(last, 1000) + 1))
        assert await store.claimable() == [run_id]
        claim = await store.claim(run_id, owner="second", lease=60)
        await store.append(Write(run_id, claim.epoch, claim.last_sequence, [line("on")]))
