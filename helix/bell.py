"""A bell: wakes all who wait at that moment, and costs as little as an event loop allows.  Floor 1.

A reader waits for each read of the network once: on asyncio an `Event` costs it three times a plain future.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Protocol

import anyio
import sniffio

_MANY = 64


class Bell(Protocol):
    """Belongs to one event loop. Between two rings nobody can miss anything: look first, then wait."""

    def ring(self) -> None:
        """Wakes all who wait; those who wait from now on wait for the next ring."""
        ...

    def wait(self) -> Awaitable[object]:
        """What ends with the next ring; to be awaited at once, and once."""
        ...


def new_bell() -> Bell:
    """A bell for the running event loop."""
    return _Futures() if sniffio.current_async_library() == "asyncio" else _Event()


class _Futures:
    __slots__ = ("_loop", "_waiting")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[asyncio.Future[None]] = []

    def ring(self) -> None:
        waiting = self._waiting
        if not waiting:
            return
        self._waiting = []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def wait(self) -> Awaitable[object]:
        if len(self._waiting) >= _MANY:  # those of waiters that were cancelled
            self._waiting = [future for future in self._waiting if not future.done()]
        future = self._loop.create_future()
        self._waiting.append(future)
        return future


class _Event:
    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def ring(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = None

    def wait(self) -> Awaitable[object]:
        if self._event is None:
            self._event = anyio.Event()
        return self._event.wait()
