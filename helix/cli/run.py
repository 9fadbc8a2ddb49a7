"""`helix run module:agent "prompt"`: one run; the answer on standard output, what happens meanwhile on standard error.

Floor 7: above `executor`. One reader of the run's log writes all there is to write.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import anyio
from pydantic_core import to_json

from helix.agent import Agent
from helix.chunks import Chunk, StepEnd, TextDelta, chunk_to_json
from helix.cli.console import Console
from helix.cli.load import load_agent
from helix.cli.narrate import Narrator
from helix.errors import UsageError
from helix.executor import Executor, RunHandle
from helix.results import RunResult

INTERRUPTED = 130


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "run",
        help="run an agent",
        description="Run an agent: the answer on standard output, progress and tokens on standard error. "
        "Exit codes: 0 completed, 1 failed, 2 wrong usage or definition, 130 interrupted.",
    )
    parser.add_argument("agent", help="module:agent, or path/to/file.py:agent")
    parser.add_argument("prompt", nargs="?", default="-", help="what to ask; read from standard input if absent or -")
    parser.add_argument("-m", "--model", help="the model of every agent, such as openai:gpt-5-mini")
    parser.add_argument("--json", action="store_true", help="print every chunk as one line of JSON instead")
    parser.add_argument("--save", metavar="FILE", help="write every chunk to FILE, as JSON Lines, as it comes")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and gives its exit code."""
    agent = load_agent(options.agent)
    prompt = _prompt(options.prompt)
    with _opened(options.save) as save:
        writer = _Writer(agent, save, as_json=options.json)
        return anyio.run(_run, agent, prompt, options.model, writer)


def _prompt(given: str) -> str:
    if given == "-":
        given = sys.stdin.read().strip("\n")
    if not given.strip():
        raise UsageError("the prompt is empty; give it as an argument or on standard input")
    return given


@contextmanager
def _opened(path: str | None) -> Generator[BinaryIO | None]:
    if path is None:
        yield None
        return
    try:
        file = Path(path).open("wb", buffering=0)  # noqa: SIM115 - closed below; errors in the block are not about it
    except OSError as error:
        raise UsageError(f"--save: {path}: {error.strerror}") from None
    with file:
        yield file


async def _run(agent: Agent[Any, Any, Any], prompt: str, model: str | None, writer: _Writer) -> int:
    with _interrupts() as interrupted:
        async with Executor() as executor:
            handle = await executor.execute(agent, prompt, model=model)
            result = await _watch(handle, writer, interrupted)
        writer.finish(result)
    if interrupted.is_set():
        _leave_threads_behind(INTERRUPTED)
        return INTERRUPTED
    return 0 if result.status == "completed" and not writer.save_error else 1


async def _watch(handle: RunHandle[Any, Any], writer: _Writer, interrupted: anyio.Event) -> RunResult[Any, Any]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_on, interrupted, handle)
        reader = handle.stream()
        batch = await reader.next_batch()
        while batch:
            writer.take(batch)
            if writer.in_vain:
                await handle.cancel()
            batch = await reader.next_batch()
        tasks.cancel_scope.cancel()
    return await handle.result()


async def _cancel_on(interrupted: anyio.Event, handle: RunHandle[Any, Any]) -> None:
    await interrupted.wait()
    await handle.cancel()


@contextmanager
def _interrupts() -> Generator[anyio.Event]:
    """An event that the first Ctrl-C sets; a second one ends the program at once."""
    loop, interrupted = asyncio.get_running_loop(), anyio.Event()

    def on_interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        loop.call_soon_threadsafe(interrupted.set)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _leave_threads_behind(code: int) -> None:
    """Ends the program if a tool's thread still works: it cannot be stopped, and the interpreter would wait for it."""
    if threading.active_count() > 1:
        sys.stderr.flush()
        os._exit(code)


class _Writer:
    """Writes what a run says to where it belongs.

    Attributes:
        save_error: why the chunks could not be saved, if so.
    """

    def __init__(self, agent: Agent[Any, Any, Any], save: BinaryIO | None, *, as_json: bool) -> None:
        self._out, self._err = Console(sys.stdout), Console(sys.stderr)
        self._save = save
        self.save_error = ""
        self._as_json = as_json
        self._structured = agent.output_schema.structured
        self._live = self._out.is_terminal and not as_json and not self._structured
        self._shown = ""
        self._narrator = Narrator(self._err.line, words=False)

    @property
    def in_vain(self) -> bool:
        """Whether the chunks go to a reader that has gone, or to a file that cannot be written."""
        return (self._as_json and self._out.closed) or bool(self.save_error)

    def take(self, batch: list[Chunk]) -> None:
        """Takes the next chunks."""
        if self._save is not None or self._as_json:
            lines = b"".join(chunk_to_json(chunk) + b"\n" for chunk in batch)
            self._keep(lines)
            if self._as_json:
                self._out.write(lines)
        for chunk in batch:
            if self._live:
                self._show(chunk)
            self._narrator.take(chunk)

    def _keep(self, lines: bytes) -> None:
        if self._save is None or self.save_error:
            return
        try:
            self._save.write(lines)
        except OSError as error:
            self.save_error = error.strerror
            self._err.line(f"helix: --save: {error.strerror}")

    def finish(self, result: RunResult[Any, Any]) -> None:
        """Writes the answer, unless the chunks were asked for or it has been read already, and what the run used."""
        if result.status == "completed" and not self._as_json and not self._live:
            answer = result.tree.root.result
            self._out.write((to_json(answer) if self._structured else str(answer).encode(errors="replace")) + b"\n")
        self._err.line(f"[{result.usage.total_tokens} tokens]")

    def _show(self, chunk: Chunk) -> None:
        """Words at once, for a person who looks on; piped, only the final text is written."""
        if "." in chunk.agent_id:
            return
        if isinstance(chunk, TextDelta):
            self._shown = chunk.delta
            self._out.write(chunk.delta.encode(errors="replace"))
        elif isinstance(chunk, StepEnd) and self._shown and not self._shown.endswith("\n"):
            self._shown = ""
            self._out.write(b"\n")
