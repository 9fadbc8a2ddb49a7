"""Random trees over real wires with random faults: the grammar holds, the limits hold, nothing stays open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import pytest

from helix import Agent
from helix.chunks import StepEnd, StepStart
from helix.log import RunLog
from helix.model import Model
from tests.dialects import DIALECTS
from tests.fault_server import BACKENDS, Backend, Move, run_alone, serving
from tests.faulty_wire import WireModel, told_by
from tests.random_trees import drive

FEW, MANY = 16, 300


async def play(seed: int) -> int:
    """The run of a seed, from its first request to its last connection; returns how many replies were broken."""
    answers: dict[str, Sequence[Move]] = {}
    async with serving(told_by(answers)) as server:
        models: list[WireModel] = []

        def over(script: Model) -> Model:
            models.append(WireModel(seed, script, DIALECTS[seed % 4], server, answers))
            return cast(Model, models[0])

        outcome = await drive(seed, over=over)
        await server.all_closed()
    check_limits(outcome.log, structured(outcome.root))
    return models[0].faults


def structured(agent: Agent[Any, Any, Any]) -> set[str]:
    """The names of the agents, this one and those below it, that have an output type."""
    names = {agent.name} if agent.output_schema.structured else set[str]()
    return names.union(*(structured(cast(Any, getattr(below, "agent", below))) for below in agent.sub_agents))


def check_limits(log: RunLog, structured: set[str]) -> None:
    """No model was asked where a limit of its agent, or of one above it, forbade it; one step more gives the output."""
    requests, tokens, running, steps = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for chunk in log.chunks:
        node = log.tree.agents[chunk.agent_id]
        if isinstance(chunk, StepStart):
            allowed = node.limits.steps
            assert allowed is None or steps[node.agent_id] < allowed + (node.agent_type in structured)
            for above in node.lineage():
                bounds, name = above.bounds, above.agent_id
                assert bounds.requests is None or requests[name] < bounds.requests
                assert bounds.total_tokens is None or tokens[name] < bounds.total_tokens
                assert bounds.concurrency is None or running[name] < bounds.concurrency
                running[name] += 1
                requests[name] += 1
        elif isinstance(chunk, StepEnd):
            steps[node.agent_id] += chunk.outcome == "committed"
            for above in node.lineage():
                running[above.agent_id] -= 1
                tokens[above.agent_id] += chunk.usage.total_tokens


def play_all(seeds: range, backend: Backend) -> None:
    faults = 0
    for seed in seeds:
        try:
            faults += run_alone(backend, lambda seed=seed: play(seed))
        except BaseException as error:
            error.add_note(f"seed {seed} on {backend}")
            raise
    assert faults > len(seeds) / 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_faults_in_a_few_random_trees(backend: Backend) -> None:
    play_all(range(FEW), backend)


@pytest.mark.full
@pytest.mark.parametrize("backend", BACKENDS)
def test_random_faults_in_hundreds_of_random_trees(backend: Backend) -> None:
    play_all(range(FEW, FEW + MANY), backend)
