"""What holds at every adapter, over the four wires of `tests.dialects`: the real client, HTTP, the whole of helix."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import anyio
import pytest

import helix
from helix import Agent, Executor, Image, Session, tool
from helix.messages import AssistantMessage
from helix.testing import check_stream
from tests.dialects import DIALECTS, Called, Dialect
from tests.replay import Answer, ReplayServer

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG\r\n"
CAT = Image(data=PNG, media_type="image/png")
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


# --- the same bytes again


OPENINGS = {"openai_responses": b'"input":[', "google": b'"contents":['}
"""What stands before the conversation in a request, if not `"messages":[`."""


def taken_apart(dialect: Dialect, body: bytes) -> tuple[bytes, bytes]:
    """A request's conversation, without the bracket that closes it; and all the rest of the request."""
    opening = OPENINGS.get(dialect.name, b'"messages":[')
    at = body.index(opening) + len(opening)
    end = next(end for end in ends_of(body, b"]", at) if is_list(body[at - 1 : end + 1]))
    return body[at:end], body[:at] + body[end:]


def ends_of(body: bytes, byte: bytes, at: int) -> Iterator[int]:
    while (at := body.find(byte, at)) >= 0:
        yield at
        at += 1


def is_list(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False


async def test_what_was_sent_is_sent_again_byte_by_byte(dialect: Dialect) -> None:
    """Images, thoughts, parallel calls, failures, a reply that is tried again, steering, the next turn of a session."""
    calls = [
        Called("a", "look", '{"place": "hé"}'),
        Called("b", "look", '{"plaice": 1}'),
        Called("c", "unknown", "{}"),
    ]
    first = dialect.thought("Hm.") + dialect.text("I look.") + dialect.calls(calls, 1)
    bodies = [
        dialect.start + first + dialect.end(calls=True),
        dialect.start + dialect.text("half"),  # breaks off, and is asked for again
        dialect.called(Called("d", "steer", "{}"), first=1),
        dialect.said("Fine."),
        dialect.called(Called("e", "look", json.dumps({"place": '\\ " ]}'})), first=1),
        dialect.said("Fine again."),
    ]

    @tool
    async def steer() -> str:
        await session.handle.send(["Hurry:", CAT])
        await session.handle.send("please")
        return "]}, steered"

    options: Any = {"instructions": "Look.", "settings": helix.ModelSettings(retry_delay=0)}
    async with serving(*bodies) as server, Executor() as executor:
        agent = Agent("watcher", model=dialect.model(server.url), tools=[look, steer], **options)
        session = Session(agent, executor)
        one = await session.send(["What is this?", CAT])
        two = await session.send("And now?")
    assert (one.status, two.status) == ("completed", "completed")
    sent = [taken_apart(dialect, received.body) for received in server.requests]
    assert len(sent) == 6
    assert sent[1] == sent[2]  # tried again
    for (earlier, around), (later, around_later) in pairwise(sent):
        assert around == around_later  # the instructions, the tools, the settings, the cache hints
        if dialect.name == "anthropic":  # what users and tools say in a row is one message, which may go on
            earlier = earlier.removesuffix(b"]}")
        assert later.startswith(earlier)
    assert [messages.count(b64encode(PNG)) for messages, _ in sent] == [1, 1, 1, 2, 2, 2]
