"""A run told in lines: `boss › researcher-1: ✓ search 12 ms`, one for each event of interest.

Floor 7: above `chunks`; a synchronous consumer, alone or above the live tree. Deltas are gathered into lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from helix import chunks as c
from helix.cli.console import printable
from helix.errors import UsageError, did_you_mean
from helix.messages import UserMessage

_WIDTH = 72
_ABOVE_A_TREE = frozenset({"text_delta", "output", "message", "approval_request", "run_pause", "run_resume"})
"""What is told beside failures when a live tree shows the rest."""


def chunk_types(given: str) -> frozenset[str]:
    """The chunk types in a list with commas.

    Raises:
        UsageError: one of them does not exist.
    """
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in c.CHUNK_TYPES:
            known = f" The types: {', '.join(c.CHUNK_TYPES)}."
            raise UsageError(f"--only: no chunk type {name!r}.{did_you_mean(name, c.CHUNK_TYPES)}{known}")
    if not names:
        raise UsageError("--only: name at least one chunk type")
    return frozenset(names)


class Focus:
    """Which agents are told of: all, or those of one name (`researcher`, `researcher-1`) or id, and all below them.

    Attributes:
        name: what was asked for, if anything.
        found: whether an agent of that name has been seen.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.found = False
        self._known: dict[str, bool] = {}

    def sees(self, agent_id: str, agent_type: str) -> bool:
        """Whether the agent is one of them. Parents are asked about before their children."""
        if self.name is None:
            return True
        seen = self._known.get(agent_id)
        if seen is None:
            above, _, last = agent_id.rpartition(".")
            own = self.name in (agent_id, agent_type, last)
            self.found = self.found or own
            seen = self._known[agent_id] = own or self._known.get(above, False)
        return seen


@dataclass(slots=True, frozen=True)
class Telling:
    """What a narrator tells, and how.

    Attributes:
        focus: of which agents.
        only: the chunk types; by default all of which there is something to tell.
        above_tree: a live tree shows what goes on: tell words, each step's at once, and what fails.
        root_words: tell the root's words; without them when they are streamed elsewhere on the same screen.
        answer: tell the root's answer; without it when it is printed on the same screen at the end.
    """

    focus: Focus
    only: frozenset[str] | None = None
    above_tree: bool = False
    root_words: bool = True
    answer: bool = True

    def wants(self, chunk: c.Chunk) -> bool:
        """Whether a chunk of that kind is told."""
        if self.only is not None:
            return chunk.type in self.only
        if not self.above_tree or chunk.type in _ABOVE_A_TREE:
            return True
        known = getattr(chunk, "error_code", None) in (
            "subagent_failed",
            "cancelled",
        )  # the child's news, or the user's
        return getattr(chunk, "error", None) is not None and not known


class Narrator:
    """Takes the chunks of a run in order and tells them.

    Args:
        tell: where it goes: the agent's path, and a text of one line (above a tree: of one or more).
        telling: what is told; by default all.
    """

    def __init__(self, tell: Callable[[str, str], None], telling: Telling | None = None) -> None:
        self._tell = tell
        self._telling = telling or Telling(Focus())
        self._root, self._root_id = "", ""
        self._by_class = self._tellers()
        self._open: dict[tuple[str, str], list[str]] = {}
        self._held: tuple[c.Chunk, str] | None = None
        """Words of the root that may turn out to be its answer."""

    def take(self, chunk: c.Chunk) -> None:
        """Takes the next chunk."""
        if not self._root_id:
            self._root, self._root_id = chunk.agent_type, chunk.agent_id.partition(".")[0]
        if not self._telling.focus.sees(chunk.agent_id, chunk.agent_type):
            return
        if self._held is not None and chunk.agent_id == self._root_id:
            self._let_go(chunk)
        if isinstance(chunk, c.StepEnd):
            self._step_end(chunk)
        elif isinstance(chunk, c.ToolEnd):
            self.flush(chunk, f"  {chunk.tool_name} | ")
        if self._telling.wants(chunk):
            self._take(chunk)

    def _take(self, chunk: c.Chunk) -> None:
        teller = self._by_class.get(type(chunk))
        if teller is not None:
            teller(chunk)
        elif self._telling.only is not None:
            self.say(chunk, f"{chunk.type} {short(_own_fields(chunk))}".rstrip())

    def say(self, chunk: c.Chunk, text: str) -> None:
        """Tells a line about the chunk's agent."""
        path = [self._root, *chunk.agent_id.split(".")[1:]]
        self._tell(printable(" › ".join(path)), printable(text))

    def gather(self, chunk: c.Chunk, source: str, delta: str) -> None:
        """Adds to the open text of one source, and tells the lines that are complete."""
        key = (chunk.agent_id, source)
        pieces = self._open.setdefault(key, [])
        pieces.append(delta)
        if "\n" in delta and not self._waits(chunk, source):
            *lines, rest = "".join(pieces).split("\n")
            self._open[key] = [rest]
            for line in lines:
                self._told(chunk, source, line)

    def flush(self, chunk: c.Chunk, source: str) -> None:
        """Tells the open text of a source, if there is one."""
        self._told(chunk, source, "".join(self._open.pop((chunk.agent_id, source), ())))

    def _waits(self, chunk: c.Chunk, source: str) -> bool:
        """Whether these words are told when their step has ended, not line by line."""
        return source == "" and (self._telling.above_tree or self._may_answer(chunk))

    def _may_answer(self, chunk: c.Chunk) -> bool:
        return not self._telling.answer and chunk.agent_id == self._root_id

    def _told(self, chunk: c.Chunk, source: str, text: str) -> None:
        if self._telling.above_tree and text.strip():
            self.say(chunk, f"{source}{text.strip()}")
            return
        for line in text.split("\n"):
            if line.strip():
                self.say(chunk, f"{source}{line.rstrip()}")

    def _let_go(self, chunk: c.Chunk) -> None:
        """The words were no answer if the agent goes on, or answers with something else."""
        if self._held is not None and not (isinstance(chunk, c.RunEnd) and chunk.status == "completed"):
            self._told(self._held[0], "", self._held[1])
        self._held = None

    def _tellers(self) -> dict[type[Any], Callable[[Any], None]]:
        return {
            c.RunStart: self._run_start,
            c.RunEnd: self._run_end,
            c.TextDelta: self._text,
            c.Thinking: self._thinking,
            c.ToolStart: self._tool_start,
            c.ToolOutputDelta: self._tool_output,
            c.Custom: self._custom,
            c.ToolEnd: self._tool_end,
            c.StatePatch: self._state_patch,
            c.ErrorChunk: self._error,
            c.Output: self._output,
            c.MessageChunk: self._message,
            c.ApprovalRequest: self._approval,
            c.RunPause: self._pause,
            c.RunResume: self._resume,
        }

    # --- one method a chunk class

    def _run_start(self, chunk: c.RunStart) -> None:
        asked = " ".join(message.text for message in chunk.input if isinstance(message, UserMessage))
        self.say(chunk, f"▷ {short(asked)}")

    def _run_end(self, chunk: c.RunEnd) -> None:
        why = f" ({chunk.error_code}): {chunk.error}" if chunk.error else ""
        self.say(chunk, f"{'■' if chunk.status == 'completed' else '✗'} {chunk.status}{why}")

    def _text(self, chunk: c.TextDelta) -> None:
        if self._telling.root_words or chunk.agent_id != self._root_id:
            self.gather(chunk, "", chunk.delta)

    def _thinking(self, chunk: c.Thinking) -> None:
        if not chunk.is_complete:
            self.gather(chunk, "~ ", chunk.content)

    def _step_end(self, chunk: c.StepEnd) -> None:
        self.flush(chunk, "~ ")
        if self._may_answer(chunk) and chunk.outcome == "committed" and chunk.finish_reason != "tool_calls":
            self._held = (chunk, "".join(self._open.pop((chunk.agent_id, ""), ())))
        else:
            self.flush(chunk, "")

    def _tool_start(self, chunk: c.ToolStart) -> None:
        arguments = ", ".join(f"{name}={short(value, 48)}" for name, value in chunk.arguments.items())
        self.say(chunk, f"→ {chunk.tool_name}({arguments})")

    def _tool_output(self, chunk: c.ToolOutputDelta) -> None:
        self.gather(chunk, f"  {chunk.tool_name} | ", chunk.delta)

    def _custom(self, chunk: c.Custom) -> None:
        data = "" if chunk.data is None else f" {short(chunk.data)}"
        self.say(chunk, f"  {chunk.event_name}{data}")

    def _tool_end(self, chunk: c.ToolEnd) -> None:
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
        if not self._may_answer(chunk):
            self.say(chunk, f"output {short(chunk.output)}")

    def _message(self, chunk: c.MessageChunk) -> None:
        text = chunk.message.text if isinstance(chunk.message, UserMessage) else ""
        self.say(chunk, f"{chunk.kind}: {short(text)}")

    def _approval(self, chunk: c.ApprovalRequest) -> None:
        self.say(chunk, f"? {chunk.tool_name} waits for an answer: {chunk.approval_id}")

    def _pause(self, chunk: c.RunPause) -> None:
        self.say(chunk, chunk.status)

    def _resume(self, chunk: c.RunResume) -> None:
        self.say(chunk, f"resumed ({chunk.reason})")


def _own_fields(chunk: c.Chunk) -> dict[str, Any]:
    """What a chunk has beside what every chunk has."""
    common = ("type", "agentId", "agentType", "timestamp", "_sequence")
    return {name: value for name, value in c.chunk_to_dict(chunk).items() if name not in common}


def short(value: Any, width: int = _WIDTH) -> str:
    """A text as it is, anything else as JSON, on one line of at most `width` characters."""
    text = value if isinstance(value, str) else to_json(value).decode()
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 1]}…"
