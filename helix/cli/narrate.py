"""A run told in lines: `boss › researcher-1: ✓ search 12 ms`, one for each event of interest.

Floor 7: above `chunks`; a synchronous consumer, used by `run` and `demo`. Deltas are gathered into lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_core import to_json

from helix import chunks as c
from helix.messages import UserMessage

_WIDTH = 72


class Narrator:
    """Takes the chunks of a run in order and tells them line by line.

    Args:
        tell: where a line goes.
        words: tell what the models say and put out, too.
    """

    def __init__(self, tell: Callable[[str], None], *, words: bool) -> None:
        self._tell = tell
        self._words = words
        self._root = ""
        self._open: dict[tuple[str, str], str] = {}

    def take(self, chunk: c.Chunk) -> None:
        """Takes the next chunk."""
        match chunk:
            case c.RunStart():
                self._run_start(chunk)
            case c.RunEnd():
                self._run_end(chunk)
            case c.TextDelta():
                self._text(chunk)
            case c.Thinking():
                self._thinking(chunk)
            case c.StepEnd():
                self._step_end(chunk)
            case c.ToolStart():
                self._tool_start(chunk)
            case c.ToolOutputDelta():
                self._tool_output(chunk)
            case c.Custom():
                self._custom(chunk)
            case c.ToolEnd():
                self._tool_end(chunk)
            case c.StatePatch():
                self._state_patch(chunk)
            case c.ErrorChunk():
                self._error(chunk)
            case c.Output():
                self._output(chunk)
            case c.MessageChunk():
                self._message(chunk)
            case c.ApprovalRequest():
                self._approval(chunk)
            case c.RunPause():
                self._pause(chunk)
            case _:
                pass

    def say(self, chunk: c.Chunk, text: str) -> None:
        """Tells a line about the chunk's agent."""
        if "." not in chunk.agent_id:
            self._root = chunk.agent_type
        path = [self._root, *chunk.agent_id.split(".")[1:]]
        self._tell(f"{' › '.join(path)}: {text}")

    def gather(self, chunk: c.Chunk, source: str, delta: str) -> None:
        """Adds to the open line of one source, and tells the lines that are complete."""
        key = (chunk.agent_id, source)
        *lines, rest = (self._open.get(key, "") + delta).split("\n")
        self._open[key] = rest
        for line in lines:
            self._told(chunk, source, line)

    def flush(self, chunk: c.Chunk, source: str) -> None:
        """Tells the open line of a source, if there is one."""
        self._told(chunk, source, self._open.pop((chunk.agent_id, source), ""))

    def _told(self, chunk: c.Chunk, source: str, line: str) -> None:
        if line.strip():
            self.say(chunk, f"{source}{line.rstrip()}")

    # --- one method a chunk class

    def _run_start(self, chunk: c.RunStart) -> None:
        if self._words:
            asked = " ".join(message.content for message in chunk.input if isinstance(message, UserMessage))
            self.say(chunk, f"▷ {short(asked)}")

    def _run_end(self, chunk: c.RunEnd) -> None:
        why = f" ({chunk.error_code}): {chunk.error}" if chunk.error else ""
        if chunk.status != "completed" or self._words:
            self.say(chunk, f"{'■' if chunk.status == 'completed' else '✗'} {chunk.status}{why}")

    def _text(self, chunk: c.TextDelta) -> None:
        if self._words:
            self.gather(chunk, "", chunk.delta)

    def _thinking(self, chunk: c.Thinking) -> None:
        if self._words and not chunk.is_complete:
            self.gather(chunk, "~ ", chunk.content)

    def _step_end(self, chunk: c.StepEnd) -> None:
        for source in ("~ ", ""):
            self.flush(chunk, source)

    def _tool_start(self, chunk: c.ToolStart) -> None:
        arguments = ", ".join(f"{name}={short(value, 48)}" for name, value in chunk.arguments.items())
        self.say(chunk, f"→ {chunk.tool_name}({arguments})")

    def _tool_output(self, chunk: c.ToolOutputDelta) -> None:
        self.gather(chunk, f"  {chunk.tool_name} | ", chunk.delta)

    def _custom(self, chunk: c.Custom) -> None:
        data = "" if chunk.data is None else f" {short(chunk.data)}"
        self.say(chunk, f"  {chunk.event_name}{data}")

    def _tool_end(self, chunk: c.ToolEnd) -> None:
        self.flush(chunk, f"  {chunk.tool_name} | ")
        took = "" if chunk.duration_ms is None else f" {chunk.duration_ms} ms"
        failed = chunk.error is not None
        self.say(chunk, f"✗ {chunk.tool_name}: {chunk.error}" if failed else f"✓ {chunk.tool_name}{took}")

    def _state_patch(self, chunk: c.StatePatch) -> None:
        told = [f"{patch['op']} {patch['path']} {short(patch.get('value'), 40)}" for patch in chunk.patches]
        self.say(chunk, f"  state: {'; '.join(told)}")

    def _error(self, chunk: c.ErrorChunk) -> None:
        if chunk.recoverable:
            self.say(chunk, f"! {chunk.error} ({chunk.code}); trying again")

    def _output(self, chunk: c.Output) -> None:
        if self._words:
            self.say(chunk, f"output {short(chunk.output)}")

    def _message(self, chunk: c.MessageChunk) -> None:
        text = chunk.message.content if isinstance(chunk.message, UserMessage) else ""
        self.say(chunk, f"{chunk.kind}: {short(text)}")

    def _approval(self, chunk: c.ApprovalRequest) -> None:
        self.say(chunk, f"? {chunk.tool_name} waits for an answer: {chunk.approval_id}")

    def _pause(self, chunk: c.RunPause) -> None:
        self.say(chunk, chunk.status)


def short(value: Any, width: int = _WIDTH) -> str:
    """A text as it is, anything else as JSON, on one line of at most `width` characters."""
    text = value if isinstance(value, str) else to_json(value).decode()
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 1]}…"
