"""What a run may use and what it used: `Limits` and `Usage`.  Floor 1: imports nothing of helix."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import floor, inf, log10
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

MAX_CRASHES = 5
"""How often a run may lose its owner with nothing done in between, and a tool its process in steps in a row."""


def _is_none(value: object) -> bool:
    return value is None


_OptCount = Annotated[int, Field(exclude_if=lambda value: value == 0)]
"""Left out of JSON when there are none: only some providers tell it."""


def dollars(amount: float) -> float:
    """The amount to ten decimals: finer than a token costs, and sums have no binary noise (0.1 + 0.2 is 0.3)."""
    return round(amount, 10)


def money(amount: float) -> str:
    """The amount for people: to the cent, and below a dollar to three digits (`$1,234.50`, `$0.25`, `$0.00123`)."""
    decimals = 2 if amount == 0 or amount >= 1 else 2 - floor(log10(amount))
    whole, _, part = f"{amount:,.{decimals}f}".partition(".")
    return f"${whole}.{part.rstrip('0'):0<2}"


@dataclass(slots=True, frozen=True)
class Usage:
    """Tokens and requests, as the provider reported them, and what they cost.

    Usages add with `+`. A sum has a cost only if all its parts that used tokens have one; it is exact, in any order.

    Attributes:
        input_tokens, output_tokens, total_tokens: read, written, and both.
        cached_tokens: the part of `input_tokens` that came from the provider's cache.
        reasoning_tokens: the part of `output_tokens` that was reasoning.
        requests: model calls, those that failed included.
        cost: in US dollars: an estimate from list prices, unless the provider told it itself. None when it is not
            known, which is not 0.
        cache_write_tokens: the part of `input_tokens` that was written to the provider's cache.
        input_audio_tokens, output_audio_tokens: the parts of `input_tokens` and `output_tokens` that were audio.
    """

    __pydantic_config__ = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    requests: int = 0
    cost: Annotated[float | None, Field(exclude_if=_is_none)] = None
    cache_write_tokens: _OptCount = 0
    input_audio_tokens: _OptCount = 0
    output_audio_tokens: _OptCount = 0

    @property
    def unpriced(self) -> bool:
        """Whether tokens were used of which nobody knows what they cost."""
        return self.cost is None and self.total_tokens > 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.total_tokens + other.total_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.requests + other.requests,
            self._cost_with(other),
            self.cache_write_tokens + other.cache_write_tokens,
            self.input_audio_tokens + other.input_audio_tokens,
            self.output_audio_tokens + other.output_audio_tokens,
        )

    def _cost_with(self, other: Usage) -> float | None:
        if self.unpriced or other.unpriced or (self.cost is None and other.cost is None):
            return None
        return dollars((self.cost or 0) + (other.cost or 0))


@dataclass(slots=True, frozen=True, kw_only=True)
class Limits:
    """Bounds on an agent and on everything below it. `None`: as the parent has it (for the root: the default).

    | name | bounds | default | at the limit |
    |---|---|---|---|
    | `steps` | committed model calls of each agent | 50 | one call for the output; then `failed(limit_steps)` |
    | `depth` | levels of delegation; the root is level 0 | 8 | the call fails with `limit_depth` |
    | `fan_out` | tool calls of one step | 32 | surplus calls fail with `limit_fan_out` |
    | `concurrency` | model calls that are open at once in the subtree | none | waits |
    | `requests` | model calls of the subtree, retried ones included | none | the agent ends `failed(limit_requests)` |
    | `total_tokens` | tokens of the subtree | none | waits, then the agent ends `failed(limit_tokens)` |
    | `cost` | US dollars of the subtree, as estimated | none | waits, then the agent ends `failed(limit_cost)` |
    | `seconds` | time of the subtree, pauses not counted | none | the subtree is cut, `failed(limit_time)` |

    Under `requests`, one call is kept back for each agent that waits for its children, so that it can still answer.
    """

    steps: int | None = None
    depth: int | None = None
    fan_out: int | None = None
    concurrency: int | None = None
    requests: int | None = None
    total_tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            least = 0 if name == "depth" else 1
            if name in ("cost", "seconds"):
                if not 0 < value < inf:
                    raise ValueError(f"Limits({name}={value}): must be more than 0, and finite")
            elif value < least:
                raise ValueError(f"Limits({name}={value}): must be at least {least}")

    def over(self, base: Limits) -> Limits:
        """These limits, and those of `base` where this has none."""
        if base is NO_LIMITS:
            return self
        given = self.given()
        return Limits(**(base.given() | given)) if given else base

    def given(self) -> dict[str, Any]:
        """Those that are set, by name."""
        return {name: value for name in _LIMITS if (value := getattr(self, name)) is not None}


_LIMITS = tuple(field.name for field in fields(Limits))
NO_LIMITS = Limits()
"""What holds where nothing is said."""

DEFAULT_LIMITS = Limits(steps=50, depth=8, fan_out=32)
"""What holds for a root where nothing else is said."""
