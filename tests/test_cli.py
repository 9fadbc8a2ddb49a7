"""The command line, through real processes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from tests import recorded, replay

HELIX = [sys.executable, "-m", "helix.cli"]
SECONDS = 60
"""How long a command may take before its test fails."""

AGENTS = '''
import time

from pydantic import BaseModel

from helix import Agent, ToolContext, tool
from helix.testing import Call, ScriptedModel, Turn


class City(BaseModel):
    name: str


@tool
async def look(ctx: ToolContext, place: str) -> str:
    """Look."""
    ctx.emit("progress", {"seen": 1})
    ctx.write("two lines\\nof output\\n")
    return "found"


@tool
def broken() -> str:
    """Fail."""
    raise ValueError("no luck")


@tool
def get_capital(country: str) -> str:
    """The capital of a country."""
    return "London"


@tool
def blocking() -> str:
    """Does not look whether it was cancelled."""
    time.sleep(300)
    return ""


def scripted(*turns, **options):
    return Agent("helper", model=ScriptedModel(list(turns)), **options)


answers = scripted(Turn(text="I look.", calls=[Call("look", place="x")]), "the answér\\n in two lines", tools=[look])
echo = Agent("echo", model=ScriptedModel(lambda request: request.messages[-1].text))
structured = scripted(Turn(output={"name": "Zürich"}), output_type=City)
failing = scripted(Turn(text="half", fail="model_rejected"))
stumbling = scripted(Turn(calls=[Call("broken")]), "sorry", tools=[broken])
stalling = scripted(Turn(text="I think", stall=True))
stuck = scripted(Turn(calls=[Call("blocking")]), tools=[blocking])
endless = scripted(Turn(text=["word "] * 100_000, stall=True))
child = Agent("child", description="Helps.")
parent = Agent(
    "parent",
    sub_agents=[child],
    model=ScriptedModel({"parent": [Turn(calls=[Call("child", input="go")]), "done"], "child": ["child's words"]}),
)
capitals = Agent("capitals", tools=[get_capital])
needs_key = Agent("needs_key", model="openai:gpt-4o-mini")
misnamed = Agent("misnamed", model="opnai:gpt-4o-mini")
number = 3
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mod.py").write_text(AGENTS)
    return tmp_path


def environment(**extra: str) -> dict[str, str]:
    hidden = ("OPENAI_API_KEY", "OPENAI_BASE_URL")
    return {name: value for name, value in os.environ.items() if name not in hidden} | extra


def helix(
    *arguments: str, cwd: Path, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*HELIX, *arguments],
        cwd=cwd,
        input=stdin.encode(),
        capture_output=True,
        timeout=SECONDS,
        env=environment() if env is None else env,
        check=False,
    )


def chunks_in(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


# --- run: the answer


def test_standard_output_is_the_answer_and_a_newline_and_nothing_else(folder: Path) -> None:
    done = helix("run", "mod:answers", "go", cwd=folder)
    assert done.returncode == 0
    assert done.stdout == "the answér\n in two lines\n".encode()


def test_progress_completion_and_tokens_are_told_on_standard_error(folder: Path) -> None:
    told = helix("run", "mod:answers", "go", cwd=folder).stderr.decode().splitlines()
    assert told[:6] == [
        "helper: ▷ go",
        "helper: I look.",
        "helper: → look(place=x)",
        'helper:   progress {"seen":1}',
        "helper:   look | two lines",
        "helper:   look | of output",
    ]
    assert told[6].startswith("helper: ✓ look")
    assert told[7:] == ["helper: the answér", "helper:  in two lines", "helper: ■ completed", "[36 tokens]"]


def test_a_structured_output_is_json(folder: Path) -> None:
    done = helix("run", "mod:structured", "go", cwd=folder)
    assert done.stdout == '{"name":"Zürich"}\n'.encode()


def test_the_lines_of_a_child_have_its_path(folder: Path) -> None:
    told = helix("run", "mod:parent", "go", cwd=folder).stderr.decode()
    assert "parent: → child(input=go)" in told
    assert "parent › child-1: child's words" in told
    assert "parent: ✓ child" in told


def test_a_failed_tool_is_told_and_the_run_goes_on(folder: Path) -> None:
    done = helix("run", "mod:stumbling", "go", cwd=folder)
    assert (done.returncode, done.stdout) == (0, b"sorry\n")
    assert "helper: ✗ broken: ValueError: no luck" in done.stderr.decode()


def test_a_failed_run_says_why_and_answers_nothing(folder: Path) -> None:
    done = helix("run", "mod:failing", "go", cwd=folder)
    assert (done.returncode, done.stdout) == (1, b"")
    assert "helper: ✗ failed (model_rejected): scripted failure: model_rejected" in done.stderr.decode()


@pytest.mark.parametrize("arguments", [["-"], []])
def test_the_prompt_may_come_from_standard_input(folder: Path, arguments: list[str]) -> None:
    assert helix("run", "mod:echo", *arguments, cwd=folder, stdin="from stdin\n").stdout == b"from stdin\n"


def test_an_agent_may_be_named_by_its_file(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    assert helix("run", "../mod.py:echo", "hi", cwd=folder / "elsewhere").stdout == b"hi\n"


def test_files_are_attached_to_the_prompt(folder: Path) -> None:
    (folder / "cat.png").write_bytes(b"\x89PNG")
    (folder / "notes.txt").write_text("n")
    done = helix("run", "mod:echo", "Look:", "--attach", "cat.png", "--attach", "notes.txt", cwd=folder)
    assert done.stdout.decode() == "Look:\n[image: cat.png]\n[file: notes.txt]\n"
    assert "[image: cat.png]" in done.stderr.decode()


def test_a_person_at_a_terminal_sees_the_words_of_every_step(folder: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*HELIX, "run", "mod:answers", "go"], cwd=folder, stdout=theirs, stderr=subprocess.DEVNULL, env=environment()
    )
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 1000):
            seen += data
    except OSError:  # how Linux tells the end of a terminal
        pass
    os.close(ours)
    assert process.wait(SECONDS) == 0
    assert seen.decode().replace("\r\n", "\n") == "I look.\nthe answér\n in two lines\n"


# --- run: the chunks


def test_json_prints_every_chunk_as_a_line(folder: Path) -> None:
    done = helix("run", "mod:answers", "go", "--json", cwd=folder)
    chunks = chunks_in(done.stdout)
    assert [chunk["_sequence"] for chunk in chunks] == list(range(1, len(chunks) + 1))
    assert (chunks[0]["type"], chunks[-1]["type"]) == ("run_start", "run_end")


def test_a_saved_log_is_accepted_by_check(folder: Path) -> None:
    assert helix("run", "mod:parent", "go", "--save", "run.jsonl", cwd=folder).stdout == b"done\n"
    judged = helix("check", "run.jsonl", cwd=folder)
    count = len((folder / "run.jsonl").read_bytes().splitlines())
    assert (judged.returncode, judged.stdout.decode()) == (0, f"ok: {count} chunks, 2 agents, completed\n")


def test_a_log_that_cannot_be_written_is_an_error(folder: Path) -> None:
    done = helix("run", "mod:answers", "go", "--save", "no/such/folder.jsonl", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.decode() == "helix: --save: no/such/folder.jsonl: No such file or directory\n"
    assert helix("run", "mod:answers", "go", "--save", "/dev/full", cwd=folder).returncode == 1


def test_a_file_is_written_over_only_if_told_to(folder: Path) -> None:
    (folder / "run.jsonl").write_text("mine\n")
    refused = helix("run", "mod:answers", "go", "--save", "run.jsonl", cwd=folder)
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert refused.stderr == b"helix: --save: run.jsonl exists and is not empty; --force writes over it\n"
    assert (folder / "run.jsonl").read_text() == "mine\n"
    assert helix("run", "mod:answers", "go", "--save", "run.jsonl", "--force", cwd=folder).returncode == 0
    assert b"mine" not in (folder / "run.jsonl").read_bytes()


def test_one_agent_in_focus_and_only_some_chunks(folder: Path) -> None:
    done = helix("run", "mod:parent", "go", "--focus", "child", "--only", "text_delta", cwd=folder)
    assert done.stderr.decode().splitlines() == ["parent › child-1: child's words", "[54 tokens]"]
    absent = helix("run", "mod:parent", "go", "--focus", "uncle", cwd=folder)
    assert "helix: --focus: no agent 'uncle' in this run; its agents: child, parent\n" in absent.stderr.decode()
    wrong = helix("run", "mod:parent", "go", "--only", "text_delat", cwd=folder)
    assert wrong.returncode == 2
    assert "--only: no chunk type 'text_delat'. Did you mean 'text_delta'?" in wrong.stderr.decode()


def test_a_recorded_provider_conversation_end_to_end(folder: Path) -> None:
    answers = [replay.answer(exchange, chunking="random") for exchange in recorded.load("d05").exchanges]
    with replay.ReplayServer(answers) as server:
        env = environment(OPENAI_API_KEY="test", OPENAI_BASE_URL=f"{server.url}/v1")
        prompt = "What is the capital of the UK? Use the tool, then answer."
        done = helix(
            "run", "-m", "openai:gpt-4o-mini", "mod:capitals", prompt, "--save", "f.jsonl", cwd=folder, env=env
        )
        asked = [request.json for request in server.requests]
    assert done.stdout.decode() == "The capital of the UK is London.\n"
    assert done.returncode == 0
    assert "capitals: → get_capital(country=UK)" in done.stderr.decode()
    assert asked[0]["messages"][-1] == {"role": "user", "content": prompt}
    assert asked[1]["messages"][-1]["content"] == "London"
    judged = helix("check", "f.jsonl", cwd=folder)
    assert judged.returncode == 0
    assert judged.stdout.decode().endswith("1 agent, completed\n")


# --- run: usage and definition errors


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["mod", "x"], "'mod' names no agent; write module:agent or path/to/file.py:agent"),
        (["nope:agent", "x"], "nope: no module 'nope' in the current folder or on the Python path"),
        (["nope.py:agent", "x"], "nope.py: no such file"),
        (["mod:answer", "x"], "mod has no 'answer'. Did you mean 'answers'? Its agents: "),
        (["mod:number", "x"], "mod:number is not an Agent but an int. Its agents: "),
        (["mod:misnamed", "x"], "Unknown model 'opnai:gpt-4o-mini'."),
        (["mod:echo", "x", "-m", "what"], "Unknown model 'what'."),
        (["mod:needs_key", "x"], "OPENAI_API_KEY is not set"),
        (["mod:child", "x"], "agent 'child' has no model"),
        (["mod:echo", " "], "the prompt is empty"),
        (["mod:echo", "x", "--attach", "no.png"], "--attach: no.png: No such file or directory"),
        (["mod:echo", "x", "--attach", "empty.png"], "--attach: empty.png: Image: data= is empty"),
        (["mod:echo", "x", "--attach", "bad"], "--attach: bad: File: the ending of 'bad' does not say what it is"),
        (["bad_syntax:x", "x"], "bad_syntax cannot be imported: SyntaxError"),
        (["bad_import:x", "x"], "bad_import cannot be imported: ModuleNotFoundError: No module named 'absent'"),
        (["bad_agent:x", "x"], "bad_agent: agent name 'not usable'"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(folder: Path, arguments: list[str], line: str) -> None:
    (folder / "empty.png").touch()
    (folder / "bad_syntax.py").write_text("def")
    (folder / "bad_import.py").write_text("import absent")
    (folder / "bad_agent.py").write_text("from helix import Agent\nx = Agent('not usable')")
    done = helix("run", *arguments, cwd=folder)
    told = done.stderr.decode()
    assert done.returncode == 2
    assert done.stdout == b""
    assert told.startswith(f"helix: {line}")
    assert told.count("\n") == 1


def test_an_unknown_command_is_exit_code_2(folder: Path) -> None:
    assert helix("walk", cwd=folder).returncode == 2
    assert helix(cwd=folder).returncode == 2


def test_the_version(folder: Path) -> None:
    assert helix("--version", cwd=folder).stdout == b"helix 0.1.0\n"


# --- run: interrupted, and readers that leave


def start(*arguments: str, cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*HELIX, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )


def read_until(stream: IO[bytes] | None, wanted: bytes) -> None:
    assert stream is not None
    while wanted not in (line := stream.readline()):
        assert line, f"the stream ended without {wanted!r}"


def test_ctrl_c_cancels_and_the_log_ends(folder: Path) -> None:
    process = start("run", "mod:stalling", "go", "--json", "--save", "run.jsonl", cwd=folder)
    read_until(process.stdout, b'"text_delta"')
    process.send_signal(signal.SIGINT)
    rest, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert chunks_in(rest)[-1] | {"type": "run_end", "status": "cancelled"} == chunks_in(rest)[-1]
    assert b"Traceback" not in told
    judged = helix("check", "run.jsonl", cwd=folder)
    assert judged.stdout.decode().endswith("1 agent, cancelled\n")


def test_ctrl_c_does_not_wait_for_a_thread_that_cannot_be_stopped(folder: Path) -> None:
    process = start("run", "mod:stuck", "go", "--save", "run.jsonl", cwd=folder)
    read_until(process.stderr, "→ blocking".encode())
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert b"Traceback" not in told
    assert chunks_in((folder / "run.jsonl").read_bytes())[-1]["status"] == "cancelled"


@pytest.mark.parametrize("arguments", [["mod:endless", "go", "--json"], ["mod:answers", "go"]])
def test_a_reader_that_leaves_ends_it_without_a_traceback(folder: Path, arguments: Sequence[str]) -> None:
    process = start("run", *arguments, cwd=folder)
    assert process.stdout is not None
    if "--json" in arguments:
        assert process.stdout.read(1) == b"{"
    process.stdout.close()
    assert process.stderr is not None
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait(SECONDS) in (0, 1)
    assert b"Traceback" not in told
    assert b"BrokenPipe" not in told
    assert told.endswith(b" tokens]\n")


def test_standard_error_may_be_closed_too(folder: Path) -> None:
    process = start("run", "mod:answers", "go", cwd=folder)
    assert process.stderr is not None
    assert process.stdout is not None
    process.stderr.close()
    with process.stdout:
        assert process.stdout.read() == "the answér\n in two lines\n".encode()
    assert process.wait(SECONDS) == 0


# --- check


@pytest.fixture
def log(folder: Path) -> list[bytes]:
    return helix("run", "mod:parent", "go", "--json", cwd=folder).stdout.splitlines(keepends=True)


def test_check_reads_standard_input(folder: Path, log: list[bytes]) -> None:
    judged = helix("check", "-", cwd=folder, stdin=b"".join(log).decode())
    assert judged.stdout.decode() == f"ok: {len(log)} chunks, 2 agents, completed\n"


def test_check_names_file_line_and_fault_of_what_is_no_chunk(folder: Path, log: list[bytes]) -> None:
    for line, why in [
        (b"{half\n", "not a chunk: not valid JSON"),
        (b"[]\n", "not a chunk: expected a JSON object with a `type`"),
        (b'{"type":"text_delta","agentId":"a","agentType":"a"}\n', "malformed text_delta chunk: delta: "),
        (b"\xff\n", "not a chunk: not valid JSON"),
    ]:
        (folder / "bad.jsonl").write_bytes(b"".join([*log[:2], line, *log[2:]]))
        judged = helix("check", "bad.jsonl", cwd=folder)
        assert (judged.returncode, judged.stdout) == (2, b"")
        assert judged.stderr.decode().startswith(f"helix: bad.jsonl, line 3: {why}")


def test_check_lists_violations_with_rule_name_number_and_message(folder: Path, log: list[bytes]) -> None:
    (folder / "gap.jsonl").write_bytes(b"".join([*log[:2], *log[3:]]))
    judged = helix("check", "gap.jsonl", cwd=folder)
    told = judged.stdout.decode().splitlines()
    assert judged.returncode == 1
    assert told[0] == "gap.jsonl: rule 1 sequence-dense, chunk 4: the chunk has the number 4, expected 3"
    assert told[-1].endswith(("violation", "violations"))


def test_an_unfinished_log_is_legal_as_a_prefix_only(folder: Path, log: list[bytes]) -> None:
    (folder / "part.jsonl").write_bytes(b"".join(log[:5]))
    assert helix("check", "part.jsonl", cwd=folder).returncode == 1
    judged = helix("check", "--prefix", "part.jsonl", cwd=folder)
    assert (judged.returncode, judged.stdout) == (0, b"ok: 5 chunks, 1 agent, running\n")


def test_a_log_that_only_stops_is_told_how_to_be_checked(folder: Path, log: list[bytes]) -> None:
    (folder / "part.jsonl").write_bytes(b"".join(log[:5]))
    assert helix("check", "part.jsonl", cwd=folder).stdout.decode().endswith("check it with --prefix.\n")
    (folder / "part.jsonl").write_bytes(b"".join(log[:5])[:-20])
    judged = helix("check", "--prefix", "part.jsonl", cwd=folder)
    assert (judged.returncode, judged.stdout) == (2, b"")
    assert judged.stderr.startswith(b"helix: part.jsonl, line 5: the last line is cut off")


def test_a_file_that_is_not_there(folder: Path) -> None:
    judged = helix("check", "none.jsonl", cwd=folder)
    assert (judged.returncode, judged.stderr) == (2, b"helix: none.jsonl: No such file or directory\n")


# --- demo


def test_the_demo_shows_what_it_promises(folder: Path) -> None:
    shown = helix("demo", "--fast", cwd=folder)
    told = shown.stderr.decode()
    assert shown.returncode == 0
    assert json.loads(shown.stdout)["choice"] == "log"
    for line in [
        "boss › researcher-1: → search(query=queue)",
        'boss › researcher-2:   progress {"shelf":1,"of":3}',
        "boss › researcher-2:   search | 3 hits for 'log'",
        "boss › researcher-2 › reader-1: ✗ failed (model_unavailable): the page's host does not answer",
        "boss › researcher-2 › reader-2: ■ completed",
        "boss: ■ completed",
    ]:
        assert line in told.splitlines()
    assert told.index("researcher-2: ▷") < told.index("researcher-1: ✓ search")  # they work at the same time
    assert "state: replace /searches 1" in told
    totals = {line.split("  ")[0]: line for line in told.rpartition("\n\n")[2].splitlines()}
    assert totals["boss"].endswith("✓ completed                   145 of 594 tokens")
    assert totals["└─ researcher-2"].endswith("226 of 263 tokens")
