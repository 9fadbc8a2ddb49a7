"""A store on the command line: its URL, opening it, finding a run in it, reading its log, telling it something.

Floor 7: above `journal` and `owner`. Agents' code is not needed: what is told to a run is posted to its inbox.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import anyio

from helix.chunks import Chunk
from helix.cli.logs import KeptLog, read_log
from helix.cli.loops import run_async
from helix.commands import Cancel, Command, Interrupt, Respond
from helix.errors import HelixError, UnknownRun, UsageError, did_you_mean
from helix.journal import LEASE_SECONDS, Journal, new_owner, unread
from helix.log import RunLog
from helix.owner import check, take
from helix.store import RunRecord, Store
from helix.stores import open_store
from helix.trimming import chunk_of

VARIABLE = "HELIX_STORE"
"""The environment variable with the URL of the store to use when none is given."""
PATIENCE = 5.0
"""Seconds that a command waits for a run's owner to do what it was told."""
_PAGE = 1000
_SHORTEST = 4
"""How many characters of a run's id are enough, if no other run's begins with them."""


def add_store(parser: argparse.ArgumentParser) -> None:
    """Adds the option that names the store."""
    parser.add_argument("--store", metavar="URL", help=f"the store, such as sqlite:///runs.db (default: ${VARIABLE})")


def given_url(options: argparse.Namespace) -> str | None:
    """The URL of the option, else of the environment; None if neither says."""
    return options.store or os.environ.get(VARIABLE, "").strip() or None


def store_of(url: str) -> Store:
    """The store that a URL names.

    Raises:
        DefinitionError: no store has such a URL.
        UsageError: its driver is not installed.
    """
    try:
        return open_store(url)
    except ImportError as error:
        raise UsageError(str(error)) from None


@asynccontextmanager
async def opened(options: argparse.Namespace) -> AsyncGenerator[Store]:
    """The store that there is already, open; a file that is not there is not made.

    Raises:
        UsageError: none is named, or there is none.
        StoreError: it cannot be reached.
    """
    async with existing(options) as store:
        yield store


def existing(options: argparse.Namespace) -> Store:
    """The store that there is already, not opened yet.

    Raises:
        UsageError: none is named, or there is none.
    """
    url = given_url(options)
    if url is None:
        raise UsageError(f"no store is named; give --store URL, or set {VARIABLE}")
    store = store_of(url)
    if url.startswith("memory:"):
        raise UsageError("memory: is forgotten when a command ends; there is nothing to look at")
    if is_missing_file(url):
        raise UsageError(f"no store there: {url} (a relative path has three slashes, an absolute one four)")
    return store


def is_missing_file(url: str) -> bool:
    """Whether the URL names a file that is not there; to open it would make it."""
    return url.startswith("sqlite:///") and not Path(unquote(url.removeprefix("sqlite:///"))).is_file()


async def find_run(store: Store, given: str) -> RunRecord:
    """What the store knows of a run, by its id, or by the beginning of it.

    Raises:
        UnknownRun: there is none, or there are several; says which are near.
    """
    try:
        return await store.get(given)
    except UnknownRun:
        records = {record.run_id: record for record in await store.runs(limit=_PAGE)}
    return records[_meant(given, "run", records)]


async def find_session(store: Store, given: str) -> str:
    """A session's id, by itself, or by the beginning of it.

    Raises:
        UnknownRun: there is none, or there are several; says which are near.
    """
    if await store.runs(session_id=given, limit=1):
        return given
    return _meant(given, "session", [record.session_id for record in await store.sessions(limit=_PAGE)])


def _meant(given: str, what: str, ids: Collection[str]) -> str:
    found = [each for each in ids if len(given) >= _SHORTEST and each.startswith(given)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownRun(f"{len(found)} {what}s of this store begin with {given!r}: {', '.join(found[:5])}")
    hint = did_you_mean(given, ids) or f" `helix {what}s` lists them"
    raise UnknownRun(f"no {what} {given!r} in this store.{hint}")


async def load(store: Store, run_id: str) -> RunLog:
    """A run's log as it is now, without deltas."""
    log = RunLog(run_id)
    await Journal(store, log, new_owner()).load()
    return log


def read_kept(options: argparse.Namespace) -> KeptLog:
    """The log of `options.file`: of a store if one is given, or the environment names one and no file is there.

    Raises:
        UsageError, MalformedLog, UnknownRun, StoreError: it cannot be read.
    """
    is_file = options.file == "-" or os.path.exists(options.file)
    if options.store or (given_url(options) and not is_file):
        return run_async(_from_store, options)
    return read_log(options.file)


async def _from_store(options: argparse.Namespace) -> KeptLog:
    async with opened(options) as store:
        run_id = (await find_run(store, options.file)).run_id
        chunks: list[Chunk] = []
        while page := await store.read(run_id, chunks[-1].sequence if chunks else 0, limit=_PAGE):
            chunks += [chunk_of(line) for _, line in page]
        return KeptLog(f"run {run_id}", chunks, (await store.get(run_id)).floor)


async def answered_in_mail(store: Store, run_id: str) -> set[str]:
    """The requests that were answered, but whose answer no owner has read yet."""
    return {command.approval_id for command in await unread(store, run_id) if isinstance(command, Respond)}


async def post(store: Store, log: RunLog, command: Command) -> bool:
    """Posts an answer or a message; whether the run's owner has taken it within `PATIENCE` seconds.

    It is posted, not written, also to a parked run: a run with mail is what `Executor.recover` looks for.

    Raises:
        UnknownApproval, AlreadyAnswered, InvalidAnswer: an answer has no request to go to, or does not fit it.
        AgentEnded, UsageError: a message has nobody to go to.
    """
    with anyio.move_on_after(PATIENCE):
        return await Journal(store, log, new_owner()).post(command, partial(check, log))
    return False


async def stop(store: Store, run_id: str, command: Cancel | Interrupt) -> str:
    """Stops a run, by its owner if it has one that lives; its status once that is done, or time is up."""
    log = await load(store, run_id)
    with anyio.move_on_after(PATIENCE + LEASE_SECONDS):
        await Journal(store, log, new_owner()).tell(command, partial(take, log, None), partial(check, log))
    try:
        return (await store.get(run_id)).status
    except HelixError:
        return log.tree.status
