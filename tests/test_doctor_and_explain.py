"""`helix doctor` and `helix explain`, and the hints of the command line itself: real processes, real servers."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import helix
from helix.chunks import ERROR_CODES
from helix.cli import doctor
from helix.cli.explanations import CODES, EXCEPTIONS, RULES, SUB_RULES
from helix.testing import GRAMMAR
from tests.test_docs import ROOT, table

KEY = "sk-very-secret-0123456789"


def run(*arguments: str, columns: str = "100", **env: str) -> subprocess.CompletedProcess[str]:
    """The command, in an environment without keys and proxies but these."""
    hidden = (*doctor.KEYS, *doctor.SETTINGS, *doctor.PROXIES)
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [sys.executable, "-m", "helix.cli", *arguments],
        env=kept | {"COLUMNS": columns, "NO_PROXY": "*"} | env,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def findings(*arguments: str, **env: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and what the doctor found by name."""
    done = run("doctor", "--json", *arguments, **env)
    answer = json.loads(done.stdout)
    assert answer["ok"] == (done.returncode == 0)
    return done.returncode, {item["name"]: item for item in answer["findings"]}


# --- doctor


def test_a_sound_place_is_told_and_is_exit_code_0() -> None:
    done = run("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[-1] == "all is well"
    assert f"✓ pydantic {importlib.metadata.version('pydantic')}" in lines
    assert f"✓ trio trio {importlib.metadata.version('trio')}" in lines
    assert "· OPENAI_API_KEY not set" in lines
    assert "· none neither a key nor an address is set, so none is tried" in lines


def test_every_requirement_and_every_extra_is_looked_at() -> None:
    _, found = findings()
    requires = importlib.metadata.requires(doctor.DISTRIBUTION) or []
    assert {re.split("[<>=]", line)[0] for line in requires if "extra" not in line} <= set(found)
    extras = set(importlib.metadata.metadata(doctor.DISTRIBUTION).get_all("Provides-Extra") or ())
    assert set(doctor.EXTRAS) == extras - {"dev"}


class Server(BaseHTTPRequestHandler):
    """Refuses everybody, as a provider does without a key; notes what it was sent."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(f"{self.path} {self.headers}")
        self.send_response(401)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    seen: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Noting", (Server,), {"seen": seen})) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{http.server_port}", seen
        http.shutdown()
        thread.join()


def test_a_server_that_answers_is_reached_and_not_shown_the_key(server: tuple[str, list[str]]) -> None:
    where, seen = server
    code, found = findings(OPENAI_API_KEY=KEY, OPENAI_BASE_URL=f"http://{where}/v1")
    assert code == 0
    assert found["openai"]["status"] == "ok"
    assert found["openai"]["value"].startswith(f"http://{where}/v1 answers (HTTP 401, asked without a key) in ")
    assert seen[0].startswith("/v1")
    assert KEY not in "".join(seen)


def test_what_is_secret_is_never_shown(server: tuple[str, list[str]]) -> None:
    secrets = {
        "OPENAI_API_KEY": KEY,
        "OPENAI_BASE_URL": f"http://user:{KEY}@{server[0]}/{KEY}/v1?token={KEY}",
        "AZURE_OPENAI_ENDPOINT": KEY,
        "AZURE_OPENAI_API_KEY": f'"{KEY}"',
    }
    for arguments in (["doctor"], ["doctor", "--json"]):
        done = run(*arguments, **secrets)
        shown = done.stdout + done.stderr
        assert KEY not in shown
        assert KEY[3:9] not in shown
        assert done.returncode == 1
    _, found = findings(**secrets)
    assert found["openai"]["value"].startswith(f"http://{server[0]}/…/v1 answers")
    assert found["azure"]["value"] == "its address does not begin with http:// or https:// and a host"
    assert (found["OPENAI_API_KEY"]["status"], found["OPENAI_API_KEY"]["value"]) == ("ok", "set")
    assert found["AZURE_OPENAI_API_KEY"]["status"] == "broken"  # with the quotes of a shell or of an .env file


def test_a_server_that_is_not_there_is_told_with_the_reason() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    code, found = findings(OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1")
    assert code == 1
    assert found["openai"]["status"] == "broken"
    assert found["openai"]["value"].startswith(f"http://127.0.0.1:{port}/v1 cannot be reached (")
    assert "refused" in found["openai"]["value"]


def test_a_server_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        code, found = findings("--timeout", "0.2", OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1")
    assert code == 1
    assert found["openai"]["value"].endswith("cannot be reached (no answer in 0.2 s)")


def test_each_provider_with_a_key_or_an_address_is_asked(server: tuple[str, list[str]]) -> None:
    where, seen = server
    keys = {"ANTHROPIC_API_KEY": KEY, "GOOGLE_API_KEY": KEY}
    code, found = findings(
        ANTHROPIC_BASE_URL=f"http://{where}/a", GOOGLE_GEMINI_BASE_URL=f"http://{where}/g", GEMINI_API_KEY="", **keys
    )
    assert code == 0
    assert [found[name]["value"].split()[0] for name in ("anthropic", "google")] == [
        f"http://{where}/a",
        f"http://{where}/g",
    ]
    assert sorted(line.split()[0] for line in seen) == ["/a", "/g"]
    assert KEY not in "".join(seen)
    assert (found["GOOGLE_API_KEY"]["value"], found["GEMINI_API_KEY"]["value"]) == ("set", "not set")


def test_the_store_of_the_environment_is_opened_and_none_is_made(tmp_path: Path) -> None:
    assert findings()[1]["store"]["value"] == "HELIX_STORE is not set, so none is tried"
    url = f"sqlite:///{tmp_path}/runs.db"
    code, found = findings(HELIX_STORE=url)
    assert (code, found["store"]["status"]) == (0, "absent")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mod.py").write_text(
        "from helix import Agent\nfrom helix.testing import ScriptedModel\na = Agent('a', model=ScriptedModel(['b']))"
    )
    assert run("run", f"{tmp_path}/mod.py:a", "x", HELIX_STORE=url).returncode == 0
    code, found = findings(HELIX_STORE=url)
    assert (code, found["store"]["status"]) == (0, "ok")


@pytest.mark.parametrize(
    "url", [f"redis://:{KEY}@127.0.0.1:1/0", f"nope://{KEY}", KEY, f"postgresql://u:{KEY}@127.0.0.1:1/x"]
)
def test_a_store_that_cannot_be_opened_is_told_without_its_secrets(url: str) -> None:
    for arguments in (["doctor"], ["doctor", "--json"]):
        done = run(*arguments, HELIX_STORE=url)
        assert done.returncode == 1
        assert KEY not in done.stdout + done.stderr
        assert KEY[3:9] not in done.stdout + done.stderr
    assert findings(HELIX_STORE=url)[1]["store"]["status"] == "broken"


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("3.0", ">=3.0,<4", True),
        ("3.52.1", ">=3.0,<4", True),
        ("4.0.0", ">=3.0,<4", False),
        ("2.9", ">=3.0,<4", False),
        ("4.11.0rc1", ">=4.11", True),
        ("4.9", ">=4.11", False),
        ("1", "", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, wanted: str, fits: bool) -> None:
    assert doctor._fits(version, wanted) == fits


def test_a_missing_package_is_broken_with_the_command_that_mends_it() -> None:
    finding = doctor._dependency("no-such-package>=1.0")
    assert (finding.status, finding.advice) == ("broken", "pip install 'no-such-package>=1.0'")
    finding = doctor._dependency("pydantic>=99")
    assert finding.status == "broken"
    assert finding.value.endswith(", but >=99 is needed")


def test_a_missing_extra_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"cli": ("no-such-package",), "fast": ("trio", "no-such-package")})
    assert [(item.status, item.value, item.advice) for item in doctor._extras()] == [
        ("absent", "not installed", "pip install 'helix-agents[cli]'"),
        ("absent", "without no-such-package", "pip install 'helix-agents[fast]'"),
    ]


# --- explain


def test_every_code_exception_and_rule_has_an_explanation() -> None:
    assert set(CODES) == ERROR_CODES
    assert set(RULES) == set(GRAMMAR)
    assert set(SUB_RULES) <= {name for names in GRAMMAR.values() for name in names}
    public = (getattr(helix, name) for name in helix.__all__)
    errors = {kind for kind in public if isinstance(kind, type) and issubclass(kind, helix.HelixError)}
    assert set(EXCEPTIONS) == errors - {helix.HelixError, helix.RunError}
    for item in (*CODES.values(), *RULES.values()):
        assert item.meaning
        assert item.cause.endswith(".")
        assert item.cure.endswith(".")


def test_the_documentation_says_the_same() -> None:
    page = ROOT / "docs" / "agents-and-tools.md"
    assert {code: cells[0] for code, cells in table(page, "code").items()} == {
        code: item.meaning for code, item in CODES.items()
    }
    told = {name: cells[0] for name, cells in table(page, "exception").items()}
    assert told == {kind.__name__: text for kind, text in EXCEPTIONS.items()}


def test_a_code_is_explained_with_cause_and_cure() -> None:
    done = run("explain", "limit_steps", columns="60")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 60
    told = " ".join(done.stdout.split())
    item = CODES["limit_steps"]
    assert told == f"limit_steps: {item.meaning} Usual cause: {item.cause} What to do: {item.cure}"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("SessionBusy", "SessionBusy: The session's last run is still live or parked"),
        ("helix.SessionBusy", "What to do: wait for the session's last run"),
        ("run-end-missing", "run-end-missing (rule 2, the lives of agents): each agent has a run_end"),
        ("text-joined", "Usual cause: Lines were lost or edited; or a model adapter"),
        ("11", "rule 11, the conversation"),
        ("11", "cut-marked a cut step's message is marked as cut"),
    ],
)
def test_exceptions_and_rules_are_explained_too(code: str, words: str) -> None:
    done = run("explain", code)
    assert done.returncode == 0
    assert words in " ".join(done.stdout.split())


def test_without_a_code_all_are_listed() -> None:
    lines = [line.split() for line in run("explain", columns="200").stdout.splitlines()]
    first = [words[0] for words in lines if words]
    assert [name for name in ERROR_CODES if name not in first] == []
    assert [kind.__name__ for kind in EXCEPTIONS if kind.__name__ not in first] == []
    assert [name for names in GRAMMAR.values() for name in names if name not in first] == []


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("limit_step", " Did you mean 'limit_steps'?"),
        ("run-end-mising", " Did you mean 'run-end-missing'?"),
        ("SesionBusy", " Did you mean 'SessionBusy'?"),
        ("???", ""),
        ("12", ""),
    ],
)
def test_an_unknown_code_is_exit_code_2_and_names_the_nearest(code: str, hint: str) -> None:
    done = run("explain", code)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"helix: nothing is called {code!r}.{hint} `helix explain` lists all codes\n"


# --- the command line itself


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dif", "a", "b"], "no command 'dif'. Did you mean 'diff'?"),
        (["chekc"], "no command 'chekc'. Did you mean 'check'?"),
        (["check", "--prefx", "a"], "unknown argument '--prefx'. Did you mean '--prefix'?"),
        (["run", "mod:agent", "x", "--modle=y"], "unknown argument '--modle=y'. Did you mean '--model'?"),
        (["explain", "a", "b"], "unknown argument 'b'."),
    ],
)
def test_what_the_command_line_does_not_know_names_the_nearest(arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_every_command_stands_in_the_documentation() -> None:
    commands = re.findall(r"^ {4}(\w+)", run("--help").stdout, re.MULTILINE)
    pages = "".join(path.read_text("utf-8") for path in (*Path(ROOT / "docs").glob("*.md"), ROOT / "README.md"))
    assert {"run", "check", "diff", "explain", "doctor"} <= set(commands)
    assert [name for name in commands if f"helix {name}" not in pages] == []
