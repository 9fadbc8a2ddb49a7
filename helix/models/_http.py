"""A model behind one POST: what the adapters share that speak to a provider directly.

Floor 3, above `_served`, below the adapters. No SDK: to these providers the wire is one POST with two headers, and
an SDK would put its data models on the path and its HTTP stack beside ours. The client is httpx2's, with aiohttp as its
transport where that is installed.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from typing import Final, NamedTuple

import httpx2

from helix.errors import MissingKey, ModelError
from helix.model import ModelProfile, ModelRequest
from helix.models._served import MALFORMED, NO_URL, ServedModel, send
from helix.models._transport import NO_TIMEOUT, http_client


class Post(NamedTuple):
    """One request."""

    path: str
    """What comes behind the base URL, such as `/v1/messages`."""
    headers: Mapping[str, str]
    """The provider's, the key among them; those of the settings go over them, as does what an injected client sets."""
    body: bytes


class HttpModel(ServedModel[httpx2.AsyncClient]):
    """A model that answers one POST with a stream. Redirects are errors: a key goes nowhere but to the base URL."""

    def __init__(
        self, model_name: str, base_url: str, client: httpx2.AsyncClient | None, profile: ModelProfile
    ) -> None:
        """Opens no connection."""
        super().__init__(model_name, client, profile)
        self.base_url: Final = base_url.rstrip("/")

    @abstractmethod
    def _request(self, request: ModelRequest) -> Post:
        """What to send."""

    def _open(self) -> httpx2.AsyncClient:
        return http_client()

    async def _close(self, client: httpx2.AsyncClient) -> None:
        await client.aclose()

    async def _send(self, client: httpx2.AsyncClient, request: ModelRequest) -> httpx2.Response:
        return await send(client, self._built(client, request))

    def _built(self, client: httpx2.AsyncClient, request: ModelRequest) -> httpx2.Request:
        path, ours, body = self._request(request)
        headers = httpx2.Headers({"content-type": "application/json"})
        try:
            headers.update({name: value for name, value in ours.items() if name not in client.headers})
            headers.update(request.settings.headers or {})
            return client.build_request(
                "POST",
                self.base_url + path,
                content=body,
                headers=headers,
                timeout=NO_TIMEOUT if self._injected is None else client.timeout,
            )
        except ValueError:  # what cannot be encoded
            raise ModelError("model_rejected", MALFORMED) from None
        except httpx2.InvalidURL as error:
            raise ModelError("model_rejected", NO_URL, detail=str(error)) from None


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
