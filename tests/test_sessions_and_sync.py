"""Sessions, and the forms for code that is not async."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.to_thread
import pytest
from pydantic import BaseModel

import helix
from helix import Agent, Chunk, Executor, RunFailed, Session, SessionBusy, ToolContext, UsageError, tool
from helix.sync import stream_sync
from helix.testing import Call, FunctionModel, ScriptedModel, Turn, check_stream


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


class Notes(BaseModel):
    count: int = 0


@tool
async def count(ctx: ToolContext[Notes]) -> int:
    with ctx.update_state() as draft:
        draft.count += 1
    return ctx.state.count


def told(request: helix.ModelRequest) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in request.messages]


# --- sessions


@pytest.mark.anyio
async def test_each_turn_knows_the_ones_before() -> None:
    model = ScriptedModel(["one", "two", "three"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            session = Session(Agent("a", model=model), executor)
            with pytest.raises(UsageError, match="no turn yet"):
                _ = session.result
            assert await session.history() == []
            assert (await session.send("first")).output == "one"
            chunks = [chunk async for chunk in session.stream("second")]
            assert session.result.output == "two"
            third = await session.send("third")
    check_stream(chunks)
    assert told(model.requests[1]) == [("user", "first"), ("assistant", "one"), ("user", "second")]
    assert [role for role, _ in told(model.requests[2])] == ["user", "assistant"] * 2 + ["user"]
    assert [message.role for message in await session.history()] == ["user", "assistant"] * 3
    assert session.result.run_id == third.run_id
    assert third.usage.total_tokens == 18
    assert third.session_id == session.session_id


@pytest.mark.anyio
async def test_the_state_goes_on_unless_it_is_given() -> None:
    turns = [Turn(calls=[Call("count")]), "done"]
    model = ScriptedModel(turns * 3)
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            session = Session(Agent("a", model=model, state_type=Notes, tools=[count]), executor)
            states = [(await session.send("x")).state, (await session.send("y")).state]
            states.append((await session.send("z", state=Notes(count=10))).state)
    assert states == [Notes(count=1), Notes(count=2), Notes(count=11)]


@pytest.mark.anyio
async def test_two_sessions_do_not_see_each_other_and_one_can_be_gone_on_with() -> None:
    model = FunctionModel(lambda request: f"{len(request.messages)} messages")
    agent = Agent("a", model=model)
    with anyio.fail_after(5):
        async with Executor() as executor:
            one, two = Session(agent, executor), Session(agent, executor)
            assert one.session_id != two.session_id
            outputs = [(await session.send("x")).output for session in (one, two, one)]
            again = Session(agent, executor, one.session_id)
            outputs.append((await again.send("y")).output)
    assert outputs == ["1 messages", "1 messages", "3 messages", "5 messages"]
    assert len(await two.history()) == 2


@pytest.mark.anyio
async def test_a_session_has_one_turn_at_a_time() -> None:
    entered, leave = anyio.Event(), anyio.Event()

    async def wait() -> None:
        entered.set()
        await leave.wait()

    model = ScriptedModel([Turn(text="slow", wait=wait), "after"])
    results: list[Any] = []
    with anyio.fail_after(5):
        async with Executor() as executor:
            session = Session(Agent("a", model=model), executor)

            async def first() -> None:
                results.append(await session.send("x"))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(first)
                await entered.wait()
                with pytest.raises(SessionBusy, match="wait for it or cancel it"):
                    await session.send("y")
                with pytest.raises(SessionBusy):
                    [chunk async for chunk in session.stream("y")]
                with pytest.raises(UsageError, match="still going"):
                    _ = session.result
                leave.set()
            assert results[0].output == "slow"
            assert (await session.send("z")).output == "after"


@pytest.mark.anyio
async def test_leaving_a_turns_stream_lets_the_turn_go_on() -> None:
    leave = anyio.Event()
    model = ScriptedModel([Turn(text="to the end", wait=leave.wait)])
    with anyio.fail_after(5):
        async with Executor() as executor:
            session = Session(Agent("a", model=model), executor)
            stream = session.stream("x")
            assert (await anext(stream)).type == "run_start"
            await stream.aclose()
            leave.set()
            handle = await executor.get_handle(next(iter(executor._handles)))
            assert (await handle.result()).output == "to the end"
            assert session.result.output == "to the end"


@pytest.mark.anyio
async def test_a_failed_turn_does_not_end_the_session() -> None:
    model = ScriptedModel([Turn(fail="model_rejected"), "better"])
    with anyio.fail_after(5):
        async with Executor() as executor:
            session = Session(Agent("a", model=model), executor)
            assert (await session.send("x")).status == "failed"
            assert (await session.send("y")).output == "better"
    assert [content for _, content in told(model.requests[1])][-1] == "y"


# --- without async


def in_time(work: Callable[[], Any]) -> Any:
    """Runs `work` on a thread that a test waits for, but not for ever."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(work).result(5)
    finally:
        pool.shutdown(wait=False)


def test_run_sync_again_and_again() -> None:
    agent = Agent("a", model=FunctionModel(lambda request: f"said {request.messages[0].content}"))
    assert in_time(lambda: [helix.run_sync(agent, text).output for text in ("x", "y")]) == ["said x", "said y"]
    broken = Agent("a", model=ScriptedModel([Turn(fail="model_rejected")]))
    with pytest.raises(RunFailed, match="model_rejected"):
        in_time(lambda: helix.run_sync(broken, "x"))


def test_run_sync_in_threads_at_once() -> None:
    together = threading.Barrier(4, timeout=4)

    @tool
    def meet() -> str:
        together.wait()
        return "met"

    def work(n: int) -> str:
        model = ScriptedModel([Turn(calls=[Call("meet")]), f"done {n}"])
        return helix.run_sync(Agent("a", tools=[meet]), "x", model=model).output

    with ThreadPoolExecutor(4) as pool:
        assert [future.result(5) for future in [pool.submit(work, n) for n in range(4)]] == [
            f"done {n}" for n in range(4)
        ]


@pytest.mark.anyio
async def test_run_sync_inside_a_running_loop() -> None:
    agent = Agent("a", model=FunctionModel(lambda _: "inside"))
    with anyio.fail_after(5):
        assert helix.run_sync(agent, "x").output == "inside"
        assert await anyio.to_thread.run_sync(lambda: helix.run_sync(agent, "x").output) == "inside"
        with pytest.raises(RunFailed):
            helix.run_sync(agent, "x", model=ScriptedModel([]))


def make() -> tuple[Agent[Any, Any, Any], ScriptedModel]:
    child = Agent("child")
    turns: dict[str, Any] = {
        "root": [Turn(text=["let ", "me ", "see"], calls=[Call("count"), Call("child", input="x")]), Turn(text="done")],
        "child": [Turn(thinking=["hm", "m"], text=["child ", "done"])],
    }
    return Agent("root", state_type=Notes, tools=[count.replace(sequential=True)], sub_agents=[child]), ScriptedModel(
        turns
    )


def shown(chunks: list[Chunk]) -> list[tuple[str, Any]]:
    """Types and pieces; the sync form may hand over several pieces at once, but not change them."""
    return [(chunk.type, getattr(chunk, "delta", None)) for chunk in chunks]


@pytest.mark.anyio
async def test_stream_sync_gives_what_the_async_stream_gives() -> None:
    agent, model = make()
    with anyio.fail_after(5), model:
        async with helix.stream(agent, "go", model=model) as run:
            chunks = [chunk async for chunk in run]
    check_stream(chunks)
    assert shown(read_sync()) == shown(chunks)


def read_sync() -> list[Chunk]:
    agent, model = make()

    def work() -> list[Chunk]:
        with stream_sync(agent, "go", model=model) as run:
            seen = list(run)
            assert list(run) == []
            result = run.result()
            assert (result.output, result.state, run.run_id) == ("done", Notes(count=1), seen[0].agent_id)
        return seen

    seen = in_time(work)
    check_stream(seen)
    return seen


def test_stream_sync_in_two_threads_at_once() -> None:
    with ThreadPoolExecutor(2) as pool:
        one, two = [future.result(5) for future in [pool.submit(read_sync), pool.submit(read_sync)]]
    assert shown(one) == shown(two)
    assert one[0].agent_id != two[0].agent_id


def test_leaving_stream_sync_early_cancels() -> None:
    unwound: list[str] = []

    @tool
    async def endless() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            unwound.append("endless")

    model = ScriptedModel([Turn(calls=[Call("endless")]), "never"])

    def work() -> Any:
        with stream_sync(Agent("a", tools=[endless]), "go", model=model) as run:
            for chunk in run:
                if chunk.type == "tool_start":
                    break
        return run

    run = in_time(work)
    assert unwound == ["endless"]
    assert run._stream.handle.status == "cancelled"
    check_stream(run._stream.handle._log.chunks)
    assert len(model.requests) == 1


def test_an_exception_inside_stream_sync_comes_out_as_it_is() -> None:
    model = ScriptedModel([Turn(text="so far", stall=True)])

    def work() -> None:
        with stream_sync(Agent("a"), "go", model=model) as run:
            for chunk in run:
                if chunk.type == "text_delta":
                    raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        in_time(work)


def test_stream_sync_can_be_cancelled_and_refuses_at_the_door() -> None:
    model = ScriptedModel([Turn(text="so far", stall=True)])

    def work() -> list[str]:
        with stream_sync(Agent("a"), "go", model=model) as run:
            kinds: list[str] = []
            for chunk in run:
                kinds.append(chunk.type)
                if chunk.type == "text_delta":
                    run.cancel()
            assert run.result().status == "cancelled"
        return kinds

    assert in_time(work)[-2:] == ["step_end", "run_end"]
    with pytest.raises(helix.DefinitionError, match="has no model"), stream_sync(Agent("a"), "go"):
        pass
