"""The recorded provider traffic of `tests/fixtures/recorded`, typed, and a recorder for what an adapter makes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

FOLDER = Path(__file__).parent / "fixtures" / "recorded" / "cases"


@dataclass(frozen=True)
class Exchange:
    """One request and its response. `expected` is what the provider's own SDK made of the body."""

    request: dict[str, Any] | None
    status: int
    headers: dict[str, str]
    body: bytes
    expected: dict[str, Any]

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "text/event-stream")


@dataclass(frozen=True)
class Case:
    """One case: what was recorded of one conversation."""

    id: str
    api: str
    tags: list[str]
    exchanges: list[Exchange]


@cache
def load(case_id: str) -> Case:
    """The case whose id begins with `case_id` (`d05` is enough)."""
    paths = sorted(FOLDER.glob(f"{case_id}*.json"))
    if len(paths) != 1:
        raise LookupError(f"{case_id!r} names {len(paths)} cases of {', '.join(p.stem for p in FOLDER.glob('*.json'))}")
    raw = json.loads(paths[0].read_bytes())
    return Case(raw["id"], raw["api"], raw["tags"], [_exchange(exchange) for exchange in raw["exchanges"]])


def cases(api: str = "") -> list[Case]:
    """All cases of one wire format, such as `openai.chat`, or of all, in order."""
    return [case for path in sorted(FOLDER.glob("*.json")) if (case := load(path.stem)).api.startswith(api)]


def _exchange(raw: dict[str, Any]) -> Exchange:
    response = raw["response"]
    return Exchange(raw["request"], response["status"], response["headers"], response["body"].encode(), raw["expected"])


@dataclass
class Recorder:
    """An `Emit` that assembles what it is given."""

    said: str = ""
    thought: str = ""
    refused: str = ""
    calls: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])
    data: list[Any] = field(default_factory=list[Any])

    def text(self, delta: str) -> None:
        self.said += delta

    def refusal(self, delta: str) -> None:
        self.refused += delta

    def thinking(self, delta: str) -> None:
        self.thought += delta

    def tool_call(
        self, index: int, *, call_id: str | None = None, name: str | None = None, arguments: str | None = None
    ) -> None:
        call = self.calls.setdefault(index, {"id": None, "name": None, "arguments": ""})
        call["id"] = call_id or call["id"]
        call["name"] = name or call["name"]
        call["arguments"] += arguments or ""

    def provider_data(self, provider: str, data: dict[str, Any], *, to: Literal["message", "part"] = "message") -> None:
        self.data.append((provider, data, to))

    def seen(self, finish_reason: str | None) -> dict[str, Any]:
        """All of it in the shape of a case's `expected.choices[i]`."""
        return {
            "text": self.said,
            "reasoning": self.thought,
            "refusal": self.refused,
            "tool_calls": list(self.calls.values()),
            "finish_reason": finish_reason,
        }
