"""Recorded traffic through each adapter: what the provider's own SDK made of it, however it is split, and every cut.

Each case of `tests/fixtures/recorded` is here by its `api`; `test_provider_loops` runs those of several exchanges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
from pydantic_core import from_json

from helix.errors import ModelError
from helix.limits import Usage
from helix.model import ModelReply
from tests import recorded
from tests.dialects import KEY, Anthropic, Chat, Dialect, Google, Responses, request
from tests.recorded import Exchange, Recorder
from tests.replay import CHUNKINGS, Answer, Chunking, ReplayServer, answer, serving, split, with_comments, with_crlf


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


# --- what the providers' SDKs made of it -------------------------------------------------------------------------


class Expected(NamedTuple):
    """What is expected of one choice of an exchange.

    Attributes:
        said, thought, refused: the words; None where the SDK does not tell them.
        calls: ids, names and arguments, as a value: of the JSON text, or of the part of it that came.
        reason: the provider's word for the ending.
        finish_reason: ours, of a reply that is no error.
        error: the provider's words.
        usage: None where nothing is known of it.
    """

    said: str
    thought: str
    refused: str | None
    calls: list[tuple[str | None, str, Any]]
    reason: str | None
    finish_reason: str | None
    error: str | None
    usage: Usage | None


def calls_of(calls: Iterable[dict[str, Any]]) -> list[tuple[str | None, str, Any]]:
    return [(call["id"], call["name"], value_of(call["arguments"])) for call in calls]


def value_of(arguments: Any) -> Any:
    return from_json(arguments, allow_partial=True) if isinstance(arguments, str) else arguments


def of_chat(told: dict[str, Any], choice: str) -> Expected:
    seen, error, usage = told["choices"][choice], told["error"], told["usage"]
    words = seen["text"], seen["reasoning"], seen["refusal"] or "", calls_of(seen["tool_calls"])
    ours = "refusal" if seen["refusal"] else seen["finish_reason"] or "stop"
    return Expected(*words, seen["finish_reason"], ours, error and error["message"], usage and chat_usage(usage))


def chat_usage(told: dict[str, Any]) -> Usage:
    cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    reasoning = (told.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)
    tokens = told["prompt_tokens"], told["completion_tokens"], told["total_tokens"]
    return Usage(*tokens, cached, reasoning, requests=1)


def of_responses(told: dict[str, Any], _: str) -> Expected:
    error, used = told["error"], told["usage"]
    usage = used and Usage(
        used["input_tokens"],
        used["output_tokens"],
        used["total_tokens"],
        used["input_tokens_details"]["cached_tokens"],
        used["output_tokens_details"]["reasoning_tokens"],
        requests=1,
    )
    ours = "tool_calls" if told["tool_calls"] else "stop"
    calls = calls_of(told["tool_calls"])
    return Expected(told["text"], told["reasoning"], "", calls, told["status"], ours, error and error["message"], usage)


def of_anthropic(told: dict[str, Any], _: str) -> Expected:
    used, reason = told["usage"], told["stop_reason"]
    read = used["input_tokens"] + used["cache_read_input_tokens"] + used["cache_creation_input_tokens"]
    written, cached = used["output_tokens"], used["cache_read_input_tokens"]
    usage = Usage(read, written, read + written, cached, requests=1)
    ours = {"end_turn": "stop", "tool_use": "tool_calls", "max_tokens": "length", "refusal": "refusal"}
    words = told["text"], told["reasoning"], None if reason == "refusal" else ""
    return Expected(*words, calls_of(told["tool_calls"]), reason, ours[reason], None, usage)


def of_google(told: dict[str, Any], _: str) -> Expected:
    used, reason = told["usage"], told["finish_reason"]
    tokens = used["promptTokenCount"], used["candidatesTokenCount"], used["totalTokenCount"]
    calls, usage = calls_of(told["tool_calls"]), Usage(*tokens, requests=1)
    return Expected(told["text"], told["reasoning"], "", calls, reason, reason.lower(), None, usage)


class Wire(NamedTuple):
    """How an API's cases are read.

    Attributes:
        reason: the decoder's attribute that holds the provider's word for the ending.
        expected: of an exchange and its choice.
        end: what the event begins with, or holds, that ends a reply.
        blank: whether that event needs the blank line behind it.
    """

    dialect: Dialect
    reason: str
    expected: Callable[[dict[str, Any], str], Expected]
    end: bytes
    blank: bool = True


WIRES = {
    "openai.chat": Wire(Chat(), "finish_reason", of_chat, b"[DONE]"),
    "openai.responses": Wire(Responses(), "status", of_responses, b"event: response.completed"),
    "anthropic.messages": Wire(Anthropic(), "stop_reason", of_anthropic, b"event: message_stop", blank=False),
    "google.generateContent": Wire(Google(), "finish_reason", of_google, b"data: "),
}


class Recording(NamedTuple):
    wire: Wire
    exchange: Exchange

    def expected(self, choice: str = "0") -> Expected:
        return self.wire.expected(self.exchange.expected, choice)


RECORDINGS = {
    f"{case.id}-{number}": Recording(WIRES[case.api], exchange)
    for case in recorded.cases()
    for number, exchange in enumerate(case.exchanges, 1)
}
STREAMED = {name: recording for name, recording in RECORDINGS.items() if recording.exchange.status == 200}
WHOLE = {name: recording for name, recording in STREAMED.items() if not recording.exchange.expected.get("error")}
LINE_ENDS = pytest.mark.parametrize("crlf", [False, True], ids=["lf", "crlf"])


def each(recordings: dict[str, Recording]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("recording", recordings.values(), ids=recordings)


def with_lines(body: bytes, *, crlf: bool) -> bytes:
    plain = body.replace(b"\r\n", b"\n")
    return with_crlf(plain) if crlf else plain


def test_there_is_a_recording_of_each_api() -> None:
    assert {recording.wire for recording in STREAMED.values()} == set(WIRES.values())


# --- the decoder -------------------------------------------------------------------------------------------------


def check(recording: Recording, pieces: Iterable[bytes], choice: str = "0") -> None:
    """The decoder makes of `pieces` what the provider's SDK made of the whole."""
    recorder, expected = Recorder(), recording.expected(choice)
    decoder = recording.wire.dialect.decoder(recorder, **({"choice": int(choice)} if choice != "0" else {}))
    reply, error = None, None
    try:
        for piece in pieces:
            decoder.feed(piece)
        reply = decoder.end()
    except ModelError as raised:
        error = raised
    assert getattr(decoder, recording.wire.reason) == expected.reason
    check_reply(expected, recorder, reply, error)
    if expected.usage is not None:  # an SDK may raise before it looks at the usage of the chunk with the error
        assert decoder.usage == expected.usage


def check_reply(expected: Expected, recorder: Recorder, reply: ModelReply | None, error: ModelError | None) -> None:
    assert (recorder.said, recorder.thought) == (expected.said, expected.thought)
    assert recorder.refused if expected.refused is None else recorder.refused == expected.refused
    assert calls_of(recorder.calls.values()) == expected.calls
    assert (error.message if error else None) == expected.error
    if reply is not None:
        assert reply.finish_reason == expected.finish_reason
        assert reply.usage == expected.usage


@each(STREAMED)
def test_a_reply_is_what_the_providers_sdk_made_of_it_however_it_is_split(recording: Recording) -> None:
    plain = recording.exchange.body
    for choice in recording.exchange.expected.get("choices", "0"):
        for lines in (plain, with_lines(plain, crlf=True), with_lines(plain, crlf=False).replace(b"\n", b"\r")):
            for body in (lines, with_comments(lines)):
                for chunking in CHUNKINGS:
                    check(recording, split(body, chunking, seed=3), choice)
    for seed in range(20):
        check(recording, split(plain, "random", seed=seed))


@pytest.mark.full
@each(STREAMED)
def test_a_reply_is_the_same_at_many_random_cuts(recording: Recording) -> None:
    for seed in range(300):
        check(recording, split(recording.exchange.body, "random", seed=seed))


# --- the real client ---------------------------------------------------------------------------------------------


async def check_through_client(recording: Recording, server: ReplayServer) -> None:
    recorder, reply, error = Recorder(), None, None
    try:
        reply = await recording.wire.dialect.model(server.url).respond(request(), recorder)
    except ModelError as raised:
        error = raised
    if recording.exchange.status == 200:
        check_reply(recording.expected(), recorder, reply, error)
    else:
        assert error is not None
        assert error.message == recording.exchange.expected["error"]["message"]


def over_the_network(name: str, chunking: Chunking) -> Any:
    """Byte by byte only in the full run where that is long."""
    recording = RECORDINGS[name]
    is_long = chunking == "bytes" and len(recording.exchange.body) > 9_000
    return pytest.param(recording, chunking, id=f"{name}-{chunking}", marks=[pytest.mark.full] if is_long else ())


OVER_THE_NETWORK = [over_the_network(name, chunking) for name in RECORDINGS for chunking in CHUNKINGS]


@pytest.mark.anyio
@pytest.mark.parametrize(("recording", "chunking"), OVER_THE_NETWORK)
async def test_the_real_client_reads_each_recording(recording: Recording, chunking: Chunking) -> None:
    async with serving(answer(recording.exchange, chunking=chunking, seed=5)) as server:
        await check_through_client(recording, server)


@pytest.mark.anyio
@pytest.mark.parametrize("chunking", ["whole", "random"])
@pytest.mark.parametrize("change", ["crlf", "comments"])
@each(RECORDINGS)
async def test_the_real_client_reads_other_lines(recording: Recording, chunking: Chunking, change: str) -> None:
    body = with_lines(recording.exchange.body, crlf=change == "crlf")
    told = answer(recording.exchange, body=body, chunking=chunking, seed=5, comments=change == "comments")
    async with serving(told) as server:
        await check_through_client(recording, server)


@pytest.mark.full
@pytest.mark.anyio
@each(RECORDINGS)
async def test_the_real_client_reads_other_lines_byte_by_byte(recording: Recording) -> None:
    body = with_lines(recording.exchange.body, crlf=True)
    async with serving(answer(recording.exchange, body=body, chunking="bytes")) as server:
        await check_through_client(recording, server)


# --- cuts --------------------------------------------------------------------------------------------------------


def complete(wire: Wire, body: bytes) -> int:
    """How many bytes make the reply whole: those of its last event, with the line end that ends it."""
    line_end = b"\r\n" if b"\r\n" in body else b"\n"
    event = body.rindex(wire.end)
    data = body.index(b"data:", event) if wire.end.startswith(b"event") else event
    end = body.find(line_end, data)
    if not wire.blank or end < 0:
        return body.rindex(b"}") + 1
    return end + len(line_end) + 1  # of CR LF, the CR is enough


def check_cuts(recording: Recording, body: bytes, step: int) -> None:
    whole, dialect = complete(recording.wire, body), recording.wire.dialect
    for at in {*range(0, whole, step), *range(max(0, whole - 90), whole)}:
        with pytest.raises(ModelError) as caught:
            dialect.decode(body[:at])
        assert (caught.value.code, caught.value.retryable) == ("model_stream_dropped", True), at
    for at in range(whole, len(body) + 1):
        dialect.decode(body[:at])


@LINE_ENDS
@each(WHOLE)
def test_a_reply_cut_at_a_sample_of_bytes_is_an_error(recording: Recording, crlf: bool) -> None:
    body = with_lines(recording.exchange.body, crlf=crlf)
    check_cuts(recording, body, 1 if len(body) < 4_000 else 97)


@pytest.mark.full
@LINE_ENDS
@each({name: recording for name, recording in WHOLE.items() if len(recording.exchange.body) < 20_000})
def test_a_reply_cut_at_any_byte_is_an_error(recording: Recording, crlf: bool) -> None:
    check_cuts(recording, with_lines(recording.exchange.body, crlf=crlf), 1)


CUT = {name: RECORDINGS[name] for name in RECORDINGS if name.startswith(("d02", "d14", "d21", "d24"))}
SHORT = {name: RECORDINGS[name] for name in RECORDINGS if name.startswith(("d04", "d14", "d22", "d24"))}


async def check_connection_cuts(recording: Recording, ending: Any, offsets: Iterable[int]) -> None:
    answers = [Answer(body=recording.exchange.body, cut=at, ending=ending) for at in offsets]
    async with serving(*answers) as server, recording.wire.dialect.model(server.url) as model:
        for each in answers:
            with pytest.raises(ModelError) as caught:
                await model.respond(request(), Recorder())
            # A reset may overtake the response's head; then there was no reply that could have broken off.
            codes = ("model_stream_dropped", "model_unavailable") if ending == "reset" else ("model_stream_dropped",)
            assert caught.value.code in codes, each.cut
            assert caught.value.retryable
            assert KEY not in f"{caught.value} {caught.value.detail}"


@pytest.mark.anyio
@pytest.mark.parametrize("ending", ["close", "broken", "reset"])
@each(CUT)
async def test_a_connection_cut_at_a_sample_of_bytes_is_an_error(recording: Recording, ending: Any) -> None:
    whole = complete(recording.wire, recording.exchange.body)
    sample = [0, 1, 2, *range(7, whole, max(97, whole // 12)), whole - 2, whole - 1]
    await check_connection_cuts(recording, ending, sample)


@pytest.mark.full
@pytest.mark.anyio
@pytest.mark.parametrize("ending", ["close", "broken"])
@each(SHORT)
async def test_a_connection_cut_at_any_byte_is_an_error(recording: Recording, ending: Any) -> None:
    await check_connection_cuts(recording, ending, range(complete(recording.wire, recording.exchange.body)))
