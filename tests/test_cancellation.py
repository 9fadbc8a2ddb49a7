"""Endings: a cancel reaches what runs at once, everything that began gets its end, nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import anyio
import pytest

import helix
from helix import Agent, Executor, Limits, RunCancelled, ToolContext, ToolEnded, UsageError, tool
from helix.testing import Call, ScriptedModel, Turn, check_stream

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


class Spy:
    """A tool that says when it runs and when it was cancelled."""

    def __init__(self) -> None:
        self.running = anyio.Event()
        self.cancelled = False
        self.tool = tool(name="spy")(self.body)

    async def body(self) -> str:
        self.running.set()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            raise
        return ""


def three_levels(spy: Spy) -> tuple[Agent[Any, Any, Any], ScriptedModel]:
    leaf = Agent("leaf", tools=[spy.tool])
    middle = Agent("middle", sub_agents=[leaf])
    root = Agent("root", sub_agents=[middle])
    model = ScriptedModel(
        {
            "root": [Turn(calls=[Call("middle", input="go")]), "root is done"],
            "middle": [Turn(text="let me ask", calls=[Call("leaf", input="go")]), "middle is done"],
            "leaf": [Turn(calls=[Call("spy")]), "leaf is done"],
        }
    )
    return root, model


async def test_cancelling_a_run_reaches_a_tool_three_levels_down() -> None:
    spy = Spy()
    root, model = three_levels(spy)
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(root, "go", model=model)
            await spy.running.wait()
            await handle.cancel()
            await handle.cancel()  # once more does nothing
            result = await handle.result()
            chunks = await helix.collect(handle.stream())
    check_stream(chunks)
    assert spy.cancelled
    assert result.status == "cancelled"
    assert [node.status for node in result.tree.agents.values()] == ["cancelled"] * 3
    assert not [chunk for chunk in chunks if chunk.type == "error"]
    with pytest.raises(RunCancelled) as raised:
        _ = result.output
    assert raised.value.result is result


@pytest.mark.parametrize("level", [1, 2])
async def test_cancelling_a_branch_is_a_failed_call_for_its_parent_who_goes_on(level: int) -> None:
    spy = Spy()
    root, model = three_levels(spy)
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(root, "go", model=model)
            await spy.running.wait()
            branch = list(handle.tree.agents)[level]
            await handle.cancel(branch)
            result = await handle.result()
            chunks = await helix.collect(handle.stream())
    check_stream(chunks)
    assert spy.cancelled
    assert result.output == "root is done"
    ended = {chunk.agent_type: chunk.status for chunk in chunks if chunk.type == "run_end"}
    assert ended == {"leaf": "cancelled", "middle": "cancelled" if level == 1 else "completed", "root": "completed"}
    call = next(chunk for chunk in chunks if chunk.type == "tool_end" and chunk.error_code == "cancelled")
    assert call.agent_id == branch.rpartition(".")[0] or call.tool_name == "spy"


async def test_cancelling_an_unknown_agent_is_an_error_that_names_the_nearest() -> None:
    spy = Spy()
    root, model = three_levels(spy)
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(root, "go", model=model, run_id="run")
            await spy.running.wait()
            with pytest.raises(UsageError, match=r"Did you mean 'run.middle-1'"):
                await handle.cancel("run.middle-2")
            await handle.cancel()


async def test_a_timeout_around_helix_run_is_a_timeout_and_the_tool_is_cancelled() -> None:
    spy = Spy()
    root, model = three_levels(spy)
    with anyio.fail_after(5):
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.05):
                await helix.run(root, "go", model=model)
    assert spy.cancelled


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncio_timeout_wait_for_and_task_cancel_get_their_own_cancellation_back() -> None:
    before = asyncio.all_tasks()
    for way in ("timeout", "wait_for", "cancel"):
        spy = Spy()
        root, model = three_levels(spy)
        with anyio.fail_after(5):
            if way == "timeout":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await helix.run(root, "go", model=model)
            elif way == "wait_for":
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(helix.run(root, "go", model=model), 0.05)
            else:
                task = asyncio.create_task(helix.run(root, "go", model=model))
                await spy.running.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        assert spy.cancelled, way
        assert asyncio.all_tasks() == before, way


async def test_a_cancelled_surrounding_task_leaves_a_whole_log() -> None:
    spy = Spy()
    root, model = three_levels(spy)
    log: list[helix.Chunk] = []
    with anyio.fail_after(5):
        with anyio.CancelScope() as scope:
            async with Executor() as executor:
                handle = await executor.execute(root, "go", model=model)
                await spy.running.wait()
                scope.cancel()
                await anyio.sleep_forever()
    assert scope.cancelled_caught
    async for chunk in handle.stream():
        log.append(chunk)
    check_stream(log)
    assert handle.status == "cancelled"


async def test_an_exception_inside_the_block_cancels_and_comes_out_as_it_is() -> None:
    spy = Spy()
    root, model = three_levels(spy)
    with anyio.fail_after(5):
        with pytest.raises(ZeroDivisionError):
            async with helix.stream(root, "go", model=model) as run:
                await spy.running.wait()
                raise ZeroDivisionError
        check_stream(await helix.collect(run.handle.stream()))
    assert spy.cancelled
    assert run.handle.status == "cancelled"


async def test_leaving_helix_stream_cancels_and_leaving_handle_stream_detaches() -> None:
    with anyio.fail_after(5):
        spy = Spy()
        root, model = three_levels(spy)
        async with helix.stream(root, "go", model=model) as run:
            async for chunk in run:
                if chunk.type == "step_start":
                    break
        assert run.handle.status == "cancelled"

        async with Executor() as executor:
            handle = await executor.execute(Agent("a"), "hi", model=ScriptedModel([Turn(text=["Hel", "lo"])]))
            async for chunk in handle.stream():
                if chunk.sequence == 2:
                    break
            assert (await handle.result()).output == "Hello"


async def test_cancelled_before_the_start_makes_no_request() -> None:
    model = ScriptedModel(["never"])
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(Agent("a"), "hi", model=model)
            await handle.cancel()
    assert not model.requests
    assert handle.status == "cancelled"
    check_stream(await helix.collect(handle.stream()))


async def test_text_in_flight_is_kept_and_marked_and_the_next_turn_can_use_it() -> None:
    model = ScriptedModel([Turn(text=["Once upon", " a time"], thinking="hm", stall=True), "The end."])
    with anyio.fail_after(5):
        async with Executor() as executor:
            session = helix.Session(Agent("a", model=model), executor)
            seen = ""
            stream = session.stream("tell")
            async for piece in helix.text(stream):
                seen += piece
                if seen.endswith("time"):
                    break
            with pytest.raises(UsageError, match="still going"):
                _ = session.result
            [known] = await executor.sessions()
            handle = await executor.get_handle(known.last_run_id)
            await handle.cancel()
            assert session.result.status == "cancelled"
            assert (await session.send("go on")).output == "The end."
            roles = [message.role for message in model.requests[1].messages]
    assert roles == ["user", "assistant", "user"]
    cut = model.requests[1].messages[1]
    assert isinstance(cut, helix.AssistantMessage)
    assert (cut.text, cut.thinking, cut.cut) == ("Once upon a time", "hm", True)


async def test_a_thread_that_cannot_be_stopped_gets_an_error_instead_of_writing_behind_its_end() -> None:
    running, go_on, outcome = anyio.Event(), threading.Event(), []

    @tool
    def stubborn(ctx: ToolContext) -> str:
        ctx.emit("running")
        go_on.wait(5)
        assert ctx.cancelled
        try:
            ctx.write("too late")
        except ToolEnded as error:
            outcome.append(error)
        return ""

    model = ScriptedModel([Turn(calls=[Call("stubborn")])])
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(Agent("a", tools=[stubborn]), "go", model=model)
            async for chunk in handle.stream():
                if chunk.type == "custom":
                    running.set()
                    break
            await handle.cancel()
            length = handle.tree.sequence
            go_on.set()
            while not outcome:
                await anyio.lowlevel.checkpoint()
    assert handle.tree.sequence == length
    check_stream(await helix.collect(handle.stream()))


async def test_a_hundred_abandoned_streams_leave_nothing_behind() -> None:
    def behind() -> tuple[int, set[str]]:
        return len(anyio.get_running_tasks()), {thread.name for thread in threading.enumerate()}

    before = behind()
    with anyio.fail_after(10):
        for _ in range(100):
            async with helix.stream(Agent("a"), "x", model=ScriptedModel([Turn(text=["a", "b"], stall=True)])) as run:
                async for chunk in run:
                    if chunk.type == "text_delta":
                        break
            assert run.handle.status == "cancelled"
    gc.collect()
    assert behind() == before


async def test_a_time_limit_cuts_the_subtree_and_says_so() -> None:
    spy = Spy()
    root, model = three_levels(spy)
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(root, "go", model=model, limits=Limits(seconds=0.05))
            result = await handle.result()
            chunks = await helix.collect(handle.stream())
    check_stream(chunks)
    assert spy.cancelled
    assert (result.status, result.error_code, result.finish_reason) == ("failed", "limit_time", "limit")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_tool_that_is_cancelled_from_inside_is_a_failed_call() -> None:
    @tool
    async def odd() -> str:
        raise asyncio.CancelledError

    model = ScriptedModel([Turn(calls=[Call("odd")]), "went on"])
    with anyio.fail_after(5):
        result = await helix.run(Agent("a", tools=[odd]), "go", model=model)
    assert result.output == "went on"
