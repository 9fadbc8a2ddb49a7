"""The chat completions adapter: recorded traffic through the real client, every cut, every dialect, every failure."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import httpx2
import pytest
from anyio import to_thread
from openai import AsyncAzureOpenAI, AsyncOpenAI
from pydantic_core import from_json

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
from helix.model import History, ModelReply, ModelRequest, ModelSettings, OutputDefinition, ToolDefinition
from helix.models import openai_chat
from helix.models._chat import ChatDecoder, encode_message
from helix.models.openai_chat import OpenAIChatModel
from tests import recorded
from tests.recorded import Exchange, Recorder
from tests.replay import CHUNKINGS, JSON, Answer, Chunking, ReplayServer, answer, split, with_comments, with_crlf

KEY = "sk-not-a-real-key-0123456789"
EXCHANGES = {
    f"{case.id}-{number}": exchange
    for case in recorded.cases("openai.chat")
    for number, exchange in enumerate(case.exchanges, 1)
}
SMALL = {name: exchange for name, exchange in EXCHANGES.items() if len(exchange.body) < 9_000}
STREAMED = {name: exchange for name, exchange in EXCHANGES.items() if exchange.status == 200}
DONE = b"data: [DONE]\n\n"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)


def request(*messages: Message, **changes: Any) -> ModelRequest:
    settings = changes.pop("settings", ModelSettings())
    given: dict[str, Any] = {"instructions": "", "tools": (), "output": None, **changes}
    history = given.pop("history", None) or History(messages or [UserMessage("hi")])
    return ModelRequest("r", "agent", 1, 1, messages=history, settings=settings, **given)


def model(server: ReplayServer, **options: Any) -> OpenAIChatModel:
    return OpenAIChatModel("gpt-x", api_key=KEY, base_url=f"{server.url}/v1", **options)


@asynccontextmanager
async def serving(*answers: Answer) -> AsyncGenerator[ReplayServer]:
    with anyio.fail_after(60), ReplayServer(answers) as server:
        yield server


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


def check(exchange: Exchange, pieces: Iterable[bytes], choice: int = 0) -> None:
    """The decoder makes of `pieces` what the provider's SDK made of the whole."""
    recorder, expected = Recorder(), exchange.expected
    decoder = ChatDecoder(recorder, choice=choice)
    error = None
    try:
        for piece in pieces:
            decoder.feed(piece)
        decoder.end()
    except ModelError as raised:
        error = raised
    assert recorder.seen(decoder.finish_reason) == expected["choices"][str(choice)]
    assert (error.message if error else None) == (expected["error"] and expected["error"]["message"])
    if expected["usage"] is not None:  # the SDK raises before it looks at the usage of the chunk with the error
        assert decoder.usage == usage(expected["usage"])


def usage(told: dict[str, Any]) -> Usage:
    return Usage(
        told["prompt_tokens"],
        told["completion_tokens"],
        told["total_tokens"],
        (told.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        (told.get("completion_tokens_details") or {}).get("reasoning_tokens", 0),
        requests=1,
    )


@pytest.mark.parametrize("exchange", STREAMED.values(), ids=STREAMED)
def test_the_decoder_reads_recorded_traffic_however_it_is_split(exchange: Exchange) -> None:
    for choice in map(int, exchange.expected["choices"]):
        for body in (exchange.body, with_crlf(exchange.body), with_comments(exchange.body)):
            for chunking in CHUNKINGS:
                check(exchange, split(body, chunking, seed=3), choice)


@pytest.mark.anyio
@pytest.mark.parametrize("chunking", CHUNKINGS)
@pytest.mark.parametrize("exchange", SMALL.values(), ids=SMALL)
async def test_the_real_client_reads_recorded_traffic(exchange: Exchange, chunking: Chunking) -> None:
    async with serving(answer(exchange, chunking=chunking)) as server:
        await check_through_client(exchange, server)


@pytest.mark.anyio
@pytest.mark.parametrize("chunking", ["whole", "random"])
@pytest.mark.parametrize("change", ["crlf", "comments", "neither"])
async def test_the_real_client_reads_all_recorded_traffic(chunking: Chunking, change: str) -> None:
    changes: dict[str, Any] = {} if change == "neither" else {change: True}
    for exchange in EXCHANGES.values():
        async with serving(answer(exchange, chunking=chunking, seed=5, **changes)) as server:
            await check_through_client(exchange, server)


@pytest.mark.full
@pytest.mark.anyio
@pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES)
async def test_the_real_client_reads_all_recorded_traffic_byte_by_byte(exchange: Exchange) -> None:
    async with serving(answer(exchange, chunking="bytes", crlf=True)) as server:
        await check_through_client(exchange, server)


async def check_through_client(exchange: Exchange, server: ReplayServer) -> None:
    recorder, expected, reply, error = Recorder(), exchange.expected, None, None
    try:
        reply = await model(server).respond(request(), recorder)
    except ModelError as raised:
        error = raised
    assert (error.message if error else None) == (expected["error"] and expected["error"]["message"])
    if "choices" not in expected:
        return
    wanted = expected["choices"]["0"]
    assert recorder.seen(wanted["finish_reason"]) == wanted
    if reply is not None:
        assert reply.usage == usage(expected["usage"])
        assert reply.finish_reason == ("refusal" if wanted["refusal"] else wanted["finish_reason"] or "stop")


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


@pytest.mark.parametrize("case", ["d03", "d04", "d05"])
@pytest.mark.parametrize("change", [bytes, with_crlf], ids=["lf", "crlf"])
def test_a_stream_cut_at_any_byte_is_an_error(case: str, change: Any) -> None:
    body: bytes = change(recorded.load(case).exchanges[0].body)
    complete = body.index(b"[DONE]") + len(b"[DONE]\n\n" if change is bytes else b"[DONE]\r\n\r")
    for at in range(complete):
        error = failure(body[:at])
        assert (error.code, error.retryable) == ("model_stream_dropped", True), at
    for at in range(complete, len(body) + 1):
        decode(body[:at])


@pytest.mark.anyio
@pytest.mark.parametrize("ending", ["close", "broken", "reset"])
async def test_a_connection_cut_at_a_sample_of_bytes_is_an_error(ending: Any) -> None:
    body = recorded.load("d02").exchanges[0].body
    await check_cuts(body, ending, [0, 1, 2, *range(7, len(body), 641), len(body) - 2, len(body) - 1])


@pytest.mark.full
@pytest.mark.anyio
@pytest.mark.parametrize("ending", ["close", "broken"])
async def test_a_connection_cut_at_any_byte_is_an_error(ending: Any) -> None:
    body = recorded.load("d04").exchanges[0].body
    await check_cuts(body, ending, range(len(body)))


async def check_cuts(body: bytes, ending: Any, offsets: Any) -> None:
    answers = [Answer(body=body, cut=at, ending=ending) for at in offsets]
    async with serving(*answers) as server, model(server) as cut:
        for at in offsets:
            with pytest.raises(ModelError) as caught:
                await cut.respond(request(), Recorder())
            # A reset may overtake the response's head; then there was no reply that could have broken off.
            codes = ("model_stream_dropped", "model_unavailable") if ending == "reset" else ("model_stream_dropped",)
            assert caught.value.code in codes, at
            assert caught.value.retryable
            assert KEY not in f"{caught.value} {caught.value.detail}"


@pytest.mark.anyio
async def test_a_complete_reply_succeeds_however_the_body_ends() -> None:
    body = recorded.load("d04").exchanges[0].body
    async with serving(*(Answer(body=body, ending=ending) for ending in ("close", "broken", "hold"))) as server:
        for _ in range(3):
            assert (await model(server).respond(request(), Recorder())).finish_reason == "length"


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


def test_damaged_characters_do_not_end_a_reply() -> None:
    recorder, _ = decode(b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n', DONE)
    assert recorder.said == "a\ud83d"  # the next piece may have the rest
    recorder, _ = decode(b'data: {"choices":[{"delta":{"content":"a\xff"}}]}\n\n', DONE)
    assert recorder.said == "a\ufffd"


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


def test_an_error_event_may_be_no_json() -> None:
    raised = failure(b"event: error\ndata: the model is overloaded\n\n", DONE)
    assert (raised.code, raised.message) == ("model_unavailable", "the model is overloaded")


def test_usage_told_before_an_error_is_not_lost() -> None:
    told = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7})
    assert failure(told, event(error="m")).usage == Usage(3, 4, 7, requests=1)
    assert failure(told).usage == Usage(3, 4, 7, requests=1)


@pytest.mark.parametrize("broken", [b"data: {\n\n", b"data: 7\n\n", b"data: {}}\n\n"])
def test_an_event_that_cannot_be_read_is_a_dropped_stream(broken: bytes) -> None:
    assert failure(broken, DONE).code == "model_stream_dropped"


def test_bodies_that_are_no_event_stream_say_what_they_are() -> None:
    whole = failure(b'{"object":"chat.completion","choices":[],"usage":{"prompt_tokens":2}}')
    assert (whole.code, whole.retryable, whole.usage) == ("model_rejected", False, Usage(2, 0, 2, requests=1))
    assert "instead of streaming" in whole.message
    page = failure(b"\n<!doctype html><title>Sign in</title>")
    assert (page.code, page.retryable) == ("model_rejected", False)
    assert "web page" in page.message
    assert failure(b'{"detail":"nothing here"}').code == "model_rejected"
    assert failure(b'{"choices":[').code == "model_stream_dropped"
    assert failure(b"upstream timed out").code == "model_stream_dropped"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "headers", "code", "retryable", "after"),
    [
        (400, {}, "model_rejected", False, None),
        (401, {}, "model_rejected", False, None),
        (403, {"retry-after": "3"}, "model_rejected", False, None),
        (404, {}, "model_rejected", False, None),
        (408, {}, "model_unavailable", True, None),
        (409, {}, "model_unavailable", True, None),
        (425, {}, "model_unavailable", True, None),
        (429, {"retry-after": "3"}, "model_rate_limited", True, 3.0),
        (429, {"retry-after": "3", "retry-after-ms": "250"}, "model_rate_limited", True, 0.25),
        (429, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, "model_rate_limited", True, 0.0),
        (429, {"retry-after": "soon"}, "model_rate_limited", True, None),
        (429, {"x-should-retry": "false"}, "model_rate_limited", False, None),
        (500, {}, "model_unavailable", True, None),
        (529, {}, "model_unavailable", True, None),
    ],
)
async def test_an_http_error_has_the_code_that_fits_and_is_tried_once(
    status: int, headers: dict[str, str], code: str, retryable: bool, after: float | None
) -> None:
    body = json.dumps({"error": {"message": f"no, {KEY}!", "type": "t"}}).encode()
    refusal = Answer(body=body, status=status, headers=headers, content_type=JSON)
    async with serving(refusal) as server:
        with pytest.raises(ModelError) as caught:
            await model(server).respond(request(), Recorder())
    error = caught.value
    assert (error.code, error.retryable, error.retry_after) == (code, retryable, after)
    assert error.message == "no, ***!"
    assert KEY not in f"{error.detail} {error.__cause__}"
    assert error.__suppress_context__
    assert len(server.requests) == 1


@pytest.mark.anyio
async def test_an_http_error_without_words_gets_a_sentence() -> None:
    async with serving(Answer(body=b"<html>502</html>", status=502, content_type="text/html")) as server:
        with pytest.raises(ModelError, match="HTTP status 502") as caught:
            await model(server).respond(request(), Recorder())
    assert "<html>" in (caught.value.detail or "")


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


@pytest.mark.anyio
async def test_a_server_that_cannot_be_reached_is_unavailable() -> None:
    async with serving(Answer(body=b"")) as server:
        unreachable = model(server)
    with anyio.fail_after(20), pytest.raises(ModelError) as caught:
        await unreachable.respond(request(), Recorder())
    assert (caught.value.code, caught.value.retryable) == ("model_unavailable", True)


@pytest.mark.anyio
async def test_a_key_that_no_header_can_hold_is_not_shown() -> None:
    async with serving(Answer(body=DONE)) as server:
        broken = OpenAIChatModel("m", api_key="sk-secret\nsecret", base_url=server.url)
        with pytest.raises(ModelError) as caught:
            await broken.respond(request(), Recorder())
    assert not caught.value.retryable
    assert "secret" not in f"{caught.value} {caught.value.detail} {broken!r}"


@pytest.mark.anyio
async def test_a_key_echoed_inside_a_stream_is_not_shown() -> None:
    async with serving(Answer(body=event(error={"message": f"bad key {KEY}"}))) as server:
        with pytest.raises(ModelError) as caught:
            await model(server).respond(request(), Recorder())
    assert caught.value.message == "bad key ***"
    assert KEY not in (caught.value.detail or "")


# --- cancellation, time, connections -----------------------------------------------------------------------------


class Stop(Recorder):
    """Cancels at the first text."""

    def __init__(self, scope: anyio.CancelScope) -> None:
        super().__init__()
        self.scope = scope

    def text(self, delta: str) -> None:
        super().text(delta)
        self.scope.cancel()


@pytest.mark.anyio
async def test_a_cancellation_closes_the_connection_at_once() -> None:
    async with serving(Answer(body=delta(content="x"), ending="hold")) as server, model(server) as held:
        with anyio.CancelScope() as scope:
            await held.respond(request(), Stop(scope))
        assert scope.cancelled_caught
        assert await to_thread.run_sync(server.disconnected.wait, 10)


@pytest.mark.anyio
async def test_a_cancellation_before_the_reply_closes_the_connection_too() -> None:
    async with serving(Answer(body=b"", ending="hold")) as server, model(server) as held:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(held.respond, request(), Recorder())
            assert await to_thread.run_sync(server.holding.wait, 10)
            tasks.cancel_scope.cancel()
        assert await to_thread.run_sync(server.disconnected.wait, 10)


@pytest.mark.anyio
async def test_an_error_of_the_reader_passes_as_it_is_and_closes_the_connection() -> None:
    class Full(Recorder):
        def text(self, delta: str) -> None:
            raise OSError("disk full")

    async with serving(Answer(body=delta(content="x"), ending="hold")) as server, model(server) as held:
        with pytest.raises(OSError, match="disk full"):
            await held.respond(request(), Full())
        assert await to_thread.run_sync(server.disconnected.wait, 10)


@pytest.mark.anyio
async def test_a_call_may_take_its_timeout_and_no_longer() -> None:
    told = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7})
    async with serving(Answer(body=told, ending="hold")) as server:
        with pytest.raises(ModelError, match=r"within 0\.3 seconds") as caught:
            await model(server).respond(request(settings=ModelSettings(timeout=0.3)), Recorder())
        assert await to_thread.run_sync(server.disconnected.wait, 10)
    assert (caught.value.code, caught.value.retryable) == ("model_unavailable", True)
    assert caught.value.usage == Usage(3, 4, 7, requests=1)


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


def test_each_event_loop_has_a_client_of_its_own() -> None:
    async def ask() -> None:
        async with shared:
            await shared.respond(request(), Recorder())

    with ReplayServer(Answer(body=DONE)) as server:
        shared = model(server)
        for backend in ("asyncio", "trio", "asyncio"):
            anyio.run(ask, backend=backend)


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


@pytest.mark.anyio
async def test_history_and_tools_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = {"messages": 0, "tools": 0}

    def counted(name: str, encode: Any) -> Any:
        def count(value: Any) -> bytes:
            encoded[name] += 1
            return encode(value)

        return count

    monkeypatch.setattr(openai_chat, "encode_message", counted("messages", openai_chat.encode_message))
    monkeypatch.setattr(openai_chat, "encode_tools", counted("tools", openai_chat.encode_tools))
    tool: dict[str, Any] = {"name": "f", "description": "", "parameters": {"type": "object"}}
    history = History([UserMessage("1"), AssistantMessage([TextPart("2")])])
    async with serving(Answer(body=DONE)) as server, model(server) as counting:
        for turn in range(20):
            await counting.respond(request(history=history, tools=[ToolDefinition(**tool)]), Recorder())
            history.append(AssistantMessage([TextPart(str(turn))]))
    assert encoded == {"messages": 21, "tools": 1}
    assert len(server.requests[-1].json["messages"]) == 21


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
