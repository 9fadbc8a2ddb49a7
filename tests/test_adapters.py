"""What holds at every adapter, over the four wires of `tests.dialects`: the real client, HTTP, the whole of helix."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import anyio
import pytest
from anyio import to_thread

import helix
from helix import Agent, Executor, Image, ModelError, ModelSettings, Session, Usage, tool
from helix.messages import AssistantMessage, ToolCall, ToolMessage, UserMessage
from helix.model import History, ToolDefinition
from helix.models._served import ServedModel
from helix.testing import check_stream
from tests.dialects import DIALECTS, ECHO, KEY, SECRET, Called, Dialect, event, request
from tests.recorded import Recorder
from tests.replay import JSON, Answer, ReplayServer, serving

PNG = b"\x89PNG\r\n"
CAT = Image(data=PNG, media_type="image/png")
GLOBE = "\ud83c\udf0d"  # one character in the two halves that JSON writes
BOTH = GLOBE.encode("utf-16", "surrogatepass").decode("utf-16")
HIGH, LOW = GLOBE
LOST = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(params=DIALECTS, ids=lambda dialect: dialect.name)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return request.param


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


def streamed(body: bytes) -> Answer:
    return Answer(body=body)


@tool
def look(place: str) -> str:
    """Look at a place."""
    return f"{place} is fine"


# --- characters that a server cuts in two


async def said(dialect: Dialect, body: bytes, *more: bytes) -> list[Any]:
    """The parts of the first reply. Its deltas add up to them."""
    async with serving(*map(streamed, (body, *more))) as server, helix.stream(watcher(dialect, server), "go") as run:
        chunks = await helix.collect(run)
        result = await run.result()
    check_stream(chunks)
    assert result.status == "completed"
    reply = result.messages[1]
    assert isinstance(reply, AssistantMessage)
    return [getattr(part, "text", None) or getattr(part, "arguments", None) for part in reply.content]


def watcher(dialect: Dialect, server: ReplayServer, **options: Any) -> Agent:
    return Agent("watcher", model=dialect.model(server.url), tools=[look], **options)


@pytest.mark.anyio
async def test_halves_of_a_character_are_joined_in_words_thoughts_and_arguments(dialect: Dialect) -> None:
    arguments = f'{{"place": "c{GLOBE}d"}}'
    call = Called("t", "look", arguments, cut=arguments.index(LOW) if dialect.has_indexes else None)
    body = dialect.start
    for pieces in (("ab", f"c{HIGH}", f"{LOW}d", "e"), (HIGH, LOW)):
        body += b"".join(map(dialect.thought, pieces))
    body += b"".join(map(dialect.text, ("so ", f"ab{HIGH}", f"{LOW}c", HIGH, LOW, "!")))
    body += dialect.calls([call], first=1) + dialect.end(calls=True)
    parts = await said(dialect, body, dialect.said("done"))
    assert parts == [f"abc{BOTH}de{BOTH}", f"so ab{BOTH}c{BOTH}!", {"place": f"c{BOTH}d"}]


@pytest.mark.anyio
async def test_a_half_whose_rest_never_comes_is_replaced_where_it_stands(dialect: Dialect) -> None:
    body = dialect.start + dialect.thought(f"a{HIGH}") + dialect.text(f"b{HIGH}") + dialect.text("c")
    body += dialect.text(f"{LOW}d{HIGH}") + dialect.text(f"{HIGH}{LOW}") + dialect.text(HIGH) + dialect.end()
    assert await said(dialect, body) == [f"a{LOST}", f"b{LOST}c{LOST}d{LOST}{BOTH}{LOST}"]


@pytest.mark.anyio
async def test_half_a_character_alone_is_replaced_too(dialect: Dialect) -> None:
    assert await said(dialect, dialect.start + dialect.text(HIGH) + dialect.end()) == [LOST]
    assert await said(dialect, dialect.start + dialect.thought(HIGH) + dialect.text(LOW) + dialect.end()) == [
        LOST,
        LOST,
    ]


# --- the same bytes again


OPENINGS = {"openai_responses": b'"input":[', "google": b'"contents":['}
"""What stands before the conversation in a request, if not `"messages":[`."""


def taken_apart(dialect: Dialect, body: bytes) -> tuple[bytes, bytes]:
    """A request's conversation, without the bracket that closes it; and all the rest of the request."""
    opening = OPENINGS.get(dialect.name, b'"messages":[')
    at = body.index(opening) + len(opening)
    end = next(end for end in ends_of(body, b"]", at) if is_list(body[at - 1 : end + 1]))
    return body[at:end], body[:at] + body[end:]


def ends_of(body: bytes, byte: bytes, at: int) -> Iterator[int]:
    while (at := body.find(byte, at)) >= 0:
        yield at
        at += 1


def is_list(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False


@pytest.mark.anyio
async def test_what_was_sent_is_sent_again_byte_by_byte(dialect: Dialect) -> None:
    """Images, thoughts, parallel calls, failures, a reply that is tried again, steering, the next turn of a session."""
    calls = [
        Called("a", "look", '{"place": "hé"}'),
        Called("b", "look", '{"plaice": 1}'),
        Called("c", "unknown", "{}"),
    ]
    first = dialect.thought("Hm.") + dialect.text("I look.") + dialect.calls(calls, 1)
    bodies = [
        dialect.start + first + dialect.end(calls=True),
        dialect.start + dialect.text("half"),  # breaks off, and is asked for again
        dialect.called(Called("d", "steer", "{}"), first=1),
        dialect.said("Fine."),
        dialect.called(Called("e", "look", json.dumps({"place": '\\ " ]}'})), first=1),
        dialect.said("Fine again."),
    ]

    @tool
    async def steer() -> str:
        await session.handle.send(["Hurry:", CAT])
        await session.handle.send("please")
        return "]}, steered"

    options: Any = {"instructions": "Look.", "settings": helix.ModelSettings(retry_delay=0)}
    async with serving(*map(streamed, bodies)) as server, Executor() as executor:
        agent = Agent("watcher", model=dialect.model(server.url), tools=[look, steer], **options)
        session = Session(agent, executor)
        one = await session.send(["What is this?", CAT])
        two = await session.send("And now?")
    assert (one.status, two.status) == ("completed", "completed")
    sent = [taken_apart(dialect, received.body) for received in server.requests]
    assert len(sent) == 6
    assert sent[1] == sent[2]  # tried again
    for (earlier, around), (later, around_later) in pairwise(sent):
        assert around == around_later  # the instructions, the tools, the settings, the cache hints
        if dialect.name == "anthropic":  # what users and tools say in a row is one message, which may go on
            earlier = earlier.removesuffix(b"]}")
        assert later.startswith(earlier)
    assert [messages.count(b64encode(PNG)) for messages, _ in sent] == [1, 1, 1, 2, 2, 2]


@pytest.mark.anyio
async def test_history_and_tools_are_encoded_once(dialect: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = {"messages": 0, "tools": 0}

    def counted(name: str, encode: Any) -> Any:
        def count(value: Any) -> bytes:
            encoded[name] += 1
            return encode(value)

        return count

    messages: Any = History.encoded
    tools: Any = ServedModel[Any]._tools
    monkeypatch.setattr(History, "encoded", lambda *args: messages(*args[:-1], counted("messages", args[-1])))
    monkeypatch.setattr(ServedModel, "_tools", lambda *args: tools(*args[:-1], counted("tools", args[-1])))
    history = History([UserMessage("1"), AssistantMessage([ToolCall("t", "f", {})]), ToolMessage("t", "f", "2")])
    async with serving(streamed(dialect.said("ok"))) as server, dialect.model(server.url) as model:
        for turn in range(20):
            again = ToolDefinition("f", "", {"type": "object"})
            await model.respond(request(history=history, tools=[again]), Recorder())
            history.append(AssistantMessage([ToolCall(f"t{turn}", "f", {})]))
            history.append(ToolMessage(f"t{turn}", "f", "go on"))
    assert encoded == {"messages": 3 + 19 * 2, "tools": 1}
    assert server.requests[-1].body.count(b"go on") == 19


# --- replies that are none


def failure(dialect: Dialect, *pieces: bytes) -> ModelError:
    with pytest.raises(ModelError) as caught:
        dialect.decode(*pieces)
    return caught.value


def test_damaged_characters_do_not_end_a_reply(dialect: Dialect) -> None:
    half = dialect.text("aX").replace(b"X", b"\\ud83d")
    assert dialect.decode(dialect.start, half, dialect.end())[0].said == "a\ud83d"  # the next piece may have the rest
    no_utf_8 = dialect.text("aX").replace(b"X", b"\xff")
    assert dialect.decode(dialect.start, no_utf_8, dialect.end())[0].said == f"a{LOST}"
    both = dialect.start, dialect.text("a"), half, no_utf_8, dialect.end()
    assert dialect.decode(*both)[0].said == f"aa\ud83da{LOST}"


@pytest.mark.parametrize("broken", [b"data: {\n\n", b"data: 7\n\n", b"data: {}}\n\n", b"data: %b\n\n" % KEY.encode()])
def test_an_event_that_cannot_be_read_is_a_dropped_stream(dialect: Dialect, broken: bytes) -> None:
    for body in (broken + dialect.said("ok"), dialect.start + dialect.text("x") + broken + dialect.end()):
        assert failure(dialect, body).code == "model_stream_dropped"


@pytest.mark.parametrize("nothing", [b"data:\n\n", b"data: {}\n\n", b": ping\n\n", b"event: x\n\n"])
def test_events_that_say_nothing_are_passed_over(dialect: Dialect, nothing: bytes) -> None:
    assert dialect.decode(nothing, dialect.start, nothing, dialect.text("ok"), nothing, dialect.end())[0].said == "ok"


def test_an_error_event_may_be_no_json_or_no_usual_one(dialect: Dialect) -> None:
    assert failure(dialect, b'event: error\ndata: {"message":"m"}\n\n', dialect.end()).message == "m"
    error = failure(dialect, b"event: error\ndata: the model is overloaded\n\n", dialect.end())
    assert (error.code, error.message) == ("model_unavailable", "the model is overloaded")


def test_usage_told_before_an_error_is_not_lost(dialect: Dialect) -> None:
    usage = Usage(3, 4, 7, requests=1) if dialect.told(3, 4) else None
    for error in (dialect.overloaded, dialect.limited, b""):
        assert failure(dialect, dialect.told(3, 4), dialect.text("x"), error).usage == usage


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"\n<!doctype html><title>Sign in</title>", "model_rejected", "web page"),
        (b'{"detail":"nothing here"}', "model_rejected", "JSON that is no"),
        (b'{"type":', "model_stream_dropped", "broke off"),
        (b'[{"type":', "model_stream_dropped", "broke off"),
        (b"upstream timed out", "model_stream_dropped", "broke off"),
        (b"", "model_stream_dropped", "broke off"),
    ],
)
def test_a_body_that_is_no_event_stream_says_what_it_is(dialect: Dialect, body: bytes, code: str, words: str) -> None:
    error = failure(dialect, body)
    assert (error.code, error.retryable) == (code, code == "model_stream_dropped")
    assert words in error.message


def test_a_reply_in_one_piece_is_refused_and_its_usage_kept(dialect: Dialect) -> None:
    error = failure(dialect, json.dumps({**dialect.whole, **dialect.usage(2, 0)}).encode())
    assert (error.code, error.retryable, error.usage) == ("model_rejected", False, Usage(2, 0, 2, requests=1))
    assert "instead of streaming" in error.message


@pytest.mark.anyio
@pytest.mark.parametrize("ending", ["broken", "hold"])
@pytest.mark.parametrize("dialect", [one for one in DIALECTS if not one.tells_its_end], ids=lambda one: one.name)
async def test_a_reply_whose_body_alone_tells_its_end_is_not_complete_without_it(dialect: Dialect, ending: Any) -> None:
    async with serving(Answer(body=dialect.said("ok"), ending=ending)) as server:
        asked = request(settings=ModelSettings(between_bytes=0.2))
        with pytest.raises(ModelError) as caught:
            await dialect.model(server.url).respond(asked, Recorder())
    code = {"broken": "model_stream_dropped", "hold": "model_unavailable"}[ending]
    assert (caught.value.code, caught.value.retryable) == (code, True)


ENDINGS = [
    pytest.param(one, ending, id=f"{one.name}-{ending}")
    for one in DIALECTS
    for ending in (("close", "broken", "hold") if one.tells_its_end else ("close",))
]


@pytest.mark.anyio
@pytest.mark.parametrize(("dialect", "ending"), ENDINGS)
async def test_a_complete_reply_succeeds_however_the_body_ends(dialect: Dialect, ending: Any) -> None:
    async with serving(Answer(body=dialect.said("ok"), ending=ending)) as server:
        recorder = Recorder()
        reply = await dialect.model(server.url).respond(request(), recorder)
    assert (recorder.said, reply) == ("ok", helix.ModelReply("stop", Usage(11, 7, 18, requests=1)))


# --- errors


async def refused(dialect: Dialect, answer: Answer, key: str = KEY) -> ModelError:
    """The error of one call, which was made once, and in which no secret stands."""
    asked = request(settings=ModelSettings(headers={"x-secret-token": SECRET}))
    async with serving(answer) as server:
        model = dialect.model(server.url, key)
        with pytest.raises(ModelError) as caught:
            await model.respond(asked, Recorder())
        assert len(server.requests) <= 1
    error = caught.value
    shown = f"{error} {error!r} {error.detail} {error.__cause__} {model!r}"
    assert all(secret not in shown for secret in (key, KEY, SECRET))
    assert error.__cause__ or error.__suppress_context__ or error.__context__ is None
    return error


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "headers", "code", "retryable", "after"),
    [
        (307, {"location": "http://127.0.0.1:9/"}, "model_rejected", False, None),
        (400, {}, "model_rejected", False, None),
        (401, {}, "model_rejected", False, None),
        (403, {}, "model_rejected", False, None),
        (403, {"retry-after": "3"}, "model_rejected", False, None),
        (404, {}, "model_rejected", False, None),
        (408, {}, "model_unavailable", True, None),
        (409, {}, "model_unavailable", True, None),
        (413, {}, "model_rejected", False, None),
        (425, {}, "model_unavailable", True, None),
        (429, {}, "model_rate_limited", True, None),
        (429, {"retry-after": "3"}, "model_rate_limited", True, 3.0),
        (429, {"retry-after": "3", "retry-after-ms": "250"}, "model_rate_limited", True, 0.25),
        (429, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, "model_rate_limited", True, 0.0),
        (429, {"retry-after": "soon"}, "model_rate_limited", True, None),
        (429, {"x-should-retry": "false"}, "model_rate_limited", False, None),
        (500, {}, "model_unavailable", True, None),
        (503, {"retry-after": "1.5"}, "model_unavailable", True, 1.5),
        (504, {}, "model_unavailable", True, None),
        (529, {}, "model_unavailable", True, None),
    ],
)
async def test_an_http_error_has_the_code_that_fits_and_is_tried_once(
    dialect: Dialect, status: int, headers: dict[str, str], code: str, retryable: bool, after: float | None
) -> None:
    body = json.dumps(dialect.refused(status)).encode()
    error = await refused(dialect, Answer(body=body, status=status, headers=headers, content_type=JSON))
    assert (error.code, error.retryable, error.retry_after) == (code, retryable, after)
    assert error.message == "No: you sent *** and ***"
    assert f"HTTP {status} http://127.0.0.1" in (error.detail or "")


@pytest.mark.anyio
async def test_an_http_error_without_words_gets_a_sentence(dialect: Dialect) -> None:
    error = await refused(dialect, Answer(body=b"<html>502</html>", status=502, content_type="text/html"))
    assert "HTTP status 502" in error.message
    assert "<html>" in (error.detail or "")


@pytest.mark.anyio
async def test_an_http_error_whose_body_breaks_off_still_tells_its_status(dialect: Dialect) -> None:
    error = await refused(dialect, Answer(body=b'{"error":', status=529, content_type=JSON, ending="broken", cut=4))
    assert "HTTP status 529" in error.message
    assert error.retryable


@pytest.mark.anyio
async def test_a_server_that_cannot_be_reached_is_unavailable(dialect: Dialect) -> None:
    async with serving(Answer(body=b"")) as server:
        unreachable = dialect.model(server.url)
    with anyio.fail_after(20), pytest.raises(ModelError, match="cannot be reached") as caught:
        await unreachable.respond(request(), Recorder())
    assert (caught.value.code, caught.value.retryable) == ("model_unavailable", True)


@pytest.mark.anyio
@pytest.mark.parametrize("key", ["sk-secret\nsecret", "sk-secret-\u00df", "sk-secret\x00"])
async def test_a_key_that_no_header_can_hold_is_not_shown(dialect: Dialect, key: str) -> None:
    error = await refused(dialect, Answer(body=dialect.said("ok")), key)
    assert not error.retryable
    assert "secret" not in f"{error} {error.detail} {error.__cause__}"


@pytest.mark.anyio
async def test_secrets_echoed_inside_a_stream_are_not_shown(dialect: Dialect) -> None:
    for shape in (dialect.overloaded, dialect.limited, event(dialect.refused(400)), dialect.rejected):
        error = await refused(dialect, Answer(body=shape))
        assert error.message.endswith(": you sent *** and ***")
    assert (await refused(dialect, Answer(body=dialect.text("x") + b"data: %b\n\n" % ECHO.encode()))).retryable


# --- cancellation, time, connections


@pytest.mark.anyio
async def test_a_cancellation_closes_the_connection_at_once(dialect: Dialect) -> None:
    class Stop(Recorder):
        def text(self, delta: str) -> None:
            scope.cancel()

    held = Answer(body=dialect.start + dialect.text("x"), ending="hold")
    async with serving(held) as server, dialect.model(server.url) as model:
        with anyio.CancelScope() as scope:
            await model.respond(request(), Stop())
        assert scope.cancelled_caught
        assert await to_thread.run_sync(server.disconnected.wait, 10)


@pytest.mark.anyio
async def test_a_cancellation_before_the_reply_closes_the_connection_too(dialect: Dialect) -> None:
    async with serving(Answer(body=b"", ending="hold")) as server, dialect.model(server.url) as model:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(model.respond, request(), Recorder())
            assert await to_thread.run_sync(server.holding.wait, 10)
            tasks.cancel_scope.cancel()
        assert await to_thread.run_sync(server.disconnected.wait, 10)


@pytest.mark.anyio
async def test_an_error_of_the_reader_passes_as_it_is_and_closes_the_connection(dialect: Dialect) -> None:
    class Full(Recorder):
        def text(self, delta: str) -> None:
            raise OSError("disk full")

    held = Answer(body=dialect.start + dialect.text("x"), ending="hold")
    async with serving(held) as server, dialect.model(server.url) as model:
        with pytest.raises(OSError, match="disk full"):
            await model.respond(request(), Full())
        assert await to_thread.run_sync(server.disconnected.wait, 10)


@pytest.mark.anyio
async def test_a_call_may_take_its_timeout_and_no_longer(dialect: Dialect) -> None:
    body = dialect.start + dialect.told(3, 4) + dialect.text("x")
    async with serving(Answer(body=body, ending="hold")) as server:
        with pytest.raises(ModelError, match=r"within 0\.3 seconds") as caught:
            await dialect.model(server.url).respond(request(settings=ModelSettings(timeout=0.3)), Recorder())
        assert await to_thread.run_sync(server.disconnected.wait, 10)
    assert (caught.value.code, caught.value.retryable) == ("model_unavailable", True)
    assert caught.value.usage == (Usage(3, 4, 7, requests=1) if dialect.told(3, 4) else None)


def test_each_event_loop_has_a_client_of_its_own(dialect: Dialect) -> None:
    async def ask() -> None:
        async with model:
            await model.respond(request(), Recorder())

    with ReplayServer(streamed(dialect.said("ok"))) as server:
        model = dialect.model(server.url)
        for backend in ("asyncio", "trio", "asyncio"):
            anyio.run(ask, backend=backend)
        assert len(server.requests) == 3
