"""What agents and models say to each other: the conversation's messages.  Floor 1: imports only `parts`.

Plain data; on the wire their own fields are camelCase, while tool arguments keep the user's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from helix.parts import Content, as_words

_CONFIG = ConfigDict(alias_generator=to_camel, populate_by_name=True)


def _absent(value: object) -> bool:
    return value is None


ProviderData: TypeAlias = Annotated[dict[str, Any] | None, Field(exclude_if=_absent)]
"""What a provider wants back unchanged, keyed by the provider's name and sent only to it."""


@dataclass(slots=True)
class TextPart:
    """Words of the model.

    Attributes:
        text: the words.
        provider_data: what goes back to the provider with them.
    """

    __pydantic_config__ = _CONFIG

    text: str
    type: Literal["text"] = "text"
    provider_data: ProviderData = None


@dataclass(slots=True)
class ThinkingPart:
    """Reasoning of the model, as far as its provider shows it.

    Attributes:
        text: the reasoning.
        provider_data: what goes back to the provider with it, such as a signature.
    """

    __pydantic_config__ = _CONFIG

    text: str
    type: Literal["thinking"] = "thinking"
    provider_data: ProviderData = None


@dataclass(slots=True)
class RefusalPart:
    """Words with which the model declines; streamed as text, told apart here.

    Attributes:
        text: the words.
        provider_data: what goes back to the provider with them.
    """

    __pydantic_config__ = _CONFIG

    text: str
    type: Literal["refusal"] = "refusal"
    provider_data: ProviderData = None


@dataclass(slots=True)
class ToolCall:
    """A call that the model asks for.

    Attributes:
        tool_call_id: the call's id, unique in its agent.
        tool_name: the tool's name, as the model wrote it.
        arguments: the parsed JSON object; the raw text when that was not a JSON object (such a call never runs).
        provider_id: the provider's own id, when it repeated one and helix gave the call another.
        provider_data: what goes back to the provider with the call.
    """

    __pydantic_config__ = _CONFIG

    tool_call_id: str
    tool_name: str
    arguments: dict[str, Any] | str
    type: Literal["tool_call"] = "tool_call"
    provider_id: Annotated[str | None, Field(exclude_if=_absent)] = None
    provider_data: ProviderData = None


Part: TypeAlias = Annotated[TextPart | ThinkingPart | RefusalPart | ToolCall, Field(discriminator="type")]
"""A piece of what the model said."""


@dataclass(slots=True)
class UserMessage:
    """What a user, a parent agent or helix itself (feedback, steering) says to the model.

    Attributes:
        content: the text; or a list of texts, images, audio and files, in their order.
    """

    __pydantic_config__ = _CONFIG

    content: Content
    role: Literal["user"] = "user"

    @property
    def text(self) -> str:
        """The words; an image, audio or file among them as a mark such as `[image: cat.png]`."""
        return as_words(self.content)


@dataclass(slots=True)
class AssistantMessage:
    """What the model said in one step.

    Attributes:
        content: its parts, in the order in which it said them.
        cut: whether the run ended in mid-step: then it is the text so far, without tool calls.
        provider_data: what goes back to the provider with the message.
    """

    __pydantic_config__ = _CONFIG

    content: list[Part] = field(default_factory=list[Part])
    role: Literal["assistant"] = "assistant"
    cut: Annotated[bool, Field(exclude_if=lambda value: value is False)] = False
    provider_data: ProviderData = None

    @property
    def text(self) -> str:
        """The model's words, joined."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def thinking(self) -> str:
        """The model's reasoning, joined."""
        return "".join(part.text for part in self.content if isinstance(part, ThinkingPart))

    @property
    def refusal(self) -> str:
        """The words with which the model declined, joined; empty when it did not."""
        return "".join(part.text for part in self.content if isinstance(part, RefusalPart))

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls it asks for, in order."""
        return [part for part in self.content if isinstance(part, ToolCall)]


@dataclass(slots=True)
class ToolMessage:
    """A call's answer, as the model reads it.

    Attributes:
        tool_call_id, tool_name: which call it answers.
        content: the result as text, or the error's text; or what a tool gave that holds images, audio or files.
        is_error: whether the call failed.
    """

    __pydantic_config__ = _CONFIG

    tool_call_id: str
    tool_name: str
    content: Content
    role: Literal["tool"] = "tool"
    is_error: Annotated[bool, Field(exclude_if=lambda value: value is False)] = False

    @property
    def text(self) -> str:
        """The words; an image, audio or file among them as a mark such as `[image: cat.png]`."""
        return as_words(self.content)


Message: TypeAlias = Annotated[UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]
"""An entry of a conversation; told apart by `role`."""


class HistoryPage(list[Message]):
    """Messages of a session in a row, oldest first: a list that knows its place.

    Attributes:
        start: how many messages of the conversation come before these; 0 if nothing does.
    """

    def __init__(self, messages: Sequence[Message], limit: int | None = None, before: int | None = None) -> None:
        """The last `limit` of the first `before` messages; None: of all, and all of them."""
        end = len(messages) if before is None else min(max(0, before), len(messages))
        self.start = 0 if limit is None else max(0, end - max(0, limit))
        super().__init__(messages[self.start : end])
