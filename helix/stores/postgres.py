"""Runs in a PostgreSQL database: for many processes on many machines. Needs the extra `postgres`, and asyncio.

Floor 2: implements `helix.store.Store` on `_postgres_pool`. The fence is the row of the run: an append begins by
updating it where the epoch is still the writer's, in the same statement, so a takeover comes before it or after it. A
reader is woken by NOTIFY, sent after the commit and for many appends at once (a commit that notifies locks out all
others); it is a hint only, and who hears none looks once a second.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import anyio

from helix.errors import RunExists, StoreError, UnknownRun, UsageError
from helix.store import (
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
from helix.stores import _postgres_sql as q
from helix.stores._lost import check_asyncio, is_written, persist, persist_to_the_end, whole
from helix.stores._postgres_pool import PostgresPool, UniqueViolation
from helix.stores._postgres_wake import PostgresWake
from helix.stores.watch import Positions, Watch


class PostgresStore:
    """A `Store` in a schema of a PostgreSQL database, which is made if it is not there.

    Args:
        url: `postgresql://user@host/database`; also `?schema=`, by default `helix`.
        connections: how many at most; one more listens.
        patience: seconds to go on trying when the connection is lost.
    """

    def __init__(self, url: str, *, connections: int = 8, patience: float = 10.0) -> None:
        self._pool = PostgresPool(url, connections)
        self._patience = patience
        self._watch = Watch(self._positions, every=1.0)
        self._wake: PostgresWake | None = None

    def __repr__(self) -> str:
        return f"PostgresStore({self._pool.url!r})"

    async def __aenter__(self) -> Self:
        check_asyncio("PostgresStore")
        if self._wake is not None:
            raise UsageError(f"the store {self._pool.url} is entered already; use one `async with` for each store")
        self._pool.open()
        await whole(persist(lambda _: self._upgrade(), 0))
        self._wake = PostgresWake(self._pool, self._watch)
        try:
            await self._wake.open()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        wake, self._wake = self._wake, None
        with anyio.CancelScope(shield=True):
            if wake is not None:
                await wake.close()
            await self._pool.close()

    async def create(self, run: NewRun, chunks: Sequence[bytes], *, owner: str, lease: float) -> Claim:
        """As `Store.create`."""
        values = {
            "run_id": run.run_id,
            "session_id": run.session_id,
            "follows": run.follows,
            "agent_type": run.agent_type,
            "metadata": json.dumps(dict(run.metadata)),
            "claim": secrets.token_hex(8),
            "owner": owner,
            "lease": lease,
        } | _lines(chunks)

        async def create(again: bool) -> Claim:
            while not await self._created(values):
                if again and await self._execute(q.IS_MINE, values):
                    break
                [[exists, newest, ended]] = await self._execute(q.REFUSED, values)
                if exists:
                    raise RunExists(f"run {run.run_id!r} is in this store already")
                if problem := not_free(run, newest, ended=ended):
                    raise problem
            return Claim(1, len(chunks))

        return await persist_to_the_end(create, self._patience)

    async def claim(self, run_id: str, *, owner: str, lease: float) -> Claim:
        """As `Store.claim`."""
        values = {"run_id": run_id, "owner": owner, "lease": lease, "claim": secrets.token_hex(8)}

        async def claim(again: bool) -> Claim:
            while True:
                found = await self._execute(q.CLAIM, values) or (again and await self._execute(q.IS_MINE, values))
                if found:
                    return Claim(*found[0])
                record = await self._get(run_id)
                check_claimable(run_id, record.status, record.owner, record.lease_left)

        return await persist_to_the_end(claim, self._patience)

    async def append(self, write: Write) -> None:
        """As `Store.append`."""

        async def append(again: bool) -> None:
            names = ("run_id", "epoch", "after", "lease", "status", "deadline", "gives_up")
            values = {name: getattr(write, name) for name in names} | _lines(write.chunks)
            if not await self._execute(q.APPEND, values | {"acknowledge": list(write.acknowledge)}) and not (
                again and await is_written(self, write)
            ):
                raise refusal(write, await self._get(write.run_id))

        await persist_to_the_end(append, self._patience)
        self._tell(write.run_id, posts=False, last=write.after + len(write.chunks) if write.chunks else math.inf)

    async def read(
        self, run_id: str, from_offset: int = 0, *, limit: int = 1000, deltas: bool = True
    ) -> list[tuple[int, bytes]]:
        """As `Store.read`."""
        query = q.READ if deltas else q.READ_STRUCTURE
        rows = await self._ask(query, run_id=run_id, after=from_offset, limit=limit)
        if not rows:
            await self.get(run_id)
        return [(number, data) for number, data in rows]

    async def wait(
        self, run_id: str, *, chunks_after: int | None = None, posts_after: int | None = None, timeout: float
    ) -> None:
        """As `Store.wait`."""
        await self._watch.wait(run_id, chunks_after, posts_after, timeout)

    async def post(self, run_id: str, command_id: str, data: bytes) -> bool:
        """As `Store.post`."""
        values = {"run_id": run_id, "command_id": command_id, "data": data}

        async def post(again: bool) -> bool:
            with suppress(UniqueViolation):  # somebody was a moment faster
                if await self._execute(q.POST, values):
                    return True
            if await self._execute(q.IS_POSTED, values):
                return again  # then it is, as far as anybody can tell, the one that we have posted
            record = await self._get(run_id)
            raise ended(run_id, record.status)

        new = await persist_to_the_end(post, self._patience)
        self._tell(run_id)
        return new

    async def take(self, run_id: str, after: int = 0) -> list[Post]:
        """As `Store.take`."""
        rows = await self._ask(q.TAKE, run_id=run_id, after=after)
        if not rows:
            await self.get(run_id)
        return [Post(*row) for row in rows]

    async def get(self, run_id: str) -> RunRecord:
        """As `Store.get`."""
        return await persist(lambda _: self._get(run_id), self._patience)

    async def runs(
        self,
        *,
        session_id: str | None = None,
        statuses: Collection[str] | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[RunRecord]:
        """As `Store.runs`."""
        wanted = None if statuses is None else list(statuses)
        rows = await self._ask(q.RUNS, session_id=session_id, statuses=wanted, limit=limit, before=before)
        if not rows and before is not None:
            await self.get(before)
        return [_record(row) for row in rows]

    async def claimable(self, *, limit: int = 100) -> list[str]:
        """As `Store.claimable`."""
        return [row[0] for row in await self._ask(q.CLAIMABLE, limit=limit)]

    async def sessions(self, *, limit: int = 100, before: str | None = None) -> list[SessionRecord]:
        """As `Store.sessions`."""
        return [SessionRecord(*row) for row in await self._ask(q.SESSIONS, limit=limit, before=before)]

    async def delete(self, run_id: str) -> None:
        """As `Store.delete`."""

        async def delete(again: bool) -> None:
            if not await self._execute(q.DELETE, {"run_id": run_id}):
                with suppress(*[UnknownRun] * again):  # by us, then
                    record = await self._get(run_id)
                    raise busy(run_id, record.owner, record.lease_left)

        await persist_to_the_end(delete, self._patience)
        self._tell(run_id)

    async def delete_session(self, session_id: str) -> int:
        """As `Store.delete_session`."""

        async def delete(again: bool) -> list[str]:
            del again
            [[deleted, live]] = await self._execute(q.DELETE_SESSION, {"session_id": session_id})
            if live:
                record = await self._get(live[0])
                raise busy(live[0], record.owner, record.lease_left)
            return deleted or []

        deleted = await persist_to_the_end(delete, self._patience)
        for run_id in deleted:
            self._tell(run_id)
        return len(deleted)

    async def trim(self, run_id: str, up_to: int) -> int:
        """As `Store.trim`."""
        [[known, dropped]] = await self._ask(q.TRIM, run_id=run_id, up_to=up_to)
        if not known:
            raise UnknownRun(f"no run {run_id!r} in this store")
        return dropped

    # --- the database

    async def _execute(self, query: Any, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        if self._wake is None:
            raise UsageError(f"the store {self._pool.url} is not open; write `async with` around its use")
        return await self._pool.execute(query, values)

    async def _ask(self, query: Any, **values: Any) -> list[tuple[Any, ...]]:
        """The rows of a statement that may as well be done twice."""
        return await persist(lambda _: self._execute(query, values), self._patience)

    async def _get(self, run_id: str) -> RunRecord:
        rows = await self._execute(q.GET, {"run_id": run_id})
        if not rows:
            raise UnknownRun(f"no run {run_id!r} in this store")
        return _record(rows[0])

    async def _created(self, values: dict[str, Any]) -> bool:
        try:
            return bool(await self._execute(q.CREATE, values))
        except UniqueViolation:
            return False

    async def _positions(self, run_ids: Collection[str]) -> Positions:
        rows = await self._ask(q.POSITIONS, run_ids=list(run_ids))
        return {run_id: (last, posted) for run_id, last, posted in rows}

    def _tell(self, run_id: str, *, posts: bool = True, last: float = math.inf) -> None:
        """Wakes who waits, here and elsewhere; see `Watch.wake`."""
        self._watch.wake(run_id, posts=posts, last=last)
        if self._wake is not None:
            self._wake.tell(run_id, last)

    async def _upgrade(self) -> None:
        """Makes the schema what this version needs; one process at a time, and nothing if there is nothing to do."""
        try:
            async with self._pool.connection() as connection, connection.transaction():
                known = len(q.MIGRATIONS)
                version = await self._version(connection)
                if version > known:
                    raise StoreError(
                        f"the store {self._pool.url} was written by a newer helix (schema {version}, this one knows "
                        f"{known}); upgrade helix. It was left as it is"
                    )
                if version == known:
                    return
                await connection.execute(self._pool.text(q.LOCK), {"schema": self._pool.schema})
                for statements in q.MIGRATIONS[await self._version(connection) :]:
                    for statement in statements:
                        await connection.execute(self._pool.text(statement))
                await connection.execute(self._pool.text(q.SET_VERSION), {"version": known})
        except StoreError:
            await self._pool.close()
            raise

    async def _version(self, connection: Any) -> int:
        """The schema's version; 0 if it is not there."""
        cursor = await connection.execute(q.HAS_VERSION, {"schema": self._pool.schema})
        [there] = await cursor.fetchone()
        if not there:
            return 0
        cursor = await connection.execute(self._pool.text(q.VERSION))
        [version] = await cursor.fetchone()
        return version


def _lines(chunks: Sequence[bytes]) -> dict[str, Any]:
    return {"data": list(chunks), "deltas": [is_delta(line) for line in chunks]}


def _record(row: Sequence[Any]) -> RunRecord:
    values = list(row)
    values[3] = json.loads(values[3])
    return RunRecord(*values)
