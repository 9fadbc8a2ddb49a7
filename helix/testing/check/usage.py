"""Rule 9: what was used adds up. Above `log`, below `calls` and `children`."""

from __future__ import annotations

import math
from dataclasses import replace

from helix.chunks import RunEnd
from helix.limits import Usage
from helix.testing.check.log import Agent, Log


def usage_adds_up(log: Log, agent: Agent, chunk: RunEnd) -> None:
    tree = agent.usage + agent.below
    if not same_usage(chunk.usage, agent.usage):
        message = f"the usage of {agent.agent_id} is {chunk.usage}, its step_ends give {agent.usage}"
        log.broken("run-usage", chunk, message)
    if not same_usage(chunk.tree_usage, tree):
        message = f"the tree_usage of {agent.agent_id} is {chunk.tree_usage}, its subtree's step_ends give {tree}"
        log.broken("tree-usage", chunk, message)
    if chunk.steps != agent.committed:
        message = f"{agent.agent_id} ends with steps={chunk.steps} and has committed {agent.committed}"
        log.broken("run-steps", chunk, message)
    settle(agent)


def settle(agent: Agent | None) -> None:
    if agent is not None and agent.parent is not None and not agent.settled:
        agent.settled = True
        agent.parent.below += agent.usage + agent.below


def same_usage(one: Usage, other: Usage) -> bool:
    """Equal, where costs need not be to the last bit: they may have been added up in another order."""
    close = math.isclose(one.cost or 0, other.cost or 0, rel_tol=1e-9, abs_tol=1e-9)
    return close and replace(one, cost=None) == replace(other, cost=None)
