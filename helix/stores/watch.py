"""Who waits for news of which run, in one process: told at once by this process's writers, else by looking.

Floor 2: stores stand on it. What it says is a hint; whoever waited reads the store.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Mapping

import anyio

from helix.errors import UnknownRun

Positions = Mapping[str, tuple[int, int]]
"""Of each run that is there: its last sequence, and the position of its last command."""


class _Waiter:
    __slots__ = ("chunks_after", "news", "posts_after")

    def __init__(self, chunks_after: int | None, posts_after: int | None) -> None:
        self.chunks_after = math.inf if chunks_after is None else chunks_after
        self.posts_after = math.inf if posts_after is None else posts_after
        self.news = anyio.Event()

    def tell(self, position: tuple[int, int] | None) -> None:
        """None: the run is gone."""
        if position is None or position[0] > self.chunks_after or position[1] > self.posts_after:
            self.news.set()


class Watch:
    """The waiters of one store.

    Args:
        look: gives the positions of runs, as the store has them now.
        every: seconds between looks while somebody waits, for what nobody tells.
    """

    def __init__(self, look: Callable[[Collection[str]], Awaitable[Positions]], every: float = math.inf) -> None:
        self._look = look
        self._every = every
        self._waiters: dict[str, set[_Waiter]] = {}
        self._looked = -math.inf

    async def wait(self, run_id: str, chunks_after: int | None, posts_after: int | None, timeout: float) -> None:
        """As `Store.wait`."""
        waiter = _Waiter(chunks_after, posts_after)
        self._waiters.setdefault(run_id, set()).add(waiter)
        try:
            with anyio.move_on_after(timeout):
                found = await self._look([run_id])  # after having joined: what comes from now on wakes it
                if run_id not in found:
                    raise UnknownRun(f"no run {run_id!r} in this store")
                waiter.tell(found[run_id])
                await self._news(waiter)
        finally:
            others = self._waiters[run_id]
            others.discard(waiter)
            if not others:
                del self._waiters[run_id]

    def wake(self, run_id: str, *, posts: bool = True, last: float = math.inf) -> None:
        """Something has come for that run.

        Args:
            run_id: which one.
            posts: False if no command: its owner need not look into its inbox.
            last: what came are chunks up to that number: who has them all need not look. `math.inf`: not known.
        """
        for waiter in self._waiters.get(run_id, ()):
            if waiter.chunks_after < last or (posts and waiter.posts_after < math.inf):
                waiter.news.set()

    def wake_all(self) -> None:
        """Nobody knows what has come: all look."""
        for run_id in self._waiters:
            self.wake(run_id)

    async def _news(self, waiter: _Waiter) -> None:
        while not waiter.news.is_set():
            with anyio.move_on_after(self._every):
                await waiter.news.wait()
                return
            await self._look_for_all()

    async def _look_for_all(self) -> None:
        """One look for everybody who waits; who comes right behind it need not look again."""
        now = anyio.current_time()
        if now < self._looked + self._every * 0.9:
            return
        self._looked = now
        asked = list(self._waiters)
        found = await self._look(asked)
        for run_id in asked:
            for waiter in self._waiters.get(run_id, ()):
                waiter.tell(found.get(run_id))
