"""The chunks: everything that happens in a run, one small dataclass a kind (PROTOCOL §1, §2).

Floor 1: above `messages`, `parts` and `limits`, below everything. Chunks are not frozen, because that would cost four
times as much to build, but nobody changes one after the log has numbered it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeAlias, Union, cast, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    TypeAdapter,
    ValidationError,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import from_json, to_jsonable_python

from helix.errors import InvalidChunk
from helix.limits import Usage
from helix.messages import AssistantMessage, Message
from helix.parts import Audio, Content, File, Image, Media, MediaPart

PROTOCOL = 1
"""The protocol's version, written into the root's `run_start`. A log with a higher one may be watched, not owned."""

RunStatus: TypeAlias = Literal["completed", "failed", "cancelled", "interrupted", "suspended"]
"""How an agent's run ended, or how the tree is parked."""
FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "filter", "refusal", "output", "limit"]
"""Why a step ended."""
Outcome: TypeAlias = Literal["committed", "abandoned", "cut"]
"""What became of a model call: its message counts, it is void, or its text so far was kept."""
MessageKind: TypeAlias = Literal["steering", "feedback", "notice", "summary"]
"""Why a message joined a conversation."""
Channel: TypeAlias = Literal["text", "stdout", "stderr"]
"""Which of its outputs a tool wrote to."""
ErrorCode: TypeAlias = Literal[
    "model_rate_limited",
    "model_unavailable",
    "model_rejected",
    "model_stream_dropped",
    "model_filtered",
    "tool_failed",
    "tool_unknown",
    "tool_invalid_arguments",
    "tool_denied",
    "tool_timeout",
    "tool_outcome_unknown",
    "output_invalid",
    "limit_steps",
    "limit_tokens",
    "limit_cost",
    "limit_requests",
    "limit_depth",
    "limit_fan_out",
    "limit_time",
    "subagent_failed",
    "state_invalid",
    "state_conflict",
    "recovery_limit",
    "cancelled",
    "internal",
]
"""What went wrong, in one word; the table of them is in `docs/agents-and-tools.md`."""
ERROR_CODES: frozenset[str] = frozenset(get_args(ErrorCode))
"""Every `ErrorCode`."""


def _absent(value: object) -> bool:
    return value is None


OptStr: TypeAlias = Annotated[str | None, Field(exclude_if=_absent)]
"""A text that is left out on the wire when it is absent."""
OptInt: TypeAlias = Annotated[int | None, Field(exclude_if=_absent)]
"""A number that is left out on the wire when it is absent."""
OptTrue: TypeAlias = Annotated[bool | None, Field(exclude_if=_absent)]
"""A flag that is left out on the wire when it is absent."""
OptStrings: TypeAlias = Annotated[list[str] | None, Field(exclude_if=_absent)]
"""Texts that are left out on the wire when they are absent."""
Patch: TypeAlias = list[dict[str, Any]]
"""RFC 6902 operations."""


def _wire_name(name: str) -> str:
    return "_sequence" if name == "sequence" else to_camel(name)


@dataclass(slots=True)
class ChunkBase:
    """What every chunk has: who produced it, when, and its place in the log.

    Attributes:
        type: the kind; each class has its own literal.
        agent_id: the producing agent's run id; a subtree is `x == id or x.startswith(id + ".")`.
        agent_type: the agent's name.
        timestamp: Unix time in milliseconds, given by the log; not monotone across machines.
        sequence: 1, 2, 3 … over the whole tree, given by the log; 0 before that.
    """

    __pydantic_config__ = ConfigDict(alias_generator=_wire_name, populate_by_name=True)

    type: Any = field(default="", kw_only=True)
    agent_id: str
    agent_type: str
    timestamp: int = field(default=0, kw_only=True)
    sequence: int = field(default=0, kw_only=True)


@dataclass(slots=True)
class TextDelta(ChunkBase):
    """A piece of the model's words."""

    delta: str
    type: Literal["text_delta"] = field(default="text_delta", kw_only=True)


@dataclass(slots=True)
class Thinking(ChunkBase):
    """A piece of the model's reasoning; or, with `is_complete`, the whole block once, after its pieces."""

    content: str
    is_complete: bool
    type: Literal["thinking"] = field(default="thinking", kw_only=True)


@dataclass(slots=True)
class ToolStart(ChunkBase):
    """A tool's body begins, with validated arguments."""

    tool_call_id: str
    tool_name: str
    arguments: dict[str, Any]
    attempt: OptInt = None
    type: Literal["tool_start"] = field(default="tool_start", kw_only=True)


@dataclass(slots=True)
class ToolEnd(ChunkBase):
    """A call is answered, exactly once; `error` is there when it failed.

    `content` is there when the result holds images, audio or files: it is what the model reads then, and `result` its
    words.
    """

    tool_call_id: str
    tool_name: str
    result: Any
    error: OptStr = None
    error_code: OptStr = None
    duration_ms: OptInt = None
    truncated: OptTrue = None
    content: Annotated[Content | None, Field(exclude_if=_absent)] = None
    type: Literal["tool_end"] = field(default="tool_end", kw_only=True)


@dataclass(slots=True)
class SubagentStart(ChunkBase):
    """A child begins; tagged with its parent."""

    sub_agent_type: str
    sub_agent_run_id: str
    call_id: str
    placement: OptStr = None
    type: Literal["subagent_start"] = field(default="subagent_start", kw_only=True)


@dataclass(slots=True)
class SubagentEnd(ChunkBase):
    """A child ended, in whatever way; tagged with its parent."""

    sub_agent_type: str
    sub_agent_run_id: str
    call_id: str
    result: Any
    status: RunStatus
    usage: Usage
    error: OptStr = None
    type: Literal["subagent_end"] = field(default="subagent_end", kw_only=True)


@dataclass(slots=True)
class Custom(ChunkBase):
    """An event of the user's own, from `ctx.emit(name, data)`."""

    event_name: str
    data: Any
    tool_call_id: OptStr = None
    type: Literal["custom"] = field(default="custom", kw_only=True)


@dataclass(slots=True)
class StatePatch(ChunkBase):
    """RFC 6902 operations on a state document: the author's, or that of `state_id`."""

    patches: Patch
    tool_call_id: OptStr = None
    state_id: OptStr = None
    conflicts: OptStrings = None
    type: Literal["state_patch"] = field(default="state_patch", kw_only=True)


@dataclass(slots=True)
class ErrorChunk(ChunkBase):
    """Something went wrong; when `recoverable`, the agent goes on by itself."""

    error: str
    code: ErrorCode
    recoverable: bool
    tool_call_id: OptStr = None
    detail: OptStr = None
    type: Literal["error"] = field(default="error", kw_only=True)


@dataclass(slots=True)
class Output(ChunkBase):
    """The agent's output, validated against its output type, in its JSON form."""

    output: Any
    type: Literal["output"] = field(default="output", kw_only=True)


@dataclass(slots=True)
class RunStart(ChunkBase):
    """An agent's life begins. `input` is only what is new; `protocol`, `options` and `history` stand on the root."""

    input: list[Message]
    model: str
    state: Any
    session_id: OptStr = None
    parent_id: OptStr = None
    protocol: OptInt = None
    options: Annotated[dict[str, Any] | None, Field(exclude_if=_absent)] = None
    history: Annotated[list[Message] | None, Field(exclude_if=_absent)] = None
    agent_hash: OptStr = None
    state_id: OptStr = None
    """The agent whose document this one works on, when it is not its own (`share_state`)."""
    limits: Annotated[dict[str, Any] | None, Field(exclude_if=_absent)] = None
    """The bounds that were set for this agent and its subtree, by name."""
    key: OptStr = None
    """The `key=` of `ctx.run_agent`, by which a body that runs again finds this child."""
    type: Literal["run_start"] = field(default="run_start", kw_only=True)


@dataclass(slots=True)
class RunEnd(ChunkBase):
    """An agent's life ends, exactly once."""

    status: Literal["completed", "failed", "cancelled"]
    usage: Usage
    tree_usage: Usage
    steps: int
    duration_ms: int
    finish_reason: Annotated[FinishReason | None, Field(exclude_if=_absent)] = None
    session_id: OptStr = None
    error: OptStr = None
    error_code: Annotated[ErrorCode | None, Field(exclude_if=_absent)] = None
    type: Literal["run_end"] = field(default="run_end", kw_only=True)


@dataclass(slots=True)
class RunPause(ChunkBase):
    """The tree is quiet and parked; tagged with the root."""

    status: Literal["interrupted", "suspended"]
    waiting_for: OptStrings = None
    type: Literal["run_pause"] = field(default="run_pause", kw_only=True)


@dataclass(slots=True)
class RunResume(ChunkBase):
    """The first chunk of every new owner; a crash is a resume without a pause."""

    epoch: int
    reason: Literal["crash", "pause", "fork"]
    forked_from: OptStr = None
    type: Literal["run_resume"] = field(default="run_resume", kw_only=True)


@dataclass(slots=True)
class StepStart(ChunkBase):
    """One call of `model` begins; while it is open it is also the reservation of what it may use."""

    step: int
    attempt: int
    model: str
    reserve: Annotated[Usage | None, Field(exclude_if=_absent)] = None
    type: Literal["step_start"] = field(default="step_start", kw_only=True)


@dataclass(slots=True)
class StepEnd(ChunkBase):
    """One model call ends: `committed` with its message, `abandoned` without one, `cut` with the text so far."""

    step: int
    attempt: int
    outcome: Outcome
    usage: Usage
    message: Annotated[AssistantMessage | None, Field(exclude_if=_absent)] = None
    finish_reason: Annotated[FinishReason | None, Field(exclude_if=_absent)] = None
    reason: OptStr = None
    type: Literal["step_end"] = field(default="step_end", kw_only=True)


@dataclass(slots=True)
class ToolInputStart(ChunkBase):
    """The model begins to write a call's arguments."""

    tool_call_id: str
    tool_name: str
    type: Literal["tool_input_start"] = field(default="tool_input_start", kw_only=True)


@dataclass(slots=True)
class ToolInputDelta(ChunkBase):
    """A fragment of the arguments' JSON text."""

    tool_call_id: str
    delta: str
    type: Literal["tool_input_delta"] = field(default="tool_input_delta", kw_only=True)


@dataclass(slots=True)
class ToolInputEnd(ChunkBase):
    """The arguments are written: parsed, or the raw text when that was not a JSON object."""

    tool_call_id: str
    arguments: dict[str, Any] | str
    type: Literal["tool_input_end"] = field(default="tool_input_end", kw_only=True)


@dataclass(slots=True)
class ToolOutputDelta(ChunkBase):
    """A piece of a tool's output while it runs, from `ctx.write(text)` or a generator tool."""

    tool_call_id: str
    tool_name: str
    delta: str
    channel: Channel = "text"
    type: Literal["tool_output_delta"] = field(default="tool_output_delta", kw_only=True)


@dataclass(slots=True)
class OutputDelta(ChunkBase):
    """A fragment of the structured output's JSON text, while the model writes it."""

    delta: str
    type: Literal["output_delta"] = field(default="output_delta", kw_only=True)


@dataclass(slots=True)
class MessageChunk(ChunkBase):
    """Something joins the agent's conversation at its next step."""

    message: Message
    kind: MessageKind
    command_id: OptStr = None
    type: Literal["message"] = field(default="message", kw_only=True)


@dataclass(slots=True)
class ApprovalRequest(ChunkBase):
    """A branch waits for a person (`approval`) or for a client to run a tool (`client_tool`)."""

    approval_id: str
    tool_call_id: str
    tool_name: str
    arguments: dict[str, Any]
    kind: Literal["approval", "client_tool"]
    reason: OptStr = None
    deadline: OptInt = None
    type: Literal["approval_request"] = field(default="approval_request", kw_only=True)


@dataclass(slots=True)
class ApprovalResponse(ChunkBase):
    """The answer, recorded."""

    approval_id: str
    decision: Literal["approve", "deny", "result", "expired"]
    arguments: Annotated[dict[str, Any] | None, Field(exclude_if=_absent)] = None
    result: Annotated[Any, Field(exclude_if=_absent)] = None
    reason: OptStr = None
    by: OptStr = None
    command_id: OptStr = None
    type: Literal["approval_response"] = field(default="approval_response", kw_only=True)


@dataclass(slots=True)
class UnknownChunk(ChunkBase):
    """A chunk of a type that this version does not know; `data` is the whole of it, written back unchanged."""

    wire_type: str = ""
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    type: Literal["unknown"] = field(default="unknown", kw_only=True)


@dataclass(slots=True)
class StreamEnd:
    """Made by a reader that has delivered the end or the pause of the run; not stored, without a sequence."""

    __pydantic_config__ = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    stream_id: str
    timestamp: int
    status: RunStatus
    last_sequence: int
    final_output: Annotated[Any, Field(exclude_if=_absent)] = None
    type: Literal["stream_end"] = "stream_end"


@dataclass(slots=True)
class CallSnapshot:
    """A call of an agent's last committed step, in a `Snapshot`.

    Attributes:
        tool_call_id, tool_name, arguments: as in the message that asks for it, or as they were approved.
        attempt: how often its body began; 0 while it has not.
        ended: whether it is answered.
        result, error, error_code, content: its answer, as in `tool_end`.
    """

    __pydantic_config__ = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    tool_call_id: str
    tool_name: str
    arguments: dict[str, Any] | str
    attempt: int
    ended: bool
    result: Any = None
    error: OptStr = None
    error_code: OptStr = None
    content: Annotated[Content | None, Field(exclude_if=_absent)] = None


@dataclass(slots=True)
class AgentSnapshot:
    """One agent in a `Snapshot`.

    Attributes:
        agent_type, model, state_id, parent_id: as in its `run_start`.
        call_id: the parent's call that started it.
        status: `running`, or as in its `run_end`.
        state: its state document; null if it works on that of `state_id`.
        messages: the conversation up to its last step, the session's history and its input first.
        inbox: what joins the conversation at its next step, behind the answers of `calls`.
        calls: the calls of its last step, in call order, until the next one begins.
        children: the ids of the agents that it started, in order.
        usage: its own, as of the last `step_end`.
        output: as in `output`, once there is one.
        error, error_code: what it failed with.
    """

    __pydantic_config__ = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    agent_type: str
    status: str
    model: str
    state: Any
    messages: list[Message]
    inbox: list[Message]
    calls: list[CallSnapshot]
    children: list[str]
    usage: Usage
    parent_id: OptStr = None
    call_id: OptStr = None
    state_id: OptStr = None
    output: Annotated[Any, Field(exclude_if=_absent)] = None
    error: OptStr = None
    error_code: OptStr = None


@dataclass(slots=True)
class Snapshot:
    """A run as it was at one place of its log.

    Attributes:
        status: `running`, or as in the last `run_end` or `run_pause` of the root.
        agents: every agent that had started, by its id, the root first.
        requests: the approval requests that wait, oldest first.
    """

    __pydantic_config__ = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    status: str
    agents: dict[str, AgentSnapshot]
    requests: list[ApprovalRequest]

    def agent(self, agent_id: str | None = None) -> AgentSnapshot | None:
        """The agent of that id, or the root; None if it had not started."""
        if agent_id is not None:
            return self.agents.get(agent_id)
        return next((agent for agent in self.agents.values() if agent.parent_id is None), None)

    def output(self, agent_id: str | None = None) -> Any:
        """The structured output of that agent, or of the root; None while there is none."""
        agent = self.agent(agent_id)
        return agent and agent.output


@dataclass(slots=True)
class Resync:
    """Made by a reader whose offset is older than what is kept: go on from `floor` with `snapshot`; not stored.

    Attributes:
        floor: the number of the last chunk that `snapshot` stands for; `floor` + 1 follows.
        snapshot: the run as it was then.
    """

    __pydantic_config__ = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    floor: int
    snapshot: Snapshot
    type: Literal["resync"] = "resync"


def _parse_unknown(value: object) -> object:
    if isinstance(value, UnknownChunk):
        return value
    data = cast(dict[str, Any], value)
    return {
        "agent_id": data.get("agentId", data.get("agent_id", "")),
        "agent_type": data.get("agentType", data.get("agent_type", "")),
        "timestamp": data.get("timestamp", 0),
        "sequence": data.get("_sequence", data.get("sequence", 0)),
        "wire_type": data["type"],
        "data": data,
    }


def _dump_unknown(chunk: UnknownChunk) -> dict[str, Any]:
    return chunk.data


Chunk: TypeAlias = (
    TextDelta
    | Thinking
    | ToolStart
    | ToolEnd
    | SubagentStart
    | SubagentEnd
    | Custom
    | StatePatch
    | ErrorChunk
    | Output
    | RunStart
    | RunEnd
    | RunPause
    | RunResume
    | StepStart
    | StepEnd
    | ToolInputStart
    | ToolInputDelta
    | ToolInputEnd
    | ToolOutputDelta
    | OutputDelta
    | MessageChunk
    | ApprovalRequest
    | ApprovalResponse
    | UnknownChunk
)
"""Every chunk that a log holds; narrow it by class, or by the literal in `type`."""

Control: TypeAlias = StreamEnd | Resync
"""What a reader makes itself."""


def _wire_type(cls: Any) -> str:
    return str(cls.__dataclass_fields__["type"].default)


CHUNK_TYPES: dict[str, type[Chunk]] = {_wire_type(cls): cls for cls in get_args(Chunk) if cls is not UnknownChunk}
"""Every known wire type and its class."""

_CONTROL_TYPES: dict[str, Any] = {"stream_end": StreamEnd, "resync": Resync}


def _tag(value: Any) -> str:
    wire_type: Any = cast(dict[str, Any], value).get("type") if isinstance(value, dict) else getattr(value, "type", "")
    return wire_type if wire_type in CHUNK_TYPES or wire_type in _CONTROL_TYPES else "unknown"


def _tagged(wire_type: str, cls: Any) -> Any:
    return Annotated[cls, Tag(wire_type)]


_UNKNOWN = Annotated[UnknownChunk, BeforeValidator(_parse_unknown), PlainSerializer(_dump_unknown), Tag("unknown")]
_members = [*(_tagged(name, cls) for name, cls in (CHUNK_TYPES | _CONTROL_TYPES).items()), _UNKNOWN]


def _one_of(members: Sequence[Any]) -> Any:
    return Annotated[Union[tuple(members)], Discriminator(_tag)]  # pyright: ignore  # noqa: UP007 - made at run time


_adapter: TypeAdapter[Any] = TypeAdapter(_one_of(_members))


def parse_chunk(data: str | bytes | dict[str, Any]) -> Chunk | Control:
    """A chunk from its JSON text or its parsed JSON, in camelCase or snake_case.

    An unknown `type` gives an `UnknownChunk`.

    Raises:
        InvalidChunk: it is not JSON, not an object, has no `type`, or is malformed for its type; says which field.
    """
    if not isinstance(data, dict):
        try:
            data = cast(dict[str, Any], from_json(data, allow_inf_nan=False))
        except ValueError as error:
            raise InvalidChunk(f"not a chunk: not valid JSON ({error})") from None
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        raise InvalidChunk("not a chunk: expected a JSON object with a `type`")
    try:
        return _adapter.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "chunk"
        raise InvalidChunk(f"malformed {data['type']} chunk: {where}: {first['msg']}") from None


def chunk_to_json(chunk: Chunk | Control) -> bytes:
    """The chunk's JSON text on one line, UTF-8, in camelCase; optional fields that are absent are left out."""
    return _adapter.dump_json(chunk, by_alias=True)


def chunk_to_dict(chunk: Chunk | Control) -> dict[str, Any]:
    """The chunk's JSON as Python data, in camelCase."""
    return _adapter.dump_python(chunk, mode="json", by_alias=True)


def chunk_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a chunk's JSON, and of what readers make themselves; `helix schema` prints it.

    Types and fields that it does not know may come: a newer helix may write them.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(_one_of(_members[:-1]))
    title = {"$schema": GenerateJsonSchema.schema_dialect, "title": f"helix chunk, protocol {PROTOCOL}"}
    return title | adapter.json_schema(by_alias=True, mode="serialization", schema_generator=_WireSchema)


class _WireSchema(GenerateJsonSchema):
    """All that is written on the wire is required, but what is left out when it is absent."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        return "serialization_exclude_if" not in field

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def to_json_value(value: Any, *, where: str = "value") -> Any:
    """`value` as plain JSON data: pydantic values by their JSON form and field names, bytes as base64, dates ISO 8601.

    Containers are copied, so that later changes to `value` do not reach the log.

    Raises:
        ValueError: a value has no JSON form, or is NaN or infinite; says where.
    """
    kind = cast(type[Any], type(value))
    if kind is str:
        return clean_text(value)
    if value is None or kind is bool or kind is int:
        return value
    if kind is float:
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} has no JSON form; send null or a text instead")
        return value
    if kind is list or kind is tuple:
        return [to_json_value(item, where=f"{where}[{index}]") for index, item in enumerate(value)]
    if kind is dict:
        return {_json_key(key, where): to_json_value(item, where=f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Media):
        raise ValueError(f"{where}: {value!r} has no JSON form; give it alone, or in a list of texts and such parts")
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode("ascii")
    own = _fields_of(value)
    raw = {name: item for name, item in own.items() if _has_bytes(item)}
    if raw:  # pydantic would write them as UTF-8, or in another alphabet
        shown = value.model_dump(mode="json", exclude=set(raw)) if isinstance(value, BaseModel) else own
        return to_json_value({**{name: shown[name] for name in own if name in shown}, **shown, **raw}, where=where)
    try:
        plain = to_jsonable_python(value, by_alias=False, bytes_mode="base64")
    except (ValueError, TypeError) as error:  # PydanticSerializationError is a ValueError
        raise ValueError(f"{where}: {kind.__name__} has no JSON form ({error})") from None
    return to_json_value(plain, where=where)


def to_content(value: Any, *, where: str = "value") -> Content | None:
    """The content that `value` is, if it is an image, a sound or a file, or a list of texts and of those; else None.

    Raises:
        ValueError: something else stands in the list beside them.
    """
    items = cast(list[Any], value) if isinstance(value, list | tuple) else [value]
    if not any(isinstance(item, Media) for item in items):
        return None
    return [_content_item(item, f"{where}[{index}]") for index, item in enumerate(items)]


def _content_item(item: Any, where: str) -> str | MediaPart:
    if isinstance(item, str):
        return clean_text(item)
    if not isinstance(item, Image | Audio | File):
        raise ValueError(f"{where}: beside images, audio and files stand texts, not {type(item).__name__}")
    return item


def _fields_of(value: Any) -> dict[str, Any]:
    """The fields of a pydantic model or a dataclass, by name; none of anything else."""
    if isinstance(value, BaseModel):
        return dict(value)
    return {item.name: getattr(value, item.name) for item in fields(value)} if is_dataclass(value) else {}


def _has_bytes(value: Any) -> bool:
    if isinstance(value, bytes | bytearray):
        return True
    if isinstance(value, dict):
        return any(_has_bytes(item) for item in cast(dict[Any, Any], value).values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(_has_bytes(item) for item in cast(Iterable[Any], value))
    return any(_has_bytes(item) for item in _fields_of(value).values())


def clean_text(text: str) -> str:
    """The text without lone surrogates, which UTF-8 has no form for; each becomes U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_high_half(char: str) -> bool:
    """Whether it is the first half of a character beyond U+FFFF (UTF-16), which some servers cut in two."""
    return "\ud800" <= char <= "\udbff"


def is_low_half(char: str) -> bool:
    """Whether it is the second half of such a character."""
    return "\udc00" <= char <= "\udfff"


def split_half(text: str) -> tuple[str, str]:
    """The text, clean; and apart from it the half character with which it ends, if it does: the rest may follow."""
    if text and is_high_half(text[-1]):
        return clean_text(text[:-1]), text[-1]
    return clean_text(text), ""


def _json_key(key: Any, where: str) -> str:
    if type(key) is str:
        return clean_text(key)
    if isinstance(key, str):
        return str(key)
    try:
        plain: dict[str, Any] = to_jsonable_python({key: None})
    except (ValueError, TypeError):
        raise ValueError(f"{where}: the key {key!r} has no JSON form") from None
    return next(iter(plain))
