"""One reply of a model, while it arrives: pushes become chunks at once, and the step's message at the end.

Floor 3: above `chunks` and `model`; `steps` makes one for each attempt. What readers saw and what is kept are the same
by construction.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from typing import Any, Literal, cast

from pydantic_core import from_json

from helix.chunks import (
    Chunk,
    OutputDelta,
    TextDelta,
    Thinking,
    ToolInputDelta,
    ToolInputEnd,
    ToolInputStart,
    clean_text,
    split_half,
    to_json_value,
)
from helix.errors import UsageError
from helix.messages import AssistantMessage, Part, RefusalPart, TextPart, ThinkingPart, ToolCall
from helix.model import OutputDefinition
from helix.schema import WRAPPER

_LOST = "\N{REPLACEMENT CHARACTER}"  # stands for half a character whose rest never came
_PARTS: dict[str, Any] = {"text": TextPart, "thinking": ThinkingPart, "refusal": RefusalPart}


class _Words:
    """A part of words in the making."""

    __slots__ = ("kind", "pieces", "provider_data")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.pieces: list[str] = []
        self.provider_data: dict[str, Any] | None = None

    def finish(self) -> Part:
        return _PARTS[self.kind](text="".join(self.pieces), provider_data=self.provider_data)


class _Call:
    """A tool call in the making. `id` is empty until the provider, or in the end helix, has given it one."""

    __slots__ = ("half", "id", "is_output", "name", "pieces", "provider_data", "provider_id", "shown", "written")

    def __init__(self) -> None:
        self.id = ""
        self.provider_id: str | None = None
        self.name = ""
        self.pieces: list[str] = []
        self.half = ""  # of a character, with which the last piece ended
        self.shown = 0  # how many of the pieces readers have seen
        self.is_output = False
        self.written = False
        self.provider_data: dict[str, Any] | None = None

    def finish(self) -> Part:
        return ToolCall(
            self.id,
            self.name,
            parse_arguments("".join(self.pieces)),
            provider_id=self.provider_id,
            provider_data=self.provider_data,
        )


def parse_arguments(text: str) -> dict[str, Any] | str:
    """A call's arguments: the JSON object, an empty one for an empty text, or the text if it is no JSON object."""
    if not text.strip():
        return {}
    try:
        value = to_json_value(from_json(text, allow_inf_nan=False))  # 1e999 parses as infinity, and is refused here
    except ValueError:
        return text
    return cast(dict[str, Any], value) if isinstance(value, dict) else text


class Reply:
    """The `Emit` that models push into."""

    def __init__(
        self,
        append: Callable[[Chunk], None],
        agent_id: str,
        agent_type: str,
        output: OutputDefinition | None,
        used_ids: Collection[str],
    ) -> None:
        self._append = append
        self._agent_id = agent_id
        self._agent_type = agent_type
        self._output = output
        self._used_ids = used_ids
        self._parts: list[_Words | _Call] = []
        self._pushed: _Words | _Call | None = None  # the part that was pushed last
        self._words: _Words | None = None  # the part that a next piece of words may continue
        self._half = ""  # of a character, with which the last piece of words ended
        self._half_of = ""  # their kind
        self._calls: dict[int, _Call] = {}
        self._ids: set[str] = set()
        self._brackets = (
            "" if output is None else "{[" if set(output.schema.get("properties", ())) == {WRAPPER} else "{"
        )
        self._undecided = "" if output is not None else None  # blanks before it is clear whether a text is the output
        self._text_is_output = False
        self._provider_data: dict[str, Any] | None = None

    def text(self, delta: str) -> None:
        """See `Emit.text`."""
        if not _text(delta):
            return
        if self._half or not delta.isascii():
            delta = self._whole("text", delta)
            if not delta:
                return
        if self._undecided is not None:
            delta = self._undecided + delta
            if delta.isspace():
                self._undecided = delta
                return
            self._undecided = None
            self._text_is_output = delta.lstrip()[0] in self._brackets
        words = self._words
        if words is None or words.kind != "text":
            words = self._part("text")
        self._pushed = words
        words.pieces.append(delta)
        if self._text_is_output:
            self._append(OutputDelta(self._agent_id, self._agent_type, delta))
        else:
            self._append(TextDelta(self._agent_id, self._agent_type, delta))

    def refusal(self, delta: str) -> None:
        """See `Emit.refusal`. Readers see it as text."""
        if _text(delta) and (delta := self._whole("refusal", delta)):
            self._part("refusal").pieces.append(delta)
            self._append(TextDelta(self._agent_id, self._agent_type, delta))

    def thinking(self, delta: str) -> None:
        """See `Emit.thinking`."""
        if _text(delta) and (delta := self._whole("thinking", delta)):
            self._part("thinking").pieces.append(delta)
            self._append(Thinking(self._agent_id, self._agent_type, delta, False))

    def tool_call(
        self, index: int, *, call_id: str | None = None, name: str | None = None, arguments: str | None = None
    ) -> None:
        """See `Emit.tool_call`."""
        call = self._calls.get(index)
        if call is None:
            self._close_half()
            self._close_words()
            self._end_complete_calls()
            call = self._calls[index] = _Call()
            self._parts.append(call)
        self._pushed = call
        if name:
            self._name(call, clean_text(name))
        if call_id and not call.id:
            self._identify(call, clean_text(call_id))
        if arguments and not call.written:
            piece, call.half = split_half(call.half + arguments)
            if piece:
                call.pieces.append(piece)
        self._show(call)

    def provider_data(self, provider: str, data: dict[str, Any], *, to: Literal["message", "part"] = "message") -> None:
        """See `Emit.provider_data`."""
        part, data = self._pushed, to_json_value(data, where="provider_data")
        if to == "part" and part is not None:
            part.provider_data = {**(part.provider_data or {}), provider: data}
        else:
            self._provider_data = {**(self._provider_data or {}), provider: data}

    def finish(self) -> AssistantMessage:
        """Ends what is still open and gives the whole message."""
        self._close_half()
        self._close_words()
        if self._undecided:  # nothing but blanks was said
            self._words_only(self._undecided)
        for call in self._calls.values():
            if not call.id:
                self._identify(call, f"call_{secrets.token_hex(12)}")
            self._end(call)
        content = [part.finish() for part in self._parts]
        self.close()
        return AssistantMessage(content, provider_data=self._provider_data)

    def close(self) -> None:
        """What is pushed from now on comes too late, and is an error."""
        self._append = _too_late

    def _words_only(self, blanks: str) -> None:
        self._undecided = None
        self._part("text").pieces.append(blanks)
        self._append(TextDelta(self._agent_id, self._agent_type, blanks))

    def _part(self, kind: str) -> _Words:
        if self._words is None or self._words.kind != kind:
            self._close_words()
            self._words = _Words(kind)
            self._parts.append(self._words)
        self._pushed = self._words
        return self._words

    def _whole(self, kind: str, delta: str) -> str:
        """The piece with what the last one held back, and without half a character at its end, which is held back."""
        if self._half_of != kind:
            self._close_half()
        delta, self._half = split_half(self._half + delta)
        self._half_of = kind
        return delta

    def _close_half(self) -> None:
        if self._half:
            push = {"text": self.text, "refusal": self.refusal, "thinking": self.thinking}[self._half_of]
            self._half = ""
            push(_LOST)

    def _close_words(self) -> None:
        if self._words is not None and self._words.kind == "thinking":
            block = "".join(self._words.pieces)
            self._append(Thinking(self._agent_id, self._agent_type, block, True))
        self._words = None

    def _name(self, call: _Call, name: str) -> None:
        if not call.shown and not call.name:
            call.name = name
            call.is_output = (
                self._output is not None
                and name == self._output.name
                and not self._text_is_output
                and not any(other.is_output for other in self._calls.values())  # one is streamed, others are calls
            )

    def _identify(self, call: _Call, call_id: str) -> None:
        unique, n = call_id, 1
        while unique in self._used_ids or unique in self._ids:
            n += 1
            unique = f"{call_id}-{n}"
        self._ids.add(unique)
        call.id = unique
        call.provider_id = call_id if unique != call_id else None

    def _show(self, call: _Call) -> None:
        if call.is_output:
            for piece in call.pieces[call.shown :]:
                self._append(OutputDelta(self._agent_id, self._agent_type, piece))
            call.shown = len(call.pieces)
            return
        if not (call.id and call.name):
            return
        if call.shown == 0:
            self._append(ToolInputStart(self._agent_id, self._agent_type, call.id, call.name))
            call.shown = 1
        for piece in call.pieces[call.shown - 1 :]:
            self._append(ToolInputDelta(self._agent_id, self._agent_type, call.id, piece))
        call.shown = len(call.pieces) + 1

    def _end_complete_calls(self) -> None:
        for call in self._calls.values():
            if call.id and not call.written and isinstance(parse_arguments("".join(call.pieces) or "…"), dict):
                self._end(call)

    def _end(self, call: _Call) -> None:
        if call.written:
            return
        call.written, call.name = True, call.name or "unnamed"
        if call.half:
            call.pieces.append(_LOST)
        self._show(call)
        if not call.is_output:
            arguments = parse_arguments("".join(call.pieces))
            self._append(ToolInputEnd(self._agent_id, self._agent_type, call.id, arguments))


def _text(delta: str) -> bool:
    if not isinstance(delta, str):
        raise TypeError(f"a model pushes texts, not {type(delta).__name__}")
    return delta != ""


def _too_late(_: Chunk) -> None:
    raise UsageError("a model pushed something after its reply had ended")
