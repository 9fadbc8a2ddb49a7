"""What holds at every adapter, over the four wires of `tests.dialects`: the real client, HTTP, the whole of helix."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import helix
from helix import Agent, tool
from helix.messages import AssistantMessage
from helix.testing import check_stream
from tests.dialects import DIALECTS, Called, Dialect
from tests.replay import Answer, ReplayServer

pytestmark = pytest.mark.anyio

GLOBE = "\ud83c\udf0d"  # one character in the two halves that JSON writes
BOTH = GLOBE.encode("utf-16", "surrogatepass").decode("utf-16")
HIGH, LOW = GLOBE
LOST = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(params=DIALECTS, ids=lambda dialect: dialect.name)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return request.param


@asynccontextmanager
async def serving(*bodies: bytes) -> AsyncGenerator[ReplayServer]:
    with anyio.fail_after(60), ReplayServer([Answer(body=body) for body in bodies]) as server:
        yield server


@tool
def look(place: str) -> str:
    """Look at a place."""
    return f"{place} is fine"


# --- characters that a server cuts in two


async def said(dialect: Dialect, body: bytes, *more: bytes) -> list[Any]:
    """The parts of the first reply. Its deltas add up to them."""
    async with serving(body, *more) as server, helix.stream(watcher(dialect, server), "go") as run:
        chunks = await helix.collect(run)
        result = await run.result()
    check_stream(chunks)
    assert result.status == "completed"
    reply = result.messages[1]
    assert isinstance(reply, AssistantMessage)
    return [getattr(part, "text", None) or getattr(part, "arguments", None) for part in reply.content]


def watcher(dialect: Dialect, server: ReplayServer, **options: Any) -> Agent:
    return Agent("watcher", model=dialect.model(server.url), tools=[look], **options)


async def test_halves_of_a_character_are_joined_in_words_thoughts_and_arguments(dialect: Dialect) -> None:
    arguments = f'{{"place": "c{GLOBE}d"}}'
    call = Called("t", "look", arguments, cut=arguments.index(LOW) if dialect.has_indexes else None)
    body = dialect.start
    for pieces in (("ab", f"c{HIGH}", f"{LOW}d", "e"), (HIGH, LOW)):
        body += b"".join(map(dialect.thought, pieces))
    body += b"".join(map(dialect.text, ("so ", f"ab{HIGH}", f"{LOW}c", HIGH, LOW, "!")))
    body += dialect.calls([call], first=1) + dialect.end(calls=True)
    parts = await said(dialect, body, dialect.said("done"))
    assert parts == [f"abc{BOTH}de{BOTH}", f"so ab{BOTH}c{BOTH}!", {"place": f"c{BOTH}d"}]


async def test_a_half_whose_rest_never_comes_is_replaced_where_it_stands(dialect: Dialect) -> None:
    body = dialect.start + dialect.thought(f"a{HIGH}") + dialect.text(f"b{HIGH}") + dialect.text("c")
    body += dialect.text(f"{LOW}d{HIGH}") + dialect.text(f"{HIGH}{LOW}") + dialect.text(HIGH) + dialect.end()
    assert await said(dialect, body) == [f"a{LOST}", f"b{LOST}c{LOST}d{LOST}{BOTH}{LOST}"]


async def test_half_a_character_alone_is_replaced_too(dialect: Dialect) -> None:
    assert await said(dialect, dialect.start + dialect.text(HIGH) + dialect.end()) == [LOST]
    assert await said(dialect, dialect.start + dialect.thought(HIGH) + dialect.text(LOW) + dialect.end()) == [
        LOST,
        LOST,
    ]
