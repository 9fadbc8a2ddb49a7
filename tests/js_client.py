"""The client that the Helix Agents page shows: fast-json-patch under node, in validating mode."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

HERE = Path(__file__).parent / "js"


def validate_with_fast_json_patch(
    initial: Any, list_of_patches: Sequence[Sequence[Any]], list_of_expected_documents: Sequence[Any]
) -> None:
    """Fails unless fast-json-patch, applying one list of operations after the other to `initial`, gives each document.

    Without node or npm the test is skipped; under CI it fails.
    """
    validate_runs([(initial, list_of_patches, list_of_expected_documents)])


def validate_runs(runs: Sequence[tuple[Any, Sequence[Sequence[Any]], Sequence[Any]]]) -> None:
    """The same for many runs in one node process."""
    for _, patches, expected in runs:
        assert len(patches) == len(expected)
    entries = [dict(zip(("initial", "patches", "expected"), run, strict=True)) for run in runs]
    assert _run("apply_patches.mjs", entries) == f"ok {sum(len(patches) for _, patches, _ in runs)}"


def fold_streams(streams: Sequence[tuple[Sequence[bytes], dict[str, Any]]]) -> None:
    """Fails unless each stream, as lines of JSON, folds to these documents of agents; it may begin with a resync."""
    entries = [{"lines": [line.decode() for line in lines], "expected": expected} for lines, expected in streams]
    assert _run("fold_streams.mjs", entries) == f"ok {sum(len(expected) for _, expected in streams)}"


def _run(script: str, given: Any) -> str:
    """What a script says of its input."""
    done = subprocess.run(
        [_node(), script],
        input=json.dumps(given, allow_nan=False),
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@functools.cache
def _node() -> str:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        _unavailable("node and npm are not installed")
    if not (HERE / "node_modules" / "fast-json-patch" / "package.json").exists():
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        installed = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=120)
        if installed.returncode != 0:
            _unavailable(f"npm ci failed: {installed.stderr.strip()[-300:]}")
    return node


def _unavailable(why: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"fast-json-patch cannot run: {why}")
    pytest.skip(f"fast-json-patch cannot run: {why}")
