"""`helix demo`: three levels of agents at work, without a network.

Floor 7: above everything. The models are scripted; all that they set in motion is real.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import anyio
from pydantic import BaseModel
from pydantic_core import to_json

from helix.agent import Agent
from helix.chunks import Chunk, Resync
from helix.cli.console import Console
from helix.cli.loops import run_async
from helix.cli.watch import INTERRUPTED, Watcher, add_options, as_seen, asked, follow, interrupts, tell_missing
from helix.context import ToolContext
from helix.errors import ModelError
from helix.executor import Executor
from helix.messages import UserMessage
from helix.model import ModelRequest
from helix.outline import outline
from helix.results import RunResult
from helix.testing.models import Call, ScriptedModel, Turn
from helix.tools import tool

PACE = 0.09
QUESTION = "A queue or a log: which one should carry the words of our agents?"


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="watch a small tree of agents, offline",
        description="Three levels of agents with scripted models: parallel researchers, state, progress, a failure "
        "that is recovered from, structured output. Progress on standard error, the answer on standard output.",
    )
    parser.add_argument("--fast", action="store_true", help="without pauses")
    add_options(parser)
    parser.set_defaults(command=demo)


def demo(options: argparse.Namespace) -> int:
    """Runs the command and gives its exit code."""
    out, err = Console(sys.stdout), Console(sys.stderr)
    shown = asked(options)
    watcher = shown.watcher(out, err)
    result = run_async(_watch, watcher, 0.0 if options.fast else PACE)
    if not watcher.is_view:
        err.line("")
        for line in outline(result.tree):
            err.line(line)
    tell_missing(shown.focus, result.tree, watcher)
    if result.status != "completed":
        return INTERRUPTED if result.status == "cancelled" else 1
    out.line(to_json(result.output, indent=2).decode())
    return 0


async def _watch(watcher: Watcher, pace: float) -> RunResult[Any, Any]:
    def take(batch: list[Chunk | Resync]) -> bool:
        watcher.take(list(as_seen(batch)))
        return True

    with interrupts(watcher) as interrupted:
        async with Executor() as executor:
            handle = await executor.execute(boss, QUESTION, deps=pace, model=scripted(pace))
            return await follow(handle, watcher, take, interrupted)


# --- the agents


class Notes(BaseModel):
    """What a researcher keeps."""

    searches: int = 0
    sources: list[str] = []


class Verdict(BaseModel):
    """What the boss decides."""

    choice: str
    because: list[str]


@tool
async def search(ctx: ToolContext[Notes, float], query: str) -> list[str]:
    """Search the archive."""
    hits: list[str] = []
    for number in range(1, 4):
        await anyio.sleep(ctx.deps * 3)
        hits.append(f"{query}/{number}")
        ctx.emit("progress", {"shelf": number, "of": 3})
    with ctx.update_state() as notes:
        notes.searches += 1
        notes.sources.extend(hits)
    ctx.write(f"{len(hits)} hits for {query!r}\n")
    return hits


reader: Agent[str, None, float] = Agent("reader", description="Reads one page.", deps_type=float)
researcher: Agent[str, Notes, float] = Agent(
    "researcher",
    description="Finds out about one thing.",
    state_type=Notes,
    deps_type=float,
    tools=[search],
    sub_agents=[reader],
)
boss: Agent[Verdict, None, float] = Agent(
    "boss", instructions="Decide.", output_type=Verdict, deps_type=float, sub_agents=[researcher]
)


# --- what their models say


def scripted(pace: float) -> ScriptedModel:
    """The models of all of them; `pace` is the time between two pieces, in seconds."""
    return ScriptedModel(
        {
            "boss": [
                Turn(
                    thinking="Two candidates; one researcher each, at the same time.",
                    text="I send out two researchers.",
                    calls=[Call("researcher", input="queue"), Call("researcher", input="log")],
                ),
                Turn(
                    output=Verdict(
                        choice="log", because=["many readers, each with a past", "a reader that left can come back"]
                    ).model_dump(),
                    input_tokens=96,
                    output_tokens=31,
                ),
            ],
            "researcher-1": [
                Turn(text="First the archive.", calls=[Call("search", query="queue")], input_tokens=24),
                Turn(text="One page looks useful.", calls=[Call("reader", input="queue/2")], input_tokens=41),
                Turn(text="A queue has one reader and no past.", input_tokens=58, output_tokens=12),
            ],
            "researcher-2": [
                Turn(text="I look at the shelves.", calls=[Call("search", query="log")], input_tokens=24),
                Turn(text="The first page will do.", calls=[Call("reader", input="log/1")], input_tokens=41),
                Turn(text="That page is gone; the next one.", calls=[Call("reader", input="log/2")], input_tokens=55),
                Turn(text="A log is read by many, from wherever they are.", input_tokens=72, output_tokens=13),
            ],
            "reader": _read,
        },
        pace=pace,
    )


def _read(request: ModelRequest) -> Turn:
    asked = request.messages[0]
    assert isinstance(asked, UserMessage)
    if asked.text == "log/1":
        return Turn(text="Opening the page", fail=ModelError("model_unavailable", "the page's host does not answer"))
    return Turn(text=f"Page {asked.text} says what one expects\nand a little more.", input_tokens=30)
