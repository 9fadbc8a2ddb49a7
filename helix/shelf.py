"""The logs that an executor knows: those of its own memory, and behind them those of a durable store.

Floor 3: above `journal` and `log`, below the executor.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta

from helix.chunks import Chunk, Resync, StreamEnd
from helix.errors import RunEnded, SessionBusy, UsageError
from helix.fold import RunTree
from helix.journal import Journal, new_owner
from helix.log import MemoryStore, RunLog
from helix.store import NewRun, Store
from helix.trimming import trim_ended, trim_run


class Shelf:
    """Finds logs, and takes in new ones.

    Args:
        store: a durable store, or the memory of an executor before.
    """

    def __init__(self, store: MemoryStore | Store | None) -> None:
        self._memory = store if isinstance(store, MemoryStore) else MemoryStore()
        self._store = None if store is None or isinstance(store, MemoryStore) else store
        self._owner = new_owner()

    async def open(self, stack: AsyncExitStack) -> None:
        """Opens the store for as long as the stack is."""
        if self._store is not None:
            await stack.enter_async_context(self._store)

    async def get(self, run_id: str) -> RunLog:
        """The log of that run, as it is now.

        Raises:
            UnknownRun: there is none.
            StoreError: the store cannot be read.
        """
        if self._store is None:
            return self._memory.get(run_id)
        log = self._memory.find(run_id)
        if log is not None and log.live:
            return log
        if log is None:
            log = RunLog(run_id)
            await Journal(self._store, log, self._owner).load()
            self._memory.put(log)
            return self._memory.get(run_id)  # somebody may have been faster
        await journal_of(log).load()
        return self._memory.get(run_id)

    async def whole(self, run_id: str) -> Sequence[Chunk]:
        """Every chunk of a run up to now, deltas included.

        Raises:
            UnknownRun: there is none.
            UsageError: the store has dropped some of the deltas.
        """
        log = await self.get(run_id)
        if log.kept is None:
            return list(log.chunks)
        chunks: list[Chunk] = []
        while page := await log.kept.page(chunks[-1].sequence if chunks else 0):
            for chunk in page:
                if isinstance(chunk, Resync | StreamEnd):
                    raise UsageError(f"run {run_id} was trimmed: its deltas are gone, and it cannot be forked")
                chunks.append(chunk)
        return chunks

    async def newest(self, session_id: str) -> RunLog | None:
        """The session's newest run; None for a session that is not known yet."""
        if self._store is None:
            logs = self._memory.session(session_id)
            return logs[-1] if logs else None
        records = await self._store.runs(session_id=session_id, limit=1)
        return await self.get(records[0].run_id) if records else None

    async def latest(self, session_id: str) -> RunTree | None:
        """The session's newest run, for another one to go on from; None for a session that is not known yet.

        Raises:
            SessionBusy: it has not ended.
        """
        log = await self.newest(session_id)
        if log is not None and not log.tree.ended:
            what = "live" if log.live else "parked" if log.tree.at_rest else "live or lost"
            advice = "wait for it or cancel it" if log.live else "resume it or cancel it"
            raise SessionBusy(f"session {session_id!r} has a {what} run, {log.run_id}; {advice}")
        return log.tree if log else None

    def seen(self, session_id: str) -> RunTree | None:
        """The session's newest run in this executor's memory."""
        logs = self._memory.session(session_id)
        return logs[-1].tree if logs else None

    async def keep(self, log: RunLog) -> None:
        """Takes in a new run's log, and owns it.

        Raises:
            UsageError: there is a run of that id already.
            SessionBusy, StoreError: see `Store.create`.
        """
        if self._store is None:
            self._memory.add(log)
            return
        root = log.tree.root
        new = NewRun(log.run_id, root.agent_type, root.session_id, log.tree.options.get("metadata") or {})
        await Journal(self._store, log, self._owner).create(new)
        self._memory.put(log)

    async def claim(self, log: RunLog) -> None:
        """Owns a run that is at rest, or whose owner has gone silent; the log is then as it is kept.

        Raises:
            UsageError: it has ended.
            RunBusy: its owner's lease is fresh.
        """
        if log.kept is None:
            return
        try:
            await journal_of(log).claim()
        except RunEnded as error:
            text = f"run {log.run_id} has {error.status}; start a new one, in its session to go on with it"
            raise UsageError(text) from None

    async def claimable(self) -> Sequence[str]:
        """Ids of runs that somebody should go on with: their owner is gone, or they have mail, or are due."""
        return [] if self._store is None else await self._store.claimable()

    async def trim(self, run_id: str | None, older_than: timedelta | None) -> int:
        """Drops deltas of one run, or of the runs that ended so long ago; says how many.

        Raises:
            UsageError: there is no store, or not one of the two is given.
            UnknownRun, StoreError: see `Store.trim`.
        """
        if self._store is None:
            raise UsageError("this executor has no store to trim; its memory keeps its runs whole")
        if run_id is not None and older_than is None:
            return await trim_run(self._store, run_id)
        if run_id is None and older_than is not None:
            return await trim_ended(self._store, older_than)
        raise UsageError("trim one run, trim(run_id), or all that ended long ago, trim(older_than=timedelta(days=30))")

    async def agent_type(self, run_id: str) -> str:
        """The name of a run's root agent."""
        if self._store is None:
            return self._memory.get(run_id).tree.root.agent_type
        return (await self._store.get(run_id)).agent_type


def journal_of(log: RunLog) -> Journal:
    """What keeps a log of a durable store."""
    assert isinstance(log.kept, Journal)
    return log.kept
