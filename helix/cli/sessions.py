"""`helix sessions [list | show ID | delete ID]`: the conversations in a store.  Floor 7: above `executor`.

The code of the agents is not needed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_json

from helix.cli.console import Console
from helix.cli.loops import run_async
from helix.cli.stored import add_store, existing, find_session
from helix.cli.tables import age, table
from helix.errors import UsageError, did_you_mean
from helix.executor import Executor
from helix.log import now_ms
from helix.messages import AssistantMessage, HistoryPage, Message, ToolMessage
from helix.outline import one_line
from helix.store import SessionRecord

_HEADINGS = ("session", "runs", "status", "updated", "last run")
_WIDTH = 40
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Message)


def add_to(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "sessions",
        help="list, show or delete the sessions of a store",
        description="List the sessions of a store, newest first; show the conversation of one, oldest message first; "
        "or forget all runs of one. Exit codes: 0 done, 2 there is no such session, or it has a live run.",
    )
    parser.add_argument("action", nargs="?", default="list", help=f"{', '.join(_ACTIONS)} (default: list)")
    parser.add_argument("session", nargs="?", help="the session's id, or the beginning of it")
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="how many at most (100): the newest ones")
    parser.add_argument("--before", metavar="WHICH", help="the page before, as the end of a page says")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead")
    add_store(parser)
    parser.set_defaults(command=sessions)


def sessions(options: argparse.Namespace) -> int:
    """Runs `helix sessions` and gives its exit code."""
    action = _ACTIONS.get(options.action)
    if action is None:
        near = did_you_mean(options.action, _ACTIONS)
        raise UsageError(f"sessions: no action {options.action!r}.{near} There are: {', '.join(_ACTIONS)}")
    if (options.session is None) != (options.action == "list"):
        takes = "takes no session" if options.action == "list" else "which session? Give its id"
        raise UsageError(f"sessions {options.action}: {takes}")
    options.limit = max(1, options.limit)
    action(options)
    return 0


# --- list


def _list(options: argparse.Namespace) -> None:
    records = run_async(_listed, options)
    out, err = Console(sys.stdout), Console(sys.stderr)
    if options.json:
        out.write(b"".join(to_json(asdict(record)) + b"\n" for record in records))
        return
    if not records:
        err.line("helix: no such sessions in this store")
        return
    now = now_ms()
    for line in table([_HEADINGS, *(_row(record, now) for record in records)]):
        out.line(line)
    if len(records) == options.limit:
        err.line(f"helix: older ones: --before {records[-1].session_id}")


async def _listed(options: argparse.Namespace) -> list[SessionRecord]:
    async with Executor(store=existing(options)) as executor:
        return await executor.sessions(limit=options.limit, before=options.before)


def _row(record: SessionRecord, now: int) -> tuple[str, ...]:
    session = one_line(record.session_id, _WIDTH)
    return session, str(record.runs), record.status, age(now - record.updated_at), one_line(record.last_run_id, _WIDTH)


# --- show


def _show(options: argparse.Namespace) -> None:
    page = run_async(_page, options, _place(options.before))
    out = Console(sys.stdout)
    if options.json:
        out.write(b"".join(_MESSAGE.dump_json(message, by_alias=True) + b"\n" for message in page))
        return
    if page.start:
        Console(sys.stderr).line(f"helix: {page.start} older ones: --before {page.start}")
    for message in page:
        for line in _told(message):
            out.line(line)


def _place(given: str | None) -> int | None:
    try:
        return None if given is None else int(given)
    except ValueError:
        raise UsageError(f"sessions show: --before {given}: a number of messages is wanted") from None


async def _page(options: argparse.Namespace, before: int | None) -> HistoryPage:
    store = existing(options)
    async with Executor(store=store) as executor:
        session_id = await find_session(store, options.session)
        return await executor.history(session_id, limit=options.limit, before=before)


def _told(message: Message) -> Iterator[str]:
    who = f"tool {message.tool_name}" if isinstance(message, ToolMessage) else message.role
    calls = message.tool_calls if isinstance(message, AssistantMessage) else []
    words = message.text or (message.refusal if isinstance(message, AssistantMessage) else "")
    first, *rest = words.splitlines() or [""]
    yield f"{who}: {first}".rstrip()
    yield from (f"  {line}" for line in rest)
    yield from (f"  → {call.tool_name} {one_line(call.arguments, 2 * _WIDTH)}" for call in calls)


# --- delete


def _delete(options: argparse.Namespace) -> None:
    session_id, runs = run_async(_deleted, options)
    Console(sys.stdout).line(f"deleted: {runs} run{'' if runs == 1 else 's'} of session {session_id}")


async def _deleted(options: argparse.Namespace) -> tuple[str, int]:
    store = existing(options)
    async with Executor(store=store) as executor:
        session_id = await find_session(store, options.session)
        return session_id, await executor.delete_session(session_id)


_ACTIONS: dict[str, Callable[[argparse.Namespace], None]] = {"list": _list, "show": _show, "delete": _delete}
