"""Draws the live tree at the bottom of a terminal; what is told scrolls away above it.

Floor 7: above `view` and rich. Drawn on a timer, not by chunk: between two drawings chunks are only folded.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.style import Style

from helix.chunks import Chunk
from helix.cli.cells import wrap
from helix.cli.console import Console
from helix.cli.narrate import Narrator, Telling
from helix.cli.view import View
from helix.outline import outline

_PATH, _FAILED, _WAITS, _WORDS = Style(color="cyan"), Style(color="red"), Style(color="yellow"), Style()
_CLEAR = "\x1b[H\x1b[J"
_KEPT = 200
"""How many of the things told last are kept, to be written again when the screen changes its size."""


class Screen:
    """A run as a live tree.

    Args:
        err: a terminal.
        telling: what is told above the tree.
        redirect_stdout: standard output is on the same screen: what tools print goes above the tree, too.
    """

    is_view = True

    def __init__(self, err: Console, telling: Telling, *, redirect_stdout: bool) -> None:
        assert err.stream is not None
        size_of_the_shell = ("COLUMNS", "LINES")  # when it was started; the terminal knows better
        env = {name: value for name, value in os.environ.items() if name not in size_of_the_shell}
        self._console = RichConsole(
            file=err.stream, force_terminal=True, highlight=False, markup=False, emoji=False, _environ=env
        )
        self._err = err
        self._answer_follows = redirect_stdout
        self._view = View(telling.focus)
        self._narrator = Narrator(self._tell, telling)
        self._new: list[tuple[str, str]] = []
        self._told: deque[tuple[str, str]] = deque(maxlen=_KEPT)
        self._live: Live | None = None
        self._closed = self._is_paused = False
        self._echo: Any = None
        """How the terminal was set before typed keys were no longer shown: they would shift the tree."""
        self._size = self._console.size

    def take(self, batch: list[Chunk]) -> None:
        """Folds the next chunks."""
        for chunk in batch:
            self._view.take(chunk)
            self._narrator.take(chunk)

    def note(self, line: str) -> None:
        """Tells a line that is not from the run."""
        if self._live is None:
            self._err.line(line)
        else:
            self._tell("", line)

    def draw(self, now: int, hint: str = "") -> None:
        """Draws the tree as it is, and above it what was told meanwhile."""
        if self._closed or self._is_paused:
            return
        size = self._console.size
        lines = self._view.lines(size.width, size.height, now, hint)
        if size != self._size and self._live is not None:
            self._begin_anew(size.height - len(lines) - 1)
        self._size = size
        if self._live is None:
            self._echo = _without_echo(self._console.file.fileno()) if self._echo is None else self._echo
            self._live = self._started()
        self._live.update(Group(*lines))
        if self._new:
            new, self._new = self._new, []
            self._console.print(Told(new))
        else:
            self._live.refresh()

    def close(self) -> None:
        """Takes the live tree away; what remains is what was told, and the tree as it is in the end."""
        if self._closed:
            return
        self._closed = True
        if self._live is not None:
            self._live.stop()
        self.restore()
        if self._new:
            self._console.print(Told(self._new))
        if self._told:
            self._err.line("")
        for line in outline(self._view.tree):
            self._err.line(line)
        if self._answer_follows:
            self._err.line("")

    def restore(self) -> None:
        """Gives the terminal its cursor and its echo back, at once; a signal handler may call it."""
        descriptor = self._console.file.fileno()
        if self._live is not None:
            os.write(descriptor, b"\x1b[?25h")
        if sys.platform != "win32" and self._echo is not None:
            import termios

            termios.tcsetattr(descriptor, termios.TCSADRAIN, self._echo)
            self._echo = None

    @contextmanager
    def paused(self) -> Generator[None]:
        """Takes the live tree away, and lets typed keys be shown; the next drawing after it puts the tree back."""
        self._is_paused = True
        if self._live is not None:
            self._live.stop()
        self.restore()
        self._live = None
        if self._new:
            new, self._new = self._new, []
            self._console.print(Told(new))
        try:
            yield
        finally:
            self._is_paused = False

    def _tell(self, path: str, text: str) -> None:
        self._new.append((path, text))
        self._told.append((path, text))

    def _started(self) -> Live:
        live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=self._answer_follows,
            vertical_overflow="crop",
        )
        live.start()
        return live

    def _begin_anew(self, room: int) -> None:
        """After a change of size nobody knows where lines have gone: clears, and writes what was told last again."""
        if self._live is not None:
            self._live.stop()
        self._console.file.write(_CLEAR)
        told = list(self._told)[: len(self._told) - len(self._new)]
        self._console.print(Told(told, last=max(0, room)))
        self._live = None


def _without_echo(descriptor: int) -> Any:
    """Lets a terminal not show what is typed; how it was set before, or None if that cannot be."""
    if sys.platform == "win32":
        return None
    import termios  # here: there is none on Windows

    try:
        before = termios.tcgetattr(descriptor)
    except termios.error:
        return None
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)
    return before


class Told:
    """What was told, each with its agent's path before it, in lines that fit."""

    def __init__(self, told: Iterable[tuple[str, str]], last: int | None = None) -> None:
        self._told = told
        self._last = last

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        lines = [line for path, text in self._told for line in _lines(path, text, options.max_width)]
        for line in lines if self._last is None else lines[len(lines) - min(self._last, len(lines)) :]:
            yield from line
            yield Segment.line()


def _lines(path: str, text: str, width: int) -> Iterator[list[Segment]]:
    head = f"{path}: " if path else ""
    style = {"✗": _FAILED, "?": _WAITS, "!": _WAITS}.get(text.lstrip()[:1], _WORDS)
    for number, line in enumerate(wrap(f"{head}{text}", max(8, width - 3))):
        if number:
            yield [Segment(f"  {line}", style)]
        elif line.startswith(head):
            yield [Segment(head, _PATH), Segment(line[len(head) :], style)]
        else:
            yield [Segment(line, _PATH)]
