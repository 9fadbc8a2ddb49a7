"""The log: one append-only list of numbered chunks for a whole tree of agents, and cursors on it.

Floor 2: above `chunks` and `fold`. Everything that happens goes through `RunLog.append`; everything that is read comes
from a `LogReader`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, Generic, Literal, Protocol, Self, TypeVar, cast, overload

import anyio
from anyio.lowlevel import checkpoint

from helix.bell import Bell, new_bell
from helix.chunks import (
    Chunk,
    Control,
    OutputDelta,
    Resync,
    RunEnd,
    RunPause,
    StreamEnd,
    TextDelta,
    Thinking,
    ToolInputDelta,
    ToolOutputDelta,
)
from helix.commands import Command
from helix.errors import InvalidChunk
from helix.fold import RunTree, fold

ItemT = TypeVar("ItemT")

_DELTAS = (TextDelta, OutputDelta, ToolInputDelta, ToolOutputDelta)
_PIECES_BETWEEN_CHECKPOINTS = 256


def now_ms() -> int:
    """The time in Unix milliseconds, as chunks carry it."""
    return time.time_ns() // 1_000_000


class Kept(Protocol):
    """What keeps a log beyond this process, as the log and its readers need it; `helix.journal` does, with a store."""

    def note(self) -> None:
        """Something was appended; it is to be kept soon."""
        ...

    async def barrier(self) -> None:
        """Returns once everything appended so far is kept; not at all if this process may not write any more."""
        ...

    async def settle(self) -> None:
        """Returns once the run rests, whoever runs it, and all of it is kept and, if others ran it, in the log."""
        ...

    async def tell(self, command: Command, take: Callable[[Command], None], check: Callable[[Command], None]) -> None:
        """Has a command done by whoever owns the run; by `take`, with the log as it is kept, if that is nobody.

        Returns once what follows from it is kept. An owner whose lease passes is dead. `check` says what is wrong with
        a command for another owner.
        """
        ...

    async def flush(self) -> None:
        """Returns once everything appended so far is kept.

        Raises:
            StaleWriter: another owner has taken the run over.
            StoreError: the store cannot be written.
        """
        ...

    async def page(self, offset: int) -> list[Chunk | Control]:
        """The next chunks above `offset` as they are kept; a `resync` first where some are not any more."""
        ...

    async def more(self, offset: int) -> None:
        """Waits for a chunk above `offset`, for some seconds at most."""
        ...

    async def rests(self, offset: int, *, follow: bool) -> bool:
        """Waits for a chunk above `offset`. True instead, once the run rests and `offset` is its last."""
        ...


class RunLog:
    """The chunks of one run, in order, and the tree that they fold to.

    Only the run's owner appends; any number of readers follow. All of it belongs to one event loop.

    Attributes:
        run_id: the root agent's id.
        base: the number of the last chunk that is not in `chunks`; 0 unless the log was taken over from a store.
        chunks: every chunk above `base` so far; `chunks[n - 1 - base].sequence == n`. Not to be changed.
        tree: the fold of all chunks, those up to `base` included.
        live: whether somebody runs it now; only an owner appends.
        kept: what keeps it beyond this process; None for a log that is in memory only.
        shown: up to which number readers see it: what they saw survives a crash.
        here: whether this process writes it, or did last; else readers follow what is kept.
    """

    def __init__(self, run_id: str, chunks: Iterable[Chunk] = ()) -> None:
        self.run_id = run_id
        self.base = 0
        self.chunks: list[Chunk] = list(chunks)
        self.tree: RunTree = fold(self.chunks)
        self.live = False
        self.kept: Kept | None = None
        self.shown = len(self.chunks)
        self.here = True
        self._before: list[Chunk] = []
        self._now = 0
        self._room: anyio.Event | None = None
        self._news: Bell | None = None

    @property
    def last_sequence(self) -> int:
        """The number of the last chunk."""
        return self.base + len(self.chunks)

    @property
    def structure(self) -> Iterator[Chunk]:
        """The chunks from the first to the last; of those up to `base` perhaps without the deltas."""
        return chain(self._before, self.chunks)

    def above(self, sequence: int) -> list[Chunk]:
        """The chunks above that number, which is at least `base`."""
        return self.chunks[max(0, sequence - self.base) :]

    def append(self, *chunks: Chunk) -> None:
        """Numbers, stamps and adds the chunks, all or none, and wakes the readers that wait.

        Raises:
            InvalidChunk: the run has ended, or a chunk does not fit; the log is as it was.
            InvalidPatch: a state patch does not apply; the log is as it was.
        """
        tree, log = self.tree, self.chunks
        now = time.time_ns() // 1_000_000
        if now != self._now:  # chunks of one millisecond share the number object
            self._now = now
        number, steps_ended = self.base + len(log), tree.steps_ended
        try:
            for chunk in chunks:
                node = tree.agents.get(chunk.agent_id)
                if node is None or node.status != "running":
                    self._check_open(chunk)
                number += 1
                chunk.sequence = number
                chunk.timestamp = self._now
                tree.apply(chunk)
        except Exception:
            self.tree = self._folded()
            raise
        log += chunks
        if self.kept is None:
            self.shown = number
        else:
            self.kept.note()
        if self._news is not None:
            self._news.ring()
        if tree.steps_ended != steps_ended:
            self.make_room()

    def _check_open(self, chunk: Chunk) -> None:
        """Refuses a chunk of an agent that has ended, or of a run that has."""
        if self.tree.ended:
            raise InvalidChunk(f"run {self.run_id} has ended; nothing can follow its run_end")
        if chunk.agent_id in self.tree.agents:
            raise InvalidChunk(f"agent {chunk.agent_id!r} has ended; it cannot produce a {chunk.type} any more")

    def show(self, sequence: int) -> None:
        """Readers may see the chunks up to that number: they are kept."""
        self.shown = sequence
        self._tell()

    def reload(self, before: Iterable[Chunk], base: int) -> None:
        """The log as it is kept up to number `base`, whatever it was here: a new owner has it, or takes it."""
        self._before = list(before)
        self.chunks = []
        self.base = self.shown = base
        self.tree = self._folded()
        self._tell()

    def _folded(self) -> RunTree:
        tree = fold(self.structure)
        tree.sequence = self.last_sequence
        return tree

    def _tell(self) -> None:
        if self._news is not None:
            self._news.ring()

    async def room(self) -> None:
        """Returns when a model call has ended, or `make_room` is called: who waits for a limit decides anew."""
        if self._room is None:
            self._room = anyio.Event()
        await self._room.wait()

    def make_room(self) -> None:
        """Wakes those who wait for room."""
        if self._room is not None:
            self._room.set()
            self._room = None

    def leave(self) -> None:
        """The owner is done with it, for now or for good; wakes those who wait for that."""
        self.live = False
        self._tell()
        self._news = None  # the next owner may have another event loop

    async def rest(self) -> None:
        """Returns once nobody runs it any more: it has ended, is parked, or was left by a crash."""
        while self.live:
            await self.news()

    def news(self) -> Awaitable[object]:
        """What ends with the next append; look first whether what you wait for is already there."""
        if self._news is None:
            self._news = new_bell()
        return self._news.wait()

    @overload
    def read(
        self, from_offset: int = 0, *, follow: bool = False, coalesce: bool = False, control: Literal[False] = False
    ) -> LogReader[Chunk]: ...
    @overload
    def read(
        self, from_offset: int = 0, *, follow: bool = False, coalesce: bool = False, control: bool
    ) -> LogReader[Chunk | Control]: ...
    def read(
        self, from_offset: int = 0, *, follow: bool = False, coalesce: bool = False, control: bool = False
    ) -> LogReader[Any]:
        """A cursor that yields the chunks above `from_offset`; see `RunHandle.stream`."""
        if from_offset < 0:
            raise ValueError(f"from_offset must be 0 or more, not {from_offset}")
        return LogReader(self, from_offset, follow=follow, coalesce=coalesce, control=control)


class LogReader(Generic[ItemT]):
    """An async iterator over a log, from an offset, live. Leaving it costs and closes nothing.

    It ends once it has delivered the root's `run_end`, or a `run_pause` with nothing behind it (unless it follows).
    """

    def __init__(self, log: RunLog, from_offset: int, *, follow: bool, coalesce: bool, control: bool) -> None:
        self._log = log
        self._position = from_offset
        self._follow = follow
        self._coalesce = coalesce
        self._control = control
        self._closed = False
        self._moves = False  # what was read from the store last is no end and no pause: more comes
        self._page: list[Chunk | Control] = []  # what was read from the store and not yet given out, the last one first

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ItemT:
        if self._closed or not self._at_hand:
            await self._arrival()
        elif self._position % _PIECES_BETWEEN_CHECKPOINTS == 0:
            await checkpoint()
        return self._take()

    async def next_batch(self) -> list[ItemT]:
        """All that is there, at least one chunk; empty once the stream has ended."""
        try:
            await self._arrival()
        except StopAsyncIteration:
            return []
        batch: list[ItemT] = []
        log = self._log
        if self._at_hand and not self._coalesce:
            batch = cast(list[ItemT], log.chunks[self._position - log.base : log.shown - log.base])
            self._position = log.shown
        while self._at_hand or self._page:
            batch.append(self._take())
        return batch or [self._take()]

    async def aclose(self) -> None:
        """Ends the iteration. The run goes on."""
        self._closed = True

    @property
    def _at_hand(self) -> bool:
        """Whether the next chunk is in memory."""
        log = self._log
        return log.base <= self._position < log.shown and not self._page and log.here

    async def _arrival(self) -> None:
        waited = False
        while not self._closed and not self._page:
            log, kept = self._log, self._log.kept
            if self._at_hand:
                if not waited:
                    await checkpoint()
                return
            waited = True
            if kept is not None and not (log.here and self._position >= log.base):
                if await self._turn(kept):
                    return
                continue
            tree = log.tree
            if self._position >= log.last_sequence and (tree.ended or (tree.at_rest and not self._follow)):
                if self._control:
                    return
                break
            await log.news()
        if not self._page:
            raise StopAsyncIteration

    async def _turn(self, kept: Kept) -> bool:
        """Reads on in what is kept, or waits for it; True if the run rests and `stream_end` is wanted."""
        if self._moves:
            await kept.more(self._position)
        elif await kept.rests(self._position, follow=self._follow):
            self._closed = not self._control
            return self._control
        page = await kept.page(self._position)
        self._moves = bool(page) and not isinstance(page[-1], (Resync, RunEnd, RunPause))
        self._page = page[::-1]
        return False

    def _take(self) -> ItemT:
        if self._page:
            return cast(ItemT, self._turned())
        log, position = self._log, self._position
        if not (log.base <= position < log.shown and log.here):
            self._closed = True
            return cast(ItemT, self._stream_end())
        if self._coalesce:
            return cast(ItemT, self._merged())
        self._position = position + 1
        return cast(ItemT, log.chunks[position - log.base])

    def _turned(self) -> Chunk | Control:
        """The next of the page."""
        page, item = self._page, self._page.pop()
        if isinstance(item, Resync):
            self._position = item.floor
            return item
        run = [cast(Chunk, item)]
        while self._coalesce and page and _continues(item, page[-1]):
            run.append(cast(Chunk, page.pop()))
        self._position = run[-1].sequence
        return _joined(run)

    def _merged(self) -> Chunk:
        """The next chunk and the deltas right behind it that continue it, as one."""
        chunks, begin, shown = self._log.chunks, self._position - self._log.base, self._log.shown - self._log.base
        end = begin + 1
        while end < shown and _continues(chunks[begin], chunks[end]):
            end += 1
        self._position += end - begin
        return _joined(chunks[begin:end])

    def _stream_end(self) -> StreamEnd:
        tree = self._log.tree
        return StreamEnd(
            stream_id=self._log.run_id,
            timestamp=now_ms(),
            status=cast(Any, tree.status),
            last_sequence=tree.sequence,
            final_output=tree.root.result if tree.status == "completed" else None,
        )


def _field(chunk: Any) -> str:
    return "content" if isinstance(chunk, Thinking) else "delta"


def _words(chunk: Any) -> str:
    return getattr(chunk, _field(chunk))


def _joined(run: list[Chunk]) -> Chunk:
    """Deltas that continue each other as one, numbered as the last of them."""
    if len(run) == 1:
        return run[0]
    joined: dict[str, Any] = {_field(run[-1]): "".join(map(_words, run))}
    return replace(run[-1], **joined)


def _continues(first: Any, following: Any) -> bool:
    if type(first) is not type(following) or first.agent_id != following.agent_id:
        return False
    if isinstance(first, Thinking):
        return not first.is_complete and not following.is_complete
    if not isinstance(first, _DELTAS):
        return False
    return getattr(first, "tool_call_id", None) == getattr(following, "tool_call_id", None) and getattr(
        first, "channel", None
    ) == getattr(following, "channel", None)
