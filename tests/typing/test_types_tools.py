"""What type checkers know of tools: pyright and mypy check this file; its functions never run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, assert_type

from pydantic import BaseModel

from helix import Agent, RunResult, Tool, ToolContext, tool
from helix.testing import context, recorded


class Report(BaseModel):
    title: str


class Cart(BaseModel):
    items: list[str] = []


@dataclass
class Shop:
    currency: str


plain = Agent("plain")
reporter = Agent("reporter", output_type=Report)
listing = Agent("listing", output_type=list[Report])
stateful = Agent("stateful", state_type=Cart)
needy = Agent("needy", output_type=Report | int, state_type=Cart, deps_type=Shop)


@tool
async def bare(query: str, limit: int = 5) -> list[str]:
    return [query] * limit


@tool()
async def with_empty_options(query: str) -> int:
    return len(query)


@tool(name="search_2", retries=1, replay="safe", timeout=3.5, sequential=True, finishes=False)
async def optioned(query: str, limit: int = 5) -> list[str]:
    return [query] * limit


async def dear(ctx: ToolContext[Cart, Shop], arguments: dict[str, Any]) -> bool | str:
    return bool(ctx.state.items) and f"{arguments['query']} is dear in {ctx.deps.currency}"


@tool(requires_approval=dear, approval_timeout=60)
async def approved(query: str) -> int:
    return len(query)


@tool(runs_on="client")
def elsewhere(query: str) -> int:
    raise NotImplementedError


@tool(requires_approval=lambda ctx, arguments: "n" in arguments)
def by_lambda(query: str) -> int:
    return len(query)


@tool
def blocking(ctx: ToolContext[Cart, Shop], query: str) -> int:
    assert_type(ctx.state, Cart)
    assert_type(ctx.deps, Shop)
    with ctx.update_state() as draft:
        assert_type(draft, Cart)
    return len(query)


@tool
def generating(lines: int) -> Iterator[str]:
    yield "x" * lines


async def a_tool_keeps_the_functions_signature(ctx: ToolContext[Cart, Shop]) -> None:
    assert_type(await bare("x"), list[str])
    assert_type(await bare("x", limit=2), list[str])
    assert_type(await optioned("x", 2), list[str])
    assert_type(await with_empty_options("x"), int)
    assert_type(blocking(ctx, "x"), int)
    assert_type(generating(3), Iterator[str])
    assert_type(bare.name, str)
    kept: Tool[..., Any] = optioned.replace(timeout=1)
    print(kept)
    await bare(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await optioned("x", limits=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await optioned()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    blocking(context(state=3), "x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def options_are_checked() -> None:
    tool(retry=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    tool(replay="always")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    tool(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


async def a_context_has_typed_state_and_deps(ctx: ToolContext[Cart, Shop], bare_ctx: ToolContext) -> None:
    assert_type(bare_ctx, ToolContext[None, object])
    assert_type(ctx.state.items, list[str])
    assert_type(ctx.deps.currency, str)
    assert_type(ctx.session_id, str | None)
    assert_type(ctx.remaining_time(), float | None)
    assert_type(await ctx.emit("progress", {"done": 1}), None)
    with ctx.update_state() as draft:
        draft.items.append("tea")
        draft.items.append(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        draft.itmes = []  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    ctx.write("x", channel="stdout")
    ctx.write("x", channel="out")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ctx.attempt = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def a_context_for_any_deps_fits_one_for_these(ctx: ToolContext[Cart, object]) -> ToolContext[Cart, Shop]:
    return ctx  # contravariant: what works with any deps works with these


async def run_agent_gives_the_childs_types(ctx: ToolContext) -> None:
    result = await ctx.run_agent(reporter, "go")
    assert_type(result, RunResult[Report, None])
    assert_type(result.output, Report)
    assert_type((await ctx.run_agent(stateful, "go", key="one")).state, Cart)
    assert_type((await ctx.run_agent(plain, "go")).output, str)
    assert_type((await ctx.run_agent(listing, "go")).output, list[Report])
    assert_type(await ctx.run_agent(needy, "go"), RunResult[Report | int, Cart])
    await ctx.run_agent("reporter", "go")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ctx.run_agent(reporter)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def stream_agent_too(ctx: ToolContext) -> None:
    async with ctx.stream_agent(reporter, "go") as child:
        assert_type(child.agent_id, str)
        async for chunk in child:
            str(chunk)
        assert_type((await child.result()).output, Report)


def a_context_for_tests_has_the_given_types() -> None:
    ctx = context(state=Cart(), deps=Shop("EUR"))
    assert_type(ctx, ToolContext[Cart, Shop])
    assert_type(blocking(ctx, "x"), int)
    assert_type(recorded(ctx).written, list[str])


def test_the_tools_above_are_made() -> None:
    assert (bare.name, optioned.name, blocking.name) == ("bare", "search_2", "blocking")
    assert (with_empty_options.name, generating.name) == ("with_empty_options", "generating")
