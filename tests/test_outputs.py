"""What becomes an output: validators that may change it, tools that finish, the call in which it is forced."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

import anyio
import pytest
from pydantic import BaseModel

import helix
from helix import (
    Agent,
    Approve,
    Chunk,
    ClientResult,
    DefinitionError,
    Executor,
    Limits,
    MemoryStore,
    ModelRetry,
    RunResult,
    ToolContext,
    tool,
)
from helix.agent import OUTPUT_TOOL
from helix.model import ModelRequest
from helix.testing import Call, FunctionModel, ScriptedModel, Turn, check_stream
from tests.left import leave

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


class City(BaseModel):
    name: str
    size: int = 0


Script = dict[str, list[Turn]]


async def play(
    agent: Agent[Any, Any, Any], *script: Turn | str, **options: Any
) -> tuple[list[Chunk], RunResult[Any, Any], ScriptedModel]:
    model = ScriptedModel(script)
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(agent, "go", model=model, **options)
            result = await handle.result()
            chunks = await helix.collect(handle.stream())
    check_stream(chunks)
    return chunks, result, model


def of(chunks: list[Chunk], kind: str) -> list[Any]:
    return [chunk for chunk in chunks if chunk.type == kind]


def final(name: str) -> Call:
    return Call(OUTPUT_TOOL, name=name)


def given(name: str, way: str) -> Turn:
    return Turn(calls=[final(name)]) if way == "call" else Turn(output={"name": name})


def last_read(model: ScriptedModel, request: int) -> str:
    message = model.requests[request].messages[-1]
    assert not isinstance(message, helix.AssistantMessage)
    return message.text


def forced(model: ScriptedModel | FunctionModel) -> list[bool]:
    return [request.force_output for request in model.requests]


async def assert_goes_on_from_every_prefix(root: Agent[Any, Any, Any], script: Script, **options: Any) -> Any:
    """Another executor that finds any beginning of the log asks what the first one asked, and comes to the same."""
    asked: dict[tuple[str, int], Any] = {}

    def say(request: ModelRequest) -> Turn:
        read = [message.content for message in request.messages if message.role != "assistant"]
        key, what = (request.agent_type, request.step), (request.force_output, read)
        assert asked.setdefault(key, what) == what
        return script[request.agent_type][request.step - 1]

    model, store = FunctionModel(say), MemoryStore()
    with anyio.fail_after(10):
        async with Executor(store=store) as executor:
            handle = await executor.execute(root, "go", model=model, **options)
            result = await handle.result()
            chunks = await helix.collect(handle.stream())
        check_stream(chunks)
        for length in range(1, len(chunks)):
            parsed: Any = [helix.parse_chunk(helix.chunk_to_json(chunk)) for chunk in chunks[:length]]
            copies = MemoryStore()
            await leave(copies, parsed)
            async with Executor(store=copies, agents=[root]) as other:
                resumed = await other.resume(handle.run_id, model=model, on_approval=options.get("on_approval"))
                again = await resumed.result()
                check_stream(await helix.collect(resumed.stream()))
            assert (again.status, again.error_code) == (result.status, result.error_code), length
            assert result.status != "completed" or again.output == result.output, length
    return result


# --- validators


def is_known(output: City) -> None:
    if output.name == "Atlantis":
        raise ModelRetry("There is no such city.")


def upper(output: City) -> City:
    return output.model_copy(update={"name": output.name.upper()})


async def counted(ctx: ToolContext[Any, Any], output: City) -> City:
    return City(name=output.name, size=len(ctx.deps))


@pytest.mark.parametrize("way", ["call", "text"])
async def test_validators_are_asked_in_order_and_may_change_the_output(way: str) -> None:
    agent = Agent("a", output_type=City, output_validators=[is_known, upper, counted])
    chunks, result, _ = await play(agent, given("Rome", way), deps="four")
    assert result.output == City(name="ROME", size=4)
    [output] = of(chunks, "output")
    assert output.output == {"name": "ROME", "size": 4}
    assert result.to_dict()["output"] == output.output


@pytest.mark.parametrize("way", ["call", "text"])
async def test_a_validator_may_have_the_output_corrected_and_its_failures_are_counted(way: str) -> None:
    agent = Agent("a", output_type=City, output_validators=[is_known], output_retries=1)
    _, result, model = await play(agent, given("Atlantis", way), given("Rome", way))
    assert result.output == City(name="Rome")
    assert "There is no such city." in last_read(model, 1)
    assert forced(model) == [False, False]  # the tools may be needed to correct it
    _, result, _ = await play(agent, given("Atlantis", way), given("Atlantis", way))
    assert result.error_code == "output_invalid"


async def test_a_validator_sees_only_what_fits_the_type_and_every_candidate_in_order() -> None:
    seen: list[City] = []
    agent = Agent("a", output_type=City, output_validators=[seen.append, is_known])
    calls = [Call(OUTPUT_TOOL, nome="x"), final("Atlantis"), final("Rome"), final("Oslo")]
    chunks, result, _ = await play(agent, Turn(calls=calls))
    assert seen == [City(name="Atlantis"), City(name="Rome")]
    assert result.output == City(name="Rome")
    assert [end.error_code for end in of(chunks, "tool_end")] == ["output_invalid", "output_invalid", None, None]


async def test_a_text_is_validated_too() -> None:
    def polite(output: str) -> str:
        if "please" not in output:
            raise ModelRetry("Say please.")
        return f"{output}."

    chunks, result, model = await play(Agent("a", output_validators=[polite]), "Do it", "Do it please")
    assert result.output == "Do it please."
    assert [chunk.output for chunk in of(chunks, "output")] == ["Do it please."]
    assert last_read(model, 1) == "Say please."
    assert forced(model) == [False, False]


async def test_a_childs_output_is_validated_before_its_parent_reads_it() -> None:
    child = Agent("child", output_type=City, output_validators=[upper])
    script = {"boss": [Turn(calls=[Call("child", input="x")]), "ok"], "child": [given("Rome", "call")]}
    model = ScriptedModel(script)
    with anyio.fail_after(5), model:
        result = await helix.run(Agent("boss", sub_agents=[child]), "go", model=model)
    assert result.output == "ok"
    assert last_read(model, 2) == '{"name":"ROME","size":0}'


async def test_a_validator_that_fails_itself_fails_the_run() -> None:
    def broken(output: City) -> City:
        raise KeyError("price list")

    _, result, _ = await play(Agent("a", output_type=City, output_validators=[broken]), given("Rome", "call"))
    assert (result.status, result.error_code) == ("failed", "internal")
    assert "price list" in (result.error or "")

    def wrong(output: City) -> Any:
        return 3

    _, result, _ = await play(Agent("a", output_type=City, output_validators=[wrong]), given("Rome", "text"))
    assert (result.status, result.error_code) == ("failed", "internal")
    assert "an output validator gave what is no output" in (result.error or "")


async def test_a_sys_exit_in_a_users_function_ends_the_run_or_the_call_and_no_more() -> None:
    def leaves(given: Any, arguments: Any = None) -> Any:
        sys.exit(3)

    @tool(requires_approval=leaves)
    def look(city: str) -> str:
        return city

    for agent, script in (
        (Agent("a", output_validators=[leaves]), ["words"]),
        (Agent("a", instructions=leaves), []),
    ):
        _, result, _ = await play(agent, *script)
        assert (result.status, result.error_code) == ("failed", "internal")
        assert result.error == "internal error: RuntimeError: it called sys.exit(3)"
    asked = Turn(calls=[Call("look", city="a"), Call("look", city="b")])
    chunks, result, _ = await play(Agent("a", tools=[look]), asked, "done")
    assert result.output == "done"
    assert {chunk.error for chunk in chunks if chunk.type == "tool_end"} == {
        "requires_approval of look: RuntimeError: it called sys.exit(3)"
    }


async def test_what_is_said_to_an_agent_while_a_validator_waits_is_answered_first() -> None:
    asked, go_on = anyio.Event(), anyio.Event()

    async def slow(output: City) -> None:
        asked.set()
        await go_on.wait()

    model = ScriptedModel([given("Rome", "text"), given("Oslo", "text")])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            agent = Agent("a", output_type=City, output_validators=[slow])
            handle = await executor.execute(agent, "go", model=model)
            await asked.wait()
            await handle.send("Rather in Norway.")
            go_on.set()
            result = await handle.result()
    assert result.output == City(name="Oslo")
    assert last_read(model, 1) == "Rather in Norway."
    assert forced(model) == [False, False]


@pytest.mark.parametrize("function", [lambda: None, lambda a, b, c: None])
async def test_a_validator_with_other_arguments_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(DefinitionError, match=r"not \(output\) or \(ctx, output\)"):
        Agent("a", output_validators=[function])


async def test_a_default_of_a_validator_is_not_taken_for_the_context() -> None:
    def least(output: City, size: int = 7) -> City:
        return City(name=output.name, size=max(size, output.size))

    _, result, _ = await play(Agent("a", output_type=City, output_validators=[least]), given("Rome", "text"))
    assert result.output == City(name="Rome", size=7)


# --- tools that finish


@tool(finishes=True)
async def book(name: str) -> City:
    """Book."""
    if name == "nowhere":
        raise ModelRetry("no such place")
    return City(name=name, size=1)


@tool(replay="safe")
async def note(text: str) -> str:
    """Note."""
    return text


def booking(*names: str) -> Turn:
    return Turn(calls=[Call("book", name=name) for name in names])


async def test_a_call_that_finishes_counts_once_all_calls_are_answered() -> None:
    agent = Agent("a", output_type=City, tools=[book, note])
    chunks, result, model = await play(agent, Turn(calls=[Call("book", name="Rome"), Call("note", text="x")]))
    assert result.output == City(name="Rome", size=1)
    assert result.finish_reason == "output"
    assert len(model.requests) == 1
    kinds = [chunk.type for chunk in chunks if chunk.type in ("tool_end", "output")]
    assert kinds == ["tool_end", "tool_end", "output"]


async def test_of_two_calls_that_finish_the_first_that_is_valid_counts() -> None:
    @tool(finishes=True)
    async def give(value: str) -> Any:
        return {"name": value} if value != "bad" else {"nome": value}

    @tool(finishes=True)
    async def late(value: str) -> Any:
        await anyio.lowlevel.checkpoint()
        return {"name": value}

    agent = Agent("a", output_type=City, tools=[give, late])
    _, result, _ = await play(agent, Turn(calls=[Call("late", value="Rome"), Call("give", value="Oslo")]))
    assert result.output == City(name="Rome")
    _, result, _ = await play(agent, Turn(calls=[Call("give", value="bad"), Call("late", value="Rome")]))
    assert result.output == City(name="Rome")


async def test_a_failed_call_does_not_finish_and_a_result_of_another_type_is_told_to_the_model() -> None:
    agent = Agent("a", output_type=City, tools=[book])
    _, result, model = await play(agent, booking("nowhere"), booking("Rome"))
    assert result.output == City(name="Rome", size=1)
    assert last_read(model, 1) == "no such place"

    @tool(finishes=True)
    async def shout(name: str) -> str:
        return name.upper()

    agent = Agent("a", output_type=City, tools=[shout], output_retries=0)
    _, result, _ = await play(agent, Turn(calls=[Call("shout", name="Rome")]))
    assert result.error_code == "output_invalid"


async def test_a_text_result_may_be_a_value_or_its_json() -> None:
    @tool(finishes=True)
    async def echo(text: str) -> str:
        return text

    answer = Agent("a", output_type=Literal["yes", "no"], tools=[echo])
    _, result, _ = await play(answer, Turn(calls=[Call("echo", text="yes")]))
    assert result.output == "yes"
    _, result, _ = await play(
        Agent("a", output_type=City, tools=[echo]), Turn(calls=[Call("echo", text='{"name":"X"}')])
    )
    assert result.output == City(name="X")


async def test_without_an_output_type_the_result_as_the_model_would_read_it_is_the_output_and_validated() -> None:
    agent = Agent("a", tools=[book], output_validators=[str.upper])
    _, result, model = await play(agent, booking("Rome"))
    assert result.output == '{"NAME":"ROME","SIZE":1}'
    assert len(model.requests) == 1


async def test_a_call_that_finishes_in_a_child_with_approval_and_by_a_client() -> None:
    @tool(finishes=True, requires_approval=True, replay="safe")
    async def pay(name: str) -> City:
        return City(name=name)

    @tool(finishes=True, runs_on="client")
    async def locate() -> City:
        raise AssertionError("this runs on the client")

    payer = Agent("payer", output_type=City, tools=[pay])
    finder = Agent("finder", output_type=City, tools=[locate])
    script = {
        "boss": [Turn(calls=[Call("payer", input="x"), Call("finder", input="x")]), Turn("done")],
        "payer": [Turn(calls=[Call("pay", name="Rome")])],
        "finder": [Turn(calls=[Call("locate")])],
    }
    answers: dict[str, Any] = {"pay": Approve({"name": "Oslo"}), "locate": ClientResult({"name": "Bonn"})}
    result = await assert_goes_on_from_every_prefix(
        Agent("boss", sub_agents=[payer, finder]), script, on_approval=lambda request: answers[request.tool_name]
    )
    assert [message.content for message in result.messages if message.role == "tool"] == [
        '{"name":"Oslo","size":0}',
        '{"name":"Bonn","size":0}',
    ]


@tool(finishes=True, replay="safe")
async def choose(name: str) -> dict[str, Any]:
    return {"name": name} if name else {}


async def test_a_run_goes_on_from_every_prefix_to_the_same_output() -> None:
    agent = Agent("a", output_type=City, tools=[choose], output_validators=[is_known, upper])
    script = [
        Turn(calls=[Call("choose", name="")]),
        Turn(calls=[Call("choose", name="Atlantis"), Call("choose", name="Rome")]),
    ]
    result = await assert_goes_on_from_every_prefix(agent, {"a": script})
    assert result.output == City(name="ROME")


# --- the output forced


async def test_words_truncation_and_the_limit_of_steps_are_followed_by_a_call_for_the_output_alone() -> None:
    agent = Agent("a", output_type=City, tools=[note])
    _, result, model = await play(agent, "It is Rome.", given("Rome", "call"))
    assert (result.output, forced(model)) == (City(name="Rome"), [False, True])

    cut = Turn(text='{"name": "Ro', finish_reason="length")
    _, result, model = await play(agent, cut, given("Rome", "text"))
    assert (result.output, forced(model)) == (City(name="Rome"), [False, True])
    assert "Be shorter." in last_read(model, 1)

    cut = Turn(calls=[Call(OUTPUT_TOOL, raw='{"name": "Ro')], finish_reason="length")
    _, result, model = await play(agent, cut, given("Rome", "call"))
    assert (result.output, forced(model)) == (City(name="Rome"), [False, True])
    assert "Be shorter." in last_read(model, 1)

    calls = Turn(calls=[Call("note", text="x")])
    chunks, result, model = await play(agent, calls, calls, given("Rome", "call"), limits=Limits(steps=2))
    assert (result.output, forced(model)) == (City(name="Rome"), [False, False, True])
    assert [start.step for start in of(chunks, "step_start")] == [1, 2, 3]
    assert model.requests[2].tools == model.requests[1].tools  # they stand first in a provider's cache
    assert [*model.requests[2].messages][: len(model.requests[1].messages)] == [*model.requests[1].messages]


async def test_a_forced_call_that_brings_nothing_ends_with_the_code_of_what_ran_out() -> None:
    agent = Agent("a", output_type=City, tools=[note])
    calls = Turn(calls=[Call("note", text="x")])
    _, result, model = await play(agent, calls, "It is Rome.", limits=Limits(steps=1))
    assert (result.error_code, forced(model)) == ("limit_steps", [False, True])
    _, result, model = await play(agent, calls, calls, limits=Limits(steps=1))
    assert (result.error_code, forced(model)) == ("limit_steps", [False, True])
    _, result, model = await play(agent, "a", "b", "c")
    assert (result.error_code, forced(model)) == ("output_invalid", [False, True, True])
    _, result, _ = await play(agent, calls, limits=Limits(steps=1, requests=1))
    assert result.error_code == "limit_requests"
    _, result, _ = await play(Agent("a", tools=[note]), calls, limits=Limits(steps=1))
    assert result.error_code == "limit_steps"


async def test_a_retried_attempt_is_forced_as_the_first_was() -> None:
    agent = Agent("a", output_type=City)
    _, result, model = await play(agent, "Rome", Turn(text="Ro", drop=True), given("Rome", "call"))
    assert (result.output, forced(model)) == (City(name="Rome"), [False, True, True])


async def test_a_run_goes_on_from_every_prefix_and_forces_the_same_calls() -> None:
    child = Agent("child", output_type=City, tools=[note], limits=Limits(steps=2))
    script = {
        "boss": [Turn(calls=[Call("child", input="x")]), Turn("It is Rome."), given("Rome", "call")],
        "child": [Turn(calls=[Call("note", text="x")]), Turn("Rome"), given("Rome", "text")],
    }
    boss = Agent("boss", output_type=City, sub_agents=[child])
    result = await assert_goes_on_from_every_prefix(boss, script)
    assert result.output == City(name="Rome")


async def test_partial_outputs_are_seen_of_forced_calls_too() -> None:
    model = ScriptedModel(["It is Rome.", Turn(text=['{"name": "Ro', 'me"}'])])
    with anyio.fail_after(5), model:
        async with helix.stream(Agent("a", output_type=City, model=model), "go") as run:
            names = [partial.get("name") async for partial in helix.partial_outputs(run, City)]
    assert names == ["Ro", "Rome", "Rome"]  # the last is the valid one
