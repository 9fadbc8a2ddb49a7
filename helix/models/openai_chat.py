"""Chat completions, as OpenAI and the many servers that speak its dialect stream them.

Floor 3, below `steps`, above `_openai`, which does the network, and `_chat`, which knows the dialect.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar
from urllib.parse import quote

import httpx2
from openai import AsyncAzureOpenAI, AsyncOpenAI
from pydantic_core import to_json

from helix.model import Emit, ModelProfile, ModelRequest, ToolDefinition
from helix.models._chat import (
    ChatDecoder,
    encode_message,
    encode_tools,
    response_format,
    settings_fields,
    tool_choice,
)
from helix.models._openai import DEFAULT_BASE_URL, AzureModel, OpenAIModel
from helix.models._reasoning import refuse_budget

__all__ = ["DEFAULT_BASE_URL", "AzureOpenAIChatModel", "OpenAIChatModel"]


class OpenAIChatModel(OpenAIModel):
    """A model behind `/chat/completions`: OpenAI's own, Azure's, or any server that speaks the same.

    It may be shared by agents, threads and event loops: each event loop gets a client of its own, made at the first
    call. As an async context manager it keeps that client, and its connections, until the last user of the loop has
    left; without one, each call opens and closes its own. An injected client is used as it is and never closed.

    Retries are helix's: each is a visible attempt of the step, so the client itself makes none.
    """

    _prefix: ClassVar[str] = "openai"

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

        Args:
            model_name: as the provider calls it, such as `gpt-5`.
            client: a configured client, `AsyncAzureOpenAI` included. It belongs to one event loop.
            api_key: instead of `OPENAI_API_KEY`.
            base_url: instead of `OPENAI_BASE_URL`; up to and without `/chat/completions`.
            profile: what the model can do; by default it is known by its name, if it is one of OpenAI's.

        Raises:
            MissingKey: there is no client and no key.
        """
        super().__init__(model_name, client=client, api_key=api_key, base_url=base_url, profile=profile)

    def _decoder(self, emit: Emit) -> ChatDecoder:
        return ChatDecoder(emit)

    def _encode_tools(self, tools: Sequence[ToolDefinition]) -> bytes:
        return encode_tools(tools)

    def _path(self, client: AsyncOpenAI) -> str:
        if isinstance(client, AsyncAzureOpenAI) and "/deployments" not in client.base_url.path:
            # The client routes to deployments by the model it reads in a JSON body; ours is bytes.
            return f"/deployments/{quote(self._model_name, safe='')}/chat/completions"
        return "/chat/completions"

    def _body(self, client: AsyncOpenAI, request: ModelRequest) -> bytes:
        settings, extra = request.settings, request.settings.extra_body or {}
        refuse_budget(self.name, settings)
        tools = b"" if "tools" in extra else self._tools(request, self._encode_tools)
        fields: dict[str, Any] = {
            "model": self._model_name,
            **({"stream": True, "stream_options": {"include_usage": True}} if request.stream else {}),
            **settings_fields(settings, max_tokens=_max_tokens_field(self.base_url)),
        }
        if tools and settings.parallel_tool_calls is not None:
            fields["parallel_tool_calls"] = settings.parallel_tool_calls
        if request.output is not None and self._is_native(request.output):
            fields["response_format"] = response_format(request.output, *self.profile.schema_of(request.output))
        fields |= tool_choice(self._choice(request), request.output)
        pieces = [to_json({**fields, **extra})[:-1]]
        if "messages" not in extra:
            pieces += [b',"messages":[', _messages(request), b"]"]
        if tools:
            pieces += [b',"tools":', tools]
        return b"".join((*pieces, b"}"))


class AzureOpenAIChatModel(AzureModel, OpenAIChatModel):
    """A deployment of Azure OpenAI, configured by the environment variables that Azure's own client reads."""

    _prefix: ClassVar[str] = "azure"


def _messages(request: ModelRequest) -> bytes:
    history = request.messages.encoded("openai.chat", encode_message)
    if not request.instructions:
        return history
    system = to_json({"role": "system", "content": request.instructions})
    return b"%b,%b" % (system, history) if history else system


@functools.cache
def _max_tokens_field(base_url: str) -> str:
    """OpenAI's reasoning models refuse `max_tokens`; many compatible servers know nothing else, and would not bound."""
    host = httpx2.URL(base_url).host
    return "max_completion_tokens" if host.endswith(("api.openai.com", ".azure.com")) else "max_tokens"
