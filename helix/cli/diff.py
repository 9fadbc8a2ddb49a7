"""`helix diff A B`: the first place in which two saved runs part.  Floor 7: above `compare` and `logs`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from pydantic.alias_generators import to_camel

from helix.chunks import CHUNK_TYPES
from helix.cli.compare import MISSING, Difference, Entry, find_difference
from helix.cli.console import Console
from helix.cli.logs import log_name, read_log
from helix.errors import UsageError, did_you_mean
from helix.outline import one_line

_WIDTH = 90
_BEFORE = 30
"""Characters of a long text that are shown before those that differ."""
_FIELDS = 10
"""Differing fields that are shown."""


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "diff",
        help="see where two saved runs part",
        description="Compare two logs (JSON Lines, as `helix run --save` writes them): show the first chunk in which "
        "the runs part. Ids, times and durations do not count; each agent and each call is compared on its own, and "
        "texts are compared however they are cut into deltas. Exit codes: 0 the same, 1 they differ, 2 a log cannot "
        "be read.",
    )
    parser.add_argument("a", help="a log; - for standard input")
    parser.add_argument("b", help="the other log")
    parser.add_argument("--strict", action="store_true", help="compare order and deltas too, chunk by chunk")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="FIELD",
        help="a field of chunks that does not count, such as model or usage; may be given again",
    )
    parser.set_defaults(command=diff)


def diff(options: argparse.Namespace) -> int:
    """Runs the command and gives its exit code."""
    ignore = {_field(name) for given in options.ignore for name in given.split(",") if name}
    out = Console(sys.stdout)
    if options.a == options.b == "-":
        raise UsageError("only one of the two logs can come from standard input")
    left, right = read_log(options.a).chunks, read_log(options.b).chunks
    found = find_difference(left, right, strict=options.strict, ignore=ignore)
    if found is None:
        counts = f"{len(left)}" if len(left) == len(right) else f"{len(left)} and {len(right)}"
        agents = len({chunk.agent_id for chunk in left})
        out.line(f"the same: {counts} chunks, {agents} agent{'' if agents == 1 else 's'}")
        return 0
    for line in _shown(found, *_labels(options.a, options.b)):
        out.line(line)
    return 1


def _field(name: str) -> str:
    """The wire's name of a field, given in camelCase or snake_case."""
    known = {to_camel(field.name) for kind in CHUNK_TYPES.values() for field in fields(kind)}
    camel = to_camel(name) if "_" in name else name
    if camel not in known - {"type", "agentId"}:
        raise UsageError(f"--ignore: no chunk has a field {name!r}.{did_you_mean(camel, known)}")
    return camel


def _labels(a: str, b: str) -> tuple[str, str]:
    """The files' names, without their folders if they differ without them."""
    short = tuple(log_name(path if path == "-" else os.path.basename(path)) for path in (a, b))
    return (short[0], short[1]) if short[0] != short[1] else (a, b)


def _shown(found: Difference, a: str, b: str) -> Iterator[str]:
    entry = found.left or found.right
    assert entry is not None
    yield "the first difference:"
    yield f"  chunk  {_where(found, 0)} of {a}, {_where(found, 1)} of {b}"
    yield f"  agent  {one_line(entry.agent, _WIDTH)}"
    if found.left is None or found.right is None:
        yield f"  only   {b if found.left is None else a} has this {one_line(entry.type, _WIDTH)}"
    elif found.left.type != found.right.type:
        yield f"  type   {one_line(found.left.type, _WIDTH)} in {a}, {one_line(found.right.type, _WIDTH)} in {b}"
    else:
        yield f"  type   {one_line(entry.type, _WIDTH)}"
        yield from _fields(found, a, b)
    if found.others:
        yield f"{found.others} more {'agent or call differs' if found.others == 1 else 'agents or calls differ'} later"


def _fields(found: Difference, a: str, b: str) -> Iterator[str]:
    width = max(len(a), len(b)) + 1
    differing = found.fields
    for path, left, right in differing[:_FIELDS]:
        start = max(0, _common(left, right) - _BEFORE)
        yield f"  {one_line(path, _WIDTH)}"
        yield f"    {f'{a}:':<{width}} {_value(left, start)}"
        yield f"    {f'{b}:':<{width}} {_value(right, start)}"
    if len(differing) > _FIELDS:
        yield f"  and {len(differing) - _FIELDS} more fields"


def _value(value: Any, start: int) -> str:
    if value is MISSING:
        return "(absent)"
    if isinstance(value, str):
        return f"{'…' if start else ''}{one_line(value[start:], _WIDTH)}" if value else "(empty)"
    return one_line(value, _WIDTH)


def _common(left: Any, right: Any) -> int:
    """How many characters two texts have in common at their beginning; 0 for anything else."""
    if not (isinstance(left, str) and isinstance(right, str)):
        return 0
    pairs = enumerate(zip(left, right, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(left), len(right)))


def _where(found: Difference, side: int) -> str:
    """The number of the chunk on that side: of joined deltas, of the one in which they begin to differ."""
    entry: Entry | None = (found.left, found.right)[side]
    if entry is None:
        return "none"
    texts = [(left, right) for path, left, right in found.fields if path in ("delta", "content")]
    return str(entry.sequence_at(_common(*texts[0])) if texts else entry.sequence)
