"""Every store under one suite; and what only several processes show."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from helix.errors import DefinitionError, StaleWriter, UsageError
from helix.store import Write
from helix.stores import _postgres_sql, open_store
from helix.stores._lost import option, shown, without_secrets
from helix.stores.memory import MemoryStore
from helix.stores.sqlite import SqliteStore
from helix.testing.store_races import begin, line, takeover
from helix.testing.store_suite import MakeStore, StoreSuite
from tests import services
from tests.around import Around


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class TestMemory(StoreSuite):
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return request.param

    @pytest.fixture
    def make_store(self) -> MakeStore:
        store = MemoryStore()
        return lambda: store


class TestSqlite(StoreSuite):
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return request.param

    @pytest.fixture
    def make_store(self, tmp_path: Path) -> MakeStore:
        return lambda: SqliteStore(tmp_path / "runs.db")


class TestPostgres(StoreSuite):
    @pytest.fixture
    def make_store(self) -> Iterator[MakeStore]:
        with services.postgres() as url:
            yield lambda: open_store(url)


class TestRedis(StoreSuite):
    @pytest.fixture
    def make_store(self) -> Iterator[MakeStore]:
        with services.redis_server() as url:
            yield lambda: open_store(url)


# --- the races can be lost


class Unfenced(Around):
    """A store whose writers never know that they are stale."""

    async def append(self, write: Write) -> None:
        try:
            await self._inner.append(write)
        except StaleWriter as stale:
            record = await self._inner.get(write.run_id)
            await self._inner.append(Write(write.run_id, stale.epoch, record.last_sequence, write.chunks))


@pytest.mark.anyio
async def test_without_a_fence_the_race_is_lost() -> None:
    store = MemoryStore()
    careless: Any = Unfenced(store)
    assert await takeover(careless, store) > 0
    assert await takeover(store, store) == 0


@pytest.mark.anyio
async def test_a_fence_that_only_looks_lets_stale_chunks_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in PostgreSQL: a row that is looked at, and not locked, may be another one when the insert is done."""
    fence = " WHERE run_id = %(run_id)s AND epoch = %(epoch)s AND owner IS NOT NULL"
    assert _postgres_sql.APPEND.count(fence) == 1
    looks = f"WITH fence AS MATERIALIZED (SELECT number AS fenced, pg_sleep(0.005) FROM {{s}}.runs{fence}), run AS ("
    looking = _postgres_sql.APPEND.replace(fence, " FROM fence WHERE number = fenced").replace("WITH run AS (", looks)
    with services.postgres() as url:
        async with open_store(url) as old, open_store(url) as new:
            monkeypatch.setattr(_postgres_sql, "APPEND", looking)
            with anyio.fail_after(60):
                stale = [await takeover(old, new) for _ in range(10)]
    assert sum(stale) > 0


# --- several processes


@contextmanager
def sqlite_url(directory: Path) -> Generator[str]:
    """A file that is not there yet."""
    yield f"sqlite:///{directory / 'shared.db'}"


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    places = {"sqlite": lambda: sqlite_url(tmp_path), "postgresql": services.postgres, "redis": services.redis_server}
    with places[request.param]() as found:
        yield found


CREATE = """
import sys, anyio
from helix.stores import open_store
from helix.testing.store_races import begin

async def main():
    print("ready", flush=True)
    sys.stdin.readline()
    async with open_store(sys.argv[1]) as store:
        print(await begin(store), flush=True)

anyio.run(main)
"""
ECHO = """
import sys, anyio
from helix.store import Write
from helix.stores import open_store

async def main(run_id):
    async with open_store(sys.argv[1]) as store:
        after = 1
        while after < 40:
            await store.wait(run_id, chunks_after=after, timeout=20)
            found = await store.read(run_id, after)
            after += len(found)
            if found:
                await store.append(Write(run_id, 1, after, [b'{"type":"custom"}']))
                after += 1

anyio.run(main, sys.argv[2])
"""


@contextmanager
def start(code: str, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """Another process that runs this code; it does not outlive the test."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def end_of(process: subprocess.Popen[str]) -> str:
    """What it says until it ends, which it does well."""
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    return said.strip()


@pytest.mark.anyio
async def test_processes_that_make_the_store_at_once_all_succeed(url: str) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(start(CREATE, url)) for _ in range(4)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        run_ids = [end_of(process) for process in processes]
    async with open_store(url) as store:
        assert {run.run_id for run in await store.runs()} == set(run_ids)


@pytest.mark.anyio
async def test_another_process_is_woken_and_wakes(url: str) -> None:
    """Twenty times to and fro: who only looked once a second would need twenty seconds at least."""
    async with open_store(url) as store:
        run_id = await begin(store)
        with start(ECHO, url, run_id) as other, anyio.fail_after(15):
            after = 1
            while after < 40:
                await store.append(Write(run_id, 1, after, [line("ping")]))
                while await store.read(run_id, after + 1) == []:
                    await store.wait(run_id, chunks_after=after + 1, timeout=20)
                after += 2
            await to_thread.run_sync(end_of, other)
        assert [number for number, _ in await store.read(run_id)] == list(range(1, 42))


# --- cancellation


@pytest.mark.anyio
async def test_an_append_that_is_cancelled_is_done(url: str) -> None:
    async with open_store(url) as store:
        run_id = await begin(store)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.append, Write(run_id, 1, 1, [line(f"{n}") for n in range(1000)]))
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert (await store.get(run_id)).last_sequence in (1, 1001)
        assert len(await store.read(run_id)) == min(1000, (await store.get(run_id)).last_sequence)


@pytest.mark.anyio
async def test_readers_and_waiters_that_are_cancelled_leave_a_store_that_works(url: str) -> None:
    async with open_store(url) as store:
        run_id = await begin(store, chunks=500)
        for _ in range(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.read, run_id)
                tasks.start_soon(store.get, run_id)
                tasks.start_soon(lambda: store.wait(run_id, chunks_after=500, timeout=60))
                await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        assert len(await store.read(run_id)) == 500


# --- URLs


@pytest.mark.anyio
async def test_a_url_opens_a_store(tmp_path: Path) -> None:
    assert repr(open_store("memory:")) == "MemoryStore(0 runs)"
    assert repr(open_store("sqlite:///a/b%20c.db")) == "SqliteStore('a/b c.db')"
    assert repr(open_store("sqlite:////a/b.db")) == "SqliteStore('/a/b.db')"
    url = "postgresql://me:secret@db.example:5433/runs?sslmode=require&password=other"
    assert repr(open_store(url)) == (
        "PostgresStore('postgresql://me:***@db.example:5433/runs?sslmode=require&password=***')"
    )
    assert repr(open_store("redis://:secret@cache/1")) == "RedisStore('redis://:***@cache/1')"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlit:///x.db", r"no store has URLs that begin with 'sqlit:'. Did you mean 'sqlite'\?"),
        ("postgre://h/d", r"Did you mean 'postgres"),
        ("runs.db", "a store's URL is wanted: memory:, sqlite:///PATH"),
        ("sqlite://", "not a whole sqlite URL"),
        ("sqlite:///:memory:", "for memory there is MemoryStore"),
        ("postgresql://h/d?schema=no-good", "the schema 'no-good' is not usable"),
        ("redis://h/0?prefix={x}", "the prefix '{x}' is not usable"),
    ],
)
def test_a_url_that_makes_no_sense_says_what_would(url: str, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        open_store(url)


def test_passwords_are_not_shown() -> None:
    assert shown("postgresql://u:p%40ss@h/d") == "postgresql://u:***@h/d"
    assert shown("postgresql://h/d") == "postgresql://h/d"
    assert shown("redis://[::1") == "redis://…"
    assert without_secrets("p@ss or p%40ss", "postgresql://u:p%40ss@h/d") == "*** or ***"
    assert without_secrets("no x here", "postgresql://u@h/d?password=x") == "no *** here"
    assert shown("unix:///run/redis.sock?db=1") == "unix:///run/redis.sock?db=1"
    assert option("postgresql:///d?options=-c%20a%3Db&schema=x", "schema", "helix") == (
        "postgresql:///d?options=-c%20a%3Db",
        "x",
    )
    assert option("redis://h/0?prefix=a&protocol=3", "prefix", "helix") == ("redis://h/0?protocol=3", "a")


@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.parametrize("url", ["postgresql://127.0.0.1/x", "redis://127.0.0.1/0"])
@pytest.mark.anyio
async def test_network_stores_refuse_trio(url: str) -> None:
    with pytest.raises(UsageError, match="runs on asyncio only, not on trio"):
        await open_store(url).__aenter__()


@pytest.mark.anyio
async def test_a_store_that_is_not_entered_or_is_entered_twice_says_so(url: str) -> None:
    store = open_store(url)
    with pytest.raises(UsageError, match="is not open; write `async with` around its use"):
        await store.get("x")
    async with store:
        with pytest.raises(UsageError, match="is entered already"):
            await store.__aenter__()
        run_id = await begin(store)
    async with store:
        assert (await store.get(run_id)).status == "running"


@pytest.mark.parametrize(("module", "extra"), [("postgres", "psycopg"), ("redis", "redis")])
def test_a_missing_driver_is_told_with_the_command_that_installs_it(module: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules['{extra}'] = None\n"
        f"try:\n    import helix.stores.{module}\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith(f"needs a driver: pip install 'helix-agents[{module}]'\n")


def test_importing_helix_stores_loads_no_driver() -> None:
    code = "import sys, helix.stores; print([name for name in ('psycopg', 'redis', 'sqlite3') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"
