"""Whole agent loops over recorded provider traffic: the real client, a real HTTP server, the whole of helix.

Every case of several exchanges is in `LOOPS`, and runs there; or in `NO_LOOPS`, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import anyio
import pytest
from pydantic import BaseModel

import helix
from helix import Agent, ModelSettings, RunFailed, tool
from helix.models.openai_chat import OpenAIChatModel
from helix.models.openai_responses import OpenAIResponsesModel
from helix.testing import check_stream
from tests import recorded
from tests.replay import CHUNKINGS, Answer, Chunking, ReplayServer, answer, serving

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


def model(server: ReplayServer) -> OpenAIChatModel:
    return OpenAIChatModel("gpt-4o-mini", api_key="sk-recorded-key", base_url=f"{server.url}/v1")


def responses(server: ReplayServer, name: str = "gpt-5.5") -> OpenAIResponsesModel:
    return OpenAIResponsesModel(name, api_key="sk-recorded-key", base_url=f"{server.url}/v1")


async def watched(agent: Agent[Any, Any, Any], prompt: str) -> tuple[helix.RunResult[Any, Any], list[helix.Chunk]]:
    async with helix.stream(agent, prompt) as run:
        chunks = await helix.collect(run)
        result = await run.result()
    check_stream(chunks)
    return result, chunks


def conversation(request: dict[str, Any]) -> list[dict[str, Any]]:
    """A request's messages; `content: null` may stand in a call's message or be left out."""
    return [{key: value for key, value in message.items() if value is not None} for message in request["messages"]]


@tool
def get_capital(country: str) -> str:
    return "London"


@pytest.mark.parametrize("chunking", CHUNKINGS)
async def test_d05_a_tool_call_and_then_the_answer(chunking: Chunking) -> None:
    case = recorded.load("d05")
    answers = [answer(exchange, chunking=chunking) for exchange in case.exchanges]
    with anyio.fail_after(20), ReplayServer(answers) as server:
        agent = Agent("geographer", model=model(server), tools=[get_capital])
        result, chunks = await watched(agent, "What is the capital of the UK? Use the tool, then answer.")
    assert result.output == "The capital of the UK is London."
    assert (result.usage.input_tokens, result.usage.output_tokens, result.usage.requests) == (131, 24, 2)
    assert [chunk.arguments for chunk in chunks if chunk.type == "tool_start"] == [{"country": "UK"}]
    for received, exchange in zip(server.requests, case.exchanges, strict=True):
        assert conversation(received.json) == conversation((exchange.request or {})["json"])


class Label(BaseModel):
    label: str
    answer: str


class Answers(BaseModel):
    answers: list[Label]


async def test_d06_parallel_calls_another_one_and_a_structured_result() -> None:
    case = recorded.load("d06")
    both = anyio.Event()
    running = 0

    async def together(result: str) -> str:
        nonlocal running
        running += 1
        if running == 2:
            both.set()
        await both.wait()  # neither returns before the other has begun
        return result

    @tool
    async def get_country() -> str:
        return await together("Mexico")

    @tool
    async def get_product_name() -> str:
        return await together("Pydantic AI")

    @tool
    def get_weather(city: str) -> str:
        assert city == "Mexico City"
        return "sunny"

    with anyio.fail_after(20), ReplayServer([answer(exchange) for exchange in case.exchanges]) as server:
        tools = [get_weather, get_country, get_product_name]
        agent = Agent("reporter", model=model(server), output_type=Answers, output_mode="tool", tools=tools)
        prompt = "Tell me: the capital of the country; the weather there; the product name"
        result, chunks = await watched(agent, prompt)
    assert [item.label for item in result.output.answers] == ["Capital", "Weather", "Product Name"]
    assert result.usage.total_tokens == 404 + 438 + 510
    assert result.finish_reason == "output"
    written = "".join(chunk.delta for chunk in chunks if chunk.type == "output_delta")
    assert Answers.model_validate_json(written) == result.output
    for received, exchange in zip(server.requests, case.exchanges, strict=True):
        assert conversation(received.json) == conversation((exchange.request or {})["json"])
        assert received.json["tool_choice"] == "required"


async def test_d11_an_error_in_mid_stream_is_an_attempt_that_left_nothing_behind() -> None:
    broken, *_ = recorded.load("d11").exchanges
    good = recorded.load("d01").exchanges[0]
    with anyio.fail_after(20), ReplayServer([answer(broken), answer(good)]) as server:
        agent = Agent("caller", model=model(server), settings=ModelSettings(retry_delay=0))
        async with helix.stream(agent, "go") as run:
            chunks = await helix.collect(run)
            result = await run.result()
    check_stream(chunks)
    errors = [chunk for chunk in chunks if chunk.type == "error"]
    assert [error.code for error in errors] == ["model_rejected"]
    assert "Tool call validation failed" in errors[0].error
    assert result.status == "failed"
    assert [type(message).__name__ for message in result.messages] == ["UserMessage"]


async def test_d09_a_missing_model_fails_the_run_with_the_providers_words() -> None:
    missing = answer(recorded.load("d09").exchanges[0])
    refused = pytest.raises(RunFailed, match="does not exist or you do not have access")
    with anyio.fail_after(20), ReplayServer(missing) as server, refused as failure:
        await helix.run(Agent("a", model=model(server)), "Say this is a test")
    assert failure.value.result.error_code == "model_rejected"
    assert len(server.requests) == 1
    assert "sk-recorded-key" not in f"{failure.value!r} {failure.value} {failure.value.result!r}"


@pytest.mark.parametrize("cut", [10, 700, 1500, 2500, 3100, 3200])
async def test_a_cut_reply_is_tried_again_and_no_tool_runs_on_half_arguments(cut: int) -> None:
    case = recorded.load("d05")
    ran: list[str] = []

    @tool(name="get_capital")
    def counted(country: str) -> str:
        ran.append(country)
        return "London"

    body = answer(case.exchanges[0]).body
    assert cut < len(body)
    answers = [Answer(body=body, cut=cut, ending="close"), *(answer(exchange) for exchange in case.exchanges)]
    with anyio.fail_after(20), ReplayServer(answers) as server:
        agent = Agent("g", model=model(server), tools=[counted], settings=ModelSettings(retry_delay=0))
        result, chunks = await watched(agent, "?")
    assert result.output == "The capital of the UK is London."
    assert ran == ["UK"]
    assert [chunk.recoverable for chunk in chunks if chunk.type == "error"] == [True]
    assert [chunk.attempt for chunk in chunks if chunk.type == "step_start"] == [1, 2, 1]


async def test_cancelling_the_run_closes_the_providers_connection_and_keeps_the_text_so_far() -> None:
    body = recorded.load("d01").exchanges[0].body
    with anyio.fail_after(20), ReplayServer(Answer(body=body, cut=len(body) // 2, ending="hold")) as server:
        async with helix.stream(Agent("a", model=model(server)), "?") as run:
            said = ""
            async for piece in helix.text(run):
                said += piece
                if len(said) > 20:
                    break
            await run.cancel()
            result = await run.result()
            chunks = await helix.collect(run.handle.stream())
        await anyio.to_thread.run_sync(server.disconnected.wait, 5)
        assert server.disconnected.is_set()
    check_stream(chunks)
    assert result.status == "cancelled"
    last = result.messages[-1]
    assert isinstance(last, helix.AssistantMessage)
    assert last.cut
    assert last.text.startswith(said)


# --- the Responses API


@tool(name="get_capital")
def capital(country: str) -> str:
    return {"France": "Paris", "PotatoLand": "Potato City"}[country]


def items_of(request: dict[str, Any]) -> list[dict[str, Any]]:
    """A request's input without what only a storing provider wants: ids, states; and texts in their short form."""
    items: list[dict[str, Any]] = []
    for each in request["input"]:
        each = {name: value for name, value in each.items() if name not in ("id", "status")}
        if each.get("type") == "message":
            each = {name: value for name, value in each.items() if name != "type"}
            each["content"] = "".join(part["text"] for part in each["content"])
        items.append(each)
    return items


def requests_of(case: str) -> list[dict[str, Any]]:
    return [(exchange.request or {})["json"] for exchange in recorded.load(case).exchanges]


def inputs(server: ReplayServer) -> list[bytes]:
    """The bytes of each request's input."""
    bodies = [received.body.partition(b'"input":[')[2] for received in server.requests]
    return [body.rpartition(b'],"tools":')[0] or body.removesuffix(b"]}") for body in bodies]


def check_prefixes(bodies: list[bytes]) -> None:
    """What was sent once is sent again byte for byte, with more behind it."""
    for before, after in pairwise(bodies):
        assert after.startswith(before + b",")


@pytest.mark.parametrize("chunking", CHUNKINGS)
async def test_d14_a_tool_call_and_then_the_answer(chunking: Chunking) -> None:
    async with serving(*(answer(e, chunking=chunking) for e in recorded.load("d14").exchanges)) as server:
        agent = Agent("geographer", model=responses(server, "gpt-4o"), tools=[capital])
        result, chunks = await watched(agent, "What is the capital of France?")
    assert result.output == "The capital of France is Paris."
    assert (result.usage.total_tokens, result.usage.requests) == (271 + 287, 2)
    assert [chunk.arguments for chunk in chunks if chunk.type == "tool_start"] == [{"country": "France"}]
    asked, answered = (received.json["input"] for received in server.requests)
    assert asked == items_of(requests_of("d14")[0])
    for each in answered[1:]:  # the recording gave the call its item's id, which is another
        assert each.pop("call_id") == "call_kL0PCQV7M2WMoVX8V8OtYSAL"
    recorded_items = items_of(requests_of("d14")[1])
    assert answered == [{k: v for k, v in each.items() if k != "call_id"} for each in recorded_items]
    check_prefixes(inputs(server))


async def test_d15_reasoning_and_phases_go_back_as_they_came() -> None:
    instructions = "Briefly narrate what you are about to do before calling each tool."
    async with serving(*(answer(e, chunking="random") for e in recorded.load("d15").exchanges)) as server:
        agent = Agent("narrator", instructions=instructions, model=responses(server), tools=[capital])
        result, chunks = await watched(agent, "What is the capital of PotatoLand?")
    assert result.output == "The capital of PotatoLand is **Potato City**."
    assert result.usage.reasoning_tokens == 26
    assert "".join(c.delta for c in chunks if c.type == "text_delta").startswith("I’ll check the capital")
    wanted = requests_of("d15")
    for received, told in zip(server.requests, wanted, strict=True):
        assert (received.json["include"], received.json["instructions"]) == (told["include"], instructions)
        assert received.json["store"] is False
    told = items_of(wanted[1])
    told[1]["content"] = []  # the recording's client left the empty list out, and made the quotes straight
    told[2]["content"] = "I’ll check the capital lookup tool for “PotatoLand.”"
    assert server.requests[1].json["input"] == told
    assert b'"encrypted_content":"opaque-df94d460fda0c3301904b88a"' in server.requests[1].body
    assert b"opaque-251b0d0fbc943b1f98e77899" not in server.requests[1].body  # of the item when it was not yet whole
    check_prefixes(inputs(server))


class Nothing(BaseModel):
    """A hand-off's input: the recorded routers say nothing to whom they call."""


@tool
def analyze_data(data_request: str) -> str:
    """Analyze the requested data patterns."""
    return f"Analyzed data patterns for: {data_request}"


@tool
def process_results(analysis_data: str) -> str:
    """Process the analysis results."""
    return f"Processed results: {analysis_data}"


@tool
def generate_report(processed_data: str) -> str:
    """Generate a final report from the processed data."""
    return f"Generated report: {processed_data}"


@tool
def compose_music(style: str, key: str) -> str:
    """Compose music in the specified style and key."""
    return f"Composed a beautiful {style} piece in {key} major"


class Handoff(NamedTuple):
    """A recorded run in which a router handed over to a second agent."""

    case: str
    prompt: str
    child: str
    tools: list[Any]


HANDOFFS = [
    Handoff(
        "d18",
        "Can you analyze the sales data from last quarter and generate a report?",
        "analytics_agent",
        [analyze_data, process_results, generate_report],
    ),
    Handoff("d19", "Can you create a new symphony in D major?", "symphony_composer", [compose_music]),
]


def router(handoff: Handoff, server: ReplayServer) -> Agent[Any, Any, Any]:
    """The recorded agents, the hand-off being a delegation."""
    first, second, *_ = requests_of(handoff.case)
    spoken = responses(server, "gpt-4o")
    child = Agent(handoff.child, instructions=second["instructions"], model=spoken, tools=handoff.tools)
    transfer = child.as_tool(
        name=first["tools"][0]["name"],
        description=first["tools"][0]["description"],
        input_type=Nothing,
        prompt=lambda _: handoff.prompt,
    )
    return Agent("router", instructions=first["instructions"], model=spoken, sub_agents=[transfer])


@pytest.mark.parametrize("chunking", ["whole", "lines", "random"])
@pytest.mark.parametrize("handoff", HANDOFFS, ids=lambda handoff: handoff.case)
async def test_a_recorded_hand_off_runs_as_a_delegation(handoff: Handoff, chunking: Chunking) -> None:
    exchanges = recorded.load(handoff.case).exchanges
    answers = [answer(exchange, chunking=chunking, seed=7) for exchange in exchanges]
    async with serving(*answers) as server:  # the router's closing word is the child's again
        result, chunks = await watched(router(handoff, server), handoff.prompt)
    assert result.output == exchanges[-1].expected["text"]
    totals = [exchange.expected["usage"]["total_tokens"] for exchange in exchanges]
    assert result.usage.total_tokens == sum(totals) + totals[-1]
    child_id = next(chunk.agent_id for chunk in chunks if chunk.type == "tool_start" and chunk.agent_type != "router")
    assert result.usage_by_agent[child_id].total_tokens == sum(totals[1:])
    said = "".join(chunk.delta for chunk in chunks if chunk.type == "text_delta" and chunk.agent_id == child_id)
    assert said == exchanges[-1].expected["text"]
    started = [chunk.tool_name for chunk in chunks if chunk.type == "tool_start"]
    assert started == [call["name"] for exchange in exchanges for call in exchange.expected["tool_calls"]]


@pytest.mark.parametrize("handoff", HANDOFFS, ids=lambda handoff: handoff.case)
async def test_a_recorded_hand_off_is_asked_as_it_was_recorded(handoff: Handoff) -> None:
    async with serving(*map(answer, recorded.load(handoff.case).exchanges)) as server:
        result, _ = await watched(router(handoff, server), handoff.prompt)
    wanted = requests_of(handoff.case)
    first, *of_child, last = server.requests
    assert items_of(first.json) == items_of(wanted[0])
    for received, told in zip(of_child, wanted[1:], strict=True):
        asked, recorded_items = items_of(received.json), items_of(told)
        assert asked == recorded_items[:1] + recorded_items[3:]  # without the router's call, which is not the child's
        assert received.json["instructions"] == told["instructions"]
        assert [(t["name"], t["description"]) for t in received.json["tools"]] == [
            (t["name"], t["description"]) for t in told["tools"]
        ]
    call, answered = last.json["input"][1:]
    assert call["call_id"] == answered["call_id"] == items_of(wanted[1])[1]["call_id"]
    assert answered["output"] == result.output
    bodies = inputs(server)
    check_prefixes(bodies[1:-1])
    check_prefixes([bodies[0], bodies[-1]])


async def test_d17_a_failed_response_fails_the_run_with_the_providers_words() -> None:
    refused = pytest.raises(helix.RunFailed, match="You exceeded your current quota")
    async with serving(answer(recorded.load("d17").exchanges[0])) as server:
        with refused as failed:
            await helix.run(Agent("a", model=responses(server)), "hi")
    assert failed.value.result.error_code == "model_rate_limited"
    assert len(server.requests) == 1
    assert "sk-recorded-key" not in f"{failed.value!r} {failed.value.result!r}"


# --- every conversation that was recorded


@tool
def get_country() -> str:
    return "Mexico"


@tool
def get_product_name() -> str:
    return "Pydantic AI"


@tool
def get_weather(city: str) -> str:
    return "sunny"


class Loop(NamedTuple):
    """A recorded conversation's agent. `says_again`: of a hand-off, the router's closing word is the child's again."""

    prompt: str
    agent: Callable[[ReplayServer], Agent[Any, Any, Any]]
    says_again: bool = False


REPORT: dict[str, Any] = {"output_type": Answers, "output_mode": "tool"}
LOOPS = {
    "d05": Loop("?", lambda server: Agent("a", model=model(server), tools=[get_capital])),
    "d06": Loop(
        "?",
        lambda server: Agent("a", model=model(server), tools=[get_weather, get_country, get_product_name], **REPORT),
    ),
    "d14": Loop("?", lambda server: Agent("a", model=responses(server), tools=[capital])),
    "d15": Loop("?", lambda server: Agent("a", model=responses(server), tools=[capital])),
    "d18": Loop(HANDOFFS[0].prompt, lambda server: router(HANDOFFS[0], server), says_again=True),
    "d19": Loop(HANDOFFS[1].prompt, lambda server: router(HANDOFFS[1], server), says_again=True),
}
NO_LOOPS = {
    "d11": "a rejected call, and what another client made of it: the run fails, as a test above shows",
    "d16": "a background response and the same one fetched again: helix asks in the foreground",
}


def test_every_recorded_conversation_is_a_loop() -> None:
    several = {case.id[:3] for case in recorded.cases() if len(case.exchanges) > 1}
    assert several == LOOPS.keys() | NO_LOOPS.keys()


@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize("case", LOOPS)
async def test_a_recorded_conversation_runs_to_its_end(case: str, chunking: Chunking) -> None:
    loop, exchanges = LOOPS[case], list(recorded.load(case).exchanges)
    exchanges += exchanges[-1:] * loop.says_again
    async with serving(*(answer(exchange, chunking=chunking, seed=7) for exchange in exchanges)) as server:
        result, chunks = await watched(loop.agent(server), loop.prompt)
    assert result.status == "completed"
    assert len(server.requests) == len(exchanges)
    assert result.usage.total_tokens == sum(exchange.expected["usage"]["total_tokens"] for exchange in exchanges)
    replies = [exchange.expected.get("choices", {"0": exchange.expected})["0"] for exchange in exchanges]
    assert "".join(c.delta for c in chunks if c.type == "text_delta") == "".join(reply["text"] for reply in replies)
    made = [(call["name"], json.loads(call["arguments"])) for reply in replies for call in reply["tool_calls"]]
    ran = [(chunk.tool_name, chunk.arguments) for chunk in chunks if chunk.type == "tool_start"]
    output = [] if isinstance(result.output, str) else [("final_result", result.output.model_dump())]
    assert sorted([*ran, *output], key=str) == sorted(made, key=str)
