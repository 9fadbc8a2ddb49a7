"""`helix approve`, `deny`, `send`, `interrupt`, `cancel`: telling a run of a store something, from any process.

Floor 7. The code of the agents is not needed: arguments that were edited are validated by who runs the call.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, cast

from pydantic_core import from_json

from helix.cli.console import Console
from helix.cli.loops import run_async
from helix.cli.stored import add_store, answered_in_mail, find_run, load, opened, post, stop
from helix.commands import Answer, Approve, Cancel, ClientResult, Deny, Interrupt, Respond, Send
from helix.errors import UsageError
from helix.fold import RunTree
from helix.log import RunLog
from helix.store import ENDED, PARKED, RunRecord, Store

_UNSET: Any = object()


def add_to(commands: Any) -> None:
    """Adds the commands to the parser."""
    parser = _command(commands, "approve", "let a call run that waits for it", _approve)
    parser.add_argument("request", nargs="?", help="the request's id, or its call's; may be left out if only one waits")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--arguments", metavar="JSON", help="run it with these arguments instead")
    how.add_argument("--result", metavar="JSON", help="the result of a tool that runs on the client")
    parser.add_argument("--by", metavar="NAME", help="who answers, for the log")
    parser = _command(commands, "deny", "do not let a call run that waits for it", _deny)
    parser.add_argument("request", nargs="?", help="the request's id, or its call's; may be left out if only one waits")
    parser.add_argument("reason", nargs="?", help="what the model is told")
    parser.add_argument("--by", metavar="NAME", help="who answers, for the log")
    parser = _command(commands, "send", "say something to an agent of a run", _send)
    parser.add_argument("text", help="what is said; it is read with the next model call")
    parser.add_argument(
        "--to", metavar="AGENT", help="the agent's id, or its name if it is the only one (default: the root)"
    )
    _command(commands, "interrupt", "park a run before its next model calls", _interrupt)
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
        given = options.request and _of_call(options.request, log.tree)
        if isinstance(answer, Deny) and given is not None and options.reason is None and not _names(given, log.tree):
            given, answer = None, Deny(given)  # `helix deny RUN "too risky"`
        approval_id = await _request(store, log, given)
        request = log.tree.requests.get(approval_id)
        taken = await post(store, log, Respond("", approval_id, answer, options.by))
        record = await store.get(log.run_id)
    word = "denied" if isinstance(answer, Deny) else "approved" if isinstance(answer, Approve) else "answered"
    what = f"{request.tool_name} of {request.agent_type}" if request else approval_id
    Console(sys.stdout).line(f"{word}: {what}")
    if not taken:
        _not_taken(record, "the answer")
    return 0


def _not_taken(record: RunRecord, what: str) -> None:
    nobody = f"nobody runs it now ({record.status}); Executor.recover() or resume() takes {what}"
    Console(sys.stderr).line(f"helix: {nobody if record.lease_left <= 0 else 'its owner has not taken it yet'}")


def _of_call(given: str, tree: RunTree) -> str:
    """The request of the call of that id, if one such waits; else what was given."""
    found = [approval_id for approval_id, request in tree.requests.items() if request.tool_call_id == given]
    return found[0] if len(found) == 1 else given


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


def _send(options: argparse.Namespace) -> int:
    return run_async(_sent, options)


async def _sent(options: argparse.Namespace) -> int:
    async with opened(options) as store:
        log = await load(store, (await find_run(store, options.run)).run_id)
        agent_id = _agent_id(log.tree, options.to or log.run_id)
        taken = await post(store, log, Send("", options.text, agent_id))
        record = await store.get(log.run_id)
    Console(sys.stdout).line(f"sent: {log.tree.agents[agent_id].agent_type}")
    if not taken:
        _not_taken(record, "the message")
    return 0


def _agent_id(tree: RunTree, given: str) -> str:
    """The agent that is meant: by its id, or by its name or the last part of its id if there is one such."""
    named = [
        node.agent_id
        for node in tree.agents.values()
        if given in (node.agent_type, node.agent_id.rpartition(".")[2]) and not node.ended
    ]
    return named[0] if len(named) == 1 and given not in tree.agents else given


def _interrupt(options: argparse.Namespace) -> int:
    return run_async(_stopped, options, Interrupt(""), "interrupted", (*PARKED, *ENDED))


def _cancel(options: argparse.Namespace) -> int:
    return run_async(_stopped, options, Cancel(""), "cancelled", ENDED)


async def _stopped(
    options: argparse.Namespace, command: Cancel | Interrupt, wanted: str, too_late: Sequence[str]
) -> int:
    async with opened(options) as store:
        record = await find_run(store, options.run)
        if record.status in too_late:
            how = "is" if record.status in PARKED else "has"
            raise UsageError(f"run {record.run_id} {how} {record.status} already")
        status = await stop(store, record.run_id, command)
    if status == wanted:
        Console(sys.stdout).line(f"{wanted}: {record.run_id}")
        return 0
    said = "its owner has been told, and has not stopped yet" if status == "running" else f"it has {status} before that"
    Console(sys.stderr).line(f"helix: run {record.run_id}: {said}")
    return 1
