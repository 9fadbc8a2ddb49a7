"""A model behind one POST: what the adapters share that speak to a provider directly.

Floor 3, above `_served`, below the adapters. No SDK: to these providers the wire is one POST with two headers, and
an SDK would put its data models on the path and its HTTP stack beside ours.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from typing import Final, NamedTuple

import httpx2

from helix.errors import MissingKey
from helix.model import ModelProfile, ModelRequest
from helix.models._clients import new_line
from helix.models._lines import Answer, HttpxLine, Line
from helix.models._served import ServedModel


class Post(NamedTuple):
    """One request."""

    path: str
    """What comes behind the base URL, such as `/v1/messages`."""
    headers: Mapping[str, str]
    """The provider's, the key among them; those of the settings go over them, as does what an injected client sets."""
    body: bytes


class HttpModel(ServedModel[Line]):
    """A model that answers one POST with a stream. Redirects are errors: a key goes nowhere but to the base URL."""

    def __init__(
        self, model_name: str, base_url: str, client: httpx2.AsyncClient | None, profile: ModelProfile
    ) -> None:
        """Opens no connection."""
        super().__init__(model_name, None if client is None else HttpxLine(client, injected=True), profile)
        self.base_url: Final = base_url.rstrip("/")

    @abstractmethod
    def _request(self, request: ModelRequest) -> Post:
        """What to send."""

    def _open(self) -> Line:
        return new_line()

    async def _close(self, client: Line) -> None:
        await client.close()

    async def _send(self, client: Line, request: ModelRequest) -> Answer:
        path, headers, body = self._request(request)
        headers = {"content-type": "application/json", **headers}
        return await client.post(self.base_url + path, headers, body, request.settings.headers)


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
