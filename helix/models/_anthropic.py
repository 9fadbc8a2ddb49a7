"""What Anthropic's Messages API sends: an event stream's bytes to pushes; no I/O.

Floor 3, below `anthropic`, which does the network; `_anthropic_messages` encodes what is asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

from pydantic_core import from_json, to_json

from helix.chunks import FinishReason, clean_text, to_json_value
from helix.errors import ModelError
from helix.limits import Usage
from helix.messages import AssistantMessage, TextPart, ThinkingPart
from helix.model import Emit, ModelReply
from helix.models._anthropic_messages import PROVIDER
from helix.models._anthropic_template import DeltaTemplate
from helix.models._errors import MAX_DETAIL, from_event, scrub
from helix.models._sse import EventStreamDecoder, ServerSentEvent
from helix.models._stream import IN_ONE_PIECE, as_objects

_MAX_FOREIGN_BODY = 1 << 20
_MAX_WHOLE = 1 << 27
_EVENT, _DATA = b"event: ", b"data: "
_PAUSES = ("pause_turn", "compaction")
_DECLINED = "The model declined to answer."


class AnthropicDecoder:
    """Decodes one reply: bytes in, pushes out, no I/O.

    Attributes:
        done: the provider has said that the reply is complete; what follows is ignored.
        stop_reason: as the provider called it, once it did.
        usage: what the provider told so far.
        secrets: texts that no error may repeat.
        takes_whole: whether a reply in one piece is one, too.
    """

    def __init__(self, emit: Emit) -> None:
        """Pushes the reply into `emit`."""
        self.done = False
        self.stop_reason: str | None = None
        self.usage: Usage | None = None
        self.secrets: Sequence[str] = ()
        self.takes_whole = False
        self._emit = emit
        self._events = EventStreamDecoder()
        self._usual = DeltaTemplate()
        self._sniffed = False
        self._foreign: bytearray | None = None  # a body that is no event stream
        self._told: dict[str, Any] = {}  # about usage
        self._used: Usage | None = None  # before the last pause
        self._open: dict[int, _Block] = {}  # by the provider's index
        self._blocks: list[_Block] = []  # in the order of their beginnings
        self._calls = 0

    def feed(self, data: bytes) -> None:
        """Pushes all that `data` completes.

        Raises:
            ModelError: the provider sent an error, or what cannot be read.
        """
        if not self._sniffed:
            self._sniff(data)
        if self._foreign is not None:
            self._foreign += data[: (_MAX_WHOLE if self.takes_whole else _MAX_FOREIGN_BODY) - len(self._foreign)]
            return
        at = 0
        while at < len(data):
            if self._events.is_between:
                at = self._usual.take(data, at)
                if at == len(data):
                    return
            after = data.find(b"\n\n", at) + 2
            for event in self._complete_events(data[at:after] if after > 1 else data[at:]):
                if self.done:
                    return
                self._take(event, self._parse(event))
            at = after if after > 1 else len(data)

    def _complete_events(self, data: bytes) -> list[ServerSentEvent]:
        """The events that `data` completes, which holds one at most where lines end in LF."""
        if data.startswith(_EVENT) and data.endswith(b"\n\n") and data.count(b"\n") == 3 and self._events.is_between:
            name, _, rest = data[len(_EVENT) :].partition(b"\n")
            if rest.startswith(_DATA) and b"\r" not in data:  # nearly all there is
                return [ServerSentEvent(name.decode("utf-8", "replace"), rest[len(_DATA) : -2], "")]
        return self._events.feed(data)

    def end(self) -> ModelReply:
        """The reply's ending, once the body has ended or `done` is set.

        Raises:
            ModelError: the reply is not complete.
        """
        if self._foreign is not None:
            self._take_foreign(bytes(self._foreign))
        if not self.done:
            self._end_without_blank_line()
        if not self.done:
            raise self.dropped("the body ended without message_stop")
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

    def resume(self) -> AssistantMessage | None:
        """Gets ready for the rest of a reply in which the provider has paused; gives what must be sent back to get it.

        None when the reply is whole.
        """
        if not self.done or self.stop_reason not in _PAUSES or not self._blocks:
            return None
        self.done, self.stop_reason = False, None
        self._used, self._told = self.usage, {}
        self._events, self._usual, self._sniffed = EventStreamDecoder(), DeltaTemplate(), False
        self._open.clear()
        said = {kind: "".join(block.text for block in self._blocks if block.kind == kind) for kind in _WORDS}
        outline, _ = self._outline()
        parts = [TextPart(said["text"]), ThinkingPart(said["thinking"])]
        return AssistantMessage([*parts], provider_data={PROVIDER: {"blocks": outline}})

    def _take(self, sse: ServerSentEvent, event: dict[str, Any]) -> None:
        match event.get("type"):
            case "content_block_delta":
                self._take_delta(sse, event)
            case "content_block_start":
                self._begin(event)
            case "content_block_stop":
                self._close(event)
            case "message_start":
                self._count_usage(_object(event.get("message")).get("usage"))
            case "message_delta":
                self._count_usage(event.get("usage"))
                self._stop(_object(event.get("delta")))
            case "message_stop":
                self._complete()
            case "error":
                raise from_event(event, secrets=self.secrets, usage=self.usage)
            case _:  # `ping`, and what later versions add
                if sse.event == "error":
                    raise from_event(event, secrets=self.secrets, usage=self.usage)

    def _begin(self, event: dict[str, Any]) -> None:
        block = self._new_block(event, _object(event.get("content_block")))
        if block.kind == "tool_use":
            block.call, self._calls = self._calls, self._calls + 1
            call_id, name = _text(block.fields.get("id")), _text(block.fields.get("name"))
            self._emit.tool_call(block.call, call_id=call_id or None, name=name or None)
        elif block.kind in _WORDS:
            block.push(_text(block.fields.get(block.kind)))

    def _new_block(self, event: dict[str, Any], fields: dict[str, Any]) -> _Block:
        words = {"text": self._emit.text, "thinking": self._emit.thinking}
        block = self._open[_count(event, "index")] = _Block(fields, words.get(_text(fields.get("type"))))
        self._blocks.append(block)
        return block

    def _take_delta(self, sse: ServerSentEvent, event: dict[str, Any]) -> None:
        delta = _object(event.get("delta"))
        kind = _text(delta.get("type")).removesuffix("_delta")
        block = self._open.get(_count(event, "index")) or self._new_block(event, {"type": kind})
        if kind in _WORDS and block.kind == kind:
            text = _text(delta.get(kind))
            block.push(text)
            self._usual.learn(sse, text, kind, block.push)
        elif kind == "input_json":
            block.push(_text(delta.get("partial_json")))
            if block.call is not None:
                self._emit.tool_call(block.call, arguments=block.pieces[-1] or None)
        elif kind == "citations":
            block.fields["citations"] = [*(block.fields.get("citations") or ()), delta.get("citation")]
        elif kind not in _WORDS:  # a signature, or what later versions add
            block.fields.update({name: value for name, value in delta.items() if name != "type"})

    def _close(self, event: dict[str, Any]) -> None:
        block = self._open.pop(_count(event, "index"), None)
        if block is not None and block.call is not None and not block.text and block.fields.get("input"):
            whole = to_json(to_json_value(block.fields["input"])).decode()
            self._emit.tool_call(block.call, arguments=whole)

    def _stop(self, delta: dict[str, Any]) -> None:
        reason, self.stop_reason = self.stop_reason, _text(delta.get("stop_reason")) or self.stop_reason
        if self.stop_reason == "refusal" != reason:
            self._emit.refusal(_text(_object(delta.get("stop_details")).get("explanation")) or _DECLINED)

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

    def _count_usage(self, told: object) -> None:
        """Takes what is told of usage: the last word on each count is the total so far."""
        self._told.update({name: value for name, value in _object(told).items() if value is not None})
        if not self._told:
            return
        cached, output = _count(self._told, "cache_read_input_tokens"), _count(self._told, "output_tokens")
        written = _count(self._told, "cache_creation_input_tokens")
        read = _count(self._told, "input_tokens") + cached + written
        reasoning = _count(_object(self._told.get("output_tokens_details")), "thinking_tokens")
        usage = Usage(read, output, read + output, cached, reasoning, requests=1, cache_write_tokens=written)
        self.usage = usage if self._used is None else self._used + usage

    def _parse(self, event: ServerSentEvent) -> dict[str, Any]:
        try:
            parsed: object = from_json(event.data)
        except ValueError:
            parsed = self._parse_damaged(event)
        if isinstance(parsed, dict):
            return cast("dict[str, Any]", parsed)
        raise self.dropped(f"an event is no object: {event.data!r}")

    def _parse_damaged(self, event: ServerSentEvent) -> object:
        """An event that is no strict JSON. Half characters stay as they are: a text's next piece may have the rest."""
        text = event.data.decode("utf-8", "replace")
        if not text.strip():
            return {}
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            if event.event == "error":
                raise from_event(text, secrets=self.secrets, usage=self.usage) from None
            raise self.dropped(f"no JSON: {text!r}") from None

    def _end_without_blank_line(self) -> None:
        """Takes a `message_stop` behind which the body has ended at once: nothing of the message is missing."""
        for event in self._events.feed(b"\n\n"):
            if b"message_stop" in event.data and self._parse(event).get("type") == "message_stop":
                self._complete()

    def _sniff(self, data: bytes) -> None:
        """Notices a body that is JSON or a web page, whatever its headers call it."""
        head = data.lstrip(b"\xef\xbb\xbf\r\n\t ")
        if head:
            self._sniffed = True
            self._foreign = bytearray() if head[:1] in (b"{", b"[", b"<") else None

    def _take_foreign(self, body: bytes) -> None:
        """Pushes a reply in one piece, if the body is one and may be. Raises ModelError."""
        text = scrub(body.decode("utf-8", "replace"), self.secrets)[:MAX_DETAIL]
        if b"<" in body[:8]:
            page = "The server answered with a web page instead of a reply: check the base URL."
            raise ModelError("model_rejected", page, detail=text)
        try:
            fields = _object(from_json(body))
        except ValueError:
            raise self.dropped(text) from None
        self._count_usage(fields.get("usage"))
        if fields.get("error"):
            raise from_event(fields, secrets=self.secrets, usage=self.usage)
        if fields.get("type") != "message":
            other = "The server answered with JSON that is no message: check the base URL."
            raise ModelError("model_rejected", other, detail=text, usage=self.usage)
        if not self.takes_whole:
            raise ModelError("model_rejected", IN_ONE_PIECE, detail=text, usage=self.usage)
        self._take_whole(fields)

    def _take_whole(self, message: dict[str, Any]) -> None:
        for index, block in enumerate(as_objects(message.get("content"))):
            self._begin({"index": index, "content_block": block})
            self._close({"index": index})
        self._stop(message)
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
        self.kind = _text(fields.get("type"))
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
                return _object(self.fields.get("caller")).get("type", "direct") != "direct"
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


# What servers send is not always what they should: a value of another type is one that was not sent.


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(told: dict[str, Any], name: str) -> int:
    value = told.get(name)
    return value if isinstance(value, int) else 0


def _json_or_text(text: str) -> object:
    try:
        return from_json(text)
    except ValueError:
        return text
