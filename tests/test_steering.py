"""Saying something to an agent while it works: it waits in the agent's inbox and is read with the next model call."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

import helix
from helix import Agent, AgentEnded, Approve, AssistantMessage, Executor, MemoryStore, RunHandle, UsageError, tool
from helix.chunks import Chunk, MessageChunk
from helix.commands import Cancel, Interrupt, Respond, Send, command_to_json, parse_command
from helix.fold import fold
from helix.testing import Call, ScriptedModel, Turn, check_stream
from tests.left import leave
from tests.random_trees import as_data

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


class Gate:
    """A tool that runs, or a model that answers, until it is let go."""

    def __init__(self) -> None:
        self.entered, self.open = anyio.Event(), anyio.Event()
        self.tool = tool(name="gate")(self.body)

    async def body(self) -> str:
        await self.wait()
        return "through"

    async def wait(self) -> None:
        self.entered.set()
        await self.open.wait()


async def checked(handle: RunHandle[Any, Any]) -> list[Chunk]:
    chunks = await helix.collect(handle.stream())
    check_stream(chunks)
    assert as_data(fold(chunks)) == as_data(handle.tree)
    return chunks


def read_by(model: ScriptedModel, number: int) -> list[tuple[str, str]]:
    messages = model.requests[number].messages
    return [(message.role, message.text) for message in messages if not isinstance(message, AssistantMessage)]


async def test_what_is_said_waits_and_is_read_behind_all_tool_results() -> None:
    gate = Gate()
    model = ScriptedModel([Turn(calls=[Call("gate"), Call("gate")]), "in French"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("a", tools=[gate.tool]), "go", model=model)
            await gate.entered.wait()
            await handle.send("in French", command_id="c1")
            await handle.send("in French", command_id="c1")
            await handle.send("please")
            assert [message.content for message in handle.tree.root.inbox] == ["in French", "please"]
            gate.open.set()
            assert (await handle.result()).output == "in French"
    chunks = await checked(handle)
    said = [chunk for chunk in chunks if isinstance(chunk, MessageChunk)]
    assert [(chunk.kind, chunk.command_id) for chunk in said] == [("steering", "c1"), ("steering", None)]
    assert read_by(model, 1) == [("user", "go"), *[("tool", "through")] * 2, ("user", "in French"), ("user", "please")]


async def test_a_run_that_was_about_to_end_with_words_asks_again() -> None:
    gate = Gate()
    model = ScriptedModel([Turn(text="that was all", wait=gate.wait), "and this"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("a"), "go", model=model)
            await gate.entered.wait()
            await handle.send("go on")
            gate.open.set()
            result = await handle.result()
    assert result.output == "and this"
    assert [message.role for message in result.messages] == ["user", "assistant", "user", "assistant"]
    await checked(handle)


class Report(BaseModel):
    title: str


async def test_a_structured_output_that_was_written_as_text_is_asked_for_again() -> None:
    gate = Gate()
    model = ScriptedModel([Turn(text='{"title": "one"}', wait=gate.wait), Turn(output={"title": "two"})])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("a", output_type=Report), "go", model=model)
            await gate.entered.wait()
            await handle.send("another title")
            gate.open.set()
            assert (await handle.result()).output == Report(title="two")
    await checked(handle)


async def test_a_child_is_steered_alone_and_an_ended_one_is_told() -> None:
    gate = Gate()
    root = Agent("root", sub_agents=[Agent("slow", tools=[gate.tool]), Agent("quick")])
    model = ScriptedModel(
        {
            "root": [Turn(calls=[Call("quick", input="a")]), Turn(calls=[Call("slow", input="b")]), "done"],
            "quick": ["quick done"],
            "slow": [Turn(calls=[Call("gate")]), "slow done"],
        }
    )
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(root, "go", model=model)
            await gate.entered.wait()
            quick, slow = handle.tree.root.children
            await handle.send("hurry", to=slow)
            with pytest.raises(AgentEnded, match="has completed; it reads nothing any more"):
                await handle.send("hurry", to=quick)
            with pytest.raises(UsageError, match=f"An agent's id is wanted; of 'slow': '{slow}'"):
                await handle.send("hurry", to="slow")
            gate.open.set()
            result = await handle.result()
            with pytest.raises(AgentEnded):
                await handle.send("too late")
    assert [message.content for message in result.tree.agents[slow].messages if message.role == "user"] == [
        "b",
        "hurry",
    ]
    assert [message.content for message in result.messages if message.role == "user"] == ["go"]
    await checked(handle)


async def test_a_parked_run_is_told_at_once_and_reads_it_when_it_is_resumed() -> None:
    gate, store = Gate(), MemoryStore()
    model = ScriptedModel([Turn(calls=[Call("gate")]), "as you say"])
    agent = Agent("a", tools=[gate.tool])
    with anyio.fail_after(5), model:
        async with Executor(store=store) as executor:
            handle = await executor.execute(agent, "go", model=model)
            await gate.entered.wait()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(handle.interrupt)
                await anyio.lowlevel.checkpoint()
                gate.open.set()
            await handle.send("first")
            assert handle.status == "interrupted"
        async with Executor(store=store, agents=[agent]) as other:
            handle = await other.resume(handle.run_id, "second", model=model)
            assert (await handle.result()).output == "as you say"
    assert read_by(model, 1)[2:] == [("user", "first"), ("user", "second")]
    await checked(handle)


async def test_steering_and_approvals_do_not_get_in_each_others_way() -> None:
    @tool(requires_approval=True)
    async def act() -> str:
        return "acted"

    model = ScriptedModel([Turn(calls=[Call("act")]), "done"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("a", tools=[act]), "go", model=model, wait="suspend")
            await handle.result()
            [request] = handle.tree.pending
            await handle.send("be quick")
            assert (handle.status, handle.tree.pending) == ("suspended", [request])
            await handle.respond(request.approval_id, Approve())
            await (await executor.resume(handle.run_id)).result()
    assert read_by(model, 1) == [("user", "go"), ("tool", "acted"), ("user", "be quick")]
    chunks = await checked(handle)
    waited = [chunk.waiting_for for chunk in chunks if chunk.type == "run_pause"]
    assert waited == [[request.approval_id], [request.approval_id], None]


async def test_a_stream_that_owns_its_run_steers_it_too() -> None:
    gate = Gate()
    model = ScriptedModel([Turn(calls=[Call("gate")]), "done"])
    with anyio.fail_after(5), model:
        async with helix.stream(Agent("a", tools=[gate.tool]), "go", model=model) as run:
            await gate.entered.wait()
            await run.send("now")
            gate.open.set()
            await run.result()
    assert read_by(model, 1)[-1] == ("user", "now")


def test_a_stream_for_code_that_is_not_async_steers_its_run() -> None:
    told = threading.Event()

    @tool
    def hold() -> str:
        return "held" if told.wait(5) else "left alone"

    model = ScriptedModel([Turn(calls=[Call("hold")]), "done"])
    with helix.stream_sync(Agent("a", tools=[hold]), "go", model=model) as run:
        for chunk in run:
            if chunk.type == "tool_start":
                run.send("more")
                told.set()
        assert run.result().output == "done"
    assert read_by(model, 1) == [("user", "go"), ("tool", "held"), ("user", "more")]


async def test_what_a_run_is_told_that_its_owner_left_waits_for_the_next_one() -> None:
    gate = Gate()
    model = ScriptedModel([Turn(calls=[Call("gate")]), "done"])
    agent = Agent("a", tools=[gate.tool])
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(agent, "go", model=model)
            await gate.entered.wait()
            left = MemoryStore()
            await leave(left, await first(handle, 3))
            await handle.cancel()
        async with Executor(store=left, agents=[agent]) as other:
            await (await other.get_handle(handle.run_id)).send("hello?", command_id="c")
            assert [post.command_id for post in await left.take(handle.run_id)] == ["c"]


async def first(handle: RunHandle[Any, Any], number: int) -> list[Chunk]:
    chunks: list[Chunk] = []
    async for chunk in handle.stream():
        chunks.append(chunk)
        if len(chunks) == number:
            break
    return chunks


async def test_a_run_that_is_live_elsewhere_is_told_there() -> None:
    gate, store = Gate(), MemoryStore()
    model = ScriptedModel([Turn(calls=[Call("gate")]), "done"])
    agent = Agent("a", tools=[gate.tool])
    with anyio.fail_after(5), model:
        async with Executor(store=store) as executor, Executor(store=store, agents=[agent]) as other:
            handle = await executor.execute(agent, "go", model=model)
            await gate.entered.wait()
            await (await other.get_handle(handle.run_id)).send("hello?")
            async for chunk in handle.stream():
                if isinstance(chunk, MessageChunk):
                    gate.open.set()
            assert (await handle.result()).output == "done"
    assert read_by(model, 1)[-1] == ("user", "hello?")


@pytest.mark.parametrize(
    "command",
    [
        Send("c1", "héllo", to="r.a-1"),
        Respond("c2", "r/call_1", Approve({"n": 1}), by="ada"),
        Respond("c3", "r/call_1", helix.Deny("no")),
        Respond("c4", "r/call_1", helix.ClientResult([1, None])),
        Cancel("c5"),
        Interrupt("c6"),
    ],
    ids=lambda command: command.command_id,
)
def test_commands_are_plain_data(command: Any) -> None:
    assert parse_command(command_to_json(command)) == command
