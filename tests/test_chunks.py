"""The chunks on the wire: every class there and back, in both spellings, and what is refused."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, get_args
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from helix import Image, InvalidChunk, UnknownChunk, Usage, chunk_to_dict, chunk_to_json, parse_chunk
from helix import chunks as c
from helix.chunks import CHUNK_TYPES, ERROR_CODES, to_json_value
from helix.messages import (
    AssistantMessage,
    RefusalPart,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)

ME: tuple[str, str] = ("r00t.writer-1", "writer")
USAGE = Usage(10, 5, 15, cached_tokens=2, reasoning_tokens=1, requests=1, cost=0.25)
PAYLOAD: dict[str, Any] = {"snake_key": {"inner_key": [1, None, 2.5, "ü\n "]}, "camelKey": True}
SAID = AssistantMessage(
    [
        TextPart("hello", provider_data={"openai": {"snake_id": 1}}),
        ThinkingPart("hm"),
        RefusalPart("no"),
        ToolCall("t1", "look_up", {"max_results": 3}, provider_id="dup"),
        ToolCall("t2", "look_up", "{broken"),
    ],
    cut=True,
    provider_data={"openai": {"response_id": "x"}},
)
IMAGE = Image(data=b"\xff\xfe", media_type="image/png", name="a.png", file_ids={"openai": "file-1"})
ANSWERS = [ToolMessage("t1", "look_up", "found", is_error=True), ToolMessage("t2", "look_up", ["see", IMAGE])]
TALK: list[Any] = [UserMessage("hi"), UserMessage(["see", IMAGE]), SAID, *ANSWERS]

FULL: list[c.Chunk] = [
    c.TextDelta(*ME, "word"),
    c.Thinking(*ME, "hm", True),
    c.ToolStart(*ME, "t1", "look_up", PAYLOAD, attempt=2),
    c.ToolEnd(*ME, "t1", "look_up", PAYLOAD, "it broke", "tool_failed", 12, True, ["see", IMAGE]),
    c.SubagentStart(*ME, "helper", "r00t.writer-1.helper-1", "t1", "here"),
    c.SubagentEnd(*ME, "helper", "r00t.writer-1.helper-1", "t1", PAYLOAD, "failed", USAGE, "it broke"),
    c.Custom(*ME, "progress", PAYLOAD, "t1"),
    c.StatePatch(*ME, [{"op": "add", "path": "/snake_key", "value": PAYLOAD}], "t1", "r00t", ["/snake_key"]),
    c.ErrorChunk(*ME, "it broke", "tool_failed", True, "t1", "Traceback"),
    c.Output(*ME, PAYLOAD),
    c.RunStart(*ME, TALK, "openai:x", PAYLOAD, "s", "r00t", 1, PAYLOAD, TALK, "hash", "r00t", {"fan_out": 3}, "k"),
    c.RunEnd(*ME, "failed", USAGE, USAGE, 3, 99, "limit", "s", "too many", "limit_steps"),
    c.RunPause(*ME, "suspended", ["r00t.writer-1/t1"]),
    c.RunResume(*ME, 2, "fork", "other@7"),
    c.StepStart(*ME, 1, 2, "openai:x", USAGE),
    c.StepEnd(*ME, 1, 2, "committed", USAGE, SAID, "tool_calls", "because"),
    c.ToolInputStart(*ME, "t1", "look_up"),
    c.ToolInputDelta(*ME, "t1", '{"max_'),
    c.ToolInputEnd(*ME, "t1", PAYLOAD),
    c.ToolOutputDelta(*ME, "t1", "look_up", "line", "stderr"),
    c.OutputDelta(*ME, '{"a'),
    c.MessageChunk(*ME, UserMessage("please hurry"), "steering", "cmd"),
    c.ApprovalRequest(*ME, "r00t.writer-1/t1", "t1", "look_up", PAYLOAD, "client_tool", "it costs", 1_700_000_000_000),
    c.ApprovalResponse(*ME, "r00t.writer-1/t1", "result", PAYLOAD, PAYLOAD, "fine", "ada", "cmd"),
]
for _number, _chunk in enumerate(FULL, start=1):
    _chunk.sequence, _chunk.timestamp = _number, 1_700_000_000_000 + _number


def is_required(item: Any) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def bare(chunk: Any) -> Any:
    """The same chunk with its required fields only."""
    return type(chunk)(**{item.name: getattr(chunk, item.name) for item in fields(chunk) if is_required(item)})


BARE: list[c.Chunk] = [bare(chunk) for chunk in FULL]
NULLED: list[c.Chunk] = [
    c.ToolEnd(*ME, "t1", "look_up", None),
    c.SubagentEnd(*ME, "helper", "r00t.writer-1.helper-1", "t1", None, "cancelled", Usage()),
    c.Custom(*ME, "ping", None),
    c.StatePatch(*ME, [{"op": "add", "path": "/note", "value": None}]),
    c.Output(*ME, None),
    c.RunStart(*ME, [], "openai:x", None),
    c.ToolInputEnd(*ME, "t1", "{broken"),
]
EVERY = [*FULL, *BARE, *NULLED]


def label(chunk: c.Chunk) -> str:
    return chunk.type


def test_there_is_an_instance_of_every_class() -> None:
    classes = set(get_args(c.Chunk)) - {UnknownChunk}
    assert {type(chunk) for chunk in FULL} == classes == set(CHUNK_TYPES.values())
    for chunk in FULL:  # `full` means it: nothing is left at its default of None
        assert [item.name for item in fields(chunk) if getattr(chunk, item.name) is None] == []


@pytest.mark.parametrize("chunk", EVERY, ids=label)
def test_every_chunk_comes_back_equal_from_its_json(chunk: c.Chunk) -> None:
    wire = chunk_to_json(chunk)
    again = parse_chunk(wire)
    assert again == chunk
    assert type(again) is type(chunk)
    assert parse_chunk(wire.decode()) == parse_chunk(json.loads(wire)) == chunk
    assert chunk_to_dict(chunk) == json.loads(wire)
    assert chunk_to_json(again) == wire


@pytest.mark.parametrize("chunk", EVERY, ids=label)
def test_every_chunk_comes_back_equal_from_snake_case(chunk: c.Chunk) -> None:
    snake = asdict(chunk)
    assert "agent_id" in snake
    assert parse_chunk(snake) == chunk
    assert parse_chunk(json.dumps(snake, default=lambda data: b64encode(data).decode())) == chunk


@pytest.mark.parametrize("chunk", EVERY, ids=label)
def test_json_stands_on_one_line(chunk: c.Chunk) -> None:
    wire = chunk_to_json(chunk)
    assert isinstance(wire, bytes)
    assert wire.splitlines() == [wire]


@pytest.mark.parametrize("chunk", FULL, ids=label)
def test_own_fields_are_camel_case(chunk: c.Chunk) -> None:
    keys = set(chunk_to_dict(chunk))
    assert keys >= {"type", "agentId", "agentType", "timestamp", "_sequence"}
    assert [key for key in keys - {"_sequence"} if "_" in key] == []
    assert len(keys) == len(fields(chunk))
    assert len(chunk_to_dict(bare(chunk))) == sum(map(is_required, fields(chunk))) + 3 + (
        chunk.type == "tool_output_delta"
    )


def test_the_wire_form_is_this() -> None:
    start = c.ToolStart("r", "a", "t1", "look_up", {"max_results": 3}, timestamp=7, sequence=2)
    assert chunk_to_dict(start) == {
        "type": "tool_start",
        "agentId": "r",
        "agentType": "a",
        "timestamp": 7,
        "_sequence": 2,
        "toolCallId": "t1",
        "toolName": "look_up",
        "arguments": {"max_results": 3},
    }
    end = c.RunEnd("r", "a", "completed", Usage(1, 2, 3, requests=1), Usage(cost=0.5), 1, 9)
    usage = {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3, "cachedTokens": 0, "reasoningTokens": 0}
    empty = dict.fromkeys(usage, 0)
    assert chunk_to_dict(end) == {
        "type": "run_end",
        "agentId": "r",
        "agentType": "a",
        "timestamp": 0,
        "_sequence": 0,
        "status": "completed",
        "usage": {**usage, "requests": 1},
        "treeUsage": {**empty, "requests": 0, "cost": 0.5},
        "steps": 1,
        "durationMs": 9,
    }
    step = c.StepEnd("r", "a", 1, 1, "cut", Usage(), SAID)
    assert chunk_to_dict(step)["message"] == {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "hello", "providerData": {"openai": {"snake_id": 1}}},
            {"type": "thinking", "text": "hm"},
            {"type": "refusal", "text": "no"},
            {
                "type": "tool_call",
                "toolCallId": "t1",
                "toolName": "look_up",
                "arguments": {"max_results": 3},
                "providerId": "dup",
            },
            {"type": "tool_call", "toolCallId": "t2", "toolName": "look_up", "arguments": "{broken"},
        ],
        "cut": True,
        "providerData": {"openai": {"response_id": "x"}},
    }


def test_required_nulls_are_kept_and_absent_options_left_out() -> None:
    end = chunk_to_dict(c.ToolEnd(*ME, "t1", "look_up", None))
    assert end["result"] is None
    assert not end.keys() & {"error", "errorCode", "durationMs", "truncated"}
    patch = chunk_to_dict(c.StatePatch(*ME, [{"op": "replace", "path": "/a_b", "value": None}]))
    assert patch["patches"] == [{"op": "replace", "path": "/a_b", "value": None}]
    assert chunk_to_dict(c.RunStart(*ME, [], "m", None))["state"] is None
    assert chunk_to_dict(c.Output(*ME, None))["output"] is None
    assert chunk_to_dict(c.Custom(*ME, "e", None))["data"] is None


def test_the_users_names_are_not_respelled() -> None:
    places = {
        "tool_start": "arguments",
        "tool_end": "result",
        "custom": "data",
        "output": "output",
        "run_start": "state",
        "subagent_end": "result",
        "tool_input_end": "arguments",
        "approval_request": "arguments",
        "approval_response": "result",
    }
    for chunk in FULL:
        if chunk.type in places:
            assert chunk_to_dict(chunk)[places[chunk.type]] == PAYLOAD


@pytest.mark.parametrize(
    "wire",
    [
        '{"type":"hologram","agentId":"r","agentType":"a","timestamp":5,"_sequence":9,"beam":{"snake_key":null}}',
        '{"type":"hologram","agent_id":"r","agent_type":"a","timestamp":5,"sequence":9,"data":{"type":"text_delta"}}',
        '{"type":"unknown","agentId":"r","agentType":"a","timestamp":5,"_sequence":9,"wireType":"mine","n":1.50}',
    ],
)
def test_an_unknown_type_is_kept_as_it_is(wire: str) -> None:
    chunk = parse_chunk(wire)
    assert isinstance(chunk, UnknownChunk)
    assert chunk.type == "unknown"
    assert chunk.wire_type == json.loads(wire)["type"]
    assert (chunk.agent_id, chunk.agent_type, chunk.timestamp, chunk.sequence) == ("r", "a", 5, 9)
    assert chunk_to_dict(chunk) == chunk.data == json.loads(wire)
    assert json.loads(chunk_to_json(chunk)) == json.loads(wire)
    assert parse_chunk(chunk_to_json(chunk)) == chunk


def test_control_messages_parse_too() -> None:
    end = c.StreamEnd("r", 5, "completed", 9, PAYLOAD)
    wire = {"type": "stream_end", "streamId": "r", "timestamp": 5, "status": "completed", "lastSequence": 9}
    assert chunk_to_dict(end) == {**wire, "finalOutput": PAYLOAD}
    assert chunk_to_dict(replace(end, final_output=None)) == wire
    agent = c.AgentSnapshot("boss", "running", "m", PAYLOAD, [UserMessage("go")], [], [], ["r.a-1"], Usage())
    agent.calls.append(c.CallSnapshot("c1", "look", {"a_b": 1}, 1, ended=False))
    resync = c.Resync(4, c.Snapshot("running", {"r": agent}, []))
    told = chunk_to_dict(resync)
    assert (told["type"], told["floor"], told["snapshot"]["status"]) == ("resync", 4, "running")
    assert (told["snapshot"]["agents"]["r"]["agentType"], told["snapshot"]["agents"]["r"]["state"]) == ("boss", PAYLOAD)
    assert told["snapshot"]["agents"]["r"]["calls"][0]["arguments"] == {"a_b": 1}
    for control in (end, resync):
        assert parse_chunk(chunk_to_json(control)) == parse_chunk(asdict(control)) == control


GOOD: dict[str, dict[str, Any]] = {chunk.type: chunk_to_dict(chunk) for chunk in FULL}


@pytest.mark.parametrize(
    ("kind", "change", "names"),
    [
        ("text_delta", {"delta": 5}, "delta"),
        ("text_delta", {"agentId": None}, "agentId"),
        ("text_delta", {"_sequence": "first"}, "_sequence"),
        ("text_delta", {"timestamp": 1.5}, "timestamp"),
        ("thinking", {"isComplete": "perhaps"}, "isComplete"),
        ("tool_start", {"arguments": [1]}, "arguments"),
        ("tool_start", {"toolCallId": 7}, "toolCallId"),
        ("tool_end", {"durationMs": "long"}, "durationMs"),
        ("subagent_end", {"status": "running"}, "status"),
        ("subagent_end", {"usage": {"inputTokens": "many"}}, "usage.inputTokens"),
        ("state_patch", {"patches": {"op": "add"}}, "patches"),
        ("state_patch", {"patches": ["add"]}, "patches.0"),
        ("error", {"code": "tool_sulked"}, "code"),
        ("run_start", {"input": [{"role": "wizard"}]}, "input.0"),
        ("run_end", {"finishReason": "boredom"}, "finishReason"),
        ("run_end", {"status": "interrupted"}, "status"),
        ("run_pause", {"status": "completed"}, "status"),
        ("run_resume", {"reason": "whim"}, "reason"),
        ("step_end", {"outcome": "perhaps"}, "outcome"),
        ("step_end", {"message": {"role": "assistant", "content": [{"type": "song"}]}}, "message.content.0"),
        ("tool_output_delta", {"channel": "smoke"}, "channel"),
        ("message", {"kind": "gossip"}, "kind"),
        ("approval_request", {"kind": "whim"}, "kind"),
        ("approval_response", {"decision": "perhaps"}, "decision"),
    ],
)
def test_a_malformed_chunk_is_refused_with_the_fields_name(kind: str, change: dict[str, Any], names: str) -> None:
    with pytest.raises(InvalidChunk) as caught:
        parse_chunk({**GOOD[kind], **change})
    assert str(caught.value).startswith(f"malformed {kind} chunk: {names}")


@pytest.mark.parametrize("chunk", BARE, ids=label)
def test_each_required_field_is_missed_by_name(chunk: c.Chunk) -> None:
    wire = chunk_to_dict(chunk)
    needed = [key for key in wire if key not in ("type", "timestamp", "_sequence", "channel")]
    assert len(needed) >= 2
    for key in needed:
        with pytest.raises(InvalidChunk, match=rf"^malformed {chunk.type} chunk: {key}: .*required"):
            parse_chunk({name: value for name, value in wire.items() if name != key})


@pytest.mark.parametrize("text", ["", "nope", "{", b"\xff", '{"type":"text_delta",}', '{"type":"x","n":NaN}'])
def test_what_is_not_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidChunk, match="not a chunk: not valid JSON"):
        parse_chunk(text)


@pytest.mark.parametrize("text", ["null", "[]", '"text_delta"', "3", "{}", '{"type":null}', '{"type":5}'])
def test_what_is_no_object_with_a_type_is_refused(text: str) -> None:
    with pytest.raises(InvalidChunk, match="expected a JSON object with a `type`"):
        parse_chunk(text)


class Colour(Enum):
    RED = "red"


class Inner(BaseModel):
    seen_at: datetime = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)


class Outer(BaseModel):
    inner_value: Inner = Field(default_factory=Inner, alias="innerAlias")
    tags: set[str] = {"a"}


@dataclass
class Point:
    x_pos: int = 1
    trail: list[int] = field(default_factory=list[int])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (10**30, 10**30),
        (1.5, 1.5),
        ("ü", "ü"),
        (b"\xfb\xff\xfe", "+//+"),
        (bytearray(b"\xfb\xff"), "+/8="),
        ([b"a", {"k": b"a"}], ["YQ==", {"k": "YQ=="}]),
        (datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC), "2024-01-02T03:04:05Z"),
        (date(2024, 1, 2), "2024-01-02"),
        (timedelta(seconds=90), "PT1M30S"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.10"), "1.10"),
        (Colour.RED, "red"),
        ((1, (2, [3])), [1, [2, [3]]]),
        ({"a"}, ["a"]),
        ({1: "a", 1.5: "c", Colour.RED: "d"}, {"1": "a", "1.5": "c", "red": "d"}),
        (Outer(), {"inner_value": {"seen_at": "2024-01-02T03:04:05Z"}, "tags": ["a"]}),
        ([Point()], [{"x_pos": 1, "trail": []}]),
    ],
    ids=repr,
)
def test_a_value_has_this_json_form(value: Any, expected: Any) -> None:
    made = to_json_value(value)
    assert made == expected
    assert json.loads(json.dumps(made)) == made


class ModelWithBytes(BaseModel):
    raw_bytes: bytes


@dataclass
class DataclassWithBytes:
    raw_bytes: bytes


@pytest.mark.parametrize(
    ("kind", "raw", "base64"),
    [
        (DataclassWithBytes, b"abc", "YWJj"),
        (DataclassWithBytes, b"\xfb\xff", "+/8="),
        (ModelWithBytes, b"abc", "YWJj"),
        (ModelWithBytes, b"\xfb\xff", "+/8="),
    ],
)
def test_bytes_inside_objects_of_other_types_are_base64_too(kind: Any, raw: bytes, base64: str) -> None:
    assert to_json_value({"given": kind(raw_bytes=raw)}) == {"given": {"raw_bytes": base64}}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_without_json_form_are_refused_with_their_place(bad: float) -> None:
    with pytest.raises(ValueError, match=r"^value: .*no JSON form"):
        to_json_value(bad)
    with pytest.raises(ValueError, match=r"^emit\.rows\[1\]\.cell: .*no JSON form"):
        to_json_value({"rows": [1, {"cell": bad}]}, where="emit")


def test_nan_inside_objects_of_other_types_is_refused_too() -> None:
    class Reading(BaseModel):
        degrees: float

    @dataclass
    class Measured:
        degrees: float

    for made in (Reading(degrees=math.nan), Measured(math.inf), (math.nan,), {math.nan}, [Reading(degrees=math.inf)]):
        with pytest.raises(ValueError, match="no JSON form"):
            to_json_value(made, where="result")


def test_objects_and_keys_without_json_form_are_refused_with_their_place() -> None:
    with pytest.raises(ValueError, match=r"^result\.a\[0\]: object has no JSON form"):
        to_json_value({"a": [object()]}, where="result")
    with pytest.raises(ValueError, match=r"^result\.a: the key .* has no JSON form"):
        to_json_value({"a": {object(): 1}}, where="result")


def test_containers_are_copied() -> None:
    given: dict[str, Any] = {"rows": [{"n": 1}], "pair": ([1],)}
    made = to_json_value(given)
    given["rows"][0]["n"] = 2
    given["rows"].append(3)
    given["pair"][0].append(2)
    given["more"] = 1
    assert made == {"rows": [{"n": 1}], "pair": [[1]]}


def test_subclasses_of_plain_types_become_plain() -> None:
    class Name(str):
        __slots__ = ()

    made = to_json_value({Name("k"): Name("v"), "flag": type("Rows", (list,), {})([1])})
    assert made == {"k": "v", "flag": [1]}
    assert all(type(key) is str for key in made)
    assert type(made["k"]) is str


def test_the_error_codes_are_the_protocols() -> None:
    codes = """model_rate_limited model_unavailable model_rejected model_stream_dropped model_filtered tool_failed
    tool_unknown tool_invalid_arguments tool_denied tool_timeout tool_outcome_unknown output_invalid limit_steps
    limit_tokens limit_cost limit_requests limit_depth limit_fan_out limit_time subagent_failed state_invalid
    state_conflict recovery_limit cancelled internal"""
    assert sorted(codes.split()) == sorted(ERROR_CODES)


def test_the_protocol_types_are_these() -> None:
    types = """text_delta thinking tool_start tool_end subagent_start subagent_end custom state_patch error output
    run_start run_end run_pause run_resume step_start step_end tool_input_start tool_input_delta tool_input_end
    tool_output_delta output_delta message approval_request approval_response"""
    assert list(CHUNK_TYPES) == types.split()
