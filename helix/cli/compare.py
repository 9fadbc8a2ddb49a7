"""Where two runs part: their chunks made comparable, and the first that differ.

Floor 7, pure: `diff` reads the logs and shows what is found here. What is another one in every run does not count: ids,
times, durations, providers' private data. Ids keep their places: the second call of an agent is `call-2` in both, and
a child is named for the call that started it, since those that start together may start in any order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, cast

from helix.chunks import Chunk, SubagentStart, chunk_to_dict

_TIMES = frozenset({"timestamp", "_sequence", "durationMs", "deadline"})
_PRIVATE = frozenset({"providerData", "providerId"})
_AGENTS = frozenset({"agentId", "parentId", "stateId", "subAgentRunId"})
_CALLS = frozenset({"toolCallId", "callId"})
_MESSAGES = frozenset({"message", "input", "history"})
_JOINED = {
    "text_delta": "delta",
    "thinking": "content",
    "tool_input_delta": "delta",
    "output_delta": "delta",
    "tool_output_delta": "delta",
}
"""The deltas by type, each with the field that is cut."""
_LONG = 16
"""Characters from which on an id is taken for random, and found in texts too."""
_ID = re.compile(rf"[\w-]{{{_LONG},}}")


@dataclass(slots=True)
class Entry:
    """A chunk in its comparable form; adjacent deltas are one entry."""

    sequence: int
    type: str
    agent: str
    """The agent's path, such as `boss › writer-1`."""
    fields: dict[str, Any]
    cuts: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Of joined deltas: where in the text each one begins, and its number."""

    def sequence_at(self, offset: int) -> int:
        """The number of the delta in which that character of the joined text stands."""
        return next((number for begin, number in reversed(self.cuts) if begin <= offset), self.sequence)


@dataclass(slots=True, frozen=True)
class Difference:
    """The two entries at which two runs part; None where one has no more.

    Attributes:
        others: how many further agents and calls differ somewhere.
    """

    left: Entry | None
    right: Entry | None
    others: int

    @property
    def fields(self) -> list[tuple[str, Any, Any]]:
        """What differs: the path of a field, and its two values (`MISSING` where there is none)."""
        if self.left is None or self.right is None:
            return []
        return list(_differing("", self.left.fields, self.right.fields))


MISSING: Any = object()


def find_difference(
    left: Iterable[Chunk], right: Iterable[Chunk], *, strict: bool = False, ignore: Iterable[str] = ()
) -> Difference | None:
    """The first place in which two runs part, or None.

    By default each agent, and each call of it, is compared on its own, as texts: how things that go on at the same time
    are interleaved, and how a text is cut into deltas, makes no difference.

    Args:
        left, right: the chunks of whole logs, in order.
        strict: compare chunk by chunk, in the order of the logs.
        ignore: fields of chunks that do not count, in camelCase.
    """
    lanes, others = (_lanes(list(chunks), strict, frozenset(ignore)) for chunks in (left, right))
    found: list[tuple[Entry | None, Entry | None]] = []
    for key in {**lanes, **others}:
        pairs = zip_longest(lanes.get(key, ()), others.get(key, ()))
        parted = next((pair for pair in pairs if not _same(*pair)), None)
        if parted is not None:
            found.append(parted)
    if not found:
        return None
    return Difference(*min(found, key=_place), others=len(found) - 1)


def _same(left: Entry | None, right: Entry | None) -> bool:
    return left is not None and right is not None and left.fields == right.fields


def _place(pair: tuple[Entry | None, Entry | None]) -> int:
    return min(entry.sequence for entry in pair if entry is not None)


def _lanes(chunks: Sequence[Chunk], strict: bool, ignore: frozenset[str]) -> dict[tuple[str, str], list[Entry]]:
    """The entries of each agent and of each of its calls; all of them together if strict."""
    lanes: dict[tuple[str, str], list[Entry]] = {}
    names = _Names()
    for chunk in chunks:
        fields = names.comparable(chunk)
        call = fields.get("toolCallId") or fields.get("callId") or ""
        entry = Entry(chunk.sequence, str(fields.get("type", chunk.type)), names.path(chunk), fields)
        lane = lanes.setdefault(("", "") if strict else (names.agent(chunk.agent_id), str(call)), [])
        for name in ignore & fields.keys():
            del fields[name]
        if strict or not (lane and _join(lane[-1], entry)):
            lane.append(entry)
    return lanes


def _join(before: Entry, entry: Entry) -> bool:
    """Joins a delta with the one before it, if they are of one kind."""
    cut = _JOINED.get(entry.type)
    if cut is None or before.type != entry.type or cut not in entry.fields or cut not in before.fields:
        return False
    if {**before.fields, cut: ""} != {**entry.fields, cut: ""} or entry.fields.get("isComplete"):
        return False
    before.cuts = before.cuts or [(0, before.sequence)]
    before.cuts.append((len(before.fields[cut]), entry.sequence))
    before.fields[cut] += entry.fields[cut]
    return True


def _differing(path: str, left: Any, right: Any) -> Iterator[tuple[str, Any, Any]]:
    """The innermost places in which two JSON values differ."""
    one, other = _items(left), _items(right)
    if one is None or other is None or type(left) is not type(right):
        if left is MISSING or right is MISSING or left != right:
            yield path, left, right
        return
    for name in {**one, **other}:
        yield from _differing(f"{path}.{name}" if path else name, one.get(name, MISSING), other.get(name, MISSING))


def _items(value: Any) -> dict[str, Any] | None:
    """What stands in an object or a list, by name or by place; None of anything else."""
    if isinstance(value, dict):
        return cast(dict[str, Any], value)
    return {str(at): item for at, item in enumerate(cast(list[Any], value))} if isinstance(value, list) else None


class _Names:
    """The names that stand for the ids of one log, by order of first appearance."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, str], str] = {}
        self._counts: dict[str, int] = {}
        self._random: dict[str, str] = {}
        self._children: dict[str, str] = {}
        self._root_id, self._root_name = "", ""

    def comparable(self, chunk: Chunk) -> dict[str, Any]:
        """The chunk's JSON with names for ids, without times."""
        if not self._root_id:
            self._root_id, self._root_name = chunk.agent_id.partition(".")[0], chunk.agent_type
            self._note(self._root_id, "run")
        agent = chunk.agent_id
        if isinstance(chunk, SubagentStart) and chunk.sub_agent_run_id not in self._children:
            call = self._name(f"call of {agent}", chunk.call_id, "call")
            name = f"{self.agent(agent)}.{chunk.sub_agent_type}-of-{call}"
            self._children[chunk.sub_agent_run_id] = self._name(name, chunk.sub_agent_run_id, name)
        fields: dict[str, Any] = {}
        for key, value in chunk_to_dict(chunk).items():
            if key not in _TIMES:
                fields[key] = self._field(agent, key, value)
        return fields

    def path(self, chunk: Chunk) -> str:
        """The agent's path, for people."""
        return " › ".join([self._root_name, *chunk.agent_id.split(".")[1:]])

    def _field(self, agent: str, key: str, value: Any) -> Any:
        if value is None:
            return None
        if key in _AGENTS and isinstance(value, str):
            return self.agent(value)
        if key in _CALLS:
            return self._name(f"call of {agent}", value, "call")
        if key == "approvalId":
            return self._approval(agent, value)
        if key == "waitingFor" and isinstance(value, list):
            return [self._approval(agent, item) for item in cast(list[Any], value)]
        if key in ("sessionId", "commandId", "forkedFrom"):
            return self._name(key, value, key)
        if key in _MESSAGES:
            value = self._messages(agent, value)
        return _mapped(value, self._text)

    def agent(self, agent_id: str) -> str:
        """The name of an agent."""
        if agent_id in self._children:
            return self._children[agent_id]
        head, dot, rest = agent_id.partition(".")
        return f"{'run' if head == self._root_id else self._name('run', head, 'other run')}{dot}{rest}"

    def _approval(self, agent: str, approval_id: str) -> str:
        owner, slash, call = str(approval_id).rpartition("/")
        return f"{self.agent(owner)}{slash}{self._name(f'call of {owner or agent}', call, 'call')}"

    def _messages(self, agent: str, value: Any) -> Any:
        """Messages with names for the ids of calls, without what providers keep for themselves."""
        if isinstance(value, list):
            return [self._messages(agent, item) for item in cast(list[Any], value)]
        if not isinstance(value, dict):
            return value
        fields = {key: item for key, item in cast(dict[str, Any], value).items() if key not in _PRIVATE}
        if "toolCallId" in fields:
            fields["toolCallId"] = self._name(f"call of {agent}", fields["toolCallId"], "call")
        if isinstance(fields.get("content"), list):
            fields["content"] = self._messages(agent, fields["content"])
        return fields

    def _name(self, kind: str, value: Any, label: str) -> str:
        key = (kind, str(value))
        if key not in self._given:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            self._given[key] = f"{label}-{self._counts[kind]}"
            self._note(value, self._given[key])
        return self._given[key]

    def _note(self, value: Any, name: str) -> None:
        if isinstance(value, str) and len(value) >= _LONG:
            self._random[value] = name

    def _text(self, text: str) -> str:
        return _ID.sub(lambda found: self._random.get(found[0], found[0]), text)


def _mapped(value: Any, function: Callable[[str], str]) -> Any:
    """The JSON value with each text in it put through the function."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, list):
        return [_mapped(item, function) for item in cast(list[Any], value)]
    if isinstance(value, dict):
        return {key: _mapped(item, function) for key, item in cast(dict[str, Any], value).items()}
    return value
