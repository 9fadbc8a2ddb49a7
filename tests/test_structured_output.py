"""Structured output: every kind of type, by a call of the output tool and by JSON text; and what is not valid."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import anyio
import pytest
from pydantic import BaseModel, TypeAdapter
from typing_extensions import TypedDict

import helix
from helix import Agent, Chunk, DefinitionError, Executor, RunFailed, tool
from helix.agent import OUTPUT_TOOL
from helix.testing import Call, ScriptedModel, Turn, check_stream

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


class City(BaseModel):
    name: str
    size: int = 0


class River(BaseModel):
    kind: Literal["river"] = "river"
    length: float


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Pair(TypedDict):
    left: str
    right: int


TYPES: list[tuple[str, Any, Any, Any]] = [
    ("pydantic model", City, {"name": "Rome", "size": "3"}, City(name="Rome", size=3)),
    ("dataclass", Point, {"x": 1, "y": 2}, Point(1, 2)),
    ("TypedDict", Pair, {"left": "l", "right": 4}, {"left": "l", "right": 4}),
    ("list", list[str], ["a", "b"], ["a", "b"]),
    ("list of models", list[City], [{"name": "Rome"}], [City(name="Rome")]),
    ("int", int, 7, 7),
    ("bool", bool, True, True),
    ("union", City | River, {"length": 2}, River(length=2.0)),
    ("optional, given", City | None, {"name": "Oslo"}, City(name="Oslo")),
    ("optional, none", City | None, None, None),
]
WRAPPED = {"list", "list of models", "int", "bool", "union", "optional, given", "optional, none"}


async def play(agent: Agent[Any, Any, Any], *script: Turn | str) -> tuple[list[Chunk], Any, ScriptedModel]:
    model = ScriptedModel(script)
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(agent, "go", model=model)
            result = await handle.result()
            chunks = await helix.collect(handle.stream())
    check_stream(chunks)
    return chunks, result, model


def of(chunks: list[Chunk], kind: str) -> list[Any]:
    return [chunk for chunk in chunks if chunk.type == kind]


def final(value: Any) -> Call:
    return Call(OUTPUT_TOOL, raw=TypeAdapter(Any).dump_json(value).decode())


@pytest.mark.parametrize("way", ["call", "text", "unwrapped text"])
@pytest.mark.parametrize(("name", "output_type", "given", "expected"), TYPES, ids=[row[0] for row in TYPES])
async def test_every_type_both_ways(name: str, output_type: Any, given: Any, expected: Any, way: str) -> None:
    agent = Agent("a", output_type=output_type)
    wrapped = name in WRAPPED
    assert agent.output_schema.wrapped == wrapped
    value = {"result": given} if wrapped and way != "unwrapped text" else given
    turn = Turn(calls=[final(value)]) if way == "call" else Turn(output=value)
    if way == "unwrapped text" and given is None:
        turn = Turn(text="null")  # `output=None` means none
    chunks, result, model = await play(agent, turn)
    assert result.output == expected
    assert type(result.output) is type(expected)
    [output] = of(chunks, "output")
    adapter: TypeAdapter[Any] = TypeAdapter(output_type)
    assert output.output == adapter.dump_python(expected, mode="json")
    assert result.to_dict()["output"] == output.output
    [request] = model.requests
    assert request.output is not None
    assert (request.output.name, request.output.schema["type"]) == (OUTPUT_TOOL, "object")
    assert [definition.name for definition in request.tools] == []
    deltas = "".join(chunk.delta for chunk in of(chunks, "output_delta"))
    if way != "unwrapped text" or deltas:
        assert adapter.validate_python(expected) == agent.output_schema.validate_text(deltas)


@pytest.mark.parametrize("way", ["call", "text"])
async def test_invalid_twice_then_valid_gives_one_output(way: str) -> None:
    def turn(value: Any) -> Turn:
        return Turn(calls=[final(value)]) if way == "call" else Turn(output=value)

    bad = {"name": 1, "size": "many"}
    chunks, result, model = await play(Agent("a", output_type=City), turn(bad), turn({}), turn({"name": "Rome"}))
    assert result.output == City(name="Rome")
    assert len(of(chunks, "output")) == 1
    feedback = [request.messages[-1] for request in model.requests[1:]]
    assert [message.role for message in feedback] == [("tool" if way == "call" else "user")] * 2
    assert "name: Input should be a valid string" in feedback[0].content
    assert "size: Input should be a valid integer" in feedback[0].content
    assert "name: Field required" in feedback[1].content
    if way == "call":
        assert [end.error_code for end in of(chunks, "tool_end")] == ["output_invalid", "output_invalid", None]
    else:
        assert [chunk.kind for chunk in of(chunks, "message")] == ["feedback", "feedback"]


@pytest.mark.parametrize("way", ["call", "text", "words", "broken JSON"])
async def test_never_valid_fails_the_run(way: str) -> None:
    turn = {
        "call": Turn(calls=[final({"nome": "Rome"})]),
        "text": Turn(output={"nome": "Rome"}),
        "words": Turn(text="It is Rome."),
        "broken JSON": Turn(text='{"name": "Ro'),
    }[way]
    chunks, result, model = await play(Agent("a", output_type=City), turn, turn, turn)
    assert (result.status, result.error_code) == ("failed", "output_invalid")
    assert of(chunks, "output") == []
    assert len(model.requests) == 3
    assert [(chunk.code, chunk.recoverable) for chunk in of(chunks, "error")] == [("output_invalid", False)]
    with pytest.raises(RunFailed, match="output_invalid"):
        _ = result.output


async def test_how_often_it_may_be_corrected_is_a_setting() -> None:
    bad = Turn(output={"nome": "Rome"})
    _, result, _ = await play(Agent("a", output_type=City, output_retries=0), bad)
    assert result.error_code == "output_invalid"
    _, result, _ = await play(Agent("a", output_type=City, output_retries=3), bad, bad, bad, Turn(output={"name": "x"}))
    assert result.output == City(name="x")


async def test_plain_words_are_answered_with_feedback() -> None:
    agent = Agent("a", output_type=City)
    chunks, result, model = await play(agent, "It is Rome.", Turn(calls=[final({"name": "Rome"})]))
    assert result.output == City(name="Rome")
    last = model.requests[1].messages[-1]
    assert last.role == "user"
    assert "not valid JSON" in last.content
    assert OUTPUT_TOOL in last.content
    assert "".join(chunk.delta for chunk in of(chunks, "text_delta")) == "It is Rome."


async def test_a_refusal_fails_the_run() -> None:
    chunks, result, _ = await play(Agent("a", output_type=City), Turn(refusal="I cannot say that."))
    assert (result.status, result.error_code) == ("failed", "model_filtered")
    assert "I cannot say that." in (result.error or "")
    assert of(chunks, "output") == []


@pytest.mark.parametrize("way", ["call", "text"])
async def test_what_is_streamed_joined_is_the_output(way: str) -> None:
    value = {"name": 'München, "Stadt"\n' * 3, "size": 3}
    text = TypeAdapter(Any).dump_json(value).decode()
    pieces = [text[start : start + 5] for start in range(0, len(text), 5)]
    turn = Turn(calls=[final(value)]) if way == "call" else Turn(text=[" \n", *pieces])
    chunks, result, _ = await play(Agent("a", output_type=City), turn)
    deltas = of(chunks, "output_delta")
    assert len(deltas) > 3
    assert City.model_validate_json("".join(chunk.delta for chunk in deltas)) == result.output
    assert of(chunks, "text_delta") == []


@pytest.mark.parametrize("first", ["tool", "output"])
async def test_a_tool_call_beside_the_output_is_answered_first(first: str) -> None:
    ran: list[str] = []

    @tool
    async def note(text: str) -> str:
        ran.append(text)
        return "noted"

    calls = [Call("note", text="x"), final({"name": "Rome"})]
    agent = Agent("a", output_type=City, tools=[note])
    chunks, result, model = await play(agent, Turn(calls=calls if first == "tool" else calls[::-1]))
    assert result.output == City(name="Rome")
    assert ran == ["x"]
    assert len(model.requests) == 1
    kinds = [chunk.type for chunk in chunks if chunk.type in ("tool_start", "tool_end", "output")]
    assert kinds == ["tool_start", "tool_end", "output", "tool_end"]
    assert [end.tool_name for end in of(chunks, "tool_end")] == ["note", OUTPUT_TOOL]


async def test_the_output_twice_in_one_step_is_one_output() -> None:
    calls = [final({"name": "Rome"}), final({"name": "Oslo"})]
    chunks, result, _ = await play(Agent("a", output_type=City), Turn(calls=calls))
    assert result.output == City(name="Rome")
    assert [chunk.output for chunk in of(chunks, "output")] == [{"name": "Rome", "size": 0}]
    assert [end.error for end in of(chunks, "tool_end")] == [None, None]


async def test_the_output_twice_in_one_step_the_first_not_valid() -> None:
    calls = [final({"nome": "Rome"}), final({"name": "Oslo"})]
    chunks, result, _ = await play(Agent("a", output_type=City), Turn(calls=calls))
    assert result.output == City(name="Oslo")
    assert [end.error_code for end in of(chunks, "tool_end")] == ["output_invalid", None]


async def test_a_tool_that_finishes_gives_a_structured_output() -> None:
    @tool(finishes=True)
    async def give(name: str) -> dict[str, str]:
        return {"nome" if name == "bad" else "name": name}

    agent = Agent("a", output_type=City, tools=[give])
    chunks, result, model = await play(
        agent, Turn(calls=[Call("give", raw='{"name": "bad"}')]), Turn(calls=[give_it()])
    )
    assert result.output == City(name="Rome")
    assert len(of(chunks, "output")) == 1
    assert "not a valid final result" in model.requests[1].messages[-1].content


def give_it() -> Call:
    return Call("give", raw='{"name": "Rome"}')


async def test_types_without_a_schema_and_reserved_names_are_refused() -> None:
    @tool(name=OUTPUT_TOOL)
    async def taken() -> str:
        return ""

    class NoSchema: ...

    with pytest.raises(DefinitionError, match="has no JSON Schema"):
        Agent("a", output_type=NoSchema)
    with pytest.raises(DefinitionError, match="is taken by its structured output"):
        Agent("a", output_type=City, tools=[taken])
    assert Agent("a", tools=[taken]).tools == (taken,)
