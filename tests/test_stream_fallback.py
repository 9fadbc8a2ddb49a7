"""`stream_fallback`: a server that cannot stream is asked for its reply in one piece, and readers see deltas."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import helix
from helix import Agent, ModelSettings, RunFailed, tool
from helix.testing import check_stream
from tests.dialects import DIALECTS, ECHO, KEY, Dialect
from tests.fault_server import BACKENDS, Backend, Move, Request, run_alone, serving, whole

CHAT, RESPONSES, ANTHROPIC, GOOGLE = DIALECTS
JSON = "application/json"
TEXT: dict[str, Any] = {
    "openai_chat": {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Fine, thanks.", "reasoning_content": "Hm."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    },
    "openai_responses": {
        "object": "response",
        "status": "completed",
        "output": [
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
            {"type": "message", "id": "m", "content": [{"type": "output_text", "text": "Fine, thanks."}]},
        ],
        "usage": {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18},
    },
    "anthropic": {
        "type": "message",
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "signed"},
            {"type": "text", "text": "Fine, thanks."},
        ],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 11, "output_tokens": 7},
    },
    "google": {
        "candidates": [
            {
                "content": {"parts": [{"text": "Hm.", "thought": True}, {"text": "Fine, thanks."}], "role": "model"},
                "finishReason": "STOP",
            }
        ],
        "usageMetadata": {"promptTokenCount": 11, "candidatesTokenCount": 7, "totalTokenCount": 18},
    },
}
ARGUMENTS = '{"what": "here"}'
CALL: dict[str, Any] = {
    "openai_chat": {
        "choices": [
            {
                "message": {
                    "content": None,
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": ARGUMENTS}},
                        {"id": "c2", "type": "function", "function": {"name": "look", "arguments": ARGUMENTS}},
                    ],
                },
                "finish_reason": "tool_calls",
            }
        ]
    },
    "openai_responses": {
        "status": "completed",
        "output": [
            {"type": "function_call", "call_id": name, "name": "look", "arguments": ARGUMENTS} for name in ("c1", "c2")
        ],
    },
    "anthropic": {
        "type": "message",
        "content": [
            {"type": "tool_use", "id": name, "name": "look", "input": {"what": "here"}} for name in ("c1", "c2")
        ],
        "stop_reason": "tool_use",
    },
    "google": {
        "candidates": [
            {
                "content": {
                    "parts": [
                        {"functionCall": {"id": name, "name": "look", "args": {"what": "here"}}}
                        for name in ("c1", "c2")
                    ]
                },
                "finishReason": "STOP",
            }
        ]
    },
}


@tool
def look(what: str) -> str:
    return f"seen {what}"


def streams(request: Request) -> bool:
    """Whether the request asks for a stream."""
    return (
        "stream" in request.target
        if "google" in request.target or "v1beta" in request.target
        else bool(request.json.get("stream"))
    )


def refusing(wire: Dialect) -> Callable[[Request], Sequence[Move]]:
    """A server that refuses to stream."""
    refusal = {"error": {"message": f"Streaming is not supported: {ECHO}", "type": "invalid_request_error"}}
    bodies = iter([CALL[wire.name], TEXT[wire.name]])

    def answer(request: Request) -> Sequence[Move]:
        body = refusal if streams(request) else next(bodies)
        return whole(json.dumps(body).encode(), 400 if body is refusal else 200, JSON)

    return answer


def ignoring(wire: Dialect) -> list[list[Move]]:
    """A server that answers in one piece, whatever it is asked."""
    return [whole(json.dumps(body[wire.name]).encode(), content_type=JSON) for body in (CALL, TEXT)]


async def play(
    wire: Dialect, answers: Any, *, fallback: bool = True
) -> tuple[list[helix.Chunk], helix.RunResult[Any, Any], list[Request]]:
    async with serving(answers) as server:
        settings = ModelSettings(stream_fallback=fallback, max_retries=0)
        agent = Agent("a", model=wire.model(server.url), tools=[look], settings=settings)
        async with helix.stream(agent, "go") as run:
            chunks = await helix.collect(run)
            result = await run.result()
        await server.all_closed()
    check_stream(chunks)
    return chunks, result, server.requests


def texts(chunks: list[helix.Chunk]) -> str:
    return "".join(chunk.delta for chunk in chunks if chunk.type == "text_delta")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wire", DIALECTS, ids=lambda wire: wire.name)
def test_a_server_that_refuses_to_stream_is_asked_for_the_whole_and_remembered(wire: Dialect, backend: Backend) -> None:
    chunks, result, requests = run_alone(backend, lambda: play(wire, refusing(wire)))
    assert (result.output, texts(chunks)) == ("Fine, thanks.", "Fine, thanks.")
    assert [streams(request) for request in requests] == [True, False, False]
    assert [chunk.result for chunk in chunks if chunk.type == "tool_end"] == ["seen here"] * 2
    assert [chunk.content for chunk in chunks if chunk.type == "thinking" and not chunk.is_complete] == ["Hm."]
    assert (result.usage.input_tokens, result.usage.output_tokens) == (11, 7)
    assert not [chunk for chunk in chunks if chunk.type == "error"]
    if wire is CHAT:
        assert "stream_options" not in requests[1].json


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wire", DIALECTS, ids=lambda wire: wire.name)
def test_a_reply_in_one_piece_is_taken_as_it_comes(wire: Dialect, backend: Backend) -> None:
    chunks, result, requests = run_alone(backend, lambda: play(wire, ignoring(wire)))
    assert (result.output, texts(chunks), len(requests)) == ("Fine, thanks.", "Fine, thanks.", 2)
    assert len([chunk for chunk in chunks if chunk.type == "tool_end"]) == 2


@pytest.mark.parametrize("wire", DIALECTS, ids=lambda wire: wire.name)
def test_without_it_the_error_names_the_setting(wire: Dialect) -> None:
    _, result, _ = run_alone("asyncio", lambda: play(wire, ignoring(wire), fallback=False))
    assert (result.status, result.error_code) == ("failed", "model_rejected")
    with pytest.raises(RunFailed, match=r"ModelSettings\(stream_fallback=True\) takes that"):
        result.raise_for_status()


@pytest.mark.parametrize("wire", DIALECTS, ids=lambda wire: wire.name)
def test_other_refusals_and_broken_bodies_stay_what_they_are(wire: Dialect) -> None:
    body = json.dumps(TEXT[wire.name]).encode()
    cases = [
        (whole(json.dumps(wire.refused(400)).encode(), 400, JSON), "model_rejected"),
        (whole(json.dumps(wire.refused(503)).encode(), 503, JSON), "model_unavailable"),
        (whole(body[:-20], content_type=JSON), "model_stream_dropped"),
        (whole(b'{"some": "thing"}', content_type=JSON), "model_rejected"),
        (whole(wire.rejected, content_type=JSON), "model_rejected"),
    ]
    for answer, code in cases:
        chunks, result, requests = run_alone("asyncio", lambda answer=answer: play(wire, [answer]))
        assert (result.error_code, len(requests)) == (code, 1)
        assert KEY not in repr(chunks)


@pytest.mark.parametrize("wire", DIALECTS, ids=lambda wire: wire.name)
def test_a_server_that_streams_is_asked_to(wire: Dialect) -> None:
    _, result, requests = run_alone("asyncio", lambda: play(wire, [whole(wire.said("Streamed."))]))
    assert (result.output, [streams(request) for request in requests]) == ("Streamed.", [True])


def test_several_replies_of_gemini_in_one_array_are_one() -> None:
    halves = [{"candidates": [{"content": {"parts": [{"text": text}]}}]} for text in ("Fine, ", "thanks.")]
    body = json.dumps([*halves, {"candidates": [{"finishReason": "STOP"}]}]).encode()
    chunks, result, _ = run_alone("asyncio", lambda: play(GOOGLE, [whole(body, content_type=JSON)]))
    assert (result.output, texts(chunks)) == ("Fine, thanks.", "Fine, thanks.")


def test_what_anthropic_signed_in_one_piece_goes_back() -> None:
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "signed"}
    first = {**CALL["anthropic"], "content": [thinking, *CALL["anthropic"]["content"]]}
    answers = [whole(json.dumps(body).encode(), content_type=JSON) for body in (first, TEXT["anthropic"])]
    _, _, requests = run_alone("asyncio", lambda: play(ANTHROPIC, answers))
    assert thinking in requests[1].json["messages"][1]["content"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wire", [CHAT, RESPONSES, ANTHROPIC], ids=lambda wire: wire.name)
def test_an_error_inside_a_stream_is_no_refusal_to_stream(wire: Dialect, backend: Backend) -> None:
    error = wire.overloaded.replace(b"Broken", b"The upstream has rejected this")
    for kind in (b"server_error", b"overloaded_error"):
        error = error.replace(kind, b"invalid_request_error")
    _, result, requests = run_alone(backend, lambda: play(wire, [whole(wire.start + wire.text("Half") + error)]))
    assert (result.error_code, len(requests)) == ("model_rejected", 1)
    assert "The upstream has rejected this" in (result.error or "")
