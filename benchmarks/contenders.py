"""Who is compared: each opens its clients once, and then gives a function that makes one run and counts its deltas."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol
from unittest.mock import patch

import httpx2
import openai

from benchmarks import loops
from helix import Agent, Executor, Limits
from helix.chunks import TextDelta
from helix.model import Model
from helix.models._aiohttp import AiohttpLine
from helix.models._lines import HttpxLine, Line
from helix.models.openai_chat import OpenAIChatModel
from helix.testing import Call, FunctionModel, Turn


class Run(Protocol):
    """Makes one run and counts its deltas; `seen` is called at the first one."""

    def __call__(self, seen: Callable[[], object] | None = None) -> Awaitable[int]: ...


Contender = Callable[[str], AbstractAsyncContextManager[Run]]
"""From the server's URL, path included, to runs."""

MAX_CONNECTIONS = 2000


def by_hand(reads: Callable[[], AbstractAsyncContextManager[loops.Read]], rounds: int = 0) -> Contender:
    """The hand-written loop over a transport."""

    @asynccontextmanager
    async def contender(base_url: str) -> AsyncGenerator[Run]:
        async with reads() as read:

            async def run(seen: Callable[[], object] | None = None) -> int:
                texts: list[str] = []
                await loops.by_hand(read, base_url, _keeping(texts, seen), rounds)
                return len(texts)

            yield run

    return contender


def _keeping(texts: list[str], seen: Callable[[], object] | None) -> Callable[[str], None]:
    """Keeps the texts, and calls `seen` at the first."""
    if seen is None:
        return texts.append

    def keep(text: str) -> None:
        if not texts:
            seen()
        texts.append(text)

    return keep


@asynccontextmanager
async def bare_openai(base_url: str) -> AsyncGenerator[Run]:
    """The openai client as its documentation uses it."""
    async with openai.AsyncOpenAI(api_key="none", base_url=base_url, max_retries=0) as client:

        async def run(seen: Callable[[], object] | None = None) -> int:
            texts: list[str] = []
            await loops.bare_openai(client, _keeping(texts, seen))
            return len(texts)

        yield run


def helix_agent(transport: str, rounds: int = 0, depth: int = 0, fan: int = 0) -> Contender:
    """helix, its stream read by a consumer: `async for` over every chunk of the tree.

    Args:
        transport: `httpx2` or `aiohttp`.
        rounds: of tool calls before the answer.
        depth: how many levels of delegation lie above the agent that streams.
        fan: how many such agents stream side by side.
    """

    @asynccontextmanager
    async def contender(base_url: str) -> AsyncGenerator[Run]:
        with patch("helix.models._openai.new_line", LINES[transport]):
            model = OpenAIChatModel("mock", api_key="none", base_url=base_url)
            agent = _tree(model, rounds, depth, fan)
            async with model, Executor() as executor:

                async def run(seen: Callable[[], object] | None = None) -> int:
                    handle = await executor.execute(agent, "go", limits=UNLIMITED)
                    count = 0
                    async for chunk in handle.stream():
                        if type(chunk) is TextDelta:
                            count += 1
                            if seen is not None and count == 1:
                                seen()
                    await handle.result()
                    return count

                yield run

    return contender


UNLIMITED = Limits(steps=10_000, depth=100, fan_out=1000)


def _httpx2_line() -> Line:
    """What helix makes without the extra `fast`, for more connections than a server needs."""
    limits = httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS)
    return HttpxLine(openai.DefaultAsyncHttpxClient(limits=limits))


LINES: dict[str, Callable[[], Line]] = {"httpx2": _httpx2_line, "aiohttp": AiohttpLine}


def _tree(model: Model, rounds: int, depth: int, fan: int) -> Agent:
    """The agents: those that only delegate are scripted, the one at the bottom streams from the server."""
    agent: Agent = Agent("worker", model=model, tools=[loops.look] if rounds else [])
    if fan:
        calls = [Call("worker", input="go") for _ in range(fan)]
        script = FunctionModel(lambda request: "done" if len(request.messages) > 1 else Turn(calls=calls))
        return Agent("boss", model=script, sub_agents=[agent])
    for level in range(depth):
        agent = Agent(f"level{level}", model=_delegating(agent.name), sub_agents=[agent])
    return agent


def _delegating(name: str) -> Model:
    return FunctionModel(lambda request: "done" if len(request.messages) > 1 else Turn(calls=[Call(name, input="go")]))
