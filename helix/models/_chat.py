"""Chat completions as data: messages to JSON bytes, an event stream's bytes to pushes; no I/O.

Floor 3, below `openai_chat`, which does the network. The dialect is OpenAI's, with the habits of the many servers that
speak it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from pydantic_core import to_json

from helix.chunks import FinishReason
from helix.limits import Usage
from helix.messages import AssistantMessage, Message, ToolCall, ToolMessage, UserMessage
from helix.model import Emit, ModelReply, ModelSettings, OutputDefinition, ToolDefinition
from helix.models._media import data_url, file_id, refused
from helix.models._served import Choice
from helix.models._sse import ServerSentEvent
from helix.models._stream import StreamDecoder, as_count, as_object, as_objects, as_text
from helix.parts import Audio, Content, File, Image, MediaPart, as_parts, as_words

PROVIDER: Final = "openai"
"""The key of `provider_data` that this dialect reads and writes."""


_API = "The chat completions API"
_SOUNDS = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3"}


def encode_message(message: Message) -> bytes:
    """One message as the JSON object that this dialect sends."""
    match message:
        case UserMessage():
            return to_json({"role": "user", "content": _content(message.content)})
        case ToolMessage():
            return to_json({"role": "tool", "tool_call_id": message.tool_call_id, "content": _answer(message.content)})
        case AssistantMessage():
            return to_json(_assistant(message))


def _content(content: Content) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: str | MediaPart) -> dict[str, Any]:
    match part:
        case str():
            return {"type": "text", "text": part}
        case Image(data=bytes()) | Image(url=str()):
            return {"type": "image_url", "image_url": {"url": part.url or data_url(part)}}
        case Audio(data=bytes()) if sound := _SOUNDS.get(part.media_type or ""):
            return {"type": "input_audio", "input_audio": {"data": part.base64, "format": sound}}
        case File() if uploaded := file_id(part, PROVIDER):
            return {"type": "file", "file": {"file_id": uploaded}}
        case File(data=bytes(), media_type="application/pdf"):
            return {"type": "file", "file": {"filename": part.name or "file.pdf", "file_data": data_url(part)}}
        case _:
            takes = "images by data or URL, audio as WAV or MP3 data, and PDF files by data or file id"
            raise refused(part, _API, takes)


def _answer(content: Content) -> str:
    """A call's answer, which is nothing but words here."""
    for part in as_parts(content):
        if not isinstance(part, str):
            raise refused(part, f"{_API}, in a tool's result,", "texts; the Responses API takes images and files too")
    return as_words(content)


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
    return to_json([{"type": "function", "function": _function(tool)} for tool in tools])


def _function(tool: ToolDefinition) -> dict[str, Any]:
    strict = {"strict": True} if tool.strict else {}  # a field that not all servers know
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters, **strict}


def response_format(output: OutputDefinition, schema: dict[str, Any], strict: bool) -> dict[str, Any]:
    """The request's `response_format`."""
    described = {"name": output.name, "description": output.description, "schema": schema}
    return {"type": "json_schema", "json_schema": {**described, **({"strict": True} if strict else {})}}


def tool_choice(choice: Choice, output: OutputDefinition | None) -> dict[str, Any]:
    """The request's `tool_choice`, in its field."""
    if choice == "auto":
        return {}
    if choice == "output" and output is not None:
        return {"tool_choice": {"type": "function", "function": {"name": output.name}}}
    return {"tool_choice": "none" if choice == "none" else "required"}


def settings_fields(settings: ModelSettings, *, max_tokens: str) -> dict[str, Any]:
    """The request's fields for what `settings` has; `max_tokens` is that field's name."""
    fields: dict[str, Any] = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        max_tokens: settings.max_tokens,
        "stop": settings.stop if settings.stop is None or isinstance(settings.stop, str) else list(settings.stop),
        "seed": settings.seed,
        "reasoning_effort": settings.reasoning_effort,
    }
    return {name: value for name, value in fields.items() if value is not None}


class ChatDecoder(StreamDecoder):
    """Decodes one reply: bytes in, pushes out, no I/O.

    Attributes:
        finish_reason: as the provider called it, once it did.
    """

    __slots__ = ("_call_ids", "_choice", "_refused", "_slots", "finish_reason")

    _named: ClassVar[tuple[str, str, str]] = ("chat completion", "choices", "[DONE]")

    def __init__(self, emit: Emit, *, choice: int = 0) -> None:
        """Pushes choice number `choice` into `emit`, and ignores any other."""
        super().__init__(emit)
        self.finish_reason: str | None = None
        self._choice = choice
        self._refused = False
        self._slots: dict[int, int] = {}  # the provider's index of a call -> ours
        self._call_ids: list[str | None] = []  # by our index

    def _ending(self) -> ModelReply:
        if self.finish_reason == "error":
            raise self.dropped("finish_reason: error")
        return ModelReply(self._finish(), self.usage or Usage(requests=1))

    def _take(self, event: ServerSentEvent) -> None:
        if event.data.startswith(b"[DONE]"):
            self.done = True
            return
        chunk = self._parse(event)
        if chunk.get("usage") or "x_groq" in chunk:
            self._usage = _usage_in(chunk) or self._usage
        error = chunk.get("error")
        if error or event.event == "error" or chunk.get("object") == "error":
            raise self._error(error or chunk)
        for choice in as_objects(chunk.get("choices")):
            if (choice.get("index") or 0) == self._choice:
                self._take_choice(choice)
        self._learn(event, chunk)

    def _take_whole(self, fields: dict[str, Any]) -> None:
        for choice in as_objects(fields.get("choices")):
            if (choice.get("index") or 0) == self._choice:
                self._take_choice({**choice, "delta": choice.get("message")})

    def _learn(self, event: ServerSentEvent, chunk: dict[str, Any]) -> None:
        """Remembers an event that has brought a text and nothing else."""
        choices = as_objects(chunk.get("choices"))
        if len(choices) != 1 or event.event != "message" or chunk.get("usage") or chunk.get("x_groq"):
            return
        said = {key: value for key, value in as_object(choices[0].get("delta")).items() if value and key != "role"}
        if len(said) != 1 or choices[0].get("finish_reason") or (choices[0].get("index") or 0) != self._choice:
            return
        ((key, text),) = said.items()
        push = {"content": self._emit.text, "reasoning_content": self._emit.thinking, "reasoning": self._emit.thinking}
        if isinstance(text, str) and key in push:
            self._usual.learn(event.data, text, lambda parsed: parsed["choices"][0]["delta"][key], push[key])

    def _take_choice(self, choice: dict[str, Any]) -> None:
        if error := choice.get("error"):
            raise self._error(error)
        self._push(as_object(choice.get("delta")))
        if reason := choice.get("finish_reason"):
            self.finish_reason = str(reason)

    def _push(self, delta: dict[str, Any]) -> None:
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning") or delta.get("reasoning_details"):
            self._emit.thinking(_reasoning(reasoning))
        if content := delta.get("content"):
            if isinstance(content, str):
                self._emit.text(content)
            else:
                self._push_parts(as_objects(content))
        if refusal := as_text(delta.get("refusal")):
            self._refused = True
            self._emit.refusal(refusal)
        if calls := delta.get("tool_calls"):
            for position, call in enumerate(as_objects(calls)):
                self._push_call(call, position)
        if function := delta.get("function_call"):  # the dialect's elder form: one call, no id
            self._push_call({"function": function}, 0)

    def _push_parts(self, parts: list[dict[str, Any]]) -> None:
        """Content as a list of typed parts (Mistral's reasoning models)."""
        for part in parts:
            if text := as_text(part.get("text")):
                self._emit.text(text)
            for piece in as_objects(part.get("thinking")):
                self._emit.thinking(as_text(piece.get("text")))

    def _push_call(self, call: dict[str, Any], position: int) -> None:
        function = as_object(call.get("function"))
        index, call_id, name = call.get("index"), as_text(call.get("id")) or None, as_text(function.get("name")) or None
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

    def _usage_in(self, fields: dict[str, Any]) -> Usage | None:
        return _usage_in(fields)


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
    return as_text(value) or "".join(as_text(detail.get("text")) for detail in as_objects(value))


def _usage_in(chunk: dict[str, Any]) -> Usage | None:
    told = as_object(chunk.get("usage") or as_object(chunk.get("x_groq")).get("usage"))
    if not told:
        return None
    prompt, completion, cost = as_count(told, "prompt_tokens"), as_count(told, "completion_tokens"), told.get("cost")
    read, written = as_object(told.get("prompt_tokens_details")), as_object(told.get("completion_tokens_details"))
    return Usage(
        input_tokens=prompt,
        output_tokens=completion,
        total_tokens=as_count(told, "total_tokens") or prompt + completion,
        cached_tokens=as_count(read, "cached_tokens"),
        reasoning_tokens=as_count(written, "reasoning_tokens"),
        requests=1,
        cost=float(cost) if isinstance(cost, (int, float)) else None,
        input_audio_tokens=as_count(read, "audio_tokens"),
        output_audio_tokens=as_count(written, "audio_tokens"),
    )
