"""Runs in Redis streams: the quickest store for many processes. Needs the extra `redis`, and asyncio.

Floor 2: implements `helix.store.Store` on `_redis_client`. What must be one step is a script, so the server is the
fence. How much of it survives is the server's setting: with `appendonly yes` and `appendfsync always` everything, with
`everysec` all but the last second, without it whatever the last snapshot has.
"""

from __future__ import annotations

import heapq
import json
import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import anyio

from helix.errors import RunExists, StoreError, UnknownRun, UsageError
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
from helix.stores import _redis_lua as lua
from helix.stores._lost import Listening, check_asyncio, is_written, persist, persist_to_the_end
from helix.stores._redis_client import RedisClient
from helix.stores.watch import Positions, Watch

SCHEMA = 1
_PAGE = 200


class RedisStore:
    """A `Store` in a Redis server, version 6.2 or newer; in a cluster, in one of its slots.

    Args:
        url: `redis://host:6379/0`; also `?prefix=`, by default `helix`, which all keys begin with.
        connections: how many at most; one more listens.
        patience: seconds to go on trying when the connection is lost.
    """

    def __init__(self, url: str, *, connections: int = 8, patience: float = 10.0) -> None:
        self._client = RedisClient(url, connections)
        self._patience = patience
        self._watch = Watch(self._positions, every=1.0)
        self._me = secrets.token_hex(4)
        self._listening: Listening | None = None
        self._hearing = anyio.Event()

    def __repr__(self) -> str:
        return f"RedisStore({self._client.url!r})"

    async def __aenter__(self) -> Self:
        check_asyncio("RedisStore")
        if self._listening is not None:
            raise UsageError(f"the store {self._client.url} is entered already; use one `async with` for each store")
        self._client.open()
        try:
            await persist(lambda _: self._check_schema(), 0)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._client.close()
            raise
        self._listening = Listening(lambda: self._client.listen(self._hear, self._begin_to_hear))
        try:
            with anyio.move_on_after(2):
                await self._hearing.wait()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        listening, self._listening = self._listening, None
        with anyio.CancelScope(shield=True):
            if listening is not None:
                await listening.stop()
            await self._client.close()

    async def create(self, run: NewRun, chunks: Sequence[bytes], *, owner: str, lease: float) -> Claim:
        """As `Store.create`."""
        keys = [*_keys(run.run_id, "", ":s", ":d"), "runs", "open", "busy", f"session:{run.session_id}", "sessions"]
        told = [run.run_id, run.session_id or "", run.agent_type, json.dumps(dict(run.metadata)), secrets.token_hex(8)]
        values = [*told, owner, _ms(lease), run.follows or "", *_lines(chunks)]

        async def create(again: bool) -> Claim:
            del again  # the script knows its own claim
            outcome, other = await self._script(lua.CREATE, [*keys, "number"], values)
            if outcome == b"exists":
                raise RunExists(f"run {run.run_id!r} is in this store already")
            if outcome != b"ok" and (problem := not_free(run, other.decode() or None, ended=outcome == b"passed")):
                raise problem
            return Claim(1, len(chunks))

        return await persist_to_the_end(create, self._patience)

    async def claim(self, run_id: str, *, owner: str, lease: float) -> Claim:
        """As `Store.claim`."""
        values = [owner, _ms(lease), secrets.token_hex(8)]

        async def claim(again: bool) -> Claim:
            del again  # the script knows its own claim
            while True:
                outcome, *found = await self._script(lua.CLAIM, _keys(run_id, ""), values)
                if outcome == b"ok":
                    return Claim(int(found[0]), int(found[1]))
                record = await self._get(run_id)
                check_claimable(run_id, record.status, record.owner, record.lease_left)

        return await persist_to_the_end(claim, self._patience)

    async def append(self, write: Write) -> None:
        """As `Store.append`."""
        keys = [*_keys(write.run_id, "", ":s", ":d", ":p", ":i"), "open", "busy"]
        deadline = "" if write.deadline is None else write.deadline
        values = [
            *(write.epoch, write.after, _ms(write.lease), write.status or "", deadline, int(write.gives_up)),
            *(self._client.channel, self._news(write.run_id), len(write.acknowledge), *write.acknowledge),
            *_lines(write.chunks),
        ]

        async def append(again: bool) -> None:
            outcome = await self._script(lua.APPEND, keys, values)
            if outcome != b"ok" and not (again and await is_written(self, write)):
                raise refusal(write, await self._get(write.run_id))

        await persist_to_the_end(append, self._patience)
        self._watch.wake(write.run_id, posts=False)

    async def read(
        self, run_id: str, from_offset: int = 0, *, limit: int = 1000, deltas: bool = True
    ) -> list[tuple[int, bytes]]:
        """As `Store.read`."""
        key, first = f"run:{run_id}", f"{from_offset + 1}-0"
        commands = [("XRANGE", f"{key}{kind}", first, "+", "COUNT", limit) for kind in (":s", ":d")[: 1 + deltas]]
        known, *found = await self._ask(("EXISTS", key), *commands)
        if not known:
            raise UnknownRun(f"no run {run_id!r} in this store")
        parts = [[(_number(entry), fields[b"c"]) for entry, fields in part] for part in found]
        return list(heapq.merge(*parts))[:limit]

    async def wait(
        self, run_id: str, *, chunks_after: int | None = None, posts_after: int | None = None, timeout: float
    ) -> None:
        """As `Store.wait`."""
        await self._watch.wait(run_id, chunks_after, posts_after, timeout)

    async def post(self, run_id: str, command_id: str, data: bytes) -> bool:
        """As `Store.post`."""
        values = [command_id, data, self._client.channel, self._news(run_id)]

        async def post(again: bool) -> bool:
            outcome = await self._script(lua.POST, _keys(run_id, "", ":p", ":i"), values)
            if outcome == b"there":
                return again  # then it is, as far as anybody can tell, the one that we have posted
            if outcome != b"ok":
                record = await self._get(run_id)
                raise ended(run_id, record.status)
            return True

        new = await persist_to_the_end(post, self._patience)
        self._watch.wake(run_id)
        return new

    async def take(self, run_id: str, after: int = 0) -> list[Post]:
        """As `Store.take`."""
        key = f"run:{run_id}"
        known, found = await self._ask(("EXISTS", key), ("XRANGE", f"{key}:p", f"{after + 1}-0", "+"))
        if not known:
            raise UnknownRun(f"no run {run_id!r} in this store")
        return [Post(_number(entry), fields[b"i"].decode(), fields[b"c"]) for entry, fields in found]

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
        index = "runs" if session_id is None else f"session:{session_id}"
        top = "+inf"
        found: list[RunRecord] = []
        if before is not None:
            top = await self._score("runs", before)
            if top is None:
                raise UnknownRun(f"no run {before!r} in this store")
        while len(found) < limit:
            ids, top = await self._page(index, top)
            if not ids:
                break
            records = await self._records(ids)
            found += [record for record in records if statuses is None or record.status in statuses]
        return found[:limit]

    async def claimable(self, *, limit: int = 100) -> list[str]:
        """As `Store.claimable`."""
        found: list[str] = []
        start = 0
        while len(found) < limit:
            [ids] = await self._ask(("ZRANGE", "open", start, start + _PAGE - 1))
            if not ids:
                break
            start += _PAGE
            found += await self._claimable_of([run_id.decode() for run_id in ids])
        return found[:limit]

    async def sessions(self, *, limit: int = 100, before: str | None = None) -> list[SessionRecord]:
        """As `Store.sessions`."""
        top = "+inf" if before is None else await self._score("sessions", before)
        if top is None:
            return []
        ids, _ = await self._page("sessions", top, limit)
        asked = [(name, f"session:{session}", *more) for session in ids for name, *more in _OF_SESSION]
        answers = await self._ask(*asked) if asked else []
        found: list[SessionRecord] = []
        for number, session_id in enumerate(ids):
            count, oldest, newest = answers[number * 3 : number * 3 + 3]
            records = await self._records([run_id.decode() for run_id in (*oldest, *newest)])
            if records:
                first, last = records[0], records[-1]
                told = (last.run_id, last.status, first.created_at, last.updated_at)
                found.append(SessionRecord(session_id, count, *told))
        return found

    async def delete(self, run_id: str) -> None:
        """As `Store.delete`."""

        async def delete(again: bool) -> None:
            with suppress(*[UnknownRun] * again):  # by us, then
                await self._delete([run_id])

        await persist_to_the_end(delete, self._patience)

    async def delete_session(self, session_id: str) -> int:
        """As `Store.delete_session`."""

        async def delete(again: bool) -> int:
            del again
            [ids] = await self._at_once(("ZRANGE", f"session:{session_id}", 0, -1))
            with suppress(UnknownRun):  # somebody else deletes it too
                await self._delete([run_id.decode() for run_id in ids])
            return len(ids)

        return await persist_to_the_end(delete, self._patience)

    async def trim(self, run_id: str, up_to: int) -> int:
        """As `Store.trim`."""
        dropped = await persist(lambda _: self._script(lua.TRIM, _keys(run_id, "", ":d"), [up_to]), self._patience)
        if dropped < 0:
            raise UnknownRun(f"no run {run_id!r} in this store")
        return dropped

    # --- the server

    async def _script(self, text: str, keys: Sequence[str], values: Sequence[Any]) -> Any:
        self._check_open()
        return await self._client.script(text, keys, values)

    async def _at_once(self, *commands: Sequence[Any]) -> list[Any]:
        self._check_open()
        return await self._client.at_once(*commands)

    async def _ask(self, *commands: Sequence[Any]) -> list[Any]:
        """The answers to commands that may as well be done twice."""
        return await persist(lambda _: self._at_once(*commands), self._patience)

    def _check_open(self) -> None:
        if self._listening is None:
            raise UsageError(f"the store {self._client.url} is not open; write `async with` around its use")

    async def _check_schema(self) -> None:
        """Marks the keys as ours, if they are not yet; there is nothing else to make."""
        _, version = await self._client.at_once(("SET", "schema", SCHEMA, "NX"), ("GET", "schema"))
        if int(version) > SCHEMA:
            raise StoreError(
                f"the store {self._client.url} was written by a newer helix (schema {int(version)}, this one knows "
                f"{SCHEMA}); upgrade helix. It was left as it is"
            )

    async def _get(self, run_id: str) -> RunRecord:
        [record] = await self._found([run_id])
        if record is None:
            raise UnknownRun(f"no run {run_id!r} in this store")
        return record

    async def _records(self, run_ids: Sequence[str]) -> list[RunRecord]:
        """Of those that are there."""
        found = await persist(lambda _: self._found(run_ids), self._patience)
        return [record for record in found if record is not None]

    async def _found(self, run_ids: Sequence[str]) -> list[RunRecord | None]:
        commands = [("HGETALL", f"run:{run_id}") for run_id in run_ids]
        time, *answers = await self._at_once(("TIME",), *commands)
        return [_record(answer, _now(time)) if answer else None for answer in answers]

    async def _claimable_of(self, run_ids: Sequence[str]) -> list[str]:
        commands = [("XLEN", f"run:{run_id}:p") for run_id in run_ids]
        time, *unread = await self._ask(("TIME",), *commands)
        records = {record.run_id: record for record in await self._records(run_ids)}
        found: list[str] = []
        for run_id, posts in zip(run_ids, unread, strict=True):
            record = records.get(run_id)
            if record is None or record.status in ENDED or record.lease_left > 0:
                continue
            if record.status == "running" or posts or (record.deadline is not None and record.deadline <= _now(time)):
                found.append(run_id)
        return found

    async def _score(self, index: str, name: str) -> str | None:
        """Where a page begins that goes on behind `name`."""
        [score] = await self._ask(("ZSCORE", index, name))
        return None if score is None else f"({score:.0f}"

    async def _page(self, index: str, top: str, limit: int = _PAGE) -> tuple[list[str], str]:
        """The next names below `top`, newest first, and where the page behind them begins."""
        [found] = await self._ask(("ZREVRANGEBYSCORE", index, top, "-inf", "WITHSCORES", "LIMIT", 0, limit))
        names = [name.decode() for name, _ in found]
        return names, f"({found[-1][1]:.0f}" if found else top

    async def _delete(self, run_ids: Sequence[str]) -> None:
        values = [self._client.prefix, self._client.channel, self._me, *run_ids]
        outcome, which = await self._script(lua.DELETE, ["runs", "open", "busy", "sessions"], values)
        if outcome == b"missing":
            raise UnknownRun(f"no run {which.decode()!r} in this store")
        if outcome == b"refused":
            record = await self._get(which.decode())
            raise busy(record.run_id, record.owner, record.lease_left)
        for run_id in run_ids:
            self._watch.wake(run_id)

    async def _positions(self, run_ids: Collection[str]) -> Positions:
        answers = await self._ask(*(("HMGET", f"run:{run_id}", "last", "posted") for run_id in run_ids))
        return {
            run_id: (int(found[0]), int(found[1])) for run_id, found in zip(run_ids, answers, strict=True) if found[0]
        }

    # --- news

    def _news(self, run_id: str) -> str:
        return f"{self._me} {run_id}"

    def _begin_to_hear(self) -> None:
        self._hearing.set()
        self._watch.wake_all()  # of what came before nobody has told us

    def _hear(self, news: bytes) -> None:
        sender, _, run_id = news.decode().partition(" ")
        if sender != self._me:
            self._watch.wake(run_id)


_OF_SESSION: list[tuple[Any, ...]] = [("ZCARD",), ("ZRANGE", 0, 0), ("ZRANGE", -1, -1)]


def _keys(run_id: str, *kinds: str) -> list[str]:
    return [f"run:{run_id}{kind}" for kind in kinds]


def _lines(chunks: Sequence[bytes]) -> list[Any]:
    return [word for line in chunks for word in (int(is_delta(line)), line)]


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def _now(time: Sequence[int]) -> int:
    return time[0] * 1000 + time[1] // 1000


def _number(entry: bytes) -> int:
    return int(entry.partition(b"-")[0])


def _record(answer: dict[bytes, bytes], now: int) -> RunRecord:
    known = {name.decode(): value.decode() for name, value in answer.items()}
    owner = known["owner"] or None
    return RunRecord(
        run_id=known["run_id"],
        agent_type=known["agent_type"],
        session_id=known["session_id"] or None,
        metadata=json.loads(known["metadata"]),
        status=known["status"],
        last_sequence=int(known["last"]),
        epoch=int(known["epoch"]),
        owner=owner,
        lease_left=max(0, int(known["lease_until"]) - now) / 1000 if owner else 0.0,
        created_at=int(known["created_at"]),
        updated_at=int(known["updated_at"]),
        deadline=int(known["deadline"]) if known["deadline"] else None,
        floor=int(known["floor"]),
    )
