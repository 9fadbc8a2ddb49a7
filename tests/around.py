"""A store around another one, to do something to what goes through."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from helix.store import Store


class Around:
    """Does all as the store inside does it; subclasses change that."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._inner.__aexit__(kind, error, traceback)
