"""What runs cost their store: counted, not timed. 16 runs stream side by side, and a reader elsewhere follows each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from helix import Agent, Executor
from helix.chunks import TextDelta
from helix.limits import Usage
from helix.model import Emit, ModelReply, ModelRequest
from helix.store import Store
from helix.stores import open_store
from helix.stores.watch import Positions, Watch
from tests import services
from tests.around import Around

pytestmark = pytest.mark.anyio

RUNS, WORDS = 16, 6


class Counted(Around):
    """A store that counts what it is asked."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.asked: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Any] = getattr(self._inner, name)

        def counted(*given: Any, **options: Any) -> Any:
            self.asked[name] += 1
            return method(*given, **options)

        return counted


class Patient:
    """A model that says its next word once a reader has the last one: each word is a batch of its own."""

    name = "patient"

    def __init__(self) -> None:
        self.seen: dict[str, anyio.Event] = {}

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        for _ in range(WORDS):
            seen = self.seen[request.agent_id] = anyio.Event()
            emit.text("word ")
            await seen.wait()
        return ModelReply("stop", Usage(requests=1))


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: Any) -> Iterator[str]:
    with services.store(request.param, tmp_path, anyio_backend) as found:
        yield found


async def test_sixteen_runs_cost_a_write_for_each_batch_and_their_readers_a_few_reads(url: str) -> None:
    model = Patient()
    agent: Agent = Agent("a", model=model)
    store, elsewhere = Counted(open_store(url)), Counted(open_store(url))
    writes, reads = cast(Store, store), cast(Store, elsewhere)  # they pass on what they do not have
    async with Executor(store=writes, agents=[agent]) as owner, Executor(store=reads, agents=[agent]) as other:

        async def follow() -> None:
            handle = await owner.execute(agent, "go")
            async for chunk in (await other.get_handle(handle.run_id)).stream():
                if isinstance(chunk, TextDelta):
                    model.seen[handle.run_id].set()
            assert (await handle.result()).status == "completed"

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(RUNS):
                    tasks.start_soon(follow)

    batches = store.asked["append"]
    assert RUNS * WORDS <= batches <= RUNS * (WORDS + 3)  # step_start, the end, and giving the run up
    assert store.asked["take"] == store.asked["wait"] == RUNS  # nobody posted: the inbox was read once
    assert set(store.asked) == {"runs", "create", "append", "take", "wait"}
    around = 5 * RUNS  # to find a run, and to see that it has ended
    assert elsewhere.asked["get"] <= around + batches // 2  # not once for each batch
    for name in ("read", "wait"):  # twice for a batch that a reader finds before it is told of it
        assert elsewhere.asked[name] <= around + 2 * batches


async def test_an_append_wakes_the_readers_it_is_news_to_and_a_post_wakes_owners_too() -> None:
    async def look(run_ids: Any) -> Positions:
        return dict.fromkeys(run_ids, (1, 0))  # nobody has anything to find

    watch, woken = Watch(look), list[str]()

    async def wait(name: str, chunks_after: int | None, posts_after: int | None) -> None:
        await watch.wait("run", chunks_after, posts_after, timeout=60)
        woken.append(name)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, "reader", 1, None)
            tasks.start_soon(wait, "reader further on", 7, None)
            tasks.start_soon(wait, "owner", None, 0)
            await anyio.wait_all_tasks_blocked()
            watch.wake("run", posts=False, last=7)
            await anyio.wait_all_tasks_blocked()
            assert woken == ["reader"]
            watch.wake("run", posts=False)
            await anyio.wait_all_tasks_blocked()
            assert woken == ["reader", "reader further on"]
            watch.wake("run")
    assert woken[2:] == ["owner"]
