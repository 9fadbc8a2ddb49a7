"""A model behind the `openai` client: what the adapters of OpenAI's two APIs share.

Floor 3, below `openai_chat` and `openai_responses`, above `_served`. The `openai` client does auth, Azure, proxies
and error classes; its data models stay off the path: the request is joined from bytes, and the reply is decoded from
the network's own reads.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final, NamedTuple, cast

import httpx2
import openai
from openai import AsyncAzureOpenAI, AsyncOpenAI, AsyncStream

from helix.errors import MissingKey, ModelError
from helix.model import Emit, ModelProfile, ModelRequest, ModelSettings, ToolDefinition
from helix.models._clients import http_client, new_line
from helix.models._errors import from_status, secrets_in
from helix.models._lines import MALFORMED, Answer, HttpxAnswer, Line, unreached
from helix.models._served import ServedModel, status_error
from helix.models._stream import StreamDecoder

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"
"""Where requests go when neither `base_url=` nor `OPENAI_BASE_URL` says."""


_STRUCTURED = ("gpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "o1", "o3", "o4", "ft:gpt-4o", "ft:gpt-4.1")
_UNSTRUCTURED = ("gpt-4o-2024-05-13", "gpt-4o-audio", "gpt-4o-mini-audio", "o1-mini", "o1-preview")


def profile_of(model_name: str) -> ModelProfile:
    """What OpenAI's own models can do. Of other names nothing is known but that they can call tools."""
    known = model_name.startswith(_STRUCTURED) and not model_name.startswith(_UNSTRUCTURED)
    return ModelProfile(native_output=known, strict_output=known)


class Connection(NamedTuple):
    """What a model of this kind has open in one event loop."""

    client: AsyncOpenAI
    straight: _StraightWay | None
    """The straight way, where there is one."""


class OpenAIModel(ServedModel[Connection]):
    """A model that answers one POST of the `openai` client with a stream."""

    _prefix: ClassVar[str]
    """What stands before the model's name."""

    def __init__(
        self,
        model_name: str,
        *,
        client: AsyncOpenAI | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        profile: ModelProfile | None = None,
    ) -> None:
        """Opens no connection.

        Raises:
            MissingKey: there is no client and no key.
        """
        super().__init__(model_name, Connection(client, None) if client else None, profile or profile_of(model_name))
        self._api_key = "" if client else (api_key or os.environ.get("OPENAI_API_KEY") or "").strip()
        given = str(client.base_url) if client else base_url or os.environ.get("OPENAI_BASE_URL") or ""
        self.base_url: Final = given.strip() or DEFAULT_BASE_URL
        if client is None and not self._api_key:
            raise MissingKey(
                f"OPENAI_API_KEY is not set, and {self.name!r} needs it: set it in the environment, or pass api_key= or"
                f" client= to {type(self).__name__}. (A server of your own that asks for no key takes any text.)"
            )

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

    def _open(self) -> Connection:
        http = http_client()
        client = self._new_client(http)
        if type(client) is AsyncOpenAI:
            return Connection(client, _StraightWay(new_line(), client))
        http.event_hooks = {"response": [_raise_for_status]}
        return Connection(client, None)

    async def _close(self, client: Connection) -> None:
        await client.client.close()
        if client.straight is not None:
            await client.straight.line.close()

    async def _send(self, client: Connection, request: ModelRequest) -> Answer:
        api, straight = client
        body = self._body(api, request)
        if straight is None:
            return await self._post(api, body, request.settings)
        return await straight.post(self._path(api), body, request.settings)

    async def _post(self, client: AsyncOpenAI, body: bytes, settings: ModelSettings) -> Answer:
        """Sends the request; gives the answer once its head has arrived and is a success."""
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
                    "follow_redirects": False,  # keys stay here
                },
            )
        except ModelError:  # from our own hook
            raise
        except openai.OpenAIError as error:
            # Not chained: the client's error repeats the provider's words, a key that they may hold included.
            raise _from_client_error(error) from None
        except ValueError:  # from aiohttp, about a header
            raise ModelError("model_rejected", MALFORMED) from None
        except Exception as error:  # whatever the transport raises: its text may hold the key
            text, detail = "The model cannot be reached.", type(error).__name__
            raise ModelError("model_unavailable", text, retryable=True, detail=detail) from None
        return HttpxAnswer(cast("httpx2.Response", response))  # what the client gives for this `cast_to`, untyped

    def _new_client(self, http: httpx2.AsyncClient) -> AsyncOpenAI:
        return AsyncOpenAI(api_key=self._api_key, base_url=self.base_url, http_client=http)


class AzureModel(OpenAIModel):
    """A deployment of Azure OpenAI, configured by the environment variables that Azure's own client reads."""

    def __init__(self, deployment: str, *, profile: ModelProfile | None = None) -> None:
        """Opens no connection.

        Args:
            deployment: its name.
            profile: what the model can do; needed where the deployment's name is not its model's.

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
            profile=profile,
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


class _StraightWay:
    """The straight way to the server: the client's URL and headers, made once, and a line.

    The client prepares each request anew, which takes longer than sending it (0.3 ms). With a key that stays and no
    client of the user's own, nothing in that ever changes.
    """

    def __init__(self, line: Line, client: AsyncOpenAI) -> None:
        self.line = line
        self._base_url = str(client.base_url).rstrip("/")
        given = {
            name: value
            for name, value in {**client.auth_headers, **client.default_headers}.items()
            if isinstance(value, str)
            and not name.lower().startswith("x-stainless-")  # about a client that asks nothing
        }
        self._headers = given | {"Content-Type": "application/json"}

    async def post(self, path: str, body: bytes, settings: ModelSettings) -> Answer:
        """Asks. Raises ModelError."""
        return await self.line.post(self._base_url + path, self._headers, body, settings.headers)


async def _raise_for_status(response: httpx2.Response) -> None:
    """Reads what an error says before the client does, which would wait for its words without end."""
    if not response.is_success:
        raise await status_error(HttpxAnswer(response))


def _from_client_error(error: openai.OpenAIError) -> ModelError:
    """The error for a call that failed before its reply began."""
    if isinstance(error, openai.APIStatusError):
        request, headers = error.request, error.response.headers
        place = f"{request.url.scheme}://{request.url.host}{request.url.path}"
        return from_status(error.status_code, error.body, headers, secrets=secrets_in(request.headers), place=place)
    if not isinstance(error, openai.APIConnectionError):
        return ModelError("internal", f"The model's client failed: {type(error).__name__}.")
    return unreached(error.__cause__, str(error.request.url), error.request.headers)
