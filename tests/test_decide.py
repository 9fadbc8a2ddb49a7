"""The loop's specification, as a table: what the fold says, and what is done next."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from helix import Agent, Limits, ModelSettings, Usage, UserMessage, tool
from helix.agent import OUTPUT_TOOL
from helix.chunks import Chunk, ErrorChunk, MessageChunk, Output, RunStart, StepEnd, StepStart, SubagentStart, ToolEnd
from helix.decide import Answer, Ask, End, Finish, Judge, Park, Wait, decide
from helix.fold import AgentNode, CallNode, RunTree
from helix.messages import AssistantMessage, Part, RefusalPart, TextPart, ToolCall


class Report(BaseModel):
    title: str


@tool(retries=1)
def work() -> str:
    return ""


@tool(finishes=True)
def finish() -> str:
    return "done"


PLAIN = Agent("a", tools=[work, finish])
CHECKED = Agent("a", tools=[work], output_validators=[str.upper])
STRUCTURED = Agent("a", output_type=Report, tools=[work], output_retries=1)
ME = ("run", "a")
CALL = ToolCall("c1", "work", {})
FINISHING = ToolCall("c1", "finish", {})
BROKEN_OUTPUT = ToolCall("c1", OUTPUT_TOOL, '{"title": "A lo')


def start(limits: Limits | None = None) -> RunStart:
    return RunStart(*ME, [UserMessage("hi")], "m", None, limits=limits.given() if limits else None)


def step(number: int, *parts: Part, attempt: int = 1, outcome: Any = "committed", tokens: int = 18) -> list[Chunk]:
    usage = Usage(total_tokens=tokens, requests=1)
    message = AssistantMessage(list(parts)) if outcome == "committed" else None
    return [StepStart(*ME, number, attempt, "m"), StepEnd(*ME, number, attempt, outcome, usage, message, "stop")]


def answered(error: str | None = None, code: str | None = None) -> ToolEnd:
    return ToolEnd(*ME, "c1", "work", None if error else "ok", error, code)


def refused(call_id: str) -> ToolEnd:
    return ToolEnd(*ME, call_id, OUTPUT_TOOL, None, "not valid", "output_invalid")


def finished(call_id: str) -> ToolEnd:
    return ToolEnd(*ME, call_id, "finish", "done")


def node_of(*chunks: Chunk) -> AgentNode:
    tree = RunTree()
    for number, chunk in enumerate(chunks, 1):
        chunk.sequence = number
        tree.apply(chunk)
    return tree.root


def child_of_waiting_root(limits: Limits, requests: int = 1) -> AgentNode:
    """A child that wants to ask while its parent waits for it; `requests` were made by the parent."""
    chunks: list[Chunk] = [start(limits)]
    for number in range(1, requests):
        chunks += [*step(number, CALL), answered()]
    chunks += [*step(requests, ToolCall("c2", "child", {}))]
    chunks += [SubagentStart(*ME, "child", "run.child-1", "c2")]
    chunks += [RunStart("run.child-1", "child", [UserMessage("do")], "m", None, parent_id="run")]
    tree = RunTree()
    for chunk in chunks:
        tree.apply(chunk)
    return tree.agents["run.child-1"]


FEEDBACK = MessageChunk(*ME, UserMessage("not valid"), "feedback")
STEERING = MessageChunk(*ME, UserMessage("be brief"), "steering")
HELLO = TextPart("hello")

TABLE: list[tuple[str, Agent[Any, Any, Any], list[Chunk], Any]] = [
    ("it asks first", PLAIN, [start()], Ask(1, 1)),
    ("an open call is answered", PLAIN, [start(), *step(1, CALL)], Answer),
    ("answered calls lead to the next step", PLAIN, [start(), *step(1, CALL), answered()], Ask(2, 1)),
    ("words without calls are the end", PLAIN, [start(), *step(1, HELLO)], End("completed")),
    ("a message in the inbox is answered first", PLAIN, [start(), *step(1, HELLO), STEERING], Ask(2, 1)),
    ("an abandoned attempt is made again", PLAIN, [start(), *step(1, outcome="abandoned")], Ask(1, 2)),
    (
        "an error that ends it",
        PLAIN,
        [start(), ErrorChunk(*ME, "no", "model_rejected", False), *step(1, outcome="abandoned")],
        End("failed", "no", "model_rejected"),
    ),
    ("an output is the end", STRUCTURED, [start(), *step(1, HELLO), Output(*ME, {"title": "t"})], End("completed")),
    ("a text may be the output", STRUCTURED, [start(), *step(1, HELLO)], Judge("hello")),
    (
        "a bad output is asked for again, with all tools at hand",
        STRUCTURED,
        [start(), *step(1, TextPart('{"titel": 1}')), FEEDBACK],
        Ask(2, 1),
    ),
    (
        "mere words are no output: that alone is asked for now",
        STRUCTURED,
        [start(), *step(1, HELLO), FEEDBACK],
        Ask(2, 1, force_output=True),
    ),
    (
        "so is it again when the attempt is made again",
        STRUCTURED,
        [start(), *step(1, HELLO), FEEDBACK, *step(2, outcome="abandoned")],
        Ask(2, 2, force_output=True),
    ),
    (
        "a reply that was cut off before it said anything is no output either",
        STRUCTURED,
        [start(), *step(1), FEEDBACK],
        Ask(2, 1, force_output=True),
    ),
    (
        "a call of the output tool that was cut off is made again, and it alone",
        STRUCTURED,
        [start(), *step(1, BROKEN_OUTPUT), refused("c1")],
        Ask(2, 1, force_output=True),
    ),
    (
        "words that a message has overtaken are not judged, and force nothing",
        STRUCTURED,
        [start(), *step(1, HELLO), STEERING],
        Ask(2, 1),
    ),
    (
        "the call after one that was forced is not",
        STRUCTURED,
        [start(), *step(1, HELLO), FEEDBACK, *step(2, CALL), answered()],
        Ask(3, 1),
    ),
    (
        "at the limit of steps the output is asked for once more",
        STRUCTURED,
        [start(Limits(steps=1)), *step(1, CALL), answered()],
        Ask(2, 1, force_output=True),
    ),
    (
        "and not twice",
        STRUCTURED,
        [start(Limits(steps=1)), *step(1, CALL), answered(), *step(2, HELLO), FEEDBACK],
        End("failed", "the limit of 1 steps is reached", "limit_steps"),
    ),
    ("words are judged where there are validators", CHECKED, [start(), *step(1, HELLO)], Judge("hello")),
    (
        "and asked for again as they were",
        CHECKED,
        [start(), *step(1, HELLO), FEEDBACK],
        Ask(2, 1),
    ),
    (
        "the result of a tool that finishes is the output",
        PLAIN,
        [start(), *step(1, FINISHING), finished("c1")],
        Finish((CallNode("c1", "finish", {}, ended=True, result="done"),)),
    ),
    (
        "once all calls of the step are answered",
        PLAIN,
        [start(), *step(1, FINISHING, ToolCall("c2", "work", {})), finished("c1")],
        Answer((CallNode("c2", "work", {}),)),
    ),
    (
        "one that failed does not finish",
        PLAIN,
        [start(), *step(1, FINISHING), ToolEnd(*ME, "c1", "finish", None, "bad", "tool_failed")],
        Ask(2, 1),
    ),
    (
        "results that are no valid output are told to the model",
        PLAIN,
        [start(), *step(1, FINISHING), finished("c1"), FEEDBACK],
        Ask(2, 1),
    ),
    (
        "of two that finish the first in call order comes first, whenever it was answered",
        PLAIN,
        [start(), *step(1, FINISHING, ToolCall("c2", "finish", {})), finished("c2"), finished("c1")],
        Finish(
            (
                CallNode("c1", "finish", {}, ended=True, result="done"),
                CallNode("c2", "finish", {}, ended=True, result="done"),
            )
        ),
    ),
    (
        "too many bad outputs end it",
        STRUCTURED,
        [start(), *step(1, HELLO), FEEDBACK, *step(2, HELLO), FEEDBACK],
        End("failed", "no valid output in 2 tries", "output_invalid"),
    ),
    (
        "a refusal is no output",
        STRUCTURED,
        [start(), *step(1, RefusalPart("no"))],
        End("failed", "the model refused: no", "model_filtered"),
    ),
    ("a refusal in words is an answer", PLAIN, [start(), *step(1, RefusalPart("no"))], End("completed")),
    ("a tool may fail once", PLAIN, [start(), *step(1, CALL), answered("bad", "tool_failed")], Ask(2, 1)),
    (
        "the limit of steps",
        PLAIN,
        [start(Limits(steps=1)), *step(1, CALL), answered()],
        End("failed", "the limit of 1 steps is reached", "limit_steps"),
    ),
    (
        "the limit of requests",
        PLAIN,
        [start(Limits(requests=1)), *step(1, CALL), answered()],
        End("failed", "the limit of 1 requests is reached", "limit_requests"),
    ),
    (
        "the limit of tokens, when what is used leaves no room",
        PLAIN,
        [start(Limits(total_tokens=18)), *step(1, CALL), answered()],
        End("failed", "the limit of 18 tokens is reached", "limit_tokens"),
    ),
    (
        "room for some tokens is room for one more call, with a reservation",
        PLAIN,
        [start(Limits(total_tokens=19)), *step(1, CALL), answered()],
        Ask(2, 1, Usage(total_tokens=18)),
    ),
]


@pytest.mark.parametrize(("agent", "chunks", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_is_done_next(agent: Agent[Any, Any, Any], chunks: list[Chunk], expected: Any) -> None:
    action = decide(node_of(*chunks), agent)
    assert type(action) is expected if isinstance(expected, type) else action == expected


def test_a_tool_that_fails_more_often_in_a_row_than_its_retries_ends_the_agent() -> None:
    twice = [*step(1, CALL), answered("bad", "tool_failed")]
    again = [*step(2, ToolCall("c2", "work", {})), ToolEnd(*ME, "c2", "work", None, "bad", "tool_failed")]
    action = decide(node_of(start(), *twice, *again), PLAIN)
    assert action == End("failed", "tool 'work' failed too often: bad", "tool_failed")


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([start()], Park()),
        ([start(), *step(1, CALL)], Answer),
        ([start(), *step(1, HELLO)], End("completed")),
    ],
    ids=["it parks before a step", "tools finish", "what is over is over"],
)
def test_what_is_done_next_when_the_run_is_to_stop(chunks: list[Chunk], expected: Any) -> None:
    action = decide(node_of(*chunks), PLAIN, stopping=True)
    assert type(action) is expected if isinstance(expected, type) else action == expected


def test_one_request_is_kept_back_for_each_agent_that_waits() -> None:
    child = Agent("child")
    assert decide(child_of_waiting_root(Limits(requests=3)), child) == Ask(1, 1)
    assert isinstance(decide(child_of_waiting_root(Limits(requests=2)), child), End)


def test_a_full_house_waits() -> None:
    chunks = [start(Limits(concurrency=1)), *step(1, ToolCall("c1", "child", {}), ToolCall("c2", "child", {}))]
    for number, call in ((1, "c1"), (2, "c2")):
        child_id = f"run.child-{number}"
        chunks += [SubagentStart(*ME, "child", child_id, call)]
        chunks += [RunStart(child_id, "child", [UserMessage("do")], "m", None, parent_id="run")]
    tree = RunTree()
    for chunk in [*chunks, StepStart("run.child-1", "child", 1, 1, "m")]:
        tree.apply(chunk)
    assert decide(tree.agents["run.child-2"], Agent("child")) == Wait()


def test_tokens_that_others_have_reserved_are_waited_for() -> None:
    limits = Limits(total_tokens=500)
    chunks: list[Chunk] = [start(limits), *step(1, ToolCall("c1", "child", {}), ToolCall("c2", "child", {}))]
    for number, call in ((1, "c1"), (2, "c2")):
        child_id = f"run.child-{number}"
        chunks += [SubagentStart(*ME, "child", child_id, call)]
        chunks += [RunStart(child_id, "child", [UserMessage("do")], "m", None, parent_id="run")]
    tree = RunTree()
    for chunk in [*chunks, StepStart("run.child-1", "child", 1, 1, "m", Usage(total_tokens=400))]:
        tree.apply(chunk)
    modest = Agent("child", settings=ModelSettings(max_tokens=50))
    assert decide(tree.agents["run.child-2"], modest) == Ask(1, 1, Usage(total_tokens=50))
    assert decide(tree.agents["run.child-2"], Agent("child")) == Wait()
