"""Random trees: whatever happens in them, the log holds the grammar, and the fold of it is the live run."""

from __future__ import annotations

import copy
import random
from typing import Any

import anyio
import pytest

from helix import Executor, StateMirror, chunk_to_json, collect, parse_chunk
from helix.chunks import Resync, RunStart, StatePatch, StreamEnd
from helix.fold import fold
from helix.log import RunLog
from helix.stores.memory import MemoryStore
from tests.js_client import validate_runs
from tests.left import leave
from tests.random_trees import Outcome, as_data, check, drive, make_model, some_answer

SEEDS = 250
FULL_SEEDS = 4000


def run_seed(seed: int, backend: str, watch: bool) -> Outcome:
    async def main() -> Outcome:
        with anyio.fail_after(5):
            return await drive(seed, watch)

    return anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_seeded_few_hundred_random_trees(backend: str) -> None:
    for seed in range(SEEDS):
        try:
            run_seed(seed, backend, watch=seed % 10 == 0)
        except BaseException as error:
            error.add_note(f"seed {seed} on {backend}")
            raise


@pytest.mark.full
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_thousands_of_random_trees(backend: str) -> None:
    for seed in range(SEEDS, FULL_SEEDS):
        try:
            run_seed(seed, backend, watch=seed % 25 == 0)
        except BaseException as error:
            error.add_note(f"seed {seed} on {backend}")
            raise


async def go_on_from(outcome: Outcome, length: int) -> None:
    """Another process has only the first `length` chunks, as JSON; it resumes the run and brings it to an end."""
    chunks = [parse_chunk(chunk_to_json(chunk)) for chunk in outcome.log.chunks[:length]]
    kept = [chunk for chunk in chunks if not isinstance(chunk, StreamEnd | Resync)]
    if fold(kept).ended:
        return
    store = MemoryStore()
    await leave(store, kept)
    model = make_model(outcome.world.seed, outcome.root)
    async with Executor(store=store, agents=[outcome.root], deps=outcome.world) as executor:
        answers = some_answer(outcome.world.seed)
        handle = await executor.resume(outcome.log.run_id, model=model, on_approval=answers)
        await handle.result()
        log = RunLog(handle.run_id, await collect(handle.stream()))
    assert log.chunks[:length] == kept
    assert log.tree.ended
    assert as_data(handle.tree) == as_data(fold(handle._log.structure))
    check(log)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_goes_on_from_every_prefix_of_its_log(backend: str) -> None:
    for seed in range(3000, 3012):
        outcome = run_seed(seed, backend, watch=False)

        async def main(outcome: Outcome = outcome, seed: int = seed) -> None:
            lengths = range(1, len(outcome.log.chunks))
            for length in random.Random(seed).sample(lengths, min(40, len(lengths))):
                outcome.world.bodies.clear()
                started = {
                    (chunk.agent_id, chunk.tool_call_id)
                    for chunk in outcome.log.chunks[:length]
                    if chunk.type == "tool_start"
                }
                with anyio.fail_after(5):
                    await go_on_from(outcome, length)
                assert not started & set(outcome.world.bodies), "an unsafe body ran twice"

        anyio.run(main, backend=backend)


def histories_of(outcome: Outcome) -> list[tuple[Any, list[Any], list[Any]]]:
    """For each document of a run: what it began as, its patches in order, and what it was after each of them."""
    mirror = StateMirror()
    runs: dict[str, tuple[Any, list[Any], list[Any]]] = {}
    for chunk in outcome.log.chunks:
        mirror.apply(chunk)
        if isinstance(chunk, RunStart) and chunk.state_id is None:
            runs[chunk.agent_id] = (chunk.state, [], [])
        elif isinstance(chunk, StatePatch):
            owner = chunk.state_id or chunk.agent_id
            runs[owner][1].append(chunk.patches)
            runs[owner][2].append(copy.deepcopy(mirror.documents[owner]))
    for owner, (_, _, documents) in runs.items():
        assert not documents or documents[-1] == outcome.log.tree.agents[owner].state
    return list(runs.values())


def test_a_javascript_client_rebuilds_the_state_of_random_runs_at_every_prefix() -> None:
    runs = [run for seed in range(5000, 5200) for run in histories_of(run_seed(seed, "asyncio", watch=False))]
    patched = [run for run in runs if run[1]]
    assert len(patched) > 20
    validate_runs(patched)
