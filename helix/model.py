"""The seam to model providers: one method that awaits the network and pushes what arrives.

Floor 2: above `messages`; `steps` calls a model through this, `models/` and `testing` implement it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any, Literal, Protocol, TypeAlias, get_args, overload, runtime_checkable

from helix.chunks import FinishReason
from helix.errors import DefinitionError, ModelError, did_you_mean
from helix.limits import Usage
from helix.messages import Message, UserMessage
from helix.parts import Content, as_parts
from helix.strict import is_recursive

OutputMode: TypeAlias = Literal["auto", "tool", "native"]
"""How a structured output is asked for: as a call of a tool, or as text in the provider's own format."""

real_requests_allowed = True
"""False while `helix.testing.no_real_models` is on."""


def check_real_requests(model: str) -> None:
    """Every adapter calls this before it makes a request.

    Raises:
        ModelError: `helix.testing.no_real_models` forbids it.
    """
    if not real_requests_allowed:
        text = f"a test that allows no real models asked {model}; give the run model=ScriptedModel(…)"
        raise ModelError("internal", text)


Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
"""How much a model reasons."""
_EFFORTS: tuple[Effort, ...] = get_args(Effort)


@dataclass(slots=True, frozen=True, kw_only=True)
class ModelSettings:
    """What to ask of a model. `None` leaves it to the provider.

    Attributes:
        temperature, top_p, max_tokens, stop, seed, parallel_tool_calls: as the providers define them.
        reasoning_effort: how much to reason before it answers; each adapter says it in its provider's words.
        reasoning_budget: tokens to reason with, for providers that count them; goes before the effort.
        show_reasoning: whether the reasoning, or the provider's summary of it, is shown, where that is asked for.
        headers: sent with each request, beside the client's own.
        extra_body: merged into the request's JSON body, over everything else.
        timeout: seconds that one model call may take.
        first_byte: seconds until its reply has begun; 600 if not set.
        between_bytes: seconds that it may be silent after that; 600 if not set.
        stream_fallback: whether a server that cannot stream is asked for its reply in one piece.
        max_retries: how often a failed call is made again, each time as a new attempt of the step.
        retry_delay: seconds before the first retry; doubled for each further one, up to 8, with jitter. A provider's
            `retry-after` goes before it.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: Sequence[str] | None = None
    seed: int | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    reasoning_budget: int | None = None
    show_reasoning: bool | None = None
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    extra_body: Mapping[str, Any] | None = None
    timeout: float | None = None
    first_byte: float | None = None
    between_bytes: float | None = None
    stream_fallback: bool | None = None
    max_retries: int | None = None
    retry_delay: float | None = None

    def __post_init__(self) -> None:
        if self.reasoning_effort is not None and self.reasoning_effort not in _EFFORTS:
            near = did_you_mean(self.reasoning_effort, _EFFORTS)
            text = f"ModelSettings(reasoning_effort={self.reasoning_effort!r}): there is no such effort.{near}"
            raise DefinitionError(f"{text} Known are: {', '.join(_EFFORTS)}")
        if self.reasoning_budget is not None and self.reasoning_budget < 0:
            raise DefinitionError(f"ModelSettings(reasoning_budget={self.reasoning_budget}): must be at least 0")

    def over(self, base: ModelSettings) -> ModelSettings:
        """These settings, and those of `base` where this has none."""
        mine = {f.name: getattr(self, f.name) for f in fields(self)}
        return ModelSettings(**{name: getattr(base, name) if mine[name] is None else mine[name] for name in mine})


@dataclass(slots=True, frozen=True)
class ToolDefinition:
    """What a model reads of a tool: `name`, `description`, and `parameters`, the JSON Schema of its arguments.

    With `strict` the provider is to hold the model to that schema, which is of its strict subset.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    strict: bool = False


@dataclass(slots=True, frozen=True)
class OutputDefinition:
    """The structured output that is asked for.

    The model gives it by calling a tool, or as its text in the provider's own format; its adapter says which, see
    `ModelProfile`.

    Attributes:
        name, description: of the tool, or of the format.
        schema: a JSON Schema, always an object.
        mode: `tool` or `native` decide; `auto` leaves it to the adapter.
        strict_schema: the same in the strict subset; None where it cannot be said there.
        strict: whether the provider is to hold the model to `strict_schema`; None: if it can.
    """

    name: str
    description: str
    schema: dict[str, Any]
    mode: OutputMode = "auto"
    strict_schema: dict[str, Any] | None = None
    strict: bool | None = None


@dataclass(slots=True, frozen=True, kw_only=True)
class ModelProfile:
    """What a model can do, as far as it is asked differently for it. An adapter knows it by the model's name.

    Attributes:
        native_output: it takes a JSON Schema for its text, also beside tools.
        strict_output: its provider takes schemas marked as strict, and holds it to them.
        recursive_schemas: these may contain themselves.
        forced_calls: it can be made to call a tool.
    """

    native_output: bool = False
    strict_output: bool = False
    recursive_schemas: bool = True
    forced_calls: bool = True

    def is_native(self, output: OutputDefinition) -> bool:
        """Whether the output is asked for in the provider's own format."""
        return output.mode == "native" or (output.mode == "auto" and self.native_output)

    def schema_of(self, output: OutputDefinition) -> tuple[dict[str, Any], bool]:
        """The schema to send, and whether it is strict."""
        wanted = self.strict_output if output.strict is None else output.strict
        strict = output.strict_schema if wanted else None
        if strict is None or (not self.recursive_schemas and is_recursive(strict)):
            return output.schema, False
        return strict, True


class History(Sequence[Message]):
    """The settled conversation of one agent: append-only, so that an adapter encodes each message once."""

    __slots__ = ("_encoded", "_length", "_messages")

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self._messages: list[Message] = list(messages)
        self._length: int | None = None  # of a snapshot
        self._encoded: dict[str, _Encoded] = {}

    def append(self, message: Message) -> None:
        """Adds a message at the end. Only the fold calls this."""
        self._messages.append(message)

    def snapshot(self) -> History:
        """The conversation as it is now; costs nothing, because messages and encodings are shared."""
        copy = History()
        copy._messages, copy._encoded, copy._length = self._messages, self._encoded, len(self)
        return copy

    def encoded(self, dialect: str, encode: Callable[[Message], bytes]) -> bytes:
        """All messages through `encode`, joined by commas; a settled message is encoded once per `dialect`.

        User messages in a row are joined into one: texts with a blank line between them, other contents as one list.
        """
        length, cache = len(self), self._encoded.setdefault(dialect, _Encoded())
        if cache.count > length:  # asked for an old snapshot, after the conversation went on
            cache = _Encoded()
        while cache.count < length:
            message, following = self._joined(cache.count, length)
            piece = encode(message)
            if following == length and isinstance(message, UserMessage):
                return bytes(cache.data) + piece  # another user message may join it yet
            cache.data += piece + b","
            cache.count = following
        return bytes(cache.data[:-1])

    def _joined(self, index: int, length: int) -> tuple[Message, int]:
        """The message at `index`, with the user messages right behind it if it is one; and the index after them."""
        message = self._messages[index]
        index += 1
        while index < length and isinstance(message, UserMessage):
            following = self._messages[index]
            if not isinstance(following, UserMessage):
                break
            message = UserMessage(_joined(message.content, following.content))
            index += 1
        return message, index

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        return self._messages[: self._length][index]

    def __len__(self) -> int:
        return len(self._messages) if self._length is None else self._length

    def __iter__(self) -> Iterator[Message]:
        return islice(self._messages, self._length)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, History) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType] - a list has none either

    def __repr__(self) -> str:
        return f"History({list(self)!r})"


def _joined(one: Content, other: Content) -> Content:
    if isinstance(one, str) and isinstance(other, str):
        return f"{one}\n\n{other}"
    return [*as_parts(one), *as_parts(other)]


class _Encoded:
    __slots__ = ("count", "data")

    def __init__(self) -> None:
        self.count = 0
        self.data = bytearray()


@dataclass(slots=True, frozen=True)
class ModelRequest:
    """One model call.

    Attributes:
        agent_id: the run id of the agent that asks.
        agent_type: its name.
        step: which of its steps this is, from 1.
        attempt: which try of that step, from 1.
        instructions: the system text; may be empty.
        messages: the conversation, oldest first; valid for any provider (every call answered).
        tools: what the model may call.
        output: the structured output that is asked for, if any.
        settings: how to ask.
        force_output: the model is to give `output` now, and to call nothing else. The tools stay in the request: they
            stand first in a provider's prompt cache.
        stream: whether the reply is to come in pieces.
        failures: why each of the agent's attempts failed so far, in all its steps, oldest first: mostly error codes.
    """

    agent_id: str
    agent_type: str
    step: int
    attempt: int
    instructions: str
    messages: History
    tools: Sequence[ToolDefinition]
    output: OutputDefinition | None
    settings: ModelSettings
    force_output: bool = False
    failures: Sequence[str] = ()
    stream: bool = True


class Emit(Protocol):
    """Where an adapter pushes what the provider sends, synchronously and in the order of arrival.

    From these the step's message is assembled, so what readers saw and what is kept are the same. Empty pieces are
    ignored.
    """

    def text(self, delta: str) -> None:
        """A piece of the model's words."""
        ...

    def refusal(self, delta: str) -> None:
        """A piece of the words with which the model declines."""
        ...

    def thinking(self, delta: str) -> None:
        """A piece of its reasoning."""
        ...

    def tool_call(
        self, index: int, *, call_id: str | None = None, name: str | None = None, arguments: str | None = None
    ) -> None:
        """A piece of a tool call. `index` tells the calls of one reply apart (any numbers, in order of first use).

        `call_id` is the provider's id, once it is known. `name` is the whole name; given again, it replaces the former
        one. `arguments` is a fragment of their JSON text; fragments of several calls may be interleaved.
        """
        ...

    def provider_data(self, provider: str, data: dict[str, Any], *, to: Literal["message", "part"] = "message") -> None:
        """What must go back to `provider` unchanged, with the message or with the part that was pushed last."""
        ...


@dataclass(slots=True, frozen=True)
class ModelReply:
    """How a reply ended. The words and calls themselves were pushed through `Emit`.

    Attributes:
        finish_reason: why it ended; None when the provider did not say.
        usage: what the call used, as far as the provider said.
    """

    finish_reason: FinishReason | None
    usage: Usage


class Model(Protocol):
    """A model that agents can talk to.

    helix calls `respond` for each step. Below it: one provider, or a script. An implementation may also be an async
    context manager; an executor enters it when first used and leaves it when it closes itself. It is cut after the
    settings' `timeout`, unless it has an attribute `keeps_timeout` that is true: then it raises the error itself.
    """

    @property
    def name(self) -> str:
        """How it is called in the log, such as `openai:gpt-5`."""
        ...

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        """Asks the model, pushes what arrives into `emit`, and returns when the reply is complete.

        A cancellation closes the provider's connection at once.

        Raises:
            ModelError: the call failed. A reply that broke off is an error too, never a success.
        """
        ...


@dataclass(slots=True, frozen=True)
class Choice:
    """Which model an attempt asks, and what comes after a failure.

    Attributes:
        model: the one that is asked; the log's step has its name.
        retries: how many retries the step has had, which `max_retries` bounds.
        following: asked next, at once, if this one fails with one of `on`; that is no retry. None: there is no other.
    """

    model: Model
    retries: int
    following: Model | None = None
    on: frozenset[str] = frozenset()


@runtime_checkable
class ChoosingModel(Model, Protocol):
    """A model that leaves each attempt to another one."""

    def choose(self, failures: Sequence[str], attempt: int) -> Choice:
        """Whom `respond` asks when a request has these `failures` and this `attempt`; it depends on nothing else."""
        ...
