"""The command `helix`: run an agent, look at the log of a run, find out what is wrong.

Floor 7: `main` reads the arguments; each command has a file of its own. Answers go to standard output, everything else
to standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from helix import __version__
from helix.cli import check, demo, diff, doctor, explain, replay, run, runs, schema, sessions, tell, trim
from helix.errors import HelixError, did_you_mean

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code.

    0: done. 1: the run failed, or what was looked at is not as it should be. 2: called or defined in a way that cannot
    work. 130: interrupted.
    """
    options = _parse(sys.argv[1:] if argv is None else argv)
    try:
        return options.command(options)
    except HelixError as error:
        print(f"helix: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments, read; what is not known is an error that names what is near."""
    parser = argparse.ArgumentParser(prog="helix", description="Run agents, and look at the logs of their runs.")
    parser.add_argument("--version", action="version", version=f"helix {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (demo, run, runs, sessions, tell, replay, trim, check, diff, schema, explain, doctor):
        module.add_to(commands)
    known: dict[str, argparse.ArgumentParser] = commands.choices
    command = next((word for word in argv if not word.startswith("-")), "")
    if command and command not in known:
        parser.error(f"no command {command!r}.{did_you_mean(command, known)} There are: {', '.join(known)}")
    options, rest = parser.parse_known_args(argv)
    if rest:
        names = known[command]._option_string_actions  # pyright: ignore[reportPrivateUsage] - it has no public form
        known[command].error(f"unknown argument {rest[0]!r}.{did_you_mean(rest[0].partition('=')[0], names)}")
    return options
