"""What only races show of a store: one claim wins, a stale writer writes nothing, a reader sees no gap.

Floor 6: part of `helix.testing.store_suite`; the functions here take any stores, also ones that are wrong on purpose.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

import anyio
import pytest

from helix.errors import HelixError, RunBusy, SessionBusy, StaleWriter, StoreError
from helix.store import Claim, NewRun, Store, Write

MakeStore: TypeAlias = Callable[[], Store]
"""Makes a store, to be entered, on the same data each time; it may give the same object."""


def new_id() -> str:
    """A run id that nobody has."""
    return secrets.token_hex(8)


def line(text: str, kind: str = "custom") -> bytes:
    """An encoded chunk of that type, with that text somewhere in it."""
    return f'{{"type":"{kind}","agentId":"r","agentType":"a","data":"{text}"}}'.encode()


async def begin(
    store: Store,
    *,
    session_id: str | None = None,
    lease: float = 60.0,
    chunks: int = 1,
    follows: str | None = None,
) -> str:
    """A new run with some chunks, owned by `first`."""
    run = NewRun(new_id(), "root", session_id, follows=follows)
    await store.create(run, [line(f"{n}") for n in range(1, chunks + 1)], owner="first", lease=lease)
    return run.run_id


async def takeover(old: Store, new: Store) -> int:
    """One owner goes on writing while another one takes the run over: how many chunks it added after that."""
    run_id = await begin(old, lease=0)
    written, taken = anyio.Event(), anyio.Event()
    numbers: list[int] = []

    async def write_on() -> None:
        after, late = 1, 0
        with suppress(StaleWriter, StoreError):
            while late < 10:
                await old.append(Write(run_id, 1, after, [line("old")], lease=0))
                after, late = after + 1, late + taken.is_set()
                written.set()
        written.set()

    async def take_over() -> None:
        await written.wait()
        claim = await new.claim(run_id, owner="second", lease=60)
        numbers.append(claim.last_sequence)
        taken.set()
        with suppress(HelixError):  # a stale chunk may stand in its place
            await new.append(Write(run_id, claim.epoch, claim.last_sequence, [line("new")]))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write_on)
        tasks.start_soon(take_over)
    return sum(b"old" in data for _, data in await new.read(run_id, numbers[0]))


@pytest.mark.anyio
class StoreRaces:
    """Tests of stores against each other; see `StoreSuite`."""

    rounds = 150
    """How many takeovers are tried."""

    async def test_a_stale_writer_adds_nothing_behind_a_takeover(self, make_store: MakeStore) -> None:
        async with make_store() as old, make_store() as new:
            with anyio.fail_after(120):
                stale = [await takeover(old, new) for _ in range(self.rounds)]
        assert sum(stale) == 0

    async def test_of_many_claims_at_once_one_wins(self, make_store: MakeStore) -> None:
        async with make_store() as one, make_store() as two:
            run_id = await begin(one, lease=0)
            won: list[Claim] = []
            lost: list[RunBusy] = []

            async def claim(store: Store, owner: str) -> None:
                try:
                    won.append(await store.claim(run_id, owner=owner, lease=60))
                except RunBusy as error:
                    lost.append(error)

            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    for number in range(20):
                        tasks.start_soon(claim, (one, two)[number % 2], f"owner {number}")
            assert won == [Claim(2, 1)]
            assert {error.owner for error in lost} == {(await one.get(run_id)).owner}
            assert len(lost) == 19

    async def test_of_many_new_runs_of_a_session_at_once_one_wins(self, make_store: MakeStore) -> None:
        async with make_store() as one, make_store() as two:
            session_id, outcomes = new_id(), list[str]()

            async def create(store: Store) -> None:
                try:
                    outcomes.append(await begin(store, session_id=session_id))
                except SessionBusy as error:
                    outcomes.append(str(error))

            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    for number in range(10):
                        tasks.start_soon(create, (one, two)[number % 2])
            [run] = await one.runs(session_id=session_id)
            assert outcomes.count(run.run_id) == 1
            assert sum(run.run_id in text for text in outcomes) == 10

    async def test_of_many_that_go_on_with_one_run_at_once_one_wins(self, make_store: MakeStore) -> None:
        """Also when the one that wins has ended before the others come."""
        async with make_store() as one, make_store() as two:
            session_id, outcomes = new_id(), list[str]()
            first = await begin(one, session_id=session_id)
            await one.append(Write(first, 1, 1, [line("end")], status="completed"))

            async def go_on(store: Store) -> None:
                with suppress(SessionBusy):
                    run_id = await begin(store, session_id=session_id, follows=first)
                    outcomes.append(run_id)
                    await store.append(Write(run_id, 1, 1, [line("end")], status="completed"))

            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    for number in range(20):
                        tasks.start_soon(go_on, (one, two)[number % 2])
            assert len(outcomes) == 1
            assert [run.run_id for run in await one.runs(session_id=session_id)] == [*outcomes, first]

    async def test_of_many_posts_of_one_command_one_counts(self, make_store: MakeStore) -> None:
        async with make_store() as one, make_store() as two:
            run_id = await begin(one)
            first: list[bool] = []

            async def post(store: Store, command_id: str) -> None:
                first.append(await store.post(run_id, command_id, command_id.encode()))

            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    for number in range(40):
                        tasks.start_soon(post, (one, two)[number % 2], f"c{number // 4}")
            posts = await two.take(run_id)
            assert sorted(first) == [False] * 30 + [True] * 10
            assert [post.position for post in posts] == list(range(1, 11))
            assert {post.command_id for post in posts} == {f"c{number}" for number in range(10)}

    async def test_of_two_appends_behind_one_chunk_one_counts(self, make_store: MakeStore) -> None:
        async with make_store() as one, make_store() as two:
            run_id = await begin(one)
            refused: list[Exception] = []

            async def append(store: Store, text: str) -> None:
                try:
                    await store.append(Write(run_id, 1, 1, [line(text), line(text)]))
                except StoreError as error:
                    refused.append(error)

            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(append, one, "here")
                    tasks.start_soon(append, two, "there")
            found = await one.read(run_id, 1)
            assert len(refused) == 1
            assert [number for number, _ in found] == [2, 3]
            assert found[0][1] == found[1][1]

    async def test_a_reader_meets_no_gap_while_another_store_appends(self, make_store: MakeStore) -> None:
        async with make_store() as writer, make_store() as reader:
            run_id, seen = await begin(writer), list[int]()

            async def append() -> None:
                for number in range(60):
                    chunks = [line(f"{n}", "text_delta" if n % 3 else "custom") for n in range(7)]
                    await writer.append(Write(run_id, 1, 1 + number * 7, chunks))

            async def read() -> None:
                while len(seen) < 421:
                    await reader.wait(run_id, chunks_after=len(seen), timeout=5)
                    seen.extend(number for number, _ in await reader.read(run_id, len(seen), limit=10))

            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(append)
                    tasks.start_soon(read)
            assert seen == list(range(1, 422))
