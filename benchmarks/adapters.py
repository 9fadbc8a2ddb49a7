"""The adapters' decoders, without a network: a provider's bytes in, texts out, beside a loop written by hand."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from pydantic_core import from_json

from benchmarks.table import Row, Table, ratio
from helix.model import Emit, ModelReply
from helix.models._anthropic import AnthropicDecoder
from helix.models._chat import ChatDecoder
from helix.models._google import GoogleDecoder
from helix.models._responses import ResponsesDecoder

DELTAS = 5_000
BOUND = 1.3
_WORDS = (" the", " of", " a", " stream", " is", ",", " what", " comes", ".", " And", " then", " some")


class _Decoder(Protocol):
    def feed(self, data: bytes) -> None: ...
    def end(self) -> ModelReply: ...


class Texts:
    """An `Emit` that keeps the texts, and nothing else."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.text: Any = self.texts.append  # the list's own, as in the loop by hand

    def refusal(self, delta: str) -> None: ...
    def thinking(self, delta: str) -> None: ...
    def tool_call(
        self, index: int, *, call_id: str | None = None, name: str | None = None, arguments: str | None = None
    ) -> None: ...
    def provider_data(
        self, provider: str, data: dict[str, Any], *, to: Literal["message", "part"] = "message"
    ) -> None: ...


class Wire(NamedTuple):
    """A provider's wire."""

    name: str
    decoder: Callable[[Emit], _Decoder]
    events: Sequence[bytes]
    """A whole reply."""
    text_of: Callable[[Any], str]
    """What a loop by hand picks out of an event; empty if there is no text in it."""


def adapters(url: str, repeats: int) -> Table:
    """Each decoder, and the loop by hand over the same network reads: one event each."""
    cost: dict[str, float] = {}
    for wire in _wires():
        cost.update(_compared(wire, repeats))
    return Table(
        "a delta through an adapter's decoder, one event a read",
        "µs of CPU per delta",
        [Row(name, value * 1e6) for name, value in cost.items()],
        [ratio(f"{wire.name} ÷ by hand", cost, wire.name, f"{wire.name}, by hand", BOUND) for wire in _wires()],
    )


def _compared(wire: Wire, repeats: int) -> dict[str, float]:
    times: dict[str, list[float]] = {wire.name: [], f"{wire.name}, by hand": []}
    for _ in range(repeats):  # in turns, so that a busy machine hurts both
        for name, work in zip(times, (_by_helix, _by_hand), strict=True):
            begun = time.process_time()
            texts = work(wire)
            times[name].append(time.process_time() - begun)
            assert sum(map(bool, texts)) == DELTAS  # empty pieces are nothing
    return {name: statistics.median(values) / DELTAS for name, values in times.items()}


def _by_helix(wire: Wire) -> list[str]:
    emit = Texts()
    decoder = wire.decoder(emit)
    for data in wire.events:
        decoder.feed(data)
    decoder.end()
    return emit.texts


def _by_hand(wire: Wire) -> list[str]:
    texts: list[str] = []
    rest = b""
    for data in wire.events:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: ") or line == b"data: [DONE]":
                continue
            if text := wire.text_of(from_json(line[6:])):
                texts.append(text)
    return texts


# --- the wires, as the providers frame them ----------------------------------------------------------------------


def _wires() -> list[Wire]:
    return [
        Wire("openai chat", ChatDecoder, list(_chat()), _chat_text),
        Wire("openai responses", ResponsesDecoder, list(_responses()), _responses_text),
        Wire("anthropic", AnthropicDecoder, list(_anthropic()), _anthropic_text),
        Wire("google", GoogleDecoder, list(_google()), _google_text),
    ]


def _words() -> Iterable[tuple[int, str]]:
    return ((number, _WORDS[number * 7 % len(_WORDS)]) for number in range(DELTAS))


def _event(data: object, name: str = "") -> bytes:
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _chat() -> Iterable[bytes]:
    envelope = {
        "id": "chatcmpl-CcyoG2MybQ9Zn3VFXmZAf7pAyLkHR",
        "object": "chat.completion.chunk",
        "created": 1763385384,
        "model": "gpt-5-mini-2025-08-07",
        "service_tier": "default",
        "system_fingerprint": None,
    }

    def event(delta: dict[str, Any], reason: str | None = None, number: int = 0) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event({**envelope, "choices": [choice], "obfuscation": "hQ3xZ7pLk"[: number % 9]})

    yield event({"role": "assistant", "content": "", "refusal": None})
    yield from (event({"content": word}, number=number) for number, word in _words())
    yield event({}, "stop")
    yield _event({**envelope, "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": DELTAS}})
    yield b"data: [DONE]\n\n"


def _chat_text(chunk: Any) -> str:
    return next((choice["delta"].get("content") or "" for choice in chunk["choices"]), "")


def _responses() -> Iterable[bytes]:
    item = {"item_id": "msg_68a8e5a0b1c48191a2d1b8b1f9a3c2e40123456789abcdef", "output_index": 0, "content_index": 0}
    kind = "response.output_text.delta"
    yield _event({"type": "response.created", "response": {"status": "in_progress"}}, "response.created")
    for number, word in _words():
        told: dict[str, Any] = {"type": kind, "sequence_number": number + 4, **item, "delta": word, "logprobs": []}
        yield _event({**told, "obfuscation": "hQ3xZ7pLkWe2"[: number % 12]}, kind)
    ended = {"status": "completed", "usage": {"input_tokens": 9, "output_tokens": DELTAS}}
    yield _event({"type": "response.completed", "response": ended}, "response.completed")


def _responses_text(event: Any) -> str:
    return event["delta"] if event["type"] == "response.output_text.delta" else ""


def _anthropic() -> Iterable[bytes]:
    def event(kind: str, **fields: Any) -> bytes:
        return _event({"type": kind, **fields}, kind)

    yield event("message_start", message={"id": "msg_01", "usage": {"input_tokens": 9, "output_tokens": 1}})
    yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for number, word in _words():
        sent = event("content_block_delta", index=0, delta={"type": "text_delta", "text": word})
        yield sent[:-3] + b" " * (number % 14) + sent[-3:]
    yield event("content_block_stop", index=0)
    yield event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": DELTAS})
    yield event("message_stop")


def _anthropic_text(event: Any) -> str:
    return event["delta"].get("text", "") if event["type"] == "content_block_delta" else ""


def _google() -> Iterable[bytes]:
    for number, word in _words():
        content = {"parts": [{"text": word * 8}], "role": "model"}  # its events hold many tokens
        candidate = {"content": content, "index": 0, **({"finishReason": "STOP"} if number == DELTAS - 1 else {})}
        usage = {"promptTokenCount": 9, "candidatesTokenCount": number * 8, "totalTokenCount": number * 8 + 9}
        details = {"promptTokensDetails": [{"modality": "TEXT", "tokenCount": 9}]}
        told = {"candidates": [candidate], "usageMetadata": {**usage, **details}, "modelVersion": "gemini-3-pro"}
        yield _event({**told, "responseId": "kUcbaYHyNb2UxN8P8ZnW2Ac"})


def _google_text(event: Any) -> str:
    return "".join(part.get("text", "") for part in event["candidates"][0]["content"]["parts"])
