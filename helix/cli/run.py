"""`helix run module:agent "prompt"`: one run; the answer on standard output, what happens meanwhile on standard error.

Floor 7: above `executor`. One reader of the run's log writes all there is to write.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, get_args

from pydantic_core import to_json

from helix.agent import Agent
from helix.chunks import Chunk, Resync, StepEnd, TextDelta, chunk_to_json
from helix.cli.ask import asker, deny_all
from helix.cli.console import Console
from helix.cli.load import load_agent
from helix.cli.loops import run_async
from helix.cli.stored import add_store, find_run, given_url, store_of
from helix.cli.watch import (
    INTERRUPTED,
    Asked,
    add_options,
    as_seen,
    asked,
    follow,
    interrupts,
    leave_threads_behind,
    tell_missing,
)
from helix.errors import UsageError
from helix.executor import Executor
from helix.handle import RunHandle
from helix.live import WaitMode
from helix.parts import Audio, File, Image, attach
from helix.results import RunResult
from helix.store import Store

SUSPENDED = 3


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "run",
        help="run an agent",
        description="Run an agent: the answer on standard output, progress and tokens on standard error. "
        "Exit codes: 0 completed, 1 failed, 2 wrong usage or definition, 3 suspended, 130 interrupted.",
    )
    parser.add_argument("agent", help="module:agent, or path/to/file.py:agent")
    parser.add_argument("prompt", nargs="?", help="what to ask; read from standard input if absent or -")
    parser.add_argument(
        "--attach", metavar="FILE", action="append", default=[], help="an image, audio or a file beside the prompt"
    )
    parser.add_argument("-m", "--model", help="the model of every agent, such as openai:gpt-5-mini")
    parser.add_argument("--json", action="store_true", help="print every chunk as one line of JSON instead")
    parser.add_argument("--save", metavar="FILE", help="write every chunk to FILE, as JSON Lines, as it comes")
    parser.add_argument("--force", action="store_true", help="let --save write over a file")
    add_store(parser)
    parser.add_argument("--resume", metavar="RUN", help="go on with a parked or lost run of the store")
    parser.add_argument("--wait", choices=get_args(WaitMode), default="hold", help="suspend: park it, and ask nobody")
    add_options(parser)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and gives its exit code."""
    agent = load_agent(options.agent)
    input = _input(options)
    shown = asked(options)
    with _opened(options.save, force=options.force) as save:
        writer = _Writer(agent, save, shown, as_json=options.json)
        return run_async(_run, agent, input, options, writer)


def _input(options: argparse.Namespace) -> Any:
    """The prompt, and what is attached to it; None if a run goes on without."""
    prompt = None if options.resume and options.prompt is None else _prompt(options.prompt or "-")
    attached = [_attached(path) for path in options.attach]
    return [*([] if prompt is None else [prompt]), *attached] if attached else prompt


def _attached(path: str) -> Image | Audio | File:
    try:
        return attach(path)
    except OSError as error:
        raise UsageError(f"--attach: {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--attach: {path}: {error}") from None


def _prompt(given: str) -> str:
    if given == "-":
        given = sys.stdin.read().strip("\n")
    if not given.strip():
        raise UsageError("the prompt is empty; give it as an argument or on standard input")
    return given


@contextmanager
def _opened(path: str | None, *, force: bool) -> Generator[BinaryIO | None]:
    if path is None:
        yield None
        return
    try:
        if not force and Path(path).is_file() and Path(path).stat().st_size:
            raise UsageError(f"--save: {path} exists and is not empty; --force writes over it")
        file = Path(path).open("wb", buffering=0)  # noqa: SIM115 - closed below; errors in the block are not about it
    except OSError as error:
        raise UsageError(f"--save: {path}: {error.strerror}") from None
    with file:
        yield file


async def _run(agent: Agent[Any, Any, Any], input: Any, options: argparse.Namespace, writer: _Writer) -> int:
    store = _store(options)
    with interrupts(writer.watcher) as interrupted:
        async with Executor(store=store, agents=[agent]) as executor:
            handle = await _started(executor, store, agent, input, options, writer)
            if store is not None:
                writer.watcher.note(f"helix: run {handle.run_id}")
            result = await follow(handle, writer.watcher, writer.take, interrupted)
        writer.finish(result)
    if interrupted.is_set():
        leave_threads_behind(INTERRUPTED)
        return INTERRUPTED
    if result.status == "suspended":
        return SUSPENDED
    return 0 if result.status == "completed" and not writer.save_error else 1


async def _started(
    executor: Executor,
    store: Store | None,
    agent: Agent[Any, Any, Any],
    input: Any,
    options: argparse.Namespace,
    writer: _Writer,
) -> RunHandle[Any, Any]:
    ask = writer.asker if options.wait == "hold" else None
    if options.resume and store is not None:
        record = await find_run(store, options.resume)
        if record.agent_type != agent.name:
            which = f"run {record.run_id} is one of agent {record.agent_type!r}"
            raise UsageError(f"--resume: {which}; {options.agent} is {agent.name!r}")
        parks = (await executor.get_handle(record.run_id)).tree.options.get("wait") == "suspend"
        ask = None if parks and ask is deny_all else ask
        return await executor.resume(record.run_id, input, model=options.model, on_approval=ask)
    return await executor.execute(agent, input, model=options.model, on_approval=ask, wait=options.wait)


def _store(options: argparse.Namespace) -> Store | None:
    url = given_url(options)
    if options.wait == "suspend" and (url is None or url.startswith("memory:")):
        raise UsageError("--wait suspend: a parked run needs a place to stay; give --store URL")
    if options.resume and url is None:
        raise UsageError("--resume: no store is named; give --store URL")
    return None if url is None else store_of(url)


def _lines(chunks: Iterable[Chunk | Resync]) -> bytes:
    return b"".join(chunk_to_json(chunk) + b"\n" for chunk in chunks)


class _Writer:
    """Writes what a run says to where it belongs.

    Attributes:
        save_error: why the chunks could not be saved, if so.
        asker: answers what the run asks.
    """

    def __init__(self, agent: Agent[Any, Any, Any], save: BinaryIO | None, shown: Asked, *, as_json: bool) -> None:
        self._out, self._err = Console(sys.stdout), Console(sys.stderr)
        self._save = save
        self.save_error = ""
        self._as_json = as_json
        self._structured = agent.output_schema.structured
        streamed = not as_json and not self._structured
        self.watcher = shown.watcher(self._out, self._err, streamed=streamed, as_json=as_json)
        self.asker = asker(self._err, self.watcher.paused)
        self._live = streamed and self._out.is_terminal and not self.watcher.is_view
        self._focus = shown.focus
        self._shown = ""
        self._floor = 0

    def take(self, batch: list[Chunk | Resync]) -> bool:
        """Takes the next chunks; says whether there is somebody left to write them for.

        A file has the log, as it is kept: behind a `resync`, too, what it stands for. Who reads the chunks as they come
        has the snapshot for that.
        """
        if self._save is not None:
            self._keep(_lines(batch))
        if self._as_json:
            self._out.write(_lines(self._streamed(batch)))
        if self._live:
            for chunk in as_seen(batch):
                self._show(chunk)
                self.watcher.take([chunk])
        else:
            self.watcher.take(list(as_seen(batch)))
        return not ((self._as_json and self._out.closed) or self.save_error)

    def _streamed(self, batch: list[Chunk | Resync]) -> Iterator[Chunk | Resync]:
        for item in batch:
            if isinstance(item, Resync):
                self._floor = item.floor
            elif item.sequence <= self._floor:
                continue
            yield item

    def _keep(self, lines: bytes) -> None:
        if self._save is None or self.save_error:
            return
        try:
            self._save.write(lines)
        except OSError as error:
            self.save_error = error.strerror
            self.watcher.note(f"helix: --save: {error.strerror}")

    def finish(self, result: RunResult[Any, Any]) -> None:
        """Writes the answer, unless the chunks were asked for or it has been read already, and what the run used."""
        if result.status == "completed" and not self._as_json and not self._live:
            answer = result.tree.root.result
            self._out.line(to_json(answer).decode() if self._structured else str(answer))
        if result.status == "suspended":
            run_id = result.run_id
            self.watcher.note(
                f"helix: suspended; `helix show {run_id}` says what waits, `helix approve {run_id}` answers"
            )
        tell_missing(self._focus, result.tree, self.watcher)
        if not self.watcher.is_view:
            self._err.line(f"[{result.used}]")

    def _show(self, chunk: Chunk) -> None:
        """Words at once, for a person who looks on; piped, only the final text is written."""
        if "." in chunk.agent_id:
            return
        if isinstance(chunk, TextDelta):
            self._shown = chunk.delta
            self._out.text(chunk.delta)
        elif isinstance(chunk, StepEnd) and self._shown and not self._shown.endswith("\n"):
            self._shown = ""
            self._out.write(b"\n")
