"""What a run may use and what it used: `Limits` and `Usage`.  Floor 1: imports nothing of helix."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

MAX_CRASHES = 5
"""How often a run may lose its owner with nothing done in between, and a tool its process in steps in a row."""


@dataclass(slots=True, frozen=True)
class Usage:
    """Tokens and requests, as the provider reported them.

    Usages add with `+`.

    Attributes:
        input_tokens, output_tokens, total_tokens: read, written, and both.
        cached_tokens: the part of `input_tokens` that came from the provider's cache.
        reasoning_tokens: the part of `output_tokens` that was reasoning.
        requests: model calls, those that failed included.
        cost: in whatever unit the provider reports it; None when it does not.
    """

    __pydantic_config__ = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    requests: int = 0
    cost: Annotated[float | None, Field(exclude_if=lambda value: value is None)] = None

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.total_tokens + other.total_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.requests + other.requests,
            (self.cost or 0) + (other.cost or 0) if self.cost is not None or other.cost is not None else None,
        )


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
    | `seconds` | time of the subtree, pauses not counted | none | the subtree is cut, `failed(limit_time)` |

    Under `requests`, one call is kept back for each agent that waits for its children, so that it can still answer.
    """

    steps: int | None = None
    depth: int | None = None
    fan_out: int | None = None
    concurrency: int | None = None
    requests: int | None = None
    total_tokens: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value < (0 if field.name == "depth" else 1) and field.name != "seconds":
                raise ValueError(f"Limits({field.name}={value}): must be at least {0 if field.name == 'depth' else 1}")
            if field.name == "seconds" and value is not None and value <= 0:
                raise ValueError(f"Limits(seconds={value}): must be more than 0")

    def over(self, base: Limits) -> Limits:
        """These limits, and those of `base` where this has none."""
        chosen: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            chosen[field.name] = getattr(base, field.name) if value is None else value
        return Limits(**chosen)

    def given(self) -> dict[str, Any]:
        """Those that are set, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


DEFAULT_LIMITS = Limits(steps=50, depth=8, fan_out=32)
"""What holds for a root where nothing else is said."""
