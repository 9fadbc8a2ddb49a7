"""Lines over aiohttp, whose parser is C: those of asyncio with the extra `fast`.  Floor 3, above `_lines`.

What the network brings goes to who pours it at once, in the event loop's own callback. A task that is woken for each
read costs more than the read and its decoding together.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Mapping
from contextvars import Context, copy_context
from typing import Final
from urllib.request import getproxies

import aiohttp
import anyio
import httpx2
import sniffio
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

from helix.errors import ModelError
from helix.models._lines import (
    ASKED,
    CONNECT_SECONDS,
    DRAIN_SECONDS,
    MALFORMED,
    Answer,
    BrokenOff,
    Sink,
    tls,
    unreached,
)

_MANY_BYTES = 1 << 20  # aiohttp wants more than this as a file, which it writes in pieces
_MAX_HEAD = 1 << 16
_CHUNK: Final = re.compile(rb"([1-9A-Fa-f][0-9A-Fa-f]{0,6})\r\n")
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: chunked(?:\r\n|$)")


class AiohttpLine:
    """A line over aiohttp, as many connections as there are calls. Proxies are those of the environment."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=5, ssl=tls()),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            request_class=_Request,
            trust_env=bool(getproxies()),  # looking for proxies takes two hops to a thread a request
        )

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, over: Mapping[str, str] | None = None
    ) -> Answer:
        """See `Line.post`."""
        sent = {**ASKED, **headers, **(over or {})}
        if not all(name.isascii() and value.isascii() for name, value in sent.items()):
            raise ModelError("model_rejected", MALFORMED)
        data = body if len(body) < _MANY_BYTES else io.BytesIO(body)
        try:
            if "@" in url and httpx2.URL(url).userinfo:  # a password goes before a key, as httpx2 has it
                sent = {name: value for name, value in sent.items() if name.lower() != "authorization"}
            return AiohttpAnswer(await self._session.post(url, data=data, headers=sent, allow_redirects=False), sent)
        except Exception as error:  # whatever it raises; not chained: its text may hold the key
            raise unreached(error, url, sent) from None

    async def close(self) -> None:
        """See `Line.close`."""
        await self._session.close()


class AiohttpAnswer:
    """An answer of aiohttp."""

    def __init__(self, response: aiohttp.ClientResponse, sent: Mapping[str, str]) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.encoding = response.headers.get("content-encoding", "").lower()
        self.sent = sent

    @property
    def url(self) -> httpx2.URL:
        """See `Answer.url`."""
        return httpx2.URL(str(self._response.url))

    async def pour(self, sink: Sink) -> None:
        """See `Answer.pour`."""
        tap = _Tap.on(self._response.connection)  # first: at the body's end the connection is given back
        content = self._response.content
        if not _pour_all(content, sink):
            if tap is None:
                raise BrokenOff("the connection is gone")
            await tap.pour(content, sink)

    async def drain(self) -> None:
        """See `Answer.drain`."""
        content = self._response.content
        if content.at_eof() or content.exception() is not None:
            return
        with anyio.move_on_after(DRAIN_SECONDS):
            try:
                while await content.readany():
                    pass
            except Exception:  # only the connection is lost
                pass

    async def close(self) -> None:
        """See `Answer.close`."""
        self._response.release()


class _Request(aiohttp.ClientRequest):
    """A request whose connection has a tap before anything of its answer can come."""

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """As aiohttp has it."""
        tap = _Tap.on(conn)
        if tap is not None:
            tap.begin()
        return await super().send(conn)


def _pour_all(content: aiohttp.StreamReader, sink: Sink) -> bool:
    """Pours what aiohttp has parsed; whether that was all that will come or is wanted. Raises as `Answer.pour`."""
    while True:
        try:
            data = content.read_nowait()
        except Exception as error:  # whatever became of the connection
            # The reader keeps its error, whose traceback would keep the reader and all that is poured.
            raise BrokenOff(repr(error)) from error.with_traceback(None)
        if not data:
            return content.at_eof()
        if not sink(data):
            return True


class _Tap(asyncio.Protocol):
    """On a connection, before aiohttp's protocol: gives on a body while it comes.

    Whole chunks (RFC 9112 §7.1) at the beginning of a read go straight to the sink; aiohttp's parser does not see them
    and stays where it is, between two chunks. All else goes through it, and it alone judges what is no HTTP.
    """

    def __init__(self, inner: ResponseHandler) -> None:
        self._inner = inner
        self._head: bytes | None = None  # what came of an answer's head, while that is not complete
        self._to_boundary: int | None = None  # bytes until the parser is between two chunks; None: not known
        self._sink: Sink | None = None
        self._content: aiohttp.StreamReader | None = None
        self._context: Context | None = None  # while something is poured
        self._ended: asyncio.Future[Exception | None] | None = None

    @classmethod
    def on(cls, connection: Connection | None) -> _Tap | None:
        """The connection's tap, which it has from now on; None if it is gone."""
        if connection is None or connection.transport is None or connection.protocol is None:
            return None
        tap = connection.transport.get_protocol()
        if not isinstance(tap, _Tap):
            tap = cls(connection.protocol)
            connection.transport.set_protocol(tap)
        return tap

    def begin(self) -> None:
        """What comes next is the head of an answer."""
        self._head, self._to_boundary = b"", None

    async def pour(self, content: aiohttp.StreamReader, sink: Sink) -> None:
        """See `Answer.pour`; `content`, the answer's, holds nothing now."""
        self._context = copy_context()
        self._context.run(sniffio.current_async_library_cvar.set, "asyncio")  # which no task tells there
        self._content, self._sink = content, sink
        self._ended = asyncio.get_running_loop().create_future()
        try:
            error = await self._ended
        finally:
            self._content = self._sink = self._context = self._ended = None
        try:
            if error is not None:
                raise error
        finally:
            del error  # or its traceback and this frame would hold each other, and all that is poured

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`, as for the others."""
        if self._to_boundary == 0 and self._context is not None:
            data = self._context.run(self._pour_chunks, data)
        if data:
            self._count(data)
            self._inner.data_received(data)
            self._pour_what_is_parsed()

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        why = exc or self._inner.exception() or ConnectionError("The connection was closed.")
        self._inner.connection_lost(exc)
        self._pour_what_is_parsed()
        self._end(BrokenOff(repr(why)))  # for what is no HTTP, aiohttp's reader has no error

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def _pour_chunks(self, data: bytes) -> bytes:
        """Pours the whole chunks with which the data begins; gives the rest."""
        at, pieces = 0, list[bytes]()
        while chunk := _CHUNK.match(data, at):
            begin = chunk.end()
            end = begin + int(chunk[1], 16)
            if data[end : end + 2] != b"\r\n":
                break
            pieces.append(data[begin:end])
            at = end + 2
        if pieces and (sink := self._sink) is not None:
            try:
                if not sink(b"".join(pieces)):  # bytes, also where the event loop reads bytearrays; one is not copied
                    self._end(None)
            except Exception as error:
                self._end(error)
        return data[at:]

    def _count(self, data: bytes) -> None:
        """Keeps account of where the parser will be behind this."""
        if self._head is not None:
            head, blank, data = (self._head + data).partition(b"\r\n\r\n")
            if not blank and len(head) < _MAX_HEAD:
                self._head = head
                return
            self._head = None
            self._to_boundary = 0 if blank and _is_chunked(head) else None
        at, size = 0, len(data)
        while at < size and self._to_boundary is not None:
            if not self._to_boundary:
                chunk = _CHUNK.match(data, at)
                if chunk is None:  # the last one, or its line is cut or unusual: the rest is aiohttp's
                    self._to_boundary = None
                    return
                at, self._to_boundary = chunk.end(), int(chunk[1], 16) + 2
            end = at + self._to_boundary
            if end > size:
                self._to_boundary = end - size
                return
            self._to_boundary = 0 if data[max(0, end - 2) : end] == b"\r\n" else None
            at = end

    def _pour_what_is_parsed(self) -> None:
        """Pours what the parser has made of what came."""
        if self._context is not None:
            self._context.run(self._pour_parsed)

    def _pour_parsed(self) -> None:
        content, sink = self._content, self._sink
        if content is None or sink is None:
            return
        try:
            if _pour_all(content, sink):
                self._end(None)
        except Exception as error:
            self._end(error)

    def _end(self, error: Exception | None) -> None:
        self._context = None  # nothing is poured any more
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(error)


def _is_chunked(head: bytes) -> bool:
    """Whether, however leniently one reads it, this is the head of a 200 whose body is chunked and nothing else."""
    lower = head.lower()
    return (
        head.startswith(b"HTTP/1.1 200")
        and head.count(b"\r\n") == head.count(b"\r") == head.count(b"\n")
        and lower.count(b"transfer-encoding") == 1
        and b"content-length" not in lower
        and _CHUNKED.search(lower) is not None
        and b"\r\n " not in head
        and b"\r\n\t" not in head
    )
