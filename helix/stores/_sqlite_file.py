"""One SQLite file: opened and upgraded, written in groups, read beside the writing; its errors in helix's words.

Floor 2: above the standard library's `sqlite3`; `helix.stores.sqlite` stands on it. SQLite blocks, so all of it happens
in worker threads.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import anyio
from anyio import to_thread

from helix.errors import HelixError, StoreError, UsageError

T = TypeVar("T")
Act: TypeAlias = Callable[[sqlite3.Connection], Any]
"""What is done in a transaction; a `HelixError` that it raises undoes it."""

APPLICATION = 0x68656C78
"""`helx`: in the file's header, says that it is ours."""

_OPEN = "status NOT IN ('completed', 'failed', 'cancelled')"
MIGRATIONS: list[list[str]] = [
    [
        "CREATE TABLE runs (number INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, session_id TEXT,"
        " agent_type TEXT NOT NULL, metadata TEXT NOT NULL, status TEXT NOT NULL, last_sequence INTEGER NOT NULL,"
        " epoch INTEGER NOT NULL, owner TEXT, lease_until REAL NOT NULL, created_at INTEGER NOT NULL,"
        " updated_at INTEGER NOT NULL, deadline INTEGER, floor INTEGER NOT NULL, posted INTEGER NOT NULL)",
        f"CREATE UNIQUE INDEX one_open_run_a_session ON runs (session_id) WHERE {_OPEN}",
        "CREATE INDEX runs_of_session ON runs (session_id, number)",
        f"CREATE INDEX open_runs ON runs (number) WHERE {_OPEN}",
        "CREATE TABLE chunks (run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE, sequence INTEGER NOT NULL,"
        " delta INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (run, sequence)) WITHOUT ROWID",
        "CREATE INDEX structure ON chunks (run, sequence) WHERE NOT delta",
        "CREATE TABLE posts (run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE, position INTEGER NOT NULL,"
        " command_id TEXT NOT NULL, data BLOB, PRIMARY KEY (run, position), UNIQUE (run, command_id))",
    ],
]
"""What makes schema n + 1 of schema n. `posts.data` is null once the command is acknowledged."""

_MEANINGS = {
    "SQLITE_FULL": "the disk is full. Nothing of this was written; what was there is whole. Make room and try again",
    "SQLITE_CORRUPT": "the file is damaged. Copy it with its -wal, and try `sqlite3 FILE .recover` on the copy",
    "SQLITE_NOTADB": "it is no SQLite file, or its beginning is damaged; it was left as it is",
    "SQLITE_READONLY": "it cannot be written here: see the rights of the file and of its directory",
    "SQLITE_CANTOPEN": "it cannot be opened or made here: see whether its directory exists and may be written",
    "SQLITE_PERM": "it may not be opened: see the rights of the file and of its directory",
    "SQLITE_BUSY": "another process has kept it locked for too long; nothing of this was written. Try again",
    "SQLITE_IOERR": "the disk failed, or is full. Nothing of this was written, as far as SQLite can tell",
}


def store_error(error: sqlite3.Error, path: str) -> StoreError:
    """SQLite's error with its meaning."""
    name = str(getattr(error, "sqlite_errorname", ""))
    meaning = next((text for start, text in _MEANINGS.items() if name.startswith(start)), "SQLite says no")
    return StoreError(f"the store {path}: {meaning} ({error}{', ' if name else ''}{name})")


class _Job:
    """Something to be done in the next transaction, and what came of it."""

    __slots__ = ("act", "done", "error", "result")

    def __init__(self, act: Act) -> None:
        self.act = act
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None


class SqliteFile:
    """An open file: one connection that writes and one that reads.

    Writes that come while another one is being made durable share the next transaction, and so one flush to the disk.
    """

    def __init__(self, path: str, synchronous: Literal["full", "normal"], patience: float) -> None:
        self._path = path
        self._synchronous = synchronous
        self._patience = patience
        self._connections: tuple[sqlite3.Connection, sqlite3.Connection] | None = None
        self._jobs: list[_Job] = []
        self._writing, self._reading = anyio.Lock(), anyio.Lock()

    async def open(self) -> None:
        """Opens the file, and creates or upgrades it if it has to be.

        Raises:
            StoreError: it cannot be, or is not for this version of helix; the file is as it was.
            UsageError: it is open.
        """
        if self._connections is not None:
            raise UsageError(f"the store {self._path} is entered already; use one `async with` for each SqliteStore()")
        self._connections = await to_thread.run_sync(self._connect_both)

    async def close(self) -> None:
        """Closes it, after what is being written."""
        with anyio.CancelScope(shield=True):
            async with self._writing, self._reading:
                connections, self._connections = self._connections or (), None
                for connection in connections:
                    await to_thread.run_sync(connection.close)

    async def read(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """What `act` reads, in one snapshot; it does not wait for writers."""
        async with self._reading:
            connection = self._opened()[1]
            return await to_thread.run_sync(self._guarded, connection, _snapshot, act)

    async def write(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """What `act` returns, once what it did is durable. Not cut short by a cancellation."""
        self._opened()
        job = _Job(act)
        self._jobs.append(job)
        with anyio.CancelScope(shield=True):
            async with self._writing:
                if not job.done:
                    jobs, self._jobs = self._jobs, []
                    await to_thread.run_sync(self._do, jobs)
        if job.error is not None:
            raise job.error
        return job.result

    def _opened(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        if self._connections is None:
            raise UsageError(f"the store {self._path} is not open; write `async with` around its use")
        return self._connections

    # --- in worker threads

    def _guarded(self, connection: sqlite3.Connection, how: Callable[[sqlite3.Connection, Act], T], act: Act) -> T:
        try:
            return how(connection, act)
        except sqlite3.Error as error:
            raise store_error(error, self._path) from error

    def _do(self, jobs: Sequence[_Job]) -> None:
        connection = self._opened()[0]
        try:
            _transaction(connection, lambda inner: [_within(inner, job) for job in jobs])
        except sqlite3.Error:
            for job in jobs:  # one of them may have been too much: each for itself
                job.error = None
                try:
                    job.result = self._guarded(connection, _transaction, job.act)
                except HelixError as error:
                    job.error = error
        for job in jobs:
            job.done = True

    def _connect_both(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        opened: list[sqlite3.Connection] = []
        try:
            opened.append(self._connect())
            self._upgrade(opened[0])
            opened.append(self._connect())
        except sqlite3.Error as error:
            _close(opened)
            raise store_error(error, self._path) from error
        except BaseException:
            _close(opened)
            raise
        return opened[0], opened[1]

    def _connect(self) -> sqlite3.Connection:
        path = Path(self._path)
        connection = sqlite3.connect(path, timeout=self._patience, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        return connection

    def _upgrade(self, connection: sqlite3.Connection) -> None:
        _snapshot(connection, self._version)  # before anything is changed
        self._write_ahead(connection)

        def upgrade(inner: sqlite3.Connection) -> None:
            for statements in MIGRATIONS[self._version(inner) :]:
                for statement in statements:
                    inner.execute(statement)
            inner.execute(f"PRAGMA application_id = {APPLICATION}")
            inner.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

        if _snapshot(connection, self._version) < len(MIGRATIONS):
            _transaction(connection, upgrade)

    def _version(self, connection: sqlite3.Connection) -> int:
        """The file's schema; 0 for a new file."""
        [application], [version] = (
            connection.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        if application != APPLICATION:
            if application or version or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise StoreError(f"{self._path} is a database of another program; it was left as it is")
            return 0
        if version > len(MIGRATIONS):
            raise StoreError(
                f"the store {self._path} was written by a newer helix (schema {version}, this one knows "
                f"{len(MIGRATIONS)}); upgrade helix. It was left as it is"
            )
        return version

    def _write_ahead(self, connection: sqlite3.Connection) -> None:
        """Readers and the writer do not wait for each other. Two who switch it on at once may find it locked."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)  # in the store's own thread; SQLite's busy timeout does not cover this switch
        if mode != "wal":
            raise StoreError(f"the store {self._path}: this file system cannot do SQLite's WAL; put it on a local disk")


def _transaction(connection: sqlite3.Connection, act: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    return _finished(connection, act)


def _snapshot(connection: sqlite3.Connection, act: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN")
    return _finished(connection, act)


def _finished(connection: sqlite3.Connection, act: Callable[[sqlite3.Connection], T]) -> T:
    try:
        result = act(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # after some errors SQLite has rolled back by itself
            connection.execute("ROLLBACK")
        raise
    return result


def _within(connection: sqlite3.Connection, job: _Job) -> None:
    """One job of a transaction of many: what it refuses is undone for itself."""
    connection.execute("SAVEPOINT job")
    try:
        job.result = job.act(connection)
    except HelixError as error:
        job.error = error
        connection.execute("ROLLBACK TO job")
    connection.execute("RELEASE job")


def _close(connections: Sequence[sqlite3.Connection]) -> None:
    for connection in connections:
        connection.close()
