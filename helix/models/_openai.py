"""A model behind the `openai` client: what the adapters of OpenAI's two APIs share.

Floor 3, below `openai_chat` and `openai_responses`, above `_transport`. The `openai` client does auth, Azure, proxies
and error classes; its data models stay off the path: the request is joined from bytes, and the reply is decoded from
the network's own reads.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Final, Self, cast

import anyio
import httpx2
import openai
from anyio.lowlevel import RunVar, RunvarToken
from openai import AsyncAzureOpenAI, AsyncOpenAI, AsyncStream

from helix.errors import MissingKey, ModelError
from helix.model import Emit, ModelReply, ModelRequest, ModelSettings, ToolDefinition, check_real_requests
from helix.models._errors import from_status, scrub, secrets_in
from helix.models._http import send, status_error
from helix.models._stream import StreamDecoder
from helix.models._transport import NO_TIMEOUT, Patience, http_client, read, timed_out

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"
"""Where requests go when neither `base_url=` nor `OPENAI_BASE_URL` says."""
_CLOSE_SECONDS = 1.0
_MALFORMED = "The request cannot be sent: a header (perhaps the key) is malformed."
_KEPT_TOOL_SETS = 16


class OpenAIModel(ABC):
    """A model that answers one POST of the client with a stream.

    It may be shared by agents, threads and event loops: each event loop gets a client of its own, made at the first
    call. As an async context manager it keeps that client, and its connections, until the last user of the loop has
    left; without one, each call opens and closes its own. An injected client is used as it is and never closed.

    Retries are helix's: each is a visible attempt of the step, so the client itself makes none.
    """

    _prefix: ClassVar[str]
    """What stands before the model's name."""

    def __init__(
        self,
        model_name: str,
        *,
        client: AsyncOpenAI | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        native_output: bool = False,
    ) -> None:
        """Opens no connection.

        Raises:
            MissingKey: there is no client and no key.
        """
        self._model_name = model_name
        self._injected = client
        self.native_output: Final = native_output
        self._api_key = "" if client else (api_key or os.environ.get("OPENAI_API_KEY") or "").strip()
        self._base_url = (base_url or os.environ.get("OPENAI_BASE_URL") or "").strip() or DEFAULT_BASE_URL
        if client is None and not self._api_key:
            raise MissingKey(
                f"OPENAI_API_KEY is not set, and {self.name!r} needs it: set it in the environment, or pass api_key= or"
                f" client= to {type(self).__name__}. (A server of your own that asks for no key takes any text.)"
            )
        self._leases: RunVar[_Lease] = RunVar("helix.openai")
        self._encoded_tools: list[tuple[tuple[ToolDefinition, ...], bytes]] = []

    @abstractmethod
    def _decoder(self, emit: Emit) -> StreamDecoder:
        """A decoder for one reply, pushing into `emit`."""

    @abstractmethod
    def _path(self, client: AsyncOpenAI) -> str:
        """Where the request goes, behind the client's base URL."""

    @abstractmethod
    def _body(self, client: AsyncOpenAI, request: ModelRequest) -> bytes:
        """The request's JSON, joined from what is encoded already. `extra_body` goes over all of it."""

    @abstractmethod
    def _encode_tools(self, tools: Sequence[ToolDefinition]) -> bytes:
        """The request's `tools`."""

    @property
    def name(self) -> str:
        """The prefix and the model's name, such as `openai:gpt-5`."""
        return f"{self._prefix}:{self._model_name}"

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
                await lease.client.close()

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
        self, client: AsyncOpenAI, request: ModelRequest, decoder: StreamDecoder, patience: Patience
    ) -> ModelReply:
        body = self._body(client, request)
        line = None if self._injected is not None else self._leases.get().line
        if line is None:
            response = await self._post(client, body, request.settings)
        else:
            response = await send(line.client, line.request(self._path(client), body, request.settings))
        decoder.secrets = secrets_in(response.request.headers)
        try:
            if not response.is_success:
                raise await status_error(response) from None
            await read(response, decoder, patience)
            return decoder.end()
        finally:
            with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
                await response.aclose()

    async def _post(self, client: AsyncOpenAI, body: bytes, settings: ModelSettings) -> httpx2.Response:
        """Sends the request; gives the response once its head has arrived and is a success."""
        try:
            response = await client.post(
                self._path(client),
                cast_to=httpx2.Response,
                content=body,
                stream=True,
                stream_cls=AsyncStream[object],
                options={
                    "max_retries": 0,
                    "headers": dict(settings.headers or {}),
                    "timeout": client.timeout,
                },
            )
        except openai.OpenAIError as error:
            # Not chained: the client's error repeats the provider's words, a key that they may hold included.
            raise _from_client_error(error) from None
        except ValueError:  # from aiohttp, about a header
            raise ModelError("model_rejected", _MALFORMED) from None
        return cast("httpx2.Response", response)  # the client gives raw responses for this `cast_to`, untyped

    def _client(self) -> AsyncOpenAI:
        if self._injected is not None:
            return self._injected
        lease = self._leases.get()
        if lease.client is None:
            http = http_client()
            lease.client = self._new_client(http)
            if type(lease.client) is AsyncOpenAI:
                lease.line = _Line(http, lease.client)
        return lease.client

    def _new_client(self, http: httpx2.AsyncClient) -> AsyncOpenAI:
        return AsyncOpenAI(api_key=self._api_key, base_url=self._base_url, http_client=http)

    def _tools(self, request: ModelRequest) -> bytes:
        """The `tools` field, encoded once for each set of definitions; empty when there are none."""
        tools = tuple(request.tools)
        if request.output is not None and not self.native_output:
            output = request.output
            tools += (ToolDefinition(output.name, output.description, output.schema),)
        if not tools:
            return b""
        for known, encoded in self._encoded_tools:
            if known == tools:
                return encoded
        encoded = self._encode_tools(tools)
        self._encoded_tools = [(tools, encoded), *self._encoded_tools[: _KEPT_TOOL_SETS - 1]]
        return encoded


class AzureModel(OpenAIModel):
    """A deployment of Azure OpenAI, configured by the environment variables that Azure's own client reads."""

    def __init__(self, deployment: str, *, native_output: bool = False) -> None:
        """Opens no connection.

        Raises:
            MissingKey: one of `AZURE_OPENAI_ENDPOINT`, `OPENAI_API_VERSION` and `AZURE_OPENAI_API_KEY` (or
                `AZURE_OPENAI_AD_TOKEN`) is not set.
        """
        needed = ("AZURE_OPENAI_ENDPOINT", "OPENAI_API_VERSION", "AZURE_OPENAI_API_KEY")
        found = {name: os.environ.get(name, "").strip() for name in (*needed, "AZURE_OPENAI_AD_TOKEN")}
        missing = [name for name in needed if not found[name]]
        if found["AZURE_OPENAI_AD_TOKEN"]:
            missing = [name for name in missing if name != "AZURE_OPENAI_API_KEY"]
        if missing:
            raise MissingKey(
                f"{' and '.join(missing)} must be set in the environment for '{self._prefix}:{deployment}'."
            )
        self._found = found
        super().__init__(
            deployment,
            api_key=found["AZURE_OPENAI_AD_TOKEN"] or found["AZURE_OPENAI_API_KEY"],
            base_url=found["AZURE_OPENAI_ENDPOINT"],
            native_output=native_output,
        )

    def _new_client(self, http: httpx2.AsyncClient) -> AsyncOpenAI:
        token = self._found["AZURE_OPENAI_AD_TOKEN"]
        return AsyncAzureOpenAI(
            azure_endpoint=self._found["AZURE_OPENAI_ENDPOINT"],
            api_version=self._found["OPENAI_API_VERSION"],
            api_key=None if token else self._found["AZURE_OPENAI_API_KEY"],
            azure_ad_token=token or None,
            http_client=http,
        )


@dataclass(slots=True)
class _Lease:
    """One event loop's share of a model: its client, and how many use it."""

    client: AsyncOpenAI | None = None
    line: _Line | None = None
    users: int = 0
    token: RunvarToken[_Lease] | None = None


class _Line:
    """The straight way to the server: the client's URL and headers, made once, and its HTTP client.

    The client prepares each request anew, which takes longer than sending it (0.3 ms). With a key that stays and no
    client of the user's own, nothing in that ever changes.
    """

    def __init__(self, http: httpx2.AsyncClient, client: AsyncOpenAI) -> None:
        self.client = http
        self._base_url = str(client.base_url).rstrip("/")
        self._urls: dict[str, httpx2.URL] = {}
        given = {
            name: value
            for name, value in {**client.auth_headers, **client.default_headers}.items()
            if isinstance(value, str)
        }
        self._headers = given | {"Content-Type": "application/json"}

    def request(self, path: str, body: bytes, settings: ModelSettings) -> httpx2.Request:
        """The request.

        Raises:
            ModelError: it cannot be sent.
        """
        headers = {**self._headers, **settings.headers} if settings.headers else self._headers
        try:
            if path not in self._urls:
                self._urls[path] = httpx2.URL(self._base_url + path)
            timeouts = {"timeout": NO_TIMEOUT.as_dict()}
            return httpx2.Request("POST", self._urls[path], headers=headers, content=body, extensions=timeouts)
        except ValueError:  # what cannot be encoded
            raise ModelError("model_rejected", _MALFORMED) from None
        except httpx2.InvalidURL as error:
            raise ModelError("model_rejected", "The base URL is none.", detail=str(error)) from None


def _from_client_error(error: openai.OpenAIError) -> ModelError:
    """The error for a call that failed before its reply began."""
    if isinstance(error, openai.APIStatusError):
        request, headers = error.request, error.response.headers
        place = f"{request.url.scheme}://{request.url.host}{request.url.path}"
        return from_status(error.status_code, error.body, headers, secrets=secrets_in(request.headers), place=place)
    if not isinstance(error, openai.APIConnectionError):
        return ModelError("internal", f"The model's client failed: {type(error).__name__}.")
    cause = error.__cause__
    if isinstance(cause, httpx2.LocalProtocolError):  # its text quotes the header, which may be the key
        return ModelError("model_rejected", _MALFORMED)
    detail = scrub(f"{error.request.url.host}: {cause!r}", secrets_in(error.request.headers))
    if isinstance(cause, httpx2.UnsupportedProtocol):
        return ModelError("model_rejected", "The base URL must begin with http:// or https://.", detail=detail)
    if isinstance(error, openai.APITimeoutError) and timed_out(cause):
        return ModelError("model_unavailable", "The model did not answer in time.", retryable=True, detail=detail)
    return ModelError("model_unavailable", "The model cannot be reached.", retryable=True, detail=detail)
