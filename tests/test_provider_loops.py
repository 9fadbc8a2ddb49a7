"""Whole agent loops over recorded provider traffic: the real client, a real HTTP server, the whole of helix."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from pydantic import BaseModel

import helix
from helix import Agent, ModelSettings, RunFailed, tool
from helix.models.openai_chat import OpenAIChatModel
from helix.testing import check_stream
from tests import recorded
from tests.replay import CHUNKINGS, Answer, Chunking, ReplayServer, answer

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


def model(server: ReplayServer) -> OpenAIChatModel:
    return OpenAIChatModel("gpt-4o-mini", api_key="sk-recorded-key", base_url=f"{server.url}/v1")


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
