"""Scripted models over a real wire: what a script says goes through a fault server and a provider's own adapter.

From a seed follow the faults: some replies come whole, in pieces of any size; others break off, fall silent, end in an
error, or were refused from the start.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from types import TracebackType
from typing import Any, Self, cast

from helix.errors import ModelError
from helix.model import Emit, Model, ModelReply, ModelRequest
from tests.dialects import Called, Dialect
from tests.fault_server import LAST, Close, Drip, FaultServer, Hold, Move, Request, Reset, Send, chunk, head, whole
from tests.recorded import Recorder

SILENCE = 0.02
"""Seconds of silence after which a model is given up here."""
_TURN = "x-turn"

Broken = Callable[[Dialect, bytes, random.Random], Sequence[Move]]
"""A reply that fails; it gets the bytes of the whole one."""


def _refused(wire: Dialect, body: bytes, chance: random.Random) -> Sequence[Move]:
    number = chance.choice([408, 409, 429, 429, 500, 503, 400])
    return whole(json.dumps(wire.refused(number)).encode(), number, "application/json", retry_after="0.001")


def _cut(wire: Dialect, body: bytes, chance: random.Random) -> Sequence[Move]:
    kept = body[: chance.randrange(len(body))]
    return [Send(head()), *_in_pieces(kept, chance), chance.choice([Reset(), Close(), Hold(), Send(LAST)])]


def _silent(wire: Dialect, body: bytes, chance: random.Random) -> Sequence[Move]:
    return [chance.choice([Hold(), Reset(), Close()])]


def _failing(wire: Dialect, body: bytes, chance: random.Random) -> Sequence[Move]:
    event = chance.choice([wire.overloaded, wire.limited, b"data: {no\n\n", b"data: []\n\ndata: 1\n\n"])
    return [Send(head()), *_in_pieces(wire.start + wire.text("Half") + event, chance), Send(LAST)]


def _slow(wire: Dialect, body: bytes, chance: random.Random) -> Sequence[Move]:
    return [Send(head()), Drip([chunk(body[:20]), chunk(body[20:])], SILENCE * chance.choice([0.1, 3])), Send(LAST)]


BROKEN: list[Broken] = [_refused, _cut, _cut, _silent, _failing, _slow]


def _in_pieces(body: bytes, chance: random.Random) -> list[Move]:
    """A body in HTTP chunks of any size."""
    moves: list[Move] = []
    while body:
        size = chance.choice([1, 3, 40, 300, len(body)])
        moves.append(Send(chunk(body[:size])))
        body = body[size:]
    return moves


class WireModel:
    """A script's words, over a provider's wire.

    Attributes:
        faults: how many replies were broken.
    """

    def __init__(
        self, seed: int, script: Model, wire: Dialect, server: FaultServer, answers: dict[str, Sequence[Move]]
    ) -> None:
        """`answers` is what the server answers by: `told_by`."""
        self._seed, self._script, self._wire, self._answers = seed, script, wire, answers
        self._adapter = cast(Any, wire.model(server.url))
        self._numbers = count()
        self.faults = 0

    @property
    def name(self) -> str:
        return self._adapter.name

    async def __aenter__(self) -> Self:
        await self._adapter.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._adapter.__aexit__(kind, error, trace)

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        """Lets the script speak into the wire; where it fails, the wire does."""
        said, fails = Recorder(), False
        try:
            await self._script.respond(request, said)
        except ModelError:
            fails = True
        turn = str(next(self._numbers))
        self._answers[turn] = self._moves(request, self._reply(said), fails)
        settings = replace(request.settings, headers={_TURN: turn}, first_byte=SILENCE * 10, between_bytes=SILENCE)
        return await self._adapter.respond(replace(request, settings=settings), emit)

    def _reply(self, said: Recorder) -> bytes:
        calls = [Called(call["id"], call["name"], call["arguments"]) for call in said.calls.values()]
        words = self._wire.text(said.said or said.refused) if said.said or said.refused else b""
        more = self._wire.calls(calls, first=1) if calls else b""
        return self._wire.start + words + more + self._wire.end(calls=bool(calls))

    def _moves(self, request: ModelRequest, body: bytes, fails: bool) -> Sequence[Move]:
        path = request.agent_id.partition(".")[2]
        chance = random.Random(f"{self._seed}:{path}:{request.step}:{request.attempt}")
        if fails or chance.random() < 0.15:
            self.faults += 1
            return chance.choice(BROKEN)(self._wire, body, chance)
        return [Send(head()), *_in_pieces(body, chance), Send(LAST)]


def told_by(answers: dict[str, Sequence[Move]]) -> Callable[[Request], Sequence[Move]]:
    """What a server answers to the requests of a `WireModel`."""
    return lambda request: answers.pop(request.headers[_TURN])
