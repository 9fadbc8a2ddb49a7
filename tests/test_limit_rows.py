"""Limits: every row of the table, alone and under parallel children."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
import trio.testing

import helix
from helix import Agent, LimitReached, Limits, ToolContext, tool
from helix.model import ModelRequest
from helix.testing import Call, FunctionModel, ScriptedModel, Turn, check_stream

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


async def run(agent: Agent[Any, Any, Any], model: Any, **options: Any) -> tuple[Any, list[helix.Chunk]]:
    with anyio.fail_after(10):
        async with helix.stream(agent, "go", model=model, **options) as stream:
            chunks = await helix.collect(stream)
            result = await stream.result()
    check_stream(chunks)
    return result, chunks


@tool
def noop() -> str:
    return "ok"


async def test_steps_end_the_agent_that_took_them() -> None:
    model = FunctionModel(lambda request: Turn(calls=[Call("noop")]))
    result, _ = await run(Agent("a", tools=[noop], limits=Limits(steps=3)), model)
    assert (result.status, result.error_code, result.finish_reason) == ("failed", "limit_steps", "limit")
    assert len(model.requests) == 3


async def test_fifty_steps_are_the_default() -> None:
    model = FunctionModel(lambda request: Turn(calls=[Call("noop")]))
    result, _ = await run(Agent("a", tools=[noop]), model)
    assert (result.error_code, len(model.requests)) == ("limit_steps", 50)


async def test_depth_fails_the_call_that_would_go_too_deep() -> None:
    leaf = Agent("leaf")
    root = Agent("root", sub_agents=[Agent("middle", sub_agents=[leaf])])
    script = {
        "root": [Turn(calls=[Call("middle", input="x")]), "root done"],
        "middle": [Turn(calls=[Call("leaf", input="x")]), "middle done"],
    }
    result, chunks = await run(root, ScriptedModel(script), limits=Limits(depth=1))
    assert result.output == "root done"
    assert [chunk.error_code for chunk in chunks if chunk.type == "tool_end" and chunk.error] == ["limit_depth"]


async def test_depth_is_an_error_for_ctx_run_agent() -> None:
    helper = Agent("helper")
    seen: list[str] = []

    @tool
    async def call_helper(ctx: ToolContext) -> str:
        try:
            await ctx.run_agent(helper, "x")
        except LimitReached as error:
            seen.append(error.code)
            raise
        return ""

    script = {"root": [Turn(calls=[Call("call_helper")]), "done"]}
    _, chunks = await run(Agent("root", tools=[call_helper]), ScriptedModel(script), limits=Limits(depth=0))
    assert seen == ["limit_depth"]
    assert [chunk.error_code for chunk in chunks if chunk.type == "tool_end"] == ["limit_depth"]


async def test_fan_out_fails_the_surplus_calls() -> None:
    model = ScriptedModel([Turn(calls=[Call("noop")] * 5), "done"])
    result, chunks = await run(Agent("a", tools=[noop]), model, limits=Limits(fan_out=3))
    assert result.output == "done"
    codes = {chunk.tool_call_id: chunk.error_code for chunk in chunks if chunk.type == "tool_end"}
    assert [codes[f"call_{n}"] for n in range(1, 6)] == [None, None, None, "limit_fan_out", "limit_fan_out"]


async def test_concurrency_bounds_the_model_calls_that_are_open_at_once() -> None:
    open_now, most = 0, 0

    async def answer(request: ModelRequest) -> Turn:
        nonlocal open_now, most
        if request.agent_type == "root":
            return Turn(calls=[Call("child", input="x")] * 10) if request.step == 1 else Turn(text="done")
        open_now += 1
        most = max(most, open_now)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        open_now -= 1
        return Turn(text="child done")

    root = Agent("root", sub_agents=[Agent("child")])
    result, _ = await run(root, FunctionModel(answer), limits=Limits(concurrency=3))
    assert result.output == "done"
    assert most == 3


async def test_cancelling_children_that_wait_for_room_leaves_no_one_waiting() -> None:
    started = anyio.Event()

    async def answer(request: ModelRequest) -> Turn:
        if request.agent_type == "root":
            return Turn(calls=[Call("child", input="x")] * 3) if request.step == 1 else Turn(text="done")
        if request.agent_id.endswith("child-1"):
            started.set()
            return Turn(stall=True)
        return Turn(text="child done")

    root = Agent("root", sub_agents=[Agent("child")])
    with anyio.fail_after(5):
        async with helix.stream(root, "go", model=FunctionModel(answer), limits=Limits(concurrency=1)) as stream:
            await started.wait()
            first = next(agent_id for agent_id in stream.tree.agents if agent_id.endswith("child-1"))
            await stream.cancel(first)
            result = await stream.result()
            check_stream(await helix.collect(stream))
    assert result.output == "done"


async def test_requests_of_a_hundred_parallel_children_under_a_budget_of_twenty() -> None:
    def answer(request: ModelRequest) -> Turn:
        if request.agent_type == "root" and request.step == 1:
            return Turn(calls=[Call("child", input=str(n)) for n in range(100)])
        return Turn(text=f"{request.agent_type} done")

    model = FunctionModel(answer)
    root = Agent("root", sub_agents=[Agent("child")])
    result, chunks = await run(root, model, limits=Limits(requests=20, fan_out=100))
    assert len(model.requests) == 20
    assert result.output == "root done"
    assert result.usage.requests == 20
    ends = [chunk for chunk in chunks if chunk.type == "run_end" and chunk.agent_type == "child"]
    assert [end.status for end in ends].count("completed") == 18
    assert [end.error_code for end in ends].count("limit_requests") == 82


@pytest.mark.parametrize("budget", range(2, 30))
async def test_every_waiting_agent_keeps_a_request_for_its_answer(budget: int) -> None:
    """Two levels of parallel children: whoever has delegated and had a request left can still answer."""

    def answer(request: ModelRequest) -> Turn:
        below = {"root": "middle", "middle": "leaf"}.get(request.agent_type)
        if below and request.step == 1:
            return Turn(calls=[Call(below, input=str(n)) for n in range(4)])
        return Turn(text=f"{request.agent_type} done")

    model = FunctionModel(answer)
    root = Agent("root", sub_agents=[Agent("middle", sub_agents=[Agent("leaf")])])
    result, _ = await run(root, model, limits=Limits(requests=budget))
    assert len(model.requests) <= budget
    assert result.output == "root done"


async def test_a_budget_may_belong_to_one_branch() -> None:
    def answer(request: ModelRequest) -> Turn:
        if request.agent_type == "root" and request.step == 1:
            return Turn(calls=[Call("bounded", input="x"), Call("free", input="x")])
        if request.agent_type in ("bounded", "free") and request.step < 5:
            return Turn(calls=[Call("noop")])
        return Turn(text=f"{request.agent_type} done")

    bounded = Agent("bounded", tools=[noop]).as_tool(limits=Limits(requests=2))
    root = Agent("root", sub_agents=[bounded, Agent("free", tools=[noop])])
    result, chunks = await run(root, FunctionModel(answer))
    assert result.output == "root done"
    ended = {chunk.agent_type: chunk.error_code for chunk in chunks if chunk.type == "run_end"}
    assert ended == {"bounded": "limit_requests", "free": None, "root": None}


async def test_tokens_are_refused_when_what_is_used_leaves_no_room() -> None:
    model = FunctionModel(lambda request: Turn(calls=[Call("noop")]))
    result, chunks = await run(Agent("a", tools=[noop]), model, limits=Limits(total_tokens=50))
    assert result.error_code == "limit_tokens"
    assert len(model.requests) == 3  # 18 tokens each
    assert all(chunk.reserve for chunk in chunks if chunk.type == "step_start")


async def test_parallel_children_do_not_overshoot_the_tokens_together() -> None:
    def answer(request: ModelRequest) -> Turn:
        if request.agent_type == "root" and request.step == 1:
            return Turn(calls=[Call("child", input=str(n)) for n in range(10)])
        return Turn(text=f"{request.agent_type} done", input_tokens=100, output_tokens=100)

    child = Agent("child", settings=helix.ModelSettings(max_tokens=200))
    root = Agent("root", sub_agents=[child])
    result, chunks = await run(root, FunctionModel(answer), limits=Limits(total_tokens=1000))
    done = [chunk for chunk in chunks if chunk.type == "run_end" and chunk.status == "completed"]
    assert result.usage.total_tokens <= 1000 + 200
    assert len(done) >= 4


def test_seconds_cut_the_subtree_on_a_test_clock() -> None:
    async def main() -> None:
        model = ScriptedModel([Turn(text=["so ", "far"], stall=True)])
        async with helix.stream(Agent("a"), "go", model=model, limits=Limits(seconds=3600)) as stream:
            chunks = await helix.collect(stream)
            result = await stream.result()
        check_stream(chunks)
        assert (result.status, result.error_code) == ("failed", "limit_time")
        assert result.messages[-1].content[0].text == "so far"  # type: ignore[union-attr]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_limits_say_what_is_wrong_with_them() -> None:
    with pytest.raises(ValueError, match=r"Limits\(steps=0\): must be at least 1"):
        Limits(steps=0)
    with pytest.raises(ValueError, match=r"Limits\(seconds=0\): must be more than 0"):
        Limits(seconds=0)
    assert Limits(depth=0).depth == 0
