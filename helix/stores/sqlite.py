"""Runs in one SQLite file: durable, without a server, for the processes of one machine.

Floor 2: implements `helix.store.Store` on `_sqlite_file`. News of other processes is found by looking every 50 ms.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any, Literal, Self

from helix.errors import DefinitionError, RunExists, UnknownRun
from helix.store import (
    ENDED,
    Claim,
    NewRun,
    Post,
    RunRecord,
    SessionRecord,
    Write,
    busy,
    check_claimable,
    ended,
    is_delta,
    not_free,
    refusal,
)
from helix.stores._sqlite_file import SqliteFile
from helix.stores.watch import Positions, Watch

_RECORD = (
    "run_id, agent_type, session_id, metadata, status, last_sequence, epoch, owner, lease_until, created_at,"
    " updated_at, deadline, floor"
)
_APPEND = (
    "UPDATE runs SET last_sequence = last_sequence + :added, updated_at = :now_ms, lease_until = :now + :lease,"
    " status = coalesce(:status, status), deadline = iif(:status IS NULL, deadline, :deadline),"
    " owner = iif(:gives_up, NULL, owner)"
    " WHERE run_id = :run_id AND epoch = :epoch AND owner IS NOT NULL AND last_sequence = :after RETURNING number"
)
_CLAIMABLE = (
    "SELECT run_id FROM runs WHERE status NOT IN ('completed', 'failed', 'cancelled')"
    " AND (owner IS NULL OR lease_until <= ?1) AND (status = 'running' OR deadline <= ?1 * 1000"
    " OR EXISTS (SELECT 1 FROM posts WHERE run = number AND data IS NOT NULL)) ORDER BY number LIMIT ?2"
)
_SESSIONS = (
    "SELECT s.session_id, s.runs, last.run_id, last.status, s.created_at, s.updated_at FROM (SELECT session_id,"
    " count(*) AS runs, max(number) AS newest, min(created_at) AS created_at, max(updated_at) AS updated_at FROM runs"
    " WHERE session_id IS NOT NULL GROUP BY session_id) AS s JOIN runs AS last ON last.number = s.newest"
    " WHERE ?1 IS NULL OR s.newest < (SELECT max(number) FROM runs WHERE session_id = ?1)"
    " ORDER BY s.newest DESC LIMIT ?2"
)


class SqliteStore:
    """A `Store` in a file, with SQLite's write-ahead log (`FILE-wal`, `FILE-shm` stand beside it while it is open).

    Args:
        path: the file; it is made if it is not there, its directory is not. Not on a network file system.
        synchronous: `full`: what was committed survives a power cut. `normal`: it survives the death of the process,
            but a power cut may take the last commits; about half as fast again for one writer.
        patience: seconds to wait for other processes that write.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, synchronous: Literal["full", "normal"] = "full", patience: float = 10.0
    ) -> None:
        self._path = os.fspath(path)
        if self._path in ("", ":memory:"):
            raise DefinitionError("SqliteStore keeps runs in a file; for memory there is MemoryStore")
        self._file = SqliteFile(self._path, synchronous, patience)
        self._watch = Watch(self._positions, every=0.05)

    def __repr__(self) -> str:
        return f"SqliteStore({self._path!r})"

    async def __aenter__(self) -> Self:
        await self._file.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._file.close()

    async def create(self, run: NewRun, chunks: Sequence[bytes], *, owner: str, lease: float) -> Claim:
        """As `Store.create`."""

        def create(db: sqlite3.Connection) -> Claim:
            if _one(db, "SELECT 1 FROM runs WHERE run_id = ?", run.run_id):
                raise RunExists(f"run {run.run_id!r} is in this store already")
            newest = "SELECT run_id, status FROM runs WHERE session_id = ? ORDER BY number DESC LIMIT 1"
            other, status = _one(db, newest, run.session_id) or (None, ENDED[0])
            if problem := not_free(run, other, ended=status in ENDED):
                raise problem
            now, metadata = time.time(), json.dumps(dict(run.metadata))
            made = db.execute(
                "INSERT INTO runs VALUES (NULL, ?, ?, ?, ?, 'running', ?, 1, ?, ?, ?, ?, NULL, 0, 0)",
                (
                    run.run_id,
                    run.session_id,
                    run.agent_type,
                    metadata,
                    len(chunks),
                    owner,
                    now + lease,
                    *(_ms(now),) * 2,
                ),
            )
            _insert(db, made.lastrowid, 0, chunks)
            return Claim(1, len(chunks))

        return await self._file.write(create)

    async def claim(self, run_id: str, *, owner: str, lease: float) -> Claim:
        """As `Store.claim`."""

        def claim(db: sqlite3.Connection) -> Claim:
            record = _record(db, run_id)
            check_claimable(run_id, record.status, record.owner, record.lease_left)
            db.execute(
                "UPDATE runs SET epoch = epoch + 1, owner = ?, lease_until = ? WHERE run_id = ?",
                (owner, time.time() + lease, run_id),
            )
            return Claim(record.epoch + 1, record.last_sequence)

        return await self._file.write(claim)

    async def append(self, write: Write) -> None:
        """As `Store.append`."""

        def append(db: sqlite3.Connection) -> None:
            now = time.time()
            given = {name: getattr(write, name) for name in ("run_id", "epoch", "after", "lease", "status", "deadline")}
            given |= {"added": len(write.chunks), "now": now, "now_ms": _ms(now), "gives_up": write.gives_up}
            found = db.execute(_APPEND, given).fetchone()
            if found is None:
                raise refusal(write, _record(db, write.run_id))
            _insert(db, found[0], write.after, write.chunks)
            acknowledged = [(found[0], command_id) for command_id in write.acknowledge]
            db.executemany("UPDATE posts SET data = NULL WHERE run = ? AND command_id = ?", acknowledged)

        await self._file.write(append)
        self._watch.wake(write.run_id, posts=False)

    async def read(
        self, run_id: str, from_offset: int = 0, *, limit: int = 1000, deltas: bool = True
    ) -> list[tuple[int, bytes]]:
        """As `Store.read`."""
        only = "" if deltas else "AND NOT delta"
        query = f"SELECT sequence, data FROM chunks WHERE run = ? AND sequence > ? {only} ORDER BY sequence LIMIT ?"
        return await self._file.read(lambda db: db.execute(query, (_number(db, run_id), from_offset, limit)).fetchall())

    async def wait(
        self, run_id: str, *, chunks_after: int | None = None, posts_after: int | None = None, timeout: float
    ) -> None:
        """As `Store.wait`."""
        await self._watch.wait(run_id, chunks_after, posts_after, timeout)

    async def post(self, run_id: str, command_id: str, data: bytes) -> bool:
        """As `Store.post`."""

        def post(db: sqlite3.Connection) -> bool:
            number, record = _number(db, run_id), _record(db, run_id)
            if _one(db, "SELECT 1 FROM posts WHERE run = ? AND command_id = ?", number, command_id):
                return False
            if record.status in ENDED:
                raise ended(run_id, record.status)
            [position] = _one(db, "UPDATE runs SET posted = posted + 1 WHERE number = ? RETURNING posted", number)
            db.execute("INSERT INTO posts VALUES (?, ?, ?, ?)", (number, position, command_id, data))
            return True

        new = await self._file.write(post)
        self._watch.wake(run_id)
        return new

    async def take(self, run_id: str, after: int = 0) -> list[Post]:
        """As `Store.take`."""
        query = (
            "SELECT position, command_id, data FROM posts WHERE run = ? AND position > ? AND data IS NOT NULL"
            " ORDER BY position"
        )
        return await self._file.read(lambda db: [Post(*row) for row in db.execute(query, (_number(db, run_id), after))])

    async def get(self, run_id: str) -> RunRecord:
        """As `Store.get`."""
        return await self._file.read(lambda db: _record(db, run_id))

    async def runs(
        self,
        *,
        session_id: str | None = None,
        statuses: Collection[str] | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[RunRecord]:
        """As `Store.runs`."""
        wanted = None if statuses is None else json.dumps(list(statuses))
        query = (
            f"SELECT {_RECORD} FROM runs WHERE (?1 IS NULL OR session_id = ?1) AND (?2 IS NULL OR number < ?2)"
            " AND (?3 IS NULL OR status IN (SELECT value FROM json_each(?3))) ORDER BY number DESC LIMIT ?4"
        )

        def runs(db: sqlite3.Connection) -> list[RunRecord]:
            number = None if before is None else _number(db, before)
            return [_as_record(row) for row in db.execute(query, (session_id, number, wanted, limit))]

        return await self._file.read(runs)

    async def claimable(self, *, limit: int = 100) -> list[str]:
        """As `Store.claimable`."""
        return await self._file.read(lambda db: [row[0] for row in db.execute(_CLAIMABLE, (time.time(), limit))])

    async def sessions(self, *, limit: int = 100, before: str | None = None) -> list[SessionRecord]:
        """As `Store.sessions`."""
        return await self._file.read(lambda db: [SessionRecord(*row) for row in db.execute(_SESSIONS, (before, limit))])

    async def delete(self, run_id: str) -> None:
        """As `Store.delete`."""
        await self._file.write(lambda db: _delete(db, [_record(db, run_id)]))
        self._watch.wake(run_id)

    async def delete_session(self, session_id: str) -> int:
        """As `Store.delete_session`."""

        def delete(db: sqlite3.Connection) -> list[RunRecord]:
            found = db.execute(f"SELECT {_RECORD} FROM runs WHERE session_id = ?", (session_id,))
            return _delete(db, [_as_record(row) for row in found])

        deleted = await self._file.write(delete)
        for record in deleted:
            self._watch.wake(record.run_id)
        return len(deleted)

    async def trim(self, run_id: str, up_to: int) -> int:
        """As `Store.trim`."""

        def trim(db: sqlite3.Connection) -> int:
            number, record = _number(db, run_id), _record(db, run_id)
            last = min(up_to, record.last_sequence)
            db.execute("UPDATE runs SET floor = max(floor, ?) WHERE number = ?", (last, number))
            dropped = db.execute("DELETE FROM chunks WHERE run = ? AND sequence <= ? AND delta", (number, last))
            return dropped.rowcount

        return await self._file.write(trim)

    async def _positions(self, run_ids: Collection[str]) -> Positions:
        query = "SELECT run_id, last_sequence, posted FROM runs WHERE run_id IN (SELECT value FROM json_each(?))"
        found = await self._file.read(lambda db: db.execute(query, (json.dumps(list(run_ids)),)).fetchall())
        return {run_id: (last, posted) for run_id, last, posted in found}


def _one(db: sqlite3.Connection, query: str, *values: Any) -> Any:
    return db.execute(query, values).fetchone()


def _number(db: sqlite3.Connection, run_id: str) -> int:
    found = _one(db, "SELECT number FROM runs WHERE run_id = ?", run_id)
    if found is None:
        raise UnknownRun(f"no run {run_id!r} in this store")
    return found[0]


def _record(db: sqlite3.Connection, run_id: str) -> RunRecord:
    found = _one(db, f"SELECT {_RECORD} FROM runs WHERE run_id = ?", run_id)
    if found is None:
        raise UnknownRun(f"no run {run_id!r} in this store")
    return _as_record(found)


def _as_record(row: Sequence[Any]) -> RunRecord:
    values = list(row)
    values[3] = json.loads(values[3])
    values[8] = 0.0 if values[7] is None else max(0.0, values[8] - time.time())
    return RunRecord(*values)


def _insert(db: sqlite3.Connection, number: int | None, after: int, chunks: Sequence[bytes]) -> None:
    rows = ((number, sequence, is_delta(line), line) for sequence, line in enumerate(chunks, after + 1))
    db.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?)", rows)


def _delete(db: sqlite3.Connection, records: list[RunRecord]) -> list[RunRecord]:
    for record in records:
        if record.status not in ENDED and record.lease_left > 0:
            raise busy(record.run_id, record.owner, record.lease_left)
    db.executemany("DELETE FROM runs WHERE run_id = ?", [(record.run_id,) for record in records])
    return records


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
