"""`helix run` asks the person at the terminal; without one, it denies and does not wait."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from helix import Approve, ClientResult, Deny
from helix.chunks import ApprovalRequest
from helix.cli.ask import Asker, typed_line
from helix.cli.console import Console
from tests.test_terminal import Terminal

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


AGENTS = '''
from helix import Agent, tool
from helix.testing import Call, ScriptedModel, Turn


@tool(requires_approval=lambda ctx, arguments: f"{arguments['path']} is dear to somebody")
async def delete(path: str) -> str:
    """Delete a file."""
    return f"deleted {path}"


def last(request):
    return request.messages[-1].content if len(request.messages) > 1 else Turn(calls=[Call("delete", path="a.txt")])


clerk = Agent("clerk", tools=[delete], model=ScriptedModel(last))
'''


def request(kind: Any = "approval", reason: str | None = None) -> ApprovalRequest:
    return ApprovalRequest("r", "clerk", "r/call_1", "call_1", "delete", {"path": "a\x1b[2J"}, kind, reason)


async def ask(typed: list[str], asked: ApprovalRequest) -> tuple[Any, str]:
    """The answer, and what was written, when these lines are typed."""
    lines, out = iter(typed), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")

    def read() -> str:
        for line in lines:
            return line
        raise EOFError

    with anyio.fail_after(5):
        answer = await Asker(Console(out), read)(asked)
    return answer, out.buffer.getvalue().decode()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("typed", "kind", "answer"),
    [
        (["y"], "approval", Approve()),
        (["maybe", " YES "], "approval", Approve()),
        (["n", "too risky"], "approval", Deny("too risky")),
        (["n too risky"], "approval", Deny("too risky")),
        (["e", '{"path": "b"}'], "approval", Approve({"path": "b"})),
        (["e", "{", "[1]", "{}"], "approval", Approve({})),
        (["r", '"here"'], "client_tool", ClientResult("here")),
        (["y", "r", "[1]"], "client_tool", ClientResult([1])),
        (["n", ""], "client_tool", Deny()),
        ([], "approval", Deny("nobody answered at the terminal")),
        (["e"], "approval", Deny("nobody answered at the terminal")),
    ],
)
async def test_what_is_typed_is_the_answer(typed: list[str], kind: Any, answer: Any) -> None:
    assert (await ask(typed, request(kind)))[0] == answer


async def test_the_question_says_who_wants_what_and_why() -> None:
    _, written = await ask(["y"], request(reason="it is dear"))
    assert written.startswith("\nclerk wants to call delete\n  it is dear\n")
    assert "\x1b" not in written.replace("\\u001b", "")


async def test_questions_are_asked_one_at_a_time() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    answers: list[Any] = []
    lines = iter(["n first", "n second"])
    asker = Asker(Console(out), lambda: next(lines))

    async def one() -> None:
        answers.append(await asker(request()))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            tasks.start_soon(one)
    assert answers == [Deny("first"), Deny("second")]


def test_the_end_of_standard_input_is_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))
    assert typed_line() == "one"
    with pytest.raises(EOFError):
        typed_line()


def test_without_a_terminal_nobody_is_asked(tmp_path: Path) -> None:
    (tmp_path / "mod.py").write_text(AGENTS)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "helix.cli", "run", "mod:clerk", "go"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (
        0,
        "denied: there is nobody to ask: helix run asks at a terminal\n",
    )


@pytest.mark.parametrize(
    ("typed", "told"), [("y\r", "deleted a.txt"), ('e\r{"path": "b.txt"}\r', "b.txt"), ("n not mine\r", "not mine")]
)
def test_at_a_terminal_the_person_is_asked(tmp_path: Path, typed: str, told: str) -> None:
    (tmp_path / "mod.py").write_text(AGENTS)
    with Terminal("run", "--plain", "mod:clerk", "go", cwd=tmp_path) as terminal:
        terminal.until("a.txt is dear to somebody")
        terminal.until("[y]es, [n]o, [e]dit:")
        terminal.press(typed)
        assert terminal.end() == 0
        assert any(told in line for line in terminal.all())
