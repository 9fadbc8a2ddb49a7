"""Turns: the runs of a session, one at a time. What a new one does while another one has not ended is decided here.

Floor 3: above `shelf` and `owner`; the executor begins its runs by it. Whoever waits is nowhere but in this process: a
run is in the store once its turn has come, so one that was killed while it waited has left nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Literal, TypeAlias, get_args
from weakref import WeakValueDictionary

import anyio

from helix.commands import Interrupt
from helix.errors import SessionBusy, UnknownRun, UsageError
from helix.fold import RunTree
from helix.live import Run
from helix.log import RunLog
from helix.owner import check, take
from helix.shelf import Shelf, Turn

OnBusy: TypeAlias = Literal["error", "queue", "interrupt"]
"""What to do with a session whose last run has not ended: refuse, wait for it, or stop it."""
_ON_BUSY = get_args(OnBusy)


class Turns:
    """Begins the runs of sessions.

    Args:
        shelf: where they are kept.
        run_of: the live side of a run that this process runs.
    """

    def __init__(self, shelf: Shelf, run_of: Callable[[str], Run | None]) -> None:
        self._shelf = shelf
        self._run_of = run_of
        self._lines: WeakValueDictionary[tuple[str, OnBusy], anyio.Lock] = WeakValueDictionary()

    async def begin(self, session_id: str, on_busy: OnBusy, make: Callable[[RunTree | None], RunLog]) -> RunLog:
        """Takes in the session's next run, when its turn has come: in the order of the calls, in this process.

        Args:
            session_id: whose turn it is.
            on_busy: what to do if the last run has not ended.
            make: makes the new run's log from the session's last run; may be called several times.

        Raises:
            SessionBusy: the last run has not ended, and is not going to by waiting for it.
            RunExists, StoreError: see `Shelf.keep`.
        """
        if on_busy == "error":
            return await self._begin(session_id, make)
        line = self._lines.setdefault((session_id, on_busy), anyio.Lock())
        async with line:
            while True:
                await self._make_way(session_id, on_busy)
                with suppress(SessionBusy):  # somebody was faster
                    return await self._begin(session_id, make)

    async def _begin(self, session_id: str, make: Callable[[RunTree | None], RunLog]) -> RunLog:
        before = await self._last(session_id)
        log = make(before)
        await self._shelf.keep(log, None if before is None else before.root_id)
        return log

    async def _last(self, session_id: str, missing: str | None = None) -> RunTree | None:
        """The session's last run, which has ended; of one that is deleted in this moment, the one before it."""
        turn = await self._shelf.newest(session_id)
        if turn is None:
            return None
        if turn.standing != "ended":
            raise _busy(session_id, turn)
        try:
            return (await self._shelf.get(turn.run_id)).tree
        except UnknownRun:
            if turn.run_id == missing:  # the store names it again and again, and does not have it
                raise
        return await self._last(session_id, turn.run_id)

    async def _make_way(self, session_id: str, on_busy: OnBusy) -> None:
        """Returns once the session's last run has ended."""
        while (turn := await self._shelf.newest(session_id)) is not None and turn.standing != "ended":
            if on_busy == "interrupt":
                await self._stop(turn.run_id)
            elif turn.standing != "live":
                raise _busy(session_id, turn)
            await self._shelf.news(turn.run_id)

    async def _stop(self, run_id: str) -> None:
        log, command = await self._shelf.get(run_id), Interrupt("", end=True)
        if log.live or log.kept is None:
            take(log, self._run_of(run_id), command)
        else:
            await log.kept.tell(command, partial(take, log, None), partial(check, log))


def check_on_busy(on_busy: str) -> None:
    """Refuses what is no `OnBusy`.

    Raises:
        UsageError: it is none.
    """
    if on_busy not in _ON_BUSY:
        raise UsageError(f"on_busy={on_busy!r} is none of 'error', 'queue' and 'interrupt'")


_ADVICE = {
    "live": "wait for it or cancel it, or give on_busy='queue' or 'interrupt'",
    "parked": "resume it or cancel it, or end it with on_busy='interrupt'",
    "lost": "its owner is gone: recover() goes on with it, on_busy='interrupt' ends it",
}


def _busy(session_id: str, turn: Turn) -> SessionBusy:
    return SessionBusy(f"session {session_id!r} has a {turn.standing} run, {turn.run_id}; {_ADVICE[turn.standing]}")
