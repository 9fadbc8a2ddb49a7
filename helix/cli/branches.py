"""Which agents of a tree are on the screen when not all of them fit.

Floor 7: above `fold`; pure. Who waits or has failed comes first, then who runs; what has completed goes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from helix.cli.activity import Seen
from helix.cli.narrate import Focus
from helix.fold import AgentNode, RunTree
from helix.outline import status_of

_ORDER = ("running", "waiting", "failed", "cancelled", "completed")


@dataclass(slots=True)
class Branch:
    """An agent and what is below it, at one moment."""

    node: AgentNode | None
    """None of the invisible top, whose children are the agents without a parent in the view."""
    seen: Seen
    status: str
    parent: Branch | None
    children: list[Branch] = field(default_factory=list["Branch"])
    statuses: Counter[str] = field(default_factory=Counter[str])
    """Of itself and of all below it."""
    heard_at: int = 0
    """When anything was last heard of it or of those below it."""
    waiting: bool = False
    """It, or one below it, waits for a person."""
    hidden: int = 0
    """How many of its children are not shown (yet)."""
    folded: int = 0
    """How many agents below it are left out because all of them, and it, have completed."""
    shown: bool = False

    @property
    def size(self) -> int:
        """How many agents it is."""
        return self.statuses.total()

    @property
    def completed(self) -> bool:
        """Whether all of it has completed."""
        return len(self.statuses) == 1 and "completed" in self.statuses


def tally(branches: Iterable[Branch]) -> str:
    """How many agents of some branches are in which status: `3 running, 1 failed`."""
    found: Counter[str] = Counter()
    for branch in branches:
        found.update(branch.statuses)
    known = [status for status in _ORDER if status in found]
    return ", ".join(f"{found[status]:,} {status}" for status in [*known, *sorted(set(found) - set(known))])


def grow(tree: RunTree, seen: dict[str, Seen], focus: Focus, now: int) -> Branch:
    """The branches of the agents in focus, below an invisible one."""
    top = Branch(None, Seen(), "", None)
    found: dict[str, Branch] = {}
    for agent_id, node in tree.agents.items():
        if not focus.sees(agent_id, node.agent_type):
            continue
        parent = found.get(node.parent.agent_id, top) if node.parent is not None else top
        own = seen.get(agent_id) or Seen(tree.timestamp)
        status = status_of(tree, node)
        waiting = status == "running" and bool(own.approvals)
        branch = found[agent_id] = Branch(node, own, status, parent, heard_at=own.at, waiting=waiting)
        parent.children.append(branch)
    for branch in reversed(found.values()):
        _tell_parent(branch)
    return top


def _tell_parent(branch: Branch) -> None:
    branch.statuses["waiting" if branch.status == "running" and branch.seen.approvals else branch.status] += 1
    parent = branch.parent
    if parent is not None and parent.node is not None:
        parent.statuses.update(branch.statuses)
        parent.heard_at = max(parent.heard_at, branch.heard_at)
        parent.waiting = parent.waiting or branch.waiting


def choose(top: Branch, room: int) -> list[tuple[Branch, str, bool]]:
    """What to show in at most `room` lines: branches in order, each with the lines of the tree before it.

    The third value says that the line is for those children of the branch that are not shown.
    """
    branches = _all(top)
    if len(branches) <= room:
        for branch in branches:
            branch.shown = True
    else:
        _fold(branches)
        _admit(top, [branch for branch in branches if not _is_folded_away(branch)], room)
    return _in_order(top)


def _all(top: Branch) -> list[Branch]:
    """Every branch, a parent before its children; no recursion, logs may be deeper than Python's stack."""
    branches, stack = list[Branch](), [*reversed(top.children)]
    while stack:
        branch = stack.pop()
        branches.append(branch)
        stack.extend(reversed(branch.children))
    return branches


def _fold(branches: list[Branch]) -> None:
    """A finished branch is one line."""
    for branch in branches:
        if branch.completed:
            branch.folded = branch.size - 1


def _is_folded_away(branch: Branch) -> bool:
    return branch.parent is not None and branch.parent.node is not None and branch.parent.completed


def _admit(top: Branch, candidates: list[Branch], room: int) -> None:
    for branch in (top, *candidates):
        branch.hidden = 0 if branch.folded else len(branch.children)
    lines = 1
    for branch in _by_urgency(candidates):
        path = [branch]
        while path[-1].parent is not None and path[-1].parent is not top and not path[-1].parent.shown:
            path.append(path[-1].parent)
        more = sum(_cost(step) for step in path)
        if branch.shown or lines + more > room:
            continue
        lines += more
        for step in path:
            step.shown = True
            if step.parent is not None:
                step.parent.hidden -= 1


def _cost(branch: Branch) -> int:
    """Its own line, one for its children that are not shown, less the one of its parent that it makes needless."""
    last = branch.parent is not None and branch.parent.hidden == 1
    return 1 + bool(branch.hidden) - last


def _by_urgency(candidates: list[Branch]) -> list[Branch]:
    """Who waits; then by turns who has failed and who runs; then the rest; each in the order in which they started."""
    turn: Counter[str] = Counter()

    def urgency(branch: Branch) -> tuple[int, int]:
        if branch.status == "completed":
            return (2, 0)
        if branch.seen.approvals and branch.status == "running":
            return (0, 0)
        turn[branch.status] += 1
        return (1, turn[branch.status])

    return sorted(candidates, key=urgency)


def _in_order(top: Branch) -> list[tuple[Branch, str, bool]]:
    rows: list[tuple[Branch, str, bool]] = []
    stack: list[tuple[Branch, str, str, bool]] = [(top, "", "", False)]
    while stack:
        branch, lead, below, rest = stack.pop()
        if branch is not top or rest:
            rows.append((branch, lead, rest))
        if rest:
            continue
        inside = branch is not top
        shown = [(child, False) for child in branch.children if child.shown]
        shown += [(branch, True)] if branch.hidden > 0 and len(shown) < len(branch.children) else []
        for at, (child, is_rest) in reversed(list(enumerate(shown))):
            last = at == len(shown) - 1
            first, then = (("└─ ", "   ") if last else ("├─ ", "│  ")) if inside else ("", "")
            stack.append((child, f"{below}{first}", f"{below}{then}", is_rest))
    return rows
