"""OpenAI's Responses API as data: messages to JSON bytes, an event stream's bytes to pushes; no I/O.

Floor 3, below `openai_responses`, which does the network.

A reply is a list of items, and what is sealed in them must go back as it came: encrypted reasoning, compactions. So a
message whose parts alone do not tell keeps its items' outline as provider data: sealed items whole, of messages their
phase and how long their words are, of calls that there was one. No other item goes back, and no id: nothing is stored
at the provider, which would look ids up and fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, ClassVar, Final

from pydantic_core import to_json

from helix.chunks import FinishReason
from helix.errors import ModelError
from helix.limits import Usage
from helix.messages import AssistantMessage, Message, RefusalPart, TextPart, ToolCall, ToolMessage, UserMessage
from helix.model import Emit, ModelReply, ModelSettings, OutputDefinition, ToolDefinition
from helix.models._media import data_url, file_id, refused
from helix.models._served import Choice
from helix.models._sse import ServerSentEvent
from helix.models._stream import StreamDecoder, as_count, as_object, as_objects, as_text
from helix.models._template import TextTemplate
from helix.parts import Content, File, Image, MediaPart

PROVIDER: Final = "openai.responses"
"""The key of `provider_data` that this dialect reads and writes."""

_DELTAS = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.reasoning_summary_text.delta": "summary",
    "response.reasoning_text.delta": "reasoning",
    "response.function_call_arguments.delta": "arguments",
}
_DONES = {
    "response.output_text.done": ("text", "text"),
    "response.refusal.done": ("refusal", "refusal"),
    "response.reasoning_summary_text.done": ("summary", "text"),
    "response.reasoning_text.done": ("reasoning", "text"),
    "response.function_call_arguments.done": ("arguments", "arguments"),
}
_PARTS = {
    "output_text": ("text", "text"),
    "refusal": ("refusal", "refusal"),
    "summary_text": ("summary", "text"),
    "reasoning_text": ("reasoning", "text"),
}
_POLICIES = ("_policy", "_policy_violation")
_UNFIT = ("image_", "empty_image", "failed_to_download", "data_residency")

# --- requests ----------------------------------------------------------------------------------------------------


def encode_message(message: Message) -> bytes:
    """One message as the input items that this dialect sends, joined by commas; never none."""
    match message:
        case UserMessage():
            return to_json({"role": "user", "content": _content(message.content)})
        case ToolMessage():
            call_id, output = message.tool_call_id, _content(message.content)
            return to_json({"type": "function_call_output", "call_id": call_id, "output": output})
        case AssistantMessage():
            return to_json(list(_items(message)) or [_said("", "", None)])[1:-1]


def _content(content: Content) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: str | MediaPart) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "input_text", "text": part}
    uploaded = file_id(part, "openai")
    match part:
        case Image() if uploaded:
            return {"type": "input_image", "detail": "auto", "file_id": uploaded}
        case Image(data=bytes()) | Image(url=str()):
            return {"type": "input_image", "detail": "auto", "image_url": part.url or data_url(part)}
        case File() if uploaded:
            return {"type": "input_file", "file_id": uploaded}
        case File(url=str()):
            return {"type": "input_file", "file_url": part.url}
        case File(data=bytes()):
            return {"type": "input_file", "filename": part.name or "file", "file_data": data_url(part)}
        case _:
            raise refused(part, "The Responses API", "images and files, by data, URL or file id")


def _items(message: AssistantMessage) -> Iterator[dict[str, Any]]:
    """The items in their order. What an outline does not tell of follows behind."""
    text, refusal = message.text, message.refusal
    calls = iter(() if message.cut else message.tool_calls)
    for item in _outline(message):
        if item.get("type") == "message":
            words, told = as_count(item, "text"), as_count(item, "refusal")
            if text[:words] or refusal[:told]:
                yield _said(text[:words], refusal[:told], item.get("phase"))
            text, refusal = text[words:], refusal[told:]
        elif item.get("type") == "function_call":
            yield from (_call(call) for call in (next(calls, None),) if call is not None)
        elif item.get("encrypted_content"):
            yield {name: value for name, value in item.items() if value is not None and name not in ("id", "status")}
        else:
            yield item  # open reasoning, of a server that seals nothing
    if text or refusal:
        yield _said(text, refusal, None)
    yield from map(_call, calls)


def _outline(message: AssistantMessage) -> list[dict[str, Any]]:
    """The outline that was kept, or what the parts tell."""
    kept = as_object((message.provider_data or {}).get(PROVIDER)).get("items")
    if kept is not None and not message.cut:
        return as_objects(kept)
    outline: list[dict[str, Any]] = []
    for part in message.content:
        match part:
            case TextPart():
                outline.append({"type": "message", "text": len(part.text)})
            case RefusalPart():
                outline.append({"type": "message", "refusal": len(part.text)})
            case ToolCall():
                outline.append({"type": "function_call"})
            case _:
                pass  # another model's thoughts
    return outline


def _said(text: str, refusal: str, phase: object) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": "assistant", "content": text}
    if refusal:
        words: list[Any] = [{"type": "output_text", "text": text, "annotations": []}] if text else []
        fields = {"type": "message", "role": "assistant", "content": [*words, {"type": "refusal", "refusal": refusal}]}
    return {**fields, "phase": phase} if phase else fields


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = call.arguments if isinstance(call.arguments, str) else to_json(call.arguments).decode()
    return {"type": "function_call", "call_id": call.tool_call_id, "name": call.tool_name, "arguments": arguments}


def encode_tools(tools: Sequence[ToolDefinition]) -> bytes:
    """The request's `tools`. This API takes `strict` for granted."""
    return to_json(
        [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": tool.strict,
            }
            for tool in tools
        ]
    )


def text_format(output: OutputDefinition, schema: dict[str, Any], strict: bool) -> dict[str, Any]:
    """The request's `text`, for an output in the provider's own format."""
    described = {"name": output.name, "description": output.description, "schema": schema}
    return {"format": {"type": "json_schema", **described, "strict": strict}}


def tool_choice(choice: Choice, output: OutputDefinition | None) -> dict[str, Any]:
    """The request's `tool_choice`, in its field."""
    if choice == "auto":
        return {}
    if choice == "output" and output is not None:
        return {"tool_choice": {"type": "function", "name": output.name}}
    return {"tool_choice": "none" if choice == "none" else "required"}


def settings_fields(settings: ModelSettings) -> dict[str, Any]:
    """The request's fields for what `settings` has. This API has none for `stop` and `seed`."""
    summary = "auto" if settings.show_reasoning else None
    reasoning = {"effort": settings.reasoning_effort, "summary": summary}
    fields: dict[str, Any] = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_output_tokens": settings.max_tokens,
        "reasoning": {name: value for name, value in reasoning.items() if value is not None} or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


# --- replies -----------------------------------------------------------------------------------------------------


class ResponsesDecoder(StreamDecoder):
    """Decodes one reply: bytes in, pushes out, no I/O.

    Attributes:
        status: as the provider called the reply's ending, once it did.
    """

    __slots__ = ("_calls", "_items", "_last", "_pushes", "_reason", "status")

    _named: ClassVar[tuple[str, str, str]] = ("response", "output", "response.completed")

    def __init__(self, emit: Emit) -> None:
        """Pushes into `emit`."""
        super().__init__(emit)
        self.status: str | None = None
        self._reason = ""  # why it is incomplete
        self._items: dict[int, dict[str, Any] | None] = {}  # by the provider's index, in order of arrival
        self._calls: set[int] = set()
        self._pushes: dict[tuple[str, int, int], Callable[[str], None]] = {}  # of the texts that have begun
        self._last = ""

    def _take(self, event: ServerSentEvent) -> None:
        if event.data.startswith(b"[DONE]"):
            return  # some servers end their streams so; what counts is `response.completed`
        chunk = self._parse(event)
        kind = as_text(chunk.get("type")) or event.event
        if kind in _DELTAS:
            self._take_delta(event, _DELTAS[kind], chunk)
        elif kind in _DONES:
            what, field = _DONES[kind]
            self._say_whole(what, _index(chunk), _part_index(chunk), chunk.get(field))
        elif kind == "response.output_item.added":
            self._begin_item(_index(chunk), as_object(chunk.get("item")))
        elif kind == "response.output_item.done":
            self._end_item(_index(chunk), as_object(chunk.get("item")))
        elif kind in ("response.completed", "response.incomplete", "response.failed", "response.cancelled"):
            self._end_response(kind.removeprefix("response."), as_object(chunk.get("response")))
        elif kind == "error" or chunk.get("error"):
            told = {name: value for name, value in chunk.items() if name not in ("type", "sequence_number")}
            raise self._error(chunk.get("error") or told)

    def _take_whole(self, fields: dict[str, Any]) -> None:
        self._end_response(as_text(fields.get("status")) or "completed", fields)

    def _take_delta(self, event: ServerSentEvent, what: str, chunk: dict[str, Any]) -> None:
        text = chunk.get("delta")
        if not isinstance(text, str) or not text:
            return
        push = self._push(what, _index(chunk), _part_index(chunk))
        push(text)
        self._usual.learn(event.data, text, itemgetter("delta"), push, event.event)

    def _push(self, what: str, index: int, part: int) -> Callable[[str], None]:
        """Where the pieces of a text go. Blocks of reasoning stand apart."""
        push = self._pushes.get((what, index, part))
        if push is None:
            thinking = what in ("summary", "reasoning")
            if thinking and self._last in ("summary", "reasoning"):
                self._emit.thinking("\n\n")
            if what == "arguments":
                self._calls.add(index)
                push = self._arguments_of(index)
            else:
                push = {"text": self._emit.text, "refusal": self._emit.refusal}.get(what, self._emit.thinking)
            self._pushes[what, index, part] = push
            self._usual = TextTemplate()
        self._last = what
        return push

    def _arguments_of(self, index: int) -> Callable[[str], None]:
        return lambda text: self._emit.tool_call(index, arguments=text)

    def _say_whole(self, what: str, index: int, part: int, text: object) -> None:
        """A text whose pieces did not come."""
        if isinstance(text, str) and text and (what, index, part) not in self._pushes:
            self._push(what, index, part)(text)

    def _begin_item(self, index: int, item: dict[str, Any]) -> None:
        self._items.setdefault(index, None)
        if item.get("type") == "function_call":
            self._calls.add(index)
            self._last = "arguments"
            call_id, name = as_text(item.get("call_id")) or None, as_text(item.get("name")) or None
            self._emit.tool_call(index, call_id=call_id, name=name)

    def _end_item(self, index: int, item: dict[str, Any]) -> None:
        """Keeps an item's outline, and pushes what of it did not come in pieces."""
        kind = item.get("type")
        if kind == "function_call":
            self._begin_item(index, item)
            self._say_whole("arguments", index, 0, item.get("arguments"))
            self._items[index] = {"type": kind}
            return
        for parts in (as_objects(item.get("summary")), as_objects(item.get("content"))):
            for number, part in enumerate(parts):
                if told := _PARTS.get(as_text(part.get("type"))):
                    self._say_whole(told[0], index, number, part.get(told[1]))
        is_open = kind == "reasoning" and item.get("content")
        self._items[index] = _message_outline(item) if kind == "message" else None
        if item.get("encrypted_content") or is_open:
            self._items[index] = item

    def _end_response(self, kind: str, response: dict[str, Any]) -> None:
        self._usage = self._usage_in(response) or self._usage
        self.status = as_text(response.get("status")) or kind
        self._reason = as_text(as_object(response.get("incomplete_details")).get("reason"))
        if kind in ("failed", "cancelled") or response.get("error"):
            raise self._error(response.get("error") or {"message": f"The response was {self.status}."})
        if not self._items:
            for index, item in enumerate(as_objects(response.get("output"))):
                self._end_item(index, item)
        outline = [item for item in self._items.values() if item is not None]
        messages = [item for item in outline if item.get("type") == "message"]
        if len(messages) > 1 or any(item.keys() - {"type", "text", "refusal"} for item in outline):
            self._emit.provider_data(PROVIDER, {"items": outline})  # else the parts tell as much
        self.done = True

    def _ending(self) -> ModelReply:
        return ModelReply(self._finish_reason(), self.usage or Usage(requests=1))

    def _finish_reason(self) -> FinishReason:
        if self.status == "incomplete" or self._reason:
            return "filter" if self._reason == "content_filter" else "length"
        if any(what == "refusal" for what, _, _ in self._pushes):
            return "refusal"
        return "tool_calls" if self._calls else "stop"

    def _usage_in(self, fields: dict[str, Any]) -> Usage | None:
        told = as_object(fields.get("usage"))
        if not told:
            return None
        read, written = as_count(told, "input_tokens"), as_count(told, "output_tokens")
        return Usage(
            input_tokens=read,
            output_tokens=written,
            total_tokens=as_count(told, "total_tokens") or read + written,
            cached_tokens=as_count(as_object(told.get("input_tokens_details")), "cached_tokens"),
            reasoning_tokens=as_count(as_object(told.get("output_tokens_details")), "reasoning_tokens"),
            requests=1,
        )

    def _error(self, error: object) -> ModelError:
        """Some of this API's codes say only in their own words what they are."""
        fields = as_object(error)
        code = as_text(fields.get("code")) or as_text(fields.get("type"))
        if code.endswith(_POLICIES):
            error = {**fields, "type": "content_policy"}
        elif code.startswith(_UNFIT):
            error = {**fields, "type": "invalid_request_error"}
        return super()._error(error)


def _message_outline(item: dict[str, Any]) -> dict[str, Any]:
    outline: dict[str, Any] = {"type": "message", "text": 0}
    for part in as_objects(item.get("content")):
        what, field = _PARTS.get(as_text(part.get("type")), ("text", ""))
        outline[what] = outline.get(what, 0) + len(as_text(part.get(field)))
    phase = item.get("phase")
    return {**outline, "phase": phase} if phase else outline


def _index(chunk: dict[str, Any]) -> int:
    index = chunk.get("output_index")
    return index if isinstance(index, int) else 0


def _part_index(chunk: dict[str, Any]) -> int:
    index = chunk.get("summary_index", chunk.get("content_index"))
    return index if isinstance(index, int) else 0
