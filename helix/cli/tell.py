"""`helix approve`, `helix deny`, `helix cancel`: telling a run of a store something, from any process.

Floor 7. The code of the agents is not needed: arguments that were edited are validated by who runs the call.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, cast

from pydantic_core import from_json

from helix.cli.console import Console
from helix.cli.loops import run_async
from helix.cli.stored import add_store, answered_in_mail, cancel, find_run, load, opened, respond
from helix.commands import Answer, Approve, ClientResult, Deny
from helix.errors import UsageError
from helix.fold import RunTree
from helix.log import RunLog
from helix.store import ENDED, Store

_UNSET: Any = object()


def add_to(commands: Any) -> None:
    """Adds the three commands to the parser."""
    parser = _command(commands, "approve", "let a call run that waits for it", _approve)
    parser.add_argument("request", nargs="?", help="the request's id; may be left out if only one waits")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--arguments", metavar="JSON", help="run it with these arguments instead")
    how.add_argument("--result", metavar="JSON", help="the result of a tool that runs on the client")
    parser.add_argument("--by", metavar="NAME", help="who answers, for the log")
    parser = _command(commands, "deny", "do not let a call run that waits for it", _deny)
    parser.add_argument("request", nargs="?", help="the request's id; may be left out if only one waits")
    parser.add_argument("reason", nargs="?", help="what the model is told")
    parser.add_argument("--by", metavar="NAME", help="who answers, for the log")
    _command(commands, "cancel", "stop a run", _cancel)


def _command(commands: Any, name: str, what: str, function: Any) -> argparse.ArgumentParser:
    about = f"{what[0].upper()}{what[1:]}, from any process that reaches the store."
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=about)
    parser.add_argument("run", help="the run's id, or the beginning of it")
    add_store(parser)
    parser.set_defaults(command=function)
    return parser


def _approve(options: argparse.Namespace) -> int:
    arguments = _json("--arguments", options.arguments)
    result = _json("--result", options.result)
    if arguments is not _UNSET and not isinstance(arguments, dict):
        raise UsageError("--arguments: a JSON object is wanted, such as {}")
    if result is not _UNSET:
        return run_async(_answer, options, ClientResult(result))
    return run_async(_answer, options, Approve(None if arguments is _UNSET else cast(dict[str, Any], arguments)))


def _json(option: str, given: str | None) -> Any:
    if given is None:
        return _UNSET
    try:
        return from_json(given, allow_inf_nan=False)
    except ValueError as error:
        raise UsageError(f"{option}: that is not JSON: {error}") from None


def _deny(options: argparse.Namespace) -> int:
    return run_async(_answer, options, Deny(options.reason or ""))


async def _answer(options: argparse.Namespace, answer: Answer) -> int:
    async with opened(options) as store:
        log = await load(store, (await find_run(store, options.run)).run_id)
        if log.tree.ended:
            raise UsageError(f"run {log.run_id} has {log.tree.status}; nothing waits for an answer")
        given = options.request
        if isinstance(answer, Deny) and given is not None and options.reason is None and not _names(given, log.tree):
            given, answer = None, Deny(given)  # `helix deny RUN "too risky"`
        approval_id = await _request(store, log, given)
        request = log.tree.requests.get(approval_id)
        taken = await respond(store, log, approval_id, answer, options.by)
        record = await store.get(log.run_id)
    word = "denied" if isinstance(answer, Deny) else "approved" if isinstance(answer, Approve) else "answered"
    what = f"{request.tool_name} of {request.agent_type}" if request else approval_id
    Console(sys.stdout).line(f"{word}: {what}")
    if not taken:
        nobody = f"nobody runs it now ({record.status}); Executor.recover() or resume() takes the answer"
        Console(sys.stderr).line(f"helix: {nobody if record.lease_left <= 0 else 'its owner has not taken it yet'}")
    return 0


def _names(given: str, tree: RunTree) -> bool:
    """Whether that is meant as a request's id: every one begins with its agent's, and so with the run's."""
    return given in tree.requests or given in tree.closed or given.startswith((f"{tree.root_id}/", f"{tree.root_id}."))


async def _request(store: Store, log: RunLog, given: str | None) -> str:
    """The request that is meant."""
    answered = await answered_in_mail(store, log.run_id)
    if given is not None:
        if given in answered and given in log.tree.requests:
            raise UsageError(f"{given!r} is answered already; nobody has gone on with the run yet")
        return given
    waiting = [approval_id for approval_id in log.tree.requests if approval_id not in answered]
    if len(waiting) == 1:
        return waiting[0]
    if not waiting:
        more = "; what was answered is not taken yet" if answered else ""
        raise UsageError(f"nothing in run {log.run_id} waits for an answer{more}")
    raise UsageError(f"{len(waiting)} requests wait; say which: {', '.join(waiting)}")


def _cancel(options: argparse.Namespace) -> int:
    return run_async(_cancelled, options)


async def _cancelled(options: argparse.Namespace) -> int:
    async with opened(options) as store:
        record = await find_run(store, options.run)
        if record.status in ENDED:
            raise UsageError(f"run {record.run_id} has {record.status} already")
        status = await cancel(store, record.run_id)
    if status == "cancelled":
        Console(sys.stdout).line(f"cancelled: {record.run_id}")
        return 0
    said = "its owner has been told, and has not stopped yet" if status == "running" else f"it has {status} before that"
    Console(sys.stderr).line(f"helix: run {record.run_id}: {said}")
    return 1
