"""`helix trim`: drops the deltas of runs of a store.  Floor 7: above `trimming`."""

from __future__ import annotations

import argparse
import re
import sys
from datetime import timedelta
from typing import Any

from helix.cli.console import Console
from helix.cli.loops import run_async
from helix.cli.stored import add_store, find_run, opened
from helix.trimming import trim_ended, trim_run

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "trim",
        help="drop the deltas of runs of a store",
        description="Drop the deltas of a run, or of all runs that ended long ago. Words, results, state and usage "
        "stay: each delta is a piece of what a later chunk has whole. What is still at work keeps its deltas.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("run", nargs="?", help="the run's id, or the beginning of it")
    which.add_argument("--older-than", type=_age, metavar="AGE", help="all that ended so long ago: 30d, 12h, 90m, 0s")
    add_store(parser)
    parser.set_defaults(command=trim)


def _age(given: str) -> timedelta:
    match = re.fullmatch(r"(\d+)([smhd])", given)
    if match is None:
        raise argparse.ArgumentTypeError(f"{given!r} is no age; write 30d, 12h, 90m or 0s")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def trim(options: argparse.Namespace) -> int:
    """Runs the command and gives its exit code."""
    dropped = run_async(_trimmed, options)
    Console(sys.stdout).line(f"{dropped:,} delta{'' if dropped == 1 else 's'} dropped")
    return 0


async def _trimmed(options: argparse.Namespace) -> int:
    async with opened(options) as store:
        if options.run is None:
            return await trim_ended(store, options.older_than)
        return await trim_run(store, (await find_run(store, options.run)).run_id)
