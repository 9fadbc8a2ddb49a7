"""What type checkers know of filters and chunks: pyright and mypy check this file; its functions never run."""

from __future__ import annotations

from typing import Any, assert_type, get_args

import helix
from helix import RunStream, chunks
from helix.chunks import Chunk, TextDelta, Thinking, ToolEnd, ToolStart
from helix.filters import Stream

by_type = helix.filter_stream_by_type


async def a_literal_gives_its_class(stream: RunStream[Any, Any]) -> None:
    words = by_type(stream, "text_delta")
    assert_type(words, Stream[TextDelta])
    async for word in words:
        assert_type(word, TextDelta)
    by_type(stream, "text_detla")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def classes_give_their_union(stream: RunStream[Any, Any]) -> None:
    assert_type(by_type(stream, ToolStart), Stream[ToolStart])
    assert_type(by_type(stream, ToolStart, ToolEnd), Stream[ToolStart | ToolEnd])
    assert_type(by_type(stream, ToolStart, ToolEnd, Thinking), Stream[ToolStart | ToolEnd | Thinking])
    # mypy joins more classes than three to Chunk, which is true and less.
    four = by_type(stream, ToolStart, ToolEnd, Thinking, TextDelta)
    async for chunk in four:
        if chunk.type != "thinking" and chunk.type != "text_delta" and chunk.type != "tool_start":
            str(chunk)
    by_type(stream, int)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def several_literals_and_lists_give_chunks(stream: RunStream[Any, Any]) -> None:
    assert_type(by_type(stream, "tool_start", "tool_end"), Stream[Chunk])
    assert_type(by_type(stream, ["tool_start"]), Stream[Chunk])
    assert_type(by_type(stream, ("tool_start", "tool_end")), Stream[Chunk])
    kinds: list[str] = ["tool_start"]
    assert_type(by_type(stream, kinds), Stream[Chunk])
    async for chunk in by_type(stream, "tool_start", "tool_end"):
        if chunk.type == "tool_start":
            assert_type(chunk.arguments, dict[str, Any])


async def other_filters_keep_what_they_are_given(stream: RunStream[Any, Any]) -> None:
    assert_type(helix.filter_stream_by_agent(stream, "r", descendants=True), Stream[Chunk])
    assert_type(helix.filter_stream_by_agent(by_type(stream, "tool_end"), "r"), Stream[ToolEnd])
    assert_type(helix.filter_stream(by_type(stream, ToolEnd), lambda end: end.error is None), Stream[ToolEnd])
    assert_type(helix.text(stream), Stream[str])
    assert_type(await helix.collect(helix.text(stream)), list[str])
    assert_type(await helix.collect(stream), list[Chunk])
    assert_type(await helix.collect(by_type(stream, "tool_end")), list[ToolEnd])
    ends = by_type(stream, "tool_end")
    helix.filter_stream(ends, lambda end: end.delta)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    helix.text(helix.text(stream))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def partial_outputs_are_json_data(stream: RunStream[Any, Any]) -> None:
    assert_type(helix.partial_outputs(stream, dict[str, int]), Stream[Any])
    assert_type(helix.partial_outputs(stream, dict[str, int] | list[str], agent_id="r"), Stream[Any])


async def partial_items_are_of_the_elements_type(stream: RunStream[Any, Any]) -> None:
    assert_type(helix.partial_items(stream, TextDelta, "findings"), Stream[TextDelta])
    assert_type(helix.partial_items(stream, list[int] | None), Stream[list[int] | None])
    async for number in helix.partial_items(stream, int, "numbers", agent_id="r"):
        assert_type(number, int)
    helix.partial_items(stream, int, 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def every_literal_gives_its_class(stream: RunStream[Any, Any]) -> None:
    assert_type(by_type(stream, "thinking"), Stream[chunks.Thinking])
    assert_type(by_type(stream, "tool_start"), Stream[ToolStart])
    assert_type(by_type(stream, "tool_end"), Stream[ToolEnd])
    assert_type(by_type(stream, "subagent_start"), Stream[chunks.SubagentStart])
    assert_type(by_type(stream, "subagent_end"), Stream[chunks.SubagentEnd])
    assert_type(by_type(stream, "custom"), Stream[chunks.Custom])
    assert_type(by_type(stream, "state_patch"), Stream[chunks.StatePatch])
    assert_type(by_type(stream, "error"), Stream[chunks.ErrorChunk])
    assert_type(by_type(stream, "output"), Stream[chunks.Output])
    assert_type(by_type(stream, "run_start"), Stream[chunks.RunStart])
    assert_type(by_type(stream, "run_end"), Stream[chunks.RunEnd])
    assert_type(by_type(stream, "run_pause"), Stream[chunks.RunPause])
    assert_type(by_type(stream, "run_resume"), Stream[chunks.RunResume])
    assert_type(by_type(stream, "step_start"), Stream[chunks.StepStart])
    assert_type(by_type(stream, "step_end"), Stream[chunks.StepEnd])
    assert_type(by_type(stream, "tool_input_start"), Stream[chunks.ToolInputStart])
    assert_type(by_type(stream, "tool_input_delta"), Stream[chunks.ToolInputDelta])
    assert_type(by_type(stream, "tool_input_end"), Stream[chunks.ToolInputEnd])
    assert_type(by_type(stream, "tool_output_delta"), Stream[chunks.ToolOutputDelta])
    assert_type(by_type(stream, "output_delta"), Stream[chunks.OutputDelta])
    assert_type(by_type(stream, "message"), Stream[chunks.MessageChunk])
    assert_type(by_type(stream, "approval_request"), Stream[chunks.ApprovalRequest])
    assert_type(by_type(stream, "approval_response"), Stream[chunks.ApprovalResponse])


def a_comparison_of_the_type_narrows(chunk: Chunk) -> str:
    assert_type(chunk.agent_id, str)
    assert_type(chunk.sequence, int)
    if chunk.type == "text_delta":
        assert_type(chunk, TextDelta)
        return chunk.delta
    if chunk.type == "unknown":
        assert_type(chunk, chunks.UnknownChunk)
        return chunk.wire_type
    if chunk.type == "tool_start" or chunk.type == "tool_end":
        assert_type(chunk, ToolStart | ToolEnd)
        return chunk.tool_name
    if chunk.type == "texst_delta":  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]
        pass
    return str(chunk.delta)  # type: ignore[union-attr]  # pyright: ignore[reportAttributeAccessIssue]


def match_narrows(chunk: Chunk) -> str | None:
    match chunk:
        case TextDelta(delta=delta):
            assert_type(delta, str)
            return delta
        case chunks.RunEnd(status="failed", error=error):
            assert_type(error, str | None)
            return error
        case chunks.UnknownChunk(wire_type=name, data=data):
            assert_type(data, dict[str, Any])
            return name
        case ToolStart() | ToolEnd() as call:
            assert_type(call, ToolStart | ToolEnd)
            return call.tool_name
        case _:
            return None


def match_on_the_type_narrows(chunk: Chunk) -> str:
    match chunk.type:
        case "tool_end":
            assert_type(chunk, ToolEnd)
            return chunk.tool_name
        case "unknown":
            assert_type(chunk, chunks.UnknownChunk)
            return chunk.wire_type
        case _:
            return chunk.agent_id


def reading_gives_chunks_and_control_messages() -> None:
    read = helix.parse_chunk("{}")
    assert_type(read, Chunk | chunks.Control)
    if not isinstance(read, chunks.StreamEnd | chunks.Resync):
        assert_type(read, Chunk)
    assert_type(helix.chunk_to_json(read), bytes)
    assert_type(helix.chunk_to_dict(read), dict[str, Any])
    TextDelta("r", "a", 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_every_type_has_an_overload_above() -> None:
    source = every_literal_gives_its_class.__code__.co_consts
    named = {name for name in source if isinstance(name, str)} | {"text_delta"}
    assert named >= set(chunks.CHUNK_TYPES)
    assert len(get_args(Chunk)) == len(chunks.CHUNK_TYPES) + 1
