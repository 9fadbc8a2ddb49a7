"""How adapters reach the network: one HTTP client, and the reads of one reply.  Floor 3: below the adapters.

On asyncio with the extra `fast`, the client's transport is aiohttp, whose parser is C; else httpx2's own.
"""

from __future__ import annotations

import functools
import importlib.util
import ssl
from collections.abc import AsyncIterator
from typing import Protocol, cast

import anyio
import httpx2
import openai
import sniffio

from helix.errors import ModelError

_DRAIN_SECONDS = 0.1


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


async def read(response: httpx2.Response, decoder: Decoder) -> None:
    """Feeds every network read to the decoder, until the reply is complete or the body ends.

    Raises:
        ModelError: the decoder's, or the connection broke.
    """
    encoded = response.headers.get("content-encoding", "identity") != "identity"
    # The stream itself: `aiter_raw` would add one more generator to each read.
    reads = response.aiter_bytes() if encoded else aiter(cast(httpx2.AsyncByteStream, response.stream))
    try:
        while not decoder.done:
            try:
                data = await anext(reads)
            except StopAsyncIteration:
                return
            except Exception as error:  # whatever the transport raises: the reply is not complete
                raise decoder.dropped(repr(error)) from error
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
