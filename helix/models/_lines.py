"""Lines to a server: one POST, and its answer as it comes; over httpx2.  Floor 3, below `_transport`.

Nothing stands between a read of the network and who asks for it: that is what a server with hundreds of paced streams
pays for.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final, Protocol, TypeAlias, cast

import anyio
import httpx2

from helix.errors import ModelError
from helix.models._errors import scrub, secrets_in

MALFORMED = "The request cannot be sent: a header (perhaps the key) is malformed."
NO_URL = "The base URL must begin with http:// or https://."
CONNECT_SECONDS: Final = 30.0
"""To reach the server takes its own time; the rest is `Patience`'s."""
_NO_TIMEOUT = httpx2.Timeout(None, connect=CONNECT_SECONDS)
_CLOSE_SECONDS = 1.0
DRAIN_SECONDS = 0.1
_INFLATED = ("gzip", "x-gzip", "deflate")  # by `_transport`
_BAD_URLS = ("UnsupportedProtocol", "InvalidURL", "InvalidUrlClientError", "NonHttpUrlClientError")
"""The errors of httpx2 and aiohttp, which need not be there."""
ASKED: Final = {"accept-encoding": "gzip, deflate"}
Sink: TypeAlias = Callable[[bytes], bool]
"""Takes the next bytes; False if it wants no more. Does not block. May run in no task, in a copy of the context."""
_Asked: TypeAlias = tuple[str, dict[str, str], dict[str, str]]
"""A URL, an adapter's headers, and those over them."""


class BrokenOff(Exception):
    """A body broke off. Its text is the `repr` of what the transport raised."""


class Answer(Protocol):
    """What a server answers; its head is there."""

    @property
    def status(self) -> int:
        """The status code."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """By names in any case."""
        ...

    @property
    def encoding(self) -> str:
        """How what `pour` gives is compressed, in lower case; empty or `identity` if it is not."""
        ...

    @property
    def url(self) -> httpx2.URL:
        """What was asked."""
        ...

    @property
    def sent(self) -> Mapping[str, str]:
        """The headers of the request."""
        ...

    async def pour(self, sink: Sink) -> None:
        """Gives `sink` the body's bytes as they come, until it wants no more or the body ends.

        Raises:
            BrokenOff: the connection was lost, or what came is no HTTP.
            Exception: what `sink` raises.
        """
        ...

    async def drain(self) -> None:
        """Reads what is left, which is nearly always nothing but the body's end: the connection can be used again."""
        ...

    async def close(self) -> None:
        """Gives the connection back, or closes it if something is left; soon, and also when cancelled."""
        ...


class Line(Protocol):
    """A client's connections to its servers, in one event loop."""

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, over: Mapping[str, str] | None = None
    ) -> Answer:
        """Asks; gives the answer once its head is there. A redirect is not followed: keys stay here.

        Args:
            url: what to ask.
            headers: the adapter's; those that an injected client has itself stay as they are.
            body: JSON.
            over: headers that go over all others.

        Raises:
            ModelError: no answer came.
        """
        ...

    async def close(self) -> None:
        """Closes all connections."""
        ...


@functools.cache
def tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context()  # 20 ms of reading certificates: once a process, not once a client


class HttpxLine:
    """A line over an httpx2 client: one of ours, or with `injected` a user's, whose settings hold."""

    def __init__(self, client: httpx2.AsyncClient, *, injected: bool = False) -> None:
        self._client = client
        self._injected = injected
        # A request as asked for last: URL and headers are parsed once, not once a step of each run.
        self._last: tuple[_Asked, httpx2.Request] | None = None

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, over: Mapping[str, str] | None = None
    ) -> Answer:
        """See `Line.post`."""
        try:
            request = self._request(url, headers, body, over or {})
        except (ValueError, httpx2.InvalidURL) as error:
            raise unreached(error, url, {}) from None
        try:
            return HttpxAnswer(await self._client.send(request, stream=True, follow_redirects=False))
        except Exception as error:  # whatever the transport raises; not chained: its text may hold the key
            raise unreached(error, url, request.headers) from None

    async def close(self) -> None:
        """See `Line.close`."""
        await self._client.aclose()

    def _request(self, url: str, headers: Mapping[str, str], body: bytes, over: Mapping[str, str]) -> httpx2.Request:
        if self._injected:
            headers = {name: value for name, value in headers.items() if name not in self._client.headers}
            return self._built(url, headers, body, over, self._client.timeout)
        asked = (url, dict(headers), dict(over))
        if self._last is None or self._last[0] != asked:
            request = self._built(url, {**ASKED, **headers}, b"", over, _NO_TIMEOUT)
            for name in ("content-length", "cookie"):  # the body's own; and aiohttp's line keeps no cookies either
                request.headers.pop(name, None)
            self._last = asked, request
        like = self._last[1]
        # With its stream given, nothing is added to its headers: all but the length is there.
        request = httpx2.Request(
            "POST", like.url, headers=like.headers, stream=httpx2.ByteStream(body), extensions=like.extensions
        )
        request.headers["content-length"] = str(len(body))
        return request

    def _built(
        self, url: str, headers: Mapping[str, str], body: bytes, over: Mapping[str, str], timeout: httpx2.Timeout
    ) -> httpx2.Request:
        all_headers = httpx2.Headers(headers)
        all_headers.update(over)
        return self._client.build_request("POST", url, content=body, headers=all_headers, timeout=timeout)


class HttpxAnswer:
    """An answer of an httpx2 client."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.encoding = response.headers.get("content-encoding", "").lower()
        self._reads: AsyncIterator[bytes]
        if self.encoding in ("", "identity", *_INFLATED):
            # The stream itself: `aiter_raw` would add one more generator to each read.
            self._reads = aiter(cast(httpx2.AsyncByteStream, response.stream))
        else:
            self.encoding, self._reads = "", response.aiter_bytes()

    @property
    def url(self) -> httpx2.URL:
        """See `Answer.url`."""
        return self.response.request.url

    @property
    def sent(self) -> Mapping[str, str]:
        """See `Answer.sent`."""
        return self.response.request.headers

    async def pour(self, sink: Sink) -> None:
        """See `Answer.pour`."""
        reads = self._reads
        while True:
            try:
                data = await anext(reads)
            except StopAsyncIteration:
                return
            except Exception as error:  # whatever the transport raises
                raise BrokenOff(repr(error)) from error
            if data and not sink(data):
                return

    async def drain(self) -> None:
        """See `Answer.drain`.

        Also the one way out that finishes all of the transport's nested generators: closing the outer one would leave
        those inside to the garbage collector, which trio rightly warns about.
        """
        with anyio.move_on_after(DRAIN_SECONDS):
            try:
                async for _ in self._reads:
                    pass
            except Exception:  # only the connection is lost
                pass

    async def close(self) -> None:
        """See `Answer.close`."""
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await self.response.aclose()


def unreached(error: BaseException | None, url: str, sent: Mapping[str, str]) -> ModelError:
    """The error for a call that failed before its answer began."""
    if type(error).__name__ in _BAD_URLS:
        asked = url.rpartition("@")[2].partition("?")[0]  # neither a password nor what a query may hold
        return ModelError("model_rejected", NO_URL, detail=f"{type(error).__name__}: {asked}")
    if isinstance(error, (httpx2.LocalProtocolError, ValueError)):  # about a header: its text may quote the key
        return ModelError("model_rejected", MALFORMED)
    host = httpx2.URL(url).host
    # Not its repr: that of aiohttp's errors may hold a proxy's password.
    detail = scrub(f"{host}: {type(error).__name__}: {error}", secrets_in(sent))
    if isinstance(error, (httpx2.TimeoutException, TimeoutError)) and _timed_out(error):
        return ModelError("model_unavailable", "The model did not answer in time.", retryable=True, detail=detail)
    return ModelError("model_unavailable", "The model cannot be reached.", retryable=True, detail=detail)


def _timed_out(error: BaseException | None) -> bool:
    """Whether a failure to connect was one of time: aiohttp's transport calls any lost connection a timeout."""
    while error is not None:
        if type(error).__module__.startswith("aiohttp"):
            return isinstance(error, TimeoutError)
        error = error.__cause__
    return True
