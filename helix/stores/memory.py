"""Runs in this process's memory: the smallest store, gone with its process. The others are held against it.

Floor 2: implements `helix.store.Store`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from anyio.lowlevel import checkpoint

from helix.errors import RunExists, UnknownRun
from helix.store import (
    ENDED,
    Claim,
    NewRun,
    Post,
    RunRecord,
    SessionRecord,
    Write,
    busy,
    check_claimable,
    ended,
    is_delta,
    not_free,
    refusal,
)
from helix.stores.watch import Positions, Watch


@dataclass(slots=True)
class _Run:
    """A run as it is now; `lease_until` is on the monotonic clock."""

    new: NewRun
    metadata: str
    owner: str | None
    lease_until: float
    lines: list[bytes | None]
    status: str = "running"
    epoch: int = 1
    created_at: int = field(default_factory=lambda: _now())
    updated_at: int = field(default_factory=lambda: _now())
    deadline: int | None = None
    floor: int = 0
    posts: dict[str, Post] = field(default_factory=dict[str, Post])
    unread: dict[str, Post] = field(default_factory=dict[str, Post])

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def lease_left(self) -> float:
        return 0.0 if self.owner is None else max(0.0, self.lease_until - time.monotonic())

    @property
    def wants_owner(self) -> bool:
        if self.ended or self.lease_left > 0:
            return False
        return self.status == "running" or bool(self.unread) or (self.deadline is not None and self.deadline <= _now())

    def record(self) -> RunRecord:
        new, metadata = self.new, json.loads(self.metadata)
        return RunRecord(
            *(new.run_id, new.agent_type, new.session_id, metadata, self.status, len(self.lines), self.epoch),
            *(self.owner, self.lease_left, self.created_at, self.updated_at, self.deadline, self.floor),
        )


class MemoryStore:
    """A `Store` whose runs live as long as the object does.

    It may be entered several times: every part of a program that was given it sees the same runs.
    """

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._watch = Watch(self._positions)

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._runs)} runs)"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    async def create(self, run: NewRun, chunks: Sequence[bytes], *, owner: str, lease: float) -> Claim:
        """As `Store.create`."""
        await checkpoint()
        if run.run_id in self._runs:
            raise RunExists(f"run {run.run_id!r} is in this store already")
        others = self._of_session(run.session_id)
        newest = others[-1].new.run_id if others else None
        if problem := not_free(run, newest, ended=not others or others[-1].ended):
            raise problem
        until = time.monotonic() + lease
        self._runs[run.run_id] = _Run(run, json.dumps(dict(run.metadata)), owner, until, list(chunks))
        return Claim(1, len(chunks))

    async def claim(self, run_id: str, *, owner: str, lease: float) -> Claim:
        """As `Store.claim`."""
        await checkpoint()
        run = self._run(run_id)
        check_claimable(run_id, run.status, run.owner, run.lease_left)
        run.owner, run.epoch, run.lease_until = owner, run.epoch + 1, time.monotonic() + lease
        return Claim(run.epoch, len(run.lines))

    async def append(self, write: Write) -> None:
        """As `Store.append`."""
        await checkpoint()
        run = self._run(write.run_id)
        if run.epoch != write.epoch or run.owner is None or len(run.lines) != write.after:
            raise refusal(write, run.record())
        run.lines.extend(write.chunks)
        run.updated_at, run.lease_until = _now(), time.monotonic() + write.lease
        if write.status is not None:
            run.status, run.deadline = write.status, write.deadline
        if write.gives_up:
            run.owner = None
        for command_id in write.acknowledge:
            run.unread.pop(command_id, None)
        self._watch.wake(write.run_id, posts=False)

    async def read(
        self, run_id: str, from_offset: int = 0, *, limit: int = 1000, deltas: bool = True
    ) -> list[tuple[int, bytes]]:
        """As `Store.read`."""
        await checkpoint()
        lines = self._run(run_id).lines
        found: list[tuple[int, bytes]] = []
        for number in range(from_offset, len(lines)):
            line = lines[number]
            if line is not None and (deltas or not is_delta(line)):
                found.append((number + 1, line))
                if len(found) == limit:
                    break
        return found

    async def wait(
        self, run_id: str, *, chunks_after: int | None = None, posts_after: int | None = None, timeout: float
    ) -> None:
        """As `Store.wait`."""
        await self._watch.wait(run_id, chunks_after, posts_after, timeout)

    async def post(self, run_id: str, command_id: str, data: bytes) -> bool:
        """As `Store.post`."""
        await checkpoint()
        run = self._run(run_id)
        if command_id in run.posts:
            return False
        if run.ended:
            raise ended(run_id, run.status)
        run.posts[command_id] = run.unread[command_id] = Post(len(run.posts) + 1, command_id, data)
        self._watch.wake(run_id)
        return True

    async def take(self, run_id: str, after: int = 0) -> list[Post]:
        """As `Store.take`."""
        await checkpoint()
        return [post for post in self._run(run_id).unread.values() if post.position > after]

    async def get(self, run_id: str) -> RunRecord:
        """As `Store.get`."""
        await checkpoint()
        return self._run(run_id).record()

    async def runs(
        self,
        *,
        session_id: str | None = None,
        statuses: Collection[str] | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[RunRecord]:
        """As `Store.runs`."""
        await checkpoint()
        ids = list(self._runs)
        older = ids if before is None else ids[: ids.index(self._run(before).new.run_id)]
        found = (self._runs[run_id] for run_id in reversed(older))
        wanted = (run for run in found if session_id is None or run.new.session_id == session_id)
        return [run.record() for run in wanted if statuses is None or run.status in statuses][:limit]

    async def claimable(self, *, limit: int = 100) -> list[str]:
        """As `Store.claimable`."""
        await checkpoint()
        return [run_id for run_id, run in self._runs.items() if run.wants_owner][:limit]

    async def sessions(self, *, limit: int = 100, before: str | None = None) -> list[SessionRecord]:
        """As `Store.sessions`."""
        await checkpoint()
        newest = dict.fromkeys(
            run.new.session_id for run in reversed(self._runs.values()) if run.new.session_id is not None
        )
        ids = list(newest)
        behind = ids if before is None else ids[ids.index(before) + 1 :] if before in newest else []
        return [_session(session_id, self._of_session(session_id)) for session_id in behind[:limit]]

    async def delete(self, run_id: str) -> None:
        """As `Store.delete`."""
        await checkpoint()
        self._delete([self._run(run_id)])

    async def delete_session(self, session_id: str) -> int:
        """As `Store.delete_session`."""
        await checkpoint()
        return self._delete(self._of_session(session_id))

    async def trim(self, run_id: str, up_to: int) -> int:
        """As `Store.trim`."""
        await checkpoint()
        run, dropped = self._run(run_id), 0
        up_to = min(up_to, len(run.lines))
        for number in range(run.floor, up_to):
            line = run.lines[number]
            if line is not None and is_delta(line):
                run.lines[number], dropped = None, dropped + 1
        run.floor = max(run.floor, up_to)
        return dropped

    def _run(self, run_id: str) -> _Run:
        run = self._runs.get(run_id)
        if run is None:
            raise UnknownRun(f"no run {run_id!r} in this store")
        return run

    def _of_session(self, session_id: str | None) -> list[_Run]:
        runs: Any = self._runs.values()
        return [run for run in runs if session_id is not None and run.new.session_id == session_id]

    def _delete(self, runs: Sequence[_Run]) -> int:
        for run in runs:
            if not run.ended and run.lease_left > 0:
                raise busy(run.new.run_id, run.owner, run.lease_left)
        for run in runs:
            del self._runs[run.new.run_id]
            self._watch.wake(run.new.run_id)
        return len(runs)

    async def _positions(self, run_ids: Collection[str]) -> Positions:
        await checkpoint()
        known = {run_id: self._runs[run_id] for run_id in run_ids if run_id in self._runs}
        return {run_id: (len(run.lines), len(run.posts)) for run_id, run in known.items()}


def _now() -> int:
    return time.time_ns() // 1_000_000


def _session(session_id: str, runs: Sequence[_Run]) -> SessionRecord:
    last = runs[-1]
    return SessionRecord(
        session_id, len(runs), last.new.run_id, last.status, runs[0].created_at, max(run.updated_at for run in runs)
    )
