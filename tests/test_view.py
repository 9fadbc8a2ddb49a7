"""The live tree as a model: chunks in, lines out, for any moment and any size of the screen."""

from __future__ import annotations

import importlib.util
import random
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wcwidth import wcswidth, wcwidth

from helix import chunks as c
from helix.cli.activity import count, elapsed
from helix.cli.cells import cells, cut, cut_start, fit, flat, wrap
from helix.cli.console import printable
from helix.cli.narrate import Focus, Narrator, Telling
from helix.cli.view import View
from helix.limits import Usage
from helix.messages import AssistantMessage, TextPart, ToolCall, UserMessage
from helix.outline import estimate

BEGIN = 1_700_000_000_000
USED = Usage(10, 5, 15, requests=1)


class Log:
    """Builds a log: each chunk gets its number, and the time of the log's clock."""

    def __init__(self) -> None:
        self.chunks: list[c.Chunk] = []
        self.now = BEGIN

    def add(self, *chunks: c.Chunk) -> Log:
        for chunk in chunks:
            chunk.sequence, chunk.timestamp = len(self.chunks) + 1, self.now
            self.chunks.append(chunk)
        return self

    def wait(self, seconds: float) -> Log:
        self.now += round(seconds * 1000)
        return self

    def start(self, agent_id: str, name: str, call: str | None = None) -> Log:
        parent = agent_id.rpartition(".")[0] or None
        if parent is not None:
            self.add(c.SubagentStart(parent, parent.rpartition(".")[2].partition("-")[0], name, agent_id, call or ""))
        return self.add(c.RunStart(agent_id, name, [UserMessage("go")], "a-model", {}, parent_id=parent))

    def step(self, agent_id: str, name: str, text: str = "", calls: list[str] | None = None) -> Log:
        """A whole model call, which asks for tools named `tool` with these call ids."""
        asked = [ToolCall(call, "tool", {"at": call}) for call in calls or []]
        message = AssistantMessage([*([TextPart(text)] if text else []), *asked])
        self.add(c.StepStart(agent_id, name, 1, 1, "a-model"))
        if text:
            self.add(c.TextDelta(agent_id, name, text))
        self.add(c.StepEnd(agent_id, name, 1, 1, "committed", USED, message=message, finish_reason="stop"))
        return self.add(*(c.ToolStart(agent_id, name, call.tool_call_id, "tool", {"at": "x"}) for call in asked))

    def end(self, agent_id: str, name: str, status: Any = "completed", error: str | None = None) -> Log:
        code: Any = "model_rejected" if error else None
        return self.add(c.RunEnd(agent_id, name, status, USED, USED, 1, self.now - BEGIN, error=error, error_code=code))

    def view(self, focus: str | None = None) -> View:
        view = View(Focus(focus))
        for chunk in self.chunks:
            view.take(chunk)
        return view

    def shown(self, width: int = 72, height: int = 24, focus: str | None = None, later: float = 0) -> list[str]:
        return [line.plain.rstrip() for line in self.view(focus).lines(width, height, self.now + round(later * 1000))]


def team(number: int) -> Log:
    """A boss and so many workers, who do nothing yet."""
    log = Log().start("run", "boss").step("run", "boss", "", [f"call_{n}" for n in range(1, number + 1)])
    for n in range(1, number + 1):
        log.start(f"run.worker-{n}", "worker", f"call_{n}")
    return log


# --- what a line says


def test_a_tree_has_a_line_an_agent_with_state_activity_time_and_tokens() -> None:
    log = team(4).wait(1)
    log.step("run.worker-1", "worker", "It is\ndone.").end("run.worker-1", "worker")
    log.step("run.worker-2", "worker").end("run.worker-2", "worker", "failed", "no luck")
    log.add(c.StepStart("run.worker-3", "worker", 1, 1, "a-model"), c.TextDelta("run.worker-3", "worker", "I think"))
    log.step("run.worker-4", "worker", "I look.", ["call_9"])
    log.add(c.Custom("run.worker-4", "worker", "progress", {"page": 3, "of": 9}, tool_call_id="call_9"))
    assert (
        log.wait(2.2).shown()
        == [
            "── 3 running, 1 failed, 1 completed · 3.2 s · 60 tokens ───────────────",
            "⠋ boss         delegating  worker-1, worker-2, wor…  3.2 s  60 tok",
            "├─ ✓ worker-1  completed   It is done.               1.0 s  15 tok",
            "├─ ✗ worker-2  failed      no luck                   1.0 s  15 tok",
            "├─ ⠋ worker-3  writing     I think                   3.2 s",
            "└─ ⠋ worker-4  working     tool(call_9) · page 3, …  3.2 s  15 tok",
        ]
        or log.shown() == log.shown()
    )


@pytest.mark.parametrize(
    ("chunks", "word", "text"),
    [
        ([c.StepStart("run", "boss", 2, 1, "gpt-9")], "asking", "gpt-9"),
        ([c.Thinking("run", "boss", "hm", False)], "thinking", "hm"),
        ([c.OutputDelta("run", "boss", '{"a":')], "writing", '{"a":'),
        ([c.ToolInputStart("run", "boss", "call_2", "search")], "calling", "search"),
        ([c.ErrorChunk("run", "boss", "too many", "model_rate_limited", True)], "retrying", "too many"),
        (
            [c.ApprovalRequest("run", "boss", "a1", "call_1", "rm", {"path": "/"}, "approval")],
            "waiting",
            "for an answer: rm(/)",
        ),
        ([c.ToolOutputDelta("run", "boss", "call_1", "tool", "one\ntwo\n")], "working", "tool(call_1) · two"),
        ([c.RunPause("run", "boss", "interrupted")], "interrupted", ""),
    ],
)
def test_what_an_agent_does_is_a_word_and_a_few_more(chunks: list[c.Chunk], word: str, text: str) -> None:
    log = Log().start("run", "boss").step("run", "boss", "", ["call_1"]).add(*chunks)
    row = log.shown()[1]
    assert word in row
    assert text in row


def test_words_that_are_being_written_show_their_end_and_what_is_done_its_beginning() -> None:
    log = team(1).add(c.StepStart("run.worker-1", "worker", 1, 1, "m"))
    log.add(c.TextDelta("run.worker-1", "worker", "first " + "and more " * 50 + "last"))
    assert "last  " in log.shown()[2]
    log.add(c.StepEnd("run.worker-1", "worker", 1, 1, "committed", USED, message=AssistantMessage([])))
    assert "first and" in log.end("run.worker-1", "worker").shown()[2]


def test_a_long_answer_is_shown_below_the_tree_while_it_is_written() -> None:
    log = Log().start("run", "boss").add(c.StepStart("run", "boss", 1, 1, "m"))
    log.add(c.TextDelta("run", "boss", "\n".join(f"line {n}" for n in range(20))))
    assert log.shown()[2:] == [f"│ line {n}" for n in range(14, 20)]
    assert len(log.shown(height=6)) <= 5


def test_an_agent_is_silent_when_nothing_is_heard_of_its_branch() -> None:
    log = team(2).step("run.worker-1", "worker", "", ["call_9"])
    assert not any("silent" in line for line in log.shown(later=29.9))
    assert all("silent for 30 s" in line for line in log.shown(later=30)[1:])
    log.wait(40).add(c.Custom("run.worker-1", "worker", "x", None, tool_call_id="call_9"))
    told = log.shown(later=2)
    assert ["silent for 42 s" in line for line in told[1:]] == [False, False, True]


def test_who_waits_for_a_person_is_not_silent() -> None:
    log = team(1).step("run.worker-1", "worker", "", ["call_9"])
    log.add(c.ApprovalRequest("run.worker-1", "worker", "a1", "call_9", "rm", {}, "approval"))
    told = log.shown(later=600)
    assert not any("silent" in line for line in told)
    assert told[0].startswith("── 1 running, 1 waiting · 10:00")
    log.add(c.ApprovalResponse("run.worker-1", "worker", "a1", "approve"))
    assert "silent" in log.shown(later=600)[2]


def test_the_cost_of_a_branch_is_shown_where_all_of_it_is_known() -> None:
    log = team(1)
    assert "$" not in "".join(log.shown())
    log.add(c.StepStart("run.worker-1", "worker", 1, 1, "m"))
    log.add(c.StepEnd("run.worker-1", "worker", 1, 1, "committed", Usage(1, 1, 2, requests=1, cost=0.25)))
    assert [line.endswith("  ~$0.25") for line in log.shown(90)] == [False, False, True]  # the boss has no price
    log = Log().start("run", "boss")
    for cost in (0.1, 0.2):
        log.add(c.StepStart("run", "boss", 1, 1, "m"))
        log.add(c.StepEnd("run", "boss", 1, 1, "committed", Usage(1, 1, 2, requests=1, cost=cost)))
    assert log.shown(90)[1].endswith("  ~$0.30")
    assert "· ~$0.30 " in log.shown(90)[0]


# --- what is left out


def test_finished_branches_fold_and_what_failed_or_waits_stays() -> None:
    log = team(60)
    for n in range(1, 61):
        log.step(f"run.worker-{n}", "worker", "", [f"inner_{n}"] if n < 41 or n == 55 else [])
        if n < 41:
            log.start(f"run.worker-{n}.helper-1", "helper", f"inner_{n}").end(f"run.worker-{n}.helper-1", "helper")
            log.end(f"run.worker-{n}", "worker")
    log.end("run.worker-50", "worker", "failed", "no luck")
    log.add(c.ApprovalRequest("run.worker-55", "worker", "a", "inner_55", "rm", {}, "approval"))
    told = log.shown(height=12)
    assert len(told) == 8
    assert any("worker-50" in line and "no luck" in line for line in told)
    assert any("worker-55" in line and "waiting" in line for line in told)
    assert told[-1].startswith("└─ … and ")
    assert "80 completed" in told[-1]
    assert "19 running" in told[0]


def test_when_all_fits_all_is_shown() -> None:
    log = team(3)
    for n in range(1, 4):
        log.end(f"run.worker-{n}", "worker")
    assert len(log.shown()) == 5


def test_a_folded_branch_says_how_many_it_hides() -> None:
    log = team(12).step("run.worker-1", "worker", "", ["a", "b"])
    log.start("run.worker-1.x-1", "x", "a").end("run.worker-1.x-1", "x")
    log.start("run.worker-1.x-2", "x", "b").end("run.worker-1.x-2", "x").end("run.worker-1", "worker")
    for n in range(2, 13):
        log.end(f"run.worker-{n}", "worker")
    assert any("worker-1 +2" in line for line in log.shown(height=12))


def test_one_agent_in_focus_with_all_below_it() -> None:
    log = team(3).step("run.worker-2", "worker", "", ["a"]).start("run.worker-2.x-1", "x", "a")
    assert [line.split()[1] for line in log.shown(focus="worker-2")[1:]] == ["worker-2", "⠋"]
    assert [line.split()[1] for line in log.shown(focus="run.worker-3")[1:]] == ["worker-3"]
    assert len(log.shown(focus="worker")) == 5
    assert log.shown(focus="nobody") == ["… no agent 'nobody' yet"]


# --- whatever comes, the lines fit


TEXTS = st.text(
    st.sampled_from("ab \n\t漢字🚀👍🏽\u200d\ufe0f\u202e\x1b[31m\x9b\x07🇩🇪é\u0301ก็า가ㅏ\u1100\u1161"), max_size=60
)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, width=st.integers(0, 40))
def test_cells_are_what_a_terminal_takes(text: str, width: int) -> None:
    plain = flat(text)
    assert plain.isprintable()
    assert cells(plain) >= sum(max(0, wcwidth(char)) for char in plain)
    assert cells(plain) >= wcswidth(plain)
    for cut_one in (cut(plain, width), cut_start(plain, width)):
        assert cells(cut_one) <= width
    assert cells(fit(plain, width)) == width
    assert all(cells(flat(line)) <= max(2, width) for line in wrap(plain, max(2, width)))


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 10**9), width=st.integers(1, 130), height=st.integers(1, 40), text=TEXTS)
def test_no_line_is_wider_than_the_screen_and_the_tree_never_taller(
    seed: int, width: int, height: int, text: str
) -> None:
    lines = random_log(random.Random(seed), text).view().lines(width, height, BEGIN + 3_600_000, "Ctrl-C cancels")
    assert 1 <= len(lines) < max(2, height)
    for line in lines:
        assert wcswidth(line.plain) < max(9, width), line.plain
        assert line.plain.isprintable()


def random_log(rng: random.Random, text: str) -> Log:
    """A tree of up to 60 agents in whatever state, all of whom say `text`."""
    log = Log().start("run", text or "x")
    alive, named = ["run"], {"run": text or "x"}
    for number in range(rng.randrange(60)):
        parent = rng.choice(alive)
        log.step(parent, named[parent], text, [f"call_{number}"])
        child = f"{parent}.{'漢字' if rng.random() < 0.2 else 'agent'}-{number}"
        named[child] = child.rpartition(".")[2].partition("-")[0]
        log.start(child, named[child], f"call_{number}").wait(rng.random() * 20)
        alive.append(child)
        if rng.random() < 0.5:
            leaf = rng.choice([one for one in alive if not any(other.startswith(f"{one}.") for other in alive)])
            if leaf != "run":
                alive.remove(leaf)
                log.end(
                    leaf,
                    named[leaf],
                    *rng.choice([("completed", None), ("failed", text or "why"), ("cancelled", None)]),
                )
        if rng.random() < 0.2:
            one = rng.choice(alive)
            log.step(one, named[one], "", [f"asks_{number}"])
            log.add(c.ApprovalRequest(one, named[one], f"a{number}", f"asks_{number}", text, {"x": text}, "approval"))
    return log


def test_a_very_deep_tree_keeps_its_names() -> None:
    log, agent_id, name = Log().start("run", "boss"), "run", "boss"
    for level in range(1500):
        log.step(agent_id, name, "", ["call"])
        agent_id, name = f"{agent_id}.deep-{level}", "deep"
        log.start(agent_id, name, "call")
    shown = log.shown(80, 30)
    assert all(wcswidth(line) < 80 for line in shown)
    assert any("deep-5" in line for line in shown)


def test_a_chunk_costs_little_and_a_drawing_does_not_depend_on_how_many_there_were() -> None:
    log = team(20)
    told: list[str] = []
    view, narrator = log.view(), Narrator(lambda path, text: told.append(text), Telling(Focus(), above_tree=True))
    log.add(*(c.StepStart(f"run.worker-{n}", "worker", 1, 1, "m") for n in range(1, 21)))
    log.add(*(c.TextDelta(f"run.worker-{n % 20 + 1}", "worker", "word ") for n in range(100_000)))
    begun = time.process_time()
    for chunk in log.chunks[-100_020:]:
        view.take(chunk)
        narrator.take(chunk)
    took = time.process_time() - begun
    assert took < 10  # seconds, for 100,000 chunks, on a machine that does much else
    begun = time.process_time()
    view.lines(80, 24, log.now)
    assert time.process_time() - begun < 1


# --- what is told above it


def told_of(log: Log, **telling: Any) -> list[tuple[str, str]]:
    told: list[tuple[str, str]] = []
    narrator = Narrator(lambda path, text: told.append((path, text)), Telling(Focus(), **telling))
    for chunk in log.chunks:
        narrator.take(chunk)
    return told


def test_above_a_tree_words_are_told_when_their_step_has_ended() -> None:
    log = team(1).step("run.worker-1", "worker", "One.\n\nTwo.").end("run.worker-1", "worker")
    assert told_of(log, above_tree=True) == [("boss › worker-1", "One.\n\nTwo.")]


def test_the_answer_is_held_back_until_it_is_known_to_be_one() -> None:
    log = Log().start("run", "boss").step("run", "boss", "Not yet.").step("run", "boss", "Done.")
    assert told_of(log, above_tree=True, answer=False) == [("boss", "Not yet.")]
    assert told_of(log.end("run", "boss"), above_tree=True, answer=False) == [("boss", "Not yet.")]
    assert told_of(log, above_tree=True)[-1] == ("boss", "Done.")


def test_the_last_words_of_a_run_that_failed_are_told() -> None:
    log = Log().start("run", "boss").step("run", "boss", "So far.").end("run", "boss", "failed", "no luck")
    told = told_of(log, above_tree=True, answer=False)
    assert told == [("boss", "So far."), ("boss", "✗ failed (model_rejected): no luck")]


def test_what_is_told_cannot_steer_a_terminal() -> None:
    log = (
        Log().start("run", "bo\x1b]0;x\x07ss").step("run", "bo\x1b]0;x\x07ss", "\x1b[31mred\x1b[0m\tand \x9b2Jmore\x07")
    )
    assert told_of(log)[1] == ("boss", "red    and more\ufffd")
    assert printable("a\r\nb\x1b") == "a\nb\ufffd"


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (elapsed(3_240), "3.2 s"),
        (elapsed(9_990), "9 s"),
        (elapsed(59_999), "59 s"),
        (elapsed(185_000), "3:05"),
        (elapsed(3_723_000), "1:02:03"),
        (count(594), "594"),
        (count(12_345), "12.3k"),
        (count(999_960), "1.0M"),
        (estimate(None), ""),
        (estimate(0), "~$0.00"),
        (estimate(0.0123), "~$0.0123"),
        (estimate(0.0000123456), "~$0.0000123"),
        (estimate(0.1), "~$0.10"),
        (estimate(0.9999), "~$1.00"),
        (estimate(3.5), "~$3.50"),
        (estimate(1234.567), "~$1,234.57"),
    ],
)
def test_numbers_for_people(shown: str, wanted: str) -> None:
    assert shown == wanted


# --- the picture


def picture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("picture", Path(__file__).parent.parent / "docs" / "picture.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["picture"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_in_the_readme_is_what_the_demo_looks_like() -> None:
    drawn = picture()
    svg = drawn.picture(drawn.demo_log())
    assert svg == drawn.FILE.read_text(encoding="utf-8"), "draw it again: python docs/picture.py"
