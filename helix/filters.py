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
from helix.errors import did_you_mean
from helix.schema import WRAPPER, OutputSchema

_SKIP: Any = object()
"""What a picking function returns to pass over a chunk."""

_CONTROL: tuple[type[Any], ...] = (c.StreamEnd, c.Resync)
"""What a reader makes itself passes every filter of chunks (it comes only when it was asked for)."""

T = TypeVar("T")
ChunkT = TypeVar("ChunkT", bound=Chunk)


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
    """Only the chunks that this agent produced; with `descendants`, also those of everything below it."""
    below = f"{agent_id}."

    def pick(chunk: ChunkT) -> ChunkT:
        if isinstance(chunk, _CONTROL):
            return chunk
        mine = chunk.agent_id == agent_id or (descendants and chunk.agent_id.startswith(below))
        return chunk if mine else _SKIP

    return Stream(stream, pick)


def filter_stream(stream: AsyncIterable[ChunkT], predicate: Callable[[ChunkT], bool]) -> Stream[ChunkT]:
    """Only the chunks for which `predicate` is true."""
    return Stream(stream, lambda chunk: chunk if isinstance(chunk, _CONTROL) or predicate(chunk) else _SKIP)


def text(stream: AsyncIterable[Chunk], agent_id: str | None = None) -> Stream[str]:
    """The words of one agent, piece by piece; the root's, unless told otherwise.

    A step that failed and was tried again has its words in here twice; the final text is `result.output`.
    """

    def pick(chunk: Chunk) -> str:
        if not isinstance(chunk, c.TextDelta):
            return _SKIP
        mine = chunk.agent_id == agent_id if agent_id is not None else "." not in chunk.agent_id
        return chunk.delta if mine else _SKIP

    return Stream(stream, pick)


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
    return Stream(stream, _Partial(OutputSchema(output_type), agent_id).take)


class _Partial:
    def __init__(self, schema: OutputSchema[Any], agent_id: str | None) -> None:
        self._schema, self._agent_id = schema, agent_id
        self._shown = _SKIP
        self._begin()

    def take(self, chunk: Chunk) -> Any:
        if isinstance(chunk, _CONTROL):
            return _SKIP
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
