"""The Responses adapter: recorded traffic through the real client, every cut, every shape of failure, whole runs."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI
from pydantic_core import from_json

import helix
from helix import Agent, ModelSettings, tool
from helix.errors import MissingKey, ModelError
from helix.limits import Usage
from helix.messages import (
    AssistantMessage,
    Message,
    RefusalPart,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from helix.model import ModelReply, OutputDefinition, ToolDefinition
from helix.models import resolve_model
from helix.models._chat import encode_message as encode_for_chat
from helix.models._responses import PROVIDER, ResponsesDecoder, encode_message
from helix.models._sse import ServerSentEvent
from helix.models.openai_responses import AzureOpenAIResponsesModel, OpenAIResponsesModel
from helix.reply import Reply
from helix.testing import check_stream
from tests import recorded
from tests.dialects import KEY, request
from tests.recorded import Recorder
from tests.replay import (
    JSON,
    Answer,
    ReplayServer,
    answer,
    serving,
    split,
)

AZURE = {"AZURE_OPENAI_API_KEY": KEY, "OPENAI_API_VERSION": "2025-04-01-preview"}


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_AD_TOKEN", *AZURE):
        monkeypatch.delenv(name, raising=False)


def model(server: ReplayServer, name: str = "gpt-5.5", **options: Any) -> OpenAIResponsesModel:
    return OpenAIResponsesModel(name, api_key=KEY, base_url=f"{server.url}/v1", **options)


def event(kind: str, **fields: Any) -> bytes:
    data = json.dumps({"type": kind, **fields}, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()


def delta(text: str, kind: str = "output_text", **fields: Any) -> bytes:
    return event(f"response.{kind}.delta", **{"output_index": 0, "content_index": 0, **fields, "delta": text})


def item(index: int = 0, at: Any = "done", **fields: Any) -> bytes:
    return event(f"response.output_item.{at}", output_index=index, item=fields)


def said(*texts: str, **fields: Any) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    return {"type": "message", "role": "assistant", "status": "completed", "content": content, **fields}


def ended(status: str = "completed", **response: Any) -> bytes:
    return event(f"response.{status}", response={"object": "response", "status": status, **response})


DONE = ended()
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "sealed-é", "status": None}


def decode(*pieces: bytes) -> tuple[Recorder, ModelReply]:
    recorder = Recorder()
    decoder = ResponsesDecoder(recorder)
    for piece in pieces:
        decoder.feed(piece)
    return recorder, decoder.end()


def message_of(*pieces: bytes) -> AssistantMessage:
    """What helix keeps of a reply."""
    reply = Reply(lambda _: None, "r", "agent", None, ())
    decoder = ResponsesDecoder(reply)
    decoder.feed(b"".join(pieces))
    decoder.end()
    return reply.finish()


def sent(message: Message) -> list[dict[str, Any]]:
    return from_json(b"[%b]" % encode_message(message))


def failure(*pieces: bytes) -> ModelError:
    with pytest.raises(ModelError) as caught:
        decode(*pieces)
    return caught.value


# --- recorded traffic --------------------------------------------------------------------------------------------


def test_an_error_in_a_recorded_stream_keeps_its_code() -> None:
    quota = failure(recorded.load("d17").exchanges[0].body)
    assert (quota.code, quota.retryable) == ("model_rate_limited", False)
    assert "insufficient_quota" in (quota.detail or "")


# --- cuts --------------------------------------------------------------------------------------------------------


def test_done_alone_does_not_complete_a_reply_and_nothing_counts_behind_its_end() -> None:
    assert failure(delta("a"), b"data: [DONE]\n\n").code == "model_stream_dropped"
    recorder, _ = decode(delta("a") + delta("b") + DONE + b"data: [DONE]\n\n" + delta("c"), delta("d"))
    assert recorder.said == "ab"


# --- what a reply may hold ---------------------------------------------------------------------------------------


def test_reasoning_is_pushed_with_its_blocks_apart() -> None:
    recorder, _ = decode(
        delta("a", "reasoning_summary_text", summary_index=0),
        delta("b", "reasoning_summary_text", summary_index=0),
        event("response.reasoning_summary_text.done", output_index=0, summary_index=0, text="ab"),
        delta("c", "reasoning_summary_text", summary_index=1),
        delta("d", "reasoning_text", output_index=1),
        delta("x", output_index=2),
        DONE,
    )
    assert (recorder.thought, recorder.said) == ("ab\n\nc\n\nd", "x")


def test_a_refusal_is_one() -> None:
    recorder, reply = decode(delta("No", "refusal"), delta(".", "refusal"), DONE)
    assert (recorder.refused, reply.finish_reason) == ("No.", "refusal")


def test_calls_are_told_apart_by_their_place() -> None:
    call = {"type": "function_call", "name": "f", "arguments": ""}
    recorder, reply = decode(
        item(1, "added", **call, call_id="a"),
        item(4, "added", **call, call_id="b"),
        delta('{"x":', "function_call_arguments", output_index=4),
        delta("{}", "function_call_arguments", output_index=1),
        delta("1}", "function_call_arguments", output_index=4),
        DONE,
    )
    assert [(c["id"], c["arguments"]) for c in recorder.calls.values()] == [("a", "{}"), ("b", '{"x":1}')]
    assert reply.finish_reason == "tool_calls"


@pytest.mark.parametrize("how", ["text.done", "item.done", "completed"])
def test_what_did_not_come_in_pieces_is_taken_whole_and_once(how: str) -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"x":1}'}
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    pieces = [item(0, **thought), item(1, **said("a", "b")), item(2, **call)]
    if how == "text.done":
        pieces = [
            event("response.reasoning_summary_text.done", output_index=0, summary_index=0, text="hm"),
            event("response.output_text.done", output_index=1, content_index=0, text="a"),
            event("response.output_text.done", output_index=1, content_index=1, text="b"),
            item(2, "added", **call),
            event("response.function_call_arguments.done", output_index=2, arguments='{"x":1}'),
            *pieces,
        ]
    last = ended(output=[thought, said("a", "b"), call])
    recorder, _ = decode(*([] if how == "completed" else pieces), last)
    assert (recorder.thought, recorder.said) == ("hm", "ab")
    assert list(recorder.calls.values()) == [{"id": "1", "name": "f", "arguments": '{"x":1}'}]


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (ended("incomplete", incomplete_details={"reason": "max_output_tokens"}), "length"),
        (ended("incomplete", incomplete_details={"reason": "content_filter"}), "filter"),
        (ended("incomplete", incomplete_details=None), "length"),
        (ended(incomplete_details={"reason": "max_output_tokens"}), "length"),
        (DONE, "stop"),
    ],
)
def test_finish_reasons(ending: bytes, reason: str) -> None:
    told = {"input_tokens": 3, "output_tokens": 4}
    assert decode(delta("x"), ending)[1] == ModelReply(reason, Usage(requests=1))  # pyright: ignore[reportArgumentType]
    spent = ending.replace(b'"object"', b'"usage":%b,"object"' % json.dumps(told).encode())
    assert decode(delta("x"), spent)[1].usage == Usage(3, 4, 7, requests=1)


def test_unknown_events_and_odd_shapes_are_ignored_and_never_a_foreign_error() -> None:
    rng = random.Random(11)
    odd: list[Any] = [None, 0, 1, True, "x", "", [], {}, [None], [[]], {"x": 1}, 1.5, said("a"), REASONING]
    kinds = [
        *("created", "queued", "output_text.delta", "output_text.done", "output_item.added", "output_item.done"),
        *("reasoning_text.delta", "function_call_arguments.delta", "function_call_arguments.done", "incomplete"),
        *("web_search_call.searching", "content_part.added", "brand_new.thing", "completed"),
    ]
    names = ["delta", "item", "output_index", "content_index", "summary_index", "response", "text", "arguments", "type"]
    for _ in range(4_000):
        fields = {name: rng.choice(odd) for name in rng.sample(names, 5)}
        fields["item"] = rng.choice([*odd, {name: rng.choice(odd) for name in ("type", "content", "call_id")}])
        fields["response"] = rng.choice([*odd, {name: rng.choice(odd) for name in ("output", "usage", "status")}])
        kind = fields.pop("type", None)
        data = {"type": f"response.{rng.choice(kinds)}" if rng.random() < 0.9 else kind, **fields}
        try:
            decode(b"data: " + json.dumps(data).encode() + b"\n\n", DONE)
        except ModelError:
            pass


def test_of_each_text_only_the_first_piece_is_parsed_however_many_texts_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[bytes] = []
    take = ResponsesDecoder._take

    def counted(decoder: ResponsesDecoder, event: ServerSentEvent) -> None:
        parsed.append(event.data)
        take(decoder, event)

    monkeypatch.setattr(ResponsesDecoder, "_take", counted)
    texts = [
        [delta(f"w{n} ", output_index=index, sequence_number=40 * index + n + 1) for n in range(40)]
        for index in range(20)
    ]
    recorder, _ = decode(*split(b"".join((*(b"".join(text) for text in texts), DONE)), "random"))
    assert recorder.said == "".join(f"w{n} " for n in range(40)) * 20
    assert len(parsed) < 20 * 3


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected", "retryable"),
    [
        ("rate_limit_exceeded", "model_rate_limited", True),
        ("insufficient_quota", "model_rate_limited", False),
        ("server_error", "model_unavailable", True),
        ("vector_store_timeout", "model_unavailable", True),
        ("invalid_prompt", "model_rejected", False),
        ("context_length_exceeded", "model_rejected", False),
        ("image_too_large", "model_rejected", False),
        ("failed_to_download_image", "model_rejected", False),
        ("data_residency_mismatch", "model_rejected", False),
        ("content_filter", "model_filtered", False),
        ("image_content_policy_violation", "model_filtered", False),
        ("bio_policy", "model_filtered", False),
        ("misalignment_policy_violation", "model_filtered", False),
        ("brand_new", "model_stream_dropped", True),
    ],
)
def test_an_error_inside_a_stream_has_the_code_that_fits(code: str, expected: str, retryable: bool) -> None:
    error = {"code": code, "message": "m"}
    shapes = [
        event("error", **error, param=None, sequence_number=2),
        event("error", error=error, sequence_number=2),
        event("error", error={**error, "type": code, "param": None}),
        ended("failed", error=error, usage=None),
        ended("cancelled", error=error),
        b"data: " + json.dumps({"error": error}).encode() + b"\n\n",
        b"event: error\ndata: " + json.dumps(error).encode() + b"\n\n",
        json.dumps({"error": error}).encode(),  # the body is no event stream
    ]
    for shape in shapes:
        raised = failure(shape, DONE) if not shape.startswith(b"{") else failure(shape)
        assert (raised.code, raised.retryable, raised.message) == (expected, retryable, "m"), shape


def test_an_error_may_be_words_only_or_nothing() -> None:
    raised = failure(b"event: error\ndata: the model is overloaded\n\n", DONE)
    assert (raised.code, raised.message) == ("model_unavailable", "the model is overloaded")
    assert failure(event("error", code=None, message="a server error"), DONE).code == "model_unavailable"
    assert "failed" in failure(ended("failed", error=None)).message
    assert failure(ended("cancelled", error=None)).code == "model_stream_dropped"


def test_usage_told_with_an_error_is_not_lost() -> None:
    told = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    assert failure(ended("failed", error={"message": "m"}, usage=told)).usage == Usage(3, 4, 7, requests=1)


# --- requests ----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_request_carries_what_was_asked_for() -> None:
    settings = ModelSettings(
        temperature=0.5,
        top_p=0.9,
        max_tokens=7,
        stop=["END"],
        seed=3,
        parallel_tool_calls=False,
        headers={"x-trace": "t"},
        extra_body={"temperature": 1, "reasoning": {"effort": "low", "summary": "auto"}},
    )
    look = ToolDefinition("look", "Look it up.", {"type": "object", "properties": {}})
    async with serving(Answer(body=DONE)) as server:
        asked = request(UserMessage("hé"), instructions="Be brief.", tools=[look], settings=settings)
        await model(server).respond(asked, Recorder())
        await model(server).respond(request(settings=ModelSettings(parallel_tool_calls=True)), Recorder())
    first, second = server.requests
    described = {"type": "function", "name": "look", "description": "Look it up.", "parameters": look.parameters}
    assert first.json == {
        "model": "gpt-5.5",
        "stream": True,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "instructions": "Be brief.",
        "temperature": 1,
        "top_p": 0.9,
        "max_output_tokens": 7,
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "summary": "auto"},
        "input": [{"role": "user", "content": "hé"}],
        "tools": [{**described, "strict": False}],
    }
    assert (first.method, first.target) == ("POST", "/v1/responses")
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert (first.headers["content-type"], first.headers["x-trace"]) == (JSON, "t")
    assert set(second.json) == {"model", "stream", "store", "include", "input"}


@pytest.mark.anyio
async def test_extra_body_goes_over_input_and_tools_too() -> None:
    extra = {"input": [], "tools": [], "model": "other", "store": True}
    settings = ModelSettings(extra_body=extra)
    async with serving(Answer(body=DONE)) as server:
        await model(server).respond(request(tools=[ToolDefinition("f", "", {})], settings=settings), Recorder())
    assert server.requests[0].body.count(b'"input"') == 1
    assert extra.items() <= server.requests[0].json.items()


@pytest.mark.anyio
async def test_structured_output_is_a_tool_or_the_providers_own_format() -> None:
    as_tool = OutputDefinition("final", "The answer.", {"type": "object"}, "tool")
    native = replace(as_tool, mode="native")
    terse = ModelSettings(extra_body={"text": {"verbosity": "low"}})
    async with serving(Answer(body=DONE)) as server:
        await model(server).respond(request(output=as_tool), Recorder())
        await model(server).respond(request(output=native, settings=terse), Recorder())
    as_tool, native = (received.json for received in server.requests)
    assert as_tool["tool_choice"] == {"type": "function", "name": "final"}
    assert [tool["name"] for tool in as_tool["tools"]] == ["final"]
    described = {"name": "final", "description": "The answer.", "schema": {"type": "object"}, "strict": False}
    assert native["text"] == {"format": {"type": "json_schema", **described}, "verbosity": "low"}
    assert {"tools", "tool_choice"}.isdisjoint(native)


@pytest.mark.parametrize(
    ("name", "given", "asked"),
    [
        ("gpt-5", None, True),
        ("o4-mini", None, True),
        ("gpt-oss-120b", None, True),
        ("gpt-4.1", None, False),
        ("gpt-5-chat-latest", None, False),
        ("ft:gpt-4o:mine", None, False),
        ("gpt-4.1", True, True),
        ("my-deployment", False, False),
    ],
)
def test_encrypted_reasoning_is_asked_of_models_that_reason(name: str, given: bool | None, asked: bool) -> None:
    plain = OpenAIResponsesModel(name, api_key=KEY, encrypted_reasoning=given)
    client = AsyncOpenAI(api_key=KEY, http_client=httpx2.AsyncClient())
    assert ("include" in from_json(plain._body(client, request()))) == asked


# --- what goes back ----------------------------------------------------------------------------------------------


def test_messages_of_any_origin_become_items() -> None:
    thinking, text, call = ThinkingPart("hm"), TextPart("a"), ToolCall("1", "f", {"x": 1})
    f = {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"x":1}'}
    assert sent(UserMessage("u")) == [{"role": "user", "content": "u"}]
    answered = {"type": "function_call_output", "call_id": "1", "output": "r"}
    assert sent(ToolMessage("1", "f", "r", is_error=True)) == [answered]
    assert sent(AssistantMessage([thinking, text, call])) == [{"role": "assistant", "content": "a"}, f]
    assert sent(AssistantMessage([call, text])) == [f, {"role": "assistant", "content": "a"}]
    assert sent(AssistantMessage([text, call], cut=True)) == [{"role": "assistant", "content": "a"}]
    assert sent(AssistantMessage([thinking])) == [{"role": "assistant", "content": ""}]
    refused = [{"type": "refusal", "refusal": "no"}]
    assert sent(AssistantMessage([RefusalPart("no")])) == [{"type": "message", "role": "assistant", "content": refused}]
    raw = sent(AssistantMessage([ToolCall("1", "f", "{not json")]))
    assert raw[0]["arguments"] == "{not json"
    foreign = {"anthropic": {"items": [{"type": "reasoning", "encrypted_content": "x"}]}}
    assert sent(AssistantMessage([text], provider_data=foreign)) == [{"role": "assistant", "content": "a"}]


def test_a_plain_reply_keeps_no_provider_data() -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    message = message_of(delta("é"), item(0, **said("é")), item(1, **call), DONE)
    assert message.provider_data is None
    assert [each.get("type") for each in sent(message)] == [None, "function_call"]


def test_sealed_items_phases_and_order_go_back_and_ids_do_not() -> None:
    call = {"type": "function_call", "id": "fc_1", "call_id": "1", "name": "f", "arguments": "{}"}
    second = {
        **REASONING,
        "id": "rs_2",
        "encrypted_content": "again",
        "summary": [{"type": "summary_text", "text": "s"}],
    }
    message = message_of(
        item(0, "added", **{**REASONING, "encrypted_content": "not yet whole"}),
        item(0, **REASONING),
        item(1, "added", **said()),
        delta("I look", output_index=1),
        item(1, **said("I look", phase="commentary", id="msg_1")),
        item(2, **call),
        item(3, type="web_search_call", id="ws_1", status="completed"),
        item(4, **second),
        item(5, **said("Done", "!", phase="final_answer", id="msg_2")),
        DONE,
    )
    assert (message.text, message.thinking) == ("I lookDone!", "s")
    assert sent(message) == [
        {"type": "reasoning", "summary": [], "encrypted_content": "sealed-é"},
        {"role": "assistant", "content": "I look", "phase": "commentary"},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "reasoning", "summary": second["summary"], "encrypted_content": "again"},
        {"role": "assistant", "content": "Done!", "phase": "final_answer"},
    ]


def test_open_reasoning_goes_back_whole() -> None:
    opened = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    message = message_of(delta("hm", "reasoning_text"), item(0, **opened), item(1, **said("a")), DONE)
    assert message.thinking == "hm"
    assert sent(message) == [opened, {"role": "assistant", "content": "a"}]
    bare = message_of(item(0, type="reasoning", id="rs_1", summary=[]), item(1, **said("a")), DONE)
    assert sent(bare) == [{"role": "assistant", "content": "a"}]


def test_an_outline_that_no_longer_fits_loses_no_word_and_no_call() -> None:
    two = item(0, **said("one", phase="commentary")), item(1, **said("two", phase="final_answer"))
    message = message_of(*two, DONE)
    message.content = [TextPart("onetwothree"), ToolCall("1", "f", {})]
    assert [each.get("content", each.get("name")) for each in sent(message)] == ["one", "two", "three", "f"]
    message.content = [TextPart("on")]
    assert [each["content"] for each in sent(message)] == ["on"]
    message.content, message.cut = [TextPart("on")], True
    assert sent(message) == [{"role": "assistant", "content": "on"}]


# --- whole runs --------------------------------------------------------------------------------------------------


async def watched(agent: Agent[Any, Any, Any], prompt: str) -> tuple[helix.RunResult[Any, Any], list[helix.Chunk]]:
    async with helix.stream(agent, prompt) as run:
        chunks = await helix.collect(run)
        result = await run.result()
    check_stream(chunks)
    return result, chunks


@tool
def get_capital(country: str) -> str:
    return {"France": "Paris", "PotatoLand": "Potato City"}[country]


@pytest.mark.anyio
async def test_reasoning_goes_only_to_the_provider_that_sealed_it() -> None:
    async with serving(*map(answer, recorded.load("d15").exchanges)) as server:
        result, _ = await watched(Agent("a", model=model(server), tools=[get_capital]), "?")
    first = result.messages[1]
    assert isinstance(first, AssistantMessage)
    assert list(first.provider_data or {}) == [PROVIDER]
    assert b"opaque" not in encode_for_chat(first)


@pytest.mark.anyio
async def test_a_cut_reply_is_tried_again_and_no_tool_runs_on_half_arguments() -> None:
    case = recorded.load("d14")
    body = case.exchanges[0].body
    cuts = [body.index(b"response.function_call_arguments.done"), body.index(b"event: response.completed")]
    answers = [*(Answer(body=body, cut=cut, ending="close") for cut in cuts), *map(answer, case.exchanges)]
    async with serving(*answers) as server:
        agent = Agent("g", model=model(server), tools=[get_capital], settings=ModelSettings(retry_delay=0))
        result, chunks = await watched(agent, "?")
    assert result.output == "The capital of France is Paris."
    assert [chunk.type for chunk in chunks].count("tool_start") == 1
    assert [chunk.attempt for chunk in chunks if chunk.type == "step_start"] == [1, 2, 3, 1]


# --- names, keys, Azure ------------------------------------------------------------------------------------------


def test_a_name_gives_its_model_and_no_text_shows_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingKey, match=r"OPENAI_API_KEY is not set.*client= to OpenAIResponsesModel"):
        resolve_model("openai-responses:gpt-5")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    named = resolve_model("openai-responses:gpt-5")
    assert isinstance(named, OpenAIResponsesModel)
    assert (named.name, repr(named)) == ("openai-responses:gpt-5", "OpenAIResponsesModel('gpt-5')")


@pytest.mark.parametrize("token", ["", "an-entra-token"])
@pytest.mark.anyio
async def test_azure_is_configured_by_its_own_variables(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    with pytest.raises(MissingKey, match="must be set in the environment for 'azure-responses:mine'"):
        resolve_model("azure-responses:mine")
    async with serving(Answer(body=delta("hi") + DONE)) as server:
        for name, value in {**AZURE, "AZURE_OPENAI_ENDPOINT": server.url, "AZURE_OPENAI_AD_TOKEN": token}.items():
            monkeypatch.setenv(name, value)
        named = resolve_model("azure-responses:mine")
        recorder = Recorder()
        await named.respond(request(), recorder)
        await AzureOpenAIResponsesModel("mine", encrypted_reasoning=False).respond(request(), Recorder())
    first, second = server.requests
    assert (named.name, recorder.said) == ("azure-responses:mine", "hi")
    assert first.target == "/openai/responses?api-version=2025-04-01-preview"
    assert first.json["model"] == "mine"
    assert first.headers.get("api-key") == (None if token else KEY)
    assert first.headers.get("authorization") == (f"Bearer {token}" if token else None)
    assert ("include" in first.json, "include" in second.json) == (True, False)


@pytest.mark.anyio
async def test_an_azure_client_is_routed_by_the_name_in_the_body() -> None:
    async with serving(Answer(body=DONE)) as server:
        for deployment in (None, "dep"):
            client = AsyncAzureOpenAI(
                azure_endpoint=server.url, api_key=KEY, api_version="v", azure_deployment=deployment
            )
            async with client:
                await OpenAIResponsesModel("mine", client=client).respond(request(), Recorder())
    assert [received.target for received in server.requests] == ["/openai/responses?api-version=v"] * 2
