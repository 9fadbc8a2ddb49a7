"""What the judge knows of a log so far: plain data, one object per agent, step, call and document.

Above `grammar` and `violations`; the checks, one file to a rule or two, read it and keep it up to date.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from helix.chunks import ApprovalRequest, ApprovalResponse, Chunk, ErrorChunk, RunEnd, SubagentStart
from helix.limits import Usage
from helix.messages import ToolCall
from helix.testing.check.grammar import RULE_OF
from helix.testing.check.violations import Violation


@dataclass(slots=True)
class Owner:
    """Who appends for some agents: the root's owner, or that of a child that was placed elsewhere."""

    epoch: int = 1
    resumes: int = 0
    found_open: set[str] = field(default_factory=set[str])
    """The agents whose steps the last run_resume found open, as far as they are not abandoned yet."""


@dataclass(slots=True)
class Document:
    """A state document; agents that work on one share this."""

    owner_id: str
    value: Any
    lost: bool = False
    """A patch did not apply, or the start was not seen: what the document is now cannot be known."""


@dataclass(slots=True)
class Input:
    """A call while the model writes it."""

    tool_name: str
    deltas: list[str] = field(default_factory=list[str])
    arguments: dict[str, Any] | str | None = None


@dataclass(slots=True)
class Step:
    """A step that is open, and what the model has written in it."""

    number: int
    attempt: int
    trimmed: bool = False
    """It began where deltas may be missing."""
    text: list[str] = field(default_factory=list[str])
    output: list[str] = field(default_factory=list[str])
    words: list[str] = field(default_factory=list[str])
    """Text and output, in the order in which they came."""
    thinking: list[str] = field(default_factory=list[str])
    pieces: list[str] = field(default_factory=list[str])
    """Pieces of thinking that no complete block has repeated yet."""
    inputs: dict[str, Input] = field(default_factory=dict[str, Input])


@dataclass(slots=True)
class Call:
    """A call that the last committed step asked for."""

    asked: ToolCall
    attempt: int = 0
    """Of the body that began last; 0 before any did."""
    began_after: int = 0
    """How many run_resumes came before that body."""
    children: set[str] = field(default_factory=set[str])
    """Those without a subagent_end."""
    request: ApprovalRequest | None = None
    answer: ApprovalResponse | None = None
    ended: bool = False
    overdue: bool = False
    """It was found unanswered, and that was told."""


@dataclass(slots=True)
class Agent:
    """One agent's life so far."""

    agent_id: str
    agent_type: str
    parent: Agent | None
    owner: Owner
    started: bool = False
    end: RunEnd | None = None
    document: Document | None = None
    expects: tuple[int, int] = (1, 1)
    """The step and attempt of the next step_start."""
    step: Step | None = None
    stray: bool = False
    """It wrote outside a step, and that was told."""
    cut: bool = False
    asked: set[str] = field(default_factory=set[str])
    """Every tool-call id of its history."""
    calls: dict[str, Call] = field(default_factory=dict[str, Call])
    requests: dict[str, Call] = field(default_factory=dict[str, Call])
    delegations: int = 0
    committed: int = 0
    usage: Usage = field(default_factory=Usage)
    below: Usage = field(default_factory=Usage)
    """What its children's trees used, as far as they ended."""
    settled: bool = False
    """Its usage is counted in its parent's `below`."""
    output: bool = False


@dataclass(slots=True)
class Delegation:
    """A child, as its subagent_start announced it."""

    parent: Agent
    start: SubagentStart
    call: Call | None
    ended: bool = False


@dataclass(slots=True)
class Log:
    """The log so far, and what was found wrong with it."""

    violations: list[Violation] = field(default_factory=list[Violation])
    sequence: int = 0
    floor: int = 0
    """Deltas up to that number may be missing."""
    root: Agent | None = None
    agents: dict[str, Agent] = field(default_factory=dict[str, Agent])
    delegations: dict[str, Delegation] = field(default_factory=dict[str, Delegation])
    open_steps: dict[str, Agent] = field(default_factory=dict[str, Agent])
    bodies: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """The calls that began, are not answered, and have no open child: a body runs."""
    pending: set[str] = field(default_factory=set[str])
    """The approvals that wait for an answer."""
    after_pause: bool = False
    """The chunk before was a run_pause."""
    parked: bool = False
    """There was a run_pause, and the root's owner has not come back."""
    cancel_errors: list[ErrorChunk] = field(default_factory=list[ErrorChunk])

    def broken(self, name: str, chunk: Chunk, message: str) -> None:
        self.violations.append(Violation(RULE_OF[name], name, chunk.sequence, message))


def is_as_streamed(step: Step, pieces: Iterable[str], whole: str) -> bool:
    """Whether what was streamed adds up to the whole; or, where some may be missing, stands in it in this order."""
    if not step.trimmed:
        return "".join(pieces) == whole
    at = 0
    for piece in pieces:
        found = whole.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return True
