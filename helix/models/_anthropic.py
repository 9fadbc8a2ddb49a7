"""What Anthropic's Messages API sends: an event stream's bytes to pushes; no I/O.

Floor 3, below `anthropic`, which does the network; `_anthropic_messages` encodes what is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic_core import from_json, to_json

from helix.chunks import FinishReason, clean_text, to_json_value
from helix.limits import Usage
from helix.messages import AssistantMessage, TextPart, ThinkingPart
from helix.model import Emit, ModelReply
from helix.models._anthropic_messages import PROVIDER
from helix.models._sse import EventStreamDecoder, ServerSentEvent
from helix.models._stream import StreamDecoder, as_count, as_object, as_objects, as_text
from helix.models._template import Kinds, TextTemplate

_PADDING: Kinds = {re.compile(rb"\}( *)\}\n\n$"): (b" " * 256).startswith}
"""Blanks before an event's last brace."""
_PAUSES = ("pause_turn", "compaction")
_DECLINED = "The model declined to answer."


class AnthropicDecoder(StreamDecoder):
    """Decodes one reply: bytes in, pushes out.

    Attributes:
        stop_reason: as the provider called it, once it did.
    """

    __slots__ = ("_blocks", "_calls", "_open", "_told", "_used", "stop_reason")
    _named = ("message", "content", "message_stop")

    def __init__(self, emit: Emit) -> None:
        """Pushes the reply into `emit`."""
        super().__init__(emit)
        self._usual = TextTemplate(_PADDING)
        self.stop_reason: str | None = None
        self._told: dict[str, Any] = {}  # about usage
        self._used: Usage | None = None  # before the last pause
        self._open: dict[int, _Block] = {}  # by the provider's index
        self._blocks: list[_Block] = []  # in the order of their beginnings
        self._calls = 0

    def end(self) -> ModelReply:
        """The reply's ending, once the body has ended or `done` is set.

        Raises:
            ModelError: the reply is not complete.
        """
        if self._foreign is None and not self.done:
            self._end_without_blank_line()
        return super().end()

    def _ending(self) -> ModelReply:
        return ModelReply(self._finish(), self.usage or Usage(requests=1))

    def resume(self) -> AssistantMessage | None:
        """Gets ready for the rest of a reply in which the provider has paused; gives what must be sent back to get it.

        None when the reply is whole.
        """
        if not self.done or self.stop_reason not in _PAUSES or not self._blocks:
            return None
        self.done, self.stop_reason = False, None
        self._used, self._told = self.usage, {}
        self._events, self._tail, self._sniffed = EventStreamDecoder(), b"", False
        self._open.clear()
        said = {kind: "".join(block.text for block in self._blocks if block.kind == kind) for kind in _WORDS}
        outline, _ = self._outline()
        parts = [TextPart(said["text"]), ThinkingPart(said["thinking"])]
        return AssistantMessage([*parts], provider_data={PROVIDER: {"blocks": outline}})

    def _take(self, event: ServerSentEvent) -> None:
        self._take_message(event, self._parse(event))

    def _take_message(self, sse: ServerSentEvent, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "content_block_delta":
                self._take_delta(sse, event)
            case "content_block_start":
                self._begin(event)
            case "content_block_stop":
                self._close(event)
            case "message_start":
                self._usage = self._usage_in(as_object(event.get("message")))
            case "message_delta":
                self._usage = self._usage_in(event)
                self._stop(as_object(event.get("delta")))
            case "message_stop":
                self._complete()
            case "error":
                raise self._error(event)
            case _:  # `ping`, and what later versions add
                if sse.event == "error":
                    raise self._error(event)

    def _begin(self, event: dict[str, Any]) -> None:
        block = self._new_block(event, as_object(event.get("content_block")))
        if block.kind == "tool_use":
            block.call, self._calls = self._calls, self._calls + 1
            call_id, name = as_text(block.fields.get("id")), as_text(block.fields.get("name"))
            self._emit.tool_call(block.call, call_id=call_id or None, name=name or None)
        elif block.kind in _WORDS:
            block.push(as_text(block.fields.get(block.kind)))

    def _new_block(self, event: dict[str, Any], fields: dict[str, Any]) -> _Block:
        words = {"text": self._emit.text, "thinking": self._emit.thinking}
        block = self._open[as_count(event, "index")] = _Block(fields, words.get(as_text(fields.get("type"))))
        self._usual = TextTemplate(_PADDING)
        self._blocks.append(block)
        return block

    def _take_delta(self, sse: ServerSentEvent, event: dict[str, Any]) -> None:
        delta = as_object(event.get("delta"))
        kind = as_text(delta.get("type")).removesuffix("_delta")
        block = self._open.get(as_count(event, "index")) or self._new_block(event, {"type": kind})
        if kind in _WORDS and block.kind == kind:
            text = as_text(delta.get(kind))
            block.push(text)
            if text:
                self._usual.learn(sse.data, text, lambda parsed: parsed["delta"][kind], block.push, sse.event)
        elif kind == "input_json":
            block.push(as_text(delta.get("partial_json")))
            if block.call is not None:
                self._emit.tool_call(block.call, arguments=block.pieces[-1] or None)
        elif kind == "citations":
            block.fields["citations"] = [*(block.fields.get("citations") or ()), delta.get("citation")]
        elif kind not in _WORDS:  # a signature, or what later versions add
            block.fields.update({name: value for name, value in delta.items() if name != "type"})

    def _close(self, event: dict[str, Any]) -> None:
        block = self._open.pop(as_count(event, "index"), None)
        if block is not None and block.call is not None and not block.text and block.fields.get("input"):
            whole = to_json(to_json_value(block.fields["input"])).decode()
            self._emit.tool_call(block.call, arguments=whole)

    def _stop(self, delta: dict[str, Any]) -> None:
        reason, self.stop_reason = self.stop_reason, as_text(delta.get("stop_reason")) or self.stop_reason
        if self.stop_reason == "refusal" != reason:
            self._emit.refusal(as_text(as_object(delta.get("stop_details")).get("explanation")) or _DECLINED)

    def _complete(self) -> None:
        self.done = True
        outline, needed = self._outline()
        if needed:
            self._emit.provider_data(PROVIDER, {"blocks": outline})

    def _outline(self) -> tuple[list[dict[str, Any]], bool]:
        """What is kept of the blocks beside the parts, and whether any of it must go back."""
        return [block.outline() for block in self._blocks], any(block.is_needed for block in self._blocks)

    def _finish(self) -> FinishReason:
        """The protocol's word for how it ended, also where the provider said none or another."""
        reason = _FINISH_REASONS.get(self.stop_reason or "end_turn", "stop")
        return "tool_calls" if reason == "stop" and self._calls else reason

    def _usage_in(self, fields: dict[str, Any]) -> Usage | None:
        """With what these fields tell of it: the last word on each count is the total so far."""
        self._told.update({name: value for name, value in as_object(fields.get("usage")).items() if value is not None})
        if not self._told:
            return self._usage
        cached, output = as_count(self._told, "cache_read_input_tokens"), as_count(self._told, "output_tokens")
        written = as_count(self._told, "cache_creation_input_tokens")
        read = as_count(self._told, "input_tokens") + cached + written
        reasoning = as_count(as_object(self._told.get("output_tokens_details")), "thinking_tokens")
        usage = Usage(read, output, read + output, cached, reasoning, requests=1, cache_write_tokens=written)
        return usage if self._used is None else self._used + usage

    def _end_without_blank_line(self) -> None:
        """Takes a `message_stop` behind which the body has ended at once: nothing of the message is missing."""
        for event in self._events.feed(self._tail + b"\n\n"):
            if b"message_stop" in event.data and self._parse(event).get("type") == "message_stop":
                self._complete()

    def _take_whole(self, fields: dict[str, Any]) -> None:
        for index, block in enumerate(as_objects(fields.get("content"))):
            self._begin({"index": index, "content_block": block})
            self._close({"index": index})
        self._stop(fields)
        self._complete()


def _both(first: Callable[[str], None], second: Callable[[str], None]) -> Callable[[str], None]:
    def push(text: str) -> None:
        first(text)
        second(text)

    return push


class _Block:
    """One block of a reply in the making."""

    __slots__ = ("call", "fields", "kind", "pieces", "push")

    def __init__(self, fields: dict[str, Any], emit: Callable[[str], None] | None) -> None:
        """Pushes words into `emit`; None for a block of another kind."""
        self.fields = {name: value for name, value in fields.items() if value is not None}
        self.kind = as_text(fields.get("type"))
        self.pieces: list[str] = []  # of its words, or of its input's JSON
        self.call: int | None = None  # our number of the call that it is
        self.push = self.pieces.append if emit is None else _both(self.pieces.append, emit)

    @property
    def text(self) -> str:
        return clean_text("".join(self.pieces))

    @property
    def is_needed(self) -> bool:
        """Whether the parts alone would not give it back."""
        match self.kind:
            case "text":
                return bool(self.fields.get("citations"))
            case "thinking":
                return bool(self.fields.get("signature"))
            case "tool_use":  # from the provider's own code, perhaps
                return as_object(self.fields.get("caller")).get("type", "direct") != "direct"
            case _:
                return True

    def outline(self) -> dict[str, Any]:
        """What is kept of it beside the parts."""
        if self.kind in _WORDS:
            kept = {name: value for name, value in self.fields.items() if name != self.kind and value not in ("", [])}
            return {**kept, "chars": len(self.text)}
        if self.kind == "tool_use":
            return {name: value for name, value in self.fields.items() if name not in ("id", "name", "input")}
        return {**self.fields, "input": _json_or_text(self.text)} if self.text else self.fields


_WORDS = ("text", "thinking")
_FINISH_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "refusal",
}


def _json_or_text(text: str) -> object:
    try:
        return from_json(text)
    except ValueError:
        return text
