"""What the runs of one executor share of each provider: its places, and whether it is asked at all.

Floor 2: above `model`; `steps` goes through a gate around each model call. A gate belongs to one event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import anyio
from anyio import current_time

from helix.errors import DefinitionError, ModelError
from helix.limits import Usage
from helix.model import Model

T = TypeVar("T")

PROVIDER_SIDE: Final = frozenset({"model_rate_limited", "model_unavailable", "model_stream_dropped"})
"""The failures that are the provider's own: too many requests, faults and silence of its servers, broken replies."""


@dataclass(slots=True, frozen=True, kw_only=True)
class ProviderLimits:
    """How the runs of an executor treat a provider. A provider is the prefix of a model's name and its base URL.

    Attributes:
        max_concurrency: model calls that are open at once, of all runs; others wait for their turn, first come first
            served. A wait is a `custom` chunk `waiting_for_model`, counts as time under `Limits(seconds=…)`, and not
            under the settings' `timeout` and `first_byte`.
        max_failures: after so many failures of the provider's own in a row (`model_rate_limited`, `model_unavailable`,
            `model_stream_dropped`), calls fail at once with `model_unavailable`, and nothing is sent.
        cooldown: seconds until one call is let through again. If it succeeds, all are; if not, they last anew.
    """

    max_concurrency: int | None = None
    max_failures: int | None = None
    cooldown: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_concurrency", "max_failures"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"ProviderLimits({name}={value}): must be at least 1")
        if self.cooldown <= 0:
            raise ValueError(f"ProviderLimits(cooldown={self.cooldown}): must be more than 0")


class Gates:
    """The gates of one executor, one for each provider, made when it is first asked."""

    def __init__(self, limits: ProviderLimits | Mapping[str, ProviderLimits] | None = None) -> None:
        """`limits` hold for each provider, or for those of these prefixes, such as `openai`.

        Raises:
            DefinitionError: they are something else.
        """
        self._limits: ProviderLimits | Mapping[str, ProviderLimits] = {} if limits is None else limits
        each: Iterable[Any] = self._limits.values() if isinstance(self._limits, Mapping) else [self._limits]
        if not all(isinstance(item, ProviderLimits) for item in each):
            raise DefinitionError(f"provider_limits= is to be ProviderLimits(…), or a dict of them, not {limits!r}")
        self._gates: dict[tuple[str, str], Gate] = {}

    def of(self, model: Model) -> Gate | None:
        """The gate before a model; None if nothing limits its provider."""
        prefix = model.name.partition(":")[0]
        limits = self._limits if isinstance(self._limits, ProviderLimits) else self._limits.get(prefix)
        if limits is None:
            return None
        key = prefix, str(getattr(model, "base_url", ""))
        if key not in self._gates:
            self._gates[key] = Gate(prefix, limits)
        return self._gates[key]


@dataclass(slots=True, eq=False)
class Gate:
    """A circuit breaker and a number of places."""

    provider: str
    limits: ProviderLimits
    _places: anyio.Semaphore | None = field(init=False)
    _failures: int = 0
    _closed_until: float | None = None
    """Since when one may be let through again, while no call has succeeded after too many failures."""
    _probing: bool = False

    def __post_init__(self) -> None:
        places = self.limits.max_concurrency
        self._places = None if places is None else anyio.Semaphore(places)

    async def through(self, ask: Callable[[], Awaitable[T]], waits: Callable[[], object]) -> T:
        """Asks once there is a place; `waits` is called if there is none as yet.

        Raises:
            ModelError: `model_unavailable`, because the provider has failed too often; or what `ask` raises.
        """
        self._check()
        if self._places is None:
            return await self._watch(ask)
        if self._places.value == 0:
            waits()
        async with self._places:
            self._check()  # again: others may have failed in the meantime
            return await self._watch(ask)

    async def _watch(self, ask: Callable[[], Awaitable[T]]) -> T:
        probes = self._probing = self._closed_until is not None
        try:
            answer = await ask()
        except ModelError as error:
            self._count(failed=error.code in PROVIDER_SIDE)
            raise
        finally:
            if probes:
                self._probing = False
        self._count(failed=False)
        return answer

    def _check(self) -> None:
        if self._closed_until is None:
            return
        remaining = self._closed_until - current_time()
        if remaining > 0 or self._probing:
            text = f"{self.provider} has failed {self._failures} times in a row, and is not asked for now."
            after = remaining if remaining > 0 else None
            raise ModelError("model_unavailable", text, retryable=True, retry_after=after, usage=Usage())

    def _count(self, *, failed: bool) -> None:
        self._failures = self._failures + 1 if failed else 0
        too_many = self.limits.max_failures is not None and self._failures >= self.limits.max_failures
        self._closed_until = current_time() + self.limits.cooldown if too_many else None
