"""A tree of agents in a few plain lines: who there is, how it stands with each, and what it used.

Floor 2: above `fold`; results, notebooks and the commands show it. Bounded, however many agents there are. Everything
shown may come from a model or from a foreign log: control characters do not pass, and in HTML all of it is escaped.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any

from pydantic_core import to_json

from helix.fold import AgentNode, RunTree
from helix.limits import Usage, money

MAX_LINES = 20
"""As many as one takes in at a glance."""
MAX_NAME = 40

GLYPHS = {"completed": "✓", "failed": "✗", "cancelled": "⊘", "running": "●", "interrupted": "‖", "suspended": "‖"}
"""One character for each status, one column wide."""

_COLOURS = {"completed": "#16803c", "failed": "#d73a49", "cancelled": "#767676"}
"""Of the glyphs in HTML: in the middle between black and white, so that both are a background for them."""
_OTHER_COLOUR = "#9a6700"

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def outline(tree: RunTree, agent_id: str | None = None, *, max_lines: int = MAX_LINES) -> list[str]:
    """The agents of a run as lines: name, status, tokens (`145 of 594`: its own, and those of its branch), cost.

    The cost is that of its branch, as estimated, where it is known.
    At most `max_lines`: then what has completed is left out before what has not, and `… 12 more   all completed` says
    so.

    Args:
        tree: the run, at whatever moment; without agents there are no lines.
        agent_id: only this agent and what is below it; by default the root.
        max_lines: the bound, at least 2.
    """
    rows = list(_rows(tree, agent_id, max_lines))
    name = max((len(row.name) for row in rows), default=0)
    status = max((len(row.status) for row in rows), default=0)
    tokens = max((len(row.tokens) for row in rows), default=0)
    cost = max((len(row.cost) for row in rows), default=0)
    lines = (f"{row.name:<{name}}  {row.status:<{status}}  {row.tokens:>{tokens}}  {row.cost:>{cost}}" for row in rows)
    return [line.rstrip() for line in lines]


def outline_html(tree: RunTree, agent_id: str | None = None, *, max_lines: int = MAX_LINES) -> str:
    """`outline` as one HTML element: text and inline styles only, readable on light and on dark."""
    cell = "padding:0 1.5em 0 0;border:0;background:none;text-align:left;white-space:pre;font-family:monospace"
    lines: list[str] = []
    rows = list(_rows(tree, agent_id, max_lines))
    priced = any(row.cost for row in rows)
    for row in rows:
        colour = _COLOURS.get(row.status.partition(" ")[2].partition(" ")[0], _OTHER_COLOUR)
        glyph = f'<span style="color:{colour}">{escape(row.status[:1])}</span>{escape(row.status[1:])}'
        cells = [escape(row.name), glyph, escape(row.tokens), *([escape(row.cost)] if priced else [])]
        lines.append("<tr>" + "".join(f'<td style="{cell}">{text}</td>' for text in cells) + "</tr>")
    return f'<table style="border-collapse:collapse;border:0">{"".join(lines)}</table>'


def one_line(value: Any, width: int) -> str:
    """A text, or anything else as JSON, on one line of at most `width` characters, fit for any terminal."""
    text = value if isinstance(value, str) else to_json(value, fallback=repr).decode()
    start = text.lstrip()[: 4 * width]  # enough of a long text, white space and all
    line = plain(" ".join(start.split()))
    whole = len(start) == len(text.lstrip())
    return line if whole and len(line) <= width else f"{line[: width - 1]}…"


def estimate(cost: float | None) -> str:
    """An estimated cost, marked as such: `~$0.25`; nothing when it is not known."""
    return "" if cost is None else f"~{money(cost)}"


def plain(text: str) -> str:
    """The text with U+FFFD for each character that steers a terminal: control characters, writing directions."""
    if text.isascii() and text.isprintable():
        return text
    return "".join("\ufffd" if _steers(char) else char for char in text)


def _steers(char: str) -> bool:
    return char in _BIDI or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def status_of(tree: RunTree, node: AgentNode) -> str:
    """How it stands with an agent: as it ended, else as the run is (`running`, `interrupted`, `suspended`)."""
    return node.status if node.ended or tree.ended else tree.status


def name_of(agent_id: str, agent_type: str) -> str:
    """What people call an agent: the end of its id, such as `writer-2`; of a root its agent's name."""
    return one_line(agent_id.rpartition(".")[2] if "." in agent_id else agent_type, MAX_NAME)


@dataclass(slots=True, frozen=True)
class _Row:
    name: str
    """With the lines of the tree before it."""
    status: str
    tokens: str
    cost: str


@dataclass(slots=True)
class _Branch:
    """An agent and what is below it, as far as the choice of lines needs it."""

    node: AgentNode
    status: str
    parent: _Branch | None
    cost: int
    """How late it is shown: its parent's and one, and one more for each sibling of its kind before it."""
    children: list[_Branch] = field(default_factory=list["_Branch"])
    statuses: Counter[str] = field(default_factory=Counter[str])
    """Of itself and of all below it."""
    hidden: int = 0
    """How many of its children are not shown (yet)."""
    shown: bool = False


def _rows(tree: RunTree, agent_id: str | None, max_lines: int) -> Iterator[_Row]:
    top = agent_id or tree.root_id
    if top not in tree.agents:
        return
    branches = _branches(tree, top)
    _choose(branches, max_lines)
    stack: list[tuple[_Branch | None, _Branch, str, str]] = [(branches[0], branches[0], "", "")]
    while stack:  # not a recursion: logs may be deeper than Python's stack
        branch, parent, lead, below = stack.pop()
        if branch is None:
            yield _rest(parent, lead)
            continue
        yield _row(branch, lead)
        shown: list[_Branch | None] = [child for child in branch.children if child.shown]
        shown += [None] if branch.hidden else []
        last = len(shown) - 1
        items = [
            (child, branch, f"{below}{'└─ ' if at == last else '├─ '}", f"{below}{'   ' if at == last else '│  '}")
            for at, child in enumerate(shown)
        ]
        stack.extend(reversed(items))


def _branches(tree: RunTree, top: str) -> list[_Branch]:
    """The branches in the order in which their agents started, a parent before its children."""
    found: dict[str, _Branch] = {}
    place: Counter[tuple[str, str]] = Counter()
    for agent_id, node in tree.agents.items():
        parent = found.get(node.parent.agent_id) if node.parent is not None else None
        if parent is None and agent_id != top:
            continue
        status = status_of(tree, node)
        cost = 0
        if parent is not None:
            kind = (parent.node.agent_id, node.agent_type)
            cost = parent.cost + 1 + place[kind]
            place[kind] += 1
        branch = found[agent_id] = _Branch(node, status, parent, cost)
        if parent is not None:
            parent.children.append(branch)
    for branch in reversed(found.values()):
        branch.statuses[branch.status] += 1
        if branch.parent is not None:
            branch.parent.statuses.update(branch.statuses)
    return list(found.values())


def _choose(branches: list[_Branch], max_lines: int) -> None:
    """Marks what is shown: first where something has not completed, then what is near the root, evenly."""
    lines = 0
    for branch in branches:
        branch.hidden = len(branch.children)
    for branch in sorted(branches, key=lambda branch: (_all_completed(branch), branch.cost)):
        parent = branch.parent
        more = 2 if branch.children else 1  # its own line, and one that tells of its children
        if parent is not None:
            more -= parent.hidden == 1  # whose line it takes
        if (parent is None or parent.shown) and (parent is None or lines + more <= max_lines):
            branch.shown = True
            lines += more
            if parent is not None:
                parent.hidden -= 1


def _all_completed(branch: _Branch) -> bool:
    return set(branch.statuses) == {"completed"}


def _row(branch: _Branch, lead: str) -> _Row:
    node = branch.node
    code = f" ({one_line(node.error_code, MAX_NAME)})" if node.error_code and branch.status == "failed" else ""
    status = one_line(branch.status, MAX_NAME)
    own, total = node.usage.total_tokens, node.tree_usage.total_tokens
    used = f"{own:,} tokens" if own == total else f"{own:,} of {total:,} tokens"
    name, standing = name_of(node.agent_id, node.agent_type), f"{GLYPHS.get(status, '·')} {status}{code}"
    return _Row(f"{lead}{name}", standing, used, estimate(node.tree_usage.cost))


def _rest(parent: _Branch, lead: str) -> _Row:
    hidden = [child for child in parent.children if not child.shown]
    statuses = sum((child.statuses for child in hidden), Counter[str]())
    count = statuses.total()
    if len(statuses) == 1:
        told = f"all {next(iter(statuses))}" if count > 1 else next(iter(statuses))
    else:
        told = ", ".join(f"{number} {status}" for status, number in statuses.most_common())
    used = sum((child.node.tree_usage for child in hidden), Usage())
    return _Row(f"{lead}… {count:,} more", f"  {told}", f"{used.total_tokens:,} tokens", estimate(used.cost))
