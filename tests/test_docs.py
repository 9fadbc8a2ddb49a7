"""The documentation is true: its code runs, and prints what stands below it; its tables list what there is."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, cast, get_args

import anyio
import pytest

import helix
from helix import chunks as c
from helix.executor import EXECUTE_OPTIONS
from helix.limits import DEFAULT_LIMITS
from helix.tools import make_tool

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """Language, text and line of each code block."""
    text = page.read_text(encoding="utf-8")
    return [(found[1], found[2], text[: found.start()].count("\n") + 2) for found in _BLOCK.finditer(text)]


def table(page: Path, first_column: str) -> dict[str, list[str]]:
    """The rows of the tables with that first heading, by the name in their first column."""
    rows: dict[str, list[str]] = {}
    inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            inside = False
        elif inside:
            rows[cells[0].strip("`")] = cells[1:]
        inside = inside or cells[:1] == [first_column]
    rows.pop("---", None)
    assert rows, f"{page.name} has no table of {first_column}"
    return rows


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_runs_and_prints_what_stands_below_it(page: Path) -> None:
    """Blocks marked `python` run in order, in one namespace and one event loop; `text` right below is what they print.

    `py` marks fragments, which only have to be well-formed.
    """
    anyio.run(_run_page, page)


async def _run_page(page: Path) -> None:
    module = sys.modules["documented"] = ModuleType("documented")
    found = blocks(page)
    for (language, code, line), (below, printed, _) in zip(found, [*found[1:], ("", "", 0)], strict=True):
        if language == "py":
            compile(code, page.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        if language != "python":
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            await _run_block("\n" * (line - 1) + code, page, module)
        if below == "text":
            assert [row.rstrip() for row in output.getvalue().splitlines()] == printed.splitlines(), f"line {line}"


async def _run_block(code: str, page: Path, module: ModuleType) -> None:
    compiled = compile(code, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    outcome: Any = eval(cast(CodeType, compiled), module.__dict__)
    if inspect.isawaitable(outcome):
        await outcome


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_readme_has_the_two_commands_as_they_are_promised() -> None:
    commands = [code.strip() for language, code, _ in blocks(ROOT / "README.md") if language == "sh"]
    assert "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/helix demo" in commands
    assert ".venv/bin/python -m pytest -q" in commands


def test_the_readme_links_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/[^)]+\.md)\)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert linked == {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}


def test_the_chunk_table_has_every_type_with_all_its_fields() -> None:
    rows = table(ROOT / "docs" / "streaming.md", "type")
    assert set(rows) == set(c.CHUNK_TYPES) | {"stream_end", "resync", "unknown"}
    common = {field.name for field in fields(c.ChunkBase)}
    for name, kind in (c.CHUNK_TYPES | {"stream_end": c.StreamEnd, "resync": c.Resync}).items():
        listed = re.findall(r"`(\w+)\??`", rows[name][0])
        assert set(listed) == {field.name for field in fields(kind)} - common | _own_common(kind), name


def _own_common(kind: type[Any]) -> set[str]:
    """`timestamp` of what is no chunk of the log."""
    return set() if issubclass(kind, c.ChunkBase) else {f.name for f in fields(kind)} & {"timestamp"}


def test_the_error_codes_are_all_listed() -> None:
    rows = table(ROOT / "docs" / "agents-and-tools.md", "code")
    assert {code for row in rows for code in re.findall(r"\w+", row)} == set(get_args(c.ErrorCode))


def test_the_limits_are_all_listed_with_their_defaults() -> None:
    rows = table(ROOT / "docs" / "agents-and-tools.md", "limit")
    assert set(rows) == {field.name for field in fields(helix.Limits)}
    for name, (_, default, _) in rows.items():
        expected = getattr(DEFAULT_LIMITS, name)
        assert default == ("none" if expected is None else str(expected))


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("argument of Agent", set(inspect.signature(helix.Agent).parameters)),
        (
            "argument of @tool",
            set(inspect.signature(make_tool).parameters) - {"function", "options"}
            | {"timeout", "retries", "replay", "sequential", "finishes", "max_result_bytes"}
            | {"requires_approval", "runs_on", "approval_timeout"},
        ),
        ("option of a run", set(EXECUTE_OPTIONS)),
        ("setting", {field.name for field in fields(helix.ModelSettings)}),
    ],
)
def test_the_arguments_are_all_listed(heading: str, names: set[str]) -> None:
    rows = table(ROOT / "docs" / "agents-and-tools.md", heading)
    assert {name for row in rows for name in re.findall(r"\w+", row)} == names


def test_the_javascript_reader_reads_a_run() -> None:
    node = shutil.which("node")
    if node is None:
        assert "CI" not in os.environ, "node is not installed"
        pytest.skip("node is not installed")
    [script] = [code for language, code, _ in blocks(ROOT / "docs" / "streaming.md") if language == "js"]
    log = [
        c.TextDelta("run", "editor", "Hel", sequence=1),
        c.TextDelta("run.writer-1", "writer", "x\ny", sequence=2),
        c.TextDelta("run", "editor", "lo", sequence=3),
        c.ToolEnd("run", "editor", "call_1", "writer", None, error="no luck", sequence=4),
    ]
    done = subprocess.run(
        [node, "--input-type=module", "--eval", script],
        input=b"".join(helix.chunk_to_json(chunk) + b"\n" for chunk in log),
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.decode() == "Hello"
    assert done.stderr.decode() == "4 editor: writer failed: no luck\n"
