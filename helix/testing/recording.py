"""A log as a script: for each agent the model calls that it made, and the pushes that would make them again.

Floor 6: above `chunks` and `model`; `playback` plays it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import TypeAlias

from pydantic_core import to_json

from helix.chunks import (
    Chunk,
    Control,
    ErrorChunk,
    OutputDelta,
    Resync,
    RunEnd,
    RunStart,
    StepEnd,
    StepStart,
    StreamEnd,
    TextDelta,
    Thinking,
    ToolInputDelta,
    ToolInputStart,
    parse_chunk,
)
from helix.errors import InvalidChunk, UsageError
from helix.messages import AssistantMessage, Message, Part, ProviderData, RefusalPart, TextPart, ThinkingPart, ToolCall
from helix.model import Emit

Piece: TypeAlias = TextDelta | Thinking | OutputDelta | ToolInputStart | ToolInputDelta
Words: TypeAlias = TextPart | RefusalPart | ThinkingPart
Push: TypeAlias = Callable[[], None]


@dataclass(slots=True)
class Attempt:
    """One recorded model call: `end` is None when the log stops in it."""

    sequence: int
    pieces: list[Piece] = field(default_factory=list[Piece])
    error: ErrorChunk | None = None
    end: StepEnd | None = None

    @property
    def counts(self) -> bool:
        """False for what a crash left behind: its step was done again."""
        return self.end is None or self.end.reason != "crash"


@dataclass(slots=True)
class Life:
    """One recorded agent. `place` is its id below the root's; `used` how many of its attempts were played."""

    place: str
    agent_type: str
    start: RunStart
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    used: int = 0

    @property
    def label(self) -> str:
        """How messages call it."""
        return self.place or self.agent_type

    @property
    def unused(self) -> int:
        """How many attempts are left."""
        return len(self.attempts) - self.used

    @property
    def last(self) -> int:
        """The chunk in which its last attempt begins; 0 if it made none."""
        return self.attempts[-1].sequence if self.attempts else 0

    def asks(self, messages: Sequence[Message]) -> bool:
        """Whether a conversation ends in what it was asked."""
        asked = self.start.input
        return not asked or list(messages)[-len(asked) :] == asked


class Recording:
    """A log, read. `lives` are its agents by place; `went_on` is whether the run itself was not cut."""

    def __init__(self, source: str | PathLike[str] | Iterable[Chunk | Control]) -> None:
        from_file = isinstance(source, str | PathLike)
        self.name = Path(fspath(source)).name if from_file else "the recorded run"
        self.lives: dict[str, Life] = {}
        self.went_on = True
        for chunk in _read(Path(fspath(source))) if from_file else source:
            if not isinstance(chunk, StreamEnd | Resync):
                self._take(chunk)
        if "" not in self.lives:
            raise UsageError(f"{self.name}: no run begins in it; a recording has the whole log, from `run_start` on")
        for life in self.lives.values():
            life.attempts = [attempt for attempt in life.attempts if attempt.counts]

    def _take(self, chunk: Chunk) -> None:
        place = chunk.agent_id.partition(".")[2]
        if isinstance(chunk, RunStart):
            self.lives.setdefault(place, Life(place, chunk.agent_type, chunk))
            return
        life = self.lives.get(place)
        if life is None:
            return
        if isinstance(chunk, StepStart):
            life.attempts.append(Attempt(chunk.sequence))
        elif isinstance(chunk, RunEnd) and not place:
            self.went_on = chunk.status != "cancelled" and chunk.error_code != "limit_time"
        elif life.attempts and life.attempts[-1].end is None:
            _take_piece(life.attempts[-1], chunk)


def _take_piece(attempt: Attempt, chunk: Chunk) -> None:
    if isinstance(chunk, Piece):
        attempt.pieces.append(chunk)
    elif isinstance(chunk, ErrorChunk):
        attempt.error = chunk
    elif isinstance(chunk, StepEnd):
        attempt.end = chunk


def _read(path: Path) -> Iterator[Chunk | Control]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                if line.strip():
                    yield parse_chunk(line)
            except InvalidChunk as error:
                raise InvalidChunk(f"{path.name}, line {number}: {error}") from None


def playing(attempt: Attempt, emit: Emit, output: str | None) -> Iterator[Push]:
    """The pushes that make an attempt again, each to be called; `output` is the name of the output's tool.

    The log's pieces say when what was shown, its message what they were: words or a refusal, whose signature goes with
    which part, and what readers are not shown.
    """
    message = attempt.end.message if attempt.end is not None else None
    shown = {piece.tool_call_id for piece in attempt.pieces if isinstance(piece, ToolInputStart)}
    player = _Player(emit, message or AssistantMessage(), output, shown)
    for piece in attempt.pieces:
        yield from player.piece(piece)
    yield from player.rest()


class _Player:
    def __init__(self, emit: Emit, message: AssistantMessage, output: str | None, shown: set[str]) -> None:
        self._emit = emit
        self._message = message
        self._output = output
        self._words = _Cursor([part for part in message.content if isinstance(part, TextPart | RefusalPart)])
        self._thoughts = _Cursor([part for part in message.content if isinstance(part, ThinkingPart)])
        self._calls = {part.tool_call_id: part for part in message.content if isinstance(part, ToolCall)}
        hidden = [call for key, call in self._calls.items() if call.tool_name == output and key not in shown]
        self._output_call = hidden[0] if hidden else None
        self._index: dict[str, int] = {}  # of the calls that have begun, by id

    def piece(self, piece: Piece) -> Iterator[Push]:
        match piece:
            case Thinking(is_complete=False, content=content):
                yield partial(self._emit.thinking, content)
                yield from self._signed(self._thoughts.take(content))
            case TextDelta(delta=delta):
                yield from self._say(delta)
            case OutputDelta(delta=delta) if self._is_said(delta):
                yield from self._say(delta)
            case OutputDelta(delta=delta):
                yield from self._write(self._output_call.tool_call_id if self._output_call else "", self._output, delta)
            case ToolInputStart(tool_call_id=call_id, tool_name=name):
                yield from self._write(call_id, name, "")
            case ToolInputDelta(tool_call_id=call_id, delta=delta):
                yield from self._write(call_id, None, delta)
            case _:
                pass

    def rest(self) -> Iterator[Push]:
        """What the pieces had not shown."""
        for part in (*self._thoughts.rest(), *self._words.rest()):
            push = {"thinking": self._emit.thinking, "refusal": self._emit.refusal, "text": self._emit.text}[part.type]
            yield partial(push, part.text)
            yield from self._signed(part)
        for call_id, call in self._calls.items():
            if call_id not in self._index:
                text = call.arguments if isinstance(call.arguments, str) else to_json(call.arguments).decode()
                yield from self._write(call_id, call.tool_name, text)
        yield from _provided(self._emit, self._message.provider_data, to_part=False)

    def _is_said(self, delta: str) -> bool:
        """Whether an output was written as text, and not by a call of its tool."""
        part = self._words.part
        return self._output is None or (
            self._output_call is None and part is not None and part.text.startswith(delta, self._words.at)
        )

    def _say(self, delta: str) -> Iterator[Push]:
        part = self._words.part
        yield partial(self._emit.refusal if isinstance(part, RefusalPart) else self._emit.text, delta)
        yield from self._signed(self._words.take(delta))

    def _write(self, call_id: str, name: str | None, text: str) -> Iterator[Push]:
        """Pushes arguments of a call; the first time also its id, as the provider gave it, and its name."""
        if call_id in self._index:
            yield partial(self._emit.tool_call, self._index[call_id], arguments=text)
            return
        index, call = len(self._index), self._calls.get(call_id)
        self._index[call_id] = index
        own_id = (call and call.provider_id) or call_id or None
        yield partial(self._emit.tool_call, index, call_id=own_id, name=name, arguments=text)
        yield from self._signed(call)

    def _signed(self, part: Part | None) -> Iterator[Push]:
        if part is not None:
            yield from _provided(self._emit, part.provider_data, to_part=True)


def _provided(emit: Emit, data: ProviderData, *, to_part: bool) -> Iterator[Push]:
    for provider, value in (data or {}).items():
        yield partial(emit.provider_data, provider, value, to="part" if to_part else "message")


class _Cursor:
    """A place in words that are split into parts. `part` is the one there, `at` how much of it has been said."""

    def __init__(self, parts: Sequence[Words]) -> None:
        self._parts = list(parts)
        self.at = 0

    @property
    def part(self) -> Words | None:
        return self._parts[0] if self._parts else None

    def take(self, text: str) -> Words | None:
        """Goes on behind `text`; gives the part that is complete with it, if one is."""
        part, self.at = self.part, self.at + len(text)
        if part is None or self.at < len(part.text):
            return None
        self._parts, self.at = self._parts[1:], 0
        return part

    def rest(self) -> list[Words]:
        """What has not been said."""
        first, *others = [replace(part) for part in self._parts] or [None]
        if first is None:
            return []
        first.text = first.text[self.at :]
        return [first, *(part for part in others if part is not None)]
