"""Models for tests and demos: scripted turns, and a function.

Floor 6: implements the `Model` seam; no network.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeAlias, cast

import anyio
from anyio.lowlevel import checkpoint
from pydantic_core import to_json

from helix.chunks import ERROR_CODES, ErrorCode, FinishReason
from helix.errors import ModelError, did_you_mean
from helix.limits import Usage
from helix.model import Emit, ModelReply, ModelRequest


class Call:
    """A tool call in a `Turn`: `Call("search", query="x")`. `id=` and `raw=` (ill-formed JSON text) are optional.

    Attributes:
        name, id: the tool's name and the call's id; without an id it is given one.
        text: the arguments, as JSON text.
    """

    def __init__(self, name: str, /, *, id: str | None = None, raw: str | None = None, **arguments: Any) -> None:
        self.name = name
        self.id = id
        self.text = raw if raw is not None else to_json(arguments).decode()

    def __repr__(self) -> str:
        return f"Call({self.name!r}, {self.text})"


@dataclass(slots=True, frozen=True)
class Turn:
    """What the model does in one call.

    Attributes:
        text: its words: one piece, or a list of pieces.
        thinking: its reasoning, before the words: one piece, or a list of them.
        calls: the tool calls it asks for.
        output: a structured output; given as its JSON text.
        refusal: words with which it declines.
        input_tokens, output_tokens: what is reported as used.
        finish_reason: by default what fits.
        fail: a `model_*` code or a `ModelError` that the call ends with, after what was said; a code that providers
            use for passing faults is retried at once.
        drop: the connection breaks after what was said.
        stall: after what was said nothing more comes, until the call is cancelled.
        wait: is awaited before anything is said, to let a test decide when.
    """

    text: str | Sequence[str] = ""
    thinking: str | Sequence[str] = ""
    calls: Sequence[Call] = ()
    output: Any = None
    refusal: str = ""
    input_tokens: int = 11
    output_tokens: int = 7
    finish_reason: FinishReason | None = None
    fail: ErrorCode | ModelError | None = None
    drop: bool = False
    stall: bool = False
    wait: Callable[[], Awaitable[Any]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.fail, str) and self.fail not in ERROR_CODES:
            raise ValueError(f"Turn(fail={self.fail!r}): no such code.{did_you_mean(self.fail, ERROR_CODES)}")


Scripted: TypeAlias = Turn | str
Answering: TypeAlias = Callable[[ModelRequest], Scripted | Awaitable[Scripted]]
Script: TypeAlias = Sequence[Scripted] | Answering


class ScriptedModel:
    """A model that follows a script, each agent its own.

    Args:
        script: for each agent's name a list of turns, or a function of the request that gives one. One list alone is
            for whatever agent asks. Agents of one name share their list, in the order in which they ask; a key like
            `writer-2` (the end of an agent's id) is for that one alone. Each turn is used once.
        pace: seconds between pieces; a text is then streamed word by word.
        strict: an agent that asks for more turns than it has fails; otherwise its last turn is repeated. In a `with`
            block, turns that were missing or are left over are an error when the block is left.

    Attributes:
        requests: every request made, in order.
    """

    def __init__(self, script: Mapping[str, Script] | Script, *, pace: float = 0, strict: bool = True) -> None:
        routed = cast(Mapping[str, Script], script) if isinstance(script, Mapping) else {"": script}
        self._scripts: dict[str, Script] = dict(routed)
        self._used: dict[str, int] = {}
        self._pace = pace
        self._strict = strict
        self._missing: list[str] = []
        self._calls = 0
        self.requests: list[ModelRequest] = []

    @property
    def name(self) -> str:
        """`scripted`."""
        return "scripted"

    def __repr__(self) -> str:
        return f"ScriptedModel({', '.join(name or 'any agent' for name in self._scripts)})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._strict:
            self.check_used()

    def check_used(self) -> None:
        """Raises AssertionError if turns were missing, or are left over; says whose."""
        if self._missing:
            raise AssertionError(f"more turns were asked for than scripted, by {', '.join(self._missing)}")
        left = {
            name or "any agent": len(script) - self._used.get(name, 0)
            for name, script in self._scripts.items()
            if not callable(script)
        }
        unused = ", ".join(f"{count} of {name}" for name, count in left.items() if count > 0)
        if unused:
            raise AssertionError(f"scripted turns were not used: {unused}")

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        """Plays the next turn."""
        self.requests.append(request)
        turn = await self._turn(request)
        if turn.wait is not None:
            await turn.wait()
        await self._say(turn, emit)
        _fail(turn)
        if turn.stall:
            await anyio.sleep_forever()
        reason = turn.finish_reason or ("tool_calls" if turn.calls else "refusal" if turn.refusal else "stop")
        return ModelReply(reason, _usage(turn))

    async def _turn(self, request: ModelRequest) -> Turn:
        key = self._key(request)
        script = self._scripts.get(key)
        if script is None:
            known = ", ".join(sorted(self._scripts)) or "none"
            raise ModelError(
                "internal", f"ScriptedModel has no turns for agent {request.agent_type!r}; it has: {known}"
            )
        if callable(script):
            given = script(request)
            return _as_turn(await given if inspect.isawaitable(given) else given)
        used = self._used.get(key, 0)
        if used >= len(script) and (self._strict or not script):
            self._missing.append(request.agent_id)
            raise ModelError(
                "internal", f"ScriptedModel has no more turns for {key or 'any agent'!r}: {used} were used"
            )
        self._used[key] = used + 1
        return _as_turn(script[min(used, len(script) - 1)])

    def _key(self, request: ModelRequest) -> str:
        last = request.agent_id.rpartition(".")[2]
        return next((key for key in (request.agent_id, last, request.agent_type) if key in self._scripts), "")

    async def _say(self, turn: Turn, emit: Emit) -> None:
        await self._pause()
        for piece in self._pieces(turn.thinking):
            emit.thinking(piece)
            await self._pause()
        text = turn.text if turn.output is None else to_json(turn.output).decode()
        for piece in self._pieces(text):
            emit.text(piece)
            await self._pause()
        for piece in self._pieces(turn.refusal):
            emit.refusal(piece)
            await self._pause()
        for index, call in enumerate(turn.calls):
            self._calls += 1
            emit.tool_call(index, call_id=call.id or f"call_{self._calls}", name=call.name)
            for piece in _fragments(call.text):
                emit.tool_call(index, arguments=piece)
            await self._pause()

    def _pieces(self, text: str | Sequence[str]) -> Sequence[str]:
        if not isinstance(text, str):
            return text
        if not self._pace:
            return [text] if text else []
        return [f"{word} " for word in text.split(" ")[:-1]] + [text.split(" ")[-1]]

    async def _pause(self) -> None:
        await (anyio.sleep(self._pace) if self._pace else checkpoint())


class FunctionModel:
    """A model that is a function of the request: it returns a `Turn` or a text, and may be async.

    Args:
        function: what to answer.
        pace: as in `ScriptedModel`.
    """

    def __init__(self, function: Answering, *, pace: float = 0) -> None:
        self._script = ScriptedModel(function, pace=pace)

    @property
    def name(self) -> str:
        """`function`."""
        return "function"

    @property
    def requests(self) -> list[ModelRequest]:
        """Every request made, in order."""
        return self._script.requests

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        """Answers with what the function gives."""
        return await self._script.respond(request, emit)


def _as_turn(given: Any) -> Turn:
    return given if isinstance(given, Turn) else Turn(text=cast(str, given))


def _fragments(text: str) -> list[str]:
    """A call's arguments in pieces, as providers send them."""
    return [text[start : start + 12] for start in range(0, len(text), 12)]


def _usage(turn: Turn) -> Usage:
    total = turn.input_tokens + turn.output_tokens
    return Usage(turn.input_tokens, turn.output_tokens, total, requests=1)


def _fail(turn: Turn) -> None:
    if turn.drop:
        raise ModelError("model_stream_dropped", "the connection broke off in mid-reply", retryable=True, retry_after=0)
    if isinstance(turn.fail, ModelError):
        raise turn.fail
    if turn.fail is not None:
        passing = turn.fail in ("model_rate_limited", "model_unavailable", "model_stream_dropped")
        raise ModelError(turn.fail, f"scripted failure: {turn.fail}", retryable=passing, retry_after=0)
