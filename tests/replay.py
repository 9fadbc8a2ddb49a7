"""A local HTTP/1.1 server that answers with recorded bodies, split as the network might have split them.

As a program it serves one recorded case, for tests of the command line:

    python -m tests.replay d05 --port 8123 --chunking lines
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import struct
import threading
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import anyio

from tests import recorded

Chunking = Literal["whole", "lines", "bytes", "random"]
Ending = Literal["complete", "close", "broken", "reset", "hold"]
CHUNKINGS: tuple[Chunking, ...] = ("whole", "lines", "bytes", "random")
JSON = "application/json"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How to answer one request.

    Attributes:
        body: what to send; `cut` ends it after so many bytes.
        chunking: into which HTTP chunks to split it; a client reads at most one chunk at a time.
        crlf: with CRLF for every LF.
        comments: with a comment line between the events.
        ending: `complete`; `close` (the body is delimited by the connection's end, so a cut looks like a clean end);
            `broken` (chunked, and the connection closed without the last chunk); `reset` (the same, with a TCP reset);
            `hold` (nothing more comes until the client goes away).
    """

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    content_type: str = "text/event-stream"
    chunking: Chunking = "whole"
    seed: int = 0
    crlf: bool = False
    comments: bool = False
    cut: int | None = None
    ending: Ending = "complete"

    def pieces(self) -> list[bytes]:
        """The body as it is sent, piece by piece."""
        is_stream = self.content_type.startswith("text/event-stream")
        body = with_comments(self.body) if self.comments and is_stream else self.body
        body = with_crlf(body) if self.crlf else body
        return split(body[: self.cut], self.chunking, self.seed)


@dataclass(frozen=True)
class Received:
    """One request, as it came in."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def split(body: bytes, chunking: Chunking, seed: int = 0) -> list[bytes]:
    """`body` in pieces; `random` cuts also fall inside characters and between CR and LF."""
    match chunking:
        case "whole":
            return [body] if body else []
        case "lines":
            return re.findall(rb"[^\n]*\n|[^\n]+$", body)
        case "bytes":
            return [body[i : i + 1] for i in range(len(body))]
        case "random":
            rng, pieces, start = random.Random(seed), list[bytes](), 0
            while start < len(body):
                size = rng.choice((1, 1, 2, 3, 17, 120, 900))
                pieces.append(body[start : start + size])
                start += size
            return pieces


def with_crlf(body: bytes) -> bytes:
    """`body` with CRLF for LF."""
    return body.replace(b"\n", b"\r\n")


def with_comments(body: bytes) -> bytes:
    """`body` with a comment before each of its lines, inside the blocks too."""
    return b"".join(b": hb\n" + line for line in split(body, "lines"))


class ReplayServer:
    """Serves on 127.0.0.1, in threads, so that clients of any event loop can be tested.

    The answers are given in order; the last one is given again and again.

    Attributes:
        requests: what came in, in order.
        holding: set when all of an answer that holds has been sent.
        disconnected: set when a client went away from it.
    """

    def __init__(self, answers: Answer | Sequence[Answer], *, port: int = 0) -> None:
        self.answers = [answers] if isinstance(answers, Answer) else list(answers)
        self.requests: list[Received] = []
        self.disconnected = threading.Event()
        self.holding = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port))
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        return self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        """The base URL, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def _start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._connections.add(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        reader = connection.makefile("rb")
        try:
            while (request := _read_request(reader)) is not None:
                with self._lock:
                    answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
                    self.requests.append(request)
                if not self._answer(connection, answer):
                    return
        except OSError:
            pass  # the client went away
        finally:
            reader.close()
            with self._lock:
                self._connections.discard(connection)
                connection.close()

    def _answer(self, connection: socket.socket, answer: Answer) -> bool:
        """Sends the answer; false when the connection cannot be used any more."""
        chunked = answer.ending != "close"
        connection.sendall(_head(answer, chunked=chunked))
        for batch in _batches(_chunk(piece) if chunked else piece for piece in answer.pieces()):
            connection.sendall(batch)
        match answer.ending:
            case "complete":
                connection.sendall(b"0\r\n\r\n")
                return True
            case "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case "hold":
                self.holding.set()
                if connection.recv(1) == b"":
                    self.disconnected.set()
            case "close" | "broken":
                pass
        return False


def _read_request(reader: Any) -> Received | None:
    line = reader.readline()
    if not line:
        return None
    method, target, _ = line.decode().split(" ", 2)
    headers: dict[str, str] = {}
    while line := reader.readline().strip():
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    return Received(method, target, headers, reader.read(int(headers.get("content-length", "0"))))


def _head(answer: Answer, *, chunked: bool) -> bytes:
    framing = {"transfer-encoding": "chunked"} if chunked else {"connection": "close"}
    headers = {"content-type": answer.content_type, **framing, **answer.headers}
    lines = [f"HTTP/1.1 {answer.status} Replayed", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _batches(pieces: Iterable[bytes]) -> Iterable[bytes]:
    """Few sends for many pieces: HTTP chunks keep them apart for the client anyway."""
    batch: list[bytes] = []
    for piece in pieces:
        batch.append(piece)
        if len(batch) == 500:
            yield b"".join(batch)
            batch.clear()
    if batch:
        yield b"".join(batch)


def answer(exchange: recorded.Exchange, **changes: Any) -> Answer:
    """A recorded exchange as an answer."""
    plain = Answer(body=exchange.body, status=exchange.status, content_type=exchange.content_type)
    return replace(plain, **changes)


@asynccontextmanager
async def serving(*answers: Answer) -> AsyncGenerator[ReplayServer]:
    """A server for a test, which ends within a minute."""
    with anyio.fail_after(60), ReplayServer(answers) as server:
        yield server


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.replay", description="Serve one recorded case.")
    parser.add_argument("case")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--chunking", choices=CHUNKINGS, default="whole")
    options = parser.parse_args()
    answers = [answer(exchange, chunking=options.chunking) for exchange in recorded.load(options.case).exchanges]
    with ReplayServer(answers, port=options.port) as server:
        print(f"{server.url}/v1", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
