"""What keeps one run's log in a store: written behind by its owner, read on by everybody else.

Floor 3: above `log`, `store` and `commands`; the executor owns one for each run of a durable store. Chunks are written
in batches that clock themselves: what came while the last one was on its way, or within `BATCH_SECONDS`, is the next.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias

import anyio

from helix.chunks import Chunk, Control, Resync, chunk_to_json
from helix.commands import Cancel, Command, Interrupt, Respond, Send, command_to_json, parse_command
from helix.errors import (
    AlreadyAnswered,
    HelixError,
    InvalidAnswer,
    RunBusy,
    RunEnded,
    StaleWriter,
    StoreError,
    UnknownRun,
)
from helix.fold import AgentNode, RunTree, fold
from helix.log import RunLog
from helix.store import ENDED, PARKED, Claim, NewRun, RunRecord, Store, Write
from helix.trimming import chunk_of, read_structure, snapshot

BATCH_SECONDS = 0.01
LEASE_SECONDS = 15.0
_PAGE = 1000
_RETRY_SECONDS = 0.25
_POLL_SECONDS = 5.0

_LOST = (
    "run {}: the store could not be written for {:g} s, the run's lease, so it was stopped here. What was shown is "
    "kept; Executor.recover() or resume() goes on with it. The last attempt: {}"
)

Take: TypeAlias = Callable[[Command], None]
"""Does a command, or says what is wrong with it."""


class Journal:
    """One run in a store.

    Attributes:
        lost: why this process does not write it any more, if it was taken away.
    """

    def __init__(self, store: Store, log: RunLog, owner: str, *, lease: float | None = None) -> None:
        """Opens nothing; the store is open.

        Args:
            store: where it is kept.
            log: the log; its `kept` is set to this.
            owner: names this process in the store.
            lease: seconds after which others may take over from a silent owner; by default `LEASE_SECONDS`.
        """
        self._store = store
        self._log = log
        self._owner = owner
        self._lease = LEASE_SECONDS if lease is None else lease
        self._epoch = 0
        self._fresh_until = 0.0
        self._written = 0
        self._is_owner = False
        self._acknowledge: list[str] = []
        self._wake = anyio.Event()
        self._hurry = anyio.Event()
        self._writing = anyio.Lock()
        self._refused = ""
        self.lost: HelixError | None = None
        self._on_lost: Callable[[], None] = lambda: None
        log.kept = self

    # --- becoming the owner

    async def create(self, run: NewRun) -> None:
        """Takes the log into the store, and owns it.

        Raises:
            RunExists, SessionBusy, StoreError: see `Store.create`.
        """
        lines = [chunk_to_json(chunk) for chunk in self._log.chunks]
        begun = anyio.current_time()
        self._own(await self._store.create(run, lines, owner=self._owner, lease=self._lease), begun)
        self._log.show(self._written)

    async def claim(self) -> None:
        """Owns the run from now on, with the log as it is in the store.

        Raises:
            RunBusy, RunEnded, UnknownRun, StoreError: see `Store.claim`.
        """
        while self._is_owner and not self._log.live:  # what it wrote last is on its way
            await self._log.news()
        begun = anyio.current_time()
        self._own(await self._store.claim(self._log.run_id, owner=self._owner, lease=self._lease), begun)
        self._log.reload(*await self._kept())

    def _own(self, claim: Claim, begun: float) -> None:
        self._epoch, self._written, self.lost = claim.epoch, claim.last_sequence, None
        self._fresh_until = begun + self._lease
        self._is_owner = self._log.here = True

    async def load(self) -> None:
        """The log as the store has it, without deltas; unless this process is ahead of what was read.

        Raises:
            UnknownRun, StoreError: see `Store.read`.
        """
        chunks, base = await self._kept()
        if not self._is_owner and base >= self._log.shown:
            self._log.reload(chunks, base)
            self._log.here = False

    async def _kept(self) -> tuple[list[Chunk], int]:
        record = await self._store.get(self._log.run_id)  # before the chunks: what comes meanwhile is not passed over
        chunks = await read_structure(self._store, self._log.run_id)
        return chunks, max(record.last_sequence, chunks[-1].sequence if chunks else 0)

    async def load_if_possible(self) -> None:
        """`load`, unless the store is gone too; then the log stays as it is."""
        try:
            await self.load()
        except HelixError:
            pass

    # --- writing

    def note(self) -> None:
        """See `Kept`."""
        self._wake.set()

    async def flush(self) -> None:
        """See `Kept`."""
        target = self._log.last_sequence
        while self._is_owner and self._written < target:
            self._hurry.set()
            self._wake.set()
            await self._log.news()
        if self.lost is not None:
            raise self.lost

    async def barrier(self) -> None:
        """`flush`, for the run itself: if it was taken away, waits for the cancellation that is coming."""
        try:
            await self.flush()
        except HelixError:
            await anyio.sleep_forever()

    async def keep(self, on_lost: Callable[[], None]) -> None:
        """Writes what is appended and renews the lease, until the run was given up, or taken away.

        Args:
            on_lost: called once somebody else owns the run; nothing that is appended from then on counts.
        """
        self._on_lost = on_lost
        while self._is_owner:
            with anyio.move_on_after(self._lease / 3):
                await self._wake.wait()
            if not self._hurry.is_set():
                with anyio.move_on_after(BATCH_SECONDS):
                    await self._hurry.wait()
            await self.write()

    async def write(self) -> None:
        """Writes what has been appended so far; gives the run up if nobody runs it any more."""
        async with self._writing:
            self._wake, self._hurry = anyio.Event(), anyio.Event()
            with anyio.CancelScope(shield=True):
                while self._is_owner and not await self._write_once():
                    if anyio.current_time() > self._fresh_until:
                        self._lose(StoreError(_LOST.format(self._log.run_id, self._lease, self._refused)))
                    else:
                        await anyio.sleep(_RETRY_SECONDS)

    async def _write_once(self) -> bool:
        """Whether the store has taken what there was."""
        log, resting = self._log, not self._log.live
        status = log.tree.status if resting or log.tree.ended else "running"
        last, acknowledge = log.last_sequence, tuple(self._acknowledge)
        write = Write(
            log.run_id,
            self._epoch,
            self._written,
            [chunk_to_json(chunk) for chunk in log.above(self._written)],
            self._lease,
            status=status,
            deadline=_deadline(log.tree) if resting else None,
            release=resting,
            acknowledge=acknowledge,
        )
        begun = anyio.current_time()
        try:
            await self._store.append(write)
        except (StaleWriter, UnknownRun) as error:
            self._lose(error)
            return True
        except StoreError as error:
            self._refused = str(error)
            return await self._was_written(last, begun)
        self._accept(last, len(acknowledge), begun, gives_up=write.gives_up)
        return True

    async def _was_written(self, last: int, begun: float) -> bool:
        """Whether a write whose answer was lost has arrived all the same."""
        record = None
        with anyio.CancelScope(deadline=self._fresh_until), suppress(HelixError):
            record = await self._store.get(self._log.run_id)
        if record is None:
            return False
        if record.epoch != self._epoch:
            self._lose(StaleWriter(f"run {self._log.run_id} was taken over by {record.owner!r}", record.epoch))
            return True
        if record.last_sequence == last != self._written:
            self._accept(last, 0, begun, gives_up=record.owner is None)
            return True
        return False

    def _accept(self, last: int, acknowledged: int, begun: float, *, gives_up: bool) -> None:
        del self._acknowledge[:acknowledged]
        self._written, self._fresh_until = last, begun + self._lease
        if gives_up:
            self._is_owner = False
            self._log.here = self._log.tree.ended  # else others may go on with it
        self._log.show(last)

    def _lose(self, error: HelixError) -> None:
        self.lost = error
        self._is_owner = self._log.here = False
        self._log.show(self._written)
        self._on_lost()

    async def finish(self) -> None:
        """Gives the run up, with all that was appended written; for who owns it and does not run it."""
        while self._is_owner:
            await self.write()

    # --- the inbox

    async def listen(self, take: Take) -> None:
        """Hands every command that is posted to `take`, in order, until cancelled."""
        position = 0
        while True:
            try:
                position = await self.take_posts(take, position)
                await self._store.wait(self._log.run_id, posts_after=position, timeout=_POLL_SECONDS)
            except (StoreError, UnknownRun):  # `keep` finds out whether it comes back, or is gone for good
                await anyio.sleep(_RETRY_SECONDS)

    async def take_posts(self, take: Take, after: int = 0) -> int:
        """Hands what is in the inbox to `take`; it is acknowledged together with what follows from it."""
        for post in await self._store.take(self._log.run_id, after):
            try:
                take(parse_command(post.data))
            except (HelixError, ValueError):
                pass  # who posted it saw the run as it was then; it comes too late
            self._acknowledge.append(post.command_id)
            after = post.position
            self.note()
        return after

    async def post(self, command: Command, check: Take) -> bool:
        """Puts a command into the inbox. True once the run's owner has done it; False: the run has no owner.

        Then it waits in the inbox for the next one. An owner whose lease passes is none.

        Args:
            command: what is wanted; it is given an id if it has none.
            check: says what is wrong with it, given the log as it is kept.

        Raises:
            RunEnded, StoreError: see `Store.post`.
            UnknownApproval, AlreadyAnswered, InvalidAnswer, AgentEnded, UsageError: what `check` has said, before or
                after; or somebody has answered already, and nobody has gone on with the run yet.
        """
        command, run_id = _named(command), self._log.run_id
        await self.load()
        check(command)
        if (await self._store.get(run_id)).lease_left <= 0 and isinstance(command, Respond):
            _check_unread(command, await unread(self._store, run_id))
        await self._store.post(run_id, command.command_id, command_to_json(command))
        while True:
            record = await self._store.get(run_id)
            taken = command.command_id not in {post.command_id for post in await self._store.take(run_id)}
            if taken and await self._is_done(command, record, check):
                return True
            if record.lease_left <= 0:
                return False
            timeout = min(record.lease_left, _RETRY_SECONDS)  # what is taken without a word wakes nobody
            await self._store.wait(run_id, chunks_after=record.last_sequence, timeout=timeout)

    async def _is_done(self, command: Command, record: RunRecord, check: Take) -> bool:
        """Whether what a command wants, which the owner has taken, has come about."""
        if isinstance(command, Interrupt) and record.status not in (*PARKED, *ENDED):
            return False
        await self.load()
        tree = self._log.tree
        if isinstance(command, Cancel):
            return tree.agents[command.agent_id or tree.root_id].ended
        if isinstance(command, Respond | Send) and command.command_id not in tree.commands:
            check(command)
            raise InvalidAnswer("the run's owner has refused it: with other arguments, see that they fit the tool")
        return True

    # --- reading

    async def settle(self) -> None:
        """See `Kept`."""
        if self._log.here:
            await self.flush()
            return
        while True:
            record = await self._store.get(self._log.run_id)
            if record.status in ENDED or record.status in PARKED:
                await self.load()
                return
            self._check_lost(record)
            await self._store.wait(self._log.run_id, chunks_after=record.last_sequence, timeout=_POLL_SECONDS)

    async def tell(self, command: Command, take: Take, check: Take) -> None:
        """See `Kept`."""
        command = _named(command)
        while True:
            try:
                await self.claim()
            except RunBusy:
                owned = True
            except RunEnded:
                await self.load()
                take(command)  # which says what is wrong with it, if it is
                return
            else:
                owned = False
                if await self._tell_alone(command, take):
                    return
            with suppress(RunEnded):  # in this moment
                if await self.post(command, check) or not owned:
                    return

    async def _tell_alone(self, command: Command, take: Take) -> bool:
        """`tell`, as the owner that the run has for this moment; whether that can be done."""
        crashed = not self._log.tree.at_rest
        if crashed and isinstance(command, Respond | Send):  # whoever takes it over reads this, and all other mail
            await self.finish()
            return False
        try:
            if not crashed:
                await self.take_posts(take)
            take(command)
        finally:
            await self.finish()
        return True

    async def page(self, offset: int) -> list[Chunk | Control]:
        """See `Kept`."""
        found = await self._store.read(self._log.run_id, offset, limit=_PAGE)
        if not found or found[-1][0] != offset + len(found):  # there may be a gap
            record = await self._store.get(self._log.run_id)
            if offset < record.floor:
                return [await self._resync(record.floor)]
        return [chunk_of(line) for _, line in found]

    async def _resync(self, floor: int) -> Resync:
        chunks = await read_structure(self._store, self._log.run_id, floor)
        return Resync(floor=floor, snapshot=snapshot(fold(chunks)))

    async def more(self, offset: int) -> None:
        """See `Kept`."""
        await self._store.wait(self._log.run_id, chunks_after=offset, timeout=_POLL_SECONDS)

    async def rests(self, offset: int, *, follow: bool) -> bool:
        """See `Kept`."""
        if self._log.here and offset < self._log.base:
            return False
        record = await self._store.get(self._log.run_id)
        if record.last_sequence > offset:
            return False
        if record.status in ENDED or (record.status in PARKED and not follow):
            if not self._log.shown == self._log.last_sequence == record.last_sequence:
                await self.load()
            return True
        self._check_lost(record)
        await self.more(offset)
        return False

    def _check_lost(self, record: RunRecord) -> None:
        """Who waits here for a run that was stopped here, and that nobody has taken over, would wait for ever."""
        if isinstance(self.lost, StoreError) and record.lease_left <= 0:
            raise self.lost


async def unread(store: Store, run_id: str) -> list[Command]:
    """What is in a run's inbox, and no owner has done yet, in order."""
    commands: list[Command] = []
    for post in await store.take(run_id):
        with suppress(ValueError):
            commands.append(parse_command(post.data))
    return commands


def _check_unread(command: Respond, mail: Sequence[Command]) -> None:
    for other in mail:
        if not isinstance(other, Respond) or other.command_id == command.command_id:
            continue
        if other.approval_id == command.approval_id:
            text = f"{command.approval_id!r} is answered already; nobody has gone on with the run yet"
            raise AlreadyAnswered(text, other.answer.type)


def _named(command: Command) -> Command:
    return command if command.command_id else replace(command, command_id=secrets.token_hex(8))


def new_owner() -> str:
    """A name for this process in a store."""
    return f"helix-{secrets.token_hex(6)}"


def _deadline(tree: RunTree) -> int | None:
    """When a parked run wants to be taken up by itself."""
    return min(_deadlines(tree), default=None)


def _deadlines(tree: RunTree) -> Iterator[int]:
    if tree.status == "suspended" and any(_can_go_on(node) for node in tree.agents.values()):
        yield tree.timestamp  # somebody has answered, or cancelled what it waited for: it is to be taken up at once
    for request in tree.requests.values():
        if request.deadline is not None:
            yield request.deadline


def _can_go_on(node: AgentNode) -> bool:
    waiting = node.open_calls
    return not node.ended and (not waiting or any(call.answer is not None for call in waiting))
