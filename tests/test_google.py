"""The Gemini adapter: recorded and hand-made traffic, every cut, what is signed, every failure, whole tool loops."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel
from pydantic_core import from_json

import helix
from helix import Agent, tool
from helix.chunks import StepEnd, chunk_to_json, parse_chunk
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
from helix.model import ModelReply, ModelSettings, OutputDefinition, OutputMode, ToolDefinition
from helix.models import resolve_model
from helix.models._google import GoogleDecoder, encode_message, join_contents
from helix.models.google import GoogleModel
from helix.reply import Reply
from helix.testing import check_stream
from tests import recorded
from tests.dialects import KEY, request
from tests.recorded import Recorder
from tests.replay import CHUNKINGS, JSON, Answer, Chunking, ReplayServer, answer, serving, split

EXCHANGE = recorded.load("d24").exchanges[0]
BODY = EXCHANGE.body
TARGET = "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def model(server: ReplayServer, name: str = "gemini-2.5-flash", **options: Any) -> GoogleModel:
    return GoogleModel(name, api_key=KEY, base_url=server.url, **options)


def event(**chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n"


def said(*parts: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    """An event as Gemini sends it."""
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    candidate |= {"finishReason": finish} if finish else {}
    return event(candidates=[candidate], modelVersion="gemini-2.5-flash", responseId="r1", **more)


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"text": words, **more}


def call(name: str, arguments: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"functionCall": {"name": name, **({} if arguments is None else {"args": arguments})}, **more}


def decode(*pieces: bytes) -> tuple[Recorder, ModelReply]:
    recorder = Recorder()
    decoder = GoogleDecoder(recorder)
    for piece in pieces:
        decoder.feed(piece)
    return recorder, decoder.end()


def message(*pieces: bytes) -> AssistantMessage:
    """What helix keeps of a reply."""
    reply = Reply(lambda _: None, "r", "agent", None, ())
    decoder = GoogleDecoder(reply)
    for piece in pieces:
        decoder.feed(piece)
    decoder.end()
    return reply.finish()


def contents(*messages: Message, vouch: bool = False) -> list[dict[str, Any]]:
    pieces = b",".join(encode_message(message, vouch=vouch) for message in messages)
    return from_json(b"[%b]" % join_contents(pieces))


def failure(*pieces: bytes) -> ModelError:
    with pytest.raises(ModelError) as caught:
        decode(*pieces)
    return caught.value


DONE = said(text("ok"), finish="STOP")

# --- recorded traffic --------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_recorded_request_is_the_one_that_is_sent() -> None:
    assert EXCHANGE.request is not None
    async with serving(answer(EXCHANGE)) as server:
        asked = request(
            UserMessage("What is the capital of France?"),
            instructions="You are a helpful chatbot.",
            settings=ModelSettings(temperature=0.0),
        )
        await model(server, "gemini-2.0-flash-exp").respond(asked, Recorder())
    wanted = {**EXCHANGE.request["json"]}
    wanted["systemInstruction"] = {"parts": wanted["systemInstruction"]["parts"]}  # without the role, which has no use
    assert server.requests[0].json == wanted
    assert server.requests[0].target == f"{EXCHANGE.request['path']}?{EXCHANGE.request['query']}"


# --- cuts --------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_connection_that_breaks_behind_a_reason_is_a_cut_and_one_that_closes_is_none() -> None:
    """Where a server gives a reason with each event, only the transport knows."""
    async with serving(Answer(body=BODY, ending="broken"), Answer(body=BODY, ending="close")) as server:
        with pytest.raises(ModelError) as caught:
            await model(server).respond(request(), Recorder())
        assert (caught.value.code, caught.value.usage) == ("model_stream_dropped", Usage(13, 8, 21, requests=1))
        recorder = Recorder()
        reply = await model(server).respond(request(), recorder)
    assert (recorder.said, reply.finish_reason) == (EXCHANGE.expected["text"], "stop")


def test_a_reason_that_comes_early_or_with_each_event_ends_nothing() -> None:
    recorder, reply = decode(said(finish="STOP"), said(text("a")), said(text("b"), finish="STOP"), said(finish="STOP"))
    assert (recorder.said, reply.finish_reason) == ("ab", "stop")
    assert failure(said(finish="STOP"), said(text("a"))).code == "model_stream_dropped"
    told = event(usageMetadata={"promptTokenCount": 1, "totalTokenCount": 1})
    assert decode(DONE, told)[1] == ModelReply("stop", Usage(1, 0, 1, requests=1))
    assert failure(DONE, b"data: {}\r\n").detail == "the body ended inside an event"


# --- what a reply may hold ---------------------------------------------------------------------------------------


def test_thoughts_are_told_apart_from_words() -> None:
    recorder, reply = decode(
        said(text("**Plan**\n", thought=True)), said(text("So ", thought=False), text("far")), said(finish="STOP")
    )
    assert (recorder.thought, recorder.said) == ("**Plan**\n", "So far")
    assert reply.finish_reason == "stop"


def test_calls_are_whole_and_may_have_no_id_and_no_arguments() -> None:
    recorder, reply = decode(
        said(call("look", {"at": ["é", 1.5]}), call("wait")),
        said({"functionCall": {"name": "look", "args": {}, "id": "fc1"}}, finish="STOP"),
    )
    assert list(recorder.calls.values()) == [
        {"id": None, "name": "look", "arguments": '{"at":["é",1.5]}'},
        {"id": None, "name": "wait", "arguments": "{}"},
        {"id": "fc1", "name": "look", "arguments": "{}"},
    ]
    assert reply.finish_reason == "tool_calls"
    ids = [call.tool_call_id for call in message(said(call("look"), call("look")), DONE).tool_calls]
    assert len(set(ids)) == 2
    assert all(ids)


def test_arguments_in_pieces_are_refused_and_not_lost() -> None:
    for fields in ({"partialArgs": [{"jsonPath": "$.a", "stringValue": "x"}]}, {"name": "f", "willContinue": True}):
        error = failure(said({"functionCall": fields}))
        assert (error.code, error.retryable) == ("model_rejected", False)


def test_other_parts_and_other_candidates_are_ignored() -> None:
    other = {"index": 1, "content": {"parts": [{"text": "no"}]}, "finishReason": "SAFETY"}
    image = {"inlineData": {"mimeType": "image/png", "data": "AA=="}, "thoughtSignature": "s"}
    recorder, reply = decode(event(candidates=[other]), said(image, text("yes"), finish="STOP"))
    assert (recorder.said, recorder.data, reply.finish_reason) == ("yes", [], "stop")


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "filter"),
        ("RECITATION", "filter"),
        ("LANGUAGE", "filter"),
        ("BLOCKLIST", "filter"),
        ("PROHIBITED_CONTENT", "filter"),
        ("SPII", "filter"),
        ("IMAGE_SAFETY", "filter"),
        ("OTHER", None),
        ("NEW_ONE", None),
    ],
)
def test_finish_reasons(reason: str, expected: str | None) -> None:
    assert decode(said(text("x"), finish=reason))[1].finish_reason == expected
    with_call = decode(said(call("f"), finish=reason))[1].finish_reason
    assert with_call == ("tool_calls" if expected in ("stop", None) else expected)


def test_a_blocked_prompt_is_a_filtered_reply_without_words() -> None:
    told = {"promptTokenCount": 9, "totalTokenCount": 9, "serviceTier": "standard"}
    recorder, reply = decode(event(promptFeedback={"blockReason": "PROHIBITED_CONTENT"}, usageMetadata=told))
    assert recorder.said == ""
    assert reply == ModelReply("filter", Usage(9, 0, 9, requests=1))


@pytest.mark.parametrize(
    ("reason", "code", "retryable"),
    [
        ("MALFORMED_FUNCTION_CALL", "model_stream_dropped", True),
        ("UNEXPECTED_TOOL_CALL", "model_stream_dropped", True),
        ("MALFORMED_RESPONSE", "model_stream_dropped", True),
        ("MISSING_THOUGHT_SIGNATURE", "model_rejected", False),
        ("TOO_MANY_TOOL_CALLS", "model_rejected", False),
    ],
)
def test_a_reply_that_google_could_not_use_is_an_error(reason: str, code: str, retryable: bool) -> None:
    candidate = {
        "content": {},
        "finishReason": reason,
        "finishMessage": "Malformed function call: print(f(",
        "index": 0,
    }
    error = failure(event(candidates=[candidate], usageMetadata={"promptTokenCount": 3}))
    assert (error.code, error.retryable) == (code, retryable)
    assert (error.detail, error.usage) == (
        f"finishReason {reason}: Malformed function call: print(f(",
        Usage(3, 0, 3, requests=1),
    )


def some_events(chance: random.Random) -> list[bytes]:
    """Events as Gemini frames them, most alike but for words and counts; and some that are not."""
    separators = chance.choice([(",", ":"), (", ", ": ")])
    events: list[bytes] = []
    for number in range(30):
        words = chance.choice(["one", " two", 'a "quote"', "line\n", "é", "", '"totalTokenCount":7,', "\ud800"])
        part: dict[str, Any] = {"text": words, **({"thought": True} if chance.random() < 0.1 else {})}
        part |= {"thoughtSignature": "s"} if chance.random() < 0.05 else {}
        candidate: dict[str, Any] = {"content": {"parts": [part] * chance.choice([1, 1, 1, 1, 2])}, "index": 0}
        candidate |= {"finishReason": "STOP"} if chance.random() < 0.1 else {}
        counts = {"promptTokenCount": 5, "candidatesTokenCount": number, "totalTokenCount": number + 5}
        usage: dict[str, Any] = chance.choice([counts, counts, counts, {"trafficType": "ON_DEMAND"}])
        told = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-3"}
        data = json.dumps(told, separators=separators)
        events.append(f"data: {data}\n\n".replace("\\\\ud800", "\\ud800").encode())
    return events


def test_an_event_that_is_recognised_counts_as_one_that_is_parsed() -> None:
    recognised = 0
    for seed in range(200):
        chance = random.Random(seed)
        fast, plain = Recorder(), Recorder()
        learning, parsing = GoogleDecoder(fast), GoogleDecoder(plain)
        parsing._usual._lessons = 0
        for data in split(b"".join(some_events(chance)), chance.choice(["lines", "random", "whole"]), seed):
            learning.feed(data)
            parsing.feed(data)
            recognised += bool(learning._repeats.last)
            if chance.random() < 0.5:
                assert learning.usage == parsing.usage
            assert (fast, learning.finish_reason) == (plain, parsing.finish_reason)
        assert learning.usage == parsing.usage
    assert recognised > 500


def test_usage_is_the_last_that_was_told_and_thoughts_are_output() -> None:
    early = {"promptTokenCount": 15, "candidatesTokenCount": 1, "totalTokenCount": 68, "thoughtsTokenCount": 52}
    last = {
        "promptTokenCount": 20,
        "candidatesTokenCount": 4,
        "totalTokenCount": 86,
        "thoughtsTokenCount": 52,
        "cachedContentTokenCount": 16,
        "toolUsePromptTokenCount": 10,
    }
    tier = {"trafficType": "PROVISIONED_THROUGHPUT"}
    _, reply = decode(
        said(text("4"), usageMetadata=early), said(finish="STOP", usageMetadata=last), event(usageMetadata=tier)
    )
    assert reply.usage == Usage(30, 56, 86, cached_tokens=16, reasoning_tokens=52, requests=1)
    assert decode(DONE)[1].usage == Usage(requests=1)


def test_odd_shapes_are_ignored_and_never_a_foreign_error() -> None:
    rng = random.Random(11)
    odd: list[Any] = [None, 0, 1, True, "x", "", [], {}, [None], [[]], {"x": 1}, 1.5]
    names = ["text", "functionCall", "thought", "thoughtSignature", "inlineData"]
    for _ in range(3_000):
        part = {name: rng.choice(odd) for name in rng.sample(names, 3)}
        part["functionCall"] = rng.choice([*odd, {name: rng.choice(odd) for name in ("name", "args", "id")}])
        candidate = {"content": rng.choice([{"parts": rng.choice([[part, part], *odd])}, *odd])}
        candidate |= {name: rng.choice(odd) for name in rng.sample(["finishReason", "index", "finishMessage"], 2)}
        chunk: dict[str, Any] = {"candidates": rng.choice([[candidate], [candidate], *odd])}
        chunk |= {name: rng.choice(odd) for name in rng.sample(["usageMetadata", "promptFeedback", "error"], 2)}
        try:
            decode(event(**chunk), DONE)
        except ModelError:
            pass


# --- what is signed goes back as it came -------------------------------------------------------------------------


def test_signatures_of_calls_go_back_with_them() -> None:
    kept = message(said(call("f", {"x": 1}, thoughtSignature="S1+/="), call("g")), said(text(""), finish="STOP"))
    assert [part.provider_data for part in kept.content] == [{"google": {"thoughtSignature": "S1+/="}}, None]
    first, second = contents(kept)[0]["parts"]
    ids = [call.tool_call_id for call in kept.tool_calls]
    assert first == {"functionCall": {"id": ids[0], "name": "f", "args": {"x": 1}}, "thoughtSignature": "S1+/="}
    assert second == {"functionCall": {"id": ids[1], "name": "g", "args": {}}}


SIGNED: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "an empty text at the end": (
        [text("The"), text(" end"), text("", thoughtSignature="s")],
        [text("The end"), text("", thoughtSignature="s")],
    ),
    "a piece of the text": (
        [text("a"), text("b", thoughtSignature="s"), text("c"), text("d")],
        [text("a"), text("b", thoughtSignature="s"), text("cd")],
    ),
    "several pieces": (
        [text("a", thoughtSignature="s"), text("b", thoughtSignature="t")],
        [text("a", thoughtSignature="s"), text("b", thoughtSignature="t")],
    ),
    "nothing else": ([text("", thoughtSignature="s")], [text("", thoughtSignature="s")]),
    "a text behind a call": (
        [call("f", thoughtSignature="s"), text("", thoughtSignature="t")],
        [call("f", {}, thoughtSignature="s"), text("", thoughtSignature="t")],
    ),
    "an empty text behind thoughts": (
        [text("hm", thought=True), text("", thoughtSignature="s"), text("so")],
        [text("", thoughtSignature="s"), text("so")],
    ),
    "thoughts": (
        [text("hm", thought=True), text("", thought=True, thoughtSignature="s"), text("so")],
        [text("hm", thought=True), text("", thought=True, thoughtSignature="s"), text("so")],
    ),
    "a part of nothing but it": (
        [text("a"), {"thoughtSignature": "s"}],
        [text("a"), text("", thoughtSignature="s")],
    ),
    "no thoughts": ([text("hm", thought=True), text("so")], [text("so")]),
    "characters outside the plane": (
        [text("\N{SNAKE}é"), text("\N{SNAKE}", thoughtSignature="s")],
        [text("\N{SNAKE}é"), text("\N{SNAKE}", thoughtSignature="s")],
    ),
}


@pytest.mark.parametrize(("sent", "back"), SIGNED.values(), ids=SIGNED)
def test_what_is_signed_goes_back_piece_by_piece(sent: list[dict[str, Any]], back: list[dict[str, Any]]) -> None:
    for events in ([said(part) for part in sent], [said(*sent)]):
        parts = contents(message(*events, said(finish="STOP")))[0]["parts"]
        for part in parts:
            part.get("functionCall", {}).pop("id", None)
        assert parts == back


def test_what_is_signed_survives_the_log_and_goes_to_no_other_provider() -> None:
    kept = message(
        said(text("a"), text("", thoughtSignature="s")), said(call("f", thoughtSignature="t"), finish="STOP")
    )
    again = parse_chunk(chunk_to_json(StepEnd("r", "a", 1, 1, "committed", Usage(), kept, "stop")))
    assert isinstance(again, StepEnd)
    assert again.message is not None
    assert encode_message(again.message) == encode_message(kept)
    foreign = AssistantMessage([ThinkingPart("x", provider_data={"anthropic": {"signature": "z"}}), TextPart("a")])
    assert contents(foreign) == [{"role": "model", "parts": [{"text": "a"}]}]


def test_calls_of_other_models_are_marked_for_models_that_want_signatures() -> None:
    foreign = AssistantMessage([TextPart("a"), ToolCall("1", "f", {}), ToolCall("2", "g", {})])
    marks = [part.get("thoughtSignature") for part in contents(foreign, vouch=True)[0]["parts"]]
    assert marks == [None, "skip_thought_signature_validator", None]
    own = message(said(call("f"), call("g", thoughtSignature="s")), said(finish="STOP"))
    assert [part.get("thoughtSignature") for part in contents(own, vouch=True)[0]["parts"]] == [None, "s"]
    assert all("thoughtSignature" not in part for part in contents(foreign)[0]["parts"])


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "marked"), [("gemini-2.5-pro", False), ("gemini-3-pro", True), ("other", True)])
async def test_the_models_name_tells_whether_calls_need_signatures(name: str, marked: bool) -> None:
    asked = UserMessage("?"), AssistantMessage([ToolCall("1", "f", {})]), ToolMessage("1", "f", "x")
    async with serving(Answer(body=DONE)) as server:
        await model(server, name).respond(request(*asked), Recorder())
    assert ("thoughtSignature" in server.requests[0].json["contents"][1]["parts"][0]) is marked


# --- history -----------------------------------------------------------------------------------------------------


def test_the_answers_to_a_steps_calls_are_one_content() -> None:
    history = [
        UserMessage("go"),
        AssistantMessage([ToolCall("1", "f", {"x": 1}), ToolCall("2", "f", "{not json")]),
        ToolMessage("1", "f", "plain"),
        ToolMessage("2", "f", "bad arguments", is_error=True),
        UserMessage("and?"),
        AssistantMessage([ToolCall("3", "g", {})]),
        ToolMessage("3", "g", '{"a":[1]}'),
        AssistantMessage([TextPart("done")]),
    ]

    def response(call_id: str, name: str, response: dict[str, Any]) -> dict[str, Any]:
        return {"functionResponse": {"id": call_id, "name": name, "response": response}}

    assert contents(*history)[1:5] == [
        {
            "role": "model",
            "parts": [
                {"functionCall": {"id": "1", "name": "f", "args": {"x": 1}}},
                {"functionCall": {"id": "2", "name": "f", "args": {"arguments": "{not json"}}},
            ],
        },
        {
            "role": "user",
            "parts": [response("1", "f", {"result": "plain"}), response("2", "f", {"error": "bad arguments"})],
        },
        {"role": "user", "parts": [{"text": "and?"}]},
        {"role": "model", "parts": [{"functionCall": {"id": "3", "name": "g", "args": {}}}]},
    ]
    assert contents(*history)[5] == {"role": "user", "parts": [response("3", "g", {"a": [1]})]}


@pytest.mark.parametrize("content", ["[1]", "7", "null", "{", '{"a":', "", '{"a":1}{', '"x"', "\x01\x02\x03"])
def test_a_result_that_is_no_object_is_put_into_one(content: str) -> None:
    (sent,) = contents(ToolMessage("1", "f", content))
    assert sent["parts"][0]["functionResponse"]["response"] == {"result": content}


def test_assistant_messages() -> None:
    def sent(*messages: Message) -> list[list[dict[str, Any]]]:
        return [content["parts"] for content in contents(*messages)]

    hi, empty = UserMessage("hi"), AssistantMessage([])
    assert sent(AssistantMessage([RefusalPart("no")])) == [[{"text": "no"}]]
    assert sent(AssistantMessage([TextPart("a"), ToolCall("1", "f", {})], cut=True)) == [[{"text": "a"}]]
    for messages in ([hi, empty], [empty, hi], [hi, AssistantMessage([ThinkingPart("hm")])]):
        assert sent(*messages) == [[{"text": "hi"}]]
    assert sent(hi, empty, hi) == [[{"text": "hi"}]] * 2
    assert sent(empty) == []


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
        extra_body={
            "generationConfig": {"temperature": 1, "thinkingConfig": {"includeThoughts": True}},
            "safetySettings": [],
        },
    )
    look = ToolDefinition("look", "Look it up.", {"type": "object", "properties": {}})
    async with serving(Answer(body=DONE)) as server:
        asked = request(UserMessage("hé"), instructions="Be brief.", tools=[look], settings=settings)
        await model(server).respond(asked, Recorder())
        await model(server).respond(request(), Recorder())
        await model(server, "tunedModels/my one").respond(request(settings=ModelSettings(stop="E")), Recorder())
    first, second, third = server.requests
    assert first.json == {
        "contents": [{"role": "user", "parts": [{"text": "hé"}]}],
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "generationConfig": {
            "temperature": 1,
            "topP": 0.9,
            "maxOutputTokens": 7,
            "stopSequences": ["END"],
            "seed": 3,
            "thinkingConfig": {"includeThoughts": True},
        },
        "safetySettings": [],
        "tools": [
            {
                "functionDeclarations": [
                    {"name": "look", "description": "Look it up.", "parametersJsonSchema": look.parameters}
                ]
            }
        ],
    }
    assert (first.method, first.target) == ("POST", TARGET)
    assert (first.headers["x-goog-api-key"], first.headers["x-trace"]) == (KEY, "t")
    assert first.headers["content-type"] == "application/json"
    assert KEY not in first.target
    assert set(second.json) == {"contents"}
    assert third.target == "/v1beta/tunedModels/my%20one:streamGenerateContent?alt=sse"
    assert third.json["generationConfig"] == {"stopSequences": ["E"]}


@pytest.mark.anyio
async def test_extra_body_goes_over_contents_and_tools_too() -> None:
    look = ToolDefinition("look", "", {"type": "object"})
    extra: dict[str, Any] = {"contents": [], "tools": [{"googleSearch": {}}], "generationConfig": None}
    async with serving(Answer(body=DONE)) as server:
        await model(server).respond(request(tools=[look], settings=ModelSettings(extra_body=extra)), Recorder())
    assert server.requests[0].body.count(b'"contents"') == 1
    assert server.requests[0].json == extra


@pytest.mark.anyio
async def test_structured_output_is_a_tool_or_the_providers_own_format() -> None:
    output = OutputDefinition("final", "The answer.", {"type": "object"}, "tool")
    async with serving(Answer(body=DONE)) as server:
        await model(server).respond(request(output=output), Recorder())
        await model(server).respond(request(output=replace(output, mode="native")), Recorder())
    as_tool, native = (received.json for received in server.requests)
    assert as_tool["toolConfig"] == {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["final"]}}
    assert [each["name"] for each in as_tool["tools"][0]["functionDeclarations"]] == ["final"]
    assert native["generationConfig"] == {"responseMimeType": "application/json", "responseJsonSchema": output.schema}
    assert not {"tools", "toolConfig"} & set(native)


def test_a_key_and_a_base_url_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingKey, match="GEMINI_API_KEY or GOOGLE_API_KEY is not set"):
        resolve_model("google:gemini-2.5-flash")
    monkeypatch.setenv("GOOGLE_API_KEY", KEY)
    monkeypatch.setenv("GEMINI_API_KEY", " ")
    named = resolve_model("google:gemini-2.5-flash")
    assert isinstance(named, GoogleModel)
    assert (named.name, named._api_key) == ("google:gemini-2.5-flash", KEY)
    assert named.base_url == "https://generativelanguage.googleapis.com"
    assert repr(named) == "GoogleModel('gemini-2.5-flash')"
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:1/")
    monkeypatch.setenv("GEMINI_API_KEY", "first")
    assert (GoogleModel("m").base_url, GoogleModel("m")._api_key) == ("http://127.0.0.1:1", "first")


@pytest.mark.anyio
async def test_an_injected_client_is_used_and_never_closed() -> None:
    async with serving(Answer(body=DONE)) as server:
        client = httpx2.AsyncClient(base_url=f"{server.url}/proxy", headers={"x-goog-api-key": "its-own"})
        async with client:
            async with GoogleModel("m", client=client) as injected:
                await injected.respond(request(), Recorder())
            assert not client.is_closed
    assert server.requests[0].target == "/proxy/v1beta/models/m:streamGenerateContent?alt=sse"
    assert server.requests[0].headers["x-goog-api-key"] == "its-own"


# --- errors ------------------------------------------------------------------------------------------------------


def problem(code: int, status: str, message: str = f"no, {KEY}!", **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, **more}}


def retry_info(delay: str) -> dict[str, Any]:
    quota = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": "PerMinute"}]}
    return {"details": [quota, {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}]}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "headers", "after"),
    [
        (problem(429, "RESOURCE_EXHAUSTED"), {}, None),
        (problem(429, "RESOURCE_EXHAUSTED", **retry_info("34.4s")), {}, 34.4),
        (problem(429, "RESOURCE_EXHAUSTED", **retry_info("soon")), {}, None),
        (problem(429, "X", **retry_info("9s")), {"retry-after": "2"}, 2.0),
        ([problem(429, "RESOURCE_EXHAUSTED", **retry_info("3s"))], {}, 3.0),
    ],
)
async def test_an_http_error_may_say_when_to_try_again(body: Any, headers: dict[str, str], after: float | None) -> None:
    limited = Answer(body=json.dumps(body).encode(), status=429, headers=headers, content_type=JSON)
    async with serving(limited) as server:
        with pytest.raises(ModelError) as caught:
            await model(server).respond(request(), Recorder())
    error = caught.value
    assert (error.code, error.retryable, error.retry_after) == ("model_rate_limited", True, after)
    assert error.message == "no, ***!"


def test_an_error_inside_a_stream_or_instead_of_one() -> None:
    body = problem(503, "UNAVAILABLE", "The model is overloaded.", **retry_info("1s"))
    told = event(usageMetadata={"promptTokenCount": 2, "totalTokenCount": 2})
    for pieces in (
        [told, said(text("x")), event(**body)],
        [b"event: error\r\n" + event(**body)],
        [json.dumps(body).encode()],
        [json.dumps([body]).encode()],
    ):
        error = failure(*pieces)
        assert (error.code, error.retryable, error.retry_after) == ("model_unavailable", True, 1.0)
        assert error.message == "The model is overloaded."
    assert failure(told, event(**body)).usage == Usage(2, 0, 2, requests=1)


def test_a_reply_in_one_piece_may_be_a_list() -> None:
    whole = failure(b'[{"candidates":[],"usageMetadata":{"promptTokenCount":2}}]')
    assert (whole.code, whole.usage) == ("model_rejected", Usage(2, 0, 2, requests=1))
    assert "instead of streaming" in whole.message


def test_done_says_nothing_here() -> None:
    assert decode(b"data:\n\n", DONE, b"data: [DONE]\n\n", b"data: {}\n\n")[0].said == "ok"


# --- whole loops -------------------------------------------------------------------------------------------------


async def watched(agent: Agent[Any, Any, Any], prompt: str) -> tuple[helix.RunResult[Any, Any], list[helix.Chunk]]:
    async with helix.stream(agent, prompt) as run:
        chunks = await helix.collect(run)
        result = await run.result()
    check_stream(chunks)
    return result, chunks


def contents_of(body: bytes) -> bytes:
    """The contents as they were sent, without the bracket that ends them."""
    return body[body.index(b'"contents":[') : body.index(b'],"tools":')]


USED = {"promptTokenCount": 29, "candidatesTokenCount": 10, "totalTokenCount": 149, "thoughtsTokenCount": 110}
LOOP = [
    said(text("I look.", thought=True), usageMetadata=USED)
    + said(call("weather", {"city": "Oslo"}, thoughtSignature="EpEg+/8="), call("weather", {"city": "Rome"}))
    + said(text(""), finish="STOP", usageMetadata=USED),
    said(text("One more: "), call("broken", {}, thoughtSignature="Second=="), usageMetadata=USED)
    + said(finish="STOP", usageMetadata=USED),
    said(text("Sun"), usageMetadata=USED)
    + said(text(" in both."), usageMetadata=USED)
    + said(text("", thoughtSignature="Third"), finish="STOP", usageMetadata=USED),
]


@tool
def weather(city: str) -> dict[str, Any]:
    return {"city": city, "sun": True}


@tool
def broken() -> str:
    raise ValueError("no such luck")


@pytest.mark.anyio
@pytest.mark.parametrize("chunking", CHUNKINGS)
async def test_a_loop_of_parallel_calls_a_failing_one_and_the_answer(chunking: Chunking) -> None:
    async with serving(*(Answer(body=body, chunking=chunking) for body in LOOP)) as server:
        agent = Agent("forecaster", model=model(server, "gemini-3-flash"), tools=[weather, broken])
        result, chunks = await watched(agent, "Oslo and Rome?")
    assert result.output == "Sun in both."
    assert (result.usage.input_tokens, result.usage.output_tokens, result.usage.reasoning_tokens) == (87, 360, 330)
    assert [chunk.content for chunk in chunks if chunk.type == "thinking" and chunk.is_complete] == ["I look."]
    sent = [received.json["contents"] for received in server.requests]
    oslo, rome, failing = [chunk.tool_call_id for chunk in chunks if chunk.type == "tool_input_start"]
    assert sent[2] == [
        {"role": "user", "parts": [{"text": "Oslo and Rome?"}]},
        {
            "role": "model",
            "parts": [
                {
                    "functionCall": {"id": oslo, "name": "weather", "args": {"city": "Oslo"}},
                    "thoughtSignature": "EpEg+/8=",
                },
                {"functionCall": {"id": rome, "name": "weather", "args": {"city": "Rome"}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {
                    "functionResponse": {
                        "id": call_id,
                        "name": "weather",
                        "response": {"city": city, "sun": True},
                    }
                }
                for call_id, city in ((oslo, "Oslo"), (rome, "Rome"))
            ],
        },
        {
            "role": "model",
            "parts": [
                {"text": "One more: "},
                {"functionCall": {"id": failing, "name": "broken", "args": {}}, "thoughtSignature": "Second=="},
            ],
        },
        sent[2][4],
    ]
    answered = sent[2][4]["parts"][0]["functionResponse"]
    assert "no such luck" in answered["response"]["error"]
    bodies = [contents_of(received.body) for received in server.requests]
    assert all(later.startswith(earlier + b",") for earlier, later in pairwise(bodies))


class City(BaseModel):
    name: str
    inhabitants: int


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["tool", "native"])
async def test_a_structured_output(mode: OutputMode) -> None:
    fields = {"name": "Oslo", "inhabitants": 700_000}
    in_pieces = said(text('{"name": "Oslo", ')) + said(text('"inhabitants": 700000}'), finish="STOP")
    body = in_pieces if mode == "native" else said(call("final_result", fields, thoughtSignature="s"), finish="STOP")
    async with serving(Answer(body=body)) as server:
        agent = Agent("guide", model=model(server), output_type=City, output_mode=mode)
        result, chunks = await watched(agent, "The capital of Norway?")
    assert result.output == City(name="Oslo", inhabitants=700_000)
    assert City.model_validate_json("".join(c.delta for c in chunks if c.type == "output_delta")) == result.output


@pytest.mark.anyio
async def test_a_malformed_call_is_tried_again_and_leaves_nothing_behind() -> None:
    malformed = event(candidates=[{"content": {}, "finishReason": "MALFORMED_FUNCTION_CALL", "index": 0}])
    async with serving(Answer(body=said(text("Let me ")) + malformed), Answer(body=DONE)) as server:
        result, chunks = await watched(Agent("a", model=model(server), settings=ModelSettings(retry_delay=0)), "go")
    assert result.output == "ok"
    assert [chunk.recoverable for chunk in chunks if chunk.type == "error"] == [True]
    assert server.requests[0].body == server.requests[1].body


@pytest.mark.anyio
async def test_a_session_goes_on_with_what_was_signed() -> None:
    signed = said(text("A")) + said(text("", thoughtSignature="Keep/+="), finish="STOP")
    async with serving(Answer(body=signed), Answer(body=DONE)) as server, helix.Executor() as executor:
        session = helix.Session(Agent("a", model=model(server)), executor)
        await session.send("one")
        await session.send("two")
    assert server.requests[1].json["contents"][1]["parts"] == [
        {"text": "A"},
        {"text": "", "thoughtSignature": "Keep/+="},
    ]
