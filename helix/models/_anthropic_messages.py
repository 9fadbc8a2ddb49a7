"""What Anthropic's Messages API is sent: messages and tools as JSON bytes; no I/O.

Floor 3, below `anthropic`; `_anthropic` decodes what comes back.

A reply is a list of blocks, and some of them must go back exactly as they came: signed thinking, and what helix has no
part for (redacted thinking, the provider's own tools). Such a message keeps its blocks' outline as provider data: each
block's fields, with `chars` for a text that is in the message's parts anyway.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, cast

from pydantic_core import to_json

from helix.messages import (
    AssistantMessage,
    Message,
    Part,
    RefusalPart,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from helix.model import ModelRequest, ToolDefinition
from helix.models._media import file_id, refused
from helix.models._served import Choice
from helix.parts import Content, File, Image, MediaPart, as_parts

PROVIDER: Final = "anthropic"
"""The key of `provider_data` that this dialect reads and writes."""
CACHE: Final = {"type": "ephemeral"}
"""Marks the end of a prefix that the provider shall keep in its prompt cache."""

_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_DOCUMENTS = ("application/pdf",)
_UNFIT = re.compile("[^a-zA-Z0-9_-]")

# In the encoded history each message is this byte, which JSON never holds, then a letter for its role, then its blocks.
_MARK = b"\0"
_ROLES = {b"u": b'{"role":"user","content":[', b"a": b'{"role":"assistant","content":['}


def encode_message(message: Message) -> bytes:
    """One message as its blocks, for `join_messages`."""
    match message:
        case UserMessage():
            return b"\0u%b" % to_json(_content(message.content))[1:-1]
        case ToolMessage():
            call_id, content = _fit(message.tool_call_id), message.content
            told = content if isinstance(content, str) else _content(content)
            block = {"type": "tool_result", "tool_use_id": call_id, "content": told}
            return b"\0u%b" % to_json({**block, "is_error": True} if message.is_error else block)
        case AssistantMessage():
            return b"\0a%b" % to_json(_assistant(message))[1:-1]


def join_messages(encoded: bytes) -> bytes:
    """Encoded messages, joined by commas, as the request's messages, without the brackets around them.

    What users and tools say in a row becomes one message: the API wants all results of a step in one.
    """
    joined: list[bytes] = []
    last = b""
    for message in (encoded + b",").split(_MARK)[1:]:
        role, blocks = message[:1], message[1:-1]
        if blocks:  # an assistant may have said nothing
            joined += [b"," if role == last else (b"]}," if joined else b"") + _ROLES[role], blocks]
            last = role
    return b"".join((*joined, b"]}")) if joined else b""


def encode_tools(tools: Sequence[ToolDefinition], *, cache: bool) -> bytes:
    """The request's `tools`."""
    encoded: list[dict[str, Any]] = []
    for tool in tools:
        described = {"description": tool.description} if tool.description else {}
        strict = {"strict": True} if tool.strict else {}
        encoded.append({"name": tool.name, **described, "input_schema": tool.parameters, **strict})
    if cache and encoded:
        encoded[-1]["cache_control"] = CACHE
    return to_json(encoded)


def _content(content: Content) -> list[dict[str, Any]]:
    return [_part(part) for part in as_parts(content)]


def _part(part: str | MediaPart) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Image | File) and (source := _source(part)) is not None:
        if isinstance(part, Image):
            return {"type": "image", "source": source}
        return {"type": "document", "source": source, **({"title": part.name} if part.name else {})}
    takes = "images (JPEG, PNG, GIF, WebP), PDF files and UTF-8 text files; text files not by URL"
    raise refused(part, "Anthropic's Messages API", takes)


def _source(part: Image | File) -> dict[str, Any] | None:
    """Where the block's content is; None if the API takes it from nowhere."""
    known, is_text = part.media_type, (part.media_type or "").startswith("text/")
    types = _IMAGES if isinstance(part, Image) else _DOCUMENTS
    if uploaded := file_id(part, PROVIDER):
        return {"type": "file", "file_id": uploaded}
    if part.url is not None and (known is None or known in types):
        return {"type": "url", "url": part.url}
    if part.data is not None and known in types:
        return {"type": "base64", "media_type": known, "data": part.base64}
    if part.data is not None and is_text:
        try:
            return {"type": "text", "media_type": "text/plain", "data": part.data.decode()}
        except UnicodeDecodeError:
            return None
    return None


def output_config(schema: dict[str, Any]) -> dict[str, Any]:
    """The request's `output_config`, for an output in the provider's own format."""
    return {"format": {"type": "json_schema", "schema": schema}}


def tool_choice(choice: Choice, request: ModelRequest) -> dict[str, Any]:
    """The request's `tool_choice`, in its field."""
    parallel = request.settings.parallel_tool_calls
    hint: dict[str, Any] = {} if parallel is None else {"disable_parallel_tool_use": not parallel}
    if choice == "none":
        return {"tool_choice": {"type": "none"}}
    if choice == "auto" and not hint:
        return {}
    if choice == "output" and request.output is not None:
        return {"tool_choice": {"type": "tool", "name": request.output.name, **hint}}
    return {"tool_choice": {"type": choice, **hint}}


def _assistant(message: AssistantMessage) -> list[dict[str, Any]]:
    blocks = None if message.cut else _rebuilt(message)
    if blocks is None:
        blocks = [block for part in message.content if (block := _block(part, message.cut)) is not None]
    while blocks and blocks[-1].get("type") in ("thinking", "redacted_thinking"):
        blocks.pop()  # the API refuses thinking that led to nothing
    return blocks


def _block(part: Part, cut: bool) -> dict[str, Any] | None:
    """A part as a block. Thinking goes back signed, which is in an outline, or not at all."""
    match part:
        case ToolCall():
            return None if cut else _tool_use(part)
        case ThinkingPart():
            return None
        case TextPart() | RefusalPart():
            return _words(part.text)


def _words(text: str) -> dict[str, Any] | None:
    return {"type": "text", "text": text} if text.strip() else None  # the API refuses blank ones


def _tool_use(call: ToolCall) -> dict[str, Any]:
    arguments = call.arguments if isinstance(call.arguments, dict) else {"INVALID_JSON": call.arguments}
    return {"type": "tool_use", "id": _fit(call.tool_call_id), "name": _fit(call.tool_name), "input": arguments}


def _fit(name: str) -> str:
    """The name in the characters that the API allows: another provider may have made it."""
    return _UNFIT.sub("_", name)


def _rebuilt(message: AssistantMessage) -> list[dict[str, Any]] | None:
    """The blocks as they came; None when there is no outline, or the message is not the one that it was made of."""
    outline = _objects(_object((message.provider_data or {}).get(PROVIDER)).get("blocks"))
    texts, calls = {"text": message.text, "thinking": message.thinking}, message.tool_calls
    read, called = {"text": 0, "thinking": 0}, 0
    blocks: list[dict[str, Any] | None] = []
    for kept in outline:
        kind, fields = str(kept.get("type")), {name: value for name, value in kept.items() if name != "chars"}
        if kind in texts:
            start, chars = read[kind], kept.get("chars")
            read[kind] += chars if isinstance(chars, int) else 0
            piece = texts[kind][start : read[kind]]
            if "signature" in kept or (kind == "text" and piece.strip()):
                blocks.append({"type": kind, kind: piece, **fields})
        elif kind == "tool_use" and called < len(calls):
            blocks.append({**_tool_use(calls[called]), **fields})
            called += 1
        else:
            blocks.append(fields)
    blocks.append(_words(message.refusal))
    whole = outline and read == {kind: len(text) for kind, text in texts.items()} and called == len(calls)
    return [block for block in blocks if block is not None] if whole else None


# Provider data may come from a caller's own history: a value of another type is one that is not there.


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in cast("list[Any]", value) if isinstance(item, dict)] if isinstance(value, list) else []
