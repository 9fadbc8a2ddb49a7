"""What the tree of a run is made of: its agents, and the calls of their last steps. Plain data; the fold fills it.

Floor 2: above `chunks` and `model`, below `fold`, from which the others take it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from helix import chunks as c
from helix.limits import Limits, Usage
from helix.messages import AssistantMessage, Message
from helix.model import History
from helix.parts import Content


@dataclass(slots=True)
class CallNode:
    """A tool call of an agent's last committed step."""

    tool_call_id: str
    tool_name: str
    arguments: dict[str, Any] | str
    attempt: int = 0
    """How often its body began; 0 while it has not."""
    started_at: int = 0
    ended: bool = False
    result: Any = None
    parts: Content | None = None
    """The result as the model reads it, when it holds images, audio or files."""
    error: str | None = None
    error_code: str | None = None
    children: list[str] = field(default_factory=list[str])
    """The ids of the agents that this call started, in order."""
    reported: set[str] = field(default_factory=set[str])
    """Those of them whose `subagent_end` is written."""
    request: c.ApprovalRequest | None = None
    """What somebody was asked about it before it may run."""
    answer: c.ApprovalResponse | None = None
    """What they said. Arguments that they gave stand in `arguments`."""

    @property
    def content(self) -> Content:
        """What the model reads of the answer: a text as it is, anything else as compact JSON, an error's sentence."""
        if self.error is not None:
            return self.error
        if self.parts is not None:
            return self.parts
        return self.result if isinstance(self.result, str) else to_json(self.result).decode()


@dataclass(slots=True, repr=False)
class AgentNode:
    """One agent's life, as far as the log tells it."""

    agent_id: str
    agent_type: str
    parent: AgentNode | None
    call_id: str | None
    """The parent's tool call that started it."""
    key: str | None
    depth: int
    model: str
    input: list[Message]
    session_id: str | None
    started_at: int
    limits: Limits
    """What bounds this agent alone: its own limits over its parent's."""
    bounds: Limits
    """What was set here for the subtree."""
    state: Any
    state_id: str
    """Whose document it works on; its own id unless the state is shared."""
    state_version: int = field(default=0, kw_only=True)
    """How often its own document has changed."""
    messages: History
    downtime_before: int = 0
    status: str = "running"
    inbox: list[Message] = field(default_factory=list[Message])
    step: int = 0
    attempt: int = 0
    step_open: int | None = None
    """The sequence of the open `step_start`, if a model call is open."""
    asked: str = ""
    """The model of its last model call."""
    reserve: Usage = field(default_factory=Usage)
    """What its open model call has reserved."""
    steps: int = 0
    """Committed steps."""
    last: AssistantMessage | None = None
    """The message of the last committed step."""
    calls: dict[str, CallNode] = field(default_factory=dict[str, CallNode])
    """The calls of the last committed step, in call order, until the next step begins."""
    call_ids: set[str] = field(default_factory=set[str])
    children: list[str] = field(default_factory=list[str])
    usage: Usage = field(default_factory=Usage)
    usage_by_model: dict[str, Usage] = field(default_factory=dict[str, Usage])
    """Its own usage, by the model that was asked."""
    tree_usage: Usage = field(default_factory=Usage)
    failed_attempts: list[str] = field(default_factory=list[str])
    """Why each abandoned attempt of a step failed, in order."""
    failures: dict[str, int] = field(default_factory=dict[str, int])
    """How often each tool failed in a row."""
    output_failures: int = 0
    output_refused: bool = False
    """What its last committed step came to was no valid output: the model was told so by a message."""
    has_output: bool = False
    output: Any = None
    finish_reason: c.FinishReason | None = None
    error: str | None = None
    error_code: c.ErrorCode | None = None
    owes_answer: bool = False
    """It delegated and has not asked its model since: one request is kept back for it."""
    tree_owed: int = 0
    tree_requests: int = 0
    tree_open_steps: int = 0
    tree_reserved: int = 0
    """Tokens that its open model call and those below it have reserved."""
    tree_reserved_cost: float = 0
    """The same in US dollars."""

    def __repr__(self) -> str:
        below = f", {len(self.children)} children" if self.children else ""
        tokens = f"{self.tree_usage.total_tokens} tokens"
        return f"AgentNode({self.agent_id!r}, {self.status}, {self.steps} steps{below}, {tokens})"

    @property
    def ended(self) -> bool:
        """Whether its `run_end` was written."""
        return self.status != "running"

    @property
    def open_calls(self) -> list[CallNode]:
        """The calls that still want an answer, in call order."""
        return [call for call in self.calls.values() if not call.ended]

    @property
    def result(self) -> Any:
        """What it has come to, as JSON data: its output; without an output type the words of its last step."""
        if self.has_output:
            return self.output
        return (self.last.text or self.last.refusal) if self.last else ""

    def lineage(self) -> Iterator[AgentNode]:
        """This agent, its parent, … up to the root."""
        node: AgentNode | None = self
        while node is not None:
            yield node
            node = node.parent
