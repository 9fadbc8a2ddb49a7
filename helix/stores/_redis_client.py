"""A Redis server: its connections, its scripts, its news; errors in helix's words.

Floor 2: above the driver, redis-py; `helix.stores.redis` stands on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from helix.errors import DefinitionError, StoreError
from helix.stores._lost import Lost, option, shown, without_secrets

try:
    import redis.asyncio as driver
    from redis import exceptions
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
except ImportError as error:
    raise ImportError("the Redis store needs a driver: pip install 'helix-agents[redis]'") from error

T = TypeVar("T")

_REFUSED: list[tuple[str, str]] = [
    ("maxmemory", "the server's memory is full. Nothing of this was written. Trim or delete runs, or give it more"),
    ("MISCONF", "the server cannot write to its disk. Nothing of this was written. Make room there"),
    ("permissions", "its user may not do this; grant it the keys with the prefix, scripts and pub/sub"),
    ("Authentication required", "it wants a password: redis://:PASSWORD@HOST"),
    ("HELLO must be called", "it wants a password: redis://:PASSWORD@HOST"),
    ("username-password", "the user name or the password is wrong"),
]
"""By a word of what the server says; redis-py takes most of the codes away."""
_LOST = (
    *(exceptions.ConnectionError, exceptions.TimeoutError),
    # said while servers start or change their roles; nothing was done
    *(exceptions.ReadOnlyError, exceptions.ClusterDownError, exceptions.TryAgainError),
)


class RedisClient:
    """Some connections to one server.

    Args:
        url: what redis-py takes, and `prefix=`.
        size: how many connections at most; one more listens.
    """

    def __init__(self, url: str, size: int) -> None:
        self.url = shown(url)
        self._url, name = option(url, "prefix", "helix")
        if set(name) & set("{}"):
            raise DefinitionError(f"the prefix {name!r} is not usable: no braces")
        self.prefix = f"{{{name}}}:"
        self.channel = f"{self.prefix}news"
        self._size = size
        self._client: Any = None
        self._scripts: dict[str, Any] = {}

    def open(self) -> None:
        """Makes the client; it connects when it is used.

        Raises:
            DefinitionError: the URL makes no sense.
        """
        try:
            # The driver would send again by itself what it does not know the outcome of; `persist` knows better.
            make: Any = driver.BlockingConnectionPool
            keepalive = {} if self._url.startswith("unix:") else {"socket_keepalive": True}
            pool = make.from_url(
                self._url,
                max_connections=self._size + 1,
                timeout=30,
                protocol=3,
                socket_connect_timeout=10,
                socket_timeout=15,
                retry=Retry(NoBackoff(), 0),
                **keepalive,
            )
        except ValueError as error:
            raise DefinitionError(f"not a URL for Redis: {without_secrets(str(error), self._url)}") from None
        self._client = driver.Redis.from_pool(pool)
        self._scripts = {}

    async def close(self) -> None:
        """Closes all connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def script(self, text: str, keys: Sequence[str], values: Sequence[Any]) -> Any:
        """What the script returns; `keys` get the prefix.

        Raises:
            Lost: the connection went away, or could not be made.
            StoreError: the server refuses.
        """
        if text not in self._scripts:
            self._scripts[text] = self._client.register_script(text)
        script = self._scripts[text]
        return await self.guarded(lambda: script(keys=[self.prefix + key for key in keys], args=values))

    async def at_once(self, *commands: Sequence[Any]) -> list[Any]:
        """The answers to these commands, done as one; the second word of each is a key, and gets the prefix."""

        async def act() -> list[Any]:
            async with self._client.pipeline(transaction=True) as pipe:
                for name, *words in commands:
                    pipe.execute_command(name, *([self.prefix + words[0], *words[1:]] if words else []))
                return await pipe.execute()

        return await self.guarded(act)

    async def guarded(self, act: Callable[[], Awaitable[T]]) -> T:
        """What `act` returns; its errors are ours."""
        try:
            return await act()
        except exceptions.RedisError as error:
            said = str(error)
            shown_cause = error if without_secrets(said, self._url) == said else None
            raise self._meaning(error, without_secrets(said, self._url)) from shown_cause

    def _meaning(self, error: exceptions.RedisError, said: str) -> StoreError:
        meaning = next((text for word, text in _REFUSED if word in said), None)
        if meaning is None and isinstance(error, _LOST) and not isinstance(error, exceptions.AuthenticationError):
            return Lost(f"the store {self.url} cannot be reached ({said}); see that it runs, and that the URL is right")
        return StoreError(f"the store {self.url}: {meaning or 'the server refuses'} ({said})")

    async def listen(self, hear: Callable[[bytes], None], deaf: Callable[[], None]) -> None:
        """Gives `hear` all news, for ever; calls `deaf` when some may have been missed."""
        pause = 0.05
        while True:
            with suppress(exceptions.RedisError, OSError):
                async with self._client.pubsub(ignore_subscribe_messages=True) as subscription:
                    await subscription.subscribe(self.channel)
                    deaf()
                    pause = 0.05
                    while True:
                        message = await subscription.get_message(timeout=None)
                        if message is not None:
                            hear(message["data"])
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)
