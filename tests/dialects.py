"""The four wires as data: what a provider sends for a text, for tool calls, at the end, and when it fails inside.

Every error repeats the key and the secret header of the request, as careless servers do.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple
from unittest.mock import patch

from helix.messages import Message, UserMessage
from helix.model import History, ModelReply, ModelRequest, ModelSettings
from helix.models._anthropic import AnthropicDecoder
from helix.models._chat import ChatDecoder
from helix.models._google import GoogleDecoder
from helix.models._responses import ResponsesDecoder
from helix.models._served import ServedModel
from helix.models.anthropic import AnthropicModel
from helix.models.google import GoogleModel
from helix.models.openai_chat import AzureOpenAIChatModel, OpenAIChatModel
from helix.models.openai_responses import OpenAIResponsesModel
from tests.recorded import Recorder

KEY = "sk-not-a-real-key-0123456789"
SECRET = "not-a-real-secret-9876543210"
ECHO = f"you sent {KEY} and {SECRET}"


def request(*messages: Message, **changes: Any) -> ModelRequest:
    """What a model is asked: only "hi", if nothing is given."""
    given: dict[str, Any] = {"instructions": "", "tools": (), "output": None, "settings": ModelSettings(), **changes}
    history = given.pop("history", None) or History(messages or [UserMessage("hi")])
    return ModelRequest("r", "agent", 1, 1, messages=history, **given)


class Called(NamedTuple):
    """A tool call that the model makes. `arguments` is JSON text, or should be; `cut` tells where it is sent in two."""

    call_id: str
    name: str
    arguments: str
    cut: int | None = None

    @property
    def pieces(self) -> list[str]:
        return [self.arguments] if self.cut is None else [self.arguments[: self.cut], self.arguments[self.cut :]]


def event(data: object, name: str = "") -> bytes:
    """One event with JSON in it."""
    line = f"event: {name}\n" if name else ""
    return f"{line}data: {json.dumps(data)}\n\n".encode()


class Dialect(ABC):
    """One provider's wire. A reply is its `start`, words or calls, and an end."""

    name: ClassVar[str]
    tells_its_end: ClassVar[bool] = True
    """Whether an event says that the reply is complete; else it is when the body ends."""
    has_indexes: ClassVar[bool] = True
    """Whether calls are numbered."""
    start: bytes = b""
    decoder: ClassVar[Any]
    """What decodes one reply."""

    @abstractmethod
    def model(self, url: str, key: str = KEY) -> ServedModel[Any]:
        """The adapter."""

    def decode(self, *pieces: bytes, **options: Any) -> tuple[Recorder, ModelReply]:
        """What the adapter makes of a body that comes in pieces. Raises ModelError."""
        recorder = Recorder()
        decoder = self.decoder(recorder, **options)
        for piece in pieces:
            decoder.feed(piece)
        return recorder, decoder.end()

    @abstractmethod
    def text(self, words: str) -> bytes:
        """A piece of the model's words."""

    @abstractmethod
    def thought(self, words: str) -> bytes:
        """A piece of the model's reasoning."""

    @abstractmethod
    def calls(self, calls: Sequence[Called], first: int = 0) -> bytes:
        """Tool calls, numbered from `first`."""

    @abstractmethod
    def end(self, *, calls: bool = False) -> bytes:
        """How the reply ends."""

    @abstractmethod
    def usage(self, read: int, written: int) -> dict[str, Any]:
        """The fields of a whole reply that tell its usage."""

    def told(self, read: int, written: int) -> bytes:
        """An event that tells the usage so far; empty where only the reply's end tells it."""
        return event(self.usage(read, written))

    @abstractmethod
    def refused(self, status: int) -> Any:
        """The JSON body of an error status."""

    @property
    @abstractmethod
    def overloaded(self) -> bytes:
        """An event in mid-stream: the server cannot go on."""

    @property
    @abstractmethod
    def limited(self) -> bytes:
        """An event in mid-stream, of another shape: too many requests."""

    @property
    def rejected(self) -> bytes:
        """A whole body with status 200: the request is wrong."""
        return json.dumps(self.refused(400)).encode()

    @property
    def in_one_piece(self) -> bytes:
        """A whole body of a server that does not stream."""
        return json.dumps(self.whole).encode()

    whole: ClassVar[Any]

    def said(self, words: str) -> bytes:
        """A whole reply."""
        return self.start + self.text(words) + self.end()

    def called(self, *calls: Called, first: int = 0) -> bytes:
        """A whole reply that calls tools."""
        return self.start + self.calls(calls, first) + self.end(calls=True)


class Chat(Dialect):
    name = "openai_chat"
    decoder = ChatDecoder
    start = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
    whole: ClassVar[Any] = {"object": "chat.completion", "choices": [{"message": {"content": "hi"}}]}

    def model(self, url: str, key: str = KEY) -> ServedModel[Any]:
        return OpenAIChatModel("gpt-x", api_key=key, base_url=f"{url}/v1")

    def _delta(self, reason: str | None = None, **delta: Any) -> bytes:
        return event({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    def text(self, words: str) -> bytes:
        return self._delta(content=words)

    def thought(self, words: str) -> bytes:
        return self._delta(reasoning_content=words)

    def calls(self, calls: Sequence[Called], first: int = 0) -> bytes:
        sent = b""
        for index, call in enumerate(calls, first):
            named: dict[str, Any] = {"id": call.call_id, "name": call.name}
            for piece in call.pieces:
                function = {"name": named.pop("name", None), "arguments": piece}
                sent += self._delta(tool_calls=[{"index": index, "id": named.pop("id", None), "function": function}])
        return sent

    def end(self, *, calls: bool = False) -> bytes:
        return self._delta("tool_calls" if calls else "stop") + self.told(11, 7) + _DONE

    def usage(self, read: int, written: int) -> dict[str, Any]:
        return {"usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}}

    def refused(self, status: int) -> Any:
        return {"error": {"message": f"No: {ECHO}", "type": _kind(status), "param": None, "code": None}}

    @property
    def overloaded(self) -> bytes:
        return event({"error": {"message": f"Broken: {ECHO}", "type": "server_error"}})

    @property
    def limited(self) -> bytes:
        error = {"code": 429, "message": f"Slow down: {ECHO}"}
        return event({"choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": error}]})


class Azure(Chat):
    """Chat completions through the `openai` client's own request, as a client of the user's goes too."""

    name = "azure_openai_chat"

    def model(self, url: str, key: str = KEY) -> ServedModel[Any]:
        names = {"AZURE_OPENAI_ENDPOINT": url, "OPENAI_API_VERSION": "2025-03-01-preview", "AZURE_OPENAI_API_KEY": key}
        with patch.dict(os.environ, names):
            return AzureOpenAIChatModel("gpt-x")


_DONE = b"data: [DONE]\n\n"


def _kind(status: int) -> str:
    """OpenAI's and Anthropic's name for a status."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 500: "api_error"}
    return kinds.get(status, "invalid_request_error" if status < 500 else "overloaded_error")


class Responses(Dialect):
    name = "openai_responses"
    decoder = ResponsesDecoder
    start = event({"type": "response.created", "response": {"status": "in_progress"}}, "response.created")
    whole: ClassVar[Any] = {"object": "response", "status": "completed", "output": []}

    def model(self, url: str, key: str = KEY) -> ServedModel[Any]:
        return OpenAIResponsesModel("gpt-x", api_key=key, base_url=f"{url}/v1")

    def _event(self, kind: str, **fields: Any) -> bytes:
        return event({"type": kind, **fields}, kind)

    def text(self, words: str) -> bytes:
        return self._event("response.output_text.delta", output_index=0, content_index=0, delta=words)

    def thought(self, words: str) -> bytes:
        return self._event("response.reasoning_summary_text.delta", output_index=0, summary_index=0, delta=words)

    def calls(self, calls: Sequence[Called], first: int = 0) -> bytes:
        sent = b""
        for index, call in enumerate(calls, first):
            item = {"type": "function_call", "id": f"fc_{index}", "call_id": call.call_id, "name": call.name}
            sent += self._event("response.output_item.added", output_index=index, item={**item, "arguments": ""})
            for piece in call.pieces:
                sent += self._event("response.function_call_arguments.delta", output_index=index, delta=piece)
            whole = {**item, "arguments": call.arguments}
            sent += self._event("response.output_item.done", output_index=index, item=whole)
        return sent

    def end(self, *, calls: bool = False) -> bytes:
        return self._event("response.completed", response={"status": "completed", **self.usage(11, 7)})

    def usage(self, read: int, written: int) -> dict[str, Any]:
        return {"usage": {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}}

    def told(self, read: int, written: int) -> bytes:
        return b""

    def refused(self, status: int) -> Any:
        return {"error": {"message": f"No: {ECHO}", "type": _kind(status), "param": None, "code": None}}

    @property
    def overloaded(self) -> bytes:
        return self._event("error", code="server_error", message=f"Broken: {ECHO}", param=None, sequence_number=3)

    @property
    def limited(self) -> bytes:
        error = {"code": "rate_limit_exceeded", "message": f"Slow down: {ECHO}"}
        return self._event("response.failed", response={"status": "failed", "error": error})


class Anthropic(Dialect):
    name = "anthropic"
    decoder = AnthropicDecoder
    start = event({"type": "message_start", "message": {"usage": {"input_tokens": 11}}}, "message_start")
    whole: ClassVar[Any] = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "hi"}]}

    def model(self, url: str, key: str = KEY) -> ServedModel[Any]:
        return AnthropicModel("claude-x", api_key=key, base_url=url)

    def _event(self, kind: str, **fields: Any) -> bytes:
        return event({"type": kind, **fields}, kind)

    def text(self, words: str) -> bytes:
        return self._event("content_block_delta", index=0, delta={"type": "text_delta", "text": words})

    def thought(self, words: str) -> bytes:
        return self._event("content_block_delta", index=99, delta={"type": "thinking_delta", "thinking": words})

    def calls(self, calls: Sequence[Called], first: int = 0) -> bytes:
        sent = b""
        for index, call in enumerate(calls, first):
            block = {"type": "tool_use", "id": call.call_id, "name": call.name, "input": {}}
            sent += self._event("content_block_start", index=index, content_block=block)
            for piece in call.pieces:
                delta = {"type": "input_json_delta", "partial_json": piece}
                sent += self._event("content_block_delta", index=index, delta=delta)
            sent += self._event("content_block_stop", index=index)
        return sent

    def end(self, *, calls: bool = False) -> bytes:
        delta = {"stop_reason": "tool_use" if calls else "end_turn"}
        return self._event("message_delta", delta=delta, usage={"output_tokens": 7}) + self._event("message_stop")

    def usage(self, read: int, written: int) -> dict[str, Any]:
        return {"usage": {"input_tokens": read, "output_tokens": written}}

    def told(self, read: int, written: int) -> bytes:
        return self._event("message_start", message=self.usage(read, written))

    def refused(self, status: int) -> Any:
        return {"type": "error", "error": {"type": _kind(status), "message": f"No: {ECHO}"}}

    @property
    def overloaded(self) -> bytes:
        return self._event("error", error={"type": "overloaded_error", "message": f"Broken: {ECHO}"})

    @property
    def limited(self) -> bytes:  # a server that names no events
        return event({"type": "error", "error": {"type": "rate_limit_error", "message": f"Slow down: {ECHO}"}})


class Google(Dialect):
    name = "google"
    decoder = GoogleDecoder
    tells_its_end = False
    has_indexes = False
    whole: ClassVar[Any] = {"candidates": [{"content": {"parts": [{"text": "hi"}]}, "finishReason": "STOP"}]}

    def model(self, url: str, key: str = KEY) -> ServedModel[Any]:
        return GoogleModel("gemini-x", api_key=key, base_url=url)

    def _event(self, *parts: Any, **fields: Any) -> bytes:
        return event({"candidates": [{"content": {"parts": list(parts), "role": "model"}, **fields}]})

    def text(self, words: str) -> bytes:
        return self._event({"text": words})

    def thought(self, words: str) -> bytes:
        return self._event({"text": words, "thought": True})

    def calls(self, calls: Sequence[Called], first: int = 0) -> bytes:
        """Arguments are one object here; what is none goes out as the text that it is."""
        return self._event(
            *(
                {"functionCall": {"id": call.call_id, "name": call.name, "args": _value(call.arguments)}}
                for call in calls
            )
        )

    def end(self, *, calls: bool = False) -> bytes:
        return event({"candidates": [{"finishReason": "STOP"}], **self.usage(11, 7)})

    def usage(self, read: int, written: int) -> dict[str, Any]:
        counts = {"promptTokenCount": read, "candidatesTokenCount": written, "totalTokenCount": read + written}
        return {"usageMetadata": counts}

    def refused(self, status: int) -> Any:
        return {"error": {"code": status, "message": f"No: {ECHO}", "status": "SAID"}}

    @property
    def overloaded(self) -> bytes:
        return event({"error": {"code": 503, "message": f"Broken: {ECHO}", "status": "UNAVAILABLE"}})

    @property
    def limited(self) -> bytes:  # by its word alone
        return event({"error": {"message": f"Slow down: {ECHO}", "status": "RESOURCE_EXHAUSTED"}})


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


DIALECTS: list[Dialect] = [Chat(), Responses(), Anthropic(), Google()]
