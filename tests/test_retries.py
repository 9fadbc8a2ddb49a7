"""Retries wait longer and longer, or as long as the server asks; and one clock alone keeps a call's time."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import anyio
import pytest
import trio
import trio.testing

import helix
from helix import Agent, ModelError, ModelSettings
from helix.model import Emit, ModelReply, ModelRequest
from helix.models._errors import retry_after
from helix.testing import ScriptedModel, Turn
from tests.dialects import DIALECTS, Dialect
from tests.fault_server import BACKENDS, Backend, Hold, Send, chunk, head, run_alone, serving

DOWN = ModelError("model_unavailable", "Down.", retryable=True)


class Timed(ScriptedModel):
    """Fails until it has been asked so often; keeps the times."""

    def __init__(self, failures: int, error: ModelError = DOWN) -> None:
        super().__init__(lambda _: Turn(fail=error) if len(self.times) <= failures else Turn("Up."))
        self.times: list[float] = []

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        self.times.append(anyio.current_time())
        return await super().respond(request, emit)

    @property
    def waits(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def play(model: Timed, settings: ModelSettings) -> list[float]:
    """The waits of one run, on a clock that jumps as soon as all sleep."""

    async def main() -> None:
        assert (await helix.run(Agent("a", model=model, settings=settings), "go")).output == "Up."

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return model.waits


def jitter(share: float) -> Callable[[float, float], float]:
    return lambda low, high: low + (high - low) * share


@pytest.mark.parametrize(("share", "waits"), [(1.0, [0.5, 1, 2, 4, 8, 8]), (0.0, [0.25, 0.5, 1, 2, 4, 4])])
def test_waits_double_up_to_a_bound_and_jitter_takes_at_most_half(
    share: float, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", jitter(share))
    assert play(Timed(6), ModelSettings(max_retries=6)) == pytest.approx(waits)


def test_the_first_wait_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", jitter(1))
    assert play(Timed(3), ModelSettings(max_retries=3, retry_delay=3)) == pytest.approx([3, 6, 8])


def test_what_the_server_asks_for_goes_before_and_is_an_hour_at_most() -> None:
    for asked, waited in ((0.0, 0.0), (17.0, 17.0), (90_000.0, 3600.0)):
        error = ModelError("model_rate_limited", "Later.", retryable=True, retry_after=asked)
        assert play(Timed(2, error), ModelSettings()) == pytest.approx([waited] * 2)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_how_a_server_asks(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == (None if seconds is None else pytest.approx(seconds, abs=60))


def test_a_server_may_name_the_moment() -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=1000), usegmt=True)
    assert retry_after({"retry-after": moment}) == pytest.approx(1000, abs=60)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wire", DIALECTS, ids=lambda wire: wire.name)
def test_the_adapter_keeps_the_time_of_a_call_and_tells_what_was_used(wire: Dialect, backend: Backend) -> None:
    async def main() -> list[helix.Chunk]:
        async with serving([[Send(head() + chunk(wire.start + wire.text("Half"))), Hold()]]) as server:
            settings = ModelSettings(timeout=0.06, max_retries=0)
            async with helix.stream(Agent("a", model=wire.model(server.url), settings=settings), "go") as run:
                chunks = await helix.collect(run)
            await server.all_closed()
            return chunks

    chunks = run_alone(backend, main)
    errors = [each.error for each in chunks if each.type == "error"]
    assert errors == ["The model gave no complete reply within 0.06 seconds."]
    usage = [each.usage for each in chunks if each.type == "step_end"]
    if wire.name == "anthropic":  # the one that tells at the start what it has read
        assert usage[0].input_tokens == 11


def test_a_model_that_keeps_no_time_is_cut() -> None:
    async def main() -> None:
        model = ScriptedModel([Turn("Half", stall=True)])
        settings = ModelSettings(timeout=5, max_retries=0)
        with pytest.raises(helix.RunFailed, match="did not answer within 5 s"):
            await helix.run(Agent("a", model=model, settings=settings), "go")
        assert trio.current_time() - began == pytest.approx(5, abs=0.5)

    async def timed() -> None:
        nonlocal began
        began = trio.current_time()
        await main()

    began = 0.0
    trio.run(timed, clock=trio.testing.MockClock(autojump_threshold=0))
