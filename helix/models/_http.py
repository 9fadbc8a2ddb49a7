"""A model behind one POST: what the adapters share that speak to a provider directly.

Floor 3, above `_transport`, below the adapters. No SDK: to these providers the wire is one POST with two headers, and
an SDK would put its data models on the path and its HTTP stack beside ours. The client is httpx2's, with aiohttp as its
transport where that is installed.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import anyio
import httpx2
from anyio.lowlevel import RunVar, RunvarToken
from pydantic_core import from_json

from helix.errors import MissingKey, ModelError
from helix.limits import Usage
from helix.model import Emit, ModelReply, ModelRequest, ToolDefinition, check_real_requests
from helix.models._errors import from_status, scrub, secrets_in
from helix.models._transport import NO_TIMEOUT, Decoder, Patience, http_client, read, timed_out

_CLOSE_SECONDS = 1.0
_WORDS_SECONDS = 2.0
_MAX_WORDS = 1 << 20
_MALFORMED = "The request cannot be sent: a header (perhaps the key) is malformed."
_NO_URL = "The base URL must begin with http:// or https://."
_KEPT_TOOL_SETS = 16


class Post(NamedTuple):
    """One request."""

    path: str
    """What comes behind the base URL, such as `/v1/messages`."""
    headers: Mapping[str, str]
    """The provider's, the key among them; those of the settings go over them, as does what an injected client sets."""
    body: bytes


class ReplyDecoder(Decoder, Protocol):
    """A decoder of one whole reply.

    Attributes:
        secrets: texts that no error may repeat.
    """

    secrets: Sequence[str]

    @property
    def usage(self) -> Usage | None:
        """What the provider told so far."""
        ...

    def end(self) -> ModelReply:
        """The reply's ending, once the body has ended or `done` is set. Raises ModelError if it is not complete."""
        ...


class HttpModel(ABC):
    """A model that answers one POST with a stream.

    It may be shared by agents, threads and event loops: each event loop gets a client of its own, made at the first
    call. As an async context manager it keeps that client, and its connections, until the last user of the loop has
    left; without one, each call opens and closes its own. An injected client is used as it is and never closed.

    Retries are helix's: each is a visible attempt of the step, so the client itself makes none. Redirects are errors:
    a key goes nowhere but to the base URL.
    """

    def __init__(self, model_name: str, base_url: str, client: httpx2.AsyncClient | None) -> None:
        """Opens no connection."""
        self._model_name = model_name
        self._base_url = base_url.rstrip("/")
        self._injected = client
        self._leases: RunVar[_Lease] = RunVar("helix.http_model")
        self._encoded_tools: list[tuple[tuple[ToolDefinition, ...], bytes]] = []

    @property
    @abstractmethod
    def name(self) -> str:
        """The prefix and the model's name, such as `anthropic:claude-sonnet-4-5`."""

    @abstractmethod
    def _request(self, request: ModelRequest) -> Post:
        """What to send."""

    @abstractmethod
    def _decoder(self, emit: Emit) -> ReplyDecoder:
        """A decoder for one reply, pushing into `emit`."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._model_name!r})"

    async def __aenter__(self) -> Self:
        lease = self._leases.get(None)
        if lease is None:
            lease = _Lease()
            lease.token = self._leases.set(lease)
        lease.users += 1
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lease = self._leases.get()
        lease.users -= 1
        if lease.users:
            return
        if lease.token is not None:
            self._leases.reset(lease.token)
        if lease.client is not None:
            with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
                await lease.client.aclose()

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        """Asks the model, pushes what arrives into `emit`, and returns when the reply is complete.

        Complete means that the provider said so: a stream that ends before that is an error wherever it was cut. What
        was pushed before an error is void. A cancellation closes the connection at once.

        Raises:
            ModelError: the call failed; `usage` holds what the provider had told by then.
        """
        check_real_requests(self.name)
        decoder = self._decoder(emit)
        async with self:
            with Patience(request.settings) as patience:
                return await self._exchange(self._client(), request, decoder, patience)
        if decoder.done:
            return decoder.end()  # the time ran out behind the reply
        raise ModelError("model_unavailable", patience.ran_out, retryable=True, usage=decoder.usage)

    async def _exchange(
        self, client: httpx2.AsyncClient, request: ModelRequest, decoder: ReplyDecoder, patience: Patience
    ) -> ModelReply:
        response = await send(client, self._built(client, request))
        decoder.secrets = secrets_in(response.request.headers)
        try:
            if not response.is_success:
                raise await status_error(response) from None
            await read(response, decoder, patience)
            return decoder.end()
        finally:
            with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
                await response.aclose()

    def _built(self, client: httpx2.AsyncClient, request: ModelRequest) -> httpx2.Request:
        path, ours, body = self._request(request)
        headers = httpx2.Headers({"content-type": "application/json"})
        try:
            headers.update({name: value for name, value in ours.items() if name not in client.headers})
            headers.update(request.settings.headers or {})
            return client.build_request(
                "POST",
                self._base_url + path,
                content=body,
                headers=headers,
                timeout=NO_TIMEOUT if self._injected is None else client.timeout,
            )
        except ValueError:  # what cannot be encoded
            raise ModelError("model_rejected", _MALFORMED) from None
        except httpx2.InvalidURL as error:
            raise ModelError("model_rejected", _NO_URL, detail=str(error)) from None

    def _client(self) -> httpx2.AsyncClient:
        if self._injected is not None:
            return self._injected
        lease = self._leases.get()
        if lease.client is None:
            lease.client = self._new_client()
        return lease.client

    def _new_client(self) -> httpx2.AsyncClient:
        return http_client()

    def _tools(self, tools: Sequence[ToolDefinition], encode: Callable[[Sequence[ToolDefinition]], bytes]) -> bytes:
        """The tools through `encode`, once for each set of definitions; empty when there are none."""
        if not tools:
            return b""
        tools = tuple(tools)
        for known, encoded in self._encoded_tools:
            if known == tools:
                return encoded
        encoded = encode(tools)
        self._encoded_tools = [(tools, encoded), *self._encoded_tools[: _KEPT_TOOL_SETS - 1]]
        return encoded


@dataclass(slots=True)
class _Lease:
    """One event loop's share of a model: its client, and how many use it."""

    client: httpx2.AsyncClient | None = None
    users: int = 0
    token: RunvarToken[_Lease] | None = None


def find_key(model: HttpModel, given: str | None, *variables: str, required: bool) -> str:
    """The key that was given, or the first of the environment's `variables` that is set; may be empty if not required.

    Raises:
        MissingKey: there is none.
    """
    key = next(filter(None, ((value or "").strip() for value in (given, *map(os.environ.get, variables)))), "")
    if required and not key:
        kind = type(model).__name__
        raise MissingKey(
            f"{' or '.join(variables)} is not set, and {model.name!r} needs it: set it in the environment, or pass"
            f" api_key= or client= to {kind}. (A server of your own that asks for no key takes any text.)"
        )
    return key


def find_base_url(given: str | None, client: httpx2.AsyncClient | None, variable: str, default: str) -> str:
    """Where requests go: what was given, else the injected client's base URL, the environment's, the default."""
    of_client = "" if client is None else str(client.base_url)
    return (given or "").strip() or of_client or os.environ.get(variable, "").strip() or default


async def send(client: httpx2.AsyncClient, request: httpx2.Request) -> httpx2.Response:
    """Sends the request; gives the response once its head has arrived."""
    try:
        return await client.send(request, stream=True, follow_redirects=False)
    except Exception as error:  # whatever the transport raises
        # Not chained: its text may hold the key.
        raise _from_transport_error(error, request) from None


async def status_error(response: httpx2.Response) -> ModelError:
    """The error for an answer that is one."""
    content = await _words_of(response)
    try:
        body: object = from_json(content)
    except ValueError:
        body = content.decode("utf-8", "replace")
    url, headers = response.request.url, response.headers
    place = f"{url.scheme}://{url.host}{url.path}"
    return from_status(response.status_code, body, headers, secrets=secrets_in(response.request.headers), place=place)


async def _words_of(response: httpx2.Response) -> bytes:
    """What an error says, if all of it comes soon and is not too much: the status is known without it."""
    words, size = list[bytes](), 0
    with anyio.move_on_after(_WORDS_SECONDS) as scope:
        try:
            async for data in response.aiter_bytes():
                size += len(data)
                if size > _MAX_WORDS:
                    scope.cancel()  # which, unlike leaving the loop, ends all of the transport's generators
                else:
                    words.append(data)
            return b"".join(words)
        except Exception:
            pass
    return b""


def _from_transport_error(error: Exception, request: httpx2.Request) -> ModelError:
    """The error for a call that failed before its reply began."""
    if isinstance(error, (httpx2.LocalProtocolError, ValueError)):  # about a header: its text may quote the key
        return ModelError("model_rejected", _MALFORMED)
    detail = scrub(f"{request.url.host}: {error!r}", secrets_in(request.headers))
    if isinstance(error, httpx2.UnsupportedProtocol):
        return ModelError("model_rejected", _NO_URL, detail=detail)
    if isinstance(error, httpx2.TimeoutException) and timed_out(error):
        return ModelError("model_unavailable", "The model did not answer in time.", retryable=True, detail=detail)
    return ModelError("model_unavailable", "The model cannot be reached.", retryable=True, detail=detail)
