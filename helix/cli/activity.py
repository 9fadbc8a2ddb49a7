"""What an agent is doing now: a glyph, a word, and a few words more.

Floor 7: above `fold`; pure. `Seen` keeps what the fold does not: last words, a tool's progress, when it was last heard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from helix import chunks as c
from helix.cli.narrate import short
from helix.fold import AgentNode, CallNode
from helix.outline import GLYPHS, name_of

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_STYLES = {"completed": "green", "failed": "red", "cancelled": "magenta", "running": "cyan"}
_KEPT = 4000
"""Characters of an agent's words that are kept at least."""


@dataclass(slots=True)
class Seen:
    """What is kept of an agent beside its node."""

    at: int = 0
    """When it was last heard."""
    doing: str = ""
    """What its open model call does, or why there is none."""
    words: str = ""
    """The end of what it says or thinks."""
    said: str = ""
    """The last that it said or put out."""
    subject: str = ""
    """The model that is asked, the tool whose call is written, the error after which it tries again."""
    progress: dict[str, Any] = field(default_factory=dict[str, Any])
    """The last news of each open tool call."""
    approvals: dict[str, c.ApprovalRequest] = field(default_factory=dict[str, c.ApprovalRequest])
    took_ms: int | None = None

    @property
    def writing(self) -> str:
        """The words that it is saying right now."""
        return self.words if self.doing == "writing" else ""

    def hear(self, doing: str, words: str) -> None:
        """It says or thinks something more."""
        if self.doing != doing:
            self.doing, self.words = doing, ""
        self.words += words
        if len(self.words) > 2 * _KEPT:
            self.words = self.words[-_KEPT:]


@dataclass(slots=True, frozen=True)
class Activity:
    """How an agent's line looks.

    Attributes:
        writing: `text` grows at its end: when it is too long, its beginning is left out.
    """

    glyph: str
    style: str
    word: str
    text: str = ""
    writing: bool = False


def observe(seen: Seen, chunk: c.Chunk) -> None:
    """Takes in the next chunk of the agent."""
    if chunk.timestamp > seen.at:
        seen.at = chunk.timestamp
    handler = _HANDLERS.get(type(chunk))
    if handler is not None:
        handler(seen, chunk)


def activity(node: AgentNode, seen: Seen, status: str, *, now: int, silent_ms: int = 0) -> Activity:
    """What the agent's line says.

    Args:
        node, seen: the agent.
        status: how it stands with it.
        now: Unix ms.
        silent_ms: for how long nothing was heard of its branch; 0 if that is not remarkable.
    """
    if status != "running":
        text = node.error or node.error_code or seen.said
        return Activity(GLYPHS.get(status, "·"), _STYLES.get(status, "yellow"), status, text)
    if seen.approvals:
        request = next(iter(seen.approvals.values()))
        return Activity("?", "yellow", "waiting", f"for an answer: {_call(request.tool_name, request.arguments)}")
    word, text = _at_work(node, seen)
    if silent_ms:
        return Activity("!", "yellow", "silent", f"silent for {elapsed(silent_ms)} · {text or word}")
    return Activity(_SPINNER[now // 100 % len(_SPINNER)], "cyan", word, text, word in ("writing", "thinking"))


def _at_work(node: AgentNode, seen: Seen) -> tuple[str, str]:
    if seen.doing:
        return seen.doing, seen.words[-_KEPT:] if seen.doing in ("writing", "thinking") else seen.subject
    open_calls = [call for call in node.open_calls if call.attempt]
    bodies = [call for call in open_calls if not call.children]
    if bodies:
        more = f" and {len(bodies) - 1} more" if len(bodies) > 1 else ""
        return "working", f"{_body(bodies[0], seen)}{more}"
    children = [name_of(agent_id, agent_id) for call in open_calls for agent_id in call.children]
    return ("delegating", ", ".join(children)) if children else ("running", "")


def _body(call: CallNode, seen: Seen) -> str:
    arguments = call.arguments if isinstance(call.arguments, dict) else {"": call.arguments}
    news = _news(seen.progress.get(call.tool_call_id))
    return _call(call.tool_name, arguments) + (f" · {news}" if news else "")


def _call(tool: str, arguments: dict[str, Any]) -> str:
    values = list(arguments.values())
    if len(values) == 1:
        return f"{tool}({short(values[0], 40)})"
    return f"{tool}({', '.join(f'{name}={short(value, 24)}' for name, value in arguments.items())})"


def _news(chunk: Any) -> str:
    """A tool's progress: `shelf 1, of 3`, or the last line of its output."""
    if isinstance(chunk, c.ToolOutputDelta):
        return short(chunk.delta.strip().rpartition("\n")[2], 40)
    if not isinstance(chunk, c.Custom):
        return ""
    data: Any = chunk.data
    if isinstance(data, dict):
        data = cast(dict[str, Any], data)
        return short(", ".join(f"{name} {short(value, 24)}" for name, value in data.items()), 48)
    return short(chunk.event_name if data is None else data, 40)


def elapsed(ms: int) -> str:
    """A time for people: `3.2 s`, `42 s`, `3:05`, `1:02:03`."""
    seconds = ms // 1000
    if seconds < 60:
        return f"{ms / 1000:.1f} s" if ms < 9_950 else f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}:{seconds:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def count(number: int) -> str:
    """A number for people: `594`, `12.3k`, `4.1M`."""
    if number < 1000:
        return str(number)
    return f"{number / 1000:.1f}k" if number < 999_950 else f"{number / 1_000_000:.1f}M"


# One function a chunk class.


def _step_start(seen: Seen, chunk: c.StepStart) -> None:
    seen.doing, seen.words, seen.subject = "asking", "", chunk.model


def _text(seen: Seen, chunk: c.TextDelta | c.OutputDelta) -> None:
    seen.hear("writing", chunk.delta)


def _thinking(seen: Seen, chunk: c.Thinking) -> None:
    if not chunk.is_complete:
        seen.hear("thinking", chunk.content)


def _tool_input(seen: Seen, chunk: c.ToolInputStart) -> None:
    seen.said = seen.writing or seen.said
    seen.doing, seen.subject = "calling", chunk.tool_name


def _step_end(seen: Seen, chunk: c.StepEnd) -> None:
    seen.said = seen.writing or seen.said
    seen.words = ""
    if seen.doing != "retrying":
        seen.doing = ""


def _tool_news(seen: Seen, chunk: c.Custom | c.ToolOutputDelta) -> None:
    if chunk.tool_call_id is not None:
        seen.progress[chunk.tool_call_id] = chunk


def _tool_end(seen: Seen, chunk: c.ToolEnd) -> None:
    seen.progress.pop(chunk.tool_call_id, None)


def _error(seen: Seen, chunk: c.ErrorChunk) -> None:
    if chunk.recoverable and chunk.tool_call_id is None:
        seen.doing, seen.subject = "retrying", chunk.error


def _output(seen: Seen, chunk: c.Output) -> None:
    seen.said = short(chunk.output, 200)


def _approval_request(seen: Seen, chunk: c.ApprovalRequest) -> None:
    seen.approvals[chunk.approval_id] = chunk


def _approval_response(seen: Seen, chunk: c.ApprovalResponse) -> None:
    seen.approvals.pop(chunk.approval_id, None)


def _run_end(seen: Seen, chunk: c.RunEnd) -> None:
    seen.took_ms, seen.doing, seen.words = chunk.duration_ms, "", ""
    seen.progress.clear()
    seen.approvals.clear()


def _run_resume(seen: Seen, chunk: c.RunResume) -> None:
    seen.doing = ""


_HANDLERS: dict[type[Any], Callable[[Seen, Any], None]] = {
    c.StepStart: _step_start,
    c.TextDelta: _text,
    c.OutputDelta: _text,
    c.Thinking: _thinking,
    c.ToolInputStart: _tool_input,
    c.StepEnd: _step_end,
    c.Custom: _tool_news,
    c.ToolOutputDelta: _tool_news,
    c.ToolEnd: _tool_end,
    c.ErrorChunk: _error,
    c.Output: _output,
    c.ApprovalRequest: _approval_request,
    c.ApprovalResponse: _approval_response,
    c.RunEnd: _run_end,
    c.RunResume: _run_resume,
}
