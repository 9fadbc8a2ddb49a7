"""Claude, behind Anthropic's Messages API or a server that speaks the same.

Floor 3, below `steps`, above `_http`, which does the network, `_anthropic_messages`, which encodes what is asked, and
`_anthropic`, which decodes what comes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, cast

import httpx2
from pydantic_core import to_json

from helix.model import (
    Emit,
    History,
    ModelProfile,
    ModelReply,
    ModelRequest,
    ModelSettings,
    OutputDefinition,
    ToolDefinition,
)
from helix.models._anthropic import AnthropicDecoder
from helix.models._anthropic_messages import (
    CACHE,
    PROVIDER,
    encode_message,
    encode_tools,
    join_messages,
    output_config,
    tool_choice,
)
from helix.models._http import HttpModel, Post, find_base_url, find_key
from helix.models._lines import Line
from helix.models._reasoning import claude_fields
from helix.models._served import ReplyDecoder
from helix.models._transport import Patience

DEFAULT_BASE_URL: Final = "https://api.anthropic.com"
"""Where requests go when neither `base_url=` nor `ANTHROPIC_BASE_URL` says."""
DEFAULT_MAX_TOKENS: Final = 16_384
"""How many tokens a reply may have when the settings do not say, which the API demands; a thinking budget comes on top.
"""
_VERSION = "2023-06-01"
_MAX_PAUSES = 16


_STRUCTURED = re.compile(r"claude-(haiku|opus|sonnet)-4-[5-9]\b")


def profile_of(model_name: str) -> ModelProfile:
    """What Anthropic's models can do: from Claude 4.5 on they take schemas, for their text and for tools."""
    known = _STRUCTURED.match(model_name) is not None
    return ModelProfile(native_output=known, strict_output=known, recursive_schemas=False)


class AnthropicModel(HttpModel):
    """A model behind `/v1/messages`: Anthropic's own, or any server that speaks the same.

    It may be shared by agents, threads and event loops: each event loop gets a client of its own, made at the first
    call. As an async context manager it keeps that client, and its connections, until the last user of the loop has
    left; without one, each call opens and closes its own. An injected client is used as it is and never closed.

    Thinking, and whatever else `extra_body` and `headers` turn on, is shown and goes back unchanged. A turn in which
    the provider pauses (its own tools take long) is continued within the same call.
    """

    def __init__(
        self,
        model_name: str,
        *,
        client: httpx2.AsyncClient | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        cache: bool = True,
        profile: ModelProfile | None = None,
    ) -> None:
        """Opens no connection.

        Args:
            model_name: as the provider calls it, such as `claude-sonnet-4-5`.
            client: a configured client. What it says itself (base URL, headers) goes before the environment. It
                belongs to one event loop.
            api_key: instead of `ANTHROPIC_API_KEY`.
            base_url: instead of `ANTHROPIC_BASE_URL`; up to and without `/v1/messages`.
            cache: ask the provider to keep what was sent in its prompt cache: the tools, the instructions, and the
                conversation so far. What is written to it costs a quarter more, what is read from it a tenth.
            profile: what the model can do; by default it is known by its name.

        Raises:
            MissingKey: there is no client and no key.
        """
        super().__init__(
            model_name,
            find_base_url(base_url, client, "ANTHROPIC_BASE_URL", DEFAULT_BASE_URL),
            client,
            profile or profile_of(model_name),
        )
        self._cache = cache
        self._api_key = find_key(self, api_key, "ANTHROPIC_API_KEY", required=client is None)

    @property
    def name(self) -> str:
        """`anthropic:` and the model's name."""
        return f"anthropic:{self._model_name}"

    def _decoder(self, emit: Emit) -> ReplyDecoder:
        return AnthropicDecoder(emit)

    async def _exchange(
        self, client: Line, request: ModelRequest, decoder: ReplyDecoder, patience: Patience
    ) -> ModelReply:
        """One exchange, and one more for each time the provider has paused."""
        reply = await super()._exchange(client, request, decoder, patience)
        for _ in range(_MAX_PAUSES):
            so_far = decoder.resume() if isinstance(decoder, AnthropicDecoder) else None
            if so_far is None:
                break
            messages = History([*request.messages, so_far])
            reply = await super()._exchange(client, replace(request, messages=messages), decoder, patience)
        return reply

    def _request(self, request: ModelRequest) -> Post:
        key = {"x-api-key": self._api_key} if self._api_key else {}
        return Post("/v1/messages", {"anthropic-version": _VERSION, **key}, self._body(request))

    def _body(self, request: ModelRequest) -> bytes:
        """The request's JSON, joined from what is encoded already. `extra_body` goes over all of it."""
        settings, extra, output = request.settings, dict(request.settings.extra_body or {}), request.output
        tools = b"" if "tools" in extra else self._tools(request, self._encode_tools)
        fields: dict[str, Any] = {
            "model": self._model_name,
            "stream": request.stream,
            **({"cache_control": CACHE} if self._cache else {}),
            **_settings_fields(settings, self._thinking(settings)),
            **claude_fields(self._model_name, settings),
            **(tool_choice(self._choice(request), request) if tools or "tools" in extra else {}),
        }
        if output is not None and self._is_native(output):
            format = output_config(self.profile.schema_of(output)[0])
            for told in (fields, extra):  # an effort stands beside it
                format |= told.get("output_config") or {}
            extra["output_config"] = format
        pieces = [to_json({**fields, **extra})[:-1]]
        if tools:
            pieces += [b',"tools":', tools]
        if "system" not in extra and request.instructions.strip():
            hint = {"cache_control": CACHE} if self._cache else {}
            pieces += [b',"system":', to_json([{"type": "text", "text": request.instructions, **hint}])]
        if "messages" not in extra:
            history = join_messages(request.messages.encoded(PROVIDER, encode_message))
            pieces += [b',"messages":[', history, b"]"]
        return b"".join((*pieces, b"}"))

    def _is_native(self, output: OutputDefinition) -> bool:
        """A format is always strict here."""
        is_strict = self.profile.schema_of(output)[1]
        return super()._is_native(output) and (is_strict or output.mode == "native")

    def _forces_calls(self, settings: ModelSettings) -> bool:
        """With thinking on, the API refuses to force a call."""
        return super()._forces_calls(settings) and not self._thinking(settings)

    def _thinking(self, settings: ModelSettings) -> dict[str, Any]:
        """The request's `thinking`, if that turns it on."""
        reasoning = claude_fields(self._model_name, settings)
        told = (settings.extra_body or {}).get("thinking", reasoning.get("thinking"))
        thinking = cast("dict[str, Any]", told) if isinstance(told, dict) else {}
        return {} if thinking.get("type") == "disabled" else thinking

    def _encode_tools(self, tools: Sequence[ToolDefinition]) -> bytes:
        return encode_tools(tools, cache=self._cache)


def _settings_fields(settings: ModelSettings, thinking: dict[str, Any]) -> dict[str, Any]:
    """The request's fields for what `settings` has. There is no `seed` here."""
    budget = thinking.get("budget_tokens")
    room = budget if isinstance(budget, int) else 0
    stop = [settings.stop] if isinstance(settings.stop, str) else settings.stop
    fields: dict[str, Any] = {
        "max_tokens": DEFAULT_MAX_TOKENS + room if settings.max_tokens is None else settings.max_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "stop_sequences": None if stop is None else list(stop),
    }
    return {name: value for name, value in fields.items() if value is not None}
