"""Processes that die where they are told to, for `test_survival`: one run, its side effects, and the ways to die.

`python -m tests.survivor` reads jobs, one JSON object a line, and forks a process for each. It says the process's id,
and then, once it has died, how: `0`, or minus the signal. Forking is what makes a hundred deaths take seconds.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio
from anyio.lowlevel import checkpoint

from helix import Agent, Approve, Executor, RunHandle, ToolContext, chunk_to_json, parse_chunk, tool
from helix import chunks as c
from helix.errors import AlreadyAnswered, StaleWriter
from helix.journal import Journal
from helix.log import RunLog
from helix.model import Emit, ModelReply, ModelRequest
from helix.store import Store, Write
from helix.stores import open_store
from helix.testing import Call, FunctionModel, Turn
from tests.around import Around

SECONDS = 120
"""Within which a process must have done its job; then it says where it hangs, and fails."""

Kind = Literal["", "store", "append", "seen", "point", "stop"]
Watch = Callable[[c.Chunk], Awaitable[None]]


@dataclass(frozen=True)
class Job:
    """What a process does, and where it dies.

    Attributes:
        url: the store.
        run_id: the run.
        directory: where its side effects are (`effects`), and what its reader has seen (`seen`).
        mode: `hold` and `suspend`: how it waits for approval; `interrupt`: it is interrupted, and resumed; `recover`:
            it goes on with what another one has left; `wait`: it approves nothing; `branches`: another run, of `chief`.
        kind: what it dies by: the n-th operation on the store, the n-th append to the log (kept or not), the n-th chunk
            that its reader sees, or a named point of the model or a tool. `stop`: it stops in mid-stream, with some of
            it kept, and once more when it has tried to write on.
        at: n, or the point's name.
        when: of an operation on the store.
        lease: seconds that the owner's lease is fresh; with 0 others may take over at once.
        mutation: what is broken in it on purpose.
    """

    url: str
    run_id: str
    directory: str
    mode: Literal["hold", "suspend", "interrupt", "recover", "wait", "branches"] = "hold"
    kind: Kind = ""
    at: int | str = 0
    when: Literal["before", "during", "after"] = "before"
    lease: float = 0.0
    mutation: str = ""

    def __str__(self) -> str:
        return f"{self.mode}: {self.when if self.kind == 'store' else ''} {self.kind} {self.at}"


def die() -> None:
    """Like a power cut, for this process."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Fate:
    """When a process dies."""

    job: Job
    counts: dict[str, int] = field(default_factory=dict[str, int])
    kept: anyio.Event = field(default_factory=anyio.Event)
    """Something was appended in the store, since the last `amid`."""
    amid: bool = False
    """The model is in mid-stream, and some of it is kept."""

    def next(self, kind: Kind) -> bool:
        """Counts one more of that kind; whether it is the last one."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return self.job.kind == kind and self.job.at == self.counts[kind]

    def is_at(self, name: str) -> bool:
        """Whether that is the named point to die at."""
        return self.job.kind == "point" and self.job.at == name

    def point(self, name: str) -> None:
        """Dies at a named point."""
        if self.is_at(name):
            die()

    def one_more(self, kind: Kind) -> None:
        """Dies at the n-th of that kind."""
        if self.next(kind):
            die()


class Doomed(Around):
    """A store that counts what is done to it, where leases are as the job says, and under which one dies or stops."""

    def __init__(self, inner: Store, fate: Fate) -> None:
        super().__init__(inner)
        self._fate = fate
        self._torn_apart = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        return partial(self._counted, method) if name in ("create", "claim", "take", "post") else method

    async def append(self, write: Write) -> None:
        """As `Store.append`."""
        if self._fate.is_at(BETWEEN):
            write = self._torn(write)
        stops = self._fate.amid
        if stops:
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            await self._counted(self._inner.append, replace(write, lease=self._fate.job.lease))
        except StaleWriter as stale:
            if self._fate.job.mutation == "no fence":
                record = await self._inner.get(write.run_id)
                await self._inner.append(Write(write.run_id, stale.epoch, record.last_sequence, write.chunks))
            raise
        finally:
            self._fate.kept.set()
            if self._torn_apart:
                die()
            if stops:
                os.kill(os.getpid(), signal.SIGSTOP)

    def _torn(self, write: Write) -> Write:
        """Only the chunks up to the first `step_end` that has a `tool_start` behind it."""
        types = [parse_chunk(line).type for line in write.chunks]
        if "step_end" not in types or "tool_start" not in types[types.index("step_end") :]:
            return write
        self._torn_apart = True
        return replace(write, chunks=write.chunks[: types.index("step_end") + 1])

    async def _counted(self, method: Callable[..., Awaitable[Any]], *given: Any, **options: Any) -> Any:
        if "lease" in options:
            options["lease"] = self._fate.job.lease
        when = self._fate.job.when if self._fate.next("store") else ""
        if when == "before":
            die()
        if when == "during":
            asyncio.get_running_loop().create_task(_die_soon())
        try:
            return await method(*given, **options)
        finally:  # the listener's look into the inbox may be cancelled
            if when == "after":
                die()


async def _die_soon() -> None:
    await checkpoint()
    die()


# --- the run


@dataclass
class World:
    """What tools act on: a file of side effects."""

    path: Path
    fate: Fate

    def effect(self, ctx: ToolContext[Any, World], name: str) -> None:
        """Has a side effect: a line, written at once."""
        self.fate.point(f"in {name} of {kind(ctx.agent_id)}")
        append_line(self.path, f"{name} {ctx.agent_id} {ctx.tool_call_id}".encode())
        self.fate.point(f"behind {name} of {kind(ctx.agent_id)}")


def append_line(path: Path, line: bytes) -> None:
    """Adds a line that outlives this process."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line + b"\n")
    os.close(file)


def kind(agent_id: str) -> str:
    """The last part of an agent's id, without its number; the root's is `boss`, or `chief` if its id begins so."""
    if "." in agent_id:
        return agent_id.rpartition(".")[2].partition("-")[0]
    return "chief" if agent_id.startswith("chief") else "boss"


@tool(replay="safe")
async def look(ctx: ToolContext[Any, World], place: str) -> str:
    """Looks; may be done twice."""
    ctx.deps.effect(ctx, "look")
    await checkpoint()
    ctx.write(f"looking at {place}")
    return f"nothing in {place}"


@tool
async def note(ctx: ToolContext[Any, World], text: str) -> str:
    """Must not be done twice."""
    ctx.deps.effect(ctx, "note")
    await checkpoint()
    return f"noted {text}"


@tool(requires_approval=True)
async def pay(ctx: ToolContext[Any, World], amount: int) -> str:
    """Must not be done twice, nor without being asked."""
    ctx.deps.effect(ctx, "pay")
    return f"paid {amount}"


TURNS: dict[tuple[str, int], Turn] = {
    ("boss", 1): Turn(
        text=["I ", "look, ", "I ", "note."],
        calls=[Call("look", id="b1", place="a"), Call("note", id="b2", text="x"), Call("team", id="b3", input="go")],
    ),
    ("boss", 2): Turn(text=["Now ", "I pay."], calls=[Call("pay", id="b4", amount=3)]),
    ("boss", 3): Turn(text=["All ", "done."]),
    ("team", 1): Turn(calls=[Call("lead", id="t1", input="go")]),
    ("team", 2): Turn(text="Team done."),
    ("lead", 1): Turn(calls=[Call("worker", id="l1", input="go")]),
    ("lead", 2): Turn(text="Lead done."),
    ("worker", 1): Turn(
        thinking=["Hm, ", "deep."], calls=[Call("note", id="w1", text="y"), Call("look", id="w2", place="b")]
    ),
    ("worker", 2): Turn(text=["Worker ", "done."]),
    ("chief", 1): Turn(calls=[Call(name, id=f"c-{name}", input="go") for name in ("left", "right", "middle")]),
    ("chief", 2): Turn(text=["All ", "done."]),
    ("left", 1): Turn(calls=[Call("note", id="n1", text="left")]),
    ("left", 2): Turn(text="Left done."),
    ("right", 1): Turn(calls=[Call("note", id="n2", text="right"), Call("look", id="n3", place="there")]),
    ("right", 2): Turn(text="Right done."),
    ("middle", 1): Turn(calls=[Call("till", id="m1", input="go")]),
    ("middle", 2): Turn(text="Middle done."),
    ("till", 1): Turn(calls=[Call("pay", id="p1", amount=1)]),
    ("till", 2): Turn(text="Till done."),
}


class Mortal:
    """A model that says the same in each process, and in which one may die."""

    name = "mortal"

    def __init__(self, fate: Fate) -> None:
        self._fate = fate
        self._inner = FunctionModel(lambda request: TURNS[kind(request.agent_id), request.step])

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        """Plays the turn of that step."""
        where = f"step {request.step} of {kind(request.agent_id)}"
        self._fate.point(f"before {where}")
        if where == "step 1 of boss" and (self._fate.job.kind == "stop" or self._fate.is_at(AMID)):
            await self._half(emit)
        reply = await self._inner.respond(request, emit)
        self._fate.point(f"behind {where}")
        return reply

    async def _half(self, emit: Emit) -> None:
        """Some of the words are kept; some are on their way when the process stops, and stops again."""
        self._fate.kept = anyio.Event()
        emit.text("Half ")
        await self._fate.kept.wait()
        self._fate.point(AMID)
        self._fate.amid, self._fate.kept = True, anyio.Event()
        emit.text("a ")
        await self._fate.kept.wait()
        self._fate.amid = False


AMID = "amid step 1 of boss"
"""In mid-stream, with some of it kept."""
BETWEEN = "between step_end and tool_start"
"""The `step_end` of a step with calls is kept, and nothing behind it."""
WAITING = "waiting"
"""A request was seen, and is not answered."""
PARKING = "parking"
"""A `run_pause` was appended, and is not kept."""
POINTS = [
    *(AMID, BETWEEN, WAITING, PARKING),
    *(f"{side} {name} of boss" for name in ("look", "note", "pay") for side in ("in", "behind")),
    *(f"{side} {name} of worker" for name in ("look", "note") for side in ("in", "behind")),
    *(f"{side} step {step} of {agent}" for agent, step in list(TURNS)[:9] for side in ("before", "behind")),
]
"""All named points."""


def boss(fate: Fate) -> Agent[Any, Any, Any]:
    """The root: two tools, a child that has a child that has a child, and a payment that somebody has to approve."""
    worker = Agent("worker", tools=[note, look])
    lead = Agent("lead", sub_agents=[worker])
    team = Agent("team", sub_agents=[lead])
    return Agent("boss", model=Mortal(fate), tools=[look, note, pay], sub_agents=[team])


def chief(fate: Fate) -> Agent[Any, Any, Any]:
    """The root of three branches, of which one has to ask, two levels down."""
    middle = Agent("middle", sub_agents=[Agent("till", tools=[pay])])
    sides = [Agent("left", tools=[note]), Agent("right", tools=[note, look])]
    return Agent("chief", model=Mortal(fate), sub_agents=[*sides, middle])


async def finish(executor: Executor, run_id: str, watch: Watch, *, at_once: bool = True) -> RunHandle[Any, Any]:
    """Brings a run to its end as a person would who watches it: approves what is asked, resumes what is parked."""
    handle, position = await executor.get_handle(run_id), 0
    while True:
        async for chunk in handle.stream(position):
            position = chunk.sequence
            await watch(chunk)
            if isinstance(chunk, c.ApprovalRequest) and at_once:
                await approve(handle, chunk.approval_id)
        if handle.tree.ended:
            return handle
        for request in handle.tree.pending:
            await approve(handle, request.approval_id)
        await executor.resume(run_id)


async def approve(handle: RunHandle[Any, Any], approval_id: str) -> None:
    """Says yes, if nobody has."""
    try:
        await handle.respond(approval_id, Approve(), by="a person")
    except AlreadyAnswered:
        pass


# --- the process


async def live(job: Job) -> None:
    """Does the job, until death."""
    fate, directory = Fate(job), Path(job.directory)
    _mutate(job.mutation)
    _count_appends(fate)
    store: Any = Doomed(open_store(job.url), fate)
    world = World(directory / "effects", fate)
    agent = chief(fate) if job.mode == "branches" else boss(fate)
    async with Executor(store=store, agents=[agent], deps=world) as executor:
        if job.mode == "recover":
            await executor.recover()
        else:
            wait: Any = "suspend" if job.mode == "suspend" else "hold"
            await executor.execute(agent, "go", run_id=job.run_id, wait=wait)
        if job.mode == "wait":
            await (await executor.get_handle(job.run_id)).result()
        else:
            at_once = job.mode not in ("suspend", "branches")
            await finish(executor, job.run_id, partial(_watch, job, fate, executor), at_once=at_once)
    append_line(directory / "counts", json.dumps(fate.counts).encode())


async def _watch(job: Job, fate: Fate, executor: Executor, chunk: c.Chunk) -> None:
    if job.mode != "recover":
        append_line(Path(job.directory) / "seen", chunk_to_json(chunk))
    fate.one_more("seen")
    if isinstance(chunk, c.ApprovalRequest):
        fate.point(WAITING)
    handle = await executor.get_handle(job.run_id)
    if job.mode == "interrupt" and isinstance(chunk, c.ToolStart) and chunk.agent_type == "worker":
        await handle.interrupt()
    asked_or_done = isinstance(chunk, c.ApprovalRequest) or (
        isinstance(chunk, c.RunEnd) and chunk.agent_type in ("left", "right")
    )
    if job.mode == "branches" and asked_or_done:
        fate.counts["branches"] = fate.counts.get("branches", 0) + 1
        if fate.counts["branches"] == 3:
            die()


def _count_appends(fate: Fate) -> None:
    append = RunLog.append

    def counted(self: RunLog, *chunks: c.Chunk) -> None:
        append(self, *chunks)
        fate.one_more("append")
        if isinstance(chunks[-1], c.RunPause):
            fate.point(PARKING)

    RunLog.append = counted


def _mutate(name: str) -> None:
    if name == "no barrier":

        async def barrier(self: Journal) -> None:
            del self

        Journal.barrier = barrier


def _fork(job: Job) -> int:
    process_id = os.fork()
    if process_id:
        return process_id
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        anyio.run(live, job)
    except BaseException as error:
        sys.stderr.write(f"{job}: {error!r}\n")
        sys.excepthook(type(error), error, error.__traceback__)
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Forks a process for each job; says its id, then each time that it stops, then how it has ended."""
    for line in sys.stdin:
        process_id = _fork(Job(**json.loads(line)))
        print(process_id, flush=True)
        while os.WIFSTOPPED(status := os.waitpid(process_id, os.WUNTRACED)[1]):
            print("stopped", flush=True)
        print(os.waitstatus_to_exitcode(status), flush=True)


def job_to_json(job: Job) -> str:
    """One line for `main`."""
    return json.dumps(asdict(job))


if __name__ == "__main__":
    main()
