"""Filters and regroupers: small iterators over a stream of chunks.

Floor 2: above `chunks`. Each takes any async iterator of chunks (`handle.stream()`, another filter) and is one itself,
with an `aclose` that closes the one below. None of them buffers or changes a chunk.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, Generic, Literal, TypeVar, cast, overload

from pydantic_core import from_json
from typing_extensions import TypeForm

from helix import chunks as c
from helix.chunks import CHUNK_TYPES, Chunk
from helix.errors import UsageError, did_you_mean
from helix.schema import WRAPPER, OutputSchema

_SKIP: Any = object()
"""What a picking function returns to pass over a chunk."""

_CONTROL: tuple[type[Any], ...] = (c.StreamEnd, c.Resync)
"""What a reader makes itself passes every filter of chunks (it comes only when it was asked for)."""

T = TypeVar("T")
ChunkT = TypeVar("ChunkT", bound=Chunk)
OtherT = TypeVar("OtherT", bound=Chunk)
ThirdT = TypeVar("ThirdT", bound=Chunk)


class Stream(Generic[T]):
    """An async iterator with `aclose`, made from another one and a function that picks."""

    def __init__(self, source: AsyncIterable[Any], pick: Callable[[Any], T]) -> None:
        self._source: AsyncIterator[Any] = aiter(source)
        self._pick = pick

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> T:
        source, pick = self._source, self._pick
        while True:
            item = pick(await source.__anext__())
            if item is not _SKIP:
                return item

    def pick_by(self, pick: Callable[[Any], T]) -> None:
        """From the next chunk on, picks by another function. For filters only."""
        self._pick = pick

    async def aclose(self) -> None:
        """Closes this stream and the one below it; the run goes on."""
        aclose = getattr(self._source, "aclose", None)
        if aclose is not None:
            await aclose()


@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["text_delta"], /) -> Stream[c.TextDelta]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["thinking"], /) -> Stream[c.Thinking]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["tool_start"], /) -> Stream[c.ToolStart]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["tool_end"], /) -> Stream[c.ToolEnd]: ...
@overload
def filter_stream_by_type(
    stream: AsyncIterable[Any], kind: Literal["subagent_start"], /
) -> Stream[c.SubagentStart]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["subagent_end"], /) -> Stream[c.SubagentEnd]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["custom"], /) -> Stream[c.Custom]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["state_patch"], /) -> Stream[c.StatePatch]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["error"], /) -> Stream[c.ErrorChunk]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["output"], /) -> Stream[c.Output]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["run_start"], /) -> Stream[c.RunStart]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["run_end"], /) -> Stream[c.RunEnd]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["run_pause"], /) -> Stream[c.RunPause]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["run_resume"], /) -> Stream[c.RunResume]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["step_start"], /) -> Stream[c.StepStart]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["step_end"], /) -> Stream[c.StepEnd]: ...
@overload
def filter_stream_by_type(
    stream: AsyncIterable[Any], kind: Literal["tool_input_start"], /
) -> Stream[c.ToolInputStart]: ...
@overload
def filter_stream_by_type(
    stream: AsyncIterable[Any], kind: Literal["tool_input_delta"], /
) -> Stream[c.ToolInputDelta]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["tool_input_end"], /) -> Stream[c.ToolInputEnd]: ...
@overload
def filter_stream_by_type(
    stream: AsyncIterable[Any], kind: Literal["tool_output_delta"], /
) -> Stream[c.ToolOutputDelta]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["output_delta"], /) -> Stream[c.OutputDelta]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: Literal["message"], /) -> Stream[c.MessageChunk]: ...
@overload
def filter_stream_by_type(
    stream: AsyncIterable[Any], kind: Literal["approval_request"], /
) -> Stream[c.ApprovalRequest]: ...
@overload
def filter_stream_by_type(
    stream: AsyncIterable[Any], kind: Literal["approval_response"], /
) -> Stream[c.ApprovalResponse]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kind: str, other: str, /, *others: str) -> Stream[Chunk]: ...
@overload  # mypy needs the arities apart: it joins several classes under one variable to what all chunks have in common
def filter_stream_by_type(
    stream: AsyncIterable[Any], kind: type[ChunkT], other: type[OtherT], /
) -> Stream[ChunkT | OtherT]: ...
@overload
def filter_stream_by_type(
    stream: AsyncIterable[Any], kind: type[ChunkT], other: type[OtherT], third: type[ThirdT], /
) -> Stream[ChunkT | OtherT | ThirdT]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], *kinds: type[ChunkT]) -> Stream[ChunkT]: ...
@overload
def filter_stream_by_type(stream: AsyncIterable[Any], kinds: list[str] | tuple[str, ...], /) -> Stream[Chunk]: ...
def filter_stream_by_type(stream: AsyncIterable[Any], *kinds: Any) -> Stream[Any]:
    """Only the chunks of these types: one literal, several, a list of them, or chunk classes.

    `filter_stream_by_type(stream, "text_delta")` is a stream of `TextDelta` to a type checker.

    Raises:
        ValueError: a type that the protocol does not know; names the nearest one.
    """
    flat = [kind for item in kinds for kind in ([item] if isinstance(item, str | type) else item)]
    classes = tuple(kind if isinstance(kind, type) else _class_of(kind) for kind in flat)
    passing = (*classes, *_CONTROL)
    return Stream(stream, lambda chunk: chunk if isinstance(chunk, passing) else _SKIP)


def _class_of(kind: str) -> type[Chunk]:
    if kind not in CHUNK_TYPES:
        raise ValueError(f"no chunk type {kind!r}.{did_you_mean(kind, CHUNK_TYPES)}")
    return CHUNK_TYPES[kind]


def filter_stream_by_agent(stream: AsyncIterable[ChunkT], agent_id: str, descendants: bool = False) -> Stream[ChunkT]:
    """Only the chunks that this agent produced; with `descendants`, also those of everything below it.

    Raises:
        UsageError: in the iteration: an agent's name was given, not an id; says which id it has.
    """
    below = f"{agent_id}."

    def pick(chunk: ChunkT) -> ChunkT:
        if isinstance(chunk, _CONTROL):
            return chunk
        mine = chunk.agent_id == agent_id or (descendants and chunk.agent_id.startswith(below))
        return chunk if mine else _SKIP

    return _of_agent(stream, pick, agent_id)


def _of_agent(stream: AsyncIterable[Any], pick: Callable[[Any], T], agent_id: str | None) -> Stream[T]:
    """A stream of what is picked of one agent. If its id may be a name, it is looked at until it proves to be an id."""
    picked = Stream(stream, pick)
    if agent_id is not None and "." not in agent_id:
        picked.pick_by(_unless_a_name(agent_id, pick, picked))
    return picked


def _unless_a_name(agent_id: str, pick: Callable[[Any], T], picked: Stream[T]) -> Callable[[Any], T]:
    below, end = f"{agent_id}.", f".{agent_id}"

    def check(chunk: Any) -> T:
        if not isinstance(chunk, _CONTROL):
            if chunk.agent_id == agent_id or chunk.agent_id.startswith(below):
                picked.pick_by(pick)
            elif chunk.agent_type == agent_id or chunk.agent_id.endswith(end):
                raise UsageError(_not_an_id(agent_id, chunk))
        return pick(chunk)

    return check


def _not_an_id(name: str, chunk: Chunk) -> str:
    return (
        f"an agent's id is wanted, and {name!r} is a name; one agent of that name has the id {chunk.agent_id!r}. For "
        f"all of them: filter_stream(stream, lambda chunk: chunk.agent_type == {chunk.agent_type!r})"
    )


def filter_stream(stream: AsyncIterable[ChunkT], predicate: Callable[[ChunkT], bool]) -> Stream[ChunkT]:
    """Only the chunks for which `predicate` is true."""
    return Stream(stream, lambda chunk: chunk if isinstance(chunk, _CONTROL) or predicate(chunk) else _SKIP)


def text(stream: AsyncIterable[Chunk], agent_id: str | None = None) -> Stream[str]:
    """The words of one agent, piece by piece; the root's, unless told otherwise.

    A step that failed and was tried again has its words in here twice; the final text is `result.output`.

    Raises:
        UsageError: in the iteration: `agent_id` is an agent's name; or words were dropped from the store (a `resync`
            came). Going on behind that gives the words that follow.
    """

    def pick(chunk: Chunk | c.Control) -> str:
        if isinstance(chunk, c.Resync):
            raise UsageError(
                f"the words up to chunk {chunk.floor} were dropped from the store; `result.messages` has them whole, "
                "and so has the `snapshot` of the `resync` in the stream"
            )
        if not isinstance(chunk, c.TextDelta):
            return _SKIP
        mine = chunk.agent_id == agent_id if agent_id is not None else "." not in chunk.agent_id
        return chunk.delta if mine else _SKIP

    return _of_agent(stream, pick, agent_id)


async def collect(stream: AsyncIterable[T]) -> list[T]:
    """Everything that the stream yields until it ends."""
    return [item async for item in stream]


def partial_outputs(
    stream: AsyncIterable[Chunk], output_type: TypeForm[Any], agent_id: str | None = None
) -> Stream[Any]:
    """The structured output as far as it is written, as JSON data, each time it has grown; last, the whole of it.

    Keys never vanish, texts only grow, lists only get longer; unless the model has to write it again, because its
    answer was not valid or its connection broke: then it starts anew. Of the root, unless told otherwise. A number is
    shown once it is complete. The last one has been validated against `output_type` by the run.
    """
    return _of_agent(stream, _Partial(OutputSchema(output_type), agent_id).take, agent_id)


class _Partial:
    def __init__(self, schema: OutputSchema[Any], agent_id: str | None) -> None:
        self._schema, self._agent_id = schema, agent_id
        self._shown = _SKIP
        self._begin()

    def take(self, chunk: Chunk | c.Control) -> Any:
        if isinstance(chunk, c.StreamEnd):
            return _SKIP
        if isinstance(chunk, c.Resync):
            self._begin()
            output = chunk.snapshot.output(self._agent_id)
            return _SKIP if output is None else self._fresh(output)
        if chunk.agent_id != self._agent_id and (self._agent_id is not None or "." in chunk.agent_id):
            return _SKIP
        if isinstance(chunk, c.StepStart):
            self._begin()
        if isinstance(chunk, c.Output):
            return self._fresh(chunk.output)
        if not isinstance(chunk, c.OutputDelta):
            return _SKIP
        self._text += chunk.delta
        for char in chunk.delta:
            self._follow(char)
        return self._fresh(self._so_far())

    def _begin(self) -> None:
        self._text, self._in_string, self._escaped = "", False, False

    def _follow(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == '"':
            self._in_string = not self._in_string
        else:
            self._escaped = self._in_string and char == "\\"

    def _fresh(self, value: Any) -> Any:
        if value is _SKIP or (value == self._shown and type(value) is type(self._shown)):
            return _SKIP
        self._shown = value
        return value

    def _so_far(self) -> Any:
        # A number at the end may go on: `[1, 12` may yet become `[1, 123]`.
        text = self._text if self._in_string else self._text.rstrip("0123456789+-.eE")
        try:
            value = from_json(text, allow_partial="trailing-strings")
        except ValueError:
            return _SKIP
        if self._schema.wrapped and isinstance(value, dict):
            return cast(dict[str, Any], value).get(WRAPPER, _SKIP)
        return value
