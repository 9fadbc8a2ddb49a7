"""The chat completions adapter: recorded traffic through the real client, every cut, every dialect, every failure."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI
from pydantic_core import from_json

from helix.errors import MissingKey, ModelError
from helix.limits import Usage
from helix.messages import (
    AssistantMessage,
    RefusalPart,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from helix.model import History, ModelReply, ModelSettings, OutputDefinition, ToolDefinition
from helix.models._chat import ChatDecoder, encode_message
from helix.models._lines import HttpxLine
from helix.models.openai_chat import OpenAIChatModel
from tests import recorded
from tests.dialects import KEY, request
from tests.recorded import Recorder
from tests.replay import (
    JSON,
    Answer,
    ReplayServer,
    serving,
)

DONE = b"data: [DONE]\n\n"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)


def model(server: ReplayServer, **options: Any) -> OpenAIChatModel:
    return OpenAIChatModel("gpt-x", api_key=KEY, base_url=f"{server.url}/v1", **options)


def event(**chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def delta(index: int = 0, finish_reason: str | None = None, **delta: Any) -> bytes:
    return event(choices=[{"index": index, "delta": delta, "finish_reason": finish_reason}])


def call(**fragment: Any) -> dict[str, Any]:
    names = {name: fragment.pop(name) for name in ("name", "arguments") if name in fragment}
    return {**fragment, "function": names}


def decode(*pieces: bytes, choice: int = 0) -> tuple[Recorder, ModelReply]:
    recorder = Recorder()
    decoder = ChatDecoder(recorder, choice=choice)
    for piece in pieces:
        decoder.feed(piece)
    return recorder, decoder.end()


def failure(*pieces: bytes) -> ModelError:
    with pytest.raises(ModelError) as caught:
        decode(*pieces)
    return caught.value


# --- recorded traffic --------------------------------------------------------------------------------------------


def test_errors_in_recorded_streams_keep_the_words_the_code_and_the_usage() -> None:
    openrouter = failure(recorded.load("d10").exchanges[0].body)
    assert (openrouter.code, openrouter.retryable, openrouter.message) == (
        "model_rejected",
        False,
        "Token limit reached",
    )
    assert openrouter.usage == Usage(43, 10, 53, 0, 11, requests=1, cost=0.0)
    groq = failure(recorded.load("d11").exchanges[0].body)
    assert (groq.code, groq.retryable, groq.usage) == ("model_rejected", False, None)
    assert groq.detail is not None
    assert "tool_use_failed" in groq.detail


# --- cuts --------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_compressed_stream_is_read_and_its_cut_is_an_error() -> None:
    body = gzip.compress(recorded.load("d01").exchanges[0].body)
    compressed = Answer(body=body, headers={"content-encoding": "gzip"}, chunking="random")
    cut = replace(compressed, cut=len(body) // 2)
    async with serving(compressed, cut) as server:
        recorder = Recorder()
        assert (await model(server).respond(request(), recorder)).usage.total_tokens == 44
        assert recorder.said.startswith("I'm unable")
        with pytest.raises(ModelError) as caught:
            await model(server).respond(request(), Recorder())
    assert caught.value.code == "model_stream_dropped"


# --- dialects ----------------------------------------------------------------------------------------------------


def test_of_several_names_for_reasoning_the_first_counts() -> None:
    details = [{"text": "c"}, {"type": "reasoning.encrypted", "data": "x"}, {"text": "d"}]
    recorder, _ = decode(
        delta(reasoning_content="a", reasoning="A", reasoning_details=details),
        delta(reasoning_content=None, reasoning="b", reasoning_details=details),
        delta(reasoning_content="", reasoning=None, reasoning_details=details),
        DONE,
    )
    assert recorder.thought == "abcd"


def test_content_may_be_a_list_of_parts() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    recorder, _ = decode(delta(content=[thinking]), delta(content=[{"type": "text", "text": "ok"}]), DONE)
    assert (recorder.thought, recorder.said) == ("hm", "ok")


def test_calls_may_come_without_index_with_late_ids_and_with_arguments_as_an_object() -> None:
    recorder, reply = decode(
        delta(tool_calls=[call(name="a", arguments={"x": [1]}), call(name="b")]),
        delta(tool_calls=[call(id="1"), call(id="2", arguments="{}")]),
        DONE,
    )
    assert list(recorder.calls.values()) == [
        {"id": "1", "name": "a", "arguments": '{"x":[1]}'},
        {"id": "2", "name": "b", "arguments": "{}"},
    ]
    assert reply.finish_reason == "tool_calls"


def test_another_id_with_a_name_begins_another_call_even_at_the_same_index() -> None:
    recorder, _ = decode(
        delta(tool_calls=[call(index=0, id="1", name="a", arguments="{}")]),
        delta(tool_calls=[call(index=0, id="2", name="b", arguments="{")]),
        delta(tool_calls=[call(index=0, id="2", name="b", arguments="}")]),
        delta(tool_calls=[call(index=0, id="", name="", arguments=" ")]),
        DONE,
    )
    assert [(c["id"], c["arguments"]) for c in recorder.calls.values()] == [("1", "{}"), ("2", "{} ")]


def test_calls_at_other_indexes_are_told_apart_even_with_the_same_id() -> None:
    recorder, _ = decode(
        delta(tool_calls=[call(index=3, id="x", name="a"), call(index=1, id="x", name="b")]),
        delta(tool_calls=[call(index=3, arguments="3"), call(index=1, arguments="1")]),
        DONE,
    )
    assert [(c["name"], c["arguments"]) for c in recorder.calls.values()] == [("a", "3"), ("b", "1")]


def test_the_elder_function_call_is_a_call() -> None:
    recorder, reply = decode(
        delta(function_call={"name": "f", "arguments": "{"}),
        delta(function_call={"arguments": "}"}, finish_reason="function_call"),
        DONE,
    )
    assert list(recorder.calls.values()) == [{"id": None, "name": "f", "arguments": "{}"}]
    assert reply.finish_reason == "tool_calls"


def test_extra_content_of_a_call_goes_back_with_it() -> None:
    signature = {"google": {"thought_signature": "abc"}}
    recorder, _ = decode(delta(tool_calls=[call(index=0, id="1", name="a") | {"extra_content": signature}]), DONE)
    assert recorder.data == [("openai", {"extra_content": signature}, "part")]
    sent = from_json(
        encode_message(AssistantMessage([ToolCall("1", "a", {}, provider_data={"openai": recorder.data[0][1]})]))
    )
    assert sent["tool_calls"][0]["extra_content"] == signature


@pytest.mark.parametrize(
    ("said", "reason", "expected"),
    [
        ({}, "stop", "stop"),
        ({}, None, "stop"),
        ({}, "eos", "stop"),
        ({}, "length", "length"),
        ({}, "content_filter", "filter"),
        ({"refusal": "no"}, "stop", "refusal"),
        ({"refusal": "no"}, None, "refusal"),
        ({"refusal": "no"}, "length", "length"),
        ({"tool_calls": [call(index=0, id="1", name="a")]}, "stop", "tool_calls"),
        ({"tool_calls": [call(index=0, id="1", name="a")]}, None, "tool_calls"),
        ({"tool_calls": [call(index=0, id="1", name="a")]}, "length", "length"),
    ],
)
def test_finish_reasons(said: dict[str, Any], reason: str | None, expected: str) -> None:
    assert decode(delta(**said), delta(finish_reason=reason), DONE)[1].finish_reason == expected


def test_usage_is_taken_from_whichever_chunk_has_it_and_counts_one_request() -> None:
    told = {"prompt_tokens": 3, "completion_tokens": 4}
    assert decode(event(choices=[], usage=told), event(choices=[], usage=None), DONE)[1].usage == Usage(
        3, 4, 7, requests=1
    )
    assert decode(event(choices=[], x_groq={"usage": told}), DONE)[1].usage == Usage(3, 4, 7, requests=1)
    assert decode(delta(content="x"), DONE)[1].usage == Usage(requests=1)


def test_odd_shapes_are_ignored_and_never_a_foreign_error() -> None:
    rng = random.Random(11)
    odd: list[Any] = [None, 0, 1, True, "x", "", [], {}, [None], [[]], {"x": 1}, 1.5]
    names = ["content", "tool_calls", "refusal", "reasoning", "reasoning_details", "function_call", "reasoning_content"]
    for _ in range(3_000):
        fields = {name: rng.choice(odd) for name in rng.sample(names, 3)}
        fields["tool_calls"] = rng.choice(
            [[{"index": rng.choice(odd), "id": rng.choice(odd), "function": f}] for f in odd]
        )
        chunk = {"choices": [{"delta": rng.choice([fields, *odd]), "finish_reason": rng.choice(odd)}]}
        chunk |= {name: rng.choice(odd) for name in rng.sample(["usage", "x_groq", "choices", "error", "object"], 2)}
        try:
            decode(event(**chunk), DONE)
        except ModelError:
            pass


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        ({"message": "m", "code": 429}, "model_rate_limited", True),
        ({"message": "m", "code": "429"}, "model_rate_limited", True),
        ({"message": "m", "type": "rate_limit_exceeded"}, "model_rate_limited", True),
        ({"message": "m", "code": "insufficient_quota"}, "model_rate_limited", False),
        ({"message": "m", "status_code": 503}, "model_unavailable", True),
        ({"message": "m", "code": 408}, "model_unavailable", True),
        ({"message": "m", "type": "server_error"}, "model_unavailable", True),
        ({"message": "m", "type": "overloaded_error"}, "model_unavailable", True),
        ({"message": "m", "code": 400}, "model_rejected", False),
        ({"message": "m", "type": "invalid_request_error"}, "model_rejected", False),
        ({"message": "m", "code": "content_filter", "status": 400}, "model_filtered", False),
        ({"message": "m"}, "model_stream_dropped", True),
        ("m", "model_stream_dropped", True),
    ],
)
def test_an_error_inside_a_stream_has_the_code_that_fits(error: Any, code: str, retryable: bool) -> None:
    shapes = [
        event(error=error),
        event(error=error, choices=[{"index": 0, "delta": {"content": "x"}}]),
        event(choices=[{"index": 0, "delta": {}, "error": error}]),
        b"event: error\n" + event(error=error),
        event(error=error)[6:-2],  # the body is no event stream
        b"[" + event(error=error)[6:-2] + b"]",
    ]
    if isinstance(error, dict):
        shapes += [b"event: error\n" + event(**error), event(object="error", **error)]
    for shape in shapes:
        raised = failure(shape, DONE) if shape.startswith((b"data", b"event")) else failure(shape)
        assert (raised.code, raised.retryable, raised.message) == (code, retryable, "m"), shape


@pytest.mark.anyio
async def test_quota_and_filters_are_told_apart_from_what_a_retry_helps() -> None:
    quota = b'{"error":{"message":"m","type":"insufficient_quota","code":"insufficient_quota"}}'
    filtered = b'{"error":{"message":"m","code":"content_filter","innererror":{"code":"ResponsibleAIPolicyViolation"}}}'
    answers = Answer(body=quota, status=429, content_type=JSON), Answer(body=filtered, status=400, content_type=JSON)
    async with serving(*answers) as server:
        for code in ("model_rate_limited", "model_filtered"):
            with pytest.raises(ModelError) as caught:
                await model(server).respond(request(), Recorder())
            assert (caught.value.code, caught.value.retryable) == (code, False)


# --- cancellation, time, connections -----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_client_lives_as_long_as_its_last_user_and_its_connection_is_used_again() -> None:
    made: list[AsyncOpenAI] = []

    class Counted(OpenAIChatModel):
        def _new_client(self, http: Any) -> AsyncOpenAI:
            made.append(super()._new_client(http))
            return made[-1]

    async with serving(Answer(body=DONE)) as server:
        counted = Counted("m", api_key=KEY, base_url=server.url)
        async with counted:
            assert made == []
            async with counted:
                await counted.respond(request(), Recorder())
            await counted.respond(request(), Recorder())
            assert [client.is_closed() for client in made] == [False]
            assert len(server._connections) == 1
        assert made[0].is_closed()
        await counted.respond(request(), Recorder())
        assert [client.is_closed() for client in made] == [True, True]


@pytest.mark.anyio
async def test_an_injected_client_is_used_and_never_closed() -> None:
    async with serving(Answer(body=DONE)) as server:
        client = AsyncOpenAI(api_key=KEY, base_url=f"{server.url}/v9", default_headers={"x-team": "blue"})
        async with client:
            async with OpenAIChatModel("m", client=client) as injected:
                await injected.respond(request(), Recorder())
            assert not client.is_closed()
    assert server.requests[0].target == "/v9/chat/completions"
    assert server.requests[0].headers["x-team"] == "blue"


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
        extra_body={"temperature": 1, "reasoning_effort": "low"},
    )
    tool = ToolDefinition("look", "Look it up.", {"type": "object", "properties": {}})
    async with serving(Answer(body=DONE)) as server:
        asked = request(UserMessage("hé"), instructions="Be brief.", tools=[tool], settings=settings)
        await model(server).respond(asked, Recorder())
        await model(server).respond(request(settings=ModelSettings(parallel_tool_calls=True)), Recorder())
    first, second = server.requests
    assert first.json == {
        "model": "gpt-x",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 1,
        "top_p": 0.9,
        "max_tokens": 7,
        "stop": ["END"],
        "seed": 3,
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hé"}],
        "tools": [
            {
                "type": "function",
                "function": {"name": "look", "description": "Look it up.", "parameters": tool.parameters},
            }
        ],
    }
    assert (first.method, first.target) == ("POST", "/v1/chat/completions")
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert first.headers["content-type"] == "application/json"
    assert first.headers["x-trace"] == "t"
    assert set(second.json) == {"model", "stream", "stream_options", "messages"}


@pytest.mark.anyio
async def test_a_line_builds_its_request_once_for_calls_that_differ_in_their_bodies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[str] = []

    class Client(httpx2.AsyncClient):
        def build_request(self, *given: Any, **options: Any) -> httpx2.Request:
            built.append(options["headers"].get("x-trace", ""))
            return super().build_request(*given, **options)

    monkeypatch.setattr("helix.models._openai.new_line", lambda: HttpxLine(Client()))
    traces = ("a", "a", "a", "b", "a", None)
    answers = [Answer(body=DONE, headers={"set-cookie": "seen=1"}) for _ in traces]
    async with serving(*answers) as server, model(server) as asked:
        for number, trace in enumerate(traces):
            settings = ModelSettings(headers={"x-trace": trace} if trace else None)
            await asked.respond(request(UserMessage("x" * number), settings=settings), Recorder())
    assert built == ["a", "b", "a", ""]
    assert [each.headers.get("x-trace") for each in server.requests] == list(traces)
    assert [each.json["messages"][0]["content"] for each in server.requests] == ["x" * n for n in range(len(traces))]
    assert all("cookie" not in each.headers for each in server.requests)


@pytest.mark.anyio
async def test_extra_body_goes_over_messages_and_tools_too() -> None:
    tool = ToolDefinition("look", "", {"type": "object"})
    extra = {"messages": [], "tools": [], "model": "other"}
    async with serving(Answer(body=DONE)) as server:
        await model(server).respond(request(tools=[tool], settings=ModelSettings(extra_body=extra)), Recorder())
    assert server.requests[0].body.count(b'"messages"') == 1
    assert extra.items() <= server.requests[0].json.items()


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "max_completion_tokens"),
        ("https://x.openai.azure.com/openai", "max_completion_tokens"),
        ("http://localhost:11434/v1", "max_tokens"),
    ],
)
def test_the_bound_on_tokens_has_the_name_that_the_server_knows(base_url: str, name: str) -> None:
    client = AsyncOpenAI(api_key=KEY, base_url=base_url, http_client=httpx2.AsyncClient())
    sent = from_json(OpenAIChatModel("m", client=client)._body(client, request(settings=ModelSettings(max_tokens=5))))
    assert {key for key in sent if "tokens" in key} == {name}


@pytest.mark.anyio
async def test_structured_output_is_a_tool_or_the_providers_own_format() -> None:
    as_tool = OutputDefinition("final", "The answer.", {"type": "object"}, "tool")
    native = replace(as_tool, mode="native")
    async with serving(Answer(body=DONE)) as server:
        await model(server).respond(request(output=as_tool), Recorder())
        await model(server).respond(request(output=native), Recorder())
    as_tool, native = (received.json for received in server.requests)
    assert as_tool["tool_choice"] == {"type": "function", "function": {"name": "final"}}
    assert [tool["function"]["name"] for tool in as_tool["tools"]] == ["final"]
    described = {"name": "final", "description": "The answer.", "schema": {"type": "object"}}
    assert native["response_format"] == {"type": "json_schema", "json_schema": described}
    assert "tools" not in native
    assert "tool_choice" not in native


def messages_of(case: str, turn: int) -> list[dict[str, Any]]:
    exchange = recorded.load(case).exchanges[turn - 1]
    assert exchange.request is not None
    return exchange.request["json"]["messages"]


def history_of(messages: list[dict[str, Any]]) -> History:
    """The recorded conversation as ours."""
    history, names = History(), dict[str, str]()
    for message in messages:
        match message["role"]:
            case "user":
                history.append(UserMessage(message["content"]))
            case "assistant":
                calls = [
                    ToolCall(c["id"], c["function"]["name"], json.loads(c["function"]["arguments"]))
                    for c in message.get("tool_calls", ())
                ]
                names |= {c.tool_call_id: c.tool_name for c in calls}
                text = [TextPart(message["content"])] if message.get("content") else []
                history.append(AssistantMessage([*text, *calls]))
            case _:
                history.append(ToolMessage(message["tool_call_id"], names[message["tool_call_id"]], message["content"]))
    return history


@pytest.mark.anyio
@pytest.mark.parametrize(("case", "turn"), [("d05", 1), ("d05", 2), ("d06", 1), ("d06", 2), ("d06", 3)])
async def test_a_history_is_sent_as_it_was_recorded(case: str, turn: int) -> None:
    wanted = [{"content": None, **message} for message in messages_of(case, turn)]  # some leave a null content out
    async with serving(Answer(body=DONE)) as server:
        await model(server).respond(request(history=history_of(wanted)), Recorder())
    assert server.requests[0].json["messages"] == wanted


def test_assistant_messages() -> None:
    def sent(message: AssistantMessage) -> dict[str, Any]:
        return {name: value for name, value in from_json(encode_message(message)).items() if name != "role"}

    thinking, text, refusal = ThinkingPart("hm"), TextPart("a"), RefusalPart("no")
    assert sent(AssistantMessage([thinking, text, TextPart("b")])) == {"content": "ab"}
    assert sent(AssistantMessage([refusal])) == {"content": None, "refusal": "no"}
    assert sent(AssistantMessage([thinking])) == {"content": ""}
    assert sent(AssistantMessage([text], cut=True)) == {"content": "a"}
    assert sent(AssistantMessage([], cut=True)) == {"content": ""}
    kept = ThinkingPart("hm", provider_data={"openai": {"reasoning_content": "hm"}, "other": {"x": 1}})
    assert sent(AssistantMessage([kept, text])) == {"content": "a", "reasoning_content": "hm"}
    assert sent(AssistantMessage([text], provider_data={"openai": {"y": 1}})) == {"content": "a", "y": 1}
    raw = sent(AssistantMessage([ToolCall("1", "f", "{not json")]))
    assert raw["tool_calls"][0]["function"] == {"name": "f", "arguments": "{not json"}


# --- names, keys, Azure ------------------------------------------------------------------------------------------


def test_a_missing_key_is_told_before_anything_runs() -> None:
    with pytest.raises(MissingKey, match="OPENAI_API_KEY is not set"):
        OpenAIChatModel("gpt-x")


def test_empty_variables_are_like_unset_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    monkeypatch.setenv("OPENAI_API_KEY", " ")
    with pytest.raises(MissingKey):
        OpenAIChatModel("gpt-x")
    assert OpenAIChatModel("gpt-x", api_key=KEY).base_url == "https://api.openai.com/v1"


def test_no_text_of_a_model_shows_its_key() -> None:
    named = OpenAIChatModel("gpt-x", api_key=KEY)
    assert (named.name, repr(named)) == ("openai:gpt-x", "OpenAIChatModel('gpt-x')")


@pytest.mark.anyio
@pytest.mark.parametrize("deployment", [None, "dep"])
async def test_an_azure_client_is_routed_to_its_deployment(deployment: str | None) -> None:
    async with serving(Answer(body=DONE)) as server:
        client = AsyncAzureOpenAI(
            azure_endpoint=server.url, api_key=KEY, api_version="2024-10-21", azure_deployment=deployment
        )
        async with client:
            await OpenAIChatModel("gpt/x", client=client).respond(request(), Recorder())
    path = f"/openai/deployments/{deployment or 'gpt%2Fx'}/chat/completions?api-version=2024-10-21"
    assert server.requests[0].target == path
    assert server.requests[0].headers["api-key"] == KEY
    assert "authorization" not in server.requests[0].headers
