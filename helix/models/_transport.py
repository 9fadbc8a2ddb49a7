"""How adapters reach the network: one HTTP client, and the reads of one reply.  Floor 3: below the adapters.

On asyncio with the extra `fast`, the client's transport is aiohttp, whose parser is C; else httpx2's own.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import ssl
import time
import zlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Protocol, Self, cast

import anyio
import httpx2
import openai
import sniffio

from helix.errors import ModelError
from helix.model import ModelSettings

FIRST_BYTE: Final = 600.0
"""Seconds until a reply must have begun, unless the settings say otherwise; as the openai client has it."""
BETWEEN_BYTES: Final = 600.0
"""Seconds after which a silent reply is given up, unless the settings say otherwise."""
NO_TIMEOUT: Final = httpx2.Timeout(None, connect=30.0)
"""What the transport is given: to reach the server takes its own time, and the rest is `Patience`'s."""
_DRAIN_SECONDS = 0.1
_ANY_HEADER = 32 + zlib.MAX_WBITS  # gzip's or zlib's


class Decoder(Protocol):
    """What turns the bytes of a reply into pushes.

    Attributes:
        done: whether the provider has said that the reply is complete.
    """

    done: bool

    def feed(self, data: bytes) -> None:
        """Pushes all that `data` completes. Raises ModelError."""
        ...

    def dropped(self, detail: str) -> ModelError:
        """The error for a reply that broke off."""
        ...


def http_client() -> httpx2.AsyncClient:
    """A new client for the running event loop, with the `openai` client's defaults."""
    fast = sniffio.current_async_library() == "asyncio" and importlib.util.find_spec("aiohttp") is not None
    return (openai.DefaultAioHttpClient if fast else openai.DefaultAsyncHttpxClient)(verify=_tls())


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context()  # 20 ms of reading certificates: once a process, not once a client


class Patience:
    """How long one reply may take: in all, until its head is there, and from one read to the next. One timer for all.

    Used as a context manager around the exchange; `ran_out` tells afterwards whether it was cut, and why.
    """

    __slots__ = ("_between", "_end", "_looked", "_scope", "_total", "ran_out")

    def __init__(self, settings: ModelSettings) -> None:
        self._total = settings.timeout
        self._between = BETWEEN_BYTES if settings.between_bytes is None else settings.between_bytes
        now = anyio.current_time()
        self._end = math.inf if self._total is None else now + self._total
        first = FIRST_BYTE if settings.first_byte is None else settings.first_byte
        self._scope = anyio.CancelScope(deadline=min(self._end, now + first))
        self._looked = 0.0
        self.ran_out = ""

    def __enter__(self) -> Self:
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        cut = self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught:
            self.ran_out = "The model was silent for too long."
            if self._total is not None and anyio.current_time() >= self._end:
                self.ran_out = f"The model gave no complete reply within {self._total:g} seconds."
        return bool(cut)

    def heard(self) -> None:
        """Something has come; the time for the next read begins."""
        now = time.monotonic()
        if now - self._looked > self._between / 8:  # so seldom that the timer costs nothing
            self._looked = now
            self._scope.deadline = min(self._end, anyio.current_time() + self._between)


async def read(response: httpx2.Response, decoder: Decoder, patience: Patience) -> None:
    """Feeds every network read to the decoder, until the reply is complete or the body ends.

    Raises:
        ModelError: the decoder's, or the connection broke.
    """
    encoding = response.headers.get("content-encoding", "identity").lower()
    inflate = zlib.decompressobj(_ANY_HEADER) if encoding in ("gzip", "x-gzip", "deflate") else None
    # The stream itself: `aiter_raw` would add one more generator to each read.
    plain = inflate is not None or encoding == "identity"
    reads = aiter(cast(httpx2.AsyncByteStream, response.stream)) if plain else response.aiter_bytes()
    patience.heard()
    try:
        while not decoder.done:
            try:
                data = await anext(reads)
                if inflate is not None:
                    data = inflate.decompress(data)
            except StopAsyncIteration:
                if inflate is not None and not inflate.eof:
                    raise decoder.dropped("the body ended inside its compression") from None
                return
            except Exception as error:  # whatever the transport raises: the reply is not complete
                raise decoder.dropped(repr(error)) from error
            patience.heard()
            decoder.feed(data)
    finally:
        await _drain(reads)


async def _drain(reads: AsyncIterator[bytes]) -> None:
    """Reads what is left, which is nearly always nothing but the body's end, so that the connection can be used again.

    Also the one way out that finishes all of the transport's nested generators: closing the outer one would leave
    those inside to the garbage collector, which trio rightly warns about.
    """
    with anyio.move_on_after(_DRAIN_SECONDS):
        try:
            async for _ in reads:
                pass
        except Exception:  # only the connection is lost
            pass


def timed_out(error: BaseException | None) -> bool:
    """Whether a failure to connect was one of time: aiohttp's transport calls any lost connection a timeout."""
    while error is not None:
        if type(error).__module__.startswith("aiohttp"):
            return isinstance(error, TimeoutError)
        error = error.__cause__
    return True
