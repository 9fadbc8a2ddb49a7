"""`docs/protocol.md` is the contract as it is: every type and field, as the JSON Schema of the chunks has them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helix import chunks as c
from helix.testing.check import GRAMMAR
from tests.test_docs import table

PAGE = Path(__file__).parent.parent / "docs" / "protocol.md"
SCHEMA = c.chunk_schema()
OBJECTS: dict[str, Any] = SCHEMA["$defs"]
BASE = {"type", "agentId", "agentType", "timestamp", "_sequence"}


def rows(first: str) -> dict[str, str]:
    """The second cell of each row, by the first, of the tables whose first column is called so."""
    return {name: cells[0] for name, cells in table(PAGE, first).items()}


def fields(cell: str) -> set[str]:
    """The fields of a cell, those that may be left out with their `?`."""
    return set(re.findall(r"`(\w+\??)`", cell))


def described(schema: dict[str, Any]) -> set[str]:
    required = set(schema.get("required", ()))
    return {name if name in required else f"{name}?" for name in schema["properties"]}


def by_type() -> dict[str, dict[str, Any]]:
    members = [OBJECTS[reference["$ref"].rpartition("/")[2]] for reference in SCHEMA["oneOf"]]
    return {member["properties"]["type"]["const"]: member for member in members}


def test_every_type_is_there_with_every_field() -> None:
    told, known = rows("type"), by_type()
    assert set(told) == set(known) == set(c.CHUNK_TYPES) | {"stream_end", "resync"}
    for name, schema in known.items():
        own = described(schema) - ({"type"} if name in ("stream_end", "resync") else BASE)
        assert fields(told[name]) == own, name


def test_what_every_chunk_has() -> None:
    assert set(rows("field")) == BASE
    for name, schema in by_type().items():
        if name in c.CHUNK_TYPES:
            assert set(schema["required"]) >= BASE, name


@pytest.mark.parametrize(
    ("table", "row", "name"),
    [
        ("part", "user", "UserMessage"),
        ("part", "assistant", "AssistantMessage"),
        ("part", "tool", "ToolMessage"),
        ("part", "text, thinking, refusal", "TextPart"),
        ("part", "text, thinking, refusal", "ThinkingPart"),
        ("part", "text, thinking, refusal", "RefusalPart"),
        ("part", "tool_call", "ToolCall"),
        ("part", "image, audio, file", "Image"),
        ("part", "image, audio, file", "Audio"),
        ("part", "image, audio, file", "File"),
        ("part", "usage", "Usage"),
        ("object", "snapshot", "Snapshot"),
        ("object", "an agent", "AgentSnapshot"),
        ("object", "a call", "CallSnapshot"),
    ],
)
def test_the_objects_in_chunks_have_every_field(table: str, row: str, name: str) -> None:
    assert fields(rows(table)[row]) == described(OBJECTS[name])


def test_every_object_of_the_schema_is_in_the_tables() -> None:
    told = {"UserMessage", "AssistantMessage", "ToolMessage", "TextPart", "ThinkingPart", "RefusalPart", "ToolCall"}
    told |= {"Image", "Audio", "File", "Usage", "Snapshot", "AgentSnapshot", "CallSnapshot"}
    assert set(OBJECTS) - told == {kind.__name__ for kind in c.CHUNK_TYPES.values()} | {"StreamEnd", "Resync"}


def test_the_grammar_has_its_rules() -> None:
    page = PAGE.read_text(encoding="utf-8")
    grammar = page[page.index("## The grammar") : page.index("## Offsets")]
    assert [int(number) for number in re.findall(r"^(\d+)\. ", grammar, re.MULTILINE)] == [
        rule for rule in GRAMMAR if rule
    ]


def test_the_command_prints_the_schema() -> None:
    done = subprocess.run([sys.executable, "-m", "helix.cli", "schema"], capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout) == SCHEMA
