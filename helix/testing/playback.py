"""`Recorded("run.jsonl")`: a saved run as a script, so that it can be made again without a network.

Floor 6: implements the `Model` seam; above `recording`, which reads the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from types import TracebackType
from typing import Self

import anyio
from anyio.lowlevel import checkpoint

from helix.chunks import Chunk, Control, ErrorChunk, StepEnd
from helix.errors import ModelError
from helix.messages import Message, UserMessage
from helix.model import Emit, ModelReply, ModelRequest
from helix.testing.recording import Attempt, Life, Recording, playing

_SHOWN = 80
"""Characters of a question that a message shows."""


class Recorded:
    """A model that answers each agent with the steps that a log has recorded for it.

    Words, reasoning, tool calls with their arguments and ids, structured outputs, usage, and failed attempts are those
    of the log, piece by piece; failed attempts are not waited for. Tools run anew. An agent is found in the log by its
    place in the tree (`researcher-1.reader-1`), or, when that one was asked something else, as another of its name that
    was asked the same. A step that was cut inside a run that went on stalls, until it is cut again.

    An agent that asks for more steps than were recorded, or was first asked something else, fails; the message names
    the place in the log.

    Args:
        source: the path of a log in JSON Lines, as `helix run --save` writes it, or the chunks of a run.
        pace: seconds between pieces.
        strict: compare what an agent is first asked with what it was asked in the log. In a `with` block, steps that
            are left over are an error when the block is left.

    Attributes:
        requests: every request made, in order.

    Raises:
        InvalidChunk: a line of the file is no chunk; says which.
        UsageError: no run begins in the log.
    """

    def __init__(
        self, source: str | PathLike[str] | Iterable[Chunk | Control], *, pace: float = 0, strict: bool = True
    ) -> None:
        self._log = Recording(source)
        self._pace = pace
        self._strict = strict
        self._plays: dict[str, Life] = {}  # which recorded agent stands for a live one
        self.requests: list[ModelRequest] = []

    @property
    def name(self) -> str:
        """`recorded`."""
        return "recorded"

    def __repr__(self) -> str:
        count = len(self._log.lives)
        return f"Recorded({self._log.name}, {count} agent{'' if count == 1 else 's'})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._strict:
            self.check_used()

    def check_used(self) -> None:
        """Raises AssertionError if recorded steps were not asked for; says whose."""
        left = [f"{life.unused} of {life.label}" for life in self._log.lives.values() if life.unused]
        if left:
            raise AssertionError(f"{self._log.name}: recorded steps were not asked for: {', '.join(left)}")

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        """Plays the next recorded attempt of the agent that asks."""
        self.requests.append(request)
        life = self._plays.get(request.agent_id) or self._find(request)
        attempt = self._next(life, request)
        await self._pause()
        for push in playing(attempt, emit, request.output.name if request.output else None):
            push()
            await self._pause()
        return await self._end(attempt)

    def _find(self, request: ModelRequest) -> Life:
        """The recorded agent that a live one is: that of its place in the tree, or one that was asked the same."""
        above, _, last = request.agent_id.rpartition(".")
        parent = self._plays.get(above)
        place = (f"{parent.place}.{last}" if parent.place else last) if parent else request.agent_id.partition(".")[2]
        taken = {id(life) for life in self._plays.values()}
        free = [life for life in self._log.lives.values() if id(life) not in taken]
        here = [life for life in free if life.place == place and life.agent_type == request.agent_type]
        named = [life for life in free if life.agent_type == request.agent_type and bool(life.place) == bool(above)]
        same = [life for life in (*here, *named) if life.asks(request.messages)]
        found = next(iter(same if self._strict or same else here or named), None)
        if found is None:
            raise self._error(self._difference(request, here or named))
        self._plays[request.agent_id] = found
        return found

    def _difference(self, request: ModelRequest, known: list[Life]) -> str:
        if not known:
            others = ", ".join(life.label for life in self._log.lives.values())
            return f"no {request.agent_type!r} was recorded that is not taken; there were: {others}"
        was = _shown(known[0].start.input)
        return (
            f"{known[0].label} was asked {was} in chunk {known[0].start.sequence}, and is asked "
            f"{_shown(list(request.messages)[-max(1, len(known[0].start.input)) :])} now"
        )

    def _next(self, life: Life, request: ModelRequest) -> Attempt:
        if not life.unused:
            known = f"its last one is in chunk {life.last}" if life.last else "it made none"
            raise self._error(f"{life.label} asks for step {request.step}, attempt {request.attempt}; {known}")
        life.used += 1
        return life.attempts[life.used - 1]

    async def _end(self, attempt: Attempt) -> ModelReply:
        end = attempt.end
        if end is None:
            raise self._error(f"the log ends in the middle of the step that begins in chunk {attempt.sequence}")
        if end.outcome == "committed":
            return ModelReply(end.finish_reason, end.usage)
        if end.outcome == "abandoned":
            raise _failure(attempt.error, end)
        if self._log.went_on:
            await anyio.sleep_forever()
        raise self._error(f"the step was cut in chunk {end.sequence}, and the run with it; there is no more to play")

    def _error(self, text: str) -> ModelError:
        return ModelError("internal", f"{self._log.name}: {text}")

    async def _pause(self) -> None:
        await (anyio.sleep(self._pace) if self._pace else checkpoint())


def _failure(error: ErrorChunk | None, end: StepEnd) -> ModelError:
    """What an attempt failed with. If it may be tried again, then at once."""
    if error is None:
        return ModelError(end.reason or "internal", "the recorded attempt failed", usage=end.usage)
    again = error.recoverable
    return ModelError(error.code, error.error, retryable=again, retry_after=0.0, detail=error.detail, usage=end.usage)


def _shown(messages: list[Message]) -> str:
    said = [message.text if isinstance(message, UserMessage) else repr(message) for message in messages]
    text = repr(" | ".join(said))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
