"""The command `helix`: run an agent, judge a log, see a demonstration.

Floor 7: `main` reads the arguments; each command has a file of its own. Answers go to standard output, everything else
to standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from helix import __version__
from helix.cli import check, demo, run
from helix.errors import HelixError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code.

    0: done. 1: the run failed, or the log breaks the grammar. 2: called or defined in a way that cannot work.
    130: interrupted.
    """
    options = _parser().parse_args(argv)
    try:
        return options.command(options)
    except HelixError as error:
        print(f"helix: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="helix", description="Run agents, and judge the logs of their runs.")
    parser.add_argument("--version", action="version", version=f"helix {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (demo, run, check):
        module.add_to(commands)
    return parser
