"""How each provider is asked for a structured output, at first and when it is forced; strict schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import anyio
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

import helix
from helix import Agent, DefinitionError, ModelSettings, tool
from helix.model import Model, ModelProfile, OutputMode
from helix.models._openai import profile_of as openai_profile
from helix.models.anthropic import AnthropicModel
from helix.models.anthropic import profile_of as anthropic_profile
from helix.models.google import GoogleModel
from helix.models.google import profile_of as google_profile
from helix.models.openai_chat import OpenAIChatModel
from helix.models.openai_responses import OpenAIResponsesModel
from helix.schema import OutputSchema
from helix.strict import is_recursive, strict_schema
from helix.testing import check_stream
from tests.dialects import KEY, Anthropic, Called, Chat, Dialect, Google, Responses
from tests.replay import Answer, ReplayServer


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


class City(BaseModel):
    name: str
    size: int = Field(default=0, ge=0)


class Node(BaseModel):
    name: str
    below: list[Node] = []


@tool
async def note(text: str) -> str:
    """Note."""
    return text


CITY: dict[str, Any] = {
    "title": "City",
    "type": "object",
    "properties": {
        "name": {"title": "Name", "type": "string"},
        "size": {"default": 0, "minimum": 0, "title": "Size", "type": "integer"},
    },
    "required": ["name"],
}
STRICT_CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "size": {"type": "integer", "description": "(default: 0, minimum: 0)"},
    },
    "required": ["name", "size"],
    "additionalProperties": False,
}
ABOUT = "The final result. Call it once, when everything is done."
NAMED = {"name": "final_result", "description": ABOUT}


@dataclass(frozen=True)
class Wire:
    """One provider: a model of it that takes schemas for its text beside tools, and one of which that is not known.

    Of each what its requests have about the output, at first and when it is forced, and how the output tool looks.
    """

    dialect: Dialect
    knows: str
    plain: str
    make: Callable[[str, str], Model]
    native: dict[str, Any]
    native_forced: dict[str, Any]
    tool: dict[str, Any]
    tool_forced: dict[str, Any]
    output_tool: Callable[[dict[str, Any]], dict[str, Any]]
    strict_tool: dict[str, Any]
    messages: str
    tools: str


def chat_tool(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {**NAMED, "parameters": schema}}


WIRES = [
    Wire(
        Chat(),
        "gpt-4o-mini",
        "llama-4",
        lambda name, url: OpenAIChatModel(name, api_key=KEY, base_url=f"{url}/v1"),
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {**NAMED, "schema": STRICT_CITY, "strict": True},
            }
        },
        {"tool_choice": "none"},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "final_result"}}},
        chat_tool,
        {"type": "function", "function": {**NAMED, "parameters": STRICT_CITY, "strict": True}},
        "messages",
        "tools",
    ),
    Wire(
        Responses(),
        "gpt-5",
        "gpt-oss",
        lambda name, url: OpenAIResponsesModel(name, api_key=KEY, base_url=f"{url}/v1"),
        {"text": {"format": {"type": "json_schema", **NAMED, "schema": STRICT_CITY, "strict": True}}},
        {"tool_choice": "none"},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "name": "final_result"}},
        lambda schema: {"type": "function", **NAMED, "parameters": schema, "strict": False},
        {"type": "function", **NAMED, "parameters": STRICT_CITY, "strict": True},
        "input",
        "tools",
    ),
    Wire(
        Anthropic(),
        "claude-sonnet-4-5",
        "claude-3-7-sonnet-latest",
        lambda name, url: AnthropicModel(name, api_key=KEY, base_url=url, cache=False),
        {"output_config": {"format": {"type": "json_schema", "schema": STRICT_CITY}}},
        {"tool_choice": {"type": "none"}},
        {"tool_choice": {"type": "any"}},
        {"tool_choice": {"type": "tool", "name": "final_result"}},
        lambda schema: {**NAMED, "input_schema": schema},
        {**NAMED, "input_schema": STRICT_CITY, "strict": True},
        "messages",
        "tools",
    ),
    Wire(
        Google(),
        "gemini-3-pro-preview",
        "gemini-2.5-flash",
        lambda name, url: GoogleModel(name, api_key=KEY, base_url=url),
        {"generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": CITY}},
        {"toolConfig": {"functionCallingConfig": {"mode": "NONE"}}},
        {"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}},
        {"toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["final_result"]}}},
        lambda schema: {**NAMED, "parametersJsonSchema": schema},
        {**NAMED, "parametersJsonSchema": STRICT_CITY},
        "contents",
        "tools",
    ),
]
EACH = pytest.mark.parametrize("wire", WIRES, ids=[wire.dialect.name for wire in WIRES])
CHOICES = {"tool_choice", "toolConfig", "response_format", "text", "output_config", "generationConfig"}


def chosen(body: dict[str, Any]) -> dict[str, Any]:
    """What a request says of the output."""
    return {key: value for key, value in body.items() if key in CHOICES}


def offered(body: dict[str, Any]) -> list[dict[str, Any]]:
    tools = body.get("tools", [])
    return tools[0]["functionDeclarations"] if tools and "functionDeclarations" in tools[0] else tools


def in_order(data: Any) -> str:
    return json.dumps(data, sort_keys=True)


async def asked(
    wire: Wire, name: str, *replies: bytes, **options: Any
) -> tuple[list[dict[str, Any]], list[bytes], Any]:
    """The requests of a run whose model gives these replies, parsed and as bytes; and what came out."""
    arguments: dict[str, Any] = {"output_type": City, "tools": [note], **options}
    agent: Agent[Any] = Agent("a", **arguments)
    with anyio.fail_after(20), ReplayServer([Answer(body=reply) for reply in replies]) as server:
        async with helix.stream(agent, "go", model=wire.make(name, server.url)) as run:
            chunks = await helix.collect(run)
            result = await run.result()
        check_stream(chunks)
        written = "".join(chunk.delta for chunk in chunks if chunk.type == "output_delta")
        assert City.model_validate_json(written) == result.output
        return [each.json for each in server.requests], [each.body for each in server.requests], result.output


def part(body: bytes, key: str) -> bytes:
    """The bytes of a list in a request, without its last bracket."""
    start = body.index(b'"%b":[' % key.encode())
    value = json.loads(body)[key]
    for stop in (found.end() for found in re.finditer(rb"\]", body[start:])):
        try:
            if json.loads(body[start + len(key) + 3 : start + stop]) == value:
                return body[start : start + stop - 1]
        except ValueError:
            continue
    raise AssertionError(key)


@pytest.mark.anyio
@EACH
async def test_the_providers_own_format_where_it_goes_together_with_tools(wire: Wire) -> None:
    said = wire.dialect.said
    (first, forced), bodies, output = await asked(
        wire, wire.knows, said("It is Rome."), said('{"name": "Rome", "size": 3}')
    )
    assert output == City(name="Rome", size=3)
    assert chosen(first) == wire.native
    assert chosen(forced) == {**wire.native, **wire.native_forced}
    assert len(offered(first)) == 1
    assert part(bodies[0], wire.tools) == part(bodies[1], wire.tools)
    assert part(bodies[1], wire.messages).startswith(part(bodies[0], wire.messages) + b",")


@pytest.mark.anyio
@EACH
async def test_the_output_tool_of_models_that_are_not_known(wire: Wire) -> None:
    called = wire.dialect.called(Called("c1", "final_result", '{"name": "Rome"}'))
    (first, forced), bodies, output = await asked(wire, wire.plain, wire.dialect.said("It is Rome."), called)
    assert output == City(name="Rome")
    assert (chosen(first), chosen(forced)) == (wire.tool, wire.tool_forced)
    assert offered(first)[1] == wire.output_tool(CITY)
    assert part(bodies[0], wire.tools) == part(bodies[1], wire.tools)
    assert part(bodies[1], wire.messages).startswith(part(bodies[0], wire.messages) + b",")


@pytest.mark.anyio
@EACH
async def test_the_mode_and_strictness_can_be_told(wire: Wire) -> None:
    called, said = (
        wire.dialect.called(Called("c1", "final_result", '{"name": "R"}')),
        wire.dialect.said('{"name": "R"}'),
    )
    [as_tool], _, _ = await asked(wire, wire.knows, called, output_mode="tool", output_strict=True)
    assert (chosen(as_tool), offered(as_tool)[1]) == (wire.tool, wire.strict_tool)
    [strict], _, _ = await asked(wire, wire.plain, said, output_mode="native", output_strict=True, tools=[])
    [native], _, _ = await asked(wire, wire.plain, said, output_mode="native", tools=[])
    assert "tools" not in native
    assert in_order(CITY) in in_order(native)
    assert in_order(STRICT_CITY) in in_order(strict)
    assert chosen(native).keys() == chosen(strict).keys() == wire.native.keys()
    [alone], _, _ = await asked(wire, wire.plain, called, tools=[])
    assert chosen(alone) == wire.tool_forced


@pytest.mark.anyio
async def test_a_model_that_cannot_be_forced_is_left_to_choose() -> None:
    profile = ModelProfile(forced_calls=False)
    dialect = Chat()
    wire = WIRES[0]
    called = dialect.called(Called("c1", "final_result", '{"name": "Rome"}'))
    free = replace(
        wire, make=lambda name, url: OpenAIChatModel(name, api_key=KEY, base_url=f"{url}/v1", profile=profile)
    )
    requests, _, _ = await asked(free, "gpt-5", dialect.said("Rome"), called)
    assert [chosen(request) for request in requests] == [{}, {}]


@pytest.mark.anyio
async def test_an_effort_stands_beside_anthropics_format() -> None:
    reply = WIRES[2].dialect.said('{"name": "Rome", "size": 1}')
    settings = ModelSettings(reasoning_effort="low", extra_body={"output_config": {"more": 1}})
    [asked_for], _, _ = await asked(WIRES[2], "claude-opus-4-7", reply, settings=settings)
    assert asked_for["output_config"] == {**WIRES[2].native["output_config"], "effort": "low", "more": 1}


@pytest.mark.anyio
async def test_what_anthropic_cannot_hold_a_model_to_is_a_tool() -> None:
    wire = WIRES[2]
    reply = wire.dialect.called(Called("c1", "final_result", '{"name": "R", "below": []}'))
    agents: list[Agent[Any]] = [
        Agent("a", tools=[note], output_type=Node),
        Agent("a", tools=[note], output_type=dict[str, Any]),
        Agent("a", tools=[note], output_type=City, output_strict=False),
    ]
    for agent in agents:
        with anyio.fail_after(20), ReplayServer([Answer(body=reply)]) as server:
            await helix.run(agent, "go", model=wire.make(wire.knows, server.url))
        assert chosen(server.requests[0].json) == wire.tool
        assert "strict" not in server.requests[0].json["tools"][1]


def test_what_models_can_do_is_known_by_their_names() -> None:
    both = ModelProfile(native_output=True, strict_output=True)
    for name in ("gpt-4o", "gpt-4o-mini-2024-07-18", "gpt-4.1-nano", "gpt-5.5", "o3-mini", "ft:gpt-4o-mini:mine"):
        assert openai_profile(name) == both
    for name in ("gpt-4", "gpt-4-turbo", "gpt-3.5-turbo", "gpt-4o-2024-05-13", "o1-mini", "llama-4", "my-deployment"):
        assert openai_profile(name) == ModelProfile()
    for name in ("claude-sonnet-4-5-20250929", "claude-haiku-4-5", "claude-opus-4-6"):
        assert anthropic_profile(name).native_output
    for name in ("claude-sonnet-4-20250514", "claude-opus-4-1", "claude-3-5-haiku-latest", "claude-next"):
        assert not anthropic_profile(name).native_output
    assert google_profile("gemini-3-flash").native_output
    assert not google_profile("gemini-2.5-pro").native_output


# --- strict schemas


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Box(BaseModel):
    """A box."""

    pet: Annotated[Cat | Dog, Field(discriminator="kind", description="who is in it")]
    at: Annotated[str, Field(json_schema_extra={"format": "date"})]
    code: Annotated[str, Field(pattern="^x", max_length=3)] | None = None


class Part(TypedDict, total=False):
    name: str


ALLOWED = {"type", "properties", "required", "additionalProperties", "items", "anyOf", "$ref", "$defs", "enum", "const"}


def assert_strict(schema: Any) -> None:
    assert set(schema) <= ALLOWED | {"description", "format"}
    if "$ref" in schema:
        assert set(schema) == {"$ref"}
    if schema.get("type") == "object":
        assert schema["additionalProperties"] is False
        assert schema["required"] == [*schema["properties"]]
    below = [*schema.get("properties", {}).values(), *schema.get("anyOf", []), *schema.get("$defs", {}).values()]
    for each in [*below, *([schema["items"]] if "items" in schema else [])]:
        assert_strict(each)


@pytest.mark.parametrize(
    "output_type", [City, Node, Box, Part, list[Box], int, City | None, Literal["a", "b"], list[Node]]
)
def test_a_strict_schema_is_closed_and_demands_all(output_type: Any) -> None:
    assert_strict(strict_schema(OutputSchema(output_type).json_schema))


def test_what_a_strict_schema_cannot_say_stands_in_its_descriptions() -> None:
    schema = strict_schema(OutputSchema(Box).json_schema)
    assert schema["description"] == "A box."
    assert schema["properties"] == {
        "pet": {"anyOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}], "description": "who is in it"},
        "at": {"type": "string", "format": "date"},
        "code": {
            "anyOf": [{"type": "string", "description": '(maxLength: 3, pattern: "^x")'}, {"type": "null"}],
        },
    }


@pytest.mark.parametrize(
    ("output_type", "problem"),
    [
        (dict[str, int], "the type is a mapping with any keys"),
        (Open, "the type is a mapping with any keys"),
        (list[Open], "Open is a mapping with any keys"),
        (tuple[int, str], "result is an array of no one type"),
        (list[Any], r"result\[\] is of no one type"),
        (Literal["a", 1], "result is of no one type"),
    ],
)
def test_a_type_that_cannot_be_strict_says_so_only_where_that_is_demanded(output_type: Any, problem: str) -> None:
    definition = Agent("a", output_type=output_type).output_definition
    assert definition is not None
    assert definition.strict_schema is None
    with pytest.raises(DefinitionError, match=rf"agent 'a': output_strict=True cannot be kept: {problem}"):
        Agent("a", output_type=output_type, output_strict=True)


def test_recursion_is_found_at_any_depth() -> None:
    assert is_recursive(OutputSchema(Node).json_schema)
    assert is_recursive(OutputSchema(list[Node] | None).json_schema)
    assert not is_recursive(OutputSchema(list[Box]).json_schema)
    assert not is_recursive(TypeAdapter(int).json_schema())


def test_an_unknown_mode_is_refused() -> None:
    mode: Any = "nativ"
    with pytest.raises(DefinitionError, match=r"no output_mode='nativ'. Did you mean 'native'?"):
        Agent("a", output_type=City, output_mode=mode)
    modes: tuple[OutputMode, ...] = ("auto", "tool", "native")
    assert [Agent("a", output_type=City, output_mode=each).output_mode for each in modes] == [*modes]
