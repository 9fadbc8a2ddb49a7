"""A TCP server that does to each request exactly what it is told, byte by byte: what a provider does on its worst day.

It runs in the test's own event loop, over plain sockets, so that a reset is a reset and a pause ends with its client.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, TypeVar

import anyio
from anyio.lowlevel import checkpoint


@dataclass(frozen=True)
class Send:
    """Sends these bytes."""

    data: bytes


@dataclass(frozen=True)
class Drip:
    """Sends the pieces, with so many seconds before each."""

    pieces: Iterable[bytes]
    seconds: float


@dataclass(frozen=True)
class Hold:
    """Does nothing more until the client goes away."""


@dataclass(frozen=True)
class Close:
    """Closes the connection, as a server does that has no more to say."""


@dataclass(frozen=True)
class Reset:
    """Closes the connection with a TCP reset."""


Move = Send | Drip | Hold | Close | Reset


@dataclass(frozen=True)
class Request:
    """One request, as it came in."""

    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


LAST = b"0\r\n\r\n"
"""The end of a chunked body."""


def head(status: int = 200, content_type: str = "text/event-stream", **headers: str) -> bytes:
    """An answer's head; the body is chunked, unless another framing is given. Underscores are dashes."""
    named = {"content-type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
    if not named.keys() & {"content-length", "connection"}:
        named["transfer-encoding"] = "chunked"
    lines = [f"HTTP/1.1 {status} Told", *(f"{name}: {value}" for name, value in named.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def chunk(data: bytes) -> bytes:
    """A piece of a chunked body; nothing for an empty one, which would end it."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def whole(body: bytes, status: int = 200, content_type: str = "text/event-stream", **headers: str) -> list[Move]:
    """A complete answer."""
    return [Send(head(status, content_type, **headers) + chunk(body) + LAST)]


@dataclass
class FaultServer:
    """What `serving` gives.

    Attributes:
        url: the base URL, without a path.
        requests: what came in, in order.
    """

    url: str
    answer: Callable[[Request], Sequence[Move]]
    requests: list[Request] = field(default_factory=list[Request])
    _closed: dict[int, anyio.Event] = field(default_factory=dict[int, anyio.Event])

    async def all_closed(self) -> None:
        """Returns when no connection is open: the clients have closed theirs, or this server did."""
        for closed in list(self._closed.values()):
            await closed.wait()

    async def accept(self, listener: socket.socket) -> None:
        """Serves whoever connects, until it is cancelled."""
        async with anyio.create_task_group() as tasks:
            for number in count():
                await anyio.wait_readable(listener)
                connection, _ = listener.accept()
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._closed[number] = anyio.Event()
                tasks.start_soon(self._serve, connection, self._closed[number])

    async def _serve(self, connection: socket.socket, closed: anyio.Event) -> None:
        try:
            with connection:
                rest = b""
                while (found := await _read_request(connection, rest)) is not None:
                    request, rest = found
                    self.requests.append(request)
                    for move in self.answer(request):
                        if not await _make(connection, move):
                            return
        except OSError:
            pass  # the client was faster
        finally:
            closed.set()


@asynccontextmanager
async def serving(
    answer: Callable[[Request], Sequence[Move]] | Sequence[Sequence[Move]],
) -> AsyncGenerator[FaultServer]:
    """A server on 127.0.0.1. A list of answers is given in order, the last one again and again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        told = answer if callable(answer) else _in_order(answer)
        server = FaultServer(f"http://127.0.0.1:{listener.getsockname()[1]}", told)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.accept, listener)
            yield server
            tasks.cancel_scope.cancel()


def _in_order(answers: Sequence[Sequence[Move]]) -> Callable[[Request], Sequence[Move]]:
    numbers = count()
    return lambda request: answers[min(next(numbers), len(answers) - 1)]


async def _make(connection: socket.socket, move: Move) -> bool:
    """Makes a move; false when the connection cannot be used any more."""
    match move:
        case Send(data):
            await _send(connection, data)
        case Drip(pieces, seconds):
            for piece in pieces:
                if await _left(connection, seconds):
                    return False
                await _send(connection, piece)
        case Hold():
            await _left(connection, None)
            return False
        case Reset():
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        case Close():
            return False
    return True


async def _left(connection: socket.socket, seconds: float | None) -> bool:
    """Whether the client has gone away within so many seconds; it sends nothing while it waits for an answer."""
    with anyio.move_on_after(seconds):
        return await _receive(connection) == b""
    return False


async def _send(connection: socket.socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[connection.send(view) :]
        except BlockingIOError:
            await anyio.wait_writable(connection)


async def _receive(connection: socket.socket) -> bytes:
    while True:
        await anyio.wait_readable(connection)
        try:
            return connection.recv(1 << 16)
        except BlockingIOError:
            pass


async def _read_request(connection: socket.socket, data: bytes) -> tuple[Request, bytes] | None:
    """The next request, and what came behind it; None when the client has closed the connection."""
    while b"\r\n\r\n" not in data:
        if not (more := await _receive(connection)):
            return None
        data += more
    top, _, body = data.partition(b"\r\n\r\n")
    first, *lines = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    size = int(headers.get("content-length", "0"))
    while len(body) < size:
        if not (more := await _receive(connection)):
            return None
        body += more
    return Request(first.split(" ")[1], headers, body[:size]), body[size:]


# --- nothing stays open ---------------------------------------------------------------------------------------------

T = TypeVar("T")
Backend = Literal["asyncio", "trio"]
BACKENDS: list[Backend] = ["asyncio", "trio"]  # aiohttp's parser, and httpx2's own


def run_alone(backend: Backend, work: Callable[[], Awaitable[T]]) -> T:
    """Runs `work` in an event loop of its own, after which no task, socket or unclosed thing may be left."""

    async def main() -> T:
        await checkpoint()
        before, running = open_sockets(), set(anyio.get_running_tasks())
        with anyio.fail_after(10):
            seen = await work()
        assert open_sockets() <= before
        assert set(anyio.get_running_tasks()) <= running
        return seen

    seen = anyio.run(main, backend=backend)
    gc.collect()  # a warning of what was not closed is an error
    return seen


def open_sockets() -> set[str]:
    """The sockets of this process."""
    found: set[str] = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            pass  # the listing's own
    return {name for name in found if name.startswith("socket:")}
