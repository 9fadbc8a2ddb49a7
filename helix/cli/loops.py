"""The event loop of a command: uvloop's where it is installed (extra `fast`), else asyncio's own.  Floor 7."""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


def run_async(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Runs the coroutine function to its end in an event loop of its own."""
    fast = importlib.util.find_spec("uvloop") is not None
    return anyio.run(function, *arguments, backend_options={"use_uvloop": fast})
