"""Interrupting and resuming: the run parks before its next model calls, and the same loop goes on with it."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import helix
from helix import Agent, Executor, MemoryStore, RunSuspended, ToolContext, UnknownAgent, UnknownRun, UsageError, tool
from helix.testing import Call, ScriptedModel, Turn, check_stream

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


class Gate:
    """A tool that runs until it is let go."""

    def __init__(self, replay: Any = "never") -> None:
        self.entered, self.open = anyio.Event(), anyio.Event()
        self.ran = 0
        self.tool = tool(name="gate", replay=replay)(self.body)

    async def body(self) -> str:
        self.ran += 1
        self.entered.set()
        await self.open.wait()
        return "through"


async def interrupt_in_gate(handle: helix.RunHandle[Any, Any], gate: Gate) -> None:
    """Interrupts while the tool runs, and lets it go only then."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handle.interrupt)
        await anyio.lowlevel.checkpoint()
        gate.open.set()


async def test_running_tools_finish_the_tree_parks_and_goes_on_where_it_was() -> None:
    gate = Gate()
    child = Agent("child", tools=[gate.tool])
    root = Agent("root", sub_agents=[child])
    model = ScriptedModel(
        {
            "root": [Turn(calls=[Call("child", input="go")]), "all done"],
            "child": [Turn(calls=[Call("gate")]), "child done"],
        }
    )
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(root, "go", model=model)
            await gate.entered.wait()
            await interrupt_in_gate(handle, gate)
            parked = await handle.result()
            assert parked.status == "interrupted"
            with pytest.raises(RunSuspended):
                _ = parked.output
            assert [chunk.type for chunk in await helix.collect(handle.stream())][-1] == "run_pause"
            ends = [chunk async for chunk in handle.stream(control=True) if chunk.type == "stream_end"]
            assert [end.status for end in ends] == ["interrupted"]
            assert len(model.requests) == 2

            again = await executor.resume(handle.run_id, model=model)
            result = await again.result()
    chunks = await helix.collect(again.stream())
    check_stream(chunks)
    assert result.output == "all done"
    assert gate.ran == 1
    assert [chunk.epoch for chunk in chunks if chunk.type == "run_resume"] == [2]


async def test_what_is_said_at_the_resume_joins_the_conversation_behind_the_tool_results() -> None:
    gate = Gate()
    model = ScriptedModel([Turn(calls=[Call("gate")]), "as you say"])
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(Agent("a", tools=[gate.tool]), "go", model=model)
            await gate.entered.wait()
            await interrupt_in_gate(handle, gate)
            result = await (await executor.resume(handle.run_id, "in French, please", model=model)).result()
    assert result.output == "as you say"
    assert [message.role for message in model.requests[1].messages] == ["user", "assistant", "tool", "user"]
    check_stream(await helix.collect(handle.stream()))


async def test_a_body_that_may_run_twice_is_parked_under_and_finds_its_child_again() -> None:
    gate = Gate()
    helper = Agent("helper", tools=[gate.tool])
    attempts: list[int] = []

    @tool(replay="safe")
    async def orchestrate(ctx: ToolContext) -> str:
        attempts.append(ctx.attempt)
        first = await ctx.run_agent(helper, "one")
        second = await ctx.run_agent(helper, "two", key="second")
        return f"{first.output}, {second.output}"

    model = ScriptedModel(
        {
            "root": [Turn(calls=[Call("orchestrate")]), "done"],
            "helper": ["first", Turn(calls=[Call("gate")]), "second"],
        }
    )
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("root", tools=[orchestrate]), "go", model=model)
            await gate.entered.wait()
            await interrupt_in_gate(handle, gate)
            assert handle.status == "interrupted"
            result = await (await executor.resume(handle.run_id, model=model)).result()
    chunks = await helix.collect(handle.stream())
    check_stream(chunks)
    assert result.output == "done"
    assert attempts == [1, 2]
    assert [chunk.result for chunk in chunks if chunk.type == "tool_end" and chunk.tool_name == "orchestrate"] == [
        "first, second"
    ]
    assert sum(chunk.type == "subagent_start" for chunk in chunks) == 2


async def test_a_child_in_a_body_that_must_not_run_twice_is_not_parked() -> None:
    gate = Gate()
    helper = Agent("helper", tools=[gate.tool])

    @tool
    async def orchestrate(ctx: ToolContext) -> str:
        return (await ctx.run_agent(helper, "one")).output

    model = ScriptedModel(
        {"root": [Turn(calls=[Call("orchestrate")]), "done"], "helper": [Turn(calls=[Call("gate")]), "helped"]}
    )
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(Agent("root", tools=[orchestrate]), "go", model=model)
            await gate.entered.wait()
            await interrupt_in_gate(handle, gate)
            assert handle.status == "interrupted"
            assert [node.status for node in handle.tree.agents.values()] == ["running", "completed"]
            result = await (await executor.resume(handle.run_id, model=model)).result()
    assert result.output == "done"
    check_stream(await helix.collect(handle.stream()))


async def test_a_run_that_has_nothing_more_to_ask_ends_instead() -> None:
    saying, go_on = anyio.Event(), anyio.Event()

    async def wait() -> None:
        saying.set()
        await go_on.wait()

    model = ScriptedModel([Turn(text="that was all", wait=wait)])
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(Agent("a"), "go", model=model)
            await saying.wait()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(handle.interrupt)
                await anyio.lowlevel.checkpoint()
                go_on.set()
            assert handle.status == "completed"


async def test_a_parked_run_can_be_cancelled_and_its_reader_follows_to_the_end() -> None:
    gate = Gate()
    model = ScriptedModel([Turn(calls=[Call("gate")]), "never asked"])
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(Agent("a", tools=[gate.tool]), "go", model=model)
            await gate.entered.wait()
            await interrupt_in_gate(handle, gate)
            seen: list[helix.Chunk] = []

            async def follow() -> None:
                seen.extend([chunk async for chunk in handle.stream(follow=True)])

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                await handle.cancel()
    assert handle.status == "cancelled"
    check_stream(seen)


async def test_resuming_what_cannot_be_resumed_says_why() -> None:
    store = MemoryStore()
    with anyio.fail_after(5):
        async with Executor(store=store) as executor:
            handle = await executor.execute(Agent("a"), "go", model=ScriptedModel(["done"]))
            with pytest.raises(UsageError, match="is live"):
                await executor.resume(handle.run_id)
            await handle.result()
            with pytest.raises(UsageError, match="has completed"):
                await executor.resume(handle.run_id)
            with pytest.raises(UnknownRun, match="no run 'nope'"):
                await executor.resume("nope")
        async with Executor(store=store) as other:
            with pytest.raises(UnknownAgent, match=r"no agent 'a'.*Executor\(agents="):
                await other.resume(handle.run_id)


async def test_the_run_as_it_was_at_any_chunk() -> None:
    model = ScriptedModel([Turn(text="hello")])
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(Agent("a"), "go", model=model)
            await handle.result()
    statuses = [handle.at(sequence).status for sequence in range(handle.tree.sequence + 1)]
    assert statuses == ["pending", "running", "running", "running", "running", "completed"]
    assert handle.at(3).root.step_open == 2
