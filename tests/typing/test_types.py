"""What a type checker knows of user code: pyright checks this file with the repository; the functions never run."""

# pyright: reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_type

from pydantic import BaseModel

import helix
from helix import Agent, Executor, RunHandle, RunResult, RunStream, Session, ToolContext, chunks, tool
from helix.chunks import Chunk, TextDelta, ToolEnd, ToolStart
from helix.filters import Stream


class Report(BaseModel):
    title: str


class Cart(BaseModel):
    items: list[str] = []


@dataclass
class Shop:
    currency: str


plain = Agent("plain")
reporter = Agent("reporter", output_type=Report)
stateful = Agent("stateful", state_type=Cart)
listing = Agent("listing", output_type=list[Report])
needy = Agent("needy", output_type=Report, state_type=Cart, deps_type=Shop)


def agents_know_their_types() -> None:
    assert_type(plain, Agent[str, None, object])
    assert_type(reporter, Agent[Report, None, object])
    assert_type(stateful, Agent[str, Cart, object])
    assert_type(listing, Agent[list[Report], None, object])
    assert_type(needy, Agent[Report, Cart, Shop])
    assert_type(needy.replace(description="x"), Agent[Report, Cart, Shop])


async def results_are_typed() -> None:
    result = await helix.run(reporter, "go")
    assert_type(result, RunResult[Report, None])
    assert_type(result.output, Report)
    assert_type(result.state, None)
    assert_type((await helix.run(plain, "go")).output, str)
    assert_type((await helix.run(stateful, "go", state=Cart())).state, Cart)
    assert_type((await helix.run(listing, "go")).output, list[Report])
    assert_type(helix.run_sync(reporter, "go"), RunResult[Report, None])
    assert_type(await helix.run(needy, "go", deps=Shop("EUR")), RunResult[Report, Cart])


async def streams_and_handles_are_typed() -> None:
    async with helix.stream(reporter, "go") as run:
        assert_type(run, RunStream[Report, None])
        async for chunk in run:
            assert_type(chunk, Chunk)
        assert_type((await run.result()).output, Report)
    with helix.stream_sync(stateful, "go") as sync_run:
        for chunk in sync_run:
            assert_type(chunk, Chunk)
        assert_type(sync_run.result(), RunResult[str, Cart])
    async with Executor() as executor:
        handle = await executor.execute(reporter, "go")
        assert_type(handle, RunHandle[Report, None])
        assert_type(await handle.result(), RunResult[Report, None])
        async for chunk in handle.stream():
            assert_type(chunk, Chunk)
        async for item in handle.stream(control=True):
            assert_type(item, Chunk | chunks.Control)
        session = Session(stateful, executor)
        assert_type(await session.send("go"), RunResult[str, Cart])


async def missing_or_wrong_arguments_are_static_errors() -> None:
    await helix.run(needy, "go")  # pyright: ignore[reportArgumentType]
    await helix.run(needy, "go", deps="EUR")  # pyright: ignore[reportArgumentType, reportCallIssue]
    helix.run_sync(needy, "go")  # pyright: ignore[reportArgumentType]
    helix.stream(needy, "go")  # pyright: ignore[reportArgumentType]
    helix.stream_sync(needy, "go")  # pyright: ignore[reportArgumentType]
    await helix.run(stateful, "go", state="full")  # pyright: ignore[reportArgumentType]
    Agent("parent", sub_agents=[needy], deps_type=int)  # pyright: ignore[reportArgumentType]


async def filters_are_typed(stream: RunStream[Any, Any]) -> None:
    words = helix.filter_stream_by_type(stream, "text_delta")
    assert_type(words, Stream[TextDelta])
    async for word in words:
        assert_type(word, TextDelta)
    async for call in helix.filter_stream_by_type(stream, ToolStart, ToolEnd):
        assert_type(call, ToolStart | ToolEnd)
    async for chunk in helix.filter_stream_by_type(stream, "tool_start", "tool_end"):
        assert_type(chunk, Chunk)
    async for chunk in helix.filter_stream_by_type(stream, ["tool_start"]):
        assert_type(chunk, Chunk)
    async for chunk in helix.filter_stream_by_agent(stream, "r"):
        assert_type(chunk, Chunk)
    assert_type(await helix.collect(helix.text(stream)), list[str])
    helix.filter_stream_by_type(stream, "text_detla")  # pyright: ignore[reportArgumentType, reportCallIssue]


def every_literal_gives_its_class(stream: RunStream[Any, Any]) -> None:
    by_type = helix.filter_stream_by_type
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


def chunks_are_narrowed_by_their_type(chunk: Chunk) -> str:
    if chunk.type == "text_delta":
        assert_type(chunk, TextDelta)
        return chunk.delta
    if chunk.type == "unknown":
        assert_type(chunk, chunks.UnknownChunk)
        return chunk.wire_type
    if chunk.type == "tool_start" or chunk.type == "tool_end":
        assert_type(chunk, ToolStart | ToolEnd)
        return chunk.tool_name
    match chunk:
        case chunks.RunEnd(status="failed", error=error):
            assert_type(error, str | None)
        case _:
            pass
    return chunk.delta  # pyright: ignore[reportAttributeAccessIssue]


@tool
async def bare(query: str, limit: int = 5) -> list[str]:
    return [query] * limit


@tool(name="search_2", retries=1, replay="safe")
async def optioned(query: str, limit: int = 5) -> list[str]:
    return [query] * limit


@tool
def blocking(ctx: ToolContext[Cart, Shop], query: str) -> int:
    assert_type(ctx.state, Cart)
    assert_type(ctx.deps, Shop)
    with ctx.update_state() as draft:
        assert_type(draft, Cart)
    return len(query)


async def tools_keep_their_signature(ctx: ToolContext[Cart, Shop]) -> None:
    assert_type(await bare("x"), list[str])
    assert_type(await bare("x", limit=2), list[str])
    assert_type(await optioned("x", 2), list[str])
    assert_type(blocking(ctx, "x"), int)
    await bare(5)  # pyright: ignore[reportArgumentType]
    await optioned("x", limits=2)  # pyright: ignore[reportCallIssue]
    await optioned()  # pyright: ignore[reportCallIssue]
    blocking("x")  # pyright: ignore[reportCallIssue]


async def children_are_typed(ctx: ToolContext) -> None:
    assert_type(ctx, ToolContext[None, object])
    result = await ctx.run_agent(reporter, "go")
    assert_type(result, RunResult[Report, None])
    assert_type(result.output, Report)
    assert_type((await ctx.run_agent(stateful, "go")).state, Cart)
    assert_type((await ctx.run_agent(plain, "go")).output, str)
    assert_type((await ctx.run_agent(listing, "go")).output, list[Report])
    async with ctx.stream_agent(reporter, "go") as child:
        async for chunk in child:
            str(chunk)
        assert_type((await child.result()).output, Report)


def test_the_agents_and_tools_above_are_made() -> None:
    assert (plain.output_type, reporter.output_type, needy.state_type) == (str, Report, Cart)
    assert (bare.name, optioned.name, blocking.name) == ("bare", "search_2", "blocking")
