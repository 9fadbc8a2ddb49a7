"""Google's `generateContent` as data: messages to JSON bytes, an event stream's bytes to pushes; no I/O.

Floor 3, below `google`, which does the network. There is no `[DONE]`, and each event counts the tokens anew: of those
that are recognised by their bytes, only the last is read for its counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, cast

from pydantic_core import from_json, to_json

from helix.chunks import FinishReason, is_high_half, is_low_half, to_json_value
from helix.errors import ModelError
from helix.limits import Usage
from helix.messages import AssistantMessage, Message, Part, ThinkingPart, ToolCall, ToolMessage, UserMessage
from helix.model import Emit, ModelReply, ModelSettings, OutputDefinition, ToolDefinition
from helix.models._errors import MAX_DETAIL, scrub
from helix.models._media import file_id, refused
from helix.models._reasoning import gemini_fields
from helix.models._served import Choice
from helix.models._sse import ServerSentEvent
from helix.models._stream import StreamDecoder, as_count, as_object, as_objects, as_text
from helix.models._template import TextTemplate, is_number
from helix.parts import MediaPart, as_parts

PROVIDER: Final = "google"
"""The key of `provider_data` that this dialect reads and writes."""

_NO_SIGNATURE = "skip_thought_signature_validator"  # the provider's own word for a call that another model made

# Between these bytes, which JSON never holds, stands a call's answer in the encoded history; the last is no content.
_JOINTS = (
    (b"\x02,\x01", b","),  # all answers to a step's calls are one content
    (b"\x01", b'{"role":"user","parts":['),
    (b"\x02", b"]}"),
    (b"\x03,", b""),
    (b",\x03", b""),
    (b"\x03", b""),
)


def encode_message(message: Message, *, vouch: bool = False) -> bytes:
    """One message as a content, for `join_contents`.

    With `vouch`, calls that another model made are marked so: Gemini refuses calls without a signature from its third
    generation on.
    """
    match message:
        case UserMessage():
            return to_json({"role": "user", "parts": [_part(part) for part in as_parts(message.content)]})
        case ToolMessage():
            return b"\x01%b\x02" % to_json(_answer(message, nested=vouch))
        case AssistantMessage():
            parts = _said(message, vouch)
            return to_json({"role": "model", "parts": parts}) if parts else b"\x03"


def join_contents(pieces: bytes) -> bytes:
    """Encoded messages, joined by commas, as the request's contents, without the brackets around them."""
    for joint, replacement in _JOINTS:
        pieces = pieces.replace(joint, replacement)
    return pieces


def _part(part: str | MediaPart) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part}
    kind = {"mimeType": part.media_type} if part.media_type else {}
    if uri := file_id(part, PROVIDER) or part.url:
        return {"fileData": {**kind, "fileUri": uri}}
    if part.data is not None:
        return {"inlineData": {**kind, "data": part.base64}}
    raise refused(part, "Gemini", "images, audio and files, by data, by URL or by the URI of an uploaded file")


def _said(message: AssistantMessage, vouch: bool) -> list[dict[str, Any]]:
    own = _data(message)
    parts: list[dict[str, Any]] = [*own.get("before", ())]
    content = [part for part in message.content if not (message.cut and isinstance(part, ToolCall))]
    vouch = vouch and not own and not any(_data(part) for part in content)
    for part in content:
        if isinstance(part, ToolCall):
            parts += _call(part, vouch)
            vouch = False  # of parallel calls, the first is signed for all
        else:
            parts += _words(part)
    return parts


def _data(holder: AssistantMessage | Part) -> dict[str, Any]:
    return (holder.provider_data or {}).get(PROVIDER) or {}


def _words(part: Any) -> list[dict[str, Any]]:
    """A part of words, cut again where the provider signed a piece of it. Thinking goes back only if it is signed."""
    data, text, at = _data(part), part.text, 0
    signed: list[tuple[int, int, str]] = data.get("signed", [])
    mark = {"thought": True} if isinstance(part, ThinkingPart) else {}
    if mark and not signed:
        return [*data.get("after", ())]
    pieces: list[dict[str, Any]] = []
    for start, end, signature in signed:
        if at < start:
            pieces.append({"text": text[at:start], **mark})
        pieces.append({"text": text[start:end], **mark, "thoughtSignature": signature})
        at = end
    if text[at:]:
        pieces.append({"text": text[at:], **mark})
    return [*pieces, *data.get("after", ())]


def _call(call: ToolCall, vouch: bool) -> list[dict[str, Any]]:
    data = _data(call)
    arguments = {"arguments": call.arguments} if isinstance(call.arguments, str) else call.arguments
    part: dict[str, Any] = {"functionCall": {"id": call.tool_call_id, "name": call.tool_name, "args": arguments}}
    if signature := data.get("thoughtSignature") or (_NO_SIGNATURE if vouch else None):
        part["thoughtSignature"] = signature
    return [part, *data.get("after", ())]


def _answer(message: ToolMessage, *, nested: bool) -> dict[str, Any]:
    """A call's answer; the provider wants an object. What is no text is nested in it, as models can that sign calls."""
    response: Any = None
    if message.is_error:
        response = {"error": message.text}
    elif message.text.startswith("{"):
        try:
            response = from_json(message.text, allow_inf_nan=False)
        except ValueError:
            pass
    response = {"result": message.text} if response is None else response
    media = [part for part in as_parts(message.content) if not isinstance(part, str)]
    if media and not nested:
        raise refused(media[0], "Gemini before its third generation, in a tool's result,", "texts")
    parts = {"parts": [_part(part) for part in media]} if media else {}
    return {"functionResponse": {"id": message.tool_call_id, "name": message.tool_name, "response": response, **parts}}


def encode_tools(tools: Sequence[ToolDefinition]) -> bytes:
    """The request's `tools`."""
    functions = (
        {"name": tool.name, "description": tool.description, "parametersJsonSchema": tool.parameters} for tool in tools
    )
    return to_json([{"functionDeclarations": list(functions)}])


def tool_config(choice: Choice, output: OutputDefinition | None) -> dict[str, Any]:
    """The request's `toolConfig`, in its field."""
    if choice == "auto":
        return {}
    only = {"allowedFunctionNames": [output.name]} if choice == "output" and output is not None else {}
    return {"toolConfig": {"functionCallingConfig": {"mode": "NONE" if choice == "none" else "ANY", **only}}}


def generation_config(settings: ModelSettings, schema: dict[str, Any] | None, *, levels: bool) -> dict[str, Any]:
    """The request's `generationConfig` for what `settings` has, and for output in the provider's own format.

    With `levels`, the model knows levels of thinking.
    """
    stop = settings.stop
    fields: dict[str, Any] = {
        "temperature": settings.temperature,
        "topP": settings.top_p,
        "maxOutputTokens": settings.max_tokens,
        "stopSequences": stop if stop is None else [stop] if isinstance(stop, str) else list(stop),
        "seed": settings.seed,
        "thinkingConfig": gemini_fields(settings, levels=levels) or None,
        "responseMimeType": None if schema is None else "application/json",
        "responseJsonSchema": schema,
    }
    return {name: value for name, value in fields.items() if value is not None}


class GoogleDecoder(StreamDecoder):
    """Decodes one reply: bytes in, pushes out, no I/O.

    A reply is complete when its body has ended and the last event with content, or one after it, gave a reason for the
    finish. The reason alone is no end: there are servers, and were models, that give one with each event. So `done` is
    set by `end` alone.

    Attributes:
        finish_reason: as the provider called it, once it did.
    """

    __slots__ = ("_calls", "_data", "_half", "_kind", "_length", "_note", "_repeats", "finish_reason")

    _named: ClassVar[tuple[str, str, str]] = ("reply of Gemini", "candidates", "a finishReason")

    def __init__(self, emit: Emit) -> None:
        """Pushes into `emit`."""
        super().__init__(emit)
        self.finish_reason: str | None = None
        self._note = ""  # the provider's words about the finish
        self._calls = 0
        self._kind = ""  # of the part that was pushed last: text, thinking, call
        self._length = 0  # of its text so far
        self._half = False  # whether that ends with half a character
        self._data: dict[str, Any] = {}  # what goes back with it
        self._usual = self._repeats = _Repeats()

    @property
    def usage(self) -> Usage | None:
        """What the provider told so far."""
        if last := self._repeats.last:
            self._repeats.last = b""
            self._usage = self._usage_in(as_object(from_json(last))) or self._usage
        return self._usage

    def end(self) -> ModelReply:
        """The reply's ending, once the body has ended.

        Raises:
            ModelError: the reply is not complete, or cannot be used.
        """
        if self._events.feed(b"\n\n"):
            raise self.dropped("the body ended inside an event")
        self.done = self.finish_reason is not None
        return super().end()

    def _ending(self) -> ModelReply:
        if self.finish_reason is None:
            raise self.dropped(f"the body ended without {self._named[2]}")
        reason = self.finish_reason
        if reason in _UNUSABLE:
            detail = scrub(f"finishReason {reason}: {self._note}", self._secrets)[:MAX_DETAIL]
            code, retryable = _UNUSABLE[reason]
            text = f"The provider could not use the model's reply ({reason})."
            raise ModelError(code, text, retryable=retryable, detail=detail, usage=self.usage)
        return ModelReply(self._finish(reason), self.usage or Usage(requests=1))

    def _take(self, event: ServerSentEvent) -> None:
        if event.data == b"[DONE]":  # not the provider's own, but of some that stand in for it
            return
        chunk = self._parse(event)
        self._take_whole(chunk)
        if event.event == "error":
            raise self._error(chunk)
        self._learn(event, chunk)

    def _take_whole(self, fields: dict[str, Any]) -> None:
        """Each event is a reply of its own; so is a body in one piece."""
        self._usage = self._usage_in(fields) or self.usage
        self._repeats.last = b""
        if error := fields.get("error"):
            raise self._error(error)
        if reason := as_text(as_object(fields.get("promptFeedback")).get("blockReason")):
            self.finish_reason = f"{_BLOCKED}{reason}"
        for candidate in as_objects(fields.get("candidates")):
            if not candidate.get("index"):
                self._take_candidate(candidate)

    def _learn(self, event: ServerSentEvent, chunk: dict[str, Any]) -> None:
        """Remembers an event that has brought words and counts, and nothing else."""
        candidates = as_objects(chunk.get("candidates"))
        parts = as_objects(as_object(candidates[0].get("content")).get("parts")) if len(candidates) == 1 else []
        if len(parts) != 1 or candidates[0].get("index") or self.finish_reason or event.event != "message":
            return
        text, kind = as_text(parts[0].get("text")), "thinking" if parts[0].get("thought") is True else "text"
        if text and parts[0].keys() <= {"text", "thought"}:
            self._usual.learn(event.data, text, _text_of, self._words_of(kind))

    def _words_of(self, kind: str) -> Callable[[str], None]:
        def push(text: str) -> None:
            self.finish_reason, self._note = None, ""  # as an event with parts and without a reason says
            self._push_words(kind, text, "")

        return push

    def _take_candidate(self, candidate: dict[str, Any]) -> None:
        parts = as_objects(as_object(candidate.get("content")).get("parts"))
        for part in parts:
            self._push(part)
        reason = as_text(candidate.get("finishReason"))
        if parts or reason:
            self.finish_reason = reason or None
            self._note = as_text(candidate.get("finishMessage"))

    def _push(self, part: dict[str, Any]) -> None:
        signature = as_text(part.get("thoughtSignature"))
        call, text = part.get("functionCall"), part.get("text")
        if isinstance(call, dict):
            self._push_call(cast("dict[str, Any]", call), signature)
        elif isinstance(text, str) or (signature and part.keys() <= {"thought", "thoughtSignature"}):
            self._push_words("thinking" if part.get("thought") is True else "text", as_text(text), signature)

    def _push_words(self, kind: str, text: str, signature: str) -> None:
        if text:
            if kind != self._kind:
                self._kind, self._length, self._half, self._data = kind, 0, False, {}
            (self._emit.text if kind == "text" else self._emit.thinking)(text)
            self._length += len(text) - (self._half and is_low_half(text[0]))
            self._half = is_high_half(text[-1])
        if signature and kind == self._kind:
            self._keep("signed", [self._length - len(text), self._length, signature])
        elif signature:  # nothing but a signature, behind a part of another kind, or before all parts
            mark = {"thought": True} if kind == "thinking" else {}
            self._keep("after" if self._kind else "before", {"text": "", **mark, "thoughtSignature": signature})

    def _push_call(self, call: dict[str, Any], signature: str) -> None:
        if "partialArgs" in call or call.get("willContinue"):
            text = "Arguments in pieces are not supported: turn streamFunctionCallArguments off."
            raise ModelError("model_rejected", text, usage=self.usage)
        arguments = to_json(to_json_value(as_object(call.get("args")))).decode()
        name, call_id = as_text(call.get("name")) or None, as_text(call.get("id")) or None
        self._emit.tool_call(self._calls, call_id=call_id, name=name, arguments=arguments)
        self._calls += 1
        self._kind, self._data = "call", {}
        if signature:
            self._data = {"thoughtSignature": signature}
            self._emit.provider_data(PROVIDER, self._data, to="part")

    def _keep(self, name: str, item: object) -> None:
        """Adds to what goes back with the part that was pushed last, or with the message."""
        self._data = {**self._data, name: [*self._data.get(name, ()), item]}
        self._emit.provider_data(PROVIDER, self._data, to="part" if self._kind else "message")

    def _finish(self, reason: str) -> FinishReason | None:
        """The protocol's word for how it ended; none where the provider's says nothing."""
        if reason.startswith(_FILTERED):
            return "filter"
        if reason == "MAX_TOKENS":
            return "length"
        return "tool_calls" if self._calls else "stop" if reason == "STOP" else None

    def _usage_in(self, fields: dict[str, Any]) -> Usage | None:
        """What the reply used so far. Thoughts are output; what server-side tools put into the prompt is input."""
        told = as_object(fields.get("usageMetadata"))
        thoughts = as_count(told, "thoughtsTokenCount")
        prompt = as_count(told, "promptTokenCount") + as_count(told, "toolUsePromptTokenCount")
        output = as_count(told, "candidatesTokenCount") + thoughts
        total = as_count(told, "totalTokenCount") or prompt + output
        if not total:
            return None  # some events tell of nothing but the tier
        return Usage(
            input_tokens=prompt,
            output_tokens=output,
            total_tokens=total,
            cached_tokens=as_count(told, "cachedContentTokenCount"),
            reasoning_tokens=thoughts,
            requests=1,
            input_audio_tokens=_audio_in(told.get("promptTokensDetails")),
            output_audio_tokens=_audio_in(told.get("candidatesTokensDetails")),
        )


def _audio_in(details: object) -> int:
    return sum(as_count(part, "tokenCount") for part in as_objects(details) if part.get("modality") == "AUDIO")


_COUNTED = ("candidatesTokenCount", "totalTokenCount", "thoughtsTokenCount")
_COUNTS = {re.compile(rb'"%b": ?([0-9]+)[,}]' % name.encode()): is_number for name in _COUNTED}


class _Repeats(TextTemplate):
    """The events that repeat one, but for their words and counts.

    Attributes:
        last: the data of the last one that was recognised, for its counts.
    """

    __slots__ = ("last",)

    def __init__(self) -> None:
        super().__init__(_COUNTS)
        self.last = b""

    def take(self, data: bytes, at: int) -> int:
        """As the base says; remembers the last of them."""
        end = super().take(data, at)
        if end > at:
            before = data.rfind(b"\n\n", at, end - 2)
            self.last = data[(at if before < 0 else before + 2) + len(b"data: ") : end - 2]
        return end


def _text_of(chunk: Any) -> object:
    return chunk["candidates"][0]["content"]["parts"][0]["text"]


_BLOCKED = "blocked: "  # begins the reason that we give for a prompt that was refused
_FILTERED = (
    "SAFETY",
    "RECITATION",
    "LANGUAGE",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "IMAGE_",
    "MODEL_ARMOR",
    _BLOCKED,
)
"""How the reasons begin that tell of a filter."""
_UNUSABLE: dict[str, tuple[str, bool]] = {
    "MALFORMED_FUNCTION_CALL": ("model_stream_dropped", True),
    "MALFORMED_RESPONSE": ("model_stream_dropped", True),
    "UNEXPECTED_TOOL_CALL": ("model_stream_dropped", True),
    "MISSING_THOUGHT_SIGNATURE": ("model_rejected", False),
    "TOO_MANY_TOOL_CALLS": ("model_rejected", False),
}
"""The reasons after which there is no reply: the error's code, and whether to try again."""
