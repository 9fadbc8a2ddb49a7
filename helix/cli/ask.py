"""Asking the person at the terminal what a run wants to know: approvals, and the results of tools that run on a client.

Floor 7: given to a run as its `on_approval`. One question at a time, in the order in which they come; the live tree is
taken away meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias, cast

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint
from pydantic_core import from_json, to_json

from helix.chunks import ApprovalRequest
from helix.cli.console import Console, printable
from helix.commands import Answer, Approve, ClientResult, Deny
from helix.live import OnApproval

Ready: TypeAlias = Callable[[], Awaitable[object]]
Paused: TypeAlias = Callable[[], AbstractContextManager[object]]
NOBODY = "there is nobody to ask: helix run asks at a terminal"


async def deny_all(request: ApprovalRequest) -> Deny:
    """Answers for nobody."""
    return Deny(NOBODY)


def asker(err: Console, paused: Paused = nullcontext) -> OnApproval:
    """Who answers for a run at this terminal: the person, if one can be asked; else all is denied."""
    can_ask = sys.stdin is not None and sys.stdin.isatty() and err.is_terminal
    return Asker(err, typed_line, until_typed, paused) if can_ask else deny_all


class Asker:
    """Asks in plain lines, and reads the answers.

    Args:
        err: where the question goes.
        read: gives one line that was typed, without its end; raises `EOFError` when there are none any more. It is
            called in a thread.
        ready: returns when `read` will not block: somebody else may answer while the person thinks.
        paused: nothing else is drawn on the terminal in it.
    """

    def __init__(
        self, err: Console, read: Callable[[], str], ready: Ready = checkpoint, paused: Paused = nullcontext
    ) -> None:
        self._err = err
        self._read = read
        self._ready = ready
        self._paused = paused
        self._turn = anyio.Lock()

    async def __call__(self, request: ApprovalRequest) -> Answer:
        """One request's answer. Nothing more to read is a denial."""
        async with self._turn:
            return await self._asked(request)

    async def _asked(self, request: ApprovalRequest) -> Answer:
        with self._paused():
            self._err.line(_question(request))
            try:
                return await (self._approval(request) if request.kind == "approval" else self._result())
            except EOFError:
                return Deny("nobody answered at the terminal")

    async def _approval(self, request: ApprovalRequest) -> Answer:
        while True:
            typed = await self._line("[y]es, [n]o, [e]dit: ")
            word, _, reason = typed.partition(" ")
            match word.lower():
                case "y" | "yes":
                    return Approve()
                case "n" | "no":
                    return Deny(reason.strip() or await self._line("why (may be empty): "))
                case "e" | "edit":
                    return Approve(await self._json("arguments as JSON: ", objects=True))
                case _:
                    self._err.line("answer with y, n (and a reason) or e")

    async def _result(self) -> Answer:
        typed = await self._line("[r]esult, [n]o: ")
        while typed.lower() not in ("r", "result", "n", "no"):
            typed = await self._line("answer with r or n: ")
        if typed.lower().startswith("n"):
            return Deny(await self._line("why (may be empty): "))
        return ClientResult(await self._json("result as JSON: ", objects=False))

    async def _json(self, prompt: str, *, objects: bool) -> Any:
        while True:
            try:
                value = from_json(await self._line(prompt), allow_inf_nan=False)
            except ValueError as error:
                self._err.line(f"that is not JSON: {error}")
                continue
            if isinstance(value, dict) or not objects:
                return cast(Any, value)
            self._err.line("an object is wanted, such as {}")

    async def _line(self, prompt: str) -> str:
        self._err.text(prompt)
        await self._ready()
        return (await anyio.to_thread.run_sync(self._read, abandon_on_cancel=True)).strip()


def _question(request: ApprovalRequest) -> str:
    wants = "wants to call" if request.kind == "approval" else "waits for the result of"
    reason = f"\n  {request.reason}" if request.reason else ""
    arguments = to_json(request.arguments).decode()
    return f"\n{request.agent_type} {wants} {request.tool_name}{reason}\n  {printable(arguments)}"


def typed_line() -> str:
    """The next line of standard input."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


async def until_typed() -> None:
    """Returns when a line was typed at the terminal; no thread is left behind when it is cancelled."""
    if sys.platform != "win32":  # where only sockets can be waited for
        await anyio.wait_readable(sys.stdin)
