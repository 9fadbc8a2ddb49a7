"""Gemini, as Google's own API streams it.

Floor 3, below `steps`, above `_http`, which does the network, and `_google`, which knows the dialect. No SDK: the wire
is one POST with one header, and Google's would bring an HTTP stack of its own and model objects for each event.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final, cast
from urllib.parse import quote

import httpx2
from pydantic_core import to_json

from helix.model import Emit, ModelProfile, ModelRequest
from helix.models._google import (
    GoogleDecoder,
    encode_message,
    encode_tools,
    generation_config,
    join_contents,
    tool_config,
)
from helix.models._http import HttpModel, Post, find_base_url, find_key

DEFAULT_BASE_URL: Final = "https://generativelanguage.googleapis.com"
"""Where requests go when neither `base_url=` nor `GOOGLE_GEMINI_BASE_URL` says."""

_UNSIGNED = ("gemini-1", "gemini-2", "gemma", "learnlm")  # these take calls unsigned, and know no levels of thinking
_COMBINING = ("gemini-3",)  # these take a schema for their text beside tools
_VOUCHED = partial(encode_message, vouch=True)


def profile_of(model_name: str) -> ModelProfile:
    """What Google's models can do: from the third generation on they take a schema for their text beside tools."""
    return ModelProfile(native_output=model_name.removeprefix("models/").startswith(_COMBINING))


class GoogleModel(HttpModel):
    """A Gemini model behind `streamGenerateContent`.

    It may be shared by agents, threads and event loops: each event loop gets a client of its own, made at the first
    call. As an async context manager it keeps that client, and its connections, until the last user of the loop has
    left; without one, each call opens and closes its own. An injected client is used as it is and never closed.

    What the model signed (`thoughtSignature`) goes back to it as it came. Thoughts are shown with
    `show_reasoning=True`. `extra_body` goes over the request
    as everywhere, its `generationConfig` over the single fields of that. There is no `parallel_tool_calls`.
    """

    def __init__(
        self,
        model_name: str,
        *,
        client: httpx2.AsyncClient | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        profile: ModelProfile | None = None,
    ) -> None:
        """Opens no connection.

        Args:
            model_name: as Google calls it, such as `gemini-2.5-flash`, or with its collection, `tunedModels/mine`.
            client: a configured client. It belongs to one event loop.
            api_key: instead of `GEMINI_API_KEY` or `GOOGLE_API_KEY`.
            base_url: instead of `GOOGLE_GEMINI_BASE_URL`; up to and without `/v1beta`.
            profile: what the model can do; by default it is known by its name.

        Raises:
            MissingKey: there is no client and no key.
        """
        super().__init__(
            model_name,
            find_base_url(base_url, client, "GOOGLE_GEMINI_BASE_URL", DEFAULT_BASE_URL),
            client,
            profile or profile_of(model_name),
        )
        self._api_key = find_key(self, api_key, "GEMINI_API_KEY", "GOOGLE_API_KEY", required=client is None)

    @property
    def name(self) -> str:
        """`google:` and the model's name."""
        return f"google:{self._model_name}"

    def _request(self, request: ModelRequest) -> Post:
        name = self._model_name if "/" in self._model_name else f"models/{self._model_name}"
        method = "streamGenerateContent?alt=sse" if request.stream else "generateContent"
        path = f"/v1beta/{quote(name)}:{method}"
        return Post(path, {"x-goog-api-key": self._api_key} if self._api_key else {}, self._body(request))

    def _decoder(self, emit: Emit) -> GoogleDecoder:
        return GoogleDecoder(emit)

    def _body(self, request: ModelRequest) -> bytes:
        """The request's JSON, joined from what is encoded already. `extra_body` goes over all of it."""
        extra = dict(request.settings.extra_body or {})
        tools = b"" if "tools" in extra else self._tools(request, encode_tools)
        native = None if request.output is None or not self._is_native(request.output) else request.output
        schema = None if native is None else self.profile.schema_of(native)[0]
        config = generation_config(request.settings, schema, levels=not self._model_name.startswith(_UNSIGNED))
        if isinstance(more := extra.get("generationConfig"), dict):
            extra["generationConfig"] = {**config, **cast("dict[str, Any]", more)}
        fields: dict[str, Any] = {"generationConfig": config} if config else {}
        if request.instructions:
            fields["systemInstruction"] = {"parts": [{"text": request.instructions}]}
        fields |= tool_config(self._choice(request), request.output)
        pieces = [] if "contents" in extra else [b'"contents":[%b]' % self._contents(request)]
        if tools:
            pieces.append(b'"tools":%b' % tools)
        if rest := to_json({**fields, **extra})[1:-1]:
            pieces.append(rest)
        return b"{%b}" % b",".join(pieces)

    def _contents(self, request: ModelRequest) -> bytes:
        if self._model_name.startswith(_UNSIGNED):
            return join_contents(request.messages.encoded("google", encode_message))
        return join_contents(request.messages.encoded("google.vouched", _VOUCHED))
