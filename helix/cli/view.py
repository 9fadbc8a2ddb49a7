"""The live tree: a run's agents, a line each, at most as many as the screen has.

Floor 7: above `fold`; a synchronous model, chunks in and lines out. `screen` draws it; needs rich, as text with styles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.text import Text

from helix import chunks as c
from helix.cli.activity import Seen, activity, count, elapsed, observe
from helix.cli.branches import Branch, choose, grow, tally
from helix.cli.cells import cells, cut, cut_start, fit, flat, wrap
from helix.cli.narrate import Focus
from helix.fold import RunTree
from helix.limits import Usage
from helix.outline import estimate, name_of

SILENT_AFTER_MS = 30_000
"""An agent that runs and of whose branch nothing was heard for so long is told to be silent."""
_PANE = 6
"""How many lines of an answer are shown while it is written."""
_WORD = 10


class View:
    """Folds chunks and shows what they add up to.

    Args:
        focus: of which agents; by default of all.

    Attributes:
        tree: the run so far.
    """

    def __init__(self, focus: Focus | None = None) -> None:
        self.tree = RunTree()
        self._focus = focus or Focus()
        self._seen: dict[str, Seen] = {}

    def take(self, chunk: c.Chunk) -> None:
        """Takes the next chunk; its cost does not depend on what came before."""
        self.tree.apply(chunk)
        self._focus.sees(chunk.agent_id, chunk.agent_type)
        seen = self._seen.get(chunk.agent_id)
        if seen is None:
            seen = self._seen[chunk.agent_id] = Seen()
        observe(seen, chunk)

    def lines(self, width: int, height: int, now: int, hint: str = "") -> list[Text]:
        """What is to be seen at `now` (Unix ms): fewer lines than `height`, each narrower than `width`.

        Args:
            width, height: of the screen, in cells.
            now: the time, on the clock that stamped the chunks.
            hint: what the last line ends with.
        """
        room = max(1, height - 1 - (height // 4 if height >= 12 else 0))
        width = max(8, width - 1)
        if not self.tree.agents or (self._focus.name is not None and not self._focus.found):
            waits = f"no agent {self._focus.name!r} yet" if self.tree.agents else "starting"
            return [Text(cut(flat(f"… {waits}   {hint}"), width), "dim")]
        top = grow(self.tree, self._seen, self._focus, now)
        rows = choose(top, room - 1 if room > 1 else room)
        pane = list(_pane(top, width, room - 1 - len(rows)))
        lines = [_summary(top, self.tree, width, now, hint)] if room > 1 else []
        return lines + _Table(rows, width, now, self.tree, in_pane=bool(pane)).lines() + pane


def _pane(top: Branch, width: int, room: int) -> Iterator[Text]:
    """The answer while it is written, if it needs more than its line and there is room."""
    words = top.children[0].seen.writing if len(top.children) == 1 else ""
    lines = wrap("\n".join(flat(line) for line in words.strip().split("\n")), max(8, width - 4)) if words else []
    if len(lines) > 1 and room > 1:
        for line in lines[-min(room, _PANE) :]:
            yield Text.assemble(("│ ", "dim"), cut(line, width - 4))


@dataclass(slots=True)
class _Widths:
    name: int = 0
    word: int = 0
    now: int = 0
    elapsed: int = 0
    tokens: int = 0
    cost: int = 0


@dataclass(slots=True)
class _Cells:
    """One line before it is laid out."""

    lead: str
    glyph: str
    name: str
    style: str
    word: str = ""
    now: str = ""
    writing: bool = False
    """The end of `now` is worth more than its beginning."""
    elapsed: str = ""
    tokens: str = ""
    cost: str = ""


class _Table:
    """Lays out the rows in columns of common widths."""

    def __init__(
        self, rows: list[tuple[Branch, str, bool]], width: int, now: int, tree: RunTree, *, in_pane: bool
    ) -> None:
        self._now, self._tree, self._in_pane = now, tree, in_pane
        self._cells = [self._rest(branch, lead) if rest else self._row(branch, lead) for branch, lead, rest in rows]
        self._width = width

    def lines(self) -> list[Text]:
        """The lines."""
        widths = self._widths()
        return [self._line(row, widths) for row in self._cells]

    def _row(self, branch: Branch, lead: str) -> _Cells:
        node = branch.node
        assert node is not None
        silent = self._now - branch.heard_at
        silent = silent if silent >= SILENT_AFTER_MS and not branch.waiting else 0
        doing = activity(node, branch.seen, branch.status, now=self._now, silent_ms=silent)
        took = branch.seen.took_ms
        return _Cells(
            lead,
            doing.glyph,
            flat(name_of(node.agent_id, node.agent_type)) + (f" +{branch.folded}" if branch.folded else ""),
            doing.style,
            doing.word,
            "" if doing.writing and self._in_pane and branch.node is self._tree.root else flat(doing.text),
            doing.writing,
            elapsed(self._tree.elapsed_ms(node, self._end(branch)) if took is None else took),
            _tokens(node.tree_usage.total_tokens),
            estimate(node.tree_usage.cost),
        )

    def _end(self, branch: Branch) -> int:
        return self._now if branch.status == "running" else self._tree.timestamp

    def _rest(self, branch: Branch, lead: str) -> _Cells:
        hidden = [child for child in branch.children if not child.shown]
        number = sum(child.size for child in hidden)
        used = sum((child.node.tree_usage for child in hidden if child.node is not None), Usage())
        tokens, cost = _tokens(used.total_tokens), estimate(used.cost)
        return _Cells(lead, "…", f"and {number:,} more", "dim", "", tally(hidden), tokens=tokens, cost=cost)

    def _widths(self) -> _Widths:
        """The columns; on a narrow screen those go first that one misses least."""
        own = _Widths(
            max(cells(row.lead) + 2 + cells(row.name) for row in self._cells),
            max(len(row.word) for row in self._cells),
            0,
            *(max(len(value) for value in column) for column in zip(*map(_numbers, self._cells), strict=True)),
        )
        own.word = max(own.word, _WORD) if own.word else 0
        own.name = min(own.name, max(12, self._width * 2 // 5))
        for column in ("tokens", "elapsed", "cost", "word"):
            if self._left(own) >= 12:
                break
            setattr(own, column, 0)
        own.now = max(0, self._left(own))
        own.name = min(own.name, self._width)
        return own

    def _left(self, own: _Widths) -> int:
        used = [own.name, own.word, own.elapsed, own.tokens, own.cost]
        return self._width - sum(size + 2 for size in used if size)

    def _line(self, row: _Cells, own: _Widths) -> Text:
        lead = cut_lead(row.lead, own.name - 2 - min(cells(row.name), 12))
        name = fit(row.name, max(1, own.name - cells(lead) - 2))
        quiet = "dim" if row.style in ("green", "dim") else ""
        line = Text(no_wrap=True, overflow="crop")
        line.append(lead, "dim").append(f"{row.glyph} ", row.style)
        line.append(name, "dim" if row.glyph == "…" else "bold" if not quiet else "")
        if own.word:
            line.append(f"  {fit(row.word, own.word)}", row.style)
        if own.now:
            text = cut_start(row.now, own.now) if row.writing else row.now
            line.append(f"  {fit(text, own.now)}", row.style if row.style in ("red", "yellow") else quiet)
        for value, size in zip(_numbers(row), (own.elapsed, own.tokens, own.cost), strict=True):
            if size:
                line.append(f"  {fit(value, size, right=True)}", "dim")
        line.truncate(self._width)
        return line


def cut_lead(lead: str, width: int) -> str:
    """The lines of the tree before a name; of a deep branch only the last of them."""
    return lead if len(lead) <= width else f"…{lead[len(lead) - width + 1 :]}" if width > 1 else ""


def _tokens(number: int) -> str:
    return f"{count(number)} tok" if number else ""


def _numbers(row: _Cells) -> tuple[str, str, str]:
    return row.elapsed, row.tokens, row.cost


def _summary(top: Branch, tree: RunTree, width: int, now: int, hint: str) -> Text:
    """All agents together, on the line that parts the tree from what was told above it."""
    usage = sum((child.node.tree_usage for child in top.children if child.node is not None), Usage())
    took = tree.elapsed_ms(tree.root, now if tree.status == "running" else tree.timestamp)
    parts = [tally(top.children), elapsed(took)]
    parts += [f"{count(usage.total_tokens)} tokens"] if usage.total_tokens else []
    parts += [estimate(usage.cost)] if usage.cost is not None else []
    told = f"── {flat(' · '.join(parts))} "
    end = f" {flat(hint)} ──" if hint else ""
    fill = width - cells(told) - cells(end)
    line = Text(no_wrap=True, overflow="crop", style="dim")
    return line.append(f"{told}{'─' * fill}{end}" if fill >= 0 else cut(told.rstrip(), width))
