"""`helix schema`: the JSON Schema of what a stream carries.  Floor 7."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pydantic_core import to_json

from helix.chunks import chunk_schema
from helix.cli.console import Console


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "schema",
        help="print the JSON Schema of the chunks",
        description="Print the JSON Schema (2020-12) of one line of a stream: every chunk, and what readers add.",
    )
    parser.set_defaults(command=schema)


def schema(options: argparse.Namespace) -> int:
    """Runs the command and gives its exit code."""
    del options
    Console(sys.stdout).line(to_json(chunk_schema(), indent=2).decode())
    return 0
