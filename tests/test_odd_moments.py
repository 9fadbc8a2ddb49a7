"""Cancels, failures and children at odd moments: nothing hangs, no run harms another, every log is whole."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, computed_field

import helix
from helix import Agent, Executor, Limits, MemoryStore, ModelRetry, RunBusy, SessionBusy, ToolContext, UsageError, tool
from helix.model import Emit, ModelReply, ModelRequest
from helix.testing import Call, FunctionModel, ScriptedModel, Turn, check_stream

pytestmark = pytest.mark.anyio

BACKENDS = ["asyncio", "trio"]


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


async def whole(handle: helix.RunHandle[Any, Any]) -> list[helix.Chunk]:
    chunks = await helix.collect(handle.stream())
    check_stream(chunks)
    return chunks


async def test_who_waits_for_room_is_woken_when_a_branch_with_an_open_step_is_cancelled() -> None:
    stalling = anyio.Event()

    @tool
    async def idle() -> str:
        await anyio.sleep_forever()
        return ""

    async def answer(request: ModelRequest) -> Turn:
        if request.step > 1:
            return Turn(text="done")
        if request.agent_type == "root":
            return Turn(calls=[Call("b", input="x"), Call("d", input="x")])
        if request.agent_type == "b":
            return Turn(calls=[Call("c", input="x"), Call("idle")])
        if request.agent_type == "c":
            stalling.set()
            return Turn(stall=True)
        return Turn(text="d done")

    branch = Agent("b", tools=[idle], sub_agents=[Agent("c")])
    root = Agent("root", sub_agents=[branch, Agent("d")])
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(
                root, "go", model=FunctionModel(answer), limits=Limits(concurrency=1), run_id="run"
            )
            await stalling.wait()
            await handle.cancel(next(agent_id for agent_id in handle.tree.agents if agent_id.startswith("run.b-")))
            assert (await handle.result()).output == "done"
            await whole(handle)


async def test_a_child_that_its_body_gives_up_ends_at_once_and_makes_room() -> None:
    slow, quick = Agent("slow"), Agent("quick")
    statuses: list[str] = []

    @tool
    async def impatient(ctx: ToolContext) -> str:
        with anyio.move_on_after(0.02):
            await ctx.run_agent(slow, "x")
        with anyio.move_on_after(0.02):
            async with ctx.stream_agent(slow, "y") as child:
                await anyio.sleep_forever()
        statuses.append((await child.result()).status)
        return (await ctx.run_agent(quick, "z")).output

    model = ScriptedModel(
        {"root": [Turn(calls=[Call("impatient")]), "done"], "slow": [Turn(stall=True)] * 2, "quick": ["here"]}
    )
    with anyio.fail_after(5):
        async with Executor() as executor:
            limits = Limits(concurrency=1, requests=5)
            handle = await executor.execute(Agent("root", tools=[impatient]), "go", model=model, limits=limits)
            assert (await handle.result()).output == "done"
            await whole(handle)
    assert statuses == ["cancelled"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_child_in_a_task_that_the_body_left_behind_is_stopped_with_the_call() -> None:
    helper = Agent("helper")

    @tool
    async def careless(ctx: ToolContext) -> str:
        async def fail() -> None:
            await asyncio.sleep(0)
            raise RuntimeError("the other one failed")

        await asyncio.gather(ctx.run_agent(helper, "x"), fail())
        return ""

    model = ScriptedModel({"root": [Turn(calls=[Call("careless")]), "done"], "helper": [Turn(text=["a"] * 50)]})
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(Agent("root", tools=[careless]), "go", model=model)
            assert (await handle.result()).output == "done"
            chunks = await whole(handle)
    assert [chunk.error for chunk in chunks if chunk.type == "tool_end"] == ["RuntimeError: the other one failed"]


async def test_an_exception_in_a_stream_agent_block_comes_out_as_it_is() -> None:
    helper = Agent("helper")

    @tool
    async def picky(ctx: ToolContext) -> str:
        async with ctx.stream_agent(helper, "x") as child:
            async for _ in child:
                raise ModelRetry("not like this")
        return ""

    model = ScriptedModel({"root": [Turn(calls=[Call("picky")]), "done"], "helper": [Turn(stall=True)]})
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(Agent("root", tools=[picky]), "go", model=model)
            await handle.result()
            chunks = await whole(handle)
    assert [chunk.error for chunk in chunks if chunk.type == "tool_end"] == ["not like this"]


async def test_leaving_a_stream_while_being_cancelled_waits_for_a_tool_that_cleans_up() -> None:
    cleaned = False

    @tool
    async def slow_to_leave() -> str:
        nonlocal cleaned
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(50):
                    await anyio.lowlevel.checkpoint()
                cleaned = True
        return ""

    model = ScriptedModel([Turn(calls=[Call("slow_to_leave")])])
    with anyio.fail_after(5):
        with anyio.move_on_after(0.05) as scope:
            async with helix.stream(Agent("a", tools=[slow_to_leave]), "go", model=model) as run:
                async for _ in run:
                    pass
        assert scope.cancelled_caught
        await whole(run.handle)
    assert cleaned
    assert run.handle.status == "cancelled"


@pytest.mark.parametrize("between", range(12))
async def test_a_cancel_at_any_moment_of_an_interrupt_ends_the_run(between: int) -> None:
    @tool
    async def busy() -> str:
        for _ in range(4):
            await anyio.lowlevel.checkpoint()
        return ""

    root = Agent("root", tools=[busy], sub_agents=[Agent("child", tools=[busy])])
    turns = [Turn(calls=[Call("busy")])] * 9
    script = {"root": [Turn(calls=[Call("child", input="x"), Call("busy")]), *turns], "child": turns}
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(root, "go", model=ScriptedModel(script))
            async for chunk in handle.stream():
                if chunk.type == "tool_start":
                    break
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(handle.interrupt)
                for _ in range(between):
                    await anyio.lowlevel.checkpoint()
                await handle.cancel()
            assert handle.status == "cancelled"
            await whole(handle)


async def test_a_branch_cancelled_after_it_has_parked_has_ended_when_the_rest_parks() -> None:
    entered, go_on = anyio.Event(), anyio.Event()

    @tool
    async def gate() -> str:
        entered.set()
        await go_on.wait()
        return ""

    root = Agent("root", tools=[gate], sub_agents=[Agent("child")])
    said = anyio.Event()

    async def answer(request: ModelRequest) -> Turn:
        if request.agent_type == "root":
            return Turn(calls=[Call("gate"), Call("child", input="x")]) if request.step == 1 else Turn(text="done")
        return Turn(calls=[Call("unknown")])

    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(root, "go", model=FunctionModel(answer), run_id="run")
            await entered.wait()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(handle.interrupt)
                for _ in range(10):
                    await anyio.lowlevel.checkpoint()
                tasks.start_soon(handle.cancel, "run.child-1")
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                go_on.set()
            said.set()
            assert handle.status == "interrupted"
            assert handle.tree.agents["run.child-1"].status == "cancelled"
            again = await executor.resume("run", model=FunctionModel(answer))
            assert (await again.result()).output == "done"
            await whole(handle)


async def test_a_resume_in_the_same_executor_remembers_deps_and_model() -> None:
    entered, go_on, seen = anyio.Event(), anyio.Event(), []

    @tool
    async def gate(ctx: ToolContext[None, str]) -> str:
        seen.append(ctx.deps)
        entered.set()
        await go_on.wait()
        return ""

    with ScriptedModel([Turn(calls=[Call("gate")]), Turn(calls=[Call("gate")]), "done"]) as model, anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(Agent("a", deps_type=str, tools=[gate]), "go", model=model, deps="D")
            await entered.wait()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(handle.interrupt)
                await anyio.lowlevel.checkpoint()
                go_on.set()
            assert (await (await executor.resume(handle.run_id)).result()).output == "done"
    assert seen == ["D", "D"]


def test_a_script_says_what_is_wrong_with_it() -> None:
    with pytest.raises(ValueError, match="Did you mean 'model_rate_limited'"):
        Turn(fail="model_rate_limit")  # type: ignore[arg-type]
    model = ScriptedModel([Turn(calls=[Call("x")])])
    with pytest.raises(helix.RunFailed):
        helix.run_sync(Agent("a"), "go", model=model)
    with pytest.raises(AssertionError, match="more turns were asked for than scripted, by"):
        model.check_used()


async def test_a_stream_outside_of_async_with_says_what_to_write() -> None:
    with pytest.raises(UsageError, match=r"async with helix\.stream"):
        async for _ in helix.stream(Agent("a"), "go", model=ScriptedModel(["x"])):
            pass


async def test_an_interrupted_runs_handle_works_on_after_the_resume() -> None:
    entered, go_on = anyio.Event(), anyio.Event()

    @tool
    async def gate() -> str:
        entered.set()
        await go_on.wait()
        return ""

    model = ScriptedModel([Turn(calls=[Call("gate")]), "done"])
    store = MemoryStore()
    with anyio.fail_after(5):
        async with Executor(store=store) as executor:
            agent = Agent("a", tools=[gate])
            handle = await executor.execute(agent, "go", model=model, session_id="s")
            await entered.wait()
            async with Executor(store=store, agents=[agent]) as other:
                with pytest.raises(RunBusy, match="is owned by"):
                    await other.resume(handle.run_id, model=model)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(handle.interrupt)
                await anyio.lowlevel.checkpoint()
                go_on.set()
            with pytest.raises(SessionBusy, match="parked run"):
                await executor.execute(agent, "more", model=model, session_id="s")
            assert [message.role for message in (await handle.result()).messages] == ["user", "assistant", "tool"]
            assert await executor.resume(handle.run_id, model=model) is handle
            assert (await handle.result()).output == "done"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_stray_cancellation_in_a_model_fails_its_run_and_no_other() -> None:
    class Stray:
        name = "stray"

        async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
            raise asyncio.CancelledError

    innocent = ScriptedModel([Turn(text=["a", "b", "c"])])
    with anyio.fail_after(5):
        async with Executor() as executor:
            other = await executor.execute(Agent("other"), "go", model=innocent)
            handle = await executor.execute(Agent("a"), "go", model=Stray())
            assert (await handle.result()).error_code == "internal"
            assert (await other.result()).output == "abc"
            await whole(handle)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


async def test_a_model_and_instructions_that_misbehave_fail_their_own_run() -> None:
    class NotText:
        name = "not-text"

        async def respond(self, request: ModelRequest, emit: Any) -> ModelReply:
            emit.text(5)
            raise AssertionError

    def unspeakable(ctx: ToolContext) -> str:
        raise Unspeakable

    def nothing(ctx: ToolContext) -> Any:
        return None

    with anyio.fail_after(5):
        async with Executor() as executor:
            first = await executor.execute(Agent("a"), "go", model=NotText())
            second = await executor.execute(Agent("b", instructions=unspeakable), "go", model=ScriptedModel(["x"]))
            third = await executor.execute(Agent("c", instructions=nothing), "go", model=ScriptedModel(["x"]))
            results = [await handle.result() for handle in (first, second, third)]
            assert [result.error_code for result in results] == ["internal"] * 3
            for handle in (first, second, third):
                await whole(handle)


class Circle(BaseModel, extra="forbid"):
    radius: int

    @computed_field
    @property
    def area(self) -> float:
        return 3.0 * self.radius**2


async def test_the_result_has_the_object_that_was_validated_not_one_made_from_its_json() -> None:
    result = await helix.run(Agent("a", output_type=Circle), "x", model=ScriptedModel([Turn(output={"radius": 2})]))
    assert result.output == Circle(radius=2)
    assert result.output.area == 12


async def test_text_that_only_looks_like_the_output_stands_beside_the_output_call() -> None:
    model = ScriptedModel([Turn(text='{"note": 1}', calls=[Call("final_result", radius=3)])])
    async with helix.stream(Agent("a", output_type=Circle), "x", model=model) as run:
        check_stream(await helix.collect(run))
        assert (await run.result()).output == Circle(radius=3)


async def test_two_failures_of_a_tool_in_one_step_are_one_try() -> None:
    @tool(retries=1)
    def shaky(n: int) -> str:
        raise ModelRetry("no")

    model = ScriptedModel([Turn(calls=[Call("shaky", n=1), Call("shaky", n=2)]), "I give up"])
    assert (await helix.run(Agent("a", tools=[shaky]), "x", model=model)).output == "I give up"


async def test_a_prompt_that_fails_is_a_failed_call_and_siblings_live_on() -> None:
    def broken(given: Any) -> str:
        raise KeyError("x")

    child = Agent("child")
    root = Agent("root", sub_agents=[child.as_tool(prompt=broken), child.as_tool(name="fine")])
    script = {"root": [Turn(calls=[Call("child", input="x"), Call("fine", input="x")]), "done"], "child": ["ok"]}
    async with helix.stream(root, "x", model=ScriptedModel(script)) as run:
        chunks = await helix.collect(run)
        assert (await run.result()).output == "done"
    check_stream(chunks)
    assert {chunk.tool_name: chunk.error_code for chunk in chunks if chunk.type == "tool_end"} == {
        "child": "tool_failed",
        "fine": None,
    }


async def test_remaining_time_is_known_in_a_thread_too() -> None:
    seen: list[float | None] = []

    @tool(timeout=100)
    def bounded(ctx: ToolContext) -> str:
        seen.append(ctx.remaining_time())
        return ""

    @tool
    async def unbounded(ctx: ToolContext) -> str:
        seen.append(ctx.remaining_time())
        return ""

    script = [Turn(calls=[Call("bounded")]), Turn(calls=[Call("unbounded")]), "done"]
    with anyio.CancelScope():
        await helix.run(Agent("a", tools=[bounded, unbounded]), "x", model=ScriptedModel(script))
    assert seen[0] is not None
    assert 90 < seen[0] <= 100
    assert seen[1] is None


def test_run_sync_works_inside_a_loop_that_anyio_runs() -> None:
    async def main() -> str:
        return helix.run_sync(Agent("a"), "x", model=ScriptedModel(["hi"])).output

    assert [anyio.run(main, backend=backend) for backend in BACKENDS] == ["hi", "hi"]


def test_a_sync_stream_can_be_left_and_entered_again_and_asked_after_its_block() -> None:
    with helix.stream_sync(Agent("a"), "x", model=ScriptedModel([Turn(text=["a", "b"])])) as run:
        first = next(iter(run))
        rest = list(run)
    assert [chunk.sequence for chunk in [first, *rest]] == list(range(1, 7))
    assert run.result().output == "ab"


async def test_control_messages_pass_the_filters() -> None:
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(Agent("a"), "x", model=ScriptedModel(["hi"]), run_id="run")
            await handle.result()

            def read() -> Any:
                return handle.stream(control=True)

            streams: list[Any] = [
                helix.filter_stream_by_type(read(), "text_delta"),
                helix.filter_stream_by_agent(read(), "someone else"),
                helix.filter_stream(read(), lambda chunk: chunk.type == "output"),
            ]
            for stream in streams:
                assert [chunk.type for chunk in await helix.collect(stream)][-1] == "stream_end"
            assert await helix.collect(helix.partial_outputs(read(), str)) == []


async def test_lone_surrogates_never_enter_the_log() -> None:
    @tool
    def name(ctx: ToolContext) -> str:
        ctx.write("caf\udce9")
        return "caf\udce9"

    model = ScriptedModel([Turn(text="a\ud83d", thinking="b\ud83d", calls=[Call("name")]), "done\ud83d"])
    async with helix.stream(Agent("a", tools=[name]), "x\ud83d", model=model) as run:
        chunks = await helix.collect(run)
    check_stream(chunks)
    assert all(helix.parse_chunk(helix.chunk_to_json(chunk)) == chunk for chunk in chunks)
