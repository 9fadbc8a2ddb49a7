"""`helix check FILE`: judges a log that was saved as JSON Lines.  Floor 7: above `testing`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from helix.chunks import Chunk, RunEnd, RunPause, RunResume
from helix.cli.console import Console
from helix.cli.logs import log_name, read_log
from helix.testing.check import find_violations


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "check",
        help="judge a saved log",
        description="Check that a log (JSON Lines, as `helix run --save` writes it) keeps the chunk grammar. "
        "Exit codes: 0 it does, 1 it does not, 2 it cannot be read.",
    )
    parser.add_argument("file", help="the log; - for standard input")
    parser.add_argument("--prefix", action="store_true", help="the log may stop before the run has ended")
    parser.set_defaults(command=check)


def check(options: argparse.Namespace) -> int:
    """Runs the command and gives its exit code."""
    out = Console(sys.stdout)
    name, chunks = log_name(options.file), read_log(options.file)
    violations = find_violations(chunks, finished=not options.prefix)
    for violation in violations:
        out.line(f"{name}: rule {violation.rule} {violation.name}, chunk {violation.sequence}: {violation.message}")
    if violations:
        out.line(_count(len(violations), "violation"))
        if chunks and not options.prefix and not find_violations(chunks, finished=False):
            out.line("The log only stops before the run has ended; if it may, check it with --prefix.")
        return 1
    agents = len({chunk.agent_id for chunk in chunks})
    out.line(f"ok: {_count(len(chunks), 'chunk')}, {_count(agents, 'agent')}, {_status(chunks)}")
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
