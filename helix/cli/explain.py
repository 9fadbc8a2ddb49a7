"""`helix explain CODE`: what an error code, an exception or a rule of the judge means, and what to do.

Floor 7: above `explanations`, which has the texts.
"""

from __future__ import annotations

import argparse
import inspect
import shutil
import sys
import textwrap
from typing import Any

from helix.cli.console import Console
from helix.cli.explanations import CODES, EXCEPTIONS, RULES, SUB_RULES, Explanation
from helix.errors import UsageError, did_you_mean
from helix.testing.check import GRAMMAR


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "explain",
        help="what an error code means and what to do",
        description="Explain an error code (limit_steps), an exception (SessionBusy) or a rule of `helix check` "
        "(run-end-missing, or the number of a rule); without one, list them all. Exit codes: 0, or 2 if unknown.",
    )
    parser.add_argument("code", nargs="?", metavar="CODE", help="what to explain")
    parser.set_defaults(command=explain)


def explain(options: argparse.Namespace) -> int:
    """Runs the command and gives its exit code."""
    lines = _all() if options.code is None else _one(options.code.strip())
    out = Console(sys.stdout)
    width = max(50, min(100, shutil.get_terminal_size().columns))
    for line in lines:
        head, _, text = line.rpartition("\t")
        indent = " " * (len(head) + 1 if head else 0)
        for part in textwrap.wrap(f"{head} {text}" if head else text, width, subsequent_indent=indent) or [""]:
            out.line(part)
    return 0


def _all() -> list[str]:
    codes = {code: item.meaning for code, item in CODES.items()}
    exceptions = {kind.__name__: _doc(kind) for kind in EXCEPTIONS}
    lines = ["Error codes, in `error`, `tool_end` and `run_end` chunks:", *_table(codes), ""]
    lines += ["Exceptions:", *_table(exceptions), ""]
    for number, rules in GRAMMAR.items():
        lines += [f"Rule {number} of `helix check`, {RULES[number].meaning}:", *_table(rules), ""]
    return lines[:-1]


def _table(texts: dict[str, str]) -> list[str]:
    width = max(map(len, texts))
    return [f"  {name:<{width}} \t{text}" for name, text in texts.items()]


def _one(code: str) -> list[str]:
    exceptions = {kind.__name__: kind for kind in EXCEPTIONS}
    rules = {name: number for number, names in GRAMMAR.items() for name in names}
    name = code.removeprefix("helix.")
    if name in CODES:
        return _shown(f"{name}: {CODES[name].meaning}", CODES[name])
    if name in exceptions:
        return [f"{name}: {_doc(exceptions[name])}", f"What to do:\t{EXCEPTIONS[exceptions[name]]}"]
    if name in rules:
        return _rule(name, rules[name])
    if name.isdecimal() and int(name) in GRAMMAR:
        number = int(name)
        return _shown(f"rule {number}, {RULES[number].meaning}", RULES[number]) + _table(GRAMMAR[number])
    near = did_you_mean(name, [*CODES, *exceptions, *rules])
    raise UsageError(f"nothing is called {code!r}.{near} `helix explain` lists all codes")


def _rule(name: str, number: int) -> list[str]:
    head = f"{name} (rule {number}, {RULES[number].meaning}): {GRAMMAR[number][name]}"
    return _shown(head, SUB_RULES.get(name, RULES[number]))


def _shown(head: str, item: Explanation) -> list[str]:
    return [head, f"Usual cause:\t{item.cause}", f"What to do:\t{item.cure}"]


def _doc(kind: type[Exception]) -> str:
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())
