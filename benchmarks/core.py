"""The parts without a network: the log with its fold and a reader, drafts of state, folding again."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Callable

from pydantic import BaseModel

from benchmarks.table import Ratio, Row, Table, ratio
from helix import chunks as c
from helix.fold import fold
from helix.limits import Usage
from helix.log import RunLog
from helix.messages import AssistantMessage, TextPart, UserMessage
from helix.state import Draft, StateSchema, apply_patches

DELTAS = 50_000
DRAFTS = 200


def log(url: str, repeats: int) -> Table:
    """Append, live fold, and a reader that drains in batches, at depth 0 and 16."""
    times: dict[str, list[float]] = {"depth 0": [], "depth 16": []}
    for _ in range(repeats):
        for name, depth in (("depth 0", 0), ("depth 16", 16)):
            times[name].append(_median(lambda depth=depth: _read_log(depth), 1))
    cost = {name: statistics.median(values) / DELTAS for name, values in times.items()}
    return Table(
        "append, fold and a reader that drains in batches",
        "µs of CPU per chunk",
        [Row(name, value * 1e6) for name, value in cost.items()],
        [
            Ratio("µs per chunk at depth 0", cost["depth 0"] * 1e6, 3),
            ratio("depth 16 ÷ depth 0", cost, "depth 16", "depth 0", 1.1),
        ],
    )


def _read_log(depth: int) -> None:
    asyncio.run(_append_and_read(depth))


async def _append_and_read(depth: int) -> None:
    run, agent_id = _begun(depth)
    reader, seen = run.read(), 0
    for start in range(0, DELTAS, 20):
        for number in range(start, start + 20):
            run.append(c.TextDelta(agent_id, "a", "word" if number % 2 else " "))
        seen += len(await reader.next_batch())
    assert seen == len(run.chunks)


def _begun(depth: int) -> tuple[RunLog, str]:
    """A log whose innermost agent has an open step."""
    run, agent_id = RunLog("root"), "root"
    run.append(c.RunStart("root", "a", [UserMessage("go")], "m", None))
    for _ in range(depth):
        child = f"{agent_id}.a-1"
        run.append(c.RunStart(child, "a", [UserMessage("go")], "m", None, parent_id=agent_id))
        agent_id = child
    run.append(c.StepStart(agent_id, "a", 1, 1, "m"))
    return run, agent_id


def folding(url: str, repeats: int) -> Table:
    """Folding a log of 1,000 steps, and one of 100."""
    cost = {f"{steps:,} steps": _folding(steps, repeats) / steps for steps in (100, 1000)}
    return Table(
        "folding a log again",
        "µs of CPU per step",
        [Row(name, value * 1e6) for name, value in cost.items()],
        [ratio("1,000 steps ÷ 100 steps", cost, "1,000 steps", "100 steps", 1.5)],
    )


def _folding(steps: int, repeats: int) -> float:
    run = RunLog("root")
    run.append(c.RunStart("root", "a", [UserMessage("go")], "m", None))
    for step in range(1, steps + 1):
        run.append(c.StepStart("root", "a", step, 1, "m"))
        for _ in range(10):
            run.append(c.TextDelta("root", "a", "word "))
        message = AssistantMessage([TextPart("word " * 10)])
        run.append(c.StepEnd("root", "a", step, 1, "committed", Usage(requests=1), message, "stop"))
    return _median(lambda: fold(run.chunks), repeats)


class Items(BaseModel):
    """A state with a list."""

    items: list[str] = []


def state(url: str, repeats: int) -> Table:
    """One append to a list in state, empty and with 5,000 items."""
    cost = {f"{size:,} items": _appending(size, repeats) for size in (0, 5000)}
    return Table(
        "an append to a list in state",
        "µs of CPU per draft",
        [Row(name, value * 1e6) for name, value in cost.items()],
        [ratio("5,000 items ÷ 0 items", cost, "5,000 items", "0 items", 3)],
    )


def _appending(size: int, repeats: int) -> float:
    schema = StateSchema(Items)

    def change() -> float:
        document = {"items": ["x"] * size}
        begun = time.process_time()
        for _ in range(DRAFTS):
            draft = Draft(schema, document)
            draft.proxy.items.append("y")
            draft.close()
            apply_patches(document, draft.render(document).patches)
        return time.process_time() - begun

    return statistics.median(change() for _ in range(repeats)) / DRAFTS


def _median(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds of one piece of work."""
    times: list[float] = []
    for _ in range(repeats):
        gc.collect()  # what the one before has left is not on this one's bill
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return statistics.median(times)
