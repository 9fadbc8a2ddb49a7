"""Connections that are lost: who goes on after one, how an unknown outcome is found out, and URLs without passwords.

Floor 2: the stores on a network stand on it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import anyio
import sniffio

from helix.errors import StoreError, UsageError
from helix.store import Store, Write

T = TypeVar("T")

_SECRETS = ("password", "sslpassword", "passfile")


class Lost(StoreError):
    """The connection went away; whether what was asked for has been done is not known."""


async def persist(act: Callable[[bool], Awaitable[T]], patience: float) -> T:
    """What `act` returns. It is called again, with True, when the connection was lost, for `patience` seconds.

    Raises:
        StoreError: there was no connection for that long.
    """
    deadline, pause, again = anyio.current_time() + patience, 0.0, False
    while True:
        try:
            return await act(again)
        except Lost as lost:
            if anyio.current_time() + pause > deadline:
                raise StoreError(str(lost)) from lost.__cause__
        await anyio.sleep(pause)
        pause, again = min(1.0, pause * 2 or 0.05), True


async def persist_to_the_end(act: Callable[[bool], Awaitable[T]], patience: float) -> T:
    """`persist`, not cut short by a cancellation."""
    return await whole(persist(act, patience))


async def whole(act: Awaitable[T]) -> T:
    """What `act` returns, not cut short by a cancellation, which comes behind it."""
    with anyio.CancelScope(shield=True):
        return await act
    raise AssertionError("a shielded scope swallows nothing")


async def is_written(store: Store, write: Write) -> bool:
    """Whether this append, whose outcome was not heard, is in the store, whoever owns the run by now.

    To be asked when it was refused the second time: before that, the first one may still be under way.
    """
    if write.chunks:
        found = await store.read(write.run_id, write.after, limit=len(write.chunks))
        return bool(found) and all(data == write.chunks[number - write.after - 1] for number, data in found)
    record = await store.get(write.run_id)
    return write.gives_up and record.epoch == write.epoch and record.owner is None


def check_asyncio(what: str) -> None:
    """Their drivers know no other event loop.

    Raises:
        UsageError: this is trio.
    """
    library = sniffio.current_async_library()
    if library != "asyncio":
        raise UsageError(f"{what} runs on asyncio only, not on {library}; MemoryStore and SqliteStore run on both")


class Listening:
    """Something that listens for ever, in a task of its own. Made inside of an event loop."""

    def __init__(self, listen: Callable[[], Awaitable[None]]) -> None:
        self._listen = listen
        self._scope = anyio.CancelScope()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        with self._scope:
            await self._listen()

    async def stop(self) -> None:
        """Returns once it has ended; what it shields from that is done first."""
        self._scope.cancel()  # until it has ended: drivers may take one cancellation for a timeout
        await asyncio.wait([self._task])


def shown(url: str) -> str:
    """The URL without its passwords."""
    try:
        parts = urlsplit(url)
        user, at, place = parts.netloc.rpartition("@")
        name, colon, _ = user.partition(":")
    except ValueError:
        return f"{url.partition(':')[0]}://…"
    words = [
        re.sub("=.*", "=***", word) if word.partition("=")[0] in _SECRETS else word for word in _words(parts.query)
    ]
    return _joined(parts._replace(netloc=f"{name}{colon and ':***'}{at}{place}", query="&".join(words)))


def without_secrets(text: str, url: str) -> str:
    """An error's text, in which the URL's passwords do not appear."""
    try:
        parts = urlsplit(url)
        secrets = [parts.password or "", *(value for name, value in parse_qsl(parts.query) if name in _SECRETS)]
    except ValueError:
        return "the URL cannot be read"
    for secret in secrets:
        for form in {secret, unquote(secret)} - {""}:
            text = text.replace(form, "***")
    return text


def option(url: str, name: str, default: str) -> tuple[str, str]:
    """The URL without that query option, and the option's value."""
    parts = urlsplit(url)
    words = _words(parts.query)
    mine = [word for word in words if word.startswith(f"{name}=")]
    value = unquote(mine[-1].partition("=")[2]) if mine else default
    return _joined(parts._replace(query="&".join(word for word in words if word not in mine))), value


def _words(query: str) -> list[str]:
    return query.split("&") if query else []


def _joined(parts: SplitResult) -> str:
    """`urlunsplit`, which forgets the slashes before an empty place."""
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{parts.path}{query}"
