"""Chat completions, as OpenAI and the many servers that speak its dialect stream them.

Floor 3, below `steps`, above `_chat`, which knows the dialect; this file does the network. The `openai` client does
auth, Azure, proxies and error classes; its data models stay off the path: the request is joined from bytes, and the
reply is decoded from the network's own reads.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, cast
from urllib.parse import quote

import anyio
import httpx2
import openai
from anyio.lowlevel import RunVar, RunvarToken
from openai import AsyncAzureOpenAI, AsyncOpenAI, AsyncStream
from pydantic_core import to_json

from helix.errors import MissingKey, ModelError
from helix.model import Emit, ModelReply, ModelRequest, ModelSettings, ToolDefinition, check_real_requests
from helix.models._chat import ChatDecoder, encode_message, encode_tools, response_format, settings_fields
from helix.models._errors import from_status, scrub, secrets_in
from helix.models._transport import http_client, read, timed_out

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"
"""Where requests go when neither `base_url=` nor `OPENAI_BASE_URL` says."""
_CLOSE_SECONDS = 1.0
_MALFORMED = "The request cannot be sent: a header (perhaps the key) is malformed."
_KEPT_TOOL_SETS = 16


class OpenAIChatModel:
    """A model behind `/chat/completions`: OpenAI's own, Azure's, or any server that speaks the same.

    It may be shared by agents, threads and event loops: each event loop gets a client of its own, made at the first
    call. As an async context manager it keeps that client, and its connections, until the last user of the loop has
    left; without one, each call opens and closes its own. An injected client is used as it is and never closed.

    Retries are helix's: each is a visible attempt of the step, so the client itself makes none.
    """

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

        Args:
            model_name: as the provider calls it, such as `gpt-5`.
            client: a configured client, `AsyncAzureOpenAI` included. It belongs to one event loop.
            api_key: instead of `OPENAI_API_KEY`.
            base_url: instead of `OPENAI_BASE_URL`; up to and without `/chat/completions`.
            native_output: ask for structured output as `response_format` instead of as a tool.

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
                " client= to OpenAIChatModel. (A server of your own that asks for no key takes any text.)"
            )
        self._leases: RunVar[_Lease] = RunVar("helix.openai_chat")
        self._encoded_tools: list[tuple[tuple[ToolDefinition, ...], bytes]] = []

    @property
    def name(self) -> str:
        """`openai:` and the model's name."""
        return f"openai:{self._model_name}"

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

        Complete means that the provider said so (`[DONE]`): a stream that ends before that is an error wherever it was
        cut. What was pushed before an error is void. A cancellation closes the connection at once.

        Raises:
            ModelError: the call failed; `usage` holds what the provider had told by then.
        """
        check_real_requests(self.name)
        decoder = ChatDecoder(emit)
        timeout = request.settings.timeout
        async with self:
            with anyio.move_on_after(timeout):
                return await self._exchange(self._client(), request, decoder)
        if decoder.done:
            return decoder.end()  # the time ran out behind the reply
        raise ModelError(
            "model_unavailable",
            f"The model gave no complete reply within {timeout:g} seconds.",
            retryable=True,
            usage=decoder.usage,
        )

    async def _exchange(self, client: AsyncOpenAI, request: ModelRequest, decoder: ChatDecoder) -> ModelReply:
        response = await self._post(client, self._body(client, request), request.settings)
        decoder.secrets = secrets_in(response.request.headers)
        try:
            await read(response, decoder)
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
                    "timeout": client.timeout if settings.timeout is None else settings.timeout,
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
            lease.client = self._new_client()
        return lease.client

    def _new_client(self) -> AsyncOpenAI:
        return AsyncOpenAI(api_key=self._api_key, base_url=self._base_url, http_client=http_client())

    def _path(self, client: AsyncOpenAI) -> str:
        if isinstance(client, AsyncAzureOpenAI) and "/deployments" not in client.base_url.path:
            # The client routes to deployments by the model it reads in a JSON body; ours is bytes.
            return f"/deployments/{quote(self._model_name, safe='')}/chat/completions"
        return "/chat/completions"

    def _body(self, client: AsyncOpenAI, request: ModelRequest) -> bytes:
        """The request's JSON, joined from what is encoded already. `extra_body` goes over all of it."""
        settings, extra = request.settings, request.settings.extra_body or {}
        tools = b"" if "tools" in extra else self._tools(request)
        fields: dict[str, Any] = {
            "model": self._model_name,
            "stream": True,
            "stream_options": {"include_usage": True},
            **settings_fields(settings, max_tokens=_max_tokens_field(client)),
        }
        if tools and settings.parallel_tool_calls is not None:
            fields["parallel_tool_calls"] = settings.parallel_tool_calls
        if request.output is not None and self.native_output:
            fields["response_format"] = response_format(request.output)
        elif request.output is not None:
            fields["tool_choice"] = "required"
        pieces = [to_json({**fields, **extra})[:-1]]
        if "messages" not in extra:
            pieces += [b',"messages":[', _messages(request), b"]"]
        if tools:
            pieces += [b',"tools":', tools]
        return b"".join((*pieces, b"}"))

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
        encoded = encode_tools(tools)
        self._encoded_tools = [(tools, encoded), *self._encoded_tools[: _KEPT_TOOL_SETS - 1]]
        return encoded


class AzureOpenAIChatModel(OpenAIChatModel):
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
            raise MissingKey(f"{' and '.join(missing)} must be set in the environment for 'azure:{deployment}'.")
        self._found = found
        super().__init__(
            deployment,
            api_key=found["AZURE_OPENAI_AD_TOKEN"] or found["AZURE_OPENAI_API_KEY"],
            base_url=found["AZURE_OPENAI_ENDPOINT"],
            native_output=native_output,
        )

    @property
    def name(self) -> str:
        """`azure:` and the deployment's name."""
        return f"azure:{self._model_name}"

    def _new_client(self) -> AsyncOpenAI:
        token = self._found["AZURE_OPENAI_AD_TOKEN"]
        return AsyncAzureOpenAI(
            azure_endpoint=self._found["AZURE_OPENAI_ENDPOINT"],
            api_version=self._found["OPENAI_API_VERSION"],
            api_key=None if token else self._found["AZURE_OPENAI_API_KEY"],
            azure_ad_token=token or None,
            http_client=http_client(),
        )


@dataclass(slots=True)
class _Lease:
    """One event loop's share of a model: its client, and how many use it."""

    client: AsyncOpenAI | None = None
    users: int = 0
    token: RunvarToken[_Lease] | None = None


def _messages(request: ModelRequest) -> bytes:
    history = request.messages.encoded("openai.chat", encode_message)
    if not request.instructions:
        return history
    system = to_json({"role": "system", "content": request.instructions})
    return b"%b,%b" % (system, history) if history else system


def _max_tokens_field(client: AsyncOpenAI) -> str:
    """OpenAI's reasoning models refuse `max_tokens`; many compatible servers know nothing else, and would not bound."""
    host = client.base_url.host
    return "max_completion_tokens" if host.endswith(("api.openai.com", ".azure.com")) else "max_tokens"


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
