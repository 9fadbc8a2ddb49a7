"""`helix check FILE`: judges a log that was saved as JSON Lines, or a run of a store.  Floor 7: above `testing`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from helix.chunks import Chunk, RunEnd, RunPause, RunResume
from helix.cli.console import Console
from helix.cli.stored import add_store, read_kept
from helix.testing.check import find_violations


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "check",
        help="judge a saved log, or a run of a store",
        description="Check that a log (JSON Lines, as `helix run --save` writes it, or a run of a store, trimmed or "
        "not) keeps the chunk grammar. "
        "Exit codes: 0 it does, 1 it does not, 2 it cannot be read.",
    )
    parser.add_argument("file", help="the log; - for standard input; of a store, the run's id")
    parser.add_argument("--prefix", action="store_true", help="the log may stop before the run has ended")
    add_store(parser)
    parser.set_defaults(command=check)


def check(options: argparse.Namespace) -> int:
    """Runs the command and gives its exit code."""
    out = Console(sys.stdout)
    kept = read_kept(options)
    name, chunks = kept.name, kept.chunks
    violations = find_violations(chunks, finished=not options.prefix, floor=kept.floor)
    for violation in violations:
        out.line(f"{name}: rule {violation.rule} {violation.name}, chunk {violation.sequence}: {violation.message}")
    if violations:
        out.line(_count(len(violations), "violation"))
        if chunks and not options.prefix and not find_violations(chunks, finished=False, floor=kept.floor):
            out.line("The log only stops before the run has ended; if it may, check it with --prefix.")
        return 1
    agents = len({chunk.agent_id for chunk in chunks})
    trimmed = f", trimmed up to {kept.floor}" if kept.floor else ""
    out.line(f"ok: {_count(len(chunks), 'chunk')}, {_count(agents, 'agent')}, {_status(chunks)}{trimmed}")
    return 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _status(chunks: list[Chunk]) -> str:
    """What the run has come to by the last of its chunks."""
    status = "running"
    for chunk in chunks:
        if isinstance(chunk, RunPause) or (isinstance(chunk, RunEnd) and chunk.agent_id == chunks[0].agent_id):
            status = chunk.status
        elif isinstance(chunk, RunResume):
            status = "running"
    return status
