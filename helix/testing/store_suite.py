"""The behaviour of a store, as tests: subclass `StoreSuite` in a test file of your own, with a fixture `make_store`.

Floor 6: not imported by `helix.testing` itself, because it needs pytest. The same tests run over helix's own stores.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest

from helix.errors import RunBusy, RunEnded, RunExists, SessionBusy, StaleWriter, StoreError, UnknownRun
from helix.store import Claim, NewRun, Post, Store, Write
from helix.testing.store_races import MakeStore, StoreRaces, begin, line, new_id

__all__ = ["MakeStore", "StoreSuite"]

FAR = 4_102_444_800_000
"""The year 2100, in Unix milliseconds."""


async def finish(store: Store, run_id: str, status: str = "completed", **more: Any) -> None:
    """The last thing that the first owner of a run with one chunk writes."""
    await store.append(Write(run_id, 1, 1, [line("end")], status=status, **more))


class StoreSuite(StoreRaces):
    """Tests that every store passes. They run under anyio's pytest plugin; nothing in them sleeps.

    A subclass has a fixture `make_store`: a function that makes a store, to be entered, on the same data each time in
    one test, and on no data at first. Override `anyio_backend` to say on which event loops it runs.
    """

    @pytest.fixture
    def make_store(self) -> MakeStore:
        """Makes the stores that are tested."""
        raise NotImplementedError("give the subclass of StoreSuite a fixture `make_store`")

    @pytest.fixture
    async def store(self, make_store: MakeStore) -> AsyncIterator[Store]:
        """One of them, entered."""
        async with make_store() as store:
            yield store

    # --- runs and their writers

    async def test_a_new_run_is_as_it_was_given(self, store: Store) -> None:
        run = NewRun(new_id(), "writer", "session ✓", {"a": [1, None, {"ö": "\U0001f642"}]})
        assert await store.create(run, [line("one"), line("two")], owner="me", lease=60) == Claim(1, 2)
        record = await store.get(run.run_id)
        assert (record.run_id, record.agent_type, record.session_id) == (run.run_id, "writer", "session ✓")
        assert record.metadata == run.metadata
        assert (record.status, record.last_sequence, record.epoch, record.owner) == ("running", 2, 1, "me")
        assert 50 < record.lease_left <= 60
        assert (record.deadline, record.floor, record.updated_at) == (None, 0, record.created_at)
        assert record.created_at > 1_600_000_000_000
        assert await store.read(run.run_id) == [(1, line("one")), (2, line("two"))]

    async def test_a_run_is_created_once(self, store: Store) -> None:
        run_id = await begin(store)
        with pytest.raises(RunExists, match=run_id):
            await store.create(NewRun(run_id, "other"), [line("2")], owner="you", lease=60)
        record = await store.get(run_id)
        assert (record.agent_type, record.owner) == ("root", "first")
        assert await store.read(run_id) == [(1, line("1"))]

    async def test_a_session_has_one_run_that_has_not_ended(self, store: Store) -> None:
        session_id = new_id()
        first = await begin(store, session_id=session_id)
        with pytest.raises(SessionBusy, match=first):
            await begin(store, session_id=session_id)
        await finish(store, first, "suspended")
        with pytest.raises(SessionBusy, match=first):
            await begin(store, session_id=session_id)
        claim = await store.claim(first, owner="second", lease=60)
        await store.append(Write(first, claim.epoch, 2, [line("3")], status="cancelled"))
        second = await begin(store, session_id=session_id, follows=first)
        assert [run.run_id for run in await store.runs(session_id=session_id)] == [second, first]

    async def test_a_run_follows_the_newest_of_its_session(self, store: Store) -> None:
        session_id = new_id()
        for missing in ("nobody", new_id()):
            with pytest.raises(SessionBusy, match=missing):
                await begin(store, session_id=session_id, follows=missing)
        first = await begin(store, session_id=session_id)
        await finish(store, first)
        with pytest.raises(SessionBusy, match=first):
            await begin(store, session_id=session_id)
        second = await begin(store, session_id=session_id, follows=first)
        await finish(store, second, "failed")
        for earlier in (None, first, new_id()):
            with pytest.raises(SessionBusy, match=second):
                await begin(store, session_id=session_id, follows=earlier)
        await store.delete(second)
        third = await begin(store, session_id=session_id, follows=first)
        assert [run.run_id for run in await store.runs(session_id=session_id)] == [third, first]

    async def test_a_fresh_lease_keeps_others_out(self, store: Store) -> None:
        run_id = await begin(store)
        with pytest.raises(RunBusy) as caught:
            await store.claim(run_id, owner="second", lease=60)
        assert caught.value.owner == "first"
        assert 50 < caught.value.remaining <= 60
        assert (await store.get(run_id)).epoch == 1

    async def test_a_lease_that_ran_out_lets_another_in_and_the_old_writer_out(self, store: Store) -> None:
        run_id = await begin(store, lease=0)
        assert (await store.get(run_id)).lease_left == 0
        assert await store.claim(run_id, owner="second", lease=60) == Claim(2, 1)
        with pytest.raises(StaleWriter) as caught:
            await store.append(Write(run_id, 1, 1, [line("late")], acknowledge=["c"]))
        assert caught.value.epoch == 2
        assert await store.read(run_id, 1) == []
        await store.append(Write(run_id, 2, 1, [line("mine")]))
        assert await store.read(run_id, 1) == [(2, line("mine"))]

    async def test_a_lease_that_ran_out_is_renewed_by_its_writer_if_nobody_came(self, store: Store) -> None:
        run_id = await begin(store, lease=0)
        await store.append(Write(run_id, 1, 1, lease=60))
        with pytest.raises(RunBusy):
            await store.claim(run_id, owner="second", lease=60)
        assert (await store.get(run_id)).last_sequence == 1

    async def test_numbers_are_dense(self, store: Store) -> None:
        run_id = await begin(store)
        await store.append(Write(run_id, 1, 1, [line("2"), line("3")]))
        for after in (0, 1, 2, 4):
            with pytest.raises(StoreError, match=run_id):
                await store.append(Write(run_id, 1, after, [line("x")], status="failed", acknowledge=["c"]))
        record = await store.get(run_id)
        assert (record.last_sequence, record.status) == (3, "running")
        assert [number for number, _ in await store.read(run_id)] == [1, 2, 3]

    async def test_an_ended_run_is_nobodys(self, store: Store) -> None:
        run_id = await begin(store)
        await finish(store, run_id)
        record = await store.get(run_id)
        assert (record.status, record.owner, record.lease_left) == ("completed", None, 0)
        with pytest.raises(RunEnded) as caught:
            await store.claim(run_id, owner="second", lease=60)
        assert caught.value.status == "completed"
        with pytest.raises(StaleWriter):
            await store.append(Write(run_id, 1, 2, [line("more")]))

    @pytest.mark.parametrize("how", [{"status": "suspended", "deadline": FAR}, {"release": True}], ids=str)
    async def test_who_gives_a_run_up_writes_no_more_and_anybody_may_claim_it(
        self, store: Store, how: dict[str, Any]
    ) -> None:
        run_id = await begin(store)
        await store.append(Write(run_id, 1, 1, [line("2")], **how))
        record = await store.get(run_id)
        assert (record.status, record.deadline) == (how.get("status", "running"), how.get("deadline"))
        with pytest.raises(StaleWriter):
            await store.append(Write(run_id, 1, 2, [line("3")]))
        assert await store.claim(run_id, owner="second", lease=60) == Claim(2, 2)
        await store.append(Write(run_id, 2, 2, [line("3")], status="running"))
        assert (await store.get(run_id)).deadline is None

    # --- reading

    async def test_lines_come_back_byte_for_byte_in_pages(self, store: Store) -> None:
        run_id = await begin(store)
        lines = [line("1"), line("ö\U0001f642\\u0000\\n"), line("x" * 1_000_000), *(line(f"{n}") for n in range(200))]
        await store.append(Write(run_id, 1, 1, lines[1:]))
        found: list[tuple[int, bytes]] = []
        while page := await store.read(run_id, len(found), limit=64):
            assert len(page) <= 64
            found += page
        assert found == list(enumerate(lines, start=1))
        assert await store.read(run_id, 150, limit=2) == found[150:152]
        assert await store.read(run_id, 1000) == []

    async def test_without_deltas_the_structure_is_left(self, store: Store) -> None:
        run_id = await begin(store)
        pieces = [line("p", kind) for kind in ("text_delta", "output_delta", "tool_input_delta", "tool_output_delta")]
        piece = b'{"type":"thinking","agentId":"r","content":"p","isComplete":false}'
        whole = b'{"type":"thinking","agentId":"r","content":"\\"isComplete\\":false","isComplete":true}'
        await store.append(Write(run_id, 1, 1, [*pieces, piece, whole, line("s", "step_end")]))
        assert [number for number, _ in await store.read(run_id, deltas=False)] == [1, 7, 8]
        assert await store.read(run_id, 1, limit=1, deltas=False) == [(7, whole)]

    async def test_trimming_drops_deltas_and_tells_from_where_all_is_there(self, store: Store) -> None:
        run_id = await begin(store)
        await store.append(
            Write(run_id, 1, 1, [line(f"{n}", "text_delta" if n % 2 else "custom") for n in range(2, 10)])
        )
        assert await store.trim(run_id, 5) == 2
        assert await store.trim(run_id, 3) == 0
        assert (await store.get(run_id)).floor == 5
        assert [number for number, _ in await store.read(run_id)] == [1, 2, 4, 6, 7, 8, 9]
        assert [number for number, _ in await store.read(run_id, deltas=False)] == [1, 2, 4, 6, 8]
        await store.append(Write(run_id, 1, 9, [line("x", "text_delta")]))
        assert await store.trim(run_id, 1000) == 3
        record = await store.get(run_id)
        assert (record.floor, record.last_sequence) == (10, 10)
        await store.append(Write(run_id, 1, 10, [line("y", "text_delta")]))
        assert await store.read(run_id, 9) == [(11, line("y", "text_delta"))]

    # --- waiting

    async def test_waiting_for_what_is_there_already_returns(self, store: Store) -> None:
        run_id = await begin(store)
        await store.post(run_id, "c", b"")
        with anyio.fail_after(10):
            await store.wait(run_id, chunks_after=0, timeout=60)
            await store.wait(run_id, posts_after=0, timeout=60)
            await store.wait(run_id, chunks_after=1, posts_after=0, timeout=60)

    async def test_waiting_ends_with_its_time(self, store: Store) -> None:
        run_id = await begin(store)
        with anyio.fail_after(10):
            await store.wait(run_id, chunks_after=1, posts_after=0, timeout=0.05)
            await store.wait(run_id, timeout=0.05)

    @pytest.mark.parametrize("what", ["append", "post", "delete"])
    @pytest.mark.parametrize("where", ["here", "there"])
    async def test_waiting_is_woken(self, make_store: MakeStore, what: str, where: str) -> None:
        async with make_store() as here, make_store() as there:
            run_id = await begin(here, lease=0)
            other = here if where == "here" else there
            acts: dict[str, Callable[[], Awaitable[Any]]] = {
                "append": lambda: other.append(Write(run_id, 1, 1, [line("2")])),
                "post": lambda: other.post(run_id, "c", b"{}"),
                "delete": lambda: other.delete(run_id),
            }

            async def wait() -> None:
                with suppress(UnknownRun):  # deleted before it was looked for
                    await here.wait(run_id, chunks_after=1, posts_after=0, timeout=60)

            with anyio.fail_after(30):
                async with anyio.create_task_group() as tasks:
                    for _ in range(3):
                        tasks.start_soon(wait)
                    await anyio.wait_all_tasks_blocked()
                    await acts[what]()

    # --- the inbox

    async def test_commands_are_taken_in_order_until_they_are_acknowledged(self, store: Store) -> None:
        run_id = await begin(store)
        for name in ("a", "b", "c"):
            assert await store.post(run_id, name, name.encode())
        a, b, c = (Post(number, name, name.encode()) for number, name in enumerate("abc", start=1))
        assert await store.take(run_id) == [a, b, c]
        assert await store.take(run_id, 1) == [b, c]
        await store.append(Write(run_id, 1, 1, [line("2")], acknowledge=["b", "unknown"]))
        assert await store.take(run_id) == [a, c]
        assert await store.post(run_id, "b", b"again") is False
        assert await store.post(run_id, "d", b"d")
        assert await store.take(run_id, 3) == [Post(4, "d", b"d")]

    async def test_what_a_stale_writer_acknowledges_is_still_there(self, store: Store) -> None:
        run_id = await begin(store, lease=0)
        await store.post(run_id, "a", b"a")
        await store.claim(run_id, owner="second", lease=60)
        with pytest.raises(StaleWriter):
            await store.append(Write(run_id, 1, 1, acknowledge=["a"]))
        assert len(await store.take(run_id)) == 1

    async def test_an_ended_run_takes_no_command(self, store: Store) -> None:
        run_id = await begin(store)
        await store.post(run_id, "a", b"a")
        await finish(store, run_id, "failed")
        with pytest.raises(RunEnded) as caught:
            await store.post(run_id, "b", b"b")
        assert caught.value.status == "failed"
        assert await store.post(run_id, "a", b"a") is False

    # --- lists

    async def test_runs_are_listed_newest_first(self, store: Store) -> None:
        one, two, three = [await begin(store, session_id=session_id) for session_id in ("s", None, "t")]
        await finish(store, one)
        four = await begin(store, session_id="s", follows=one)
        assert [run.run_id for run in await store.runs()] == [four, three, two, one]
        assert [run.run_id for run in await store.runs(limit=2)] == [four, three]
        assert [run.run_id for run in await store.runs(limit=2, before=three)] == [two, one]
        assert [run.run_id for run in await store.runs(session_id="s")] == [four, one]
        assert [run.run_id for run in await store.runs(session_id="s", before=four)] == [one]
        assert [run.run_id for run in await store.runs(statuses=["completed", "failed"])] == [one]
        assert await store.runs(statuses=[]) == []
        assert (await store.runs(before=two))[0] == await store.get(one)

    async def test_sessions_are_listed_by_their_newest_run(self, store: Store) -> None:
        first = await begin(store, session_id="s")
        await begin(store, session_id="t")
        await begin(store)
        await finish(store, first)
        last = await begin(store, session_id="s", follows=first)
        s, t = await store.sessions()
        assert (s.session_id, s.runs, s.last_run_id, s.status) == ("s", 2, last, "running")
        assert s.created_at == (await store.get(first)).created_at
        assert s.updated_at == (await store.get(last)).updated_at
        assert (t.session_id, t.runs) == ("t", 1)
        assert await store.sessions(limit=1) == [s]
        assert await store.sessions(before="s") == [t]
        assert await store.sessions(before="t") == []

    async def test_claimable_is_what_wants_an_owner(self, store: Store) -> None:
        await begin(store)
        crashed = await begin(store, lease=0)
        released = await begin(store)
        await store.append(Write(released, 1, 1, release=True))
        await finish(store, await begin(store, lease=0))
        await finish(store, await begin(store), "interrupted")
        await finish(store, await begin(store), "suspended", deadline=FAR)
        late = await begin(store)
        await finish(store, late, "suspended", deadline=1)
        answered = await begin(store)
        await finish(store, answered, "suspended")
        await store.post(answered, "a", b"a")
        assert await store.claimable() == [crashed, released, late, answered]
        assert await store.claimable(limit=1) == [crashed]
        claim = await store.claim(answered, owner="second", lease=60)
        assert answered not in await store.claimable()
        await store.append(Write(answered, claim.epoch, 2, status="suspended", acknowledge=["a"]))
        assert await store.claimable() == [crashed, released, late]

    # --- forgetting

    async def test_a_deleted_run_is_gone_with_all_it_had(self, store: Store) -> None:
        run_id = await begin(store, session_id="s")
        await store.post(run_id, "a", b"a")
        with pytest.raises(RunBusy, match="first"):
            await store.delete(run_id)
        await finish(store, run_id)
        await store.delete(run_id)
        assert (await store.runs(), await store.sessions(), await store.claimable()) == ([], [], [])
        await store.create(NewRun(run_id, "root", "s"), [], owner="me", lease=60)
        assert (await store.read(run_id), await store.take(run_id)) == ([], [])

    async def test_a_deleted_session_is_gone_with_all_its_runs(self, store: Store) -> None:
        first, other = await begin(store, session_id="s"), await begin(store, session_id="t")
        await finish(store, first)
        second = await begin(store, session_id="s", follows=first)
        with pytest.raises(RunBusy):
            await store.delete_session("s")
        assert len(await store.runs(session_id="s")) == 2
        await finish(store, second, "suspended")
        assert await store.delete_session("s") == 2
        assert await store.delete_session("s") == 0
        assert [run.run_id for run in await store.runs()] == [other]
        await begin(store, session_id="s")

    async def test_what_is_not_there_is_said_everywhere(self, store: Store) -> None:
        missing = new_id()
        acts: list[Awaitable[Any]] = [
            store.claim(missing, owner="me", lease=60),
            store.append(Write(missing, 1, 1, [line("x")])),
            store.read(missing),
            store.read(missing, deltas=False),
            store.wait(missing, chunks_after=0, timeout=60),
            store.post(missing, "a", b"a"),
            store.take(missing),
            store.get(missing),
            store.runs(before=missing),
            store.delete(missing),
            store.trim(missing, 1),
        ]
        for act in acts:
            with pytest.raises(UnknownRun, match=missing):
                await act
        assert await store.sessions(before=missing) == []
