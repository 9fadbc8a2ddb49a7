"""Endings: the chunks that close what the fold says is open, deepest first.

Floor 3: above `fold` and `log`; pure generators. Tasks that are cut unwind and say nothing; whoever owns the cut
appends these in one go. The same code ends a call, a cancelled branch, a run out of time and a run without an owner.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Literal, cast

from helix import chunks as c
from helix.fold import AgentNode, CallNode
from helix.limits import Usage
from helix.log import RunLog, now_ms
from helix.messages import AssistantMessage, Part, TextPart, ThinkingPart
from helix.parts import Content

EndStatus = Literal["completed", "failed", "cancelled"]


def end_call(
    log: RunLog,
    node: AgentNode,
    call: CallNode,
    result: Any = None,
    *,
    error: str | None = None,
    code: str | None = None,
    truncated: bool = False,
    content: Content | None = None,
) -> Iterator[c.Chunk]:
    """Answers a call: ends the children that it left open, then the call."""
    call = node.calls.get(call.tool_call_id, call)  # the fold may have been made anew since the caller got it
    yield from _end_children(log, node, call)
    yield _tool_end(node, call, result, error=error, code=code, truncated=truncated, content=content)


def end_agent(
    log: RunLog, node: AgentNode, status: EndStatus, *, error: str | None = None, code: c.ErrorCode | None = None
) -> Iterator[c.Chunk]:
    """Ends an agent in whatever state it is: its open children and calls, its open step, then itself."""
    yield from _end_agent(log, node, status, error=error, code=code)


def _run_end(
    log: RunLog,
    node: AgentNode,
    status: EndStatus,
    error: str | None,
    code: c.ErrorCode | None,
    own: Usage,
    tree: Usage,
) -> c.RunEnd:
    reason: c.FinishReason | None = node.finish_reason if status == "completed" else None
    if reason is not None and node.has_output:
        reason = "output"
    if code is not None and code.startswith("limit_"):
        reason = "limit"
    return c.RunEnd(
        node.agent_id,
        node.agent_type,
        status,
        node.usage + own,
        node.tree_usage + tree,
        node.steps,
        log.tree.elapsed_ms(node, now_ms()),
        finish_reason=reason,
        session_id=node.session_id,
        error=error,
        error_code=code,
    )


def _end_agent(
    log: RunLog, node: AgentNode, status: EndStatus, *, error: str | None, code: c.ErrorCode | None
) -> Generator[c.Chunk, None, Usage]:
    """Yields the chunks; returns what the cut steps of the subtree add to its usage."""
    below = Usage()
    for call in node.open_calls:
        below += yield from _end_children(log, node, call)
        yield _tool_end(node, call, None, error="the run ended before this call was answered", code="cancelled")
    own = Usage(requests=1) if node.step_open is not None else Usage()
    if node.step_open is not None:
        yield _cut_step(log, node, own)
    if code is not None and node.error_code is None:  # a stop by the caller writes no `error`
        yield c.ErrorChunk(node.agent_id, node.agent_type, error or code, code, False)
    end = _run_end(log, node, status, error, code, own, own + below)
    yield end
    if node.parent is not None:
        yield _subagent_end(node.parent, node, status, end.tree_usage, error)
    return own + below


def _end_children(log: RunLog, node: AgentNode, call: CallNode) -> Generator[c.Chunk, None, Usage]:
    added = Usage()
    for child_id in call.children:
        child = log.tree.agents.get(child_id)
        if child is None:
            yield from _never_begun(node, call, child_id)
        elif not child.ended:
            added += yield from _end_agent(log, child, "cancelled", error=None, code=None)
        elif child_id not in call.reported:
            yield _subagent_end(node, child, child.status, child.tree_usage, child.error)
    return added


def _never_begun(node: AgentNode, call: CallNode, child_id: str) -> Iterator[c.Chunk]:
    """A child that was announced when the process stopped."""
    name = child_id.rpartition(".")[2].rpartition("-")[0]
    ids = (child_id, name)
    yield c.RunStart(*ids, [], node.model, None, session_id=node.session_id, parent_id=node.agent_id)
    yield c.RunEnd(*ids, "cancelled", Usage(), Usage(), 0, 0, session_id=node.session_id)
    ended = (name, child_id, call.tool_call_id, None, "cancelled", Usage())
    yield c.SubagentEnd(node.agent_id, node.agent_type, *ended, error="cancelled")


def _subagent_end(
    parent: AgentNode, node: AgentNode, status: str, tree_usage: Usage, error: str | None
) -> c.SubagentEnd:
    completed = status == "completed"
    return c.SubagentEnd(
        parent.agent_id,
        parent.agent_type,
        node.agent_type,
        node.agent_id,
        node.call_id or "",
        node.result if completed else None,
        cast(c.RunStatus, status),
        tree_usage,
        error=None if completed else error or status,
    )


def _tool_end(
    node: AgentNode,
    call: CallNode,
    result: Any,
    *,
    error: str | None = None,
    code: str | None = None,
    truncated: bool = False,
    content: Content | None = None,
) -> c.ToolEnd:
    return c.ToolEnd(
        node.agent_id,
        node.agent_type,
        call.tool_call_id,
        call.tool_name,
        result,
        error,
        code,
        duration_ms=max(0, now_ms() - call.started_at) if call.attempt else None,
        truncated=True if truncated else None,
        content=content,
    )


def _cut_step(log: RunLog, node: AgentNode, usage: Usage) -> c.StepEnd:
    content = _said_since(log, node)
    return c.StepEnd(
        node.agent_id,
        node.agent_type,
        node.step,
        node.attempt,
        "cut",
        usage,
        message=AssistantMessage(content, cut=True) if content else None,
    )


def _said_since(log: RunLog, node: AgentNode) -> list[Part]:
    """What the agent said in its open step, from the log: the fold keeps no deltas."""
    thinking: list[str] = []
    words: list[str] = []
    for chunk in log.above(node.step_open or 0):
        if chunk.agent_id != node.agent_id:
            continue
        if isinstance(chunk, c.TextDelta | c.OutputDelta):
            words.append(chunk.delta)
        elif isinstance(chunk, c.Thinking) and not chunk.is_complete:
            thinking.append(chunk.content)
    content: list[Part] = []
    if thinking:
        content.append(ThinkingPart("".join(thinking)))
    if words:
        content.append(TextPart("".join(words)))
    return content
