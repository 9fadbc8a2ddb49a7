"""OpenAI's Responses API, stateless: each request holds the whole conversation, and the provider stores nothing.

Floor 3, below `steps`, above `_openai`, which does the network, and `_responses`, which knows the dialect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from openai import AsyncOpenAI
from pydantic_core import to_json

from helix.model import Emit, ModelProfile, ModelRequest, ToolDefinition
from helix.models._openai import AzureModel, OpenAIModel
from helix.models._reasoning import refuse_budget
from helix.models._responses import (
    PROVIDER,
    ResponsesDecoder,
    encode_message,
    encode_tools,
    settings_fields,
    text_format,
    tool_choice,
)

__all__ = ["AzureOpenAIResponsesModel", "OpenAIResponsesModel"]

_PLAIN = ("gpt-3.5", "gpt-4", "gpt-5-chat", "chatgpt-", "ft:gpt-3.5", "ft:gpt-4")  # these do not reason


class OpenAIResponsesModel(OpenAIModel):
    """A model behind `/responses`: OpenAI's own, Azure's, or any server that speaks the same.

    It may be shared by agents, threads and event loops: each event loop gets a client of its own, made at the first
    call. As an async context manager it keeps that client, and its connections, until the last user of the loop has
    left; without one, each call opens and closes its own. An injected client is used as it is and never closed.

    The provider stores nothing (`store: false`). The model's reasoning comes encrypted and goes back to it as it came;
    a readable summary of it is shown with `show_reasoning=True`. The API has no `stop` and no `seed`: these settings
    are not sent.

    Retries are helix's: each is a visible attempt of the step, so the client itself makes none.
    """

    _prefix: ClassVar[str] = "openai-responses"

    def __init__(
        self,
        model_name: str,
        *,
        client: AsyncOpenAI | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        profile: ModelProfile | None = None,
        encrypted_reasoning: bool | None = None,
    ) -> None:
        """Opens no connection.

        Args:
            model_name: as the provider calls it, such as `gpt-5`.
            client: a configured client, `AsyncAzureOpenAI` included. It belongs to one event loop.
            api_key: instead of `OPENAI_API_KEY`.
            base_url: instead of `OPENAI_BASE_URL`; up to and without `/responses`.
            profile: what the model can do; by default it is known by its name, if it is one of OpenAI's.
            encrypted_reasoning: whether to ask for it. Models that do not reason refuse the request; by default they
                are told by their names (`gpt-4…` and older, `…-chat`).

        Raises:
            MissingKey: there is no client and no key.
        """
        super().__init__(model_name, client=client, api_key=api_key, base_url=base_url, profile=profile)
        named = not model_name.startswith(_PLAIN)
        self.encrypted_reasoning: bool = named if encrypted_reasoning is None else encrypted_reasoning

    def _decoder(self, emit: Emit) -> ResponsesDecoder:
        return ResponsesDecoder(emit)

    def _encode_tools(self, tools: Sequence[ToolDefinition]) -> bytes:
        return encode_tools(tools)

    def _path(self, client: AsyncOpenAI) -> str:
        return "/responses"  # Azure's too: the deployment is named in the body

    def _body(self, client: AsyncOpenAI, request: ModelRequest) -> bytes:
        settings, extra = request.settings, dict(request.settings.extra_body or {})
        refuse_budget(self.name, settings)
        tools = b"" if "tools" in extra else self._tools(request, self._encode_tools)
        fields: dict[str, Any] = {
            "model": self._model_name,
            "stream": request.stream,
            "store": False,
            **({"include": ["reasoning.encrypted_content"]} if self.encrypted_reasoning else {}),
            **({"instructions": request.instructions} if request.instructions else {}),
            **settings_fields(settings),
        }
        if tools and settings.parallel_tool_calls is not None:
            fields["parallel_tool_calls"] = settings.parallel_tool_calls
        if request.output is not None and self._is_native(request.output):
            text = text_format(request.output, *self.profile.schema_of(request.output))
            extra["text"] = {**text, **(extra.get("text") or {})}  # such as a verbosity
        fields |= tool_choice(self._choice(request), request.output)
        pieces = [to_json({**fields, **extra})[:-1]]
        if "input" not in extra:
            pieces += [b',"input":[', request.messages.encoded(PROVIDER, encode_message), b"]"]
        if tools:
            pieces += [b',"tools":', tools]
        return b"".join((*pieces, b"}"))


class AzureOpenAIResponsesModel(AzureModel, OpenAIResponsesModel):
    """A deployment of Azure OpenAI, configured by the environment variables that Azure's own client reads.

    `OPENAI_API_VERSION` must be one that has the Responses API: `2025-03-01-preview` or later.
    """

    _prefix: ClassVar[str] = "azure-responses"

    def __init__(
        self, deployment: str, *, profile: ModelProfile | None = None, encrypted_reasoning: bool | None = None
    ) -> None:
        """Opens no connection.

        Args:
            deployment: its name.
            profile: what the model can do; needed where the deployment's name is not its model's.
            encrypted_reasoning: as for `OpenAIResponsesModel`; needed where the deployment's name is not its model's.

        Raises:
            MissingKey: one of `AZURE_OPENAI_ENDPOINT`, `OPENAI_API_VERSION` and `AZURE_OPENAI_API_KEY` (or
                `AZURE_OPENAI_AD_TOKEN`) is not set.
        """
        super().__init__(deployment, profile=profile)
        if encrypted_reasoning is not None:
            self.encrypted_reasoning = encrypted_reasoning
