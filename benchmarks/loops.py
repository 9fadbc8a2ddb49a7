"""The loops that helix is compared with: what one would write by hand, and the bare `openai` client.

Each sends the whole conversation afresh each round, as JSON; reads bytes; parses events with pydantic-core; keeps the
texts. No types, no log, no cancellation, no errors: less than any product needs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx2
import openai
from pydantic_core import from_json, to_json

Read = Callable[[str, bytes], AsyncIterator[bytes]]
"""The bytes of the answer to a POST, as the network gives them."""

HEADERS = {"authorization": "Bearer none", "content-type": "application/json"}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look somewhere.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


@asynccontextmanager
async def httpx2_reads() -> AsyncGenerator[Read]:
    """Reads over httpx2."""
    async with httpx2.AsyncClient(timeout=600, limits=httpx2.Limits(max_connections=None)) as client:

        async def read(url: str, body: bytes) -> AsyncIterator[bytes]:
            async with client.stream("POST", url, content=body, headers=HEADERS) as response:
                async for data in response.aiter_raw():
                    yield data

        yield read


@asynccontextmanager
async def aiohttp_reads() -> AsyncGenerator[Read]:
    """Reads over aiohttp."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def read(url: str, body: bytes) -> AsyncIterator[bytes]:
            async with client.post(url, data=body, headers=HEADERS) as response:
                async for data in response.content.iter_any():
                    yield data

        yield read


async def by_hand(read: Read, base_url: str, on_text: Callable[[str], None], rounds: int = 0) -> None:
    """An agent loop: asks until the model calls no tool any more."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "go"}]
    while True:
        body: dict[str, Any] = {"model": "mock", "messages": messages, "stream": True}
        if rounds:
            body["tools"] = [TOOL]
        message = await _ask(read, f"{base_url}/chat/completions", to_json(body), on_text)
        messages.append(message)
        if "tool_calls" not in message:
            return
        for call in message["tool_calls"]:
            result = await look(**from_json(call["function"]["arguments"]))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})


async def look(place: str) -> str:
    """What the tool of every contender answers."""
    return f"Nothing in {place}."


async def _ask(read: Read, url: str, body: bytes, on_text: Callable[[str], None]) -> dict[str, Any]:
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    rest = b""
    async for data in read(url, body):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: ") or line == b"data: [DONE]":
                continue
            for choice in from_json(line[6:])["choices"]:
                delta = choice["delta"]
                if text := delta.get("content"):
                    texts.append(text)
                    on_text(text)
                for call in delta.get("tool_calls", ()):
                    if call["index"] == len(calls):
                        calls.append(call)
                    else:
                        calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if calls:
        message["tool_calls"] = calls
    return message


async def bare_openai(client: openai.AsyncOpenAI, on_text: Callable[[str], None]) -> None:
    """The same for one round, as the openai client's documentation shows it."""
    stream = await client.chat.completions.create(
        model="mock", messages=[{"role": "user", "content": "go"}], stream=True
    )
    async for chunk in stream:
        for choice in chunk.choices:
            if choice.delta.content:
                on_text(choice.delta.content)
