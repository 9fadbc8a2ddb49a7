"""Every fault at every provider: its documented code, a legal log, no hang, nothing left open, and no key told.

`FAULTS` is the table. Each row is a whole agent run against a server that does exactly that to the first request, and
answers well to the next; so a fault that may pass ends in a completed run, and any other in a failed one.
"""

from __future__ import annotations

import gc
import gzip
import json
import logging
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from types import TracebackType
from typing import Any, Self, cast

import pytest

import helix
from helix import Agent, ModelError, ModelSettings, RunFailed, chunk_to_json, tool
from helix.model import Emit, Model, ModelReply, ModelRequest
from helix.models import _errors, _transport
from helix.testing import check_stream
from tests.dialects import DIALECTS, ECHO, KEY, SECRET, Azure, Called, Dialect, event
from tests.fault_server import (
    BACKENDS,
    LAST,
    Backend,
    Close,
    Drip,
    Hold,
    Move,
    Reset,
    Send,
    chunk,
    head,
    run_alone,
    serving,
    whole,
)

SHORT = 0.06
"""Seconds that a watchdog waits here."""
JSON, HTML = "application/json", "text/html; charset=utf-8"
PAGE = f"<!doctype html><html><body>{ECHO}</body></html>".encode()
BIG = "x" * 10_000_000
PASSWORD = "open-sesame"

# --- what the server does ----------------------------------------------------------------------------------------

Making = Callable[[Dialect], Sequence[Move]]


def status(number: int, **headers: str) -> Making:
    return lambda wire: whole(json.dumps(wire.refused(number)).encode(), number, JSON, **headers)


def body(made: Callable[[Dialect], bytes], content_type: str = "text/event-stream") -> Making:
    return lambda wire: whole(made(wire), content_type=content_type)


def cut(made: Callable[[Dialect], bytes], ending: Move) -> Making:
    """A body that breaks off after these bytes."""
    return lambda wire: [Send(head() + chunk(made(wire))), ending]


def begun(wire: Dialect) -> bytes:
    return wire.start + wire.text("Half an")


def inside(wire: Dialect) -> bytes:
    return begun(wire) + wire.text(" answer")[:-12]


def slow_head(wire: Dialect) -> Sequence[Move]:
    return [Drip(([head()[i : i + 1] for i in range(len(head()))]), SHORT / 4)]


def late_head(wire: Dialect) -> Sequence[Move]:
    return [Drip([head()], SHORT / 4), Send(chunk(wire.said("fine")) + LAST)]


def slow_bytes(wire: Dialect) -> Sequence[Move]:
    """Longer in all than the silence that is allowed."""
    said = begun(wire)
    pieces = [chunk(said[at : at + len(said) // 16]) for at in range(0, len(said), len(said) // 16)]
    return [Send(head()), Drip(pieces, SHORT / 8), Send(chunk(wire.end()) + LAST)]


def endless(wire: Dialect) -> Sequence[Move]:
    return [Send(head() + chunk(wire.start)), Drip(repeat(chunk(wire.text("and on "))), SHORT / 20)]


def endless_words(wire: Dialect) -> Sequence[Move]:
    return [Send(head(500, JSON)), Drip(repeat(chunk(b" " * 60_000)), 0)]


def stays_open(wire: Dialect) -> Sequence[Move]:
    return [Send(head() + chunk(wire.said("fine"))), Hold()]


def cut_gzip(wire: Dialect) -> Sequence[Move]:
    packed = gzip.compress(begun(wire) + b"".join(wire.text(f" {number}") for number in range(400)) + wire.end())
    return whole(packed[: len(packed) // 2], content_encoding="gzip")


def spoiled_gzip(wire: Dialect) -> Sequence[Move]:
    packed = bytearray(gzip.compress(begun(wire) + wire.end()))
    packed[12:40] = b"\xff" * 28
    return whole(bytes(packed), content_encoding="gzip")


LOOK, TWICE = Called("call_1", "look", '{"what": "here"}'), Called("call_1", "look", '{"what": "there"}')


# --- the table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A fault and what comes of it: an error's code, or a tool's, or none.

    Attributes:
        moves: what the server does to the first request.
        code: of the attempt's error; empty if there is none.
        passing: whether the same request is made again.
        tool: the code of the call's error.
        but: the adapters for which the code is another.
    """

    moves: Making
    code: str = ""
    passing: bool = True
    tool: str | None = None
    settings: ModelSettings = field(default_factory=ModelSettings)
    but: dict[str, str] = field(default_factory=dict[str, str])

    def code_of(self, wire: Dialect) -> str:
        return self.but.get(wire.name, self.code)


def watched(**seconds: float) -> ModelSettings:
    return ModelSettings(**cast(Any, seconds))


LIMITED, UNAVAILABLE, DROPPED = "model_rate_limited", "model_unavailable", "model_stream_dropped"
REJECTED = "model_rejected"

FAULTS: dict[str, Fault] = {
    # statuses
    "400": Fault(status(400), REJECTED, passing=False),
    "401": Fault(status(401), REJECTED, passing=False),
    "403": Fault(status(403), REJECTED, passing=False),
    "404": Fault(status(404), REJECTED, passing=False),
    "408": Fault(status(408), UNAVAILABLE),
    "409": Fault(status(409), UNAVAILABLE),
    "413": Fault(status(413), REJECTED, passing=False),
    "429": Fault(status(429), LIMITED),
    "429 with retry-after": Fault(status(429, retry_after="0.01"), LIMITED, settings=watched(retry_delay=60)),
    "500": Fault(status(500), UNAVAILABLE),
    "503": Fault(status(503), UNAVAILABLE),
    "503, a web page": Fault(lambda wire: whole(PAGE, 503, HTML), UNAVAILABLE),
    "500, its words never end": Fault(endless_words, UNAVAILABLE),
    "401, its words never come": Fault(lambda wire: [Send(head(401, JSON)), Hold()], REJECTED, passing=False),
    "302": Fault(lambda wire: whole(b"", 302, location="http://127.0.0.1:9/"), REJECTED, passing=False),
    # time
    "slow headers": Fault(slow_head, UNAVAILABLE, settings=watched(first_byte=SHORT)),
    "late headers": Fault(late_head, settings=watched(first_byte=SHORT * 10)),
    "slow bytes": Fault(slow_bytes, settings=watched(between_bytes=SHORT)),
    "slow bytes, for too long": Fault(slow_bytes, UNAVAILABLE, settings=watched(timeout=SHORT * 1.5)),
    "silence before the head": Fault(lambda wire: [Hold()], UNAVAILABLE, settings=watched(first_byte=SHORT)),
    "silence after the head": Fault(
        lambda wire: [Send(head()), Hold()], UNAVAILABLE, settings=watched(between_bytes=SHORT)
    ),
    "silence in mid-stream": Fault(cut(begun, Hold()), UNAVAILABLE, settings=watched(between_bytes=SHORT)),
    "silence inside an event": Fault(cut(inside, Hold()), UNAVAILABLE, settings=watched(between_bytes=SHORT)),
    "silence behind the end": Fault(
        stays_open, but={"google": UNAVAILABLE}, settings=watched(between_bytes=SHORT)
    ),  # Google says of no event that it is the last
    "a stream that never ends": Fault(endless, UNAVAILABLE, settings=watched(timeout=SHORT * 2)),
    # connections
    "no HTTP": Fault(lambda wire: [Send(f"220 {ECHO}\r\n\r\n".encode()), Close()], UNAVAILABLE),
    "closed before the head": Fault(lambda wire: [Close()], UNAVAILABLE),
    "reset before the head": Fault(lambda wire: [Reset()], UNAVAILABLE),
    "reset inside the head": Fault(lambda wire: [Send(head()[:30]), Reset()], UNAVAILABLE),
    "reset before the first byte": Fault(lambda wire: [Send(head()), Reset()], DROPPED),
    "reset after the first event": Fault(cut(begun, Reset()), DROPPED),
    "reset inside an event": Fault(cut(inside, Reset()), DROPPED),
    "closed after the first event": Fault(cut(begun, Close()), DROPPED),
    "ended after the first event": Fault(body(begun), DROPPED),
    "ended inside an event": Fault(body(inside), DROPPED),
    "nothing": Fault(body(lambda wire: b""), DROPPED),
    # bodies
    "truncated gzip": Fault(cut_gzip, DROPPED),
    "spoiled gzip": Fault(spoiled_gzip, DROPPED),
    "wrong content type": Fault(body(lambda wire: wire.said("fine"), JSON)),
    "a web page": Fault(body(lambda wire: PAGE, HTML), REJECTED, passing=False),
    "a web page that says it is a stream": Fault(body(lambda wire: PAGE), REJECTED, passing=False),
    "a reply in one piece": Fault(body(lambda wire: wire.in_one_piece, JSON), REJECTED, passing=False),
    "an error event": Fault(body(lambda wire: begun(wire) + wire.overloaded), UNAVAILABLE),
    "an error event of another shape": Fault(body(lambda wire: begun(wire) + wire.limited), LIMITED),
    "an error for a body": Fault(body(lambda wire: wire.rejected, JSON), REJECTED, passing=False),
    "an error without an event": Fault(body(lambda wire: begun(wire) + wire.rejected), DROPPED),
    "invalid JSON in an event": Fault(body(lambda wire: begun(wire) + f"data: {{{ECHO}\n\n".encode()), DROPPED),
    "an event that is no object": Fault(body(lambda wire: begun(wire) + event([ECHO])), DROPPED),
    "an event of 10 MB": Fault(body(lambda wire: wire.said(BIG))),
    # calls
    "invalid tool JSON": Fault(
        body(lambda wire: wire.called(Called("call_1", "look", '{"what": '))), tool="tool_invalid_arguments"
    ),
    "an unknown tool": Fault(body(lambda wire: wire.called(Called("call_1", "loook", "{}"))), tool="tool_unknown"),
    "duplicate call ids": Fault(body(lambda wire: wire.called(LOOK, TWICE))),
    "indexes that start at 1": Fault(body(lambda wire: wire.called(LOOK, first=1))),
}
CALLS = {"duplicate call ids": ["here", "there"], "indexes that start at 1": ["here"]}
"""The rows whose calls are run, and what with."""


# --- the runs ----------------------------------------------------------------------------------------------------


@tool
def look(what: str) -> str:
    return f"seen {what}"


class Watched:
    """A model that keeps the errors of another one."""

    def __init__(self, model: Model) -> None:
        self.model = cast(Any, model)
        self.errors: list[ModelError] = []

    @property
    def name(self) -> str:
        return self.model.name

    async def __aenter__(self) -> Self:
        await self.model.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.model.__aexit__(kind, error, trace)

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        try:
            return await self.model.respond(request, emit)
        except ModelError as error:
            self.errors.append(error)
            raise


@dataclass(frozen=True, repr=False)
class Seen:
    """What one run has shown, and all that it has told anybody."""

    chunks: list[helix.Chunk]
    result: helix.RunResult[Any, Any]
    requests: int
    told: str

    def errors(self) -> list[tuple[str, bool]]:
        return [
            (chunk.code, chunk.recoverable)
            for chunk in self.chunks
            if chunk.type == "error" and chunk.tool_call_id is None and chunk.code.startswith("model_")
        ]


async def play(wire: Dialect, answers: Sequence[Sequence[Move]], settings: ModelSettings) -> Seen:
    """One run. Its connections are closed when this returns, also for the server."""
    async with serving(answers) as server:
        model = Watched(wire.model(server.url))
        ours = ModelSettings(max_retries=1, retry_delay=0.001, headers={"x-secret-token": SECRET})
        agent = Agent("a", model=cast(Model, model), tools=[look], settings=settings.over(ours))
        async with helix.stream(agent, "go") as run:
            chunks = await helix.collect(run)
            result = await run.result()
        await server.all_closed()
        for request in server.requests:
            assert request.headers["x-secret-token"] == SECRET
            assert KEY in str(request.headers)
    check_stream(chunks)
    return Seen(chunks, result, len(server.requests), told_by(agent, model, chunks, result))


def told_by(
    agent: Agent[Any, Any, Any], model: Watched, chunks: list[helix.Chunk], result: helix.RunResult[Any, Any]
) -> str:
    """The log, the result, every exception with its traceback, and every `repr`."""
    failures: list[BaseException] = [*model.errors]
    try:
        result.raise_for_status()
    except RunFailed as error:
        failures.append(error)
    told: list[object] = [agent, agent.settings, model.model, result, *failures]
    traces = [line for error in failures for line in traceback.format_exception(error)]
    logged = [chunk_to_json(chunk).decode() for chunk in chunks]
    shown = [repr(chunk) for chunk in chunks if chunk.type != "text_delta"]
    fields = [f"{vars(error)}" for error in failures]
    return "\n".join([*map(str, told), *map(repr, told), *fields, *traces, *logged, *shown, f"{result.to_dict()}"])


@pytest.fixture(scope="module", autouse=True)
def _cheap_collections() -> Iterator[None]:
    """What lives before these tests need not be looked at after each of them."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="helix")
    return caplog


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_transport, "_WORDS_SECONDS", SHORT)


ROWS = [
    pytest.param(wire, name, id=f"{name}-{wire.name}")
    for name in FAULTS
    for wire in (*DIALECTS, Azure())
    if wire.has_indexes or name != "indexes that start at 1"
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("wire", "name"), ROWS)
def test_a_fault_has_its_code_and_leaves_nothing_behind(
    wire: Dialect, name: str, backend: Backend, logged: pytest.LogCaptureFixture
) -> None:
    fault = FAULTS[name]
    answers = [fault.moves(wire), whole(wire.said("fine"))]
    seen: Seen = run_alone(backend, lambda: play(wire, answers, fault.settings))
    code = fault.code_of(wire)
    assert seen.errors() == ([(code, fault.passing)] if code else [])
    if fault.passing:
        assert seen.result.status == "completed"
        assert seen.result.output in ("fine", "Half an", BIG)
    else:
        assert (seen.result.status, seen.result.error_code) == ("failed", code)
    calls = [chunk for chunk in seen.chunks if chunk.type == "tool_end"]
    assert [call.error_code for call in calls if call.error_code] == ([fault.tool] if fault.tool else [])
    begun = [chunk.arguments["what"] for chunk in seen.chunks if chunk.type == "tool_start"]
    assert sorted(begun) == CALLS.get(name, [])
    assert len({call.tool_call_id for call in calls}) == len(calls)
    assert seen.requests == 1 + (fault.passing and bool(code or calls))
    for secret in (KEY, SECRET):
        assert secret not in seen.told
        assert secret not in logged.text


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wire", DIALECTS, ids=lambda wire: wire.name)
def test_a_fault_that_stays_fails_the_run_with_its_code(wire: Dialect, backend: Backend) -> None:
    for name in ("429", "503", "reset before the head", "reset inside an event", "an error event"):
        fault = FAULTS[name]
        seen = run_alone(backend, lambda fault=fault: play(wire, [fault.moves(wire)], fault.settings))
        assert seen.errors() == [(fault.code, True), (fault.code, False)]
        assert (seen.result.status, seen.result.error_code) == ("failed", fault.code)
        assert KEY not in seen.told
        assert SECRET not in seen.told


@pytest.mark.parametrize("wire", DIALECTS, ids=lambda wire: wire.name)
def test_the_search_for_keys_would_find_one(wire: Dialect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_errors, "scrub", lambda text, secrets: text)
    for name in ("400", "an error event"):
        seen = run_alone("asyncio", lambda name=name: play(wire, [FAULTS[name].moves(wire)], ModelSettings()))
        assert KEY in seen.told
        assert SECRET in seen.told


async def ask_at(wire: Dialect, url: str) -> Seen:
    """One run whose server is there, and no answer."""
    model = Watched(wire.model(url))
    agent = Agent("a", model=cast(Model, model), settings=ModelSettings(max_retries=0))
    async with helix.stream(agent, "go") as run:
        chunks = await helix.collect(run)
        result = await run.result()
    return Seen(chunks, result, 0, told_by(agent, model, chunks, result))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wire", DIALECTS, ids=lambda wire: wire.name)
def test_no_password_of_a_base_url_is_told(wire: Dialect, backend: Backend) -> None:
    for url in (
        f"ftp://user:{PASSWORD}@127.0.0.1:1",
        f"user:{PASSWORD}@127.0.0.1:1",
        f"http://user:{PASSWORD}@127.0.0.1:999999",
        f"http://user:{PASSWORD}@127.0.0.1:1",
    ):
        seen = run_alone(backend, lambda url=url: ask_at(wire, url))
        assert seen.result.status == "failed"
        assert PASSWORD not in seen.told


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wire", DIALECTS, ids=lambda wire: wire.name)
def test_a_password_of_a_base_url_is_sent(wire: Dialect, backend: Backend) -> None:
    async def play_at() -> tuple[Seen, str]:
        async with serving([whole(wire.said("fine"))]) as server:
            seen = await ask_at(wire, server.url.replace("//", f"//user:{PASSWORD}@"))
            await server.all_closed()
        return seen, server.requests[0].headers["authorization"]

    seen, sent = run_alone(backend, play_at)
    assert (seen.result.output, sent) == ("fine", f"Basic {b64encode(f'user:{PASSWORD}'.encode()).decode()}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wire", DIALECTS, ids=lambda wire: wire.name)
def test_no_password_of_a_proxy_is_told(wire: Dialect, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play_behind() -> Seen:
        async with serving([whole(b"no tunnels here", 501)]) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", f"//user:{PASSWORD}@"))
            seen = await ask_at(wire, "https://example.test")
            await proxy.all_closed()
        return seen

    seen = run_alone(backend, play_behind)
    assert (seen.result.status, seen.result.error_code) == ("failed", "model_unavailable")
    assert PASSWORD not in seen.told
    assert b64encode(f"user:{PASSWORD}".encode()).decode() not in seen.told
