"""`helix replay FILE`: a saved log, or a run of a store, through the view in which it was seen live.

Floor 7: above `fold`. The log's own clock goes, at a speed or by steps; nothing runs.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from bisect import bisect_right
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from itertools import accumulate, pairwise
from typing import Any, TextIO

from pydantic_core import to_json

from helix import chunks as c
from helix.cli.console import Console
from helix.cli.logs import MalformedLog, with_words
from helix.cli.stored import add_store, read_kept
from helix.cli.watch import (
    FRAME,
    HINT,
    INTERRUPTED,
    Watcher,
    add_options,
    asked,
    can_draw,
    has_rich,
    on_interrupt,
    tell_missing,
)
from helix.errors import HelixError, UsageError
from helix.fold import RunTree, fold

LONGEST_WAIT = 2.0
"""Seconds that a silence takes at most, however long it was and whatever the speed."""
_BEATS = (
    c.StepEnd,
    c.ToolStart,
    c.ToolEnd,
    c.MessageChunk,
    c.ApprovalRequest,
    c.ApprovalResponse,
    c.RunPause,
    c.RunResume,
)


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "replay",
        help="watch a saved log, or a run of a store, again",
        description="Show a log (JSON Lines, as `helix run --save` writes it, or a run of a store) as it was seen "
        "live: progress on standard error, the answer on standard output. Silences are cut to two seconds. "
        "Exit codes: 0 shown, 2 it cannot be read, 130 interrupted.",
    )
    parser.add_argument("file", help="the log; - for standard input; of a store, the run's id")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--speed", type=_speed, metavar="N", help="N times as fast; in plain lines there is no wait else")
    pace.add_argument("--step", action="store_true", help="wait for a key after each step and each tool event; q ends")
    add_store(parser)
    add_options(parser)
    parser.set_defaults(command=replay)


def _speed(given: str) -> float:
    speed = float(given)
    if not 0 < speed < float("inf"):
        raise ValueError
    return speed


def replay(options: argparse.Namespace) -> int:
    """Runs the command and gives its exit code."""
    out, err = Console(sys.stdout), Console(sys.stderr)
    shown = asked(options)
    kept = read_kept(options)
    chunks = _readable(kept.name, list(with_words(kept.chunks, kept.floor)))
    watcher = shown.watcher(out, err)
    if not watcher.is_view and can_draw(err) and not shown.plain and not has_rich():
        err.line(f"helix: {HINT}")
    if kept.floor:
        err.line(
            f"helix: this run was trimmed up to chunk {kept.floor}: until then words are whole, not piece by piece"
        )
    player = _Player(chunks, watcher)
    with on_interrupt(player.stop, watcher):
        if options.step:
            with _keys(options.file) as keys, closing(watcher):  # in this order: the tree is put on top of the keys
                player.step(keys)
        else:
            with closing(watcher):
                player.play(options.speed or (1.0 if watcher.is_view else None))
    if player.stopped:
        return INTERRUPTED
    tree = player.tree()
    tell_missing(shown.focus, tree, watcher)
    if tree.status == "completed":
        answer = tree.root.result
        out.line(answer if isinstance(answer, str) else to_json(answer, indent=2).decode())
    return 0


def _readable(name: str, chunks: list[c.Chunk]) -> list[c.Chunk]:
    """The log, if it can be folded."""
    if not chunks:
        raise MalformedLog(f"{name}: the log is empty")
    tree = RunTree()
    for chunk in chunks:
        try:
            tree.apply(chunk)
        except HelixError as error:
            why = f"{error}; `helix check` says more"
            raise MalformedLog(f"{name}, chunk {chunk.sequence}: {why}") from None
    if not tree.agents:
        raise MalformedLog(f"{name}: no agent has started in this log")
    return chunks


class _Player:
    """Gives the chunks of a log to a watcher, bit by bit.

    Attributes:
        stopped: whether Ctrl-C has ended it.
    """

    def __init__(self, chunks: list[c.Chunk], watcher: Watcher) -> None:
        self._chunks = chunks
        self._watcher = watcher
        self._given = 0
        self.stopped = False

    def tree(self) -> RunTree:
        """The run as far as it was given."""
        return fold(self._chunks[: self._given])

    def stop(self) -> None:
        """Ends it: the live tree after its drawing, which must not be broken off; lines at once."""
        self.stopped = True
        if not self._watcher.is_view:
            raise KeyboardInterrupt

    def play(self, speed: float | None) -> None:
        """Gives them at their times, so many times as fast; without a speed at once."""
        due = [0.0, *accumulate(_wait(*pair, speed) for pair in pairwise(self._chunks))] if speed else []
        begun = time.monotonic()
        while due and self._given < len(due) and not self.stopped:
            at = time.monotonic() - begun
            self._give(bisect_right(due, at))
            self._watcher.draw(self._time(due, at), "replay, Ctrl-C ends")
            if self._given < len(due):
                # The pace of the replay itself; nothing else runs here, and Ctrl-C breaks it off.
                time.sleep(FRAME if self._watcher.is_view else max(0.0, due[self._given] - at))
        if not self.stopped:
            self._give(len(self._chunks))
            self._watcher.draw(self._chunks[-1].timestamp)

    def step(self, keys: _Keys) -> None:
        """Gives one step or tool event at a time, and then waits for a key."""
        beats = list(_beats(self._chunks))
        for number, end in enumerate(beats, start=1):
            self._give(end)
            pressed = None if number < len(beats) else ""
            while pressed is None and not self.stopped:
                hint = f"{number} of {len(beats)}: any key goes on, q ends"
                self._watcher.draw(self._chunks[self._given - 1].timestamp, hint)
                pressed = keys.wait(FRAME)
            if self.stopped or (pressed or "").startswith("q"):
                return

    def _give(self, end: int) -> None:
        if end > self._given:
            self._watcher.take(self._chunks[self._given : end])
            self._given = end

    def _time(self, due: list[float], at: float) -> int:
        """What the log's clock shows: in a silence that is cut it goes faster."""
        before = self._chunks[self._given - 1].timestamp
        if self._given == len(due):
            return before
        part = (at - due[self._given - 1]) / (due[self._given] - due[self._given - 1])
        return before + round((self._chunks[self._given].timestamp - before) * min(1.0, part))


def _wait(one: c.Chunk, two: c.Chunk, speed: float) -> float:
    return min(LONGEST_WAIT, max(0, two.timestamp - one.timestamp) / 1000 / speed)


def _beats(chunks: list[c.Chunk]) -> Iterator[int]:
    """Where to stop: behind each step and each tool event, and at the end."""
    for index, chunk in enumerate(chunks[:-1], start=1):
        if isinstance(chunk, _BEATS):
            yield index
    yield len(chunks)


class _Keys:
    """What a person presses: a key at a terminal, else a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def wait(self, seconds: float) -> str | None:
        """What was pressed; None if nothing was in this time; a line that cannot come is a key that is pressed."""
        if not self._stream.isatty():
            return self._stream.readline()
        if not select.select([self._stream], [], [], seconds)[0]:
            return None
        return os.read(self._stream.fileno(), 64).decode(errors="replace") or "q"


@contextmanager
def _keys(path: str) -> Generator[_Keys]:
    """The keys of the terminal, each as soon as it is pressed; if the log is standard input, they are elsewhere."""
    try:
        stream = open("/dev/tty") if path == "-" else sys.stdin  # noqa: SIM115 - closed below
    except OSError:
        raise UsageError("--step: there is no terminal to read keys from") from None
    try:
        if not stream.isatty():
            yield _Keys(stream)
            return
        import termios  # here: there is none on Windows
        import tty

        before = termios.tcgetattr(stream)
        tty.setcbreak(stream)
        try:
            yield _Keys(stream)
        finally:
            termios.tcsetattr(stream, termios.TCSADRAIN, before)
    finally:
        if stream is not sys.stdin:
            stream.close()
