"""Sessions on every store: one live run at a time, whoever wants the next one; lists, pages, deletion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

import helix
from helix import Agent, Executor, RunHandle, Session, SessionBusy, ToolMessage, UsageError, UserMessage, tool
from helix.chunks import Chunk
from helix.executor import EXECUTE_OPTIONS
from helix.log import now_ms
from helix.store import NewRun, RunRecord
from helix.stores import open_store
from helix.stores.memory import MemoryStore
from helix.testing import Call, FunctionModel, ScriptedModel, Turn, check_stream
from tests import services
from tests.left import leave

pytestmark = pytest.mark.anyio
S = "s"
"""The session."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["default", "memory", "sqlite", "postgresql", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> Iterator[Any]:
    """What an executor is given as its store; None for its own memory."""
    if request.param in ("postgresql", "redis") and anyio_backend == "trio":
        pytest.skip("PostgreSQL and Redis are for asyncio")
    match request.param:
        case "postgresql":
            with services.postgres() as url:
                yield url
        case "redis":
            with services.redis_server() as url:
                yield url
        case "sqlite":
            yield f"sqlite:///{tmp_path}/runs.db"
        case name:
            yield MemoryStore() if name == "memory" else None


@pytest.fixture
def shared(store: Any) -> Any:
    """The same, without the default: that one is not shared."""
    if store is None:
        pytest.skip("an executor's own memory is its own")
    return store


class Gate:
    """A tool that runs until it is let go."""

    def __init__(self) -> None:
        self.entered, self.open = anyio.Event(), anyio.Event()

        @tool(name="gate")
        async def body() -> str:
            self.entered.set()
            await self.open.wait()
            return "through"

        self.tool = body


@tool(requires_approval=True)
async def delete(path: str) -> str:
    """Delete."""
    return f"{path} is gone"


def said(result: helix.RunResult[Any, Any]) -> list[Any]:
    """What users have said in the conversation."""
    return said_in(result.messages)


def said_in(messages: Sequence[helix.Message]) -> list[Any]:
    return [message.content for message in messages if isinstance(message, UserMessage)]


async def checked(handle: RunHandle[Any, Any]) -> list[Chunk]:
    chunks = [chunk async for chunk in handle.stream()]
    check_stream(chunks)
    return chunks


async def until(happened: Callable[[], Any]) -> None:
    """Returns once that is so; what a store does cannot be waited on from outside."""
    while not happened():  # noqa: ASYNC110
        await anyio.sleep(0.001)


def in_line(executor: Executor, how: Any) -> int:
    """How many wait for their turn in this executor, the one at the head included."""
    lock = executor._turns._lines.get((S, how))
    return lock.locked() + lock.statistics().tasks_waiting if lock else 0


def echo(request: helix.ModelRequest) -> str:
    return f"{len(request.messages)} messages"


CLERK: Agent = Agent("clerk", model=FunctionModel(echo), tools=[delete])
ASKS = [Turn(text="I ask.", calls=[Call("delete", path="x")]), "Done."]


async def parked(executor: Executor) -> RunHandle[Any, Any]:
    """A run of the session that waits for a person."""
    handle = await executor.execute(CLERK, "one", model=ScriptedModel(ASKS), session_id=S, wait="suspend")
    assert (await handle.result()).status == "suspended"
    return handle


# --- a session that is busy


async def test_a_busy_session_refuses_unless_told_otherwise(store: Any) -> None:
    gate = Gate()
    agent = Agent("a", model=ScriptedModel([Turn(calls=[Call("gate")]), "one"]), tools=[gate.tool])
    with anyio.fail_after(20):
        async with Executor(store=store) as executor:
            first = await executor.execute(agent, "1", session_id=S)
            await gate.entered.wait()
            with pytest.raises(SessionBusy, match=f"live run, {first.run_id}; wait for it or cancel it, or"):
                await executor.execute(agent, "2", session_id=S)
            with pytest.raises(UsageError, match=r"on_busy='wait' is none of 'error', 'queue' and 'interrupt'"):
                await executor.execute(agent, "2", session_id=S, on_busy="wait")  # type: ignore[arg-type]
            gate.open.set()
            assert (await first.result()).output == "one"


async def test_queued_turns_come_in_the_order_of_their_calls_and_know_those_before(store: Any) -> None:
    gate = Gate()
    busy = Agent("a", model=ScriptedModel([Turn(calls=[Call("gate")]), "one"]), tools=[gate.tool])
    quick, outputs = Agent("a", model=FunctionModel(echo)), dict[str, list[str]]()
    with anyio.fail_after(20):
        async with Executor(store=store) as executor:
            first = await executor.execute(busy, "0", session_id=S)
            await gate.entered.wait()

            async def queue(text: str) -> None:
                handle = await executor.execute(quick, text, session_id=S, on_busy="queue")
                assert first.status == "completed"
                outputs[text] = said(await handle.result())
                await checked(handle)

            async with anyio.create_task_group() as tasks:
                for number in range(1, 5):
                    tasks.start_soon(queue, str(number))
                    await until(lambda number=number: in_line(executor, "queue") == number)
                [session] = await executor.sessions()
                assert session.runs == 1
                gate.open.set()
    assert outputs == {str(n): [str(number) for number in range(n + 1)] for n in range(1, 5)}


async def test_who_stops_waiting_in_the_queue_has_left_nothing(store: Any) -> None:
    gate = Gate()
    busy = Agent("a", model=ScriptedModel([Turn(calls=[Call("gate")]), "one"]), tools=[gate.tool])
    quick = Agent("a", model=FunctionModel(echo))
    with anyio.fail_after(20):
        async with Executor(store=store) as executor:
            first = await executor.execute(busy, "0", session_id=S)
            await gate.entered.wait()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: executor.execute(quick, "never", session_id=S, on_busy="queue"))
                await until(lambda: in_line(executor, "queue"))
                tasks.cancel_scope.cancel()
            gate.open.set()
            await first.result()
            handle = await executor.execute(quick, "1", session_id=S, on_busy="queue")
            assert said(await handle.result()) == ["0", "1"]


async def test_an_executor_that_is_left_lets_nobody_in_any_more(store: Any) -> None:
    gate, refused = Gate(), list[str]()
    busy = Agent("a", model=ScriptedModel([Turn(calls=[Call("gate")]), "one"]), tools=[gate.tool])
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks, Executor(store=store) as executor:
            await executor.execute(busy, "0", session_id=S)
            await gate.entered.wait()

            async def queue() -> None:
                with pytest.raises(UsageError, match="this executor is not running") as caught:
                    await executor.execute(busy, "1", session_id=S, on_busy="queue")
                refused.append(str(caught.value))

            tasks.start_soon(queue)
            await until(lambda: in_line(executor, "queue"))
            gate.open.set()
    assert len(refused) == 1


async def test_an_interrupt_lets_tools_finish_and_goes_on_with_what_was_said(store: Any) -> None:
    gate, results = Gate(), list[helix.RunResult[Any, Any]]()
    script = ScriptedModel([Turn(text="I look.", calls=[Call("gate")]), "never asked"])
    busy = Agent("a", model=script, tools=[gate.tool])
    model = ScriptedModel(["as you say"])
    with anyio.fail_after(20):
        async with Executor(store=store) as executor:
            first = await executor.execute(busy, "0", session_id=S)
            await gate.entered.wait()

            async def interrupt() -> None:
                handle = await executor.execute(busy, "stop", model=model, session_id=S, on_busy="interrupt")
                results.append(await handle.result())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(interrupt)
                await until(lambda: first.run and first.run.ending)
                assert first.status == "running"
                gate.open.set()
            stopped = await first.result()
            assert (stopped.status, stopped.error_code) == ("cancelled", None)
            with pytest.raises(UsageError, match="has cancelled"):
                await executor.resume(first.run_id)
            await checked(first)
    [result] = results
    assert result.output == "as you say"
    roles = [message.role for message in result.messages]
    assert roles == ["user", "assistant", "tool", "user", "assistant"]
    assert isinstance(result.messages[2], ToolMessage)
    assert (result.messages[2].content, result.messages[2].is_error) == ("through", False)


async def test_the_last_of_several_interrupts_is_the_one_that_stays(store: Any) -> None:
    gate, results = Gate(), dict[str, helix.RunResult[Any, Any]]()
    handles = dict[str, RunHandle[Any, Any]]()
    busy = Agent("a", model=ScriptedModel([Turn(calls=[Call("gate")]), "never"]), tools=[gate.tool])
    asking = Agent("a", tools=[delete])
    with anyio.fail_after(20):
        async with Executor(store=store) as executor:
            first = await executor.execute(busy, "0", session_id=S)
            await gate.entered.wait()

            async def interrupt(text: str) -> None:
                model = ScriptedModel(ASKS)
                handle = await executor.execute(asking, text, model=model, session_id=S, on_busy="interrupt")
                handles[text] = handle
                results[text] = await handle.result()

            async with anyio.create_task_group() as tasks:
                for number, text in enumerate(("1", "2", "3"), start=1):
                    tasks.start_soon(interrupt, text)
                    await until(lambda number=number: in_line(executor, "interrupt") == number)
                await until(lambda: first.run and first.run.ending)
                gate.open.set()
                await until(lambda: "3" in handles)
                assert said(handles["3"].snapshot()) == ["0", "1", "2", "3"]
                await until(lambda: handles["3"].tree.pending)
                await handles["3"].respond(handles["3"].tree.pending[0].approval_id, helix.Deny("no"))
            assert first.status == "cancelled"
    assert [results[text].status for text in ("1", "2", "3")] == ["cancelled", "cancelled", "completed"]


async def test_a_parked_run_is_refused_not_waited_for_and_ended_by_an_interrupt(store: Any) -> None:
    with anyio.fail_after(20):
        async with Executor(store=store, agents=[CLERK]) as executor:
            first = await parked(executor)
            for how in ("error", "queue"):
                with pytest.raises(SessionBusy, match=r"parked run.*resume it or cancel it"):
                    await executor.execute(CLERK, "2", session_id=S, on_busy=how)
            handle = await executor.execute(CLERK, "two", session_id=S, on_busy="interrupt")
            result = await handle.result()
            assert (await first.result()).status == "cancelled"
            with pytest.raises(UsageError, match="has cancelled"):
                await executor.resume(first.run_id)
            await checked(first)
    assert [message.role for message in result.messages] == ["user", "assistant", "tool", "user", "assistant"]
    assert isinstance(result.messages[2], ToolMessage)
    assert result.messages[2].is_error


async def test_an_interrupt_does_not_wait_behind_the_queue(store: Any) -> None:
    gate, order = Gate(), list[str]()
    busy = Agent("a", model=ScriptedModel([Turn(calls=[Call("gate")]), "never"]), tools=[gate.tool])
    quick = Agent("a", model=FunctionModel(echo))
    with anyio.fail_after(20):
        async with Executor(store=store) as executor:
            first = await executor.execute(busy, "0", session_id=S)
            await gate.entered.wait()

            async def go_on(how: Any) -> None:
                handle = await executor.execute(quick, how, session_id=S, on_busy=how)
                order.append(how)
                await handle.result()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(go_on, "queue")
                await until(lambda: in_line(executor, "queue"))
                tasks.start_soon(go_on, "interrupt")
                await until(lambda: first.run and first.run.ending)
                gate.open.set()
            assert first.status == "cancelled"
            assert sorted(order) == ["interrupt", "queue"]
            assert sorted(said_in(await executor.history(S))) == ["0", "interrupt", "queue"]


# --- across executors


async def test_a_run_of_another_executor_is_waited_for_and_interrupted(shared: Any) -> None:
    gate = Gate()
    busy = Agent("a", model=ScriptedModel([Turn(calls=[Call("gate")]), "one"]), tools=[gate.tool])
    quick, results = Agent("b", model=FunctionModel(echo)), dict[str, list[str]]()
    with anyio.fail_after(30):
        async with Executor(store=shared) as here, Executor(store=shared) as there:
            first = await here.execute(busy, "0", session_id=S)
            await gate.entered.wait()

            async def go_on(how: Any) -> None:
                handle = await there.execute(quick, how, session_id=S, on_busy=how)
                results[how] = said(await handle.result())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(go_on, "queue")
                await until(lambda: in_line(there, "queue"))
                gate.open.set()
            assert (first.status, results) == ("completed", {"queue": ["0", "queue"]})
            gate = Gate()
            again = Agent("a", model=ScriptedModel([Turn(calls=[Call("gate")]), "never"]), tools=[gate.tool])
            second = await here.execute(again, "1", session_id=S)
            await gate.entered.wait()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(go_on, "interrupt")
                await until(lambda: second.run and second.run.ending)
                gate.open.set()
            assert (await second.result()).status == "cancelled"
            assert results["interrupt"] == ["0", "queue", "1", "interrupt"]
            await checked(second)


async def test_many_executors_at_once_never_fork_a_conversation(shared: Any) -> None:
    """Whoever comes late goes on with what the others have said; nothing is said twice, and nothing is lost."""
    quick = Agent("a", model=FunctionModel(echo))
    with anyio.fail_after(60):
        async with Executor(store=shared) as one, Executor(store=shared) as two:

            async def talk(executor: Executor, text: str, how: Any) -> None:
                handle = await executor.execute(quick, text, session_id=S, on_busy=how)
                await handle.result()

            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    for name, executor in (("one", one), ("two", two)):
                        how = "interrupt" if number % 3 == 2 else "queue"
                        tasks.start_soon(talk, executor, f"{name} {number}", how)
            words = said_in(await one.history(S))
            assert sorted(words) == sorted(f"{name} {number}" for number in range(8) for name in ("one", "two"))
            assert (await two.sessions())[0].runs == 16


async def test_of_two_executors_that_begin_a_session_at_once_one_does(shared: Any) -> None:
    outcomes = list[str]()
    with anyio.fail_after(30):
        async with Executor(store=shared) as one, Executor(store=shared) as two:

            async def begin(executor: Executor) -> None:
                try:
                    handle = await executor.execute(CLERK, "go", model=ScriptedModel(ASKS), session_id=S)
                    outcomes.append("began")
                    await handle.cancel()
                except SessionBusy:
                    outcomes.append("busy")

            async with anyio.create_task_group() as tasks:
                for executor in (one, two):
                    tasks.start_soon(begin, executor)
    assert sorted(outcomes) == ["began", "busy"]


async def test_a_run_that_a_dead_process_has_left_is_said_to_be_lost_and_ended_by_an_interrupt(shared: Any) -> None:
    async with Executor() as executor:
        handle = await executor.execute(CLERK, "one", model=ScriptedModel(ASKS), session_id=S, wait="suspend")
        await handle.result()
        chunks = [chunk async for chunk in handle.stream()]
    opened = open_store(shared) if isinstance(shared, str) else shared
    with anyio.fail_after(20):
        async with opened:
            await leave(opened, chunks[:-1])  # all but its run_pause
        async with Executor(store=shared, agents=[CLERK]) as executor:
            for how in ("error", "queue"):
                with pytest.raises(SessionBusy, match=r"lost run.*its owner is gone: recover\(\)"):
                    await executor.execute(CLERK, "2", session_id=S, on_busy=how)
            result = await (await executor.execute(CLERK, "two", session_id=S, on_busy="interrupt")).result()
            assert said(result) == ["one", "two"]
            assert (await executor.get_handle(handle.run_id)).status == "cancelled"
            assert await executor.recover() == []


# --- lists, pages, deletion


async def test_sessions_are_listed_in_pages_newest_first(store: Any) -> None:
    with anyio.fail_after(20):
        async with Executor(store=store) as executor:
            for session_id in ("a", "b", "c", "a"):
                await (await executor.execute(CLERK, "hi", session_id=session_id)).result()
            names = [session.session_id for session in await executor.sessions()]
            assert names == ["a", "c", "b"]
            page = await executor.sessions(limit=2)
            assert [session.session_id for session in page] == ["a", "c"]
            [b] = await executor.sessions(limit=2, before="c")
            assert (b.session_id, b.runs, b.status) == ("b", 1, "completed")
            assert page[0].runs == 2
            assert page[0].created_at <= b.created_at <= page[0].updated_at <= now_ms()
            assert await executor.sessions(before="b") == await executor.sessions(before="unknown") == []


async def test_a_history_is_read_in_pages_from_its_end(store: Any) -> None:
    with anyio.fail_after(20):
        async with Executor(store=store) as executor:
            session = Session(CLERK, executor, S)
            assert await session.history() == await executor.history("unknown", limit=3) == []
            for text in ("a", "b", "c"):
                await session.send(text)
            whole = await session.history()
            assert [message.role for message in whole] == ["user", "assistant"] * 3
            assert whole.start == 0
            newest = await executor.history(S, limit=4)
            assert (newest, newest.start) == (whole[2:], 2)
            older = await session.history(limit=4, before=newest.start)
            assert (older, older.start) == (whole[:2], 0)
            assert await session.history(limit=4, before=older.start) == []
            assert await session.history(before=5) == whole[:5]
            assert await session.history(limit=0) == []
            await session.send("d")
            assert await executor.history(S, limit=4, before=newest.start + 4) == newest


async def test_a_live_session_is_not_deleted_and_an_ended_or_parked_one_is_gone(store: Any) -> None:
    gate = Gate()
    busy = Agent("a", model=ScriptedModel([Turn(calls=[Call("gate")]), "one"]), tools=[gate.tool])
    with anyio.fail_after(20):
        async with Executor(store=store, agents=[CLERK]) as executor:
            other = await (await executor.execute(CLERK, "stays", session_id="t")).result()
            first = await executor.execute(busy, "0", session_id=S)
            await gate.entered.wait()
            with pytest.raises(SessionBusy, match=f"session 's' has a live run, {first.run_id}; wait"):
                await executor.delete_session(S)
            gate.open.set()
            await first.result()
            second = await parked(executor)
            assert await executor.delete_session(S) == 2
            assert await executor.delete_session(S) == 0
            assert (await executor.history(S), [item.session_id for item in await executor.sessions()]) == ([], ["t"])
            for run_id in (first.run_id, second.run_id):
                with pytest.raises(helix.UnknownRun):
                    await executor.get_handle(run_id)
            handle = await executor.execute(CLERK, "new", session_id=S)
            assert said(await handle.result()) == ["new"]
            assert (await executor.get_handle(other.run_id)).status == "completed"


async def test_a_conversation_that_is_deleted_meanwhile_is_not_gone_on_with(shared: Any) -> None:
    opened = open_store(shared) if isinstance(shared, str) else shared
    with anyio.fail_after(20):
        async with Executor(store=shared) as executor, opened:
            first = await executor.execute(CLERK, "one", session_id=S)
            await first.result()
            await opened.delete_session(S)
            with pytest.raises(SessionBusy, match="has been deleted"):
                await opened.create(NewRun("r", "a", S, follows=first.run_id), [], owner="me", lease=1)
            assert said(await (await executor.execute(CLERK, "two", session_id=S)).result()) == ["two"]


class Forgetful(MemoryStore):
    """Forgets a session in the moment in which somebody has found its newest run."""

    forgets = ""

    async def runs(self, **which: Any) -> list[RunRecord]:
        found = await super().runs(**which)
        if self.forgets and which.get("session_id") == self.forgets:
            await self.delete_session(self.forgets)
        return found


async def test_a_conversation_that_is_deleted_before_it_is_read_begins_anew() -> None:
    store = Forgetful()
    with anyio.fail_after(20):
        async with Executor(store=store) as executor, Executor(store=store) as other:
            await (await executor.execute(CLERK, "one", session_id=S)).result()
            store.forgets = S
            assert await other.history(S) == []
            await (await executor.execute(CLERK, "two", session_id=S)).result()
            store.forgets = S
            handle = await other.execute(CLERK, "three", session_id=S)
            store.forgets = ""
            assert said(await handle.result()) == ["three"]
            assert [record.run_id for record in await store.runs(session_id=S)] == [handle.run_id]


# --- the other forms


async def test_a_sessions_turns_and_the_short_forms_take_it_too() -> None:
    gate, results = Gate(), list[str]()
    model = ScriptedModel([Turn(calls=[Call("gate")]), "one", "two", "three"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            session = Session(Agent("a", model=model, tools=[gate.tool]), executor)

            async def send(text: str) -> None:
                results.append((await session.send(text, on_busy="queue")).output)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send, "1")
                await gate.entered.wait()
                tasks.start_soon(send, "2")
                await anyio.wait_all_tasks_blocked()
                gate.open.set()
            assert results == ["one", "two"]
            assert [chunk.type async for chunk in session.stream("3", on_busy="interrupt")][-1] == "run_end"
            assert session.result.output == "three"
    assert "on_busy" in EXECUTE_OPTIONS


async def test_a_live_run_whose_lease_had_passed_and_that_is_deleted_stops_alone(shared: Any) -> None:
    gate = Gate()
    busy = Agent("a", model=ScriptedModel([Turn(calls=[Call("gate")]), "one"]), tools=[gate.tool])
    opened = open_store(shared) if isinstance(shared, str) else shared
    append = opened.append
    opened.append = lambda write: append(replace(write, lease=0))
    with anyio.fail_after(20):
        async with Executor(store=opened) as executor:
            handle = await executor.execute(busy, "0", session_id=S)
            await gate.entered.wait()
            assert await opened.delete_session(S) == 1
            gate.open.set()
            with pytest.raises(helix.UnknownRun, match=f"no run '{handle.run_id}' in this store"):
                await handle.result()
            assert said(await (await executor.execute(CLERK, "two", session_id="t")).result()) == ["two"]


async def test_an_interrupt_cuts_a_body_whose_child_waits_for_an_answer(store: Any) -> None:
    child = Agent("child", tools=[delete])
    model = ScriptedModel({"a": [Turn(calls=[Call("delegate")])], "child": [Turn(calls=[Call("delete", path="x")])]})

    @tool
    async def delegate(ctx: helix.ToolContext) -> str:
        await ctx.run_agent(child, "go")
        raise AssertionError("nobody has answered")

    with anyio.fail_after(20):
        async with Executor(store=store) as executor:
            first = await executor.execute(Agent("a", tools=[delegate]), "0", session_id=S, model=model)
            async for chunk in first.stream():
                if chunk.type == "approval_request":
                    break
            second = await executor.execute(CLERK, "1", session_id=S, on_busy="interrupt")
            assert said(await second.result()) == ["0", "1"]
            assert first.status == "cancelled"
            check_stream(await helix.collect(first.stream()))
