"""What models cost: the prices that a user gives, and those that the library `genai-prices` lists (extra `cost`).

Floor 3: above `agent` and `models`, beside `live`. A step's cost is worked out once, when its model call has ended, and
kept in the log: prices that change later change no run that was. Everything here is an estimate, from list prices.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from importlib.util import find_spec
from math import inf
from types import ModuleType
from typing import Any

from anyio import to_thread

from helix.agent import Agent
from helix.errors import DefinitionError
from helix.limits import NO_LIMITS, Limits, Usage, dollars
from helix.model import Model
from helix.models.fallback import FallbackModel


@dataclass(slots=True, frozen=True, kw_only=True)
class Price:
    """What a model costs, in US dollars for a million tokens. What is left out costs as `input` or `output` does.

    Attributes:
        input, output: what it reads and what it writes, reasoning included.
        cached, cache_write: what it reads from the provider's cache, and what is written to that.
        input_audio, output_audio: audio.
    """

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None
    input_audio: float | None = None
    output_audio: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 <= value < inf:
                raise ValueError(f"Price({field.name}={value}): must be at least 0, and finite")

    def of(self, usage: Usage) -> float:
        """The cost of that usage in US dollars."""
        read = self.input * usage.input_tokens
        for special, tokens in (
            (self.cached, usage.cached_tokens),
            (self.cache_write, usage.cache_write_tokens),
            (self.input_audio, usage.input_audio_tokens),
        ):
            read += 0 if special is None else (special - self.input) * tokens
        audio = self.output if self.output_audio is None else self.output_audio
        written = self.output * usage.output_tokens + (audio - self.output) * usage.output_audio_tokens
        return dollars((read + written) / 1_000_000)


class Prices:
    """What is known of prices: the user's own go before the library's.

    Without the library only the user's are known. It is imported for the first model that it may list, and opens no
    connection.
    """

    def __init__(self, own: Mapping[str, Price | str] | None = None) -> None:
        """Takes the user's own: by a model's name its price, or the name of a listed model that it costs as much as.

        Raises:
            DefinitionError: it is something else.
        """
        if not isinstance(own, Mapping | None):
            raise DefinitionError(f"prices= is to be a dict, not {own!r}")
        self._own = dict(own or {})
        self._unlisted: set[tuple[str, str]] = set()
        for name, price in self._own.items():
            if not isinstance(price, Price | str):
                raise DefinitionError(f"prices[{name!r}] is to be a Price or the name of a model, not {price!r}")
            if isinstance(price, str) and _listed_name(price) is None:
                known = ", ".join(f"{prefix}:" for prefix in _PROVIDERS)
                raise DefinitionError(f"prices[{name!r}]: {price!r} is no listed model; those begin with {known}")

    async def load(self, models: Iterable[Model]) -> None:
        """Has the library's list at hand, if it may list one of the models: it takes too long for an event loop."""
        if "genai_prices" in sys.modules or not _is_installed():
            return
        for name in (name for model in models for name in _names(model)):
            if _listed_name(self._own.get(name, name)) is not None:
                await to_thread.run_sync(self.cost, name, Usage())
                return

    def cost(self, model: str, usage: Usage) -> float | None:
        """What that usage of the model of that name costs, in US dollars; None when its price is not known."""
        price = self._own.get(model, model)
        if isinstance(price, Price):
            return price.of(usage)
        listed = _listed_name(price)
        if listed is None or listed in self._unlisted or self._library is None:
            return None
        try:
            return _listed_cost(self._library, *listed, usage)
        except LookupError:
            self._unlisted.add(listed)  # the library would look through its whole list each time
        except ValueError:  # parts that are more than the whole
            pass
        return None

    def priced(self, model: str, usage: Usage) -> Usage:
        """The usage with its cost, as far as that is known; what the provider told itself stays."""
        cost = self.cost(model, usage) if usage.cost is None else dollars(usage.cost)
        return usage if cost is None else replace(usage, cost=cost)

    def most(self, model: Model, usage: Usage) -> float | None:
        """What it costs at most, whichever model answers; None when the price of one is not known."""
        costs = [self.cost(name, usage) for name in _names(model)]
        known = [cost for cost in costs if cost is not None]
        return max(known) if len(known) == len(costs) else None

    def check(
        self,
        agent: Agent[Any, Any, Any],
        limits: Limits | None,
        model: Model,
        model_of: Callable[[Agent[Any, Any, Any], Model], Model],
    ) -> None:
        """Whether all models under a limit of costs have a price.

        Args:
            agent: the root, with `limits` over its own, and its `model`.
            model_of: a child's model, given its parent's.

        Raises:
            ImportError: the library is not installed, and a price of its list is needed.
            DefinitionError: a model's price is not known.
        """
        for limited in _under_a_limit(agent, limits, model, model_of, False):
            for name in _names(limited):
                if self.cost(name, Usage()) is None:
                    raise self._unknown(name)

    def _unknown(self, name: str) -> Exception:
        if self._library is None and _listed_name(self._own.get(name, name)) is not None:
            return ImportError(
                f"a limit of costs needs the price of {name!r}: pip install 'helix-agents[cost]', or give it: "
                f"Executor(prices={{{name!r}: Price(input=…, output=…)}})"
            )
        like = self._own.get(name)
        meant = f"{name!r}" if like is None else f"{like!r}, which {name!r} is to cost as much as,"
        return DefinitionError(
            f"a limit of costs cannot hold: no price of {meant} is known. Give it, in dollars for a million tokens: "
            f"Executor(prices={{{name!r}: Price(input=…, output=…)}}) or prices={{{name!r}: 'openai:…'}}"
        )

    @cached_property
    def _library(self) -> ModuleType | None:
        try:
            import genai_prices
        except ImportError:
            return None
        return genai_prices


@cache
def _is_installed() -> bool:
    return find_spec("genai_prices") is not None


_PROVIDERS = {
    "openai": "openai",
    "openai-responses": "openai",
    "azure": "azure",
    "azure-responses": "azure",
    "anthropic": "anthropic",
    "google": "google",
}
"""What the library calls the providers of helix's models."""


def _listed_name(model: Any) -> tuple[str, str] | None:
    """The provider and the model as the library calls them, if the model is one that it may list."""
    provider, _, name = model.partition(":") if isinstance(model, str) else ("", "", "")
    return (_PROVIDERS[provider], name) if provider in _PROVIDERS and name else None


def _listed_cost(library: ModuleType, provider: str, model: str, usage: Usage) -> float:
    counts = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cached_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "input_audio_tokens": usage.input_audio_tokens,
        "output_audio_tokens": usage.output_audio_tokens,
        "cache_audio_read_tokens": max(0, usage.cached_tokens + usage.input_audio_tokens - usage.input_tokens),
        "cache_audio_write_tokens": 0,  # providers do not tell how much of the audio was cached: the least, then
    }
    found = library.calc_price(library.Usage(**counts), model, provider_id=provider)
    return dollars(float(found.total_price))


def _names(model: Model) -> list[str]:
    """Its name, or those of all that may answer in its place."""
    return [one.name for one in model.models] if isinstance(model, FallbackModel) else [model.name]


def _under_a_limit(
    agent: Agent[Any, Any, Any],
    limits: Limits | None,
    model: Model,
    model_of: Callable[[Agent[Any, Any, Any], Model], Model],
    limited: bool,
) -> Iterator[Model]:
    limited = limited or (limits or NO_LIMITS).over(agent.limits or NO_LIMITS).cost is not None
    if limited:
        yield model
    for tool in agent.sub_agents:
        yield from _under_a_limit(tool.agent, tool.limits, model_of(tool.agent, model), model_of, limited)
