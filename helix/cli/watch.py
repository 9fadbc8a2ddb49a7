"""What a run looks like while it goes on: the live tree at a terminal, plain lines anywhere else.

Floor 7: above `executor`; used by the commands that show a run. Only the live tree needs rich, and loads it.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import anyio

from helix.chunks import Chunk, Control, Resync, StreamEnd
from helix.cli.console import Console
from helix.cli.logs import with_words
from helix.cli.narrate import Focus, Narrator, Telling, chunk_types
from helix.errors import HelixError
from helix.fold import RunTree
from helix.handle import RunHandle
from helix.log import now_ms
from helix.results import RunResult

INTERRUPTED = 130
FRAME = 0.12
"""Seconds between two drawings."""
HINT = "for the live tree: pip install 'helix-agents[cli]'"


class Watcher(Protocol):
    """Shows a run to a person: above it are the commands, below it a terminal or a stream of lines."""

    @property
    def is_view(self) -> bool:
        """Whether it is the live tree."""
        ...

    def take(self, batch: list[Chunk]) -> None:
        """Takes the next chunks."""
        ...

    def draw(self, now: int, hint: str = "") -> None:
        """Shows how it stands at `now` (Unix ms)."""
        ...

    def note(self, line: str) -> None:
        """Tells a line that is not from the run."""
        ...

    def close(self) -> None:
        """Shows what is left to show and leaves the terminal as it was. May be called again."""
        ...

    def restore(self) -> None:
        """Leaves the terminal as it was, at once; a signal handler may call it."""
        ...

    def paused(self) -> AbstractContextManager[None]:
        """Draws nothing in it: the terminal is somebody else's, who asks the person something."""
        ...


class Lines:
    """A run in plain lines."""

    is_view = False

    def __init__(self, err: Console, telling: Telling) -> None:
        self._err = err
        self._narrator = Narrator(lambda path, text: err.line(f"{path}: {text}"), telling)

    def take(self, batch: list[Chunk]) -> None:
        """Tells of the next chunks."""
        for chunk in batch:
            self._narrator.take(chunk)

    def draw(self, now: int, hint: str = "") -> None:
        """There is nothing to draw."""

    def note(self, line: str) -> None:
        """Tells a line that is not from the run."""
        self._err.line(line)

    def close(self) -> None:
        """There is nothing left to show."""

    def restore(self) -> None:
        """There is nothing to put back."""

    def paused(self) -> AbstractContextManager[None]:
        """There is nothing to stop."""
        return nullcontext()


@dataclass(slots=True, frozen=True)
class Asked:
    """What of a run is to be shown, and how."""

    focus: Focus
    only: frozenset[str] | None
    plain: bool

    def watcher(self, out: Console, err: Console, *, streamed: bool = False, as_json: bool = False) -> Watcher:
        """The live tree if a person looks on and it can be drawn, else lines.

        Args:
            out: where the answer goes; on the same screen it is not told by the watcher as well.
            err: where the watcher writes.
            streamed: without a live tree, the root's words are written to `out` as they come.
            as_json: the chunks are written to `out`.
        """
        shared = out.is_terminal and err.is_terminal
        if self.plain or not can_draw(err) or (as_json and shared) or not has_rich():
            streamed = streamed and out.is_terminal
            words, answer = not (streamed and shared), not shared or as_json
            return Lines(err, Telling(self.focus, self.only, root_words=words, answer=answer))
        from helix.cli.screen import Screen  # here: rich may be absent, and takes its time to load

        telling = Telling(self.focus, self.only, above_tree=True, answer=not shared)
        return Screen(err, telling, redirect_stdout=out.is_terminal)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what all commands that show a run have in common."""
    parser.add_argument("--focus", metavar="AGENT", help="show this agent (name or id) and those below it only")
    parser.add_argument("--only", metavar="TYPES", help="tell chunks of these types only, such as text_delta,tool_end")
    parser.add_argument("--plain", action="store_true", help="plain lines, also at a terminal")


def asked(options: argparse.Namespace) -> Asked:
    """What the options ask for.

    Raises:
        UsageError: `--only` names a type that does not exist.
    """
    only = None if options.only is None else chunk_types(options.only)
    return Asked(Focus(options.focus), only, options.plain)


def can_draw(err: Console) -> bool:
    """Whether a live tree may be drawn there: a terminal that can, and nobody who wishes otherwise."""
    if not err.is_terminal or err.stream is None or "utf" not in err.stream.encoding.lower():
        return False
    unwanted = os.environ.get("NO_COLOR") or os.environ.get("CI")
    return not unwanted and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def has_rich() -> bool:
    """Whether the extra `cli` is installed."""
    try:
        return importlib.util.find_spec("rich") is not None
    except ValueError:  # how a module that must not be imported is marked
        return False


def tell_missing(focus: Focus, tree: RunTree, watcher: Watcher) -> None:
    """Says so if the agent to look at never came."""
    if focus.name is not None and not focus.found:
        names = sorted({node.agent_type for node in tree.agents.values()})
        shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
        watcher.note(f"helix: --focus: no agent {focus.name!r} in this run; its agents: {shown}")


# --- a run that goes on


async def follow(
    handle: RunHandle[Any, Any],
    watcher: Watcher,
    take: Callable[[list[Chunk | Resync]], bool],
    interrupted: anyio.Event,
) -> RunResult[Any, Any]:
    """Watches a run to its end, or until it is cancelled: by Ctrl-C, or because `take` says that it is in vain.

    Of a trimmed run, `take` is given the `resync`, then what is kept of the chunks that it stands for; see `as_seen`.
    """
    failed: HelixError | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_on, interrupted, handle)
            tasks.start_soon(_draw, watcher, interrupted)
            try:
                await _read(handle, take)
            except HelixError as error:  # the store is gone; raised below, where no group is put around it
                failed = error
            tasks.cancel_scope.cancel()
    finally:
        watcher.close()
    if failed is not None:
        raise failed
    return await handle.result()


async def _read(handle: RunHandle[Any, Any], take: Callable[[list[Chunk | Resync]], bool]) -> None:
    reader, last = handle.stream(), 0
    batch = await reader.next_batch()
    while batch:
        told = list(_told(handle, batch, last))
        last = next((item.sequence for item in reversed(told) if not isinstance(item, Resync)), last)
        if not take(told):
            await handle.cancel()
        batch = await reader.next_batch()


def _told(handle: RunHandle[Any, Any], batch: Iterable[Chunk | Control], last: int) -> Iterator[Chunk | Resync]:
    """A batch in which each `resync` is followed by what is kept of the chunks that it stands for, behind `last`."""
    for item in batch:
        if isinstance(item, StreamEnd):
            continue
        yield item
        if isinstance(item, Resync):
            yield from (chunk for chunk in handle.structure(item.floor) if chunk.sequence > last)


def as_seen(batch: Iterable[Chunk | Resync]) -> Iterator[Chunk]:
    """What a watcher takes of a batch: for a `resync`, what is kept of what it stands for, with words."""
    floor = 0
    for item in batch:
        if isinstance(item, Resync):
            floor = item.floor
        else:
            yield from with_words([item], floor)


async def _cancel_on(interrupted: anyio.Event, handle: RunHandle[Any, Any]) -> None:
    await interrupted.wait()
    await handle.cancel()


async def _draw(watcher: Watcher, interrupted: anyio.Event) -> None:
    while watcher.is_view:
        begun = time.perf_counter()
        cancelling = "cancelling, Ctrl-C again aborts"
        watcher.draw(now_ms(), cancelling if interrupted.is_set() else "Ctrl-C cancels")
        await anyio.sleep(max(FRAME, 10 * (time.perf_counter() - begun)))


@contextmanager
def interrupts(watcher: Watcher) -> Generator[anyio.Event]:
    """An event that the first Ctrl-C sets; a second one ends the program at once, whatever it does."""
    loop, interrupted = asyncio.get_running_loop(), anyio.Event()
    with on_interrupt(lambda: loop.call_soon_threadsafe(interrupted.set), watcher):
        yield interrupted


@contextmanager
def on_interrupt(first: Callable[[], object], watcher: Watcher) -> Generator[None]:
    """Calls `first` at the first Ctrl-C, in whatever is being done then; a second one ends the program at once."""

    def abort(*_: object) -> None:
        watcher.restore()
        os._exit(INTERRUPTED)

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, abort)
        first()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def leave_threads_behind(code: int) -> None:
    """Ends the program if a tool's thread still works: it cannot be stopped, and the interpreter would wait for it."""
    if threading.active_count() > 1:
        sys.stderr.flush()
        os._exit(code)
