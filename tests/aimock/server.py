"""aimock, a mock provider that others wrote, as a child process; its answers are set through its control API.

Its version is pinned in `package.json`; the first use installs it beside that file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any, NoReturn, Self

import pytest

HERE = Path(__file__).parent
PROGRAM = HERE / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"


class AIMock:
    """A running mock provider. `url` has no `/v1` at its end.

    Without node or npm the test is skipped; under CI it fails.
    """

    def __init__(self) -> None:
        command = [_node(), str(PROGRAM), "--port", "0", "--fixtures", str(HERE / "fixtures.json"), "--strict"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.url = self._read_url()

    def _read_url(self) -> str:
        assert self._process.stdout is not None
        said = ""
        for line in self._process.stdout:
            if "listening on " in line:
                return line.rpartition(" ")[2].strip()
            said += line
        self.close()
        raise AssertionError(f"aimock did not start: {said}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def play(self, *fixtures: dict[str, Any]) -> None:
        """Forgets everything, and answers with these from now on: the first one that matches."""
        self._control("POST", "reset")
        self._control("POST", "fixtures", {"fixtures": list(fixtures)})

    def requests(self) -> list[dict[str, Any]]:
        """The body of every request since `play`, in order."""
        return [entry["body"] for entry in self._control("GET", "journal")]

    def _control(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}/__aimock/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)


def _node() -> str:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        _unavailable("node and npm are not installed")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20).stdout.strip()
    if [int(part) for part in version.lstrip("v").split(".")[:2]] < [20, 15]:
        _unavailable(f"it needs node 20.15 or later, and this is {version}")
    if not PROGRAM.exists():
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        installed = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=120)
        if installed.returncode != 0:
            _unavailable(f"npm ci failed: {installed.stderr.strip()[-300:]}")
    return node


def _unavailable(why: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"aimock cannot run: {why}")
    pytest.skip(f"aimock cannot run: {why}")
