"""The commands over a store, through real processes: kept, listed, shown, answered and stopped from anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helix import chunk_to_json, parse_chunk
from helix.chunks import PROTOCOL, ApprovalResponse, RunStart
from helix.store import NewRun
from helix.stores import open_store
from helix.testing import check_stream
from tests import services
from tests.test_cli import read_until
from tests.test_terminal import Terminal, assert_left_clean

SECONDS = 60
AGENTS = '''
import anyio
from helix import Agent, tool
from helix.testing import Call, ScriptedModel, Turn


@tool(requires_approval=lambda ctx, arguments: f"{arguments['path']} is dear to somebody")
async def delete(path: str) -> str:
    """Delete a file."""
    return f"deleted {path}"


@tool(runs_on="client")
async def locate() -> str:
    """Where the user is."""
    raise NotImplementedError


@tool
async def hang() -> str:
    """Wait for ever."""
    await anyio.sleep_forever()


def asks(*calls):
    def turn(request):
        told = [m.content for m in request.messages if m.role == "tool"]
        return f"I read {told}" if told else Turn(text="I ask.", calls=list(calls))
    return ScriptedModel(turn)


tools = [delete, locate, hang]
echo = Agent("echo", model=ScriptedModel(lambda request: request.messages[-1].content))
clerk = Agent("clerk", tools=tools, model=asks(Call("delete", path="a.txt")))
two = Agent("two", tools=tools, model=asks(Call("delete", path="a.txt"), Call("delete", path="b.txt")))
guide = Agent("guide", tools=tools, model=asks(Call("locate")))
hanging = Agent("hanging", tools=tools, model=asks(Call("hang")))
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mod.py").write_text(AGENTS)
    return tmp_path


def environment(url: str = "sqlite:///runs.db") -> dict[str, str]:
    return dict(os.environ) | {"HELIX_STORE": url}


def helix(*arguments: str, cwd: Path, url: str = "sqlite:///runs.db") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "helix.cli", *arguments],
        cwd=cwd,
        env=environment(url),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=False,
    )


def answer(*arguments: str, cwd: Path, code: int = 0) -> str:
    """What a command writes to standard output."""
    done = helix(*arguments, cwd=cwd)
    assert done.returncode == code, done.stderr
    return done.stdout


def refusal(*arguments: str, cwd: Path, url: str = "sqlite:///runs.db") -> str:
    """The one line of a command that could not do its work."""
    done = helix(*arguments, cwd=cwd, url=url)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("helix: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("helix: ").strip()


def newest(cwd: Path) -> dict[str, Any]:
    return json.loads(answer("runs", "--json", "--limit", "1", cwd=cwd))


def suspended(agent: str, cwd: Path) -> str:
    """The id of a run of that agent that is parked."""
    done = helix("run", f"mod:{agent}", "go", "--wait", "suspend", cwd=cwd)
    assert (done.returncode, done.stdout) == (3, "")
    run_id = str(newest(cwd)["run_id"])
    assert done.stderr.startswith(f"helix: run {run_id}\n")
    assert f"`helix approve {run_id}` answers" in done.stderr
    return run_id


# --- looking


def test_a_kept_run_is_listed_shown_and_replayed(folder: Path) -> None:
    assert answer("run", "mod:echo", "Hello.", cwd=folder) == "Hello.\n"
    run_id = newest(folder)["run_id"]
    heading, row = answer("runs", cwd=folder).splitlines()
    assert heading.split() == ["run", "agent", "status", "age", "chunks", "session"]
    assert row.split()[:3] == [run_id, "echo", "completed"]
    for name in (run_id, run_id[:6]):
        shown = answer("show", name, cwd=folder).splitlines()
        assert shown[0].startswith(f"run {run_id}, session ")
        assert shown[1].split()[:3] == ["echo", "✓", "completed"]
        assert shown[-1] == "Hello."
        replayed = helix("replay", name, cwd=folder)
        assert (replayed.returncode, replayed.stdout) == (0, "Hello.\n")
        assert "echo: ▷ Hello.\n" in replayed.stderr


def test_a_trimmed_run_is_shown_replayed_judged_and_goes_on(folder: Path) -> None:
    run_id = suspended("clerk", folder)
    assert answer("check", run_id, "--prefix", cwd=folder).endswith("suspended\n")
    assert answer("trim", run_id[:6], cwd=folder) == "3 deltas dropped\n"
    assert answer("trim", "--older-than", "0s", cwd=folder) == "0 deltas dropped\n"
    assert "suspended, trimmed up to " in answer("check", run_id, "--prefix", cwd=folder)
    assert "delete" in answer("show", run_id, cwd=folder)
    replayed = helix("replay", run_id, cwd=folder)
    assert replayed.returncode == 0
    assert "this run was trimmed" in replayed.stderr
    assert "clerk: I ask.\n" in replayed.stderr
    answer("approve", run_id, cwd=folder)
    resumed = helix("run", "mod:clerk", "--resume", run_id, cwd=folder)
    assert (resumed.returncode, resumed.stdout) == (0, "I read ['deleted a.txt']\n")
    assert "clerk: I ask.\n" in resumed.stderr
    assert "completed, trimmed up to " in answer("check", run_id, cwd=folder)
    assert "is no age" in helix("trim", "--older-than", "soon", cwd=folder).stderr


def test_a_trimmed_run_that_goes_on_is_saved_whole_and_streamed_behind_a_resync(folder: Path) -> None:
    run_id = suspended("clerk", folder)
    answer("trim", run_id, cwd=folder)
    answer("approve", run_id, cwd=folder)
    streamed = answer("run", "mod:clerk", "--resume", run_id, "--json", "--save", "log.jsonl", cwd=folder)
    (folder / "stream.jsonl").write_text(streamed)

    resync, *rest = map(json.loads, streamed.splitlines())
    assert (resync["type"], resync["snapshot"]["status"]) == ("resync", "suspended")
    assert rest[0]["_sequence"] == resync["floor"] + 1
    assert "resync, and what that stands for" in refusal("check", "stream.jsonl", cwd=folder)

    first, *kept = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    assert (first, kept[0]["type"], kept[-len(rest) :]) == (resync, "run_start", rest)
    floor = resync["floor"]
    judged = answer("check", "log.jsonl", cwd=folder)
    assert judged == f"ok: {len(kept)} chunks, 1 agent, completed, trimmed up to {floor}\n"
    assert answer("replay", "log.jsonl", cwd=folder) == "I read ['deleted a.txt']\n"
    assert answer("diff", "log.jsonl", "log.jsonl", cwd=folder).startswith(f"the same: {len(kept)} chunks")


def test_a_run_is_not_resumed_with_another_agent(folder: Path) -> None:
    run_id = suspended("clerk", folder)
    assert refusal("run", "mod:two", "--resume", run_id, cwd=folder) == (
        f"--resume: run {run_id} is one of agent 'clerk'; mod:two is 'two'"
    )


def test_runs_are_listed_by_session_and_by_status(folder: Path) -> None:
    answer("run", "mod:echo", "Hello.", cwd=folder)
    session = str(newest(folder)["session_id"])
    run_id = suspended("clerk", folder)
    listed = [json.loads(line) for line in answer("runs", "--json", cwd=folder).splitlines()]
    assert [run["agent_type"] for run in listed] == ["clerk", "echo"]
    assert answer("runs", "--session", session, cwd=folder).splitlines()[1].split()[1] == "echo"
    assert answer("runs", "--status", "suspended", cwd=folder).splitlines()[1].split()[0] == run_id
    none = helix("runs", "--status", "failed", cwd=folder)
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "helix: no such runs in this store\n")


def test_a_file_is_replayed_though_a_store_is_named(folder: Path) -> None:
    answer("run", "mod:echo", "Kept twice.", "--save", "log.jsonl", cwd=folder)
    assert answer("replay", "log.jsonl", cwd=folder) == "Kept twice.\n"


def talk(cwd: Path, *sessions: str) -> None:
    """A run in each session, one after the other."""
    code = "import anyio, sys, mod\nfrom helix import Executor, Session\nasync def main():\n"
    code += " async with Executor(store='sqlite:///runs.db') as executor:\n  for name in sys.argv[1:]:\n"
    code += "   await Session(mod.echo, executor, name).send(f'Hello, {name}.\\nHow are you?')\nanyio.run(main)"
    subprocess.run([sys.executable, "-W", "error", "-c", code, *sessions], cwd=cwd, check=True, timeout=SECONDS)


def test_sessions_are_listed_in_pages_newest_first(folder: Path) -> None:
    talk(folder, "monday", "tuesday", "wednesday", "monday")
    heading, *rows = answer("sessions", cwd=folder).splitlines()
    assert heading.split() == ["session", "runs", "status", "updated", "last", "run"]
    assert [row.split()[:3] for row in rows] == [
        ["monday", "2", "completed"],
        ["wednesday", "1", "completed"],
        ["tuesday", "1", "completed"],
    ]
    page = helix("sessions", "list", "--limit", "2", cwd=folder)
    assert [row.split()[0] for row in page.stdout.splitlines()] == ["session", "monday", "wednesday"]
    assert page.stderr == "helix: older ones: --before wednesday\n"
    assert answer("sessions", "--before", "wednesday", cwd=folder).splitlines()[1].split()[0] == "tuesday"
    listed = [json.loads(line) for line in answer("sessions", "--json", cwd=folder).splitlines()]
    assert [(item["session_id"], item["runs"]) for item in listed] == [("monday", 2), ("wednesday", 1), ("tuesday", 1)]
    none = helix("sessions", "--before", "tuesday", cwd=folder)
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "helix: no such sessions in this store\n")


def test_a_conversation_is_shown_in_pages(folder: Path) -> None:
    talk(folder, "monday", "monday")
    said = "user: Hello, monday.\n  How are you?\nassistant: Hello, monday.\n  How are you?\n"
    assert answer("sessions", "show", "monday", cwd=folder) == said * 2
    page = helix("sessions", "show", "mond", "--limit", "2", cwd=folder)
    assert (page.stdout, page.stderr) == (said, "helix: 2 older ones: --before 2\n")
    page = helix("sessions", "show", "mond", "--limit", "2", "--before", "2", "--json", cwd=folder)
    assert ([json.loads(line)["role"] for line in page.stdout.splitlines()], page.stderr) == (["user", "assistant"], "")
    session = str(newest_of("clerk", folder)["session_id"])
    assert answer("sessions", "show", session, cwd=folder) == (
        'user: go\nassistant: I ask.\n  → delete {"path":"a.txt"}\n'
    )


def newest_of(agent: str, cwd: Path) -> dict[str, Any]:
    suspended(agent, cwd)
    return newest(cwd)


def test_a_session_is_deleted_unless_one_of_its_runs_is_live(folder: Path) -> None:
    talk(folder, "monday", "tuesday", "monday")
    assert answer("sessions", "delete", "monday", cwd=folder) == "deleted: 2 runs of session monday\n"
    assert answer("sessions", "delete", "tues", cwd=folder) == "deleted: 1 run of session tuesday\n"
    assert answer("runs", cwd=folder) == ""
    with Terminal("run", "--plain", "mod:clerk", "go", cwd=folder, env=environment()) as terminal:
        terminal.until("[y]es, [n]o, [e]dit:")
        run = newest(folder)
        assert refusal("sessions", "delete", run["session_id"], cwd=folder) == (
            f"session '{run['session_id']}' has a live run, {run['run_id']}; wait for it or cancel it, then delete"
        )
        assert newest(folder)["run_id"] == run["run_id"]
        assert answer("cancel", run["run_id"], cwd=folder) == f"cancelled: {run['run_id']}\n"
        assert terminal.end() == 1
    assert answer("sessions", "delete", run["session_id"], cwd=folder).startswith("deleted: 1 run of")


def test_what_is_wrong_with_the_name_of_a_session_is_said(folder: Path) -> None:
    talk(folder, "monday", "monday-2")
    assert (
        refusal("sessions", "show", "munday", cwd=folder) == "no session 'munday' in this store. Did you mean 'monday'?"
    )
    assert refusal("sessions", "delete", "mond", cwd=folder) == (
        "2 sessions of this store begin with 'mond': monday-2, monday"
    )
    assert refusal("sessions", "shwo", "monday", cwd=folder) == (
        "sessions: no action 'shwo'. Did you mean 'show'? There are: list, show, delete"
    )
    assert refusal("sessions", "show", cwd=folder) == "sessions show: which session? Give its id"
    assert refusal("sessions", "list", "monday", cwd=folder) == "sessions list: takes no session"
    assert "a number of messages is wanted" in refusal("sessions", "show", "monday", "--before", "x", cwd=folder)


# --- answering


def test_one_request_is_approved_and_the_run_goes_on(folder: Path) -> None:
    run_id = suspended("clerk", folder)
    shown = answer("show", run_id, cwd=folder)
    assert f"? {run_id}/call_1\n" in shown
    assert '  clerk wants to call delete {"path":"a.txt"}\n  a.txt is dear to somebody\n' in shown
    assert answer("approve", run_id[:8], "--by", "ada", cwd=folder) == "approved: delete of clerk\n"
    assert "answered; whoever goes on with the run takes the answer" in answer("show", run_id, cwd=folder)
    assert refusal("approve", run_id, cwd=folder) == (
        f"nothing in run {run_id} waits for an answer; what was answered is not taken yet"
    )
    assert "is answered already" in refusal("deny", run_id, f"{run_id}/call_1", cwd=folder)
    assert answer("run", "mod:clerk", "--resume", run_id, cwd=folder) == "I read ['deleted a.txt']\n"
    assert "has completed; nothing waits" in refusal("approve", run_id, cwd=folder)


def test_of_several_requests_one_is_named(folder: Path) -> None:
    run_id = suspended("two", folder)
    first, second = f"{run_id}/call_1", f"{run_id}/call_2"
    assert refusal("approve", run_id, cwd=folder) == f"2 requests wait; say which: {first}, {second}"
    assert f"Did you mean '{first}'?" in refusal("approve", run_id, f"{run_id}/call1", cwd=folder)
    assert answer("approve", run_id, first, "--arguments", '{"path": "c.txt"}', cwd=folder)
    assert answer("deny", run_id, "too dear", cwd=folder) == "denied: delete of two\n"
    told = answer("run", "mod:two", "--resume", run_id, cwd=folder)
    assert told == "I read ['deleted c.txt', 'denied: too dear']\n"


def test_a_request_may_be_named_by_its_call(folder: Path) -> None:
    run_id = suspended("two", folder)
    assert answer("deny", run_id, "call_1", cwd=folder) == "denied: delete of two\n"
    assert f"'{run_id}/call_1' is answered already" in refusal("approve", run_id, "call_1", cwd=folder)
    assert answer("approve", run_id, "call_2", cwd=folder) == "approved: delete of two\n"
    assert answer("run", "mod:two", "--resume", run_id, cwd=folder) == "I read ['denied', 'deleted b.txt']\n"


def test_a_run_that_parks_is_resumed_as_one_that_parks(folder: Path) -> None:
    run_id = suspended("two", folder)
    assert answer("approve", run_id, "call_1", cwd=folder)
    assert answer("run", "mod:two", "--resume", run_id, cwd=folder, code=3) == ""
    assert "call_2\n  two wants to call delete" in answer("show", run_id, cwd=folder)


def test_a_clients_result_is_given(folder: Path) -> None:
    run_id = suspended("guide", folder)
    assert "waits for a client's result" in refusal("approve", run_id, cwd=folder)
    assert answer("approve", run_id, "--result", '"Oslo"', cwd=folder) == "answered: locate of guide\n"
    assert answer("run", "mod:guide", "--resume", run_id, cwd=folder) == "I read ['Oslo']\n"


@pytest.mark.parametrize("place", ["sqlite", "postgresql", "redis"])
def test_a_live_run_is_answered_from_another_process(folder: Path, place: str) -> None:
    for url in urls(place):
        with Terminal("run", "--plain", "mod:clerk", "go", cwd=folder, env=environment(url)) as terminal:
            terminal.until("[y]es, [n]o, [e]dit:")
            [run] = map(json.loads, helix("runs", "--json", cwd=folder, url=url).stdout.splitlines())
            done = helix("deny", run["run_id"], "not mine", cwd=folder, url=url)
            assert (done.returncode, done.stdout, done.stderr) == (0, "denied: delete of clerk\n", "")
            assert terminal.end() == 0
            assert "I read ['denied: not mine']" in terminal.all()


def urls(place: str) -> Iterator[str]:
    if place == "sqlite":
        yield "sqlite:///runs.db"
        return
    with services.postgres() if place == "postgresql" else services.redis_server() as url:
        yield url


# --- stopping


def test_a_live_run_is_cancelled_from_another_process(folder: Path) -> None:
    command = [sys.executable, "-m", "helix.cli", "run", "mod:hanging", "go"]
    with subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.PIPE) as process:
        read_until(process.stderr, b"hang()")
        run_id = newest(folder)["run_id"]
        assert answer("cancel", run_id, cwd=folder) == f"cancelled: {run_id}\n"
        assert process.wait(SECONDS) == 1
    assert "has cancelled already" in refusal("cancel", run_id, cwd=folder)


def test_a_live_run_is_told_something_and_interrupted_from_another_process(folder: Path) -> None:
    with Terminal("run", "--plain", "mod:clerk", "go", cwd=folder, env=environment()) as terminal:
        terminal.until("[y]es, [n]o, [e]dit:")
        run_id = newest(folder)["run_id"]
        for to in ([], ["--to", "clerk"], ["--to", run_id]):
            done = helix("send", run_id, "Be quick.", *to, cwd=folder)
            assert (done.returncode, done.stdout, done.stderr) == (0, "sent: clerk\n", "")
        assert "no agent 'clerc' in this run" in refusal("send", run_id, "Hello?", "--to", "clerc", cwd=folder)
        assert answer("interrupt", run_id, cwd=folder) == f"interrupted: {run_id}\n"
        assert terminal.end() == 1
    assert "is interrupted already" in refusal("interrupt", run_id, cwd=folder)
    done = helix("send", run_id, "And careful.", cwd=folder)
    assert "nobody runs it now (interrupted); Executor.recover() or resume() takes the message" in done.stderr
    assert answer("cancel", run_id, cwd=folder) == f"cancelled: {run_id}\n"
    assert "has cancelled" in refusal("send", run_id, "Too late.", cwd=folder)


def test_a_parked_run_is_cancelled(folder: Path) -> None:
    run_id = suspended("clerk", folder)
    assert answer("cancel", run_id, cwd=folder) == f"cancelled: {run_id}\n"
    assert answer("show", run_id, cwd=folder).splitlines()[1].split()[:3] == ["clerk", "⊘", "cancelled"]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_run_without_an_owner_is_marked_and_cancelled(folder: Path) -> None:
    async with open_store(f"sqlite:///{folder}/runs.db") as store:
        start = RunStart("lost", "clerk", [], "scripted", {}, protocol=PROTOCOL, sequence=1, timestamp=1)
        await store.create(NewRun("lost", "clerk"), [chunk_to_json(start)], owner="dead", lease=0.0)
    assert "running, no owner" in answer("runs", cwd=folder)
    assert answer("interrupt", "lost", cwd=folder) == "interrupted: lost\n"
    assert "is interrupted already" in refusal("interrupt", "lost", cwd=folder)
    assert answer("cancel", "lost", cwd=folder) == "cancelled: lost\n"
    done = helix("run", "mod:clerk", "--resume", "lost", cwd=folder)
    assert done.returncode == 2
    assert "has cancelled" in done.stderr


# --- what cannot work


def test_what_is_not_there_is_one_line_and_exit_code_2(folder: Path) -> None:
    assert refusal("runs", cwd=folder).startswith("no store there: sqlite:///runs.db")
    assert not (folder / "runs.db").exists()
    assert refusal("runs", cwd=folder, url="").startswith("no store is named; give --store URL, or set HELIX_STORE")
    assert "Did you mean 'sqlite'?" in refusal("runs", "--store", "sqlte:///x", cwd=folder)
    assert "forgotten when a command ends" in refusal("runs", "--store", "memory:", cwd=folder)
    assert "needs a place to stay" in refusal("run", "mod:clerk", "go", "--wait", "suspend", cwd=folder, url="")
    assert "no store is named" in refusal("run", "mod:clerk", "--resume", "x", cwd=folder, url="")
    assert "cannot be reached" in refusal("runs", cwd=folder, url="redis://127.0.0.1:1/0")
    (folder / "text.db").write_text("this is no database, but a text that is long enough to be looked at" * 20)
    assert "text.db" in refusal("runs", cwd=folder, url="sqlite:///text.db")


def test_an_unknown_run_is_told_with_what_is_near(folder: Path) -> None:
    run_id = suspended("clerk", folder)
    for command in ("show", "replay", "approve", "deny", "cancel"):
        assert refusal(command, f"{run_id[:-3]}xyz", cwd=folder) == (
            f"no run '{run_id[:-3]}xyz' in this store. Did you mean '{run_id}'?"
        )
    assert refusal("show", "zz", cwd=folder) == "no run 'zz' in this store. `helix runs` lists them"
    assert refusal("approve", run_id, "--arguments", "[1]", cwd=folder).startswith("--arguments: a JSON object")
    assert refusal("approve", run_id, "--arguments", "{", cwd=folder).startswith("--arguments: that is not JSON")


# --- the view asks


@pytest.mark.parametrize(
    ("typed", "told"), [("y\r", "deleted a.txt"), ('e\r{"path": "b.txt"}\r', "b.txt"), ("n not mine\r", "not mine")]
)
def test_the_view_makes_room_for_a_question(folder: Path, typed: str, told: str) -> None:
    with Terminal("run", "mod:clerk", "go", cwd=folder, env=environment()) as terminal:
        lines = terminal.until("[y]es, [n]o, [e]dit:")
        assert any("a.txt is dear to somebody" in line for line in lines)
        assert not any(line.startswith("──") for line in lines)  # the tree is away
        assert terminal.echoes()
        before = len(terminal.raw)
        assert newest(folder)["agent_type"] == "clerk"  # another process: time for several drawings
        terminal.press("maybe\r")
        terminal.until("answer with y, n (and a reason) or e")
        assert "──" not in terminal.raw[before:].decode(errors="replace")
        terminal.press(typed)
        assert terminal.end() == 0
        assert any(told in line for line in terminal.all())
        assert_left_clean(terminal)


def test_ctrl_c_at_a_question_cancels(folder: Path) -> None:
    with Terminal("run", "mod:clerk", "go", cwd=folder, env={"HELIX_STORE": ""}) as terminal:
        terminal.until("[y]es, [n]o, [e]dit:")
        terminal.press("\x03")
        assert terminal.end() == 130
        assert_left_clean(terminal)


def test_what_was_kept_is_a_whole_log(folder: Path) -> None:
    run_id = suspended("clerk", folder)
    answer("approve", run_id, "--by", "ada", cwd=folder)
    printed = answer("run", "mod:clerk", "--resume", run_id, "--json", cwd=folder)
    chunks = [parse_chunk(line) for line in printed.splitlines()]
    check_stream(chunks)
    assert [chunk.by for chunk in chunks if isinstance(chunk, ApprovalResponse)] == ["ada"]
