"""Claude, behind Anthropic's Messages API or a server that speaks the same.

Floor 3, below `steps`, above `_http`, which does the network, `_anthropic_messages`, which encodes what is asked, and
`_anthropic`, which decodes what comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, cast

import httpx2
from pydantic_core import to_json

from helix.model import Emit, History, ModelReply, ModelRequest, ModelSettings, ToolDefinition
from helix.models._anthropic import AnthropicDecoder
from helix.models._anthropic_messages import CACHE, PROVIDER, encode_message, encode_tools, join_messages
from helix.models._http import HttpModel, Post, find_base_url, find_key
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

        Raises:
            MissingKey: there is no client and no key.
        """
        super().__init__(model_name, find_base_url(base_url, client, "ANTHROPIC_BASE_URL", DEFAULT_BASE_URL), client)
        self._cache = cache
        self._api_key = find_key(self, api_key, "ANTHROPIC_API_KEY", required=client is None)

    @property
    def name(self) -> str:
        """`anthropic:` and the model's name."""
        return f"anthropic:{self._model_name}"

    def _decoder(self, emit: Emit) -> ReplyDecoder:
        return AnthropicDecoder(emit)

    async def _exchange(
        self, client: httpx2.AsyncClient, request: ModelRequest, decoder: ReplyDecoder, patience: Patience
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
        extra = request.settings.extra_body or {}
        reasoning = claude_fields(self._model_name, request.settings)
        thinking = _turned_on(extra.get("thinking", reasoning.get("thinking")))
        tools = b"" if "tools" in extra else self._tools(_definitions(request), self._encode_tools)
        fields: dict[str, Any] = {
            "model": self._model_name,
            "stream": True,
            **({"cache_control": CACHE} if self._cache else {}),
            **_settings_fields(request.settings, thinking),
            **reasoning,
            **(_tool_choice(request, thinking) if tools or "tools" in extra else {}),
        }
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

    def _encode_tools(self, tools: Sequence[ToolDefinition]) -> bytes:
        return encode_tools(tools, cache=self._cache)


def _definitions(request: ModelRequest) -> list[ToolDefinition]:
    """The tools, and the one that takes the output."""
    output = request.output
    if output is None:
        return [*request.tools]
    return [*request.tools, ToolDefinition(output.name, output.description, output.schema)]


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


def _turned_on(told: object) -> dict[str, Any]:
    """The request's `thinking`, if that turns it on."""
    thinking = cast("dict[str, Any]", told) if isinstance(told, dict) else {}
    return {} if thinking.get("type") == "disabled" else thinking


def _tool_choice(request: ModelRequest, thinking: dict[str, Any]) -> dict[str, Any]:
    """The request's `tool_choice`: a structured output is a call that must be made, unless the model thinks.

    With thinking on, the API refuses to force a call.
    """
    parallel = request.settings.parallel_tool_calls
    choice: dict[str, Any] = {} if parallel is None else {"disable_parallel_tool_use": not parallel}
    if request.output is None or thinking:
        return {"tool_choice": {"type": "auto", **choice}} if choice or request.output else {}
    if request.tools:
        return {"tool_choice": {"type": "any", **choice}}
    return {"tool_choice": {"type": "tool", "name": request.output.name, **choice}}
