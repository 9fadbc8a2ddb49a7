"""The shelf: the logs that an executor knows. One kind keeps them in memory, the other one behind a store.

Floor 3: above `journal` and `log`, below `turns` and the executor, which does not care which kind it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol
from weakref import WeakValueDictionary

from helix.chunks import Chunk, Resync, StreamEnd
from helix.errors import RunBusy, RunEnded, RunExists, SessionBusy, UnknownRun, UsageError
from helix.journal import Journal, new_owner
from helix.log import RunLog
from helix.store import ENDED, PARKED, NewRun, RunRecord, SessionRecord, Store, not_free
from helix.trimming import trim_ended, trim_run

_POLL_SECONDS = 5.0


@dataclass(slots=True, frozen=True)
class Turn:
    """The newest run of a session.

    Attributes:
        run_id: its id.
        standing: whether somebody runs it; `lost` if it is neither ended nor parked, and nobody does.
    """

    run_id: str
    standing: Literal["live", "parked", "lost", "ended"]


class Shelf(Protocol):
    """Finds logs, and takes in new ones. Any method may raise `StoreError`."""

    async def open(self, stack: AsyncExitStack) -> None:
        """Opens what is behind it for as long as the stack is."""
        ...

    async def get(self, run_id: str) -> RunLog:
        """The log of that run, as it is now.

        Raises:
            UnknownRun: there is none.
        """
        ...

    async def agent_type(self, run_id: str) -> str:
        """The name of a run's root agent.

        Raises:
            UnknownRun: there is none.
        """
        ...

    async def whole(self, run_id: str) -> Sequence[Chunk]:
        """Every chunk of a run up to now, deltas included.

        Raises:
            UnknownRun: there is none.
            UsageError: some of the deltas are not kept any more.
        """
        ...

    async def keep(self, log: RunLog, follows: str | None = None) -> None:
        """Takes in a new run's log, and owns it; `follows` is the run before it in its session.

        Raises:
            RunExists: there is a run of that id already.
            SessionBusy: the session's newest run is not the one that it follows, or has not ended.
        """
        ...

    async def claim(self, log: RunLog) -> None:
        """Owns a run that is at rest, or whose owner has gone silent; the log is then as it is kept.

        Raises:
            UsageError: it has ended.
            RunBusy: its owner's lease is fresh.
        """
        ...

    async def claimable(self) -> Sequence[str]:
        """Ids of runs that somebody should go on with: their owner is gone, or they have mail, or are due."""
        ...

    async def trim(self, run_id: str | None, older_than: timedelta | None) -> int:
        """Drops deltas of one run, or of the runs that ended so long ago; says how many.

        Raises:
            UsageError: there is no store, or not one of the two is given.
            UnknownRun: there is no such run.
        """
        ...

    async def newest(self, session_id: str) -> Turn | None:
        """The session's newest run; None for a session that is not known."""
        ...

    async def news(self, run_id: str) -> None:
        """Returns once a live run may have come to rest, or been lost; look again then."""
        ...

    async def sessions(self, limit: int, before: str | None) -> list[SessionRecord]:
        """As `Store.sessions`."""
        ...

    async def delete_session(self, session_id: str) -> int:
        """Forgets all runs of a session, and says how many.

        Raises:
            SessionBusy: one of them is live; then none is forgotten.
        """
        ...


class MemoryShelf:
    """Logs that live as long as their executor: appending is all there is to keeping them."""

    def __init__(self) -> None:
        self._logs: dict[str, RunLog] = {}
        self._sessions: dict[str, list[RunLog]] = {}

    async def open(self, stack: AsyncExitStack) -> None:
        """As `Shelf.open`."""

    async def get(self, run_id: str) -> RunLog:
        """As `Shelf.get`."""
        log = self._logs.get(run_id)
        if log is None:
            raise UnknownRun(f"no run {run_id!r} in this executor's memory")
        return log

    async def agent_type(self, run_id: str) -> str:
        """As `Shelf.agent_type`."""
        return (await self.get(run_id)).tree.root.agent_type

    async def whole(self, run_id: str) -> Sequence[Chunk]:
        """As `Shelf.whole`."""
        return list((await self.get(run_id)).chunks)

    async def keep(self, log: RunLog, follows: str | None = None) -> None:
        """As `Shelf.keep`."""
        new = _new_run(log, follows)
        if log.run_id in self._logs:
            raise RunExists(f"there is a run {log.run_id!r} already")
        runs = self._sessions.setdefault(new.session_id or "", [])
        if problem := not_free(new, runs[-1].run_id if runs else None, ended=not runs or runs[-1].tree.ended):
            raise problem
        self._logs[log.run_id] = log
        runs.append(log)

    async def claim(self, log: RunLog) -> None:
        """As `Shelf.claim`: a log that is not live is anybody's."""

    async def claimable(self) -> Sequence[str]:
        """As `Shelf.claimable`: nobody else could have left one."""
        return []

    async def trim(self, run_id: str | None, older_than: timedelta | None) -> int:
        """As `Shelf.trim`."""
        raise UsageError("this executor has no store to trim; its memory keeps its runs whole")

    async def newest(self, session_id: str) -> Turn | None:
        """As `Shelf.newest`."""
        runs = self._sessions.get(session_id)
        return Turn(runs[-1].run_id, _standing(runs[-1].tree.status, live=runs[-1].live)) if runs else None

    async def news(self, run_id: str) -> None:
        """As `Shelf.news`."""
        await self._logs[run_id].rest()

    async def sessions(self, limit: int, before: str | None) -> list[SessionRecord]:
        """As `Shelf.sessions`."""
        newest = dict.fromkeys(log.tree.root.session_id or "" for log in reversed(self._logs.values()))
        ids = list(newest)
        behind = ids if before is None else ids[ids.index(before) + 1 :] if before in newest else []
        return [_session(session_id, self._sessions[session_id]) for session_id in behind[:limit]]

    async def delete_session(self, session_id: str) -> int:
        """As `Shelf.delete_session`."""
        runs = self._sessions.get(session_id, [])
        for log in runs:
            if log.live and not log.tree.ended:
                raise _live(session_id, log.run_id)
        for log in self._sessions.pop(session_id, []):
            del self._logs[log.run_id]
        return len(runs)


class StoreShelf:
    """Logs that are kept in a store; those that somebody still holds are at hand."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._logs: WeakValueDictionary[str, RunLog] = WeakValueDictionary()
        self._owner = new_owner()

    async def open(self, stack: AsyncExitStack) -> None:
        """As `Shelf.open`."""
        await stack.enter_async_context(self._store)

    async def get(self, run_id: str) -> RunLog:
        """As `Shelf.get`."""
        log = self._logs.get(run_id)
        if log is None:
            log = RunLog(run_id)
            await Journal(self._store, log, self._owner).load()
            return self._logs.setdefault(run_id, log)  # somebody may have been faster
        if not log.live:
            await journal_of(log).load()
        return log

    async def agent_type(self, run_id: str) -> str:
        """As `Shelf.agent_type`."""
        return (await self._store.get(run_id)).agent_type

    async def whole(self, run_id: str) -> Sequence[Chunk]:
        """As `Shelf.whole`."""
        journal = journal_of(await self.get(run_id))
        chunks: list[Chunk] = []
        while page := await journal.page(chunks[-1].sequence if chunks else 0):
            for chunk in page:
                if isinstance(chunk, Resync | StreamEnd):
                    raise UsageError(f"run {run_id} was trimmed: its deltas are gone, and it cannot be forked")
                chunks.append(chunk)
        return chunks

    async def keep(self, log: RunLog, follows: str | None = None) -> None:
        """As `Shelf.keep`."""
        await Journal(self._store, log, self._owner).create(_new_run(log, follows))
        self._logs[log.run_id] = log

    async def claim(self, log: RunLog) -> None:
        """As `Shelf.claim`."""
        try:
            await journal_of(log).claim()
        except RunEnded as error:
            text = f"run {log.run_id} has {error.status}; start a new one, in its session to go on with it"
            raise UsageError(text) from None

    async def claimable(self) -> Sequence[str]:
        """As `Shelf.claimable`."""
        return await self._store.claimable()

    async def trim(self, run_id: str | None, older_than: timedelta | None) -> int:
        """As `Shelf.trim`."""
        if run_id is not None and older_than is None:
            return await trim_run(self._store, run_id)
        if run_id is None and older_than is not None:
            return await trim_ended(self._store, older_than)
        raise UsageError("trim one run, trim(run_id), or all that ended long ago, trim(older_than=timedelta(days=30))")

    async def newest(self, session_id: str) -> Turn | None:
        """As `Shelf.newest`."""
        for record in await self._store.runs(session_id=session_id, limit=1):
            return Turn(record.run_id, _standing(record.status, live=self._is_live(record)))
        return None

    async def news(self, run_id: str) -> None:
        """As `Shelf.news`."""
        if (log := self._logs.get(run_id)) is not None:
            await log.rest()
        with suppress(UnknownRun):  # deleted in this moment
            record = await self._store.get(run_id)
            if record.status == "running" and record.lease_left > 0:
                timeout = min(record.lease_left, _POLL_SECONDS)
                await self._store.wait(run_id, chunks_after=record.last_sequence, timeout=timeout)

    async def sessions(self, limit: int, before: str | None) -> list[SessionRecord]:
        """As `Shelf.sessions`."""
        return await self._store.sessions(limit=limit, before=before)

    async def delete_session(self, session_id: str) -> int:
        """As `Shelf.delete_session`."""
        try:
            deleted = await self._store.delete_session(session_id)
        except RunBusy:
            turn = await self.newest(session_id)
            raise _live(session_id, turn.run_id if turn else None) from None
        for log in list(self._logs.values()):
            if log.tree.root.session_id == session_id:
                del self._logs[log.run_id]
        return deleted

    def _is_live(self, record: RunRecord) -> bool:
        log = self._logs.get(record.run_id)
        return record.lease_left > 0 or (log is not None and log.live)


def journal_of(log: RunLog) -> Journal:
    """What keeps a log of a durable store."""
    assert isinstance(log.kept, Journal)
    return log.kept


def _new_run(log: RunLog, follows: str | None) -> NewRun:
    root = log.tree.root
    metadata: Mapping[str, Any] = log.tree.options.get("metadata") or {}
    return NewRun(log.run_id, root.agent_type, root.session_id, metadata, follows)


def _standing(status: str, *, live: bool) -> Literal["live", "parked", "lost", "ended"]:
    if status in ENDED:
        return "ended"
    if status in PARKED:
        return "parked"
    return "live" if live else "lost"


def _live(session_id: str, run_id: str | None) -> SessionBusy:
    return SessionBusy(f"session {session_id!r} has a live run, {run_id}; wait for it or cancel it, then delete")


def _session(session_id: str, runs: Sequence[RunLog]) -> SessionRecord:
    last = runs[-1]
    times = runs[0].chunks[0].timestamp, max(log.tree.timestamp for log in runs)
    return SessionRecord(session_id, len(runs), last.run_id, last.tree.status, *times)
