"""The live view as a person sees it: real commands under a pseudo-terminal, read through a terminal emulator."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pyte
import pytest
from wcwidth import wcswidth

SECONDS = 60
"""How long to wait for what must come."""

AGENTS = '''
import time
import anyio
from helix import Agent, ToolContext, tool
from helix.testing import Call, ScriptedModel, Turn


@tool
async def hang(place: str) -> str:
    """Wait for ever."""
    await anyio.sleep_forever()


@tool
async def stubborn() -> str:
    """Does not let itself be cancelled."""
    with anyio.CancelScope(shield=True):
        await anyio.sleep_forever()


def scripted(*turns, **options):
    return Agent("helper", model=ScriptedModel(list(turns)), **options)


WORDS = "\\x1b]0;stolen\\x07\\x1b[2J\\x1b[31m红色的字\\x1b[0m 你好 🚀👩‍👩‍👧 e\\u0301 \\u202eabc " * 3


@tool
def noisy() -> str:
    """Prints."""
    print("printed by a tool")
    return "ok"


two = scripted(Turn(text="I look.", calls=[Call("noisy")]), "The answer.\\n\\nIn two parts.", tools=[noisy])
hanging = scripted(Turn(text="I wait.", calls=[Call("hang", place="here")]), tools=[hang])
never = scripted(Turn(calls=[Call("stubborn")]), tools=[stubborn])
child = Agent("child", description="Helps.", tools=[hang])
kind = Agent("kind", description="Helps.")
failing = Agent("failing", description="Fails.")


def work(request):
    if len(request.messages) > 1 or request.agent_type == "kind":
        return WORDS
    return Turn(text=WORDS, calls=[Call("hang", place="红色的字 🚀")])


def tree(number):
    calls = [Call("kind", input="go"), Call("failing", input="go")] + [Call("child", input="go")] * number
    return Agent("tree", sub_agents=[child, kind, failing], model=ScriptedModel({
        "tree": [Turn(text="All of you.", calls=calls)] * 7 + ["Done."],
        "child": work, "kind": work, "failing": lambda request: Turn(text="No", fail="model_rejected"),
    }))


wide = tree(3)
crowd = Agent("crowd", sub_agents=[tree(28)], model=ScriptedModel({
    "crowd": [Turn(calls=[Call("tree", input=str(n)) for n in range(7)])],
    "tree": lambda request: Turn(text="All of you.", calls=[Call("child", input="go")] * 28),
    "child": work,
}))
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mod.py").write_text(AGENTS)
    return tmp_path


class Terminal:
    """A command with a terminal of its own.

    Attributes:
        screen: what is to be seen, and what has scrolled away.
        raw: every byte that was written to it.
    """

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        size: tuple[int, int] = (80, 24),
        stdout: int | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self._ours, theirs = pty.openpty()
        self.screen = pyte.HistoryScreen(*size, history=10_000, ratio=0.001)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._set_size(*size)
        hidden = ("CI", "NO_COLOR", "COLUMNS", "LINES", "OPENAI_API_KEY", "FORCE_COLOR")
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        self.process = subprocess.Popen(
            [sys.executable, *(arguments if arguments[0] == "-c" else ("-m", "helix.cli", *arguments))],
            cwd=cwd,
            stdin=theirs,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
            env=kept | {"TERM": "xterm-256color"} | (env or {}),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(2, termios.TIOCSCTTY, 0) and None,
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(SECONDS)
        os.close(self._ours)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def echoes(self) -> bool:
        """Whether what is typed is shown."""
        return bool(termios.tcgetattr(self._ours)[3] & termios.ECHO)

    def _read(self, deadline: float) -> bool:
        """Feeds what comes next; False at the end of what is written."""
        ready = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))[0]
        assert ready, f"nothing more came:\n{self}"
        try:
            data = os.read(self._ours, 100_000)
        except OSError:  # how Linux tells the end of a terminal
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def until(self, wanted: str | Callable[[list[str]], bool]) -> list[str]:
        """The screen, as soon as it is as wanted."""
        deadline = time.monotonic() + SECONDS
        while True:
            shown = self.lines()
            if any(wanted in line for line in shown) if isinstance(wanted, str) else wanted(shown):
                return shown
            assert self._read(deadline), f"it ended without {wanted}:\n{self}"

    def end(self) -> int:
        """The exit code, after all was read."""
        deadline = time.monotonic() + SECONDS
        while self._read(deadline):
            pass
        return self.process.wait(SECONDS)

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    def scrolled(self) -> Iterator[str]:
        for line in self.screen.history.top:
            yield "".join(line[column].data for column in range(self.screen.columns)).rstrip()

    def all(self) -> list[str]:
        """All that was ever written and not taken away again."""
        return [*self.scrolled(), *self.lines()]

    def __str__(self) -> str:
        return "\n".join(self.all())


def tree(lines: list[str]) -> list[str]:
    """The lines of the live tree."""
    start = next((index for index, line in enumerate(lines) if line.startswith("──")), len(lines))
    return [line for line in lines[start:] if line]


def assert_left_clean(terminal: Terminal) -> None:
    """No line of the live tree remained, and the cursor is back."""
    left = [line for line in terminal.all() if "Ctrl-C" in line or "──" in line.replace("├──", "")]
    assert left == []
    assert not terminal.screen.cursor.hidden
    assert terminal.echoes()


# --- run and demo


def test_the_demo_is_a_tree_while_it_runs_and_text_when_it_is_done(folder: Path) -> None:
    with Terminal("demo", cwd=folder) as terminal:
        shown = terminal.until(lambda lines: any("└─" in line and "working" in line for line in lines))
        assert shown[next(i for i, line in enumerate(shown) if line.startswith("──"))].endswith("Ctrl-C cancels ──")
        terminal.until("the page's host does not answer")
        assert terminal.end() == 0
        ended = terminal.all()
        assert_left_clean(terminal)
    assert "boss › researcher-2: A log is read by many, from wherever they are." in ended
    assert "boss › researcher-1 › reader-1: Page queue/2 says what one expects" in ended
    assert any(line.startswith("└─ researcher-2  ✓ completed") for line in ended)
    assert '  "choice": "log",' in ended


def test_the_answer_goes_to_standard_output_and_the_view_to_standard_error(folder: Path) -> None:
    ours, theirs = os.pipe()
    with Terminal("run", "mod:two", "go", cwd=folder, stdout=theirs) as terminal:
        os.close(theirs)
        assert terminal.end() == 0
        with open(ours, "rb") as pipe:
            assert pipe.read() == b"printed by a tool\nThe answer.\n\nIn two parts.\n"
        assert [line for line in terminal.all() if line][:2] == ["helper: I look.", "helper: The answer."]
        assert_left_clean(terminal)


def test_on_one_screen_the_answer_is_printed_once_as_ordinary_text(folder: Path) -> None:
    with Terminal("run", "mod:two", "go", cwd=folder) as terminal:
        assert terminal.end() == 0
        ended = "\n".join(terminal.all()).rstrip()
        assert_left_clean(terminal)
    assert ended.endswith("\nhelper  ✓ completed  36 tokens\n\nThe answer.\n\nIn two parts.")
    assert ended.count("The answer.") == 1
    assert "printed by a tool" in ended
    assert "helper: I look.\n" in ended


def test_json_on_standard_output_beside_the_view(folder: Path) -> None:
    ours, theirs = os.pipe()
    with Terminal("run", "mod:two", "go", "--json", cwd=folder, stdout=theirs) as terminal, open(ours, "rb") as pipe:
        os.close(theirs)
        terminal.until("✓ completed")
        assert terminal.end() == 0
        lines = [line for line in pipe.read().splitlines() if line.startswith(b"{")]
    assert json.loads(lines[-1])["type"] == "run_end"


def test_a_screen_that_changes_its_size_is_drawn_anew(folder: Path) -> None:
    with Terminal("run", "mod:wide", "go", cwd=folder) as terminal:
        terminal.until(lambda lines: sum("hang(" in line for line in lines) == 3)
        for columns, rows in [(44, 12), (100, 30), (60, 8)]:
            terminal.resize(columns, rows)
            shown = terminal.until(
                lambda lines, columns=columns: (
                    any(
                        line.startswith("──") and wcswidth(line) in (columns - 1, *range(20, columns)) for line in lines
                    )
                    and sum(line.startswith("──") for line in lines) == 1
                    and any("tree " in line for line in lines)
                )
            )
            assert all(wcswidth(line) < columns for line in shown)
        terminal.press("\x03")
        assert terminal.end() == 130
        assert [line for line in terminal.lines() if "Ctrl-C" in line] == []


def test_ctrl_c_once_cancels_and_shows_the_final_tree(folder: Path) -> None:
    with Terminal("run", "mod:hanging", "go", "--save", "run.jsonl", cwd=folder) as terminal:
        terminal.until("hang(here)")
        terminal.press("\x03")
        assert terminal.end() == 130
        ended = terminal.all()
        assert any(line.startswith("helper  ⊘ cancelled") for line in ended)
        assert_left_clean(terminal)
    assert b'"cancelled"' in (folder / "run.jsonl").read_bytes().splitlines()[-1]


def test_ctrl_c_twice_aborts_and_gives_the_cursor_back(folder: Path) -> None:
    with Terminal("run", "mod:never", "go", cwd=folder) as terminal:
        terminal.until("stubborn()")
        terminal.press("\x03")
        terminal.until("Ctrl-C again aborts")
        terminal.press("\x03")
        assert terminal.end() == 130
        assert not terminal.screen.cursor.hidden
        assert terminal.echoes()


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"CI": "true"}, {"TERM": "dumb"}, {}], ids=str)
def test_plain_lines_where_nothing_may_be_drawn(folder: Path, env: dict[str, str]) -> None:
    with Terminal("run", "mod:two", "go", *([] if env else ["--plain"]), cwd=folder, env=env) as terminal:
        assert terminal.end() == 0
        assert b"\x1b" not in terminal.raw
        told = [line for line in terminal.all() if line]
    assert "helper: → noisy()" in told
    assert told.count("The answer.") == 1
    assert told[-1] == "[36 tokens]"


def test_what_a_model_says_cannot_steer_the_terminal(folder: Path) -> None:
    with Terminal("run", "mod:wide", "go", cwd=folder) as terminal:
        shown = terminal.until(
            lambda lines: (
                any("failed" in line and "└─" not in line for line in lines)
                and sum("hang(红色的字 🚀)" in line for line in lines) == 3
            )
        )
        assert terminal.screen.title == ""
        assert "\u202e" not in "".join(shown)
        assert all(wcswidth(line) < 80 for line in shown)
        terminal.press("\x03")
        assert terminal.end() == 130
        assert any("红色的字 你好" in line for line in terminal.all())
        assert_left_clean(terminal)


def test_two_hundred_agents_at_once(folder: Path) -> None:
    with Terminal("run", "mod:crowd", "go", cwd=folder) as terminal:
        terminal.until(lambda lines: any("204 running" in line for line in tree(lines)) and len(tree(lines)) == 17)
        assert tree(terminal.lines())[-1].startswith("└─ … and ")
        terminal.press("\x03")
        assert terminal.end() == 130
        assert_left_clean(terminal)


def test_one_branch_in_focus(folder: Path) -> None:
    with Terminal("demo", "--focus", "researcher-2", cwd=folder) as terminal:
        assert terminal.end() == 0
        told = [line for line in terminal.all() if " › " in line]
        assert told
        assert all(line.startswith("boss › researcher-2") for line in told)
        live = terminal.raw.rpartition(b"cancels")[0].decode()  # what is below the last one is the whole tree
        assert "researcher-2" in live
        assert "researcher-1" not in live


def test_only_what_is_asked_for_is_told(folder: Path) -> None:
    with Terminal("run", "mod:two", "go", "--only", "tool_start,step_end", "--plain", cwd=folder) as terminal:
        assert terminal.end() == 0
        told = [line for line in terminal.all() if line.startswith("helper: ")]
    assert told[1] == "helper: → noisy()"
    assert told[0].startswith('helper: step_end {"step":1')


def test_without_rich_there_are_lines_and_a_hint_only_for_who_wants_the_view(folder: Path) -> None:
    code = "import sys; sys.modules['rich'] = None; from helix.cli import main; sys.exit(main())"
    with Terminal("-c", code, "run", "mod:two", "go", "--save", "run.jsonl", cwd=folder) as terminal:
        assert terminal.end() == 0
        assert "pip install" not in str(terminal)
        assert "helper: → noisy()" in terminal.all()
    with Terminal("-c", code, "replay", "run.jsonl", cwd=folder) as terminal:
        assert terminal.end() == 0
        assert "pip install 'helix-agents[cli]'" in str(terminal)
        assert "helper: → noisy()" in terminal.all()


# --- replay


@pytest.fixture
def log(folder: Path) -> Path:
    save = [sys.executable, "-m", "helix.cli", "run", "mod:two", "go", "--save", "run.jsonl"]
    subprocess.run(save, cwd=folder, check=True, capture_output=True, timeout=SECONDS)
    return folder / "run.jsonl"


def test_a_log_is_replayed_through_the_view(folder: Path, log: Path) -> None:
    with Terminal("replay", "run.jsonl", "--speed", "100", cwd=folder) as terminal:
        assert terminal.end() == 0
        ended = "\n".join(terminal.all()).rstrip()
        assert_left_clean(terminal)
    assert ended.startswith("helper: I look.")
    assert ended.endswith("\nhelper  ✓ completed  36 tokens\n\nThe answer.\n\nIn two parts.")


def test_a_log_is_replayed_step_by_step(folder: Path, log: Path) -> None:
    with Terminal("replay", "run.jsonl", "--step", cwd=folder) as terminal:
        terminal.until("1 of 5: any key goes on, q ends")
        assert "The answer." not in str(terminal)
        terminal.press(" ")
        shown = terminal.until("2 of 5")
        assert any("noisy()" in line for line in shown)
        terminal.press("x")
        terminal.until("3 of 5")
        terminal.press("q")
        assert terminal.end() == 0
        assert any(line.startswith("helper  ● running") for line in terminal.all())
        assert_left_clean(terminal)


def test_a_replay_ends_at_ctrl_c(folder: Path, log: Path) -> None:
    with Terminal("replay", "run.jsonl", "--step", cwd=folder) as terminal:
        terminal.until("1 of 5")
        terminal.press("\x03")
        assert terminal.end() == 130
        assert_left_clean(terminal)


def replay(*arguments: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "helix.cli", "replay", *arguments]
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, timeout=SECONDS, check=False)


def test_a_replay_without_a_terminal_is_lines_and_the_answer(folder: Path, log: Path) -> None:
    done = replay("run.jsonl", cwd=folder)
    assert (done.returncode, done.stdout) == (0, b"The answer.\n\nIn two parts.\n")
    assert "helper: → noisy()" in done.stderr.decode().splitlines()
    piped = replay("-", "--speed", "1000", cwd=folder, stdin=log.read_bytes())
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, done.stdout, done.stderr)
    assert replay("run.jsonl", "--step", cwd=folder, stdin=b"\n" * 9).stdout == done.stdout


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda data: b"", "bad.jsonl: the log is empty"),
        (lambda data: data[:-9], "bad.jsonl, line 13: the last line is cut off"),
        (lambda data: b"{}\n" + data, "bad.jsonl, line 1: not a chunk: expected a JSON object with a `type`"),
        (lambda data: data.partition(b"\n")[2], "bad.jsonl, chunk 2: no agent"),
        (lambda data: data + data, "bad.jsonl, chunk 1: agent"),
    ],
)
def test_what_is_no_log_is_one_line_and_exit_code_2(
    folder: Path, log: Path, change: Callable[[bytes], bytes], line: str
) -> None:
    (folder / "bad.jsonl").write_bytes(change(log.read_bytes()))
    done = replay("bad.jsonl", cwd=folder)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith(f"helix: {line}")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("speed", ["0", "-1", "nan", "inf", "fast"])
def test_a_speed_is_a_number_above_0(folder: Path, log: Path, speed: str) -> None:
    assert replay("run.jsonl", "--speed", speed, cwd=folder).returncode == 2
