"""The tap on aiohttp's connections: what it gives past aiohttp's parser is what aiohttp's parser would have given."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import random
import ssl
import weakref
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio
import pytest
import trustme
from aiohttp.client_proto import ResponseHandler

from helix.models._aiohttp import AiohttpLine, _pour_all, _Tap
from helix.models._lines import Answer, BrokenOff, Sink
from tests.fault_server import LAST, Close, Drip, Hold, Send, chunk, serving

pytestmark = pytest.mark.anyio

SEEDS = 300
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
HEADS = [
    b"HTTP/1.1 200\r\nserver: x\r\ntransfer-encoding: Chunked\r\nx: y\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\t\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding:chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx: transfer-encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\nx: y\n\ntransfer-encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nx: y\r\n transfer-encoding: chunked\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED,
    b"HTTP/1.1 500 Oh\r\ntransfer-encoding: chunked\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\n",
]
TAILS = [LAST, LAST, LAST, b"0\r\nx: y\r\n\r\n", b"000\r\n\r\n", b"0;x\r\n\r\n", b"", b"0\r\n"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Wire(asyncio.Transport):
    """A transport that only notes whether it is to read."""

    reads = True

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def close(self) -> None: ...


class Aiohttps(ResponseHandler):
    """aiohttp's protocol on a wire, with a count of the bytes that it sees."""

    def __init__(self, room: int) -> None:
        super().__init__(asyncio.get_running_loop())
        self.seen = 0
        self.wire = Wire()
        self.connection_made(self.wire)
        self.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=room)

    def data_received(self, data: bytes) -> None:
        self.seen += len(data)
        super().data_received(data)

    async def content(self) -> aiohttp.StreamReader | None:
        """The body of the answer whose head is there."""
        while len(self):
            message, content = await self.read()
            if message.code >= 200:
                return content
        return None


def random_answer(rng: random.Random) -> list[bytes]:
    """The reads of an answer: often a whole chunk each, as of a server that flushes. Texts may look like chunks."""
    pieces = [CHUNKED if rng.random() < 0.5 else rng.choice(HEADS)]
    for _ in range(rng.randint(0, 12)):
        data = b"".join(rng.choice([b"\r\n", b"5\r\n", b"a", b"hello", b"0\r\n\r\n"]) for _ in range(rng.randint(1, 8)))
        size = b"%x" % len(data)
        if rng.random() < 0.05:
            size = rng.choice([size.upper(), b"0" + size, size + b";x=y", size + b" "])
        pieces.append(size + b"\r\n" + data + b"\r\n")
    pieces.append(rng.choice(TAILS))
    wire = b"".join(pieces)
    cuts = {end for end in itertools.accumulate(map(len, pieces)) if rng.random() < 0.8}
    cuts |= {rng.randrange(len(wire)) for _ in range(rng.choice([0, 0, 1, 3]))}
    if rng.random() < 0.4:
        at = rng.randrange(len(wire))
        wire = wire[:at] + rng.choice([b"", b"\r", b"\n", b"1", b"\r\n", b"\xff"]) + wire[at + rng.randint(0, 2) :]
    ends = sorted({0, *cuts, len(wire)})
    return [wire[begin:end] for begin, end in itertools.pairwise(ends)]


async def by_aiohttp(inner: Aiohttps, reads: Sequence[bytes]) -> bytes | None:
    """What aiohttp makes of an answer; None if it breaks off."""
    got: list[bytes] = []
    content: aiohttp.StreamReader | None = None
    try:
        for data in [*reads, None]:
            inner.connection_lost(None) if data is None else inner.data_received(data)
            content = content or await inner.content()
            while content is not None and (data := content.read_nowait()):
                got.append(data)
        return b"".join(got) if content is not None and content.at_eof() else None
    except Exception:
        return None


async def by_tap(inner: Aiohttps, reads: Sequence[bytes], late: int) -> bytes | None:
    """What comes of it through a tap, when pouring begins so many reads after the head."""
    tap = _Tap(inner)
    tap.begin()
    got: list[bytes] = []
    ends: list[bool] = []

    async def pour(content: aiohttp.StreamReader) -> None:
        def sink(data: bytes) -> bool:
            got.append(data)
            return True

        try:
            whole = _pour_all(content, sink)
            if not whole and inner.transport is not None:
                await tap.pour(content, sink)
                whole = True
            ends.append(whole)
        except BrokenOff:
            ends.append(False)

    content: aiohttp.StreamReader | None = None
    async with anyio.create_task_group() as tasks:
        for data in [*reads, None]:
            tap.connection_lost(None) if data is None else tap.data_received(data)
            if content is None:
                content = await inner.content()
            if content is not None:
                if late == 0 or (late > 0 and (data is None or not inner.wire.reads)):
                    late = 0
                    tasks.start_soon(pour, content)
                    await anyio.wait_all_tasks_blocked()
                late -= 1
    return b"".join(got) if ends == [True] else None


async def test_it_gives_what_aiohttp_would_however_an_answer_is_written_and_cut() -> None:
    rng = random.Random(7)
    seen = sent = whole = 0
    for _ in range(SEEDS):
        reads, room = random_answer(rng), rng.choice([8, 64, 1 << 16])
        by_itself = await by_aiohttp(Aiohttps(room), reads)
        inner = Aiohttps(room)
        assert await by_tap(inner, reads, rng.choice([0, 0, 1, 3])) == by_itself, reads
        sent, seen, whole = sent + sum(map(len, reads)), seen + inner.seen, whole + (by_itself is not None)
    assert SEEDS / 4 < whole < SEEDS * 3 / 4  # or the cases are too tame, or too wild
    assert seen < sent * 0.9  # or nothing is tested


async def test_a_head_too_long_to_be_kept_is_not_taken_for_a_body() -> None:
    long = b"".join(b"x-%d: %b\r\n" % (number, b"v" * 8_000) for number in range(9))
    data = b"5\r\nhello\r\n"  # one chunk's, which looks like a chunk
    rest = b"\r\n%x\r\n" % len(data)
    # The second read begins with what ends a header's value, and would be the size of a chunk.
    reads = [CHUNKED[:-2] + long + b"x: ", b"%x\r\n" % (len(rest) - 2) + rest, data, b"\r\n", LAST]
    assert await by_aiohttp(Aiohttps(1 << 16), reads) == data
    assert await by_tap(Aiohttps(1 << 16), reads, 0) == data


async def pour_each(reads: Sequence[bytes], sink: Sink) -> None:
    """Pours what so many reads bring behind a head, and then nothing more."""
    inner = Aiohttps(1 << 16)
    tap = _Tap(inner)
    tap.begin()
    tap.data_received(CHUNKED)
    content = await inner.content()
    assert content is not None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tap.pour, content, sink)
        await anyio.wait_all_tasks_blocked()
        for data in reads:
            tap.data_received(data)
        tap.connection_lost(None)


async def test_a_sink_gets_bytes_where_the_event_loop_reads_bytearrays() -> None:  # Windows, before Python 3.12
    got: list[bytes] = []
    reads: list[Any] = [bytearray(data) for data in (chunk(b"one"), chunk(b"two") + chunk(b"three"), LAST)]
    await pour_each(reads, lambda data: got.append(data) is None)
    assert [(type(data), data) for data in got] == [(bytes, b"one"), (bytes, b"twothree")]


async def test_what_is_no_http_is_said() -> None:
    with pytest.raises(ExceptionGroup) as failed:
        await pour_each([b"zz\r\n"], lambda data: True)
    assert "chunk size" in str(failed.value.exceptions[0])


@asynccontextmanager
async def serving_tls(answers: Sequence[Sequence[bytes]]) -> AsyncGenerator[tuple[str, ssl.SSLContext]]:
    """A server over TLS that answers the requests of one connection in turn, each piece in a record."""
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(ours)
    authority.configure_trust(theirs)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            for pieces in answers:
                await reader.readuntil(b"\r\n\r\n{}")
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
            await reader.read()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=ours) as server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/", theirs


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})])
async def test_it_works_over_tls_and_on_any_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [b"one", b"two" * 9_000, b"three"]
    answer = [CHUNKED, *(chunk(text) for text in texts), LAST]
    async with serving_tls([answer, answer]) as (url, context):
        monkeypatch.setattr("helix.models._aiohttp.tls", lambda: context)
        line = AiohttpLine()
        try:
            for _ in range(2):  # on one connection: there is no other
                got: list[bytes] = []
                reply = await line.post(url, {}, b"{}")
                await reply.pour(lambda data, got=got: got.append(data) is None)
                await reply.drain()
                await reply.close()
                assert b"".join(got) == b"".join(texts)
        finally:
            await line.close()


async def test_what_a_sink_raises_is_raised_and_what_it_leaves_is_drained() -> None:
    def refuse(data: bytes) -> bool:
        raise LookupError(data)

    events = [chunk(text) for text in (b"one", b"two", b"three")]
    async with serving([[Send(CHUNKED), *map(Send, events), Send(LAST)]]) as server:
        line = AiohttpLine()
        try:
            reply = await line.post(server.url, {}, b"")
            with pytest.raises(LookupError):
                await reply.pour(refuse)
            await reply.close()
            got: list[bytes] = []
            reply = await line.post(server.url, {}, b"")
            await reply.pour(lambda data: got.append(data) is not None)
            await reply.drain()
            await reply.close()
            assert [b"onetwothree".startswith(data) for data in got] == [True]
        finally:
            await line.close()


async def test_a_cancelled_call_pours_nothing_more() -> None:
    got: list[bytes] = []
    async with serving([[Send(CHUNKED), Send(chunk(b"one")), Hold()]]) as server:
        line = AiohttpLine()
        try:
            reply = await line.post(server.url, {}, b"")
            with anyio.CancelScope() as scope:

                def sink(data: bytes) -> bool:
                    got.append(data)
                    scope.cancel()
                    return True

                await reply.pour(sink)
            await reply.close()
            assert scope.cancelled_caught
            assert got == [b"one"]
            await server.all_closed()
        finally:
            await line.close()


@pytest.mark.parametrize("raises", [True, False])
async def test_a_reply_that_fails_leaves_nothing_to_the_garbage_collector(raises: bool) -> None:
    class Taker:
        def __call__(self, data: bytes) -> bool:
            if raises:
                raise LookupError(data)
            return True

    async def play(reply: Answer, taker: Taker) -> None:
        try:
            await reply.pour(taker)
        finally:
            await reply.drain()
            await reply.close()

    events = [chunk(b"one"), LAST] if raises else [chunk(b"one")]
    async with serving([[Send(CHUNKED), Drip(events, 0.02), Close()]]) as server:
        line = AiohttpLine()
        gc.disable()
        try:
            left = weakref.ref(taker := Taker())
            with pytest.raises(LookupError if raises else BrokenOff):
                await play(await line.post(server.url, {}, b""), taker)
            del taker
            await server.all_closed()
            assert left() is None
        finally:
            gc.enable()
            await line.close()
