"""What a run is given, as messages.  Floor 3: above `agent`, below the executor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from helix.agent import as_message
from helix.errors import UsageError
from helix.messages import AssistantMessage, Message, TextPart

_ROLES = ("user", "assistant", "tool", "system", "developer")
_adapter: TypeAdapter[Message] = TypeAdapter(Message)


def messages_of(input: Any) -> list[Message]:
    """The messages that a run's input means: messages as they are, anything else by `as_message`.

    A dict with a `role` and a `content` is a message too, such as `{"role": "user", "content": "hi"}`. An assistant's
    may have a text for its parts.

    Raises:
        UsageError: it is an empty list; or a dict is meant as a message, and is none.
        ValueError: it has no JSON form.
    """
    if isinstance(input, str):
        return [as_message(input)]
    items = cast(list[Any], input) if isinstance(input, list) else [input]
    if not items:
        raise UsageError("the input is an empty list: there is nothing to say; give a text, or at least one message")
    if all(_is_message(item) for item in items):
        return [_message(item, f"message {number} of the input") for number, item in enumerate(items, start=1)]
    return [as_message(input)]


def _is_message(item: Any) -> bool:
    if isinstance(item, Mapping):
        fields = cast(Mapping[str, Any], item)
        return fields.get("role") in _ROLES and "content" in fields
    return getattr(item, "role", None) in _ROLES and hasattr(item, "content")


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        return item
    fields = cast(Mapping[str, Any], item)
    if fields["role"] in ("system", "developer"):
        raise UsageError(f"{where} is a {fields['role']} message; say it as the agent's instructions=…")
    if fields["role"] == "assistant" and isinstance(fields["content"], str) and len(fields) == 2:
        return AssistantMessage([TextPart(fields["content"])])
    try:
        return _adapter.validate_python(dict(fields))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        raise UsageError(f"{where} is not a message of the role {fields['role']!r}: {place}: {first['msg']}") from None
