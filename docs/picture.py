"""Draws `docs/tree.svg`, the picture at the top of the README: `python docs/picture.py`.

The demo runs through the live view on a clock of its own, so that the picture is the same wherever it is drawn.
"""

from __future__ import annotations

import asyncio
import io
import selectors
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
from rich.console import Console, Group

from helix import Executor
from helix.chunks import Chunk
from helix.cli.demo import PACE, QUESTION, boss, scripted
from helix.cli.narrate import Focus, Narrator, Telling
from helix.cli.screen import Told
from helix.cli.view import View

FILE = Path(__file__).with_name("tree.svg")
BEGIN = 1_700_000_000_000
MOMENT = 6_050
"""Which moment of the demo is drawn, in ms."""
WIDTH, HEIGHT = 92, 30


class Clock(selectors.DefaultSelector):
    """The time of an event loop in which waiting takes none."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready; if nothing is, it is as much later as one would have waited."""
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


def demo_log() -> list[Chunk]:
    """The chunks of the demo, as if it had begun at `BEGIN`."""
    clock = Clock()

    def loop() -> asyncio.AbstractEventLoop:
        made: Any = asyncio.SelectorEventLoop(clock)
        made.time = lambda: clock.now
        return made

    with mock.patch("time.time_ns", side_effect=lambda: (BEGIN + round(clock.now * 1000)) * 1_000_000):
        return anyio.run(_run, backend_options={"loop_factory": loop})


async def _run() -> list[Chunk]:
    async with Executor() as executor:
        handle = await executor.execute(boss, QUESTION, deps=PACE, model=scripted(PACE))
        return [chunk async for chunk in handle.stream()]


def picture(log: list[Chunk]) -> str:
    """The screen at that moment, as SVG."""
    told: list[tuple[str, str]] = []
    view = View()
    narrator = Narrator(lambda path, text: told.append((path, text)), Telling(Focus(), above_tree=True))
    for chunk in log:
        if chunk.timestamp <= BEGIN + MOMENT:
            view.take(chunk)
            narrator.take(chunk)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print("[bold green]$[/] helix demo", highlight=False)
    console.print(Told(told, last=6))
    console.print(Group(*view.lines(WIDTH, HEIGHT, BEGIN + MOMENT, "Ctrl-C cancels")))
    return console.export_svg(title="helix demo", unique_id="helix")


if __name__ == "__main__":
    FILE.write_text(picture(demo_log()), encoding="utf-8")
