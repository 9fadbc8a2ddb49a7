"""Random trees of agents, driven at random: the fuzzer behind `test_fuzz.py`.

A run is made from a seed: agents, tools, limits and what their models say. A driver cancels, interrupts or resumes it
somewhere. Afterwards the log must hold the grammar, and folding it must give the live tree.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.lowlevel import checkpoint
from pydantic import BaseModel

import helix
from helix import (
    Agent,
    AgentEnded,
    AlreadyAnswered,
    Approve,
    ClientResult,
    Deny,
    Executor,
    InvalidAnswer,
    Limits,
    ModelRetry,
    ModelSettings,
    ToolContext,
    chunk_to_json,
    parse_chunk,
    tool,
)
from helix.chunks import ApprovalRequest
from helix.errors import LimitReached
from helix.fold import RunTree, fold
from helix.log import RunLog
from helix.model import Model, ModelRequest
from helix.testing import Call, FunctionModel, Turn, check_stream


class Notes(BaseModel):
    count: int = 0
    items: list[str] = []
    by_name: dict[str, int] = {}


class Report(BaseModel):
    title: str
    points: list[int] = []


@dataclass
class World:
    """What tools of a run see: the chance, and what they did."""

    seed: int
    bodies: dict[tuple[str, str], int] = field(default_factory=dict)
    """How often the body of an unsafe tool ran, by (agent id, call id)."""

    def chance(self, *key: object) -> random.Random:
        return random.Random(f"{self.seed}:{key}")

    def note(self, ctx: ToolContext[Any, Any]) -> None:
        key = (ctx.agent_id, ctx.tool_call_id)
        self.bodies[key] = self.bodies.get(key, 0) + 1


async def turns(chance: random.Random, most: int = 6) -> None:
    for _ in range(chance.randint(0, most)):
        await checkpoint()


@tool
async def look(ctx: ToolContext[Notes, World], what: str = "x") -> list[str]:
    ctx.deps.note(ctx)
    await turns(ctx.deps.chance(ctx.agent_id, ctx.tool_call_id))
    ctx.emit("looked", {"what": what})
    ctx.write("looking\n")
    return [what]


@tool
async def note(ctx: ToolContext[Notes, World], text: str = "n") -> str:
    ctx.deps.note(ctx)
    chance = ctx.deps.chance(ctx.agent_id, ctx.tool_call_id)
    with ctx.update_state() as draft:
        draft.count += 1
        draft.items.append(text)
        await turns(chance)
        draft.by_name[text] = chance.randint(0, 9)
        if draft.items and chance.random() < 0.3:
            draft.items.pop(0)
    return "noted"


@tool(retries=2)
async def break_down(ctx: ToolContext[Notes, World], how: int = 0) -> str:
    ctx.deps.note(ctx)
    await turns(ctx.deps.chance(ctx.agent_id, ctx.tool_call_id))
    if how % 3 == 0:
        raise RuntimeError("broken")
    if how % 3 == 1:
        raise ModelRetry("say it another way")
    with ctx.update_state() as draft:
        draft.count = 7
        raise ValueError("in a draft")


@tool(timeout=0.001)
async def hang(ctx: ToolContext[Notes, World]) -> str:
    ctx.deps.note(ctx)
    await anyio.sleep_forever()
    return ""


@tool
def in_thread(ctx: ToolContext[Notes, World], n: int = 1) -> int:
    ctx.deps.note(ctx)
    for i in range(n % 4):
        ctx.emit("beat", i)
    return n


@tool
async def stream_out(ctx: ToolContext[Notes, World]) -> Any:
    for piece in ("a", "b", "c"):
        await checkpoint()
        yield piece


@tool(sequential=True, replay="safe")
async def again(ctx: ToolContext[Notes, World]) -> str:
    await turns(ctx.deps.chance(ctx.agent_id, ctx.tool_call_id))
    return f"attempt {ctx.attempt}"


def often(ctx: ToolContext[Notes, World], arguments: dict[str, Any]) -> bool | str:
    return ctx.deps.chance(ctx.agent_id, ctx.tool_call_id).choice([True, True, False, "it is late"])


@tool(requires_approval=often)
async def ask_first(ctx: ToolContext[Notes, World], n: int = 1) -> int:
    ctx.deps.note(ctx)
    await turns(ctx.deps.chance(ctx.agent_id, ctx.tool_call_id))
    return n


@tool(requires_approval=True, approval_timeout=0.002)
async def ask_briefly(ctx: ToolContext[Notes, World]) -> str:
    ctx.deps.note(ctx)
    return "so soon"


@tool(runs_on="client")
async def on_client(n: int = 1) -> int:
    raise AssertionError("this runs on the client")


def orchestrate(helper: Agent[Any, Any, Any], safe: bool) -> Any:
    async def body(ctx: ToolContext[Notes, World], n: int = 1) -> list[str]:
        if not safe:
            ctx.deps.note(ctx)
        found: list[str] = []

        async def one(index: int) -> None:
            try:
                found.append((await ctx.run_agent(helper, f"part {index}")).status)
            except LimitReached as error:
                found.append(error.code)

        async with anyio.create_task_group() as tasks:
            for index in range(n % 3 + 1):
                tasks.start_soon(one, index)
        if n % 2:
            try:
                async with ctx.stream_agent(helper, "watched") as child:
                    async for _ in child:
                        break
            except LimitReached:
                pass
        return sorted(found)

    return tool(name="spread_safely" if safe else "spread", replay="safe" if safe else "never")(body)


def make_tree(seed: int) -> Agent[Any, Any, Any]:
    chance = random.Random(seed)

    def make(name: str, level: int) -> Agent[Any, Any, Any]:
        children = []
        if level < 3:
            for index in range(chance.randint(0, 2)):
                child = make(f"{name}{'abc'[index]}", level + 1)
                shared = chance.random() < 0.25
                children.append(
                    child.as_tool(
                        share_state=shared,
                        limits=Limits(requests=chance.randint(1, 6)) if chance.random() < 0.15 else None,
                        timeout=0.002 if chance.random() < 0.05 else None,
                        requires_approval=chance.random() < 0.1,
                    )
                )
        helper = Agent(
            f"{name}h", tools=[ask_first], state_type=Notes, deps_type=World, settings=ModelSettings(retry_delay=0.0001)
        )
        tools = [look, note, break_down, in_thread, stream_out, again, orchestrate(helper, False)]
        tools += [ask_first, on_client] + ([ask_briefly] if chance.random() < 0.3 else [])
        tools += [orchestrate(helper, True)] + ([hang] if chance.random() < 0.3 else [])
        return Agent(
            name,
            output_type=Report if chance.random() < 0.3 else str,
            state_type=Notes,
            deps_type=World,
            tools=tools,
            sub_agents=children,
            settings=ModelSettings(max_retries=2, retry_delay=0.0001),
            limits=_limits(chance) if chance.random() < 0.3 else None,
        )

    return make("r", 0)


def _limits(chance: random.Random) -> Limits:
    return chance.choice(
        [
            Limits(steps=chance.randint(1, 4)),
            Limits(depth=chance.randint(0, 3)),
            Limits(fan_out=chance.randint(1, 3)),
            Limits(concurrency=chance.randint(1, 2)),
            Limits(requests=chance.randint(1, 12)),
            Limits(total_tokens=chance.randint(10, 300)),
        ]
    )


def make_model(seed: int, root: Agent[Any, Any, Any]) -> FunctionModel:
    """Says things at random; the same for the same agent, step and attempt."""
    by_name = {agent.name: agent for agent in [root, *root.descendants()]}

    async def answer(request: ModelRequest) -> Turn:
        chance = random.Random(f"{seed}:{request.agent_id.partition('.')[2]}:{request.step}:{request.attempt}")
        await turns(chance)
        said: Any = {
            "thinking": chance.choice(["", ["hm", " so"]]),
            "text": chance.choice(["", "words", ["some", " more", " words"]]),
        }
        if chance.random() < 0.12:
            kind: Any = chance.choice(["model_unavailable", "model_rate_limited", "drop", "model_rejected"])
            return Turn(**said, drop=True) if kind == "drop" else Turn(**said, fail=kind)
        agent = by_name.get(request.agent_type)
        if agent is None and request.step == 1 and chance.random() < 0.3:  # a helper, below a body
            return Turn(**said, calls=[Call("ask_first", n=3)])
        if agent is None or request.step >= 4 or chance.random() < 0.3:
            return _final(request, chance, said)
        names = [item.name for item in request.tools] + ["unknown_tool"]
        calls = [_call(chance, chance.choice(names)) for _ in range(chance.randint(1, 4))]
        if request.output is not None and chance.random() < 0.2:
            calls.append(Call(request.output.name, title="early", points=[1]))
        return Turn(**said, calls=calls)

    return FunctionModel(answer)


def _final(request: ModelRequest, chance: random.Random, said: dict[str, Any]) -> Turn:
    if request.output is None:
        return Turn(**said)
    good: Any = {"title": "t", "points": [1, 2]}
    return chance.choice(
        [
            Turn(thinking=said["thinking"], output=good),
            Turn(**said, calls=[Call(request.output.name, **good)]),
            Turn(thinking=said["thinking"], output={"title": 5}),
            Turn(**said, calls=[Call(request.output.name, raw='{"title"')]),
            Turn(refusal="I would rather not."),
        ]
    )


def _call(chance: random.Random, name: str) -> Call:
    if chance.random() < 0.08:
        return Call(name, raw='{"half', id=None)
    arguments: dict[str, Any] = {
        "look": {"what": "y"},
        "note": {"text": chance.choice("abc")},
        "break_down": {"how": chance.randint(0, 5)},
        "in_thread": {"n": chance.randint(0, 5)},
        "ask_first": {"n": chance.randint(0, 5)},
        "spread": {"n": chance.randint(0, 5)},
        "spread_safely": {"n": chance.randint(0, 5)},
    }.get(name, {"input": "go"} if name.startswith("r") else {})
    return Call(name, id=chance.choice([None, None, "same"]), **arguments)


@dataclass
class Outcome:
    log: RunLog
    world: World
    root: Agent[Any, Any, Any]


async def drive(seed: int, watch: bool = False, over: Callable[[Model], Model] = lambda model: model) -> Outcome:
    """Makes the run of a seed, disturbs it, resumes it until it has ended, and checks everything about its log.

    `over` may put something between the tree and its model.
    """
    root, world = make_tree(seed), World(seed)
    model = over(make_model(seed, root))
    chance = random.Random(-seed)
    async with Executor(deps=world) as executor:
        handle = await executor.execute(
            root,
            "go",
            model=model,
            limits=_limits(chance) if chance.random() < 0.1 else None,
            wait=chance.choice(["hold", "suspend"]),
            on_approval=some_answer(seed) if chance.random() < 0.2 else None,
        )
        log = handle._log
        if watch:
            watch_fold(log)
        readers: list[list[helix.Chunk]] = []
        async with anyio.create_task_group() as tasks:

            async def read(offset: int) -> None:
                chunks: list[helix.Chunk] = []
                readers.append(chunks)
                async for chunk in handle.stream(offset, follow=True):
                    chunks.append(chunk)

            tasks.start_soon(read, 0)
            tasks.start_soon(read, chance.randint(0, 20))
            tasks.start_soon(answer_all, handle, random.Random(f"{seed}:answers"))
            await disturb(executor, handle, log, chance, model)
    chunks = log.chunks
    assert log.tree.ended
    check(log)
    for seen in readers:
        assert not seen or seen == chunks[seen[0].sequence - 1 :]
    assert all(count == 1 for count in world.bodies.values())
    return Outcome(log, world, root)


async def disturb(executor: Executor, handle: Any, log: RunLog, chance: random.Random, model: Model) -> None:
    for _ in range(6):
        await some_chunks(handle, log, chance.randint(0, 60) if chance.random() < 0.8 else 0)
        what = chance.choice(["nothing", "cancel", "branch", "interrupt", "interrupt", "send", "send"])
        if what == "nothing":
            await handle.result()
        elif what == "cancel" and not log.tree.at_rest:
            await handle.cancel()
        elif what == "branch" and not log.tree.at_rest:
            await handle.cancel(chance.choice(list(log.tree.agents)))
        elif what == "interrupt":
            await handle.interrupt()
        elif what == "send":
            with suppress(AgentEnded):
                await handle.send("faster", to=chance.choice(list(log.tree.agents)))
        if log.tree.status in ("interrupted", "suspended"):
            check(log, finished=False)
            handle = await executor.resume(handle.run_id, chance.choice([None, "go on"]), model=model)
    await handle.result()
    while not log.tree.ended:
        handle = await executor.resume(handle.run_id, model=model)
        await handle.result()


async def answer_all(handle: Any, chance: random.Random) -> None:
    """Answers whatever is asked, at random moments, in a random way; sometimes not as one may, sometimes twice."""
    async with anyio.create_task_group() as tasks:
        async for chunk in handle.stream(follow=True):
            if isinstance(chunk, ApprovalRequest):
                tasks.start_soon(_answer_one, handle, chunk, random.Random(f"{chance.random()}"))


async def _answer_one(handle: Any, request: ApprovalRequest, chance: random.Random) -> None:
    await turns(chance, 40)
    answers: list[Any] = [Approve(), Approve({"n": 7}), Approve({"n": "x"}), Deny("no"), ClientResult({"n": 1})]
    while request.approval_id in handle.tree.requests:
        with suppress(InvalidAnswer, AlreadyAnswered):  # its deadline may have passed
            await handle.respond(request.approval_id, chance.choice(answers))
        await checkpoint()
    try:
        await handle.respond(request.approval_id, Deny())
        raise AssertionError("answered twice")
    except AlreadyAnswered:
        pass


def some_answer(seed: int) -> Any:
    """An `on_approval` that says something at random, and the same when it is asked again."""

    async def answer(request: ApprovalRequest) -> Any:
        chance = random.Random(f"{seed}:{request.tool_call_id}")
        await turns(chance)
        if chance.random() < 0.1:
            raise RuntimeError("out of office")
        return ClientResult(chance.randint(0, 9)) if request.kind == "client_tool" else chance.random() < 0.7

    return answer


async def some_chunks(handle: Any, log: RunLog, number: int) -> None:
    """Returns after so many more chunks, or when the run rests."""
    if number:
        async for _ in handle.stream(log.tree.sequence):
            number -= 1
            if not number:
                return


def check(log: RunLog, finished: bool = True) -> None:
    check_stream(log.chunks, finished=finished)
    assert as_data(fold(log.chunks)) == as_data(log.tree)
    parsed: list[Any] = [parse_chunk(chunk_to_json(chunk)) for chunk in log.chunks]
    assert parsed == log.chunks
    assert as_data(fold(parsed)) == as_data(log.tree)


def watch_fold(log: RunLog) -> None:
    """From now on, every append is followed by the check that folding anew gives the live tree."""
    append = log.append

    def checked(*chunks: helix.Chunk) -> None:
        append(*chunks)
        assert as_data(fold(log.chunks)) == as_data(log.tree), log.chunks[-1]

    log.append = checked  # this one log is watched; all others are as they were


def as_data(tree: RunTree) -> Any:
    """A tree as comparable data; a node's parent is its id."""
    nodes = {}
    for agent_id, node in tree.agents.items():
        data = {name: getattr(node, name) for name in type(node).__slots__ if name != "parent"}
        data["parent"] = node.parent.agent_id if node.parent else None
        nodes[agent_id] = data
    return {name: getattr(tree, name) for name in RunTree.__slots__ if name != "agents"} | {"agents": nodes}
