"""`helix runs` and `helix show RUN`: what is in a store.  Floor 7: only reads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pydantic_core import to_json

from helix.chunks import ApprovalRequest
from helix.cli.console import Console
from helix.cli.loops import run_async
from helix.cli.stored import add_store, answered_in_mail, find_run, load, opened
from helix.cli.tables import age, table
from helix.fold import RunTree
from helix.log import now_ms
from helix.outline import one_line, outline
from helix.store import ENDED, PARKED, RunRecord

STATUSES = ("running", *PARKED, *ENDED)
_HEADINGS = ("run", "agent", "status", "age", "chunks", "session")
_WIDTH = 40


def add_to(commands: Any) -> None:
    """Adds both commands to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "runs",
        help="list the runs of a store",
        description="List the runs of a store, newest first. `no owner` marks a running one whose process is gone.",
    )
    parser.add_argument("--session", metavar="ID", help="the runs of this session only")
    parser.add_argument("--status", choices=STATUSES, help="the runs that stand like this only")
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="how many at most (100)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead")
    add_store(parser)
    parser.set_defaults(command=runs)
    parser = commands.add_parser(
        "show",
        help="show how it stands with a run of a store",
        description="Show a run of a store: its agents, what waits for an answer, and what it came to.",
    )
    parser.add_argument("run", help="the run's id, or the beginning of it")
    add_store(parser)
    parser.set_defaults(command=show)


def runs(options: argparse.Namespace) -> int:
    """Runs `helix runs` and gives its exit code."""
    records = run_async(_listed, options)
    out, now = Console(sys.stdout), now_ms()
    if options.json:
        out.write(b"".join(to_json(_object(record)) + b"\n" for record in records))
    elif not records:
        Console(sys.stderr).line("helix: no such runs in this store")
    else:
        for line in table([_HEADINGS, *(_row(record, now) for record in records)]):
            out.line(line)
    return 0


async def _listed(options: argparse.Namespace) -> list[RunRecord]:
    statuses = None if options.status is None else [options.status]
    async with opened(options) as store:
        return await store.runs(session_id=options.session, statuses=statuses, limit=max(1, options.limit))


def _object(record: RunRecord) -> dict[str, Any]:
    return asdict(record) | {"metadata": dict(record.metadata)}


def _row(record: RunRecord, now: int) -> tuple[str, ...]:
    run, agent = one_line(record.run_id, _WIDTH), one_line(record.agent_type, _WIDTH)
    session = one_line(record.session_id or "", _WIDTH)
    return run, agent, _status(record), age(now - record.created_at), str(record.last_sequence), session


def _status(record: RunRecord) -> str:
    return "running, no owner" if record.status == "running" and record.lease_left <= 0 else record.status


# --- one run


def show(options: argparse.Namespace) -> int:
    """Runs `helix show` and gives its exit code."""
    record, tree, answered = run_async(_found, options)
    out = Console(sys.stdout)
    for line in _told(record, tree, answered):
        out.line(line)
    return 0


async def _found(options: argparse.Namespace) -> tuple[RunRecord, RunTree, set[str]]:
    async with opened(options) as store:
        record = await find_run(store, options.run)
        tree = (await load(store, record.run_id)).tree
        return record, tree, await answered_in_mail(store, record.run_id)


def _told(record: RunRecord, tree: RunTree, answered: set[str]) -> Iterator[str]:
    session = f", session {record.session_id}" if record.session_id else ""
    begun = age(now_ms() - record.created_at)
    yield f"run {record.run_id}{session}: {_status(record)}, {record.last_sequence} chunks, begun {begun} ago".replace(
        "begun now ago", "begun now"
    )
    yield from outline(tree)
    for request in tree.pending:
        yield ""
        yield from _asked(request, answered=request.approval_id in answered)
    if tree.root.error:
        yield ""
        yield f"{tree.root.error_code}: {tree.root.error}"
    if tree.status == "completed":
        yield ""
        answer = tree.root.result
        yield answer if isinstance(answer, str) else to_json(answer, indent=2).decode()


def _asked(request: ApprovalRequest, *, answered: bool) -> Iterator[str]:
    wants = "wants to call" if request.kind == "approval" else "waits for the result of"
    yield f"? {request.approval_id}"
    yield f"  {request.agent_type} {wants} {request.tool_name} {to_json(request.arguments).decode()}"
    if request.reason:
        yield f"  {request.reason}"
    if answered:
        yield "  answered; whoever goes on with the run takes the answer"
