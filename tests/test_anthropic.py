"""The Anthropic adapter: recorded traffic, every cut, what must go back unchanged, tool loops, every failure."""

from __future__ import annotations

import importlib.util
import json
import random
from typing import Any

import anyio
import httpx2
import pytest
from pydantic import BaseModel
from pydantic_core import from_json

import helix
from helix import Agent, tool
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
from helix.model import History, ModelReply, ModelSettings, OutputDefinition, ToolDefinition
from helix.models import resolve_model
from helix.models._aiohttp import AiohttpLine
from helix.models._anthropic import AnthropicDecoder
from helix.models._anthropic_messages import encode_message, join_messages
from helix.models._lines import Line
from helix.models.anthropic import DEFAULT_MAX_TOKENS, AnthropicModel
from helix.testing import check_stream
from tests import recorded
from tests.dialects import KEY, request
from tests.recorded import Recorder
from tests.replay import (
    CHUNKINGS,
    Answer,
    Chunking,
    ReplayServer,
    answer,
    serving,
    split,
)

CACHE = {"type": "ephemeral"}


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def model(server: ReplayServer, **options: Any) -> AnthropicModel:
    return AnthropicModel("claude-x", api_key=KEY, base_url=server.url, **options)


def event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), json.dumps({"type": kind, **fields}).encode())


def start(index: int, kind: str, **fields: Any) -> bytes:
    return event("content_block_start", index=index, content_block={"type": kind, **fields})


def delta(index: int, kind: str, **fields: Any) -> bytes:
    return event("content_block_delta", index=index, delta={"type": kind, **fields})


def stop(index: int) -> bytes:
    return event("content_block_stop", index=index)


def ending(reason: str | None = "end_turn", **usage: int) -> bytes:
    return event("message_delta", delta={"stop_reason": reason}, usage=usage) + event("message_stop")


def words(text: str, index: int = 0) -> bytes:
    return start(index, "text", text="") + delta(index, "text_delta", text=text) + stop(index)


def thought(text: str, signature: str, index: int = 0) -> bytes:
    begun = start(index, "thinking", thinking="", signature="")
    said = delta(index, "thinking_delta", thinking=text) if text else b""
    return begun + said + delta(index, "signature_delta", signature=signature) + stop(index)


def called(call_id: str, name: str, arguments: dict[str, Any], index: int = 0) -> bytes:
    text = json.dumps(arguments) if arguments else ""
    pieces = [text[:4], text[4:]] if text else [""]
    deltas = b"".join(delta(index, "input_json_delta", partial_json=piece) for piece in pieces)
    return start(index, "tool_use", id=call_id, name=name, input={}) + deltas + stop(index)


DONE = words("ok") + ending()


def decode(*pieces: bytes) -> tuple[Recorder, ModelReply]:
    recorder = Recorder()
    decoder = AnthropicDecoder(recorder)
    for piece in pieces:
        decoder.feed(piece)
    return recorder, decoder.end()


def failure(*pieces: bytes) -> ModelError:
    with pytest.raises(ModelError) as caught:
        decode(*pieces)
    return caught.value


# --- recorded traffic --------------------------------------------------------------------------------------------


def test_words_are_read_from_their_bytes_whatever_is_in_them() -> None:
    rng = random.Random(5)
    texts = ["a", " the", 'say "hi"', "\n\n", "tab\t", "ß😀", "back\\slash", "}\n\n", '"}', "x" * 300, "\u2028", "text"]
    for _ in range(200):
        chosen = [rng.choice(texts) for _ in range(12)]
        frames = []
        for text in chosen:
            raw = json.dumps({"type": "text_delta", "text": text}, ensure_ascii=rng.random() < 0.3)
            data = f'{{"type":"content_block_delta","index":0,"delta":{raw}{" " * rng.randrange(4)}}}'
            frames.append(f"event: content_block_delta\ndata: {data}\n\n".encode())
        body = start(0, "text", text="") + b"".join(frames) + stop(0) + ending()
        recorder, _ = decode(*split(body, rng.choice(CHUNKINGS), seed=rng.randrange(99)))
        assert recorder.said == "".join(chosen)


# --- the dialect -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "reason", "expected"),
    [
        (b"", "end_turn", "stop"),
        (b"", "stop_sequence", "stop"),
        (b"", None, "stop"),
        (b"", "something_new", "stop"),
        (b"", "max_tokens", "length"),
        (b"", "model_context_window_exceeded", "length"),
        (b"", "refusal", "refusal"),
        (called("t", "f", {}), "tool_use", "tool_calls"),
        (called("t", "f", {}), None, "tool_calls"),
        (called("t", "f", {}), "max_tokens", "length"),
    ],
)
def test_finish_reasons(said: bytes, reason: str | None, expected: str) -> None:
    assert decode(said, ending(reason))[1].finish_reason == expected


def test_a_refusal_says_why_once() -> None:
    details = {"stop_reason": "refusal", "stop_details": {"explanation": "Not this."}}
    refused = event("message_delta", delta=details)
    recorder, reply = decode(words("I "), refused, refused, event("message_stop"))
    assert (recorder.said, recorder.refused, reply.finish_reason) == ("I ", "Not this.", "refusal")
    assert decode(ending("refusal"))[0].refused == "The model declined to answer."


def test_usage_counts_the_whole_input_and_the_last_word_on_each_number_counts() -> None:
    told = {"input_tokens": 3, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 100, "output_tokens": 1}
    begun = event("message_start", message={"usage": told})
    assert decode(begun, ending(output_tokens=7))[1].usage == Usage(123, 7, 130, 100, requests=1, cache_write_tokens=20)
    later = ending(input_tokens=5, cache_read_input_tokens=0, output_tokens=9)
    assert decode(begun, later)[1].usage == Usage(25, 9, 34, 0, requests=1, cache_write_tokens=20)
    assert decode(ending())[1].usage == Usage(requests=1)


def test_calls_without_input_or_with_all_of_it_at_once() -> None:
    at_once = start(1, "tool_use", id="b", name="g", input={"x": [1]}) + stop(1)
    recorder, _ = decode(called("a", "f", {}), at_once, ending("tool_use"))
    assert [(c["id"], c["arguments"]) for c in recorder.calls.values()] == [("a", ""), ("b", '{"x":[1]}')]


def test_pings_unknown_events_and_unknown_deltas_are_no_error() -> None:
    odd = event("ping") + event("content_block_sparkle", index=0) + delta(0, "sparkle_delta", sparkle=1) + b"data:\n\n"
    recorder, _ = decode(start(0, "text", text="a"), odd, delta(0, "text_delta", text="b"), odd, stop(0), ending())
    assert recorder.said == "ab"


def test_servers_that_name_no_events_and_begin_no_blocks_are_read_too() -> None:
    body = (
        delta(0, "text_delta", text="a") + delta(0, "text_delta", text="b") + delta(1, "thinking_delta", thinking="c")
    )
    bare = b"\n".join(line for line in (body + ending()).split(b"\n") if not line.startswith(b"event:"))
    recorder, _ = decode(bare)
    assert (recorder.said, recorder.thought) == ("ab", "c")


def test_odd_shapes_are_ignored_and_never_a_foreign_error() -> None:
    rng = random.Random(11)
    odd: list[Any] = [None, 0, 1, True, "x", "", [], {}, [None], {"x": 1}, 1.5, {"type": "text"}, {"type": "tool_use"}]
    kinds = ["content_block_start", "content_block_delta", "content_block_stop", "message_start", "message_delta"]
    deltas = ["text_delta", "thinking_delta", "input_json_delta", "signature_delta", "citations_delta", "x_delta"]
    names = ["index", "content_block", "delta", "message", "usage", "text", "thinking", "partial_json", "signature"]
    for _ in range(3_000):
        fields = {name: rng.choice(odd) for name in rng.sample(names, 4)}
        if rng.random() < 0.7:
            inner = {name: rng.choice(odd) for name in rng.sample(names, 3)}
            fields["delta"] = {"type": rng.choice(deltas), **inner}
        try:
            decode(event(rng.choice(kinds), **fields), delta(0, "text_delta", text="x"), ending())
        except ModelError:
            pass


# --- what goes back ----------------------------------------------------------------------------------------------


def sent(*messages: Message) -> list[dict[str, Any]]:
    return json.loads(b"[" + join_messages(History(messages).encoded("anthropic", encode_message)) + b"]")


def answered(*pieces: bytes) -> AssistantMessage:
    """The reply as helix keeps it."""
    recorder = helix_reply()
    decoder = AnthropicDecoder(recorder)
    decoder.feed(b"".join(pieces))
    decoder.end()
    return recorder.finish()


def helix_reply(output: OutputDefinition | None = None) -> Any:
    from helix.reply import Reply

    return Reply(lambda *_: None, "r", "agent", output, ())


def test_thinking_goes_back_signed_and_in_its_place() -> None:
    search = {"id": "srv", "name": "web_search", "input": {"query": "ß"}}
    cited = {"type": "web_search_result_location", "url": "u", "encrypted_index": "e"}
    message = answered(
        thought("hm", "s1", 0),
        start(1, "redacted_thinking", data="opaque=="),
        thought("", "s2", 2),  # a provider may keep the words to itself
        thought("so", "s3", 3),
        start(4, "text", text=""),
        delta(4, "text_delta", text="I look"),
        start(5, "server_tool_use", id="srv", name="web_search", input={}),
        delta(5, "input_json_delta", partial_json='{"query": '),
        delta(5, "input_json_delta", partial_json='"ß"}'),
        start(6, "web_search_tool_result", tool_use_id="srv", content=[{"encrypted_content": "z"}]),
        start(7, "text", text="", citations=[]),
        delta(7, "citations_delta", citation=cited),
        delta(7, "text_delta", text=" found\n"),
        thought("then", "s4", 8),
        called("t1", "f", {"a": 1}, 9),
        called("t2", "g", {}, 10),
        ending("tool_use"),
    )
    assert (message.thinking, message.text) == ("hmsothen", "I look found\n")
    (back,) = sent(message)
    assert back["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "s1"},
        {"type": "redacted_thinking", "data": "opaque=="},
        {"type": "thinking", "thinking": "", "signature": "s2"},
        {"type": "thinking", "thinking": "so", "signature": "s3"},
        {"type": "text", "text": "I look"},
        {"type": "server_tool_use", **search},
        {"type": "web_search_tool_result", "tool_use_id": "srv", "content": [{"encrypted_content": "z"}]},
        {"type": "text", "text": " found\n", "citations": [cited]},
        {"type": "thinking", "thinking": "then", "signature": "s4"},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "t2", "name": "g", "input": {}},
    ]


def test_a_plain_reply_needs_no_provider_data() -> None:
    message = answered(words("a"), called("t", "f", {"x": 1}, 1), ending("tool_use"))
    assert message.provider_data is None
    assert [block["type"] for block in sent(message)[0]["content"]] == ["text", "tool_use"]


def test_unsigned_thinking_and_blank_texts_do_not_go_back() -> None:
    assert sent(AssistantMessage([ThinkingPart("hm"), TextPart(" \n"), TextPart("a")])) == [
        {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
    ]
    cut_off = answered(thought("a", "s"), start(1, "thinking", thinking="half"), ending("max_tokens"))
    assert sent(UserMessage("u"), cut_off, UserMessage("v")) == [
        {"role": "user", "content": [{"type": "text", "text": "u"}, {"type": "text", "text": "v"}]}
    ]


def test_an_outline_of_another_message_is_not_used() -> None:
    message = answered(thought("hm", "s"), words("long", 1), called("t", "f", {}, 2), ending("tool_use"))
    message.content = [TextPart("short"), *message.tool_calls]
    assert [block["type"] for block in sent(message)[0]["content"]] == ["text", "tool_use"]
    for odd in (None, 7, "x", {"blocks": 7}, {"blocks": [None, {}]}, {"blocks": [{"type": "text", "chars": "x"}]}):
        message.provider_data = {"anthropic": odd}
        assert sent(message)[0]["content"][0] == {"type": "text", "text": "short"}


def test_provider_data_of_others_stays_here() -> None:
    part = TextPart("a", provider_data={"openai": {"x": 1}})
    message = AssistantMessage([part], provider_data={"openai": {"y": 1}})
    assert sent(message) == [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}]


def test_all_results_of_a_step_are_one_message_with_what_the_user_says_next() -> None:
    calls = [ToolCall("functions.f:0", "f", {}), ToolCall("t2", "odd name", "{no json")]
    messages = sent(
        UserMessage("a"),
        UserMessage("b"),
        AssistantMessage([*calls]),
        ToolMessage("functions.f:0", "f", "1"),
        ToolMessage("t2", "odd name", "failed", is_error=True),
        UserMessage("go on"),
        AssistantMessage([], cut=True),
        UserMessage("\x00 \\"),
        AssistantMessage([RefusalPart("no")]),
        AssistantMessage([TextPart("yes"), calls[0]], cut=True),
    )
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    first, asked, results, refused = (message["content"] for message in messages)
    assert first == [{"type": "text", "text": "a\n\nb"}]
    assert asked[0] == {"type": "tool_use", "id": "functions_f_0", "name": "f", "input": {}}
    assert (asked[1]["name"], asked[1]["input"]) == ("odd_name", {"INVALID_JSON": "{no json"})
    assert results == [
        {"type": "tool_result", "tool_use_id": "functions_f_0", "content": "1"},
        {"type": "tool_result", "tool_use_id": "t2", "content": "failed", "is_error": True},
        {"type": "text", "text": "go on"},
        {"type": "text", "text": "\x00 \\"},
    ]
    assert refused == [{"type": "text", "text": "no"}, {"type": "text", "text": "yes"}]


# --- loops -------------------------------------------------------------------------------------------------------


async def talk(agent: Agent[Any, Any, Any], *prompts: str) -> list[helix.RunResult[Any, Any]]:
    """One turn for each prompt."""
    results: list[helix.RunResult[Any, Any]] = []
    async with helix.Executor() as executor:
        session = helix.Session(agent, executor)
        for prompt in prompts:
            check_stream([chunk async for chunk in session.stream(prompt)])
            results.append(session.result)
    return results


@tool
def get_weather(location: str, unit: str = "celsius") -> str:
    return f"18 degrees {unit} in {location}"


@tool
def get_time(timezone: str) -> str:
    raise helix.ModelRetry(f"no clock in {timezone}")


@pytest.mark.anyio
@pytest.mark.parametrize("chunking", CHUNKINGS)
async def test_a_loop_over_recorded_traffic_sends_back_what_came(chunking: Chunking) -> None:
    calls, thinking = recorded.load("d21").exchanges[0], recorded.load("d20").exchanges[0]
    search = called("toolu_3", "get_weather", {"location": "Rome"}, 1)
    third = thought("hm", "opaque-third") + search + ending("tool_use")
    answers = [answer(calls, chunking=chunking), Answer(body=third), answer(thinking, chunking=chunking)]
    async with serving(*answers) as server:
        agent = Agent("a", model=model(server), tools=[get_weather, get_time], instructions="Be brief.")
        result, follow_up = await talk(agent, "What is the weather and time in San Francisco?", "and then?")
    assert result.output == follow_up.output == thinking.expected["text"]
    bodies = [received.json for received in server.requests]
    assert [len(body["messages"]) for body in bodies] == [1, 3, 5, 7]
    for earlier, later in zip(server.requests, server.requests[1:], strict=False):  # what a cache holds stays as it was
        first, second = (received.body.split(b'"messages":[')[1] for received in (earlier, later))
        assert second.startswith(first.removesuffix(b"]}"))
        assert earlier.body.split(b'"tools":')[1].split(b'"messages"')[0] in later.body
    results = bodies[1]["messages"][2]
    assert results["role"] == "user"
    assert [(block["type"], block["tool_use_id"]) for block in results["content"]] == [
        ("tool_result", call["id"]) for call in calls.expected["tool_calls"]
    ]
    assert [block.get("is_error") for block in results["content"]] == [None, True]
    assert bodies[2]["messages"][3]["content"][0] == {
        "type": "thinking",
        "thinking": "hm",
        "signature": "opaque-third",
    }
    kept = bodies[3]["messages"][5]["content"]
    assert kept[0]["signature"].encode() in thinking.body
    assert (kept[0]["thinking"], kept[1]["text"]) == (thinking.expected["reasoning"], thinking.expected["text"])


class City(BaseModel):
    city: str


@pytest.mark.anyio
async def test_a_structured_output_is_a_call() -> None:
    body = called("toolu_1", "final_result", {"city": "Rome"}) + ending("tool_use")
    async with serving(Answer(body=body)) as server:
        agent = Agent("a", model=model(server), output_type=City)
        (result,) = await talk(agent, "?")
    assert server.requests[0].json["tool_choice"] == {"type": "tool", "name": "final_result"}
    assert result.output == City(city="Rome")


@pytest.mark.anyio
async def test_a_reply_in_which_the_provider_pauses_is_continued() -> None:
    told = {"input_tokens": 10, "output_tokens": 1}
    search = start(1, "server_tool_use", id="srv", name="web_search", input={"query": "x"}) + stop(1)
    first = event("message_start", message={"usage": told}) + words("I look.") + search + ending("pause_turn")
    second = event("message_start", message={"usage": told}) + words(" Found.") + ending(output_tokens=5)
    third = words("You are welcome.") + ending()
    async with serving(Answer(body=first), Answer(body=second), Answer(body=third)) as server:
        agent = Agent("a", model=model(server))
        result, _ = await talk(agent, "?", "thanks")
    assert result.output == "I look. Found."
    assert result.usage == Usage(20, 6, 26, requests=2)
    kept = [
        {"type": "text", "text": "I look."},
        {"type": "server_tool_use", "id": "srv", "name": "web_search", "input": {"query": "x"}},
    ]
    _, resumed, after = (received.json["messages"] for received in server.requests)
    assert resumed[1] == {"role": "assistant", "content": kept}
    assert after[1] == {"role": "assistant", "content": [*kept, {"type": "text", "text": " Found."}]}


@pytest.mark.anyio
async def test_a_reply_that_failed_in_the_middle_is_tried_again_and_left_nothing_behind() -> None:
    body = recorded.load("d21").exchanges[0].body
    overloaded = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    cut = body.index(b"event: content_block_stop\n", body.index(b"America/L"))
    answers = [Answer(body=body[:cut] + overloaded), Answer(body=body, cut=cut), Answer(body=DONE)]
    async with serving(*answers) as server:
        agent = Agent("a", model=model(server), tools=[get_weather], settings=ModelSettings(retry_delay=0))
        (result,) = await talk(agent, "?")
    assert result.output == "ok"
    assert [type(message) for message in result.messages] == [UserMessage, AssistantMessage]
    assert [received.body for received in server.requests] == [server.requests[0].body] * 3
    assert result.usage.requests == 3


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "code", "retryable"),
    [
        ("overloaded_error", "model_unavailable", True),
        ("api_error", "model_unavailable", True),
        ("timeout_error", "model_unavailable", True),
        ("rate_limit_error", "model_rate_limited", True),
        ("billing_error", "model_rate_limited", False),
        ("invalid_request_error", "model_rejected", False),
        ("authentication_error", "model_rejected", False),
        ("permission_error", "model_rejected", False),
        ("not_found_error", "model_rejected", False),
        ("something_new", "model_stream_dropped", True),
    ],
)
def test_an_error_inside_a_stream_has_the_code_that_fits(kind: str, code: str, retryable: bool) -> None:
    begun = event("message_start", message={"usage": {"input_tokens": 3, "output_tokens": 1}})
    broken = event("error", error={"type": kind, "message": "m"}, request_id="req_1")
    raised = failure(begun, words("half"), broken, ending())
    assert (raised.code, raised.retryable, raised.message) == (code, retryable, "m")
    assert raised.usage == Usage(3, 1, 4, requests=1)
    whole = failure(broken.split(b"data: ")[1])  # the body is no event stream
    assert (whole.code, whole.message) == (code, "m")


@pytest.mark.anyio
@pytest.mark.parametrize("base_url", ["api.example.com", "ftp://x", "http://x:y"])
async def test_a_base_url_that_is_none_is_told(base_url: str) -> None:
    with anyio.fail_after(20), pytest.raises(ModelError, match="base URL must begin with") as caught:
        await AnthropicModel("m", api_key=KEY, base_url=base_url).respond(request(), Recorder())
    assert (caught.value.code, caught.value.retryable) == ("model_rejected", False)


# --- cancellation, time, connections -----------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_client_lives_as_long_as_its_last_user_and_its_connection_is_used_again() -> None:
    made: list[Line] = []
    closed: list[Line] = []

    class Counted(AnthropicModel):
        def _open(self) -> Line:
            made.append(super()._open())
            return made[-1]

        async def _close(self, client: Line) -> None:
            await super()._close(client)
            closed.append(client)

    async with serving(Answer(body=DONE)) as server:
        counted = Counted("m", api_key=KEY, base_url=server.url)
        async with counted:
            assert made == []
            async with counted:
                await counted.respond(request(), Recorder())
            await counted.respond(request(), Recorder())
            assert (len(made), closed) == (1, [])
            assert len(server._connections) == 1
        assert closed == made
        await counted.respond(request(), Recorder())
        assert len(made) == 2
        assert closed == made


def test_each_event_loop_has_a_client_of_its_own_and_asyncio_uses_aiohttp() -> None:
    uses_aiohttp: list[bool] = []

    async def ask() -> None:
        async with shared:
            await shared.respond(request(), Recorder())
            uses_aiohttp.append(isinstance(shared._client(), AiohttpLine))

    with ReplayServer(Answer(body=DONE)) as server:
        shared = model(server)
        for backend in ("asyncio", "trio", "asyncio"):
            anyio.run(ask, backend=backend)
    fast = importlib.util.find_spec("aiohttp") is not None
    assert uses_aiohttp == [fast, False, fast]


@pytest.mark.anyio
async def test_an_injected_client_is_used_as_it_is_and_never_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    async with serving(Answer(body=DONE)) as server:
        headers = {"x-team": "blue", "x-api-key": "another"}
        async with httpx2.AsyncClient(base_url=f"{server.url}/gateway", headers=headers) as client:
            async with AnthropicModel("m", client=client) as injected:
                await injected.respond(request(), Recorder())
            assert not client.is_closed
        monkeypatch.delenv("ANTHROPIC_API_KEY")
        async with httpx2.AsyncClient(base_url=server.url) as client:
            await AnthropicModel("m", client=client).respond(request(), Recorder())
    first, second = server.requests
    assert first.target == "/gateway/v1/messages"
    assert (first.headers["x-team"], first.headers["x-api-key"]) == ("blue", "another")
    assert "x-api-key" not in second.headers


# --- requests ----------------------------------------------------------------------------------------------------

LOOK = ToolDefinition("look", "Look it up.", {"type": "object", "properties": {}})


@pytest.mark.anyio
async def test_a_request_carries_what_was_asked_for() -> None:
    settings = ModelSettings(
        temperature=0.5,
        top_p=0.9,
        max_tokens=7,
        stop="END",
        seed=3,
        parallel_tool_calls=False,
        headers={"x-trace": "t", "anthropic-beta": "b"},
        extra_body={"temperature": 1, "metadata": {"user_id": "u"}},
    )
    async with serving(Answer(body=DONE)) as server:
        asked = request(UserMessage("hé"), instructions="Be brief.", tools=[LOOK], settings=settings)
        await model(server).respond(asked, Recorder())
        await model(server, cache=False).respond(request(settings=ModelSettings(parallel_tool_calls=True)), Recorder())
    first, second = server.requests
    assert first.json == {
        "model": "claude-x",
        "stream": True,
        "cache_control": CACHE,
        "max_tokens": 7,
        "temperature": 1,
        "top_p": 0.9,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u"},
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "tools": [
            {
                "name": "look",
                "description": "Look it up.",
                "input_schema": LOOK.parameters,
                "cache_control": CACHE,
            }
        ],
        "system": [{"type": "text", "text": "Be brief.", "cache_control": CACHE}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hé"}]}],
    }
    assert (first.method, first.target) == ("POST", "/v1/messages")
    assert first.headers["x-api-key"] == KEY
    assert first.headers["anthropic-version"] == "2023-06-01"
    assert first.headers["content-type"] == "application/json"
    assert (first.headers["x-trace"], first.headers["anthropic-beta"]) == ("t", "b")
    assert second.json.keys() == {"model", "stream", "max_tokens", "messages"}
    assert second.json["max_tokens"] == DEFAULT_MAX_TOKENS


@pytest.mark.anyio
async def test_extra_body_goes_over_everything() -> None:
    extra = {"messages": [], "tools": [], "model": "other", "system": "x", "cache_control": None, "max_tokens": 1}
    async with serving(Answer(body=DONE)) as server:
        asked = request(tools=[LOOK], instructions="y", settings=ModelSettings(extra_body=extra))
        await model(server).respond(asked, Recorder())
    assert server.requests[0].body.count(b'"messages"') == 1
    assert extra.items() <= server.requests[0].json.items()


def body_of(**changes: Any) -> dict[str, Any]:
    return from_json(AnthropicModel("m", api_key=KEY)._body(request(**changes)))


def test_structured_output_is_a_forced_call_unless_the_model_thinks() -> None:
    output = OutputDefinition("final", "The answer.", {"type": "object"})
    alone, chosen = body_of(output=output), body_of(output=output, tools=[LOOK])
    assert [tool["name"] for tool in chosen["tools"]] == ["look", "final"]
    assert (alone["tool_choice"], chosen["tool_choice"]) == ({"type": "tool", "name": "final"}, {"type": "any"})
    budgeted: dict[str, Any] = {"type": "enabled", "budget_tokens": 2_000}
    for thinking, room in ((budgeted, 2_000), ({"type": "adaptive"}, 0)):
        settings = ModelSettings(extra_body={"thinking": thinking}, parallel_tool_calls=False)
        sent = body_of(output=output, settings=settings)
        assert sent["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
        assert sent["max_tokens"] == DEFAULT_MAX_TOKENS + room
    disabled = ModelSettings(extra_body={"thinking": {"type": "disabled"}})
    assert body_of(output=output, settings=disabled)["tool_choice"]["type"] == "tool"


# --- names and keys ----------------------------------------------------------------------------------------------


def test_a_name_gives_its_model_and_no_text_of_it_shows_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingKey, match="ANTHROPIC_API_KEY is not set, and 'anthropic:claude-x' needs it"):
        resolve_model("anthropic:claude-x")
    monkeypatch.setenv("ANTHROPIC_API_KEY", f" {KEY}\n")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "https://gateway.example/x/")
    named = resolve_model("anthropic:claude-x")
    assert isinstance(named, AnthropicModel)
    assert (named.name, repr(named)) == ("anthropic:claude-x", "AnthropicModel('claude-x')")
    assert (named._api_key, named.base_url) == (KEY, "https://gateway.example/x")


def test_empty_variables_are_like_unset_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "")
    monkeypatch.setenv("ANTHROPIC_API_KEY", " ")
    with pytest.raises(MissingKey):
        AnthropicModel("m")
    assert AnthropicModel("m", api_key=KEY).base_url == "https://api.anthropic.com"
