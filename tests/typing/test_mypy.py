"""mypy finds nothing in the files beside this one; pyright checks them with the repository (`.ci/run`)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FILES = sorted(HERE.glob("test_types_*.py"))
_WRONG_USE = re.compile(r"# type: ignore\[[a-z, -]+\] {2}# pyright: ignore\[\w+(, \w+)*\]")


def mypy(folder: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir"]
    return subprocess.run(
        [*command, str(folder), *map(str, files)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_mypy_agrees_with_every_assertion(tmp_path: Path) -> None:
    done = mypy(tmp_path, *FILES)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout == f"Success: no issues found in {len(FILES)} source files\n"


def test_mypy_tells_when_a_type_is_not_as_asserted_or_an_error_is_gone(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from typing import assert_type\n"
        "import helix\n"
        "assert_type(helix.run_sync(helix.Agent('a'), 'x').output, int)\n"
        "helix.Agent('a')  # type: ignore[call-arg]\n"
    )
    done = mypy(tmp_path, wrong)
    assert done.returncode == 1
    assert 'Expression is of type "str", not "int"' in done.stdout
    assert 'Unused "type: ignore" comment' in done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_wrong_use_is_an_error_to_both(path: Path) -> None:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if "# type:" in line or "# pyright:" in line:
            assert _WRONG_USE.search(line), f"line {number}: name the rule of mypy and that of pyright"
