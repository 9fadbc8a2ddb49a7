"""The judge of the grammar: legal logs pass, each sub-rule catches the log that breaks it, and nothing else cries."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix.chunks import (
    ApprovalRequest,
    ApprovalResponse,
    Chunk,
    Custom,
    ErrorChunk,
    MessageChunk,
    Output,
    OutputDelta,
    Resync,
    RunEnd,
    RunPause,
    RunResume,
    RunStart,
    Snapshot,
    StatePatch,
    StepEnd,
    StepStart,
    StreamEnd,
    SubagentEnd,
    SubagentStart,
    TextDelta,
    Thinking,
    ToolEnd,
    ToolInputDelta,
    ToolInputEnd,
    ToolInputStart,
    ToolOutputDelta,
    ToolStart,
    chunk_to_json,
    parse_chunk,
)
from helix.limits import Usage
from helix.messages import (
    AssistantMessage,
    RefusalPart,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from helix.testing.check import GRAMMAR, GrammarError, check_stream, find_violations

A_CALL = Usage(11, 7, 18, requests=1, cost=0.1)


# A builder of legal logs: it numbers, counts and adds up


class Life:
    """One agent's life; each method writes what happens into the log that the whole tree shares."""

    def __init__(self, log: list[Chunk], agent_id: str, name: str, parent: Life | None = None, **start: Any) -> None:
        self.log, self.agent_id, self.name, self.parent = log, agent_id, name, parent
        self.own = self.tree = Usage()
        self.step, self.attempt, self.committed, self.delegations = 1, 0, 0, 0
        root: dict[str, Any] = {"protocol": 1, "options": {}} if parent is None else {"parent_id": parent.agent_id}
        self.add(RunStart, [UserMessage("go")], "model", start.pop("state", None), **root, **start)

    def add(self, cls: Callable[..., Chunk], *args: Any, **fields: Any) -> None:
        stamp = {"timestamp": 1_800_000_000_000, "sequence": len(self.log) + 1}
        self.log.append(cls(self.agent_id, self.name, *args, **stamp, **fields))

    def opens(self) -> None:
        self.attempt += 1
        self.add(StepStart, self.step, self.attempt, "model")

    def says(self, *pieces: str) -> None:
        for piece in pieces:
            self.add(TextDelta, piece)

    def writes(self, call: ToolCall) -> None:
        text = call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments)
        self.add(ToolInputStart, call.tool_call_id, call.tool_name)
        for piece in (text[:4], text[4:]) if call.arguments else ():
            self.add(ToolInputDelta, call.tool_call_id, piece)
        self.add(ToolInputEnd, call.tool_call_id, call.arguments)

    def closes(self, outcome: str, message: AssistantMessage | None = None) -> None:
        self.add(StepEnd, self.step, self.attempt, outcome, A_CALL, message)
        self.own, self.tree = self.own + A_CALL, self.tree + A_CALL
        if outcome != "abandoned":
            self.step, self.attempt, self.committed = self.step + 1, 0, self.committed + (outcome == "committed")

    def asks(self, text: str, *calls: ToolCall) -> None:
        """A committed step, from start to end."""
        self.opens()
        self.says(*text.split("|"))
        for call in calls:
            self.writes(call)
        said: list[Any] = [TextPart(text.replace("|", "")), *calls]
        self.closes("committed", AssistantMessage(said))

    def begins(self, call: ToolCall, attempt: int | None = None) -> None:
        self.add(ToolStart, call.tool_call_id, call.tool_name, call.arguments, attempt)

    def answers(self, call: ToolCall, result: Any, code: str | None = None) -> None:
        self.add(ToolEnd, call.tool_call_id, call.tool_name, result, code and "it failed", code)

    def delegates(self, call: ToolCall, name: str, placement: str | None = None, **start: Any) -> Life:
        self.delegations += 1
        child_id = f"{self.agent_id}.{name}-{self.delegations}"
        self.add(SubagentStart, name, child_id, call.tool_call_id, placement)
        return Life(self.log, child_id, name, self, **start)

    def ends(self, call: ToolCall | None = None, *, status: str = "completed", **fields: Any) -> None:
        """The run_end; with a call, that of a child, and its subagent_end."""
        self.add(RunEnd, status, self.own, self.tree, self.committed, 5, **fields)
        if call is not None:
            assert self.parent is not None
            self.parent.tree += self.tree
            self.parent.add(SubagentEnd, self.name, self.agent_id, call.tool_call_id, None, status, self.tree)

    def requests(self, call: ToolCall, kind: str = "approval") -> None:
        approval_id = f"{self.agent_id}/{call.tool_call_id}"
        self.add(ApprovalRequest, approval_id, call.tool_call_id, call.tool_name, call.arguments, kind)

    def decides(self, call: ToolCall, decision: str, **fields: Any) -> None:
        self.add(ApprovalResponse, f"{self.agent_id}/{call.tool_call_id}", decision, **fields)


def root(**start: Any) -> Life:
    return Life([], "boss", "boss", **start)


def novelty(agent_id: str, sequence: int) -> Any:
    return parse_chunk({"type": "novelty", "agentId": agent_id, "agentType": "boss", "_sequence": sequence})


def call(call_id: str, name: str, **arguments: Any) -> ToolCall:
    return ToolCall(call_id, name, arguments)


# The legal logs

WRITE_A, WRITE_B = call("c1", "writer", input="a"), call("c2", "writer", input="b")
SEND, DELETE, CHECK = call("c3", "send", to="x"), call("c4", "delete"), call("c1", "checker", input="a")


def tree() -> list[Chunk]:
    """Three levels, two children at once, approvals, patches, and a chunk of a kind that nobody knows."""
    boss = root(state={"notes": []}, history=TALK)
    boss.asks("I | delegate", WRITE_A, WRITE_B, SEND, DELETE)
    boss.begins(WRITE_A)
    boss.begins(WRITE_B)
    boss.requests(SEND)
    boss.requests(DELETE)
    first, second = boss.delegates(WRITE_A, "writer"), boss.delegates(WRITE_B, "writer")
    first.opens()
    second.opens()
    first.says("check")
    boss.decides(DELETE, "deny")
    boss.answers(DELETE, None, "tool_denied")
    second.says("done")
    first.writes(CHECK)
    second.closes("committed", AssistantMessage([TextPart("done")]))
    first.closes("committed", AssistantMessage([TextPart("check"), CHECK]))
    boss.decides(SEND, "approve")
    boss.begins(SEND)
    first.begins(CHECK)
    checker = first.delegates(CHECK, "checker")
    boss.add(Custom, "progress", {"done": 1}, "c3")
    boss.add(Custom, "aside", None)
    boss.log.append(novelty("boss", len(boss.log) + 1))
    boss.add(ToolOutputDelta, "c3", "send", "sent\n")
    boss.add(StatePatch, [{"op": "add", "path": "/notes/-", "value": {"tags": []}}], "c3")
    boss.add(StatePatch, [{"op": "add", "path": "/notes/0/tags/-", "value": "sent"}], "c3")
    boss.add(ErrorChunk, "it was slow", "tool_timeout", True, "c3")
    boss.answers(SEND, "sent")
    checker.asks("fine")
    second.ends(WRITE_B, finish_reason="stop")
    boss.answers(WRITE_B, "done")
    checker.ends(CHECK, status="failed", error="no steps left", error_code="limit_steps")
    first.answers(CHECK, None, "subagent_failed")
    first.asks("checked")
    first.ends(WRITE_A)
    boss.answers(WRITE_A, "checked")
    boss.add(MessageChunk, UserMessage("hurry"), "steering")
    boss.asks("all| done")
    boss.ends(finish_reason="stop")
    return boss.log


TALK = [
    UserMessage("hi"),
    AssistantMessage([call("h1", "look"), call("h2", "look")]),
    ToolMessage("h1", "look", "1"),
    ToolMessage("h2", "look", "2"),
    AssistantMessage([TextPart("hello")]),
]


def retried() -> list[Chunk]:
    """A step whose stream dropped, one with thinking and a refusal, and a call whose arguments are no object."""
    boss = root()
    boss.opens()
    boss.says("I th")
    boss.add(ToolInputStart, "c1", "search")
    boss.closes("abandoned")
    boss.add(ErrorChunk, "the stream dropped", "model_stream_dropped", True)
    boss.opens()
    for piece, is_complete in (("so ", False), ("far", False), ("so far", True), ("!", False)):
        boss.add(Thinking, piece, is_complete)
    boss.says("I ", "cannot")
    invalid, empty = ToolCall("c1", "search", "{bad"), call("c2", "list")
    boss.writes(invalid)
    boss.writes(empty)
    content = [ThinkingPart("so far!"), TextPart("I "), RefusalPart("cannot"), invalid, empty]
    boss.closes("committed", AssistantMessage(content))
    boss.answers(invalid, None, "tool_invalid_arguments")
    boss.begins(empty)
    boss.answers(empty, [])
    boss.asks("done")
    boss.ends()
    return boss.log


def cut() -> list[Chunk]:
    """The caller stops the run in mid-step."""
    boss = root()
    boss.asks("go", LOOK)
    boss.begins(LOOK)
    boss.answers(LOOK, 1)
    boss.opens()
    boss.says("half ", "a sen")
    boss.add(Thinking, "hm", False)
    boss.add(ToolInputStart, "c2", "look")
    boss.closes("cut", AssistantMessage([TextPart("half a sen")], cut=True))
    boss.ends(status="cancelled")
    return boss.log


def cut_silent() -> list[Chunk]:
    """A limit cuts the run before a word was said; the error stands behind the step."""
    boss = root()
    boss.opens()
    boss.closes("cut")
    boss.add(ErrorChunk, "out of time", "limit_time", False)
    boss.ends(status="failed", error="out of time", error_code="limit_time")
    return boss.log


LOOK, ASK = call("c1", "look"), call("c1", "asker", input="?")


def paused() -> list[Chunk]:
    """A child waits for a person, the tree parks and comes back; then it crashes in a step and in a body."""
    boss = root()
    boss.asks("ask", ASK)
    boss.begins(ASK)
    child = boss.delegates(ASK, "asker")
    child.asks("may I?", LOOK)
    child.requests(LOOK)
    boss.add(RunPause, "suspended", ["boss.asker-1/c1"])
    boss.add(RunResume, 2, "pause")
    child.decides(LOOK, "approve")
    child.begins(LOOK)
    child.add(ToolOutputDelta, "c1", "look", "a")
    boss.add(RunResume, 3, "crash")
    child.begins(LOOK, attempt=2)
    child.add(ToolOutputDelta, "c1", "look", "a")
    child.answers(LOOK, "seen")
    child.opens()
    child.says("I s")
    boss.add(RunResume, 5, "crash")
    child.closes("abandoned")
    child.asks("I saw")
    child.ends(ASK)
    boss.answers(ASK, "I saw")
    boss.add(RunPause, "interrupted")
    boss.add(RunResume, 6, "pause")
    boss.asks("done")
    boss.ends()
    return boss.log


def answered() -> list[Chunk]:
    """One call approved with other arguments, one run by the client, one cut, and one that nobody answered in time."""
    boss = root()
    calls = [call(f"c{number}", "act", n=number) for number in range(1, 5)]
    boss.asks("four", *calls)
    edited, client, long, late = calls
    for asked in calls:
        boss.requests(asked, "client_tool" if asked in (client, long) else "approval")
    boss.decides(client, "result", result={"city": "Oslo"})
    boss.answers(client, {"city": "Oslo"})
    boss.decides(long, "result", result="long")
    boss.add(ToolEnd, "c3", "act", "lo", truncated=True)
    boss.decides(late, "expired")
    boss.decides(edited, "approve", arguments={"n": 9})
    boss.add(MessageChunk, UserMessage("with other arguments"), "notice")
    boss.answers(late, None, "tool_denied")
    boss.add(ToolStart, "c1", "act", {"n": 9})
    boss.answers(edited, "acted")
    boss.asks("done")
    boss.ends()
    return boss.log


def shared() -> list[Chunk]:
    """A child and a grandchild work on the root's document."""
    boss = root(state={"n": 0})
    boss.asks("count", ASK)
    boss.begins(ASK)
    child = boss.delegates(ASK, "counter", state={"n": 0}, state_id="boss")
    child.asks("up", ASK)
    child.begins(ASK)
    child.add(StatePatch, [{"op": "replace", "path": "/n", "value": 1}], "c1", "boss")
    grandchild = child.delegates(ASK, "counter", state={"n": 1}, state_id="boss")
    grandchild.add(StatePatch, [{"op": "test", "path": "/n", "value": 1}], None, "boss")
    grandchild.asks("up")
    grandchild.ends(ASK)
    child.answers(ASK, None)
    child.asks("counted")
    child.ends(ASK)
    boss.answers(ASK, None)
    boss.add(StatePatch, [{"op": "replace", "path": "", "value": None}])
    boss.asks("done")
    boss.ends()
    return boss.log


def output_by_tool() -> list[Chunk]:
    """Structured output as a call of the output tool, whose first try is not valid."""
    boss = root()
    for call_id, error in (("o1", "output_invalid"), ("o2", None)):
        final = call(call_id, "final_output", title="x")
        boss.opens()
        boss.says("here:")
        boss.add(OutputDelta, '{"tit')
        boss.add(OutputDelta, 'le": "x"}')
        boss.closes("committed", AssistantMessage([TextPart("here:"), final]))
        boss.answers(final, None, error)
    boss.add(Output, {"title": "x"})
    boss.ends(finish_reason="output")
    return boss.log


def output_by_text() -> list[Chunk]:
    """Structured output in the provider's native format."""
    boss = root()
    boss.opens()
    boss.says("Sure: ")
    boss.add(OutputDelta, "[1,")
    boss.add(OutputDelta, " 2]")
    boss.closes("committed", AssistantMessage([TextPart("Sure: [1, 2]")]))
    boss.add(Output, [1, 2])
    boss.ends(finish_reason="output")
    return boss.log


def placed() -> list[Chunk]:
    """A child on another worker crashes and resumes by itself while the root's body goes on."""
    boss = root()
    boss.asks("far", ASK)
    boss.begins(ASK)
    child = boss.delegates(ASK, "asker", placement="queue")
    child.opens()
    child.add(RunResume, 2, "crash")
    boss.add(Custom, "meanwhile", None, "c1")
    child.closes("abandoned")
    child.opens()
    boss.add(RunResume, 2, "crash")
    child.says("here")
    child.closes("committed", AssistantMessage([TextPart("here")]))
    child.ends(ASK)
    boss.answers(ASK, None)
    boss.asks("done")
    boss.ends()
    return boss.log


LEGAL = [tree, retried, cut, cut_silent, paused, answered, shared, output_by_tool, output_by_text, placed]
legal = pytest.mark.parametrize("log", LEGAL, ids=lambda build: build.__name__)


@legal
def test_a_legal_log_has_no_violation(log: Callable[[], list[Chunk]]) -> None:
    assert find_violations(log()) == []


@legal
def test_each_prefix_of_a_legal_log_is_legal_and_unfinished(log: Callable[[], list[Chunk]]) -> None:
    chunks = log()
    for length in range(len(chunks)):
        assert find_violations(chunks[:length], finished=False) == [], f"the first {length} chunks"
        assert "run-end-missing" in {violation.name for violation in find_violations(chunks[:length])}


@legal
def test_a_legal_log_is_legal_after_a_round_trip_through_json(log: Callable[[], list[Chunk]]) -> None:
    check_stream(parse_chunk(chunk_to_json(chunk)) for chunk in log())


@legal
def test_judging_does_not_change_the_log(log: Callable[[], list[Chunk]]) -> None:
    chunks = log()
    find_violations(chunks)
    assert chunks == log()


# Logs that break one thing


class Broken(list[Any]):
    """A legal log that can be broken; `cls, nth` means the nth chunk of that class, from 0; negative from the end."""

    def at(self, cls: type[Any], nth: int = 0) -> int:
        return [index for index, chunk in enumerate(self) if isinstance(chunk, cls)][nth]

    def set(self, cls: type[Any], nth: int = 0, **fields: Any) -> None:
        index = self.at(cls, nth)
        self[index] = dataclasses.replace(self[index], **fields)

    def drop(self, cls: type[Any], nth: int = 0) -> None:
        del self[self.at(cls, nth)]

    def put(self, before: tuple[type[Any], int], chunk: Any) -> None:
        self.insert(self.at(*before), chunk)

    def repeat(self, cls: type[Any], nth: int = 0, **fields: Any) -> None:
        index = self.at(cls, nth)
        self.insert(index + 1, dataclasses.replace(self[index], **fields))

    def move(self, cls: type[Any], nth: int, before: tuple[type[Any], int]) -> None:
        chunk = self.pop(self.at(cls, nth))
        self.insert(self.at(*before), chunk)

    def swap(self, one: tuple[type[Any], int], other: tuple[type[Any], int]) -> None:
        left, right = self.at(*one), self.at(*other)
        self[left], self[right] = self[right], self[left]

    def all(self, **fields: Any) -> None:
        self[:] = [dataclasses.replace(chunk, **fields) for chunk in self]

    def rename(self, agent_id: str, other: str) -> None:
        names = {"agent_id", "sub_agent_run_id", "parent_id"}
        for index, chunk in enumerate(self):
            renamed = {name: other for name in names if getattr(chunk, name, None) == agent_id}
            self[index] = dataclasses.replace(chunk, **renamed)

    def numbered(self) -> list[Any]:
        return [dataclasses.replace(chunk, sequence=number) for number, chunk in enumerate(self, 1)]


def of_boss(cls: Callable[..., Chunk], *args: Any, **fields: Any) -> Chunk:
    return cls("boss", "boss", *args, **fields)


def said(*content: Any, cut: bool = False) -> AssistantMessage:
    return AssistantMessage(list(content), cut=cut)


USED, ONE_MORE = Usage(1, 1, 2), Usage(11, 7, 19, requests=1, cost=0.1)


def breaks(name: str, log: Callable[[], list[Chunk]], how: Callable[[Broken], object], *too: str) -> Any:
    """A sub-rule, a legal log, how the log is broken, and the sub-rules that cannot but be broken with it."""
    return pytest.param(name, log, how, set(too), id=name)


BROKEN = [
    # 0: fields
    breaks("timestamp", tree, lambda log: log.set(StepStart, timestamp=-1)),
    breaks("timestamp", tree, lambda log: log.set(StepStart, timestamp=1.5)),
    breaks("agent-name", cut, lambda log: log.all(agent_type="no name")),
    breaks("root-id", cut, lambda log: log.all(agent_id="bo.ss")),
    breaks("root-id", cut, lambda log: log.all(agent_id="")),
    breaks("root-fields", tree, lambda log: log.set(RunStart, protocol=None)),
    breaks("root-fields", tree, lambda log: log.set(RunStart, parent_id="grandpa")),
    breaks("root-fields", tree, lambda log: log.set(RunStart, 1, history=[])),
    breaks("error-code", tree, lambda log: log.set(ErrorChunk, code="oops")),
    breaks("error-code", tree, lambda log: log.set(ToolEnd, error_code="oops")),
    breaks("error-code", cut_silent, lambda log: log.set(RunEnd, error_code="oops")),
    # 1: numbers and order
    breaks("root-end-last", tree, lambda log: log.append(of_boss(Custom, "late", None))),
    breaks("root-end-last", tree, lambda log: log.append(novelty("boss", 0))),
    breaks("pause-then-resume", paused, lambda log: log.drop(RunResume, 0)),
    breaks(
        "pause-then-resume", paused, lambda log: log.put((RunResume, 0), of_boss(Custom, "late", None)), "resume-reason"
    ),
    # 2: lives
    breaks("run-start-first", cut, lambda log: log.drop(RunStart)),
    breaks("run-start-first", cut, lambda log: log.swap((RunStart, 0), (StepStart, 0))),
    breaks("run-start-first", tree, lambda log: log.swap((RunStart, 1), (StepStart, 1))),
    breaks("run-start-first", tree, lambda log: log.insert(0, novelty("boss", 0))),
    breaks("run-start-once", tree, lambda log: log.repeat(RunStart, 1)),
    breaks(
        "one-root",
        cut,
        lambda log: log.put((StepEnd, 0), RunStart("lone.x-1", "x", [], "model", None)),
        "run-end-missing",
    ),
    breaks(
        "run-end-last",
        tree,
        lambda log: log.move(StepEnd, -2, (SubagentEnd, 2)),
        "step-ended",
        "run-usage",
        "tree-usage",
        "run-steps",
    ),
    breaks("run-end-missing", tree, lambda log: log.pop()),
    breaks("run-end-missing", tree, lambda log: log.clear()),
    breaks("run-end-error", cut_silent, lambda log: log.set(RunEnd, error=None)),
    breaks("run-end-error", cut_silent, lambda log: log.set(RunEnd, error_code=None)),
    breaks("run-end-error", tree, lambda log: log.set(RunEnd, -1, error="but")),
    breaks("agent-type-constant", tree, lambda log: log.set(StepStart, agent_type="other")),
    # 3: steps
    breaks("step-overlap", cut, lambda log: log.repeat(StepStart)),
    breaks("step-number", cut_silent, lambda log: (log.set(StepStart, step=2), log.set(StepEnd, step=2))),
    breaks("step-number", retried, lambda log: (log.set(StepStart, 1, attempt=1), log.set(StepEnd, 1, attempt=1))),
    breaks("step-number", cut, lambda log: (log.set(StepStart, 1, attempt=2), log.set(StepEnd, 1, attempt=2))),
    breaks("step-end-opened", cut, lambda log: log.repeat(StepEnd)),
    breaks("step-end-opened", cut_silent, lambda log: log.drop(StepStart)),
    breaks("step-end-matches", cut, lambda log: log.set(StepEnd, -1, attempt=2)),
    breaks("step-ended", cut_silent, lambda log: log.drop(StepEnd), "run-usage", "tree-usage"),
    breaks("committed-message", cut, lambda log: log.set(StepEnd, message=said(TextPart("go"), LOOK, cut=True))),
    breaks("committed-message", shared, lambda log: log.set(StepEnd, -1, message=None), "text-joined"),
    breaks("abandoned-message", retried, lambda log: log.set(StepEnd, message=said(TextPart("I th")))),
    breaks("cut-message", cut, lambda log: log.set(StepEnd, -1, message=said(TextPart("half a sen"), LOOK, cut=True))),
    breaks("cut-last", cut_silent, lambda log: log.put((RunEnd, 0), of_boss(Custom, "late", None))),
    breaks(
        "cut-last", cut_silent, lambda log: log.put((RunEnd, 0), of_boss(RunPause, "interrupted")), "pause-then-resume"
    ),
    breaks("delta-in-step", tree, lambda log: log.put((StepStart, 0), of_boss(TextDelta, "early"))),
    breaks("delta-in-step", tree, lambda log: log.put((StepStart, 0), of_boss(OutputDelta, "early"))),
    breaks("delta-in-step", tree, lambda log: log.put((StepStart, 0), of_boss(Thinking, "early", True))),
    breaks("delta-in-step", tree, lambda log: log.put((StepStart, 0), of_boss(ToolInputStart, "c1", "early"))),
    breaks("delta-in-step", tree, lambda log: log.put((StepStart, 0), of_boss(ToolInputEnd, "c1", {}))),
    breaks("text-joined", tree, lambda log: log.drop(TextDelta)),
    breaks("text-joined", tree, lambda log: log.swap((TextDelta, 0), (TextDelta, 1))),
    breaks("text-joined", cut, lambda log: log.drop(TextDelta, -1)),
    breaks("text-joined", cut, lambda log: log.set(StepEnd, -1, message=None)),
    breaks("text-joined", output_by_tool, lambda log: log.set(TextDelta, delta="there:")),
    breaks("thinking-joined", retried, lambda log: log.drop(Thinking, -1)),
    breaks(
        "thinking-joined",
        cut,
        lambda log: log.set(StepEnd, -1, message=said(TextPart("half a sen"), ThinkingPart("h"), cut=True)),
    ),
    breaks("thinking-complete", retried, lambda log: log.set(Thinking, 2, content="so near")),
    breaks("output-joined", output_by_text, lambda log: log.set(OutputDelta, delta="[2,")),
    breaks("output-joined", output_by_tool, lambda log: log.drop(OutputDelta)),
    breaks("tool-input-order", tree, lambda log: log.swap((ToolInputDelta, 1), (ToolInputEnd, 0)), "tool-input-joined"),
    breaks(
        "tool-input-order", retried, lambda log: log.swap((ToolInputStart, 2), (ToolInputEnd, 1)), "tool-input-ended"
    ),
    breaks("tool-input-order", retried, lambda log: log.repeat(ToolInputEnd)),
    breaks("tool-input-ended", tree, lambda log: log.drop(ToolInputEnd)),
    breaks("tool-input-joined", tree, lambda log: log.drop(ToolInputDelta)),
    breaks("tool-input-joined", retried, lambda log: log.put((ToolInputEnd, 1), of_boss(ToolInputDelta, "c2", "[]"))),
    breaks(
        "tool-input-asked",
        retried,
        lambda log: (
            log.put((ToolInputStart, 1), of_boss(ToolInputStart, "c9", "look")),
            log.put((ToolInputStart, 2), of_boss(ToolInputEnd, "c9", {})),
        ),
    ),
    breaks("tool-input-message", tree, lambda log: log.set(ToolInputStart, tool_name="reader")),
    breaks(
        "tool-input-message",
        retried,
        lambda log: (
            log.set(ToolInputEnd, 1, arguments={"a": 1}),
            log.put((ToolInputEnd, 1), of_boss(ToolInputDelta, "c2", '{"a":1}')),
        ),
    ),
    breaks("call-streamed", output_by_tool, lambda log: (log.drop(OutputDelta), log.drop(OutputDelta))),
    breaks(
        "call-streamed",
        output_by_tool,
        lambda log: log.set(
            StepEnd,
            -1,
            message=said(TextPart("here:"), call("o2", "final_output", title="x"), call("o3", "final_output")),
        ),
        "call-answered",
    ),
    # 4: calls
    breaks("call-asked", tree, lambda log: log.put((StepStart, 0), of_boss(ToolStart, "c9", "look", {}))),
    breaks("call-asked", cut, lambda log: log.put((RunEnd, 0), of_boss(ToolEnd, "c9", "look", None))),
    breaks("call-asked", tree, lambda log: log.put((RunEnd, -1), of_boss(ToolEnd, "c1", "writer", None))),
    breaks(
        "call-asked",
        tree,
        lambda log: log.put((StepStart, 0), of_boss(ApprovalRequest, "boss/c9", "c9", "look", {}, "approval")),
    ),
    breaks("call-name", tree, lambda log: log.set(ToolStart, tool_name="reader")),
    breaks("call-name", tree, lambda log: log.set(ToolEnd, tool_name="reader")),
    breaks("call-name", tree, lambda log: log.set(ToolOutputDelta, tool_name="reader")),
    breaks("call-name", tree, lambda log: log.set(ApprovalRequest, tool_name="reader")),
    breaks("tool-end-once", tree, lambda log: log.repeat(ToolEnd, 1)),
    breaks("tool-start-open", cut, lambda log: log.swap((ToolStart, 0), (ToolEnd, 0))),
    breaks("call-answered", cut, lambda log: log.drop(ToolEnd)),
    breaks("call-answered", output_by_tool, lambda log: log.drop(ToolEnd, -1)),
    breaks("attempt-number", cut, lambda log: log.set(ToolStart, attempt=2)),
    breaks("attempt-number", paused, lambda log: log.set(ToolStart, 2, attempt=None)),
    breaks("attempt-number", paused, lambda log: log.set(ToolStart, 2, attempt=3)),
    breaks("attempt-after-resume", cut, lambda log: log.repeat(ToolStart, attempt=2)),
    breaks("body-permitted", retried, lambda log: log.put((ToolEnd, 0), of_boss(ToolStart, "c1", "search", {}))),
    breaks("body-permitted", tree, lambda log: log.drop(ApprovalResponse, -1)),
    breaks("body-permitted", tree, lambda log: log.set(ApprovalResponse, -1, decision="expired")),
    breaks("body-permitted", tree, lambda log: log.put((ToolEnd, 0), of_boss(ToolStart, "c4", "delete", {}))),
    breaks("body-in-call", tree, lambda log: log.move(Custom, 0, (ToolStart, 2))),
    breaks("body-in-call", tree, lambda log: log.move(ToolOutputDelta, 0, (RunEnd, 0))),
    breaks("body-in-call", tree, lambda log: log.set(ToolOutputDelta, tool_call_id="")),
    breaks("body-in-call", tree, lambda log: log.set(StatePatch, tool_call_id="c4")),
    breaks("body-in-call", tree, lambda log: log.set(ErrorChunk, tool_call_id="c9")),
    breaks(
        "approval-id",
        tree,
        lambda log: (log.set(ApprovalRequest, approval_id="c3"), log.set(ApprovalResponse, -1, approval_id="c3")),
    ),
    breaks("approval-once", tree, lambda log: log.repeat(ApprovalRequest)),
    breaks(
        "approval-before-body",
        tree,
        lambda log: log.put((ToolEnd, 0), of_boss(ApprovalRequest, "boss/c1", "c1", "writer", {}, "approval")),
    ),
    breaks(
        "approval-before-body", tree, lambda log: log.swap((ApprovalResponse, -1), (ToolStart, 2)), "body-permitted"
    ),
    breaks("approval-asked", tree, lambda log: log.set(ApprovalResponse, approval_id="boss/c9")),
    breaks(
        "approval-asked",
        paused,
        lambda log: log.set(ApprovalResponse, agent_id="boss", agent_type="boss"),
        "body-permitted",
    ),
    breaks("approval-open", tree, lambda log: log.repeat(ApprovalResponse)),
    breaks("approval-open", tree, lambda log: log.swap((ApprovalResponse, 0), (ToolEnd, 0))),
    breaks("approval-arguments", answered, lambda log: log.set(ApprovalRequest, arguments={"n": 2})),
    breaks("approval-decision", answered, lambda log: log.set(ApprovalResponse, decision="approve")),
    breaks("approval-decision", answered, lambda log: log.set(ApprovalResponse, 2, arguments={"n": 1})),
    breaks("approval-decision", tree, lambda log: log.set(ApprovalResponse, 1, decision="result")),
    breaks("approval-kept", answered, lambda log: log.set(ToolEnd, result={"city": "Rome"})),
    breaks("approval-kept", answered, lambda log: log.set(ToolEnd, 2, error=None, error_code=None)),
    breaks("approval-kept", tree, lambda log: log.set(ToolEnd, error=None, error_code=None)),
    breaks("body-arguments", answered, lambda log: log.set(ToolStart, arguments={"n": 1})),
    breaks("body-arguments", cut, lambda log: log.set(ToolStart, arguments={"n": 1})),
    breaks("body-permitted", answered, lambda log: log.put((ToolEnd, 0), of_boss(ToolStart, "c2", "act", {"n": 2}))),
    # 5: children
    breaks("child-id", tree, lambda log: log.rename("boss.writer-2", "boss.writer-3")),
    breaks("child-id", tree, lambda log: log.repeat(SubagentStart, 0), "child-id"),
    breaks("child-in-call", tree, lambda log: log.move(ToolStart, 0, (RunStart, 1))),
    breaks(
        "child-in-call",
        tree,
        lambda log: (log.set(SubagentStart, call_id="c9"), log.set(SubagentEnd, -1, call_id="c9")),
    ),
    breaks("child-announced", tree, lambda log: log.swap((SubagentStart, 0), (RunStart, 1))),
    breaks("child-start-matches", tree, lambda log: log.set(RunStart, 1, parent_id="boss.writer-2")),
    breaks("child-start-matches", tree, lambda log: log.set(RunStart, 1, parent_id=None)),
    breaks("child-end-known", tree, lambda log: log.repeat(SubagentEnd)),
    breaks(
        "child-end-known",
        tree,
        lambda log: log.put((SubagentEnd, 0), of_boss(SubagentEnd, "x", "boss.x-9", "c1", None, "failed", Usage())),
    ),
    breaks("child-end-matches", tree, lambda log: log.set(SubagentEnd, call_id="c1")),
    breaks("child-end-matches", tree, lambda log: log.set(SubagentEnd, sub_agent_type="x")),
    breaks("child-ended-first", tree, lambda log: log.swap((SubagentEnd, 0), (RunEnd, 0))),
    breaks("child-ended-first", tree, lambda log: log.drop(RunEnd, 0), "run-end-missing"),
    breaks("child-status", tree, lambda log: log.set(SubagentEnd, status="cancelled")),
    breaks("child-usage", tree, lambda log: log.set(SubagentEnd, usage=USED)),
    breaks("children-ended", tree, lambda log: log.swap((SubagentEnd, -1), (ToolEnd, -1))),
    breaks("children-ended", tree, lambda log: log.drop(SubagentEnd, -1)),
    # 6: pauses and resumes
    breaks("pause-tagged-root", paused, lambda log: log.set(RunPause, agent_id="boss.asker-1", agent_type="asker")),
    breaks(
        "pause-no-step",
        paused,
        lambda log: (log.put((RunResume, 2), of_boss(RunPause, "interrupted")), log.set(RunResume, 2, reason="pause")),
    ),
    breaks(
        "pause-no-body",
        cut,
        lambda log: (
            log.put((ToolEnd, 0), of_boss(RunPause, "interrupted")),
            log.put((ToolEnd, 0), of_boss(RunResume, 2, "pause")),
        ),
    ),
    breaks("pause-waiting-for", paused, lambda log: log.set(RunPause, waiting_for=None)),
    breaks("pause-waiting-for", paused, lambda log: log.set(RunPause, -1, waiting_for=["boss.asker-1/c1"])),
    breaks("resume-tagged-owner", paused, lambda log: log.set(RunResume, agent_id="boss.asker-1", agent_type="asker")),
    breaks("resume-epoch", paused, lambda log: log.set(RunResume, epoch=1)),
    breaks("resume-epoch", paused, lambda log: log.set(RunResume, 2, epoch=3)),
    breaks("resume-reason", paused, lambda log: log.set(RunResume, reason="crash")),
    breaks("resume-reason", paused, lambda log: log.set(RunResume, 2, reason="pause")),
    breaks("resume-abandons", paused, lambda log: log.put((StepEnd, 2), of_boss(Custom, "early", None))),
    breaks(
        "resume-abandons",
        paused,
        lambda log: log.set(StepEnd, 2, outcome="cut", message=said(TextPart("I s"), cut=True)),
        "cut-last",
        "step-number",
    ),
    breaks("resume-abandons", placed, lambda log: log.drop(StepEnd, 1), "step-overlap", "run-usage", "tree-usage"),
    # 7: ids
    breaks(
        "call-id-unique",
        output_by_tool,
        lambda log: (
            log.set(StepEnd, -1, message=said(TextPart("here:"), call("o1", "final_output", title="x"))),
            log.set(ToolEnd, -1, tool_call_id="o1"),
        ),
    ),
    breaks("call-id-unique", cut, lambda log: log.set(RunStart, input=[AssistantMessage([LOOK])])),
    breaks("input-id-unique", tree, lambda log: log.repeat(ToolInputStart)),
    # 8: state
    breaks("patch-addressed", tree, lambda log: log.set(StatePatch, state_id="boss.writer-1"), "patch-applies"),
    breaks("patch-addressed", shared, lambda log: log.set(StatePatch, 1, state_id=None)),
    breaks("patch-applies", tree, lambda log: log.swap((StatePatch, 0), (StatePatch, 1))),
    breaks(
        "patch-applies", shared, lambda log: log.set(StatePatch, 1, patches=[{"op": "test", "path": "/n", "value": 0}])
    ),
    breaks("patch-applies", tree, lambda log: log.set(StatePatch, 1, patches=[{"op": "append"}])),
    breaks(
        "shared-state-known", shared, lambda log: log.set(RunStart, -1, state_id="boss.counter-1"), "patch-addressed"
    ),
    breaks("shared-state-equal", shared, lambda log: log.set(RunStart, -1, state={"n": 0})),
    # 9: usage
    breaks("run-usage", tree, lambda log: log.set(RunEnd, -1, usage=USED)),
    breaks("run-usage", cut_silent, lambda log: log.set(RunEnd, usage=ONE_MORE)),
    breaks("tree-usage", tree, lambda log: log.set(RunEnd, -1, tree_usage=USED)),
    breaks("run-steps", tree, lambda log: log.set(RunEnd, -1, steps=9)),
    breaks("run-steps", cut, lambda log: log.set(RunEnd, -1, steps=2)),
    # 10: outputs and errors
    breaks("output-once", output_by_text, lambda log: log.repeat(Output)),
    breaks("output-after-steps", output_by_text, lambda log: log.move(Output, 0, (StepEnd, 0))),
    breaks("output-after-steps", output_by_tool, lambda log: log.move(Output, 0, (StepStart, 1))),
    breaks("output-required", output_by_text, lambda log: log.drop(Output)),
    breaks(
        "cancel-no-error", cut, lambda log: log.put((RunEnd, 0), of_boss(ErrorChunk, "stopped", "cancelled", False))
    ),
    # 11: the conversation
    breaks("message-user", tree, lambda log: log.set(MessageChunk, message=said(TextPart("psst")))),
    breaks("cut-marked", cut, lambda log: log.set(StepEnd, -1, message=said(TextPart("half a sen")))),
    breaks("history-settled", tree, lambda log: log.set(RunStart, history=TALK[:2])),
    breaks("history-settled", tree, lambda log: log.set(RunStart, history=[*TALK[:2], TALK[3], TALK[2]])),
    breaks("history-settled", tree, lambda log: log.set(RunStart, history=[TALK[2]])),
]


@pytest.mark.parametrize(("name", "build", "break_it", "too"), BROKEN)
def test_a_broken_rule_is_named_and_only_that(
    name: str, build: Callable[[], list[Chunk]], break_it: Callable[[Broken], object], too: set[str]
) -> None:
    log = Broken(build())
    break_it(log)
    violations = find_violations(log.numbered())
    assert {violation.name for violation in violations} == {name} | too, "\n".join(map(str, violations))


def test_a_gap_in_the_numbers_is_told_once_where_it_is() -> None:
    log = tree()
    del log[4]  # a piece of a call's arguments
    (gap,) = [violation for violation in find_violations(log) if violation.name == "sequence-dense"]
    assert (gap.rule, gap.sequence) == (1, 6)
    assert "number 6, expected 5" in gap.message


def test_numbers_begin_with_1_and_do_not_repeat() -> None:
    log = cut()
    assert find_violations(log[1:])[0].name == "sequence-dense"
    assert find_violations([log[0], *log], finished=False)[0].name == "sequence-dense"


def test_every_sub_rule_has_a_log_that_breaks_it() -> None:
    in_numbers = {"sequence-dense"}
    assert {entry.values[0] for entry in BROKEN} | in_numbers == {name for names in GRAMMAR.values() for name in names}


def test_the_names_of_sub_rules_are_unique_and_of_all_eleven_rules() -> None:
    names = [name for names in GRAMMAR.values() for name in names]
    assert len(names) == len(set(names))
    assert list(GRAMMAR) == list(range(12))


def test_a_log_that_ended_is_judged_as_finished_even_when_it_need_not_be() -> None:
    log = Broken(tree())
    log.drop(RunEnd, 0)
    assert "run-end-missing" in {violation.name for violation in find_violations(log.numbered(), finished=False)}


def test_a_violation_says_where_it_is_and_what_it_is() -> None:
    log = Broken(cut())
    log.set(TextDelta, delta="gone")
    (violation,) = find_violations(log)
    assert (violation.rule, violation.name) == (3, "text-joined")
    assert violation.sequence == log[log.at(StepEnd)].sequence
    assert str(violation) == (
        "chunk 6: the words part at character 2: streamed 'ne', in the end '' (rule 3, text-joined)"
    )


def test_check_stream_raises_an_assertion_with_all_violations_and_shows_twenty() -> None:
    log = [dataclasses.replace(chunk, timestamp=-1) for chunk in tree()]
    with pytest.raises(GrammarError, match="timestamp -1") as caught:
        check_stream(log)
    assert isinstance(caught.value, AssertionError)
    assert len(caught.value.violations) == len(log)
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert lines[-1] == f"  … and {len(log) - 20} more"


def test_check_stream_is_silent_about_a_legal_log() -> None:
    check_stream(iter(tree()))
    check_stream([], finished=False)


def trimmed(log: Sequence[Chunk], floor: int) -> list[Chunk]:
    """What a store keeps of a log whose deltas were dropped up to that number."""
    return [chunk for chunk in log if chunk.sequence > floor or not is_piece(chunk)]


def is_piece(chunk: Chunk) -> bool:
    if isinstance(chunk, Thinking):
        return not chunk.is_complete
    return isinstance(chunk, TextDelta | OutputDelta | ToolInputDelta | ToolOutputDelta)


@legal
def test_a_log_trimmed_anywhere_is_legal_if_that_is_said(log: Callable[[], list[Chunk]]) -> None:
    whole = log()
    for floor in range(len(whole) + 1):
        kept = trimmed(whole, floor)
        check_stream(kept, floor=floor)
        if len(kept) < len(whole):
            assert "sequence-dense" in {violation.name for violation in find_violations(kept)}


JOINED = {"text-joined", "output-joined", "thinking-joined", "thinking-complete", "tool-input-joined"}
"""What the pieces have to add up to."""
ABOUT_PIECES = JOINED | {"delta-in-step", "body-in-call", "tool-input-order", "call-streamed", "call-name"}
"""What may be shown by pieces alone, and is gone with them."""


@pytest.mark.parametrize(("name", "build", "break_it", "too"), BROKEN)
def test_a_broken_log_is_refused_when_it_is_trimmed_too(
    name: str, build: Callable[[], list[Chunk]], break_it: Callable[[Broken], object], too: set[str]
) -> None:
    log = Broken(build())
    break_it(log)
    whole = log.numbered()
    found = {violation.name for violation in find_violations(trimmed(whole, len(whole)), floor=len(whole))}
    assert found - JOINED <= {name} | too
    assert name in found or name in ABOUT_PIECES


def test_what_is_left_of_the_deltas_has_to_fit() -> None:
    log = Broken(cut())
    step, delta = log[log.at(StepStart)], log[log.at(TextDelta)]
    log.set(TextDelta, -1, delta="other words")
    [violation] = find_violations(log.numbered(), floor=step.sequence)
    assert violation.name == "text-joined"
    assert delta.sequence > step.sequence


def test_a_trimmed_log_has_no_gap_above_its_floor() -> None:
    log = tree()
    deltas = [chunk.sequence for chunk in log if isinstance(chunk, TextDelta)]
    kept = [chunk for chunk in log if chunk.sequence != deltas[-1]]
    names = {violation.name for violation in find_violations(kept, floor=deltas[0])}
    assert "sequence-dense" in names


def test_what_readers_make_themselves_is_passed_over() -> None:
    log = cut()
    check_stream([Resync(0, Snapshot("pending", {}, [])), *log, StreamEnd("boss", 0, "cancelled", len(log))])


@pytest.mark.parametrize(
    "raw", ["{", "[1]", '"text"', '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud83d"}', "[" * 100_000, "null"]
)
def test_arguments_that_have_no_form_as_an_object_stay_the_raw_text(raw: str) -> None:
    log = Broken(retried())
    message = said(TextPart("done"), ToolCall("c9", "look", raw))
    log.put((StepEnd, -1), of_boss(ToolInputStart, "c9", "look"))
    log.put((StepEnd, -1), of_boss(ToolInputDelta, "c9", raw))
    log.put((StepEnd, -1), of_boss(ToolInputEnd, "c9", raw))
    log.set(StepEnd, -1, message=message)
    log.put((RunEnd, -1), of_boss(ToolEnd, "c9", "look", None, "not an object", "tool_invalid_arguments"))
    assert find_violations(log.numbered()) == []


def test_costs_may_differ_in_the_last_bit() -> None:
    log = Broken(tree())
    usage = log[-1].tree_usage
    log.set(RunEnd, -1, tree_usage=dataclasses.replace(usage, cost=usage.cost * (1 + 1e-15)))
    assert find_violations(log) == []


@given(st.sampled_from(LEGAL).flatmap(lambda build: st.lists(st.sampled_from(build()), max_size=60)), st.booleans())
def test_judging_never_fails_whatever_it_is_given(chunks: list[Chunk], finished: bool) -> None:
    for violation in find_violations(chunks, finished=finished):
        assert violation.name in GRAMMAR[violation.rule]
