"""NOTIFY and LISTEN: wake-ups between the processes of one PostgreSQL database.

Floor 2: part of `helix.stores.postgres`. A wake-up may be lost; who waits looks now and then.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress

import anyio
import psycopg

from helix.errors import StoreError
from helix.stores._lost import Listening, whole
from helix.stores._postgres_pool import Connection, PostgresPool
from helix.stores.watch import Watch


class PostgresWake:
    """Tells other processes of news, and passes their news on to `watch`. Made inside of an event loop."""

    def __init__(self, pool: PostgresPool, watch: Watch) -> None:
        self._pool = pool
        self._watch = watch
        self._me = secrets.token_hex(4)
        self._untold: dict[str, float] = {}
        self._telling: asyncio.Task[None] | None = None
        self._hearing = asyncio.Event()
        self._listening = Listening(self._listen)

    async def open(self) -> None:
        """Returns when it listens; or soon, if it cannot yet."""
        with anyio.move_on_after(2):
            await self._hearing.wait()

    def tell(self, run_id: str, last: float) -> None:
        """Soon tells the others of that run: what comes while a NOTIFY is under way goes with the next.

        It may come when a reader has found the chunks already, which `last`, the number of the last one, tells it.
        """
        self._untold[run_id] = max(last, self._untold.get(run_id, 0))
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell_all())

    async def close(self) -> None:
        """Stops listening, and tells what is not told yet."""
        await self._listening.stop()
        if self._telling is not None:
            await self._telling

    async def _tell_all(self) -> None:
        while self._untold:
            news = [f"{self._me} {run_id} {last}" for run_id, last in self._untold.items()]
            self._untold = {}
            with suppress(StoreError):
                await self._pool.execute(
                    "SELECT pg_notify(%(channel)s, news) FROM unnest(%(news)s::text[]) AS news",
                    {"channel": self._channel, "news": news},
                )

    @property
    def _channel(self) -> str:
        return f"helix_{self._pool.schema}"

    async def _listen(self) -> None:
        pause = 0.05
        while True:
            with suppress(StoreError, psycopg.Error):
                connection = await self._pool.connect()
                pause = 0.05
                try:
                    await self._hear(connection)
                finally:
                    await connection.close()
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    async def _hear(self, connection: Connection) -> None:
        await whole(connection.execute(b'LISTEN "' + self._channel.encode() + b'"'))
        self._hearing.set()
        self._watch.wake_all()  # of what came before nobody has told us
        async for note in connection.notifies():
            sender, run_id, last = note.payload.split(" ")
            if sender != self._me:
                self._watch.wake(run_id, last=float(last))
