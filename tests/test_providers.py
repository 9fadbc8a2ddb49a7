"""`ProviderLimits`: what all runs of an executor share of a provider, on a clock that the tests turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

import helix
from helix import Agent, Executor, Limits, ModelError, ModelSettings, ProviderLimits, RunFailed
from helix.model import Emit, ModelReply, ModelRequest
from helix.models.anthropic import AnthropicModel
from helix.models.fallback import FallbackModel
from helix.models.google import GoogleModel
from helix.models.openai_chat import OpenAIChatModel
from helix.models.openai_responses import OpenAIResponsesModel
from helix.providers import Gate, Gates
from helix.testing import Call, ScriptedModel, Turn, check_stream

pytestmark = pytest.mark.anyio

DOWN = ModelError("model_unavailable", "Down.", retryable=True, retry_after=0.0)
WRONG = ModelError("model_rejected", "Wrong.")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


class Clock:
    """The time that gates see."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("helix.providers.current_time", clock)
    return clock


class Named(ScriptedModel):
    """A scripted model with a name of its own."""

    def __init__(self, name: str, script: Callable[[ModelRequest], Turn | str]) -> None:
        super().__init__(script)
        self._name = name

    @property
    def name(self) -> str:
        return self._name


class Narrow(ScriptedModel):
    """Answers when it is told to; counts who is asking."""

    def __init__(self, name: str = "narrow:one") -> None:
        super().__init__([])
        self._name = name
        self.open = self.most = self.asked = 0
        self.go = anyio.Event()

    @property
    def name(self) -> str:
        return self._name

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        self.open, self.asked = self.open + 1, self.asked + 1
        self.most = max(self.most, self.open)
        try:
            await self.go.wait()
        finally:
            self.open -= 1
        emit.text("done")
        return ModelReply("stop", helix.Usage(requests=1))


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not true():
            await checkpoint()


def outcome(what: Any) -> Callable[[], Awaitable[str]]:
    async def ask() -> str:
        if isinstance(what, Exception):
            raise what
        return what

    return ask


async def ask(gate: Gate, what: Any = "fine") -> Any:
    """What comes of a call whose outcome would be this."""
    try:
        return await gate.through(outcome(what), lambda: None)
    except ModelError as error:
        return error


# --- places


async def test_all_runs_of_an_executor_share_the_places_of_a_provider() -> None:
    model = Narrow()
    agent = Agent("a", model=model)
    with anyio.fail_after(20):
        async with Executor(provider_limits=ProviderLimits(max_concurrency=2)) as executor:
            handles = [await executor.execute(agent, "go") for _ in range(5)]
            waits = [handle.tree for handle in handles]
            await until(lambda: model.open == 2)
            for _ in range(50):
                await checkpoint()
            assert (model.open, len(waits)) == (2, 5)
            model.go.set()
            results = [await handle.result() for handle in handles]
            chunks = [await helix.collect(handle.stream()) for handle in handles]
    assert [result.output for result in results] == ["done"] * 5
    assert (model.most, model.asked) == (2, 5)
    told = [chunk for log in chunks for chunk in log if chunk.type == "custom"]
    assert [chunk.event_name for chunk in told] == ["waiting_for_model"] * 3
    assert told[0].data == {"model": "narrow:one", "max_concurrency": 2}
    for log in chunks:
        check_stream(log)


async def test_who_waits_for_a_place_can_be_cancelled_and_takes_none() -> None:
    model = Narrow()
    agent = Agent("a", model=model)
    with anyio.fail_after(20):
        async with Executor(provider_limits={"narrow": ProviderLimits(max_concurrency=1)}) as executor:
            first = await executor.execute(agent, "go")
            await until(lambda: model.open == 1)
            second, third = await executor.execute(agent, "go"), await executor.execute(agent, "go")
            await second.cancel()
            assert (await second.result()).status == "cancelled"
            model.go.set()
            assert [(await handle.result()).status for handle in (first, third)] == ["completed", "completed"]
    assert model.asked == 2


async def test_a_wait_counts_as_time_of_the_run_and_not_of_the_call() -> None:
    model = Narrow()
    patient = Agent("a", model=model, settings=ModelSettings(timeout=0.01, max_retries=0))
    with anyio.fail_after(20):
        async with Executor(provider_limits=ProviderLimits(max_concurrency=1)) as executor:
            holds = await executor.execute(Agent("a", model=model), "go")
            await until(lambda: model.open == 1)
            bounded = await executor.execute(patient, "go", limits=Limits(seconds=0.05))
            result = await bounded.result()
            assert (result.status, result.error_code) == ("failed", "limit_time")
            model.go.set()
            await holds.result()
    assert model.asked == 1


async def test_the_agents_of_a_tree_share_them_too() -> None:
    most = 0
    open_now = 0

    class Counting(ScriptedModel):
        async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
            nonlocal most, open_now
            open_now += 1
            most = max(most, open_now)
            try:
                await checkpoint()
                return await super().respond(request, emit)
            finally:
                open_now -= 1

    script = Counting(
        {"boss": [Turn(calls=[Call("helper", input=str(n)) for n in range(4)]), "all done"], "helper": lambda _: "ok"}
    )
    boss = Agent("boss", model=script, sub_agents=[Agent("helper")])
    with anyio.fail_after(20):
        async with Executor(provider_limits=ProviderLimits(max_concurrency=1)) as executor:
            result = await (await executor.execute(boss, "go")).result()
    assert (result.output, most) == ("all done", 1)


# --- the breaker


async def test_it_opens_after_so_many_failures_in_a_row_and_lets_one_probe_through_after_the_cooldown(
    clock: Clock,
) -> None:
    gate = Gate("openai", ProviderLimits(max_failures=3, cooldown=30))
    assert [await ask(gate, DOWN) for _ in range(2)] == [DOWN, DOWN]
    assert await ask(gate) == "fine"  # begins the count anew
    assert [await ask(gate, DOWN) for _ in range(3)] == [DOWN] * 3
    clock.now += 10
    refused = await ask(gate)
    assert (refused.code, refused.retryable, refused.retry_after) == ("model_unavailable", True, 20.0)
    assert refused.message == "openai has failed 3 times in a row, and is not asked for now."
    assert refused.usage == helix.Usage()  # nothing was sent
    clock.now += 20
    assert await ask(gate, DOWN) is DOWN  # the probe
    assert (await ask(gate)).retry_after == 30.0
    clock.now += 30
    assert [await ask(gate) for _ in range(3)] == ["fine"] * 3


async def test_while_a_probe_is_out_nobody_else_is_let_through(clock: Clock) -> None:
    gate = Gate("openai", ProviderLimits(max_failures=1, cooldown=30))
    await ask(gate, DOWN)
    clock.now += 31
    asked, go = anyio.Event(), anyio.Event()

    async def probe() -> str:
        asked.set()
        await go.wait()
        return "fine"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gate.through, probe, lambda: None)
        await asked.wait()
        refused = await ask(gate)
        assert (refused.code, refused.retry_after) == ("model_unavailable", None)
        tasks.cancel_scope.cancel()
    assert await ask(gate) == "fine"  # a probe that was cancelled has said nothing: the next one is one too


async def test_what_the_provider_is_not_to_blame_for_does_not_count() -> None:
    gate = Gate("openai", ProviderLimits(max_failures=2))
    for error in (DOWN, WRONG, DOWN, WRONG, DOWN):
        assert await ask(gate, error) is error


async def test_who_waited_for_a_place_is_refused_if_the_provider_failed_meanwhile(clock: Clock) -> None:
    gate = Gate("openai", ProviderLimits(max_concurrency=1, max_failures=1))
    go, refused = anyio.Event(), list[Any]()

    async def fails() -> str:
        await go.wait()
        raise DOWN

    async def first() -> None:
        with pytest.raises(ModelError, match=r"Down\."):
            await gate.through(fails, lambda: None)

    async def second() -> None:
        try:
            await gate.through(outcome("fine"), go.set)
        except ModelError as error:
            refused.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first)
        await checkpoint()
        await checkpoint()
        tasks.start_soon(second)
    assert [error.message for error in refused] == ["openai has failed 1 times in a row, and is not asked for now."]


async def test_a_fallback_goes_on_to_the_next_provider_and_the_first_is_not_asked() -> None:
    first, second = Named("one:m", lambda _: Turn(fail=DOWN)), Named("two:m", lambda _: "Here.")
    agent = Agent("a", model=FallbackModel(first, second))
    with anyio.fail_after(20):
        async with Executor(provider_limits=ProviderLimits(max_failures=2)) as executor:
            for _ in range(4):
                handle = await executor.execute(agent, "go")
                assert (await handle.result()).output == "Here."
            chunks = await helix.collect(handle.stream())
    assert len(first.requests) == 2
    errors = [chunk.error for chunk in chunks if chunk.type == "error"]
    assert errors == ["one:m: one has failed 2 times in a row, and is not asked for now; next: two:m"]
    check_stream(chunks)


async def test_a_run_without_another_model_fails_with_the_code() -> None:
    model = ScriptedModel(lambda _: Turn(fail=DOWN))
    agent = Agent("a", model=model, settings=ModelSettings(max_retries=0))
    with anyio.fail_after(20):
        async with Executor(provider_limits=ProviderLimits(max_failures=1)) as executor:
            for _ in range(2):
                with pytest.raises(RunFailed) as caught:
                    (await (await executor.execute(agent, "go")).result()).raise_for_status()
    assert caught.value.result.error_code == "model_unavailable"
    assert len(model.requests) == 1
    assert caught.value.result.usage.requests == 0


# --- which provider


def test_a_provider_is_a_prefix_and_a_base_url() -> None:
    gates = Gates(ProviderLimits(max_concurrency=1))
    here = OpenAIChatModel("a", api_key="sk-x", base_url="http://one/v1")
    there = OpenAIChatModel("a", api_key="sk-x", base_url="http://two/v1")
    again = OpenAIChatModel("b", api_key="sk-x", base_url="http://one/v1")
    assert gates.of(here) is gates.of(again)
    assert gates.of(here) is not gates.of(there)
    only = Gates({"anthropic": ProviderLimits()})
    assert only.of(here) is None
    assert only.of(AnthropicModel("c", api_key="x")) is not None
    assert Gates().of(here) is None
    for model in (OpenAIResponsesModel("d", api_key="x"), GoogleModel("e", api_key="x")):
        assert model.base_url.startswith("https://")


@pytest.mark.parametrize("wrong", [{"max_concurrency": 0}, {"max_failures": 0}, {"cooldown": 0}])
def test_limits_that_cannot_work_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"ProviderLimits\({next(iter(wrong))}=0\): must be"):
        ProviderLimits(**wrong)
