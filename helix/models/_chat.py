"""Chat completions as data: messages to JSON bytes, an event stream's bytes to pushes; no I/O.

Floor 3, below `openai_chat`, which does the network. The dialect is OpenAI's, with the habits of the many servers that
speak it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, cast

from pydantic_core import from_json, to_json

from helix.chunks import FinishReason
from helix.errors import ModelError
from helix.limits import Usage
from helix.messages import AssistantMessage, Message, ToolCall, ToolMessage, UserMessage
from helix.model import Emit, ModelReply, ModelSettings, OutputDefinition, ToolDefinition
from helix.models._errors import MAX_DETAIL, from_event, scrub
from helix.models._sse import EventStreamDecoder, ServerSentEvent
from helix.models._template import TextTemplate

PROVIDER: Final = "openai"
"""The key of `provider_data` that this dialect reads and writes."""

_MAX_FOREIGN_BODY = 1 << 20


def encode_message(message: Message) -> bytes:
    """One message as the JSON object that this dialect sends."""
    match message:
        case UserMessage():
            return to_json({"role": "user", "content": message.content})
        case ToolMessage():
            return to_json({"role": "tool", "tool_call_id": message.tool_call_id, "content": message.content})
        case AssistantMessage():
            return to_json(_assistant(message))


def _assistant(message: AssistantMessage) -> dict[str, Any]:
    """Thinking stays here: it goes back only as provider data, for the servers that ask for it."""
    calls = [] if message.cut else message.tool_calls
    fields: dict[str, Any] = {"role": "assistant", "content": message.text or (None if calls else "")}
    if message.refusal:
        fields.update(content=message.text or None, refusal=message.refusal)
    if calls:
        fields["tool_calls"] = [_call(call) for call in calls]
    for part in message.content:
        if not isinstance(part, ToolCall):
            fields.update((part.provider_data or {}).get(PROVIDER) or {})
    return {**fields, **((message.provider_data or {}).get(PROVIDER) or {})}


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = call.arguments if isinstance(call.arguments, str) else to_json(call.arguments).decode()
    fields = {"id": call.tool_call_id, "type": "function", "function": {"name": call.tool_name, "arguments": arguments}}
    return {**fields, **((call.provider_data or {}).get(PROVIDER) or {})}


def encode_tools(tools: Sequence[ToolDefinition]) -> bytes:
    """The request's `tools`."""
    functions = ({"name": tool.name, "description": tool.description, "parameters": tool.parameters} for tool in tools)
    return to_json([{"type": "function", "function": function} for function in functions])


def response_format(output: OutputDefinition) -> dict[str, Any]:
    """The request's `response_format`. Not `strict`, which few schemas that Python types make are fit for."""
    described = {"name": output.name, "description": output.description, "schema": output.schema}
    return {"type": "json_schema", "json_schema": described}


def settings_fields(settings: ModelSettings, *, max_tokens: str) -> dict[str, Any]:
    """The request's fields for what `settings` has; `max_tokens` is that field's name."""
    fields: dict[str, Any] = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        max_tokens: settings.max_tokens,
        "stop": settings.stop if settings.stop is None or isinstance(settings.stop, str) else list(settings.stop),
        "seed": settings.seed,
    }
    return {name: value for name, value in fields.items() if value is not None}


class ChatDecoder:
    """Decodes one reply: bytes in, pushes out, no I/O.

    Attributes:
        done: the provider has said that the reply is complete; what follows is ignored.
        finish_reason: as the provider called it, once it did.
        usage: what the provider told so far.
        secrets: texts that no error may repeat.
    """

    __slots__ = (
        "_call_ids",
        "_choice",
        "_emit",
        "_events",
        "_foreign",
        "_refused",
        "_slots",
        "_sniffed",
        "_usual",
        "done",
        "finish_reason",
        "secrets",
        "usage",
    )

    def __init__(self, emit: Emit, *, choice: int = 0) -> None:
        """Pushes choice number `choice` into `emit`, and ignores any other."""
        self.done = False
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.secrets: Sequence[str] = ()
        self._emit = emit
        self._choice = choice
        self._events = EventStreamDecoder()
        self._usual = TextTemplate()
        self._sniffed = False
        self._foreign: bytearray | None = None  # a body that is no event stream
        self._refused = False
        self._slots: dict[int, int] = {}  # the provider's index of a call -> ours
        self._call_ids: list[str | None] = []  # by our index

    def feed(self, data: bytes) -> None:
        """Pushes all that `data` completes.

        Raises:
            ModelError: the provider sent an error, or what cannot be read.
        """
        if not self._sniffed:
            self._sniff(data)
        if self._foreign is not None:
            self._foreign += data[: _MAX_FOREIGN_BODY - len(self._foreign)]
            return
        at = 0
        while at < len(data):
            if self._events.is_between:
                at = self._usual.take(data, at)
            after = data.find(b"\n\n", at) + 2
            for event in self._events.feed(data[at:after] if after > 1 else data[at:]):
                if self.done:
                    return
                if event.data.startswith(b"[DONE]"):
                    self.done = True
                else:
                    self._take(event)
            at = after if after > 1 else len(data)

    def end(self) -> ModelReply:
        """The reply's ending, once the body has ended or `done` is set.

        Raises:
            ModelError: the reply is not complete.
        """
        if self._foreign is not None:
            raise self._foreign_error(bytes(self._foreign))
        if not self.done:
            raise self.dropped("the body ended without [DONE]")
        if self.finish_reason == "error":
            raise self.dropped("finish_reason: error")
        return ModelReply(self._finish(), self.usage or Usage(requests=1))

    def dropped(self, detail: str) -> ModelError:
        """The error for a reply that broke off."""
        return ModelError(
            "model_stream_dropped",
            "The model's reply broke off before it was complete.",
            retryable=True,
            detail=scrub(detail, self.secrets)[:MAX_DETAIL],
            usage=self.usage,
        )

    def _take(self, event: ServerSentEvent) -> None:
        chunk = self._parse(event)
        if chunk.get("usage") or "x_groq" in chunk:
            self.usage = _usage_in(chunk) or self.usage
        error = chunk.get("error")
        if error or event.event == "error" or chunk.get("object") == "error":
            raise self._error(error or chunk)
        for choice in _objects(chunk.get("choices")):
            if (choice.get("index") or 0) == self._choice:
                self._take_choice(choice)
        self._learn(event, chunk)

    def _learn(self, event: ServerSentEvent, chunk: dict[str, Any]) -> None:
        """Remembers an event that has brought a text and nothing else."""
        choices = _objects(chunk.get("choices"))
        if len(choices) != 1 or event.event != "message" or chunk.get("usage") or chunk.get("x_groq"):
            return
        said = {key: value for key, value in _object(choices[0].get("delta")).items() if value and key != "role"}
        if len(said) != 1 or choices[0].get("finish_reason") or (choices[0].get("index") or 0) != self._choice:
            return
        ((key, text),) = said.items()
        push = {"content": self._emit.text, "reasoning_content": self._emit.thinking, "reasoning": self._emit.thinking}
        if isinstance(text, str) and key in push:
            self._usual.learn(event.data, text, lambda parsed: parsed["choices"][0]["delta"][key], push[key])

    def _take_choice(self, choice: dict[str, Any]) -> None:
        if error := choice.get("error"):
            raise self._error(error)
        self._push(_object(choice.get("delta")))
        if reason := choice.get("finish_reason"):
            self.finish_reason = str(reason)

    def _parse(self, event: ServerSentEvent) -> dict[str, Any]:
        try:
            chunk = from_json(event.data)
        except ValueError:
            chunk = self._parse_damaged(event)
        if isinstance(chunk, dict):
            return cast("dict[str, Any]", chunk)
        if event.event == "error":
            raise self._error(chunk)
        if not chunk:
            return {}  # an empty event keeps a connection open
        raise self.dropped(f"an event is no object: {event.data!r}")

    def _parse_damaged(self, event: ServerSentEvent) -> object:
        """An event that is no strict JSON: half characters are replaced, as they would be in a browser."""
        text = event.data.decode("utf-8", "replace")
        if not text.strip():
            return None
        try:
            whole = json.dumps(json.loads(text), ensure_ascii=False)
        except (ValueError, RecursionError):
            raise (self._error(text) if event.event == "error" else self.dropped(f"no JSON: {text!r}")) from None
        return json.loads(whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    def _push(self, delta: dict[str, Any]) -> None:
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning") or delta.get("reasoning_details"):
            self._emit.thinking(_reasoning(reasoning))
        if content := delta.get("content"):
            if isinstance(content, str):
                self._emit.text(content)
            else:
                self._push_parts(_objects(content))
        if refusal := _text(delta.get("refusal")):
            self._refused = True
            self._emit.refusal(refusal)
        if calls := delta.get("tool_calls"):
            for position, call in enumerate(_objects(calls)):
                self._push_call(call, position)
        if function := delta.get("function_call"):  # the dialect's elder form: one call, no id
            self._push_call({"function": function}, 0)

    def _push_parts(self, parts: list[dict[str, Any]]) -> None:
        """Content as a list of typed parts (Mistral's reasoning models)."""
        for part in parts:
            if text := _text(part.get("text")):
                self._emit.text(text)
            for piece in _objects(part.get("thinking")):
                self._emit.thinking(_text(piece.get("text")))

    def _push_call(self, call: dict[str, Any], position: int) -> None:
        function = _object(call.get("function"))
        index, call_id, name = call.get("index"), _text(call.get("id")) or None, _text(function.get("name")) or None
        arguments = function.get("arguments")
        if arguments is not None and not isinstance(arguments, str):
            arguments = to_json(arguments).decode()
        slot = self._slot(index if isinstance(index, int) else position, call_id, name)
        self._emit.tool_call(slot, call_id=call_id, name=name, arguments=arguments or None)
        if extra := call.get("extra_content"):  # Gemini's thought signatures must come back with the call
            self._emit.provider_data(PROVIDER, {"extra_content": extra}, to="part")

    def _slot(self, index: int, call_id: str | None, name: str | None) -> int:
        """Our number of the call that a fragment belongs to.

        Some servers give every call the same index, or none. A name with another id begins another call.
        """
        slot = self._slots.get(index)
        if slot is None or (name and call_id and self._call_ids[slot] not in (None, call_id)):
            slot = self._slots[index] = len(self._call_ids)
            self._call_ids.append(call_id)
        elif call_id:
            self._call_ids[slot] = call_id
        return slot

    def _finish(self) -> FinishReason:
        """The protocol's word for how it ended, also where a provider said none or another."""
        reason = _FINISH_REASONS.get(self.finish_reason or "stop", "stop")
        if reason == "stop" and self._refused:
            return "refusal"
        return "tool_calls" if reason == "stop" and self._call_ids else reason

    def _sniff(self, data: bytes) -> None:
        """Notices a body that is JSON or a web page, whatever its headers call it."""
        head = data.lstrip(b"\xef\xbb\xbf\r\n\t ")
        if head:
            self._sniffed = True
            self._foreign = bytearray() if head[:1] in (b"{", b"[", b"<") else None

    def _foreign_error(self, body: bytes) -> ModelError:
        text = scrub(body.decode("utf-8", "replace"), self.secrets)[:MAX_DETAIL]
        if b"<" in body[:8]:
            page = "The server answered with a web page instead of a reply: check the base URL."
            return ModelError("model_rejected", page, detail=text)
        try:
            parsed: Any = from_json(body)
        except ValueError:
            return self.dropped(text)
        fields = (_objects(parsed) or [_object(parsed)])[0]
        self.usage = _usage_in(fields)
        if fields.get("error") or fields.get("object") == "error":
            return self._error(fields.get("error") or fields)
        whole = "The server answered in one piece instead of streaming: helix needs a server that can stream."
        other = "The server answered with JSON that is no chat completion: check the base URL."
        return ModelError("model_rejected", whole if "choices" in fields else other, detail=text, usage=self.usage)

    def _error(self, error: object) -> ModelError:
        return from_event(error, secrets=self.secrets, usage=self.usage)


_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "filter",
    "refusal": "refusal",
}


def _reasoning(value: object) -> str:
    """The text of a delta's reasoning, which some servers give as a list of details."""
    return _text(value) or "".join(_text(detail.get("text")) for detail in _objects(value))


def _usage_in(chunk: dict[str, Any]) -> Usage | None:
    told = _object(chunk.get("usage") or _object(chunk.get("x_groq")).get("usage"))
    if not told:
        return None
    prompt, completion, cost = _count(told, "prompt_tokens"), _count(told, "completion_tokens"), told.get("cost")
    return Usage(
        input_tokens=prompt,
        output_tokens=completion,
        total_tokens=_count(told, "total_tokens") or prompt + completion,
        cached_tokens=_count(_object(told.get("prompt_tokens_details")), "cached_tokens"),
        reasoning_tokens=_count(_object(told.get("completion_tokens_details")), "reasoning_tokens"),
        requests=1,
        cost=float(cost) if isinstance(cost, (int, float)) else None,
    )


# What servers send is not always what they should: a value of another type is one that was not sent.


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in cast("list[Any]", value) if isinstance(item, dict)] if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(told: dict[str, Any], name: str) -> int:
    value = told.get(name)
    return value if isinstance(value, int) else 0
