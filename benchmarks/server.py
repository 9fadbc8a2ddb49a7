"""A mock provider in a process of its own: one-token deltas in OpenAI's shape, one event per HTTP chunk.

The path says what to stream: `/5000/v1/chat/completions` sends 5,000 deltas as fast as they are taken, `/500@50/…` 500
deltas at 50 a second, `/20/tools-100/…` 20 deltas and a tool call each time until the request holds 100 tool answers.

Paced streams have phases of their own, spread evenly, as those of real calls have: none waits for another's. Else those
of a contender that sends all its requests at the same moment would come in bursts, which cost it less each than they
would one by one, and less than those of a contender whose calls begin a millisecond apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import re
from collections.abc import Generator, Mapping
from multiprocessing.connection import Connection

from pydantic_core import to_json

_PATH = re.compile(rb"POST /(\d+)(?:@(\d+))?(?:/tools-(\d+))?/")
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _event(delta: Mapping[str, object], finish: str | None = None, usage: object = None) -> bytes:
    """One event as an HTTP chunk: about 345 bytes for a one-token delta, as OpenAI's are in 2026."""
    body = {
        "id": "chatcmpl-CfP2nRp0aXhD3W7vTq9sYkLmE4uGo",
        "object": "chat.completion.chunk",
        "created": 1763700000,
        "model": "gpt-4.1-mini-2025-04-14",
        "service_tier": "default",
        "system_fingerprint": "fp_4c2851f862",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        "usage": usage,
        "obfuscation": "fR7mZQ0bWkX2a",
    }
    return _chunk(b"data: " + to_json(body) + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_ROLE = _event({"role": "assistant", "content": "", "refusal": None})
_WORDS = "the log is the run and every word of it is kept"
_DELTAS = [_event({"content": f" {word}"}) for word in _WORDS.split()]
_USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
_STOP = _event({}, "stop", _USAGE)
_PHASES = itertools.count()
_GOLDEN = 0.618034  # whose multiples, modulo 1, lie evenly
_DONE = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _tool_call(number: int) -> bytes:
    function = {"name": "look", "arguments": ""}
    begun = {"tool_calls": [{"index": 0, "id": f"call_{number}", "type": "function", "function": function}]}
    arguments = to_json({"place": f"shelf {number}"}).decode()
    argued = {"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}
    return _event(begun) + _event(argued) + _event({}, "tool_calls", _USAGE)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            body = await reader.readexactly(int(length[1])) if length else b""
            wanted = _PATH.match(head)
            assert wanted is not None, head
            await _answer(writer, body, *(int(part or 0) for part in wanted.groups()))
    writer.close()


async def _answer(writer: asyncio.StreamWriter, body: bytes, deltas: int, rate: int, rounds: int) -> None:
    writer.write(_HEAD + _ROLE)
    clock = asyncio.get_running_loop().time
    begun = clock() - (next(_PHASES) * _GOLDEN % 1 / rate if rate else 0)
    for number in range(deltas):
        if rate:
            await asyncio.sleep(begun + number / rate - clock())
        writer.write(_DELTAS[number % len(_DELTAS)])
        await writer.drain()
    done = body.count(b'"role":"tool"')
    writer.write((_tool_call(done) if done < rounds else _STOP) + _DONE)
    await writer.drain()


def _run(told: Connection) -> None:
    async def main() -> None:
        server = await asyncio.start_server(_serve, "127.0.0.1", 0, limit=1 << 24, backlog=2048)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())


@contextlib.contextmanager
def serving() -> Generator[str]:
    """The server's URL, without a path."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()
