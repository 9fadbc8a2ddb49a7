"""`helix diff`: where two runs part, and what does not count as a difference."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

import helix
from helix import Agent, Chunk, ToolContext, chunk_to_json, tool
from helix import chunks as c
from helix.cli.compare import Difference, find_difference
from helix.testing import Call, ScriptedModel, Turn

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@tool
async def search(ctx: ToolContext, query: str) -> str:
    """Search."""
    ctx.emit("where", {"run": ctx.run_id, "call": ctx.tool_call_id, "session": ctx.session_id})
    ctx.write(f"looking for {query}\n")
    return f"{query} in {ctx.run_id}"


def boss(*, words: Sequence[str] = ("Bees ", "dance."), query: str = "bees", call_id: str | None = None) -> Agent[str]:
    bees = Agent("bees", description="Knows bees.", tools=[search])
    ants = Agent("ants", description="Knows ants.")
    calls = [
        Call("bees", id=call_id and f"{call_id}1", input="?"),
        Call("ants", id=call_id and f"{call_id}2", input="?"),
    ]
    script: Any = {
        "boss": [Turn(thinking="Hm.", text="I ask both.", calls=calls), "Dance and scent."],
        "bees": [Turn(calls=[Call("search", id=call_id and f"{call_id}3", query=query)]), Turn(text=words)],
        "ants": [Turn(text=["Ants ", "leave ", "scent."])],
    }
    return Agent("boss", sub_agents=[bees, ants], model=ScriptedModel(script))


async def log_of(agent: Agent[Any, Any, Any]) -> list[Chunk]:
    with anyio.fail_after(10):
        async with helix.stream(agent, "How?") as run:
            return await helix.collect(run)


def difference(left: Sequence[Chunk], right: Sequence[Chunk], **options: Any) -> Difference:
    found = find_difference(left, right, **options)
    assert found is not None
    return found


def said(log: Sequence[Chunk], words: str) -> int:
    """The number of the delta with those words."""
    [number] = [chunk.sequence for chunk in log if isinstance(chunk, c.TextDelta) and chunk.delta == words]
    return number


# --- what does not count


async def test_two_runs_of_the_same_script_are_the_same() -> None:
    left = await log_of(boss(call_id="call_of_one_provider_"))
    right = await log_of(boss(call_id="call_of_another_provider_"))
    assert left[0].agent_id != right[0].agent_id
    assert find_difference(left, right) is None


async def test_the_cut_into_deltas_does_not_count_unless_strict() -> None:
    left, right = await log_of(boss()), await log_of(boss(words=["Be", "es", " dance", "."]))
    assert find_difference(left, right) is None
    assert find_difference(left, right, strict=True) is not None


async def test_the_order_of_what_goes_on_at_the_same_time_does_not_count_unless_strict() -> None:
    left = await log_of(boss())
    ants = [chunk for chunk in left if chunk.agent_type == "ants"]
    at = left.index(ants[0])
    right = [*left[:at], *ants, *(chunk for chunk in left[at:] if chunk not in ants)]
    right = [replace(chunk, sequence=number) for number, chunk in enumerate(right, 1)]
    assert [chunk.type for chunk in left] != [chunk.type for chunk in right]
    assert find_difference(left, right) is None
    assert find_difference(left, right, strict=True) is not None


async def test_a_strict_comparison_still_takes_no_notice_of_ids_and_times() -> None:
    left = await log_of(boss(call_id="one_of_a_provider_"))
    texts = b"\n".join(chunk_to_json(chunk) for chunk in left).decode()
    texts = (
        texts.replace(left[0].agent_id, "f" * 32).replace("one_of", "two_of").replace('"timestamp":1', '"timestamp":2')
    )
    right: Any = [helix.parse_chunk(line) for line in texts.splitlines()]
    assert find_difference(left, right, strict=True) is None


async def test_ignored_fields_do_not_count() -> None:
    left = await log_of(boss())
    right = [
        replace(chunk, model="other:m") if isinstance(chunk, c.RunStart | c.StepStart) else chunk for chunk in left
    ]
    assert difference(left, right).fields == [("model", "scripted", "other:m")]
    assert find_difference(left, right, ignore=["model"]) is None


# --- what does


async def test_the_first_difference_is_found_where_it_begins() -> None:
    left, right = await log_of(boss()), await log_of(boss(words=["Bees ", "sing."]))
    found = difference(left, right)
    assert found.fields == [("delta", "Bees dance.", "Bees sing.")]
    assert found.left is not None
    assert found.left.agent.startswith("boss › bees-")
    assert found.left.sequence_at(len("Bees ")) == said(left, "dance.")
    assert found.others > 0  # the parent reads it


async def test_other_arguments_are_shown_by_their_path() -> None:
    left, right = await log_of(boss()), await log_of(boss(query="wasps"))
    found = difference(left, right, ignore=["delta"])
    assert found.fields == [("arguments.query", "bees", "wasps")]


async def test_a_log_that_stops_parts_at_the_first_chunk_that_it_lacks() -> None:
    log = await log_of(boss())
    for stop in range(1, len(log)):
        found = difference(log[:stop], log)
        if found.left is None:
            assert found.right is not None
            assert found.right.sequence == stop + 1
        else:
            assert found.left.sequence <= stop  # a text that goes on in the other


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda chunk: replace(chunk, result="other"), "result"),
        (lambda chunk: replace(chunk, error="no", error_code="tool_failed"), "error"),
        (lambda chunk: replace(chunk, tool_call_id="another"), "toolCallId"),
    ],
)
async def test_a_changed_field_is_the_difference(change: Any, path: str) -> None:
    left = await log_of(boss())
    right = [change(chunk) if isinstance(chunk, c.ToolEnd) and chunk.tool_name == "search" else chunk for chunk in left]
    found = difference(left, right, strict=True)
    assert path in [name for name, _, _ in found.fields]


def test_data_of_users_is_compared_as_it_is() -> None:
    def emitted(data: Any) -> list[Chunk]:
        return [c.RunStart("r", "a", [], "m", None, sequence=1), c.Custom("r", "a", "e", data, sequence=2)]

    same = {"timestamp": 1, "durationMs": 2, "agentId": "x"}
    assert find_difference(emitted(same), emitted(dict(same))) is None
    assert difference(emitted(same), emitted(same | {"timestamp": 3})).fields == [("data.timestamp", 1, 3)]
    assert [path for path, _, _ in difference(emitted([1, 2]), emitted([1])).fields] == ["data.1"]
    assert [path for path, _, _ in difference(emitted({"x": 1}), emitted(None)).fields] == ["data"]


def test_chunks_of_types_that_are_not_known_are_compared_too() -> None:
    def log(value: int) -> list[Any]:
        data = {"type": "hologram", "agent_id": "r", "value": value}
        return [c.RunStart("r", "a", [], "m", None, sequence=1), helix.parse_chunk(data)]

    assert find_difference(log(1), log(1)) is None
    found = difference(log(1), log(2))
    assert found.left is not None
    assert (found.left.type, found.fields) == ("hologram", [("value", 1, 2)])


# --- the command


def diff(folder: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "helix.cli", "diff", *arguments],
        cwd=folder,
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )


def save(path: Path, chunks: Sequence[Chunk]) -> bytes:
    data = b"".join(chunk_to_json(chunk) + b"\n" for chunk in chunks)
    path.write_bytes(data)
    return data


def test_the_command_shows_place_agent_type_and_both_values(tmp_path: Path) -> None:
    left, right = anyio.run(log_of, boss()), anyio.run(log_of, boss(words=["Bees ", "sing\x1b[31m."]))
    save(tmp_path / "a.jsonl", left)
    data = save(tmp_path / "b.jsonl", right)
    done = diff(tmp_path, "a.jsonl", "b.jsonl")
    numbers = [said(left, "dance."), said(right, "sing\x1b[31m.")]
    bees = next(chunk for chunk in left if chunk.agent_type == "bees").agent_id.rpartition(".")[2]
    assert done.returncode == 1
    assert done.stdout.decode().splitlines()[:7] == [
        "the first difference:",
        f"  chunk  {numbers[0]} of a.jsonl, {numbers[1]} of b.jsonl",
        f"  agent  boss › {bees}",
        "  type   text_delta",
        "  delta",
        "    a.jsonl: Bees dance.",
        "    b.jsonl: Bees sing\ufffd[31m.",
    ]
    assert diff(tmp_path, "a.jsonl", "-", stdin=data).returncode == 1
    same = diff(tmp_path, "b.jsonl", "-", stdin=data)
    assert (same.returncode, same.stdout.decode()) == (0, f"the same: {len(right)} chunks, 3 agents\n")


def test_a_long_text_is_shown_from_where_it_differs(tmp_path: Path) -> None:
    for name, word in (("a", "dance"), ("b", "sing")):
        save(tmp_path / name, anyio.run(log_of, boss(words=["x" * 500 + f" in the end bees {word}"])))
    told = diff(tmp_path, "a", "b").stdout.decode().splitlines()
    assert told[5:7] == ["    a: …xxxxxxxxxxxxx in the end bees dance", "    b: …xxxxxxxxxxxxx in the end bees sing"]


def test_a_chunk_that_one_log_lacks_is_told(tmp_path: Path) -> None:
    log = anyio.run(log_of, boss())
    save(tmp_path / "a", log[:1])
    save(tmp_path / "b", log)
    told = diff(tmp_path, "a", "b").stdout.decode()
    assert "  chunk  none of a, 2 of b\n" in told
    assert "  only   b has this step_start\n" in told


def test_what_cannot_be_read_is_exit_code_2(tmp_path: Path) -> None:
    save(tmp_path / "a", anyio.run(log_of, boss()))
    (tmp_path / "bad").write_bytes(b"{half\n")
    for arguments, words in (
        (("a", "none"), "none: No such file or directory"),
        (("bad", "a"), "bad, line 1: not a chunk"),
        (("-", "-"), "only one of the two logs can come from standard input"),
        (("a", "a", "--ignore", "modle"), "--ignore: no chunk has a field 'modle'. Did you mean 'model'?"),
    ):
        done = diff(tmp_path, *arguments)
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr.decode().startswith(f"helix: {words}")


def test_a_field_is_ignored_by_either_of_its_names(tmp_path: Path) -> None:
    log = anyio.run(log_of, boss())
    save(tmp_path / "a", log)
    save(
        tmp_path / "b", [replace(chunk, tool_name="other") if isinstance(chunk, c.ToolEnd) else chunk for chunk in log]
    )
    assert diff(tmp_path, "a", "b").returncode == 1
    assert diff(tmp_path, "a", "b", "--ignore", "tool_name").returncode == 0
    assert diff(tmp_path, "a", "b", "--ignore", "usage,toolName").returncode == 0
