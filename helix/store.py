"""The store: what keeps the logs of runs beyond their process, as a seam; and the plain data that goes through it.

Floor 2: above `errors`. Below it are the databases (`helix.stores`), above it whoever owns or reads runs. A store knows
no chunks, only their lines of JSON; what it guarantees is their order, and that one writer writes them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from helix.errors import HelixError, RunBusy, RunEnded, SessionBusy, StaleWriter, StoreError

ENDED = ("completed", "failed", "cancelled")
"""The statuses after which nothing follows."""
PARKED = ("interrupted", "suspended")
"""The statuses of a run that rests and can go on."""

_DELTAS = tuple(
    f'{{"type":"{name}"'.encode() for name in ("text_delta", "output_delta", "tool_input_delta", "tool_output_delta")
)
_THINKING = b'{"type":"thinking"'
_PIECE = b'"isComplete":false'


def is_delta(line: bytes) -> bool:
    """Whether an encoded chunk is a piece of something that a later chunk holds whole.

    Recovery does not read deltas, and `Store.trim` drops them.
    """
    return line.startswith(_DELTAS) or (line.startswith(_THINKING) and _PIECE in line)


@dataclass(slots=True, frozen=True)
class NewRun:
    """What a store is told of a run when it is created.

    Attributes:
        run_id: the root agent's id.
        agent_type: the root agent's name.
        session_id: the session it belongs to.
        metadata: JSON data, given back as it is.
        follows: the run of the session whose conversation it goes on with, its newest one; None for the first.
    """

    run_id: str
    agent_type: str
    session_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    follows: str | None = None


@dataclass(slots=True, frozen=True)
class Claim:
    """The right to write a run.

    Attributes:
        epoch: 1 for who created the run, one more for each later owner.
        last_sequence: the number of the last chunk at that moment; the new owner goes on behind it.
    """

    epoch: int
    last_sequence: int


@dataclass(slots=True, frozen=True)
class Write:
    """All that an owner does to its run in one atomic step.

    Attributes:
        run_id: which run.
        epoch: the owner's, from its `Claim`.
        after: the number of the last chunk, as the owner knows it.
        chunks: lines of JSON, numbered `after` + 1 and on; none, to renew the lease only.
        lease: seconds from now for which nobody else can claim the run.
        status: the run's status from now on; None leaves it. A status that is not `running` gives the run up.
        deadline: with a status: when a parked run wants to be claimed, in Unix milliseconds.
        release: give the run up though it is `running`; anybody can claim it at once.
        acknowledge: ids of commands that these chunks are the answer to; they are not taken again.
    """

    run_id: str
    epoch: int
    after: int
    chunks: Sequence[bytes] = ()
    lease: float = 30.0
    status: str | None = None
    deadline: int | None = None
    release: bool = False
    acknowledge: Sequence[str] = ()

    @property
    def gives_up(self) -> bool:
        """Whether the run has no owner afterwards."""
        return self.release or self.status not in (None, "running")


@dataclass(slots=True, frozen=True)
class Post:
    """A command in a run's inbox.

    Attributes:
        position: 1, 2, 3 … in the order in which the run's commands came.
        command_id: names the command; a second one of the same id was refused.
        data: the command, as it was posted.
    """

    position: int
    command_id: str
    data: bytes


@dataclass(slots=True, frozen=True)
class RunRecord:
    """What a store knows of a run.

    Attributes:
        run_id, agent_type, session_id, metadata: as in `NewRun`.
        status: `running`, or one of `ENDED` or `PARKED`.
        last_sequence: the number of its last chunk.
        epoch: of its last owner.
        owner: who owns it; None when it was given up.
        lease_left: seconds for which the owner's lease was still fresh, by the store's clock; 0 when it was not.
        created_at, updated_at: Unix milliseconds, by the store's clock.
        deadline: when a parked run wants to be claimed, in Unix milliseconds.
        floor: deltas up to that number may be missing; a reader from a lower offset has to be told to resync.
    """

    run_id: str
    agent_type: str
    session_id: str | None
    metadata: Mapping[str, Any]
    status: str
    last_sequence: int
    epoch: int
    owner: str | None
    lease_left: float
    created_at: int
    updated_at: int
    deadline: int | None
    floor: int


@dataclass(slots=True, frozen=True)
class SessionRecord:
    """What a store knows of a session.

    Attributes:
        session_id: its name.
        runs: how many it has.
        last_run_id, status: its newest run.
        created_at, updated_at: of its first run, and of its last change; Unix milliseconds.
    """

    session_id: str
    runs: int
    last_run_id: str
    status: str
    created_at: int
    updated_at: int


class Store(Protocol):
    """Keeps the logs of runs. `helix.stores` has four; `helix.testing.store_suite` tests whether another one is right.

    It is used inside of `async with`, in one event loop; entering creates or upgrades what it needs, and other
    processes may do so at the same time. Each method is atomic and durable when it returns. `append`, once begun, is
    not cut short by a cancellation. Any method may raise `StoreError`, and `UnknownRun` for a run that is not there.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    async def create(self, run: NewRun, chunks: Sequence[bytes], *, owner: str, lease: float) -> Claim:
        """Takes in a new run with its first chunks; `owner` is its writer for `lease` seconds.

        Raises:
            RunExists: there is a run of that id.
            SessionBusy: another run of its session has not ended, or its newest one is not the one it follows.
        """
        ...

    async def claim(self, run_id: str, *, owner: str, lease: float) -> Claim:
        """Makes `owner` the run's one writer. Of many who claim it at once, one gets it.

        Raises:
            RunBusy: somebody's lease is fresh.
            RunEnded: it has ended.
        """
        ...

    async def append(self, write: Write) -> None:
        """Does all that `write` says, or nothing.

        Raises:
            StaleWriter: the epoch is not the run's any more, or the run was given up.
            StoreError: `write.after` is not the last sequence; or the store cannot be written.
        """
        ...

    async def read(
        self, run_id: str, from_offset: int = 0, *, limit: int = 1000, deltas: bool = True
    ) -> list[tuple[int, bytes]]:
        """The first `limit` chunks above `from_offset`, in order, without a gap above the run's floor.

        Args:
            run_id: which run.
            from_offset: the number of the last chunk that was read.
            limit: how many at most; an empty answer means that there is no more.
            deltas: False leaves out what `is_delta` says.
        """
        ...

    async def wait(
        self, run_id: str, *, chunks_after: int | None = None, posts_after: int | None = None, timeout: float
    ) -> None:
        """Returns when the run may have a chunk above `chunks_after` or a command above `posts_after`, or is deleted.

        Also after `timeout` seconds, and sometimes without a reason: look again afterwards.
        """
        ...

    async def post(self, run_id: str, command_id: str, data: bytes) -> bool:
        """Puts a command into the run's inbox, from any process; False if one of that id has ever been there.

        Raises:
            RunEnded: nobody will read it.
        """
        ...

    async def take(self, run_id: str, after: int = 0) -> list[Post]:
        """The commands above that position that are not acknowledged yet, in order. They stay until they are."""
        ...

    async def get(self, run_id: str) -> RunRecord:
        """What the store knows of a run."""
        ...

    async def runs(
        self,
        *,
        session_id: str | None = None,
        statuses: Collection[str] | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[RunRecord]:
        """Runs, newest first: all or a session's, of those statuses; only those older than the run `before`."""
        ...

    async def claimable(self, *, limit: int = 100) -> list[str]:
        """Ids of runs without a fresh lease that are `running`, have commands to take, or are past their deadline.

        Oldest first. `claim` decides who gets one.
        """
        ...

    async def sessions(self, *, limit: int = 100, before: str | None = None) -> list[SessionRecord]:
        """Sessions, by their newest run, newest first; only those behind the session `before`."""
        ...

    async def delete(self, run_id: str) -> None:
        """Forgets a run with all that belongs to it.

        Raises:
            RunBusy: it has an owner, whose lease is fresh.
        """
        ...

    async def delete_session(self, session_id: str) -> int:
        """Forgets all runs of a session, and says how many; 0 for one that is not known.

        Raises:
            RunBusy: one of them has an owner, whose lease is fresh; then none is forgotten.
        """
        ...

    async def trim(self, run_id: str, up_to: int) -> int:
        """Drops the deltas numbered up to `up_to`, says how many, and raises the run's floor to that number.

        Which number leaves whole what is still being written, `helix.trimming` knows.
        """
        ...


def busy(run_id: str, owner: str | None, remaining: float) -> RunBusy:
    """For `claim` and `delete`: the lease is fresh."""
    name = owner or "somebody"
    return RunBusy(f"run {run_id} is owned by {name!r} for another {remaining:.1f} s", name, remaining)


def check_claimable(run_id: str, status: str, owner: str | None, lease_left: float) -> None:
    """For `claim`: refuses a run that has ended, and one whose lease is fresh. Raises RunEnded, RunBusy."""
    if status in ENDED:
        raise ended(run_id, status)
    if lease_left > 0:
        raise busy(run_id, owner, lease_left)


def not_free(run: NewRun, newest: str | None, *, ended: bool) -> SessionBusy | None:
    """For `create`: why it is not the turn of a session's new run; None if it is."""
    if run.session_id is None or (ended and newest == run.follows):
        return None
    why = f"has a run that has not ended, {newest}"
    if ended:
        why = f"has gone on with run {newest}" if newest else f"has been deleted, and {run.follows} with it"
    return SessionBusy(f"session {run.session_id!r} {why}")


def ended(run_id: str, status: str) -> RunEnded:
    """For `claim` and `post`: nothing can follow."""
    return RunEnded(f"run {run_id} has ended: {status}", status)


def refusal(write: Write, record: RunRecord) -> HelixError:
    """For `append`: why the run as it is does not take this."""
    where = f"run {write.run_id}"
    if record.epoch != write.epoch:
        who = f"{record.owner!r} has taken it over" if record.owner else "it was taken over"
        return StaleWriter(f"{where}: {who} (epoch {record.epoch}, not {write.epoch})", record.epoch)
    if record.owner is None:
        return StaleWriter(
            f"{where}: this writer (epoch {write.epoch}) has given it up ({record.status})", record.epoch
        )
    if record.last_sequence < write.after:
        return StoreError(
            f"{where}: the store has lost chunks: its last one is {record.last_sequence}, and {write.after} was written"
        )
    return StoreError(f"{where}: its last chunk is {record.last_sequence}, so none can be added behind {write.after}")
