"""What runs cost: prices listed and one's own, sums, the limit with its reservations, and where it is shown."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

import helix
from helix import Agent, DefinitionError, Executor, Limits, MemoryStore, Price, RunResult, Usage, tool
from helix.chunks import StepEnd, StepStart
from helix.cli import main
from helix.fold import RunTree, fold
from helix.limits import dollars
from helix.model import Emit, ModelReply, ModelRequest
from helix.models.fallback import FallbackModel
from helix.models.openai_chat import OpenAIChatModel
from helix.prices import Prices
from helix.stores import open_store
from helix.testing import Call, FunctionModel, ScriptedModel, Turn, check_stream
from tests.replay import Answer, ReplayServer

pytestmark = pytest.mark.anyio

PRICE = Price(input=1, output=10)
A_TURN = 0.000081
"""What 11 tokens read and 7 written cost at that price."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)


class Named:
    """A model under another name."""

    def __init__(self, name: str, model: Any) -> None:
        self.name = name
        self.model = model

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        return await self.model.respond(request, emit)


async def run(agent: Agent[Any, Any, Any], prices: Any = None, **options: Any) -> tuple[RunResult, list[helix.Chunk]]:
    with anyio.fail_after(30):
        async with Executor(prices=prices) as executor:
            handle = await executor.execute(agent, "go", **options)
            result = await handle.result()
            chunks = await helix.collect(handle.stream())
    check_stream(chunks)
    return result, chunks


# --- sums


def test_a_sum_has_a_cost_when_all_that_used_tokens_have_one() -> None:
    known, unknown, failed = Usage(1, 1, 2, requests=1, cost=0.5), Usage(1, 1, 2, requests=1), Usage(requests=1)
    assert (known + known).cost == 1
    assert (known + failed).cost == 0.5 == (Usage() + known).cost
    assert (known + unknown).cost is None is (unknown + known).cost
    assert (failed + failed).cost is None
    assert (Usage(cost=0.0) + failed).cost == 0


def test_costs_add_up_exactly_in_any_order() -> None:
    cents = [Usage(0, 0, 1, cost=number / 10) for number in (1, 2, 3, 7, 11, 0.000000007)]
    forth, back = sum(cents, Usage()), sum(reversed(cents), Usage())
    assert forth.cost == back.cost == 2.4000000007
    assert repr((cents[0] + cents[1]).cost) == "0.3"
    many = sum((Usage(cost=0.1) for _ in range(100_000)), Usage())
    assert many.cost == 10_000


def test_parts_of_usage_add_up_and_are_left_out_of_json_when_there_are_none() -> None:
    one = Usage(10, 5, 15, cache_write_tokens=3, input_audio_tokens=2, output_audio_tokens=1)
    both = one + one
    assert (both.cache_write_tokens, both.input_audio_tokens, both.output_audio_tokens) == (6, 4, 2)
    plain = helix.chunk_to_dict(StepEnd("r", "a", 1, 1, "abandoned", Usage(requests=1)))["usage"]
    assert {"cost", "cacheWriteTokens", "inputAudioTokens", "outputAudioTokens"}.isdisjoint(plain)
    chunk = StepEnd("r", "a", 1, 1, "abandoned", both)
    assert helix.parse_chunk(helix.chunk_to_json(chunk)) == chunk


# --- prices


def test_a_price_of_ones_own_has_parts() -> None:
    price = Price(input=2, output=8, cached=0.2, cache_write=2.5, input_audio=40, output_audio=80)
    usage = Usage(1_000_000, 1_000_000, 2_000_000, cached_tokens=500_000, cache_write_tokens=100_000)
    assert price.of(usage) == 9.15  # 0.5 · 0.2 + 0.1 · 2.5 + 0.4 · 2 + 8
    assert Price(input=2, output=8).of(usage) == 10
    audio = Usage(1000, 1000, 2000, input_audio_tokens=1000, output_audio_tokens=500)
    assert price.of(audio) == 0.084


@pytest.mark.parametrize("wrong", [{"input": -1}, {"output": float("nan")}, {"cached": float("inf")}])
def test_a_price_says_what_is_wrong_with_it(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"Price\({next(iter(wrong))}=.*: must be at least 0, and finite"):
        Price(**{"input": 1, "output": 1, **wrong})


@pytest.mark.parametrize("wrong", [{"m": 3}, {"m": "gpt-5"}, {"m": "ollama:llama"}])
def test_prices_say_what_is_wrong_with_them(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match=r"prices\['m'\]"):
        Executor(prices=wrong)


@pytest.mark.parametrize(
    "model",
    [
        "openai:gpt-5",
        "openai-responses:gpt-5",
        "azure:gpt-5",
        "azure-responses:gpt-5",
        "anthropic:claude-sonnet-4-5",
        "google:gemini-2.5-flash",
    ],
)
def test_the_library_knows_the_models_of_every_adapter(model: str) -> None:
    cost = Prices().cost(model, Usage(1000, 100, 1100, cached_tokens=400, reasoning_tokens=50))
    assert cost is not None
    assert 0 < cost < 0.01


def test_cached_written_and_audio_tokens_have_their_own_prices() -> None:
    def cost(model: str, **parts: int) -> float:
        found = Prices().cost(model, Usage(1000, 0, 1000, **parts))
        assert found is not None
        return found

    claude, gemini = "anthropic:claude-sonnet-4-5", "google:gemini-2.5-flash"
    assert cost(claude, cached_tokens=1000) < cost(claude) < cost(claude, cache_write_tokens=1000)
    assert cost(gemini, input_audio_tokens=1000) > cost(gemini)
    assert cost(gemini) > cost(gemini, cached_tokens=600, input_audio_tokens=500) - cost(gemini, input_audio_tokens=500)
    assert Prices().cost(gemini, Usage(10, 0, 10, cached_tokens=10, input_audio_tokens=10)) is not None


def test_ones_own_prices_go_before_those_of_the_library() -> None:
    usage = Usage(1000, 100, 1100)
    own = Prices({"openai:gpt-5": PRICE, "azure:mine": "openai:gpt-5-mini", "my:model": PRICE})
    assert own.cost("openai:gpt-5", usage) == own.cost("my:model", usage) == 0.002
    assert own.cost("azure:mine", usage) == Prices().cost("openai:gpt-5-mini", usage)
    assert own.cost("azure:other", usage) is None
    assert own.cost("other", usage) is None
    assert own.cost("openai:gpt-5-mini", Usage()) == 0


@pytest.mark.usefixtures("no_library")
def test_without_the_library_only_ones_own_prices_are_known() -> None:
    own = Prices({"my:model": PRICE})
    assert own.cost("openai:gpt-5", Usage(1, 1, 2)) is None
    assert own.cost("my:model", Usage(1, 0, 1)) == 0.000001


# --- runs


def delegating(turns: int = 1) -> ScriptedModel:
    calls = Turn(calls=[Call("worker", input=str(n)) for n in range(turns)])
    return ScriptedModel({"boss": [calls, "done"], "worker": ["w"] * turns})


async def test_a_run_has_the_cost_of_itself_of_its_tree_of_each_agent_and_of_each_model() -> None:
    script = delegating(2)
    worker = Agent("worker", model=Named("cheap", script))
    boss = Agent("boss", model=Named("dear", script), sub_agents=[worker])
    result, chunks = await run(boss, {"cheap": PRICE, "dear": Price(input=10, output=100)})
    assert result.own_usage.cost == 0.00162
    assert result.cost == result.usage.cost == 0.001782
    assert {key.partition(".")[2]: usage.cost for key, usage in result.usage_by_agent.items()} == {
        "": 0.00162,
        "worker-1": A_TURN,
        "worker-2": A_TURN,
    }
    assert {model: usage.cost for model, usage in result.usage_by_model.items()} == {"dear": 0.00162, "cheap": 0.000162}
    assert sum(result.usage_by_model.values(), Usage()) == result.usage
    assert result.unpriced_models == []
    ends = [chunk for chunk in chunks if isinstance(chunk, StepEnd)]
    assert sum((end.usage for end in ends), Usage()) == result.usage
    assert chunks[-1].type == "run_end"
    assert chunks[-1].tree_usage == result.usage


async def test_a_child_has_the_costs_of_its_own_branch() -> None:
    seen: list[RunResult] = []

    @tool
    async def ask(ctx: helix.ToolContext) -> str:
        seen.append(await ctx.run_agent(Agent("worker", model=Named("cheap", ScriptedModel(["w"]))), "x"))
        return "ok"

    boss = Agent("boss", model=ScriptedModel([Turn(calls=[Call("ask")]), "done"]), tools=[ask])
    result, _ = await run(boss, {"cheap": PRICE})
    assert (seen[0].cost, seen[0].unpriced_models) == (A_TURN, [])
    assert (result.cost, result.unpriced_models) == (None, ["scripted"])
    assert list(seen[0].usage_by_model) == ["cheap"]


async def test_not_known_is_not_nothing() -> None:
    script = delegating()
    boss = Agent("boss", model=Named("m", script), sub_agents=[Agent("worker", model=Named("my own", script))])
    free, _ = await run(boss, {"m": PRICE, "my own": Price(input=0, output=0)})
    assert (free.cost, free.unpriced_models) == (0.000162, [])
    script = delegating()
    boss = Agent("boss", model=Named("m", script), sub_agents=[Agent("worker", model=script)])
    unknown, _ = await run(boss, {"m": PRICE})
    assert (unknown.cost, unknown.unpriced_models) == (None, ["scripted"])
    assert unknown.own_usage.cost == 0.000162
    assert "36 of 54 tokens\n" in str(unknown)
    assert str(unknown).endswith("54 tokens, ~$0.000162 without scripted: done")
    assert "~$0.000162 without scripted" in unknown._repr_html_()
    nothing, _ = await run(Agent("a", model=ScriptedModel(["hi"])))
    assert (nothing.cost, "$" in str(nothing) + repr(nothing) + nothing._repr_html_()) == (None, False)


async def test_a_failed_attempt_costs_what_the_provider_told() -> None:
    def fails(usage: Usage | None) -> Turn:
        error = helix.ModelError("model_stream_dropped", "broke", retryable=True, retry_after=0, usage=usage)
        return Turn(text="half", fail=error)

    script = ScriptedModel([fails(Usage(11, 7, 18, requests=1)), fails(None), "whole"])
    result, chunks = await run(Agent("a", model=script), {"scripted": PRICE})
    assert [end.usage.cost for end in chunks if isinstance(end, StepEnd)] == [A_TURN, 0, A_TURN]
    assert (result.usage.requests, result.cost) == (3, 0.000162)


async def test_later_prices_change_no_run_that_was() -> None:
    store = MemoryStore()
    agent = Agent("a", model=ScriptedModel([Turn(calls=[Call("noop")]), "done", "again"]), tools=[noop])
    async with Executor(store=store, prices={"scripted": PRICE}) as executor:
        handle = await executor.execute(agent, "go", run_id="one")
        assert (await handle.result()).cost == 2 * A_TURN
    async with Executor(store=store, agents=[agent], prices={"scripted": Price(input=5, output=5)}) as executor:
        assert (await (await executor.get_handle("one")).result()).cost == 2 * A_TURN
        fork = await executor.fork("one", step=2)
        assert (await fork.result()).cost == round(A_TURN + 18 * 5 / 1_000_000, 10)


@tool
def noop() -> str:
    return "ok"


# --- through an adapter


def reply(usage: dict[str, Any]) -> Answer:
    chunk = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]}
    end = {"choices": [], "usage": usage}
    events = (json.dumps(chunk), json.dumps(end), "[DONE]")
    return Answer(body="".join(f"data: {event}\n\n" for event in events).encode())


TOLD = {
    "prompt_tokens": 1000,
    "completion_tokens": 100,
    "total_tokens": 1100,
    "prompt_tokens_details": {"cached_tokens": 400, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 60, "audio_tokens": 0},
}


async def asked(usage: dict[str, Any], model: str = "gpt-5", **options: Any) -> RunResult:
    with ReplayServer([reply(usage)]) as server:
        told = OpenAIChatModel(model, base_url=server.url, api_key="sk-test")
        result, _ = await run(Agent("a", model=told), **options)
    return result


async def test_a_model_of_the_list_has_its_price_through_its_adapter() -> None:
    result = await asked(TOLD, limits=Limits(cost=1))
    assert (result.usage.cached_tokens, result.usage.reasoning_tokens) == (400, 60)
    assert result.cost == Prices().cost("openai:gpt-5", Usage(1000, 100, 1100, cached_tokens=400))
    assert result.cost != Prices().cost("openai:gpt-5", Usage(1000, 100, 1100))


async def test_what_the_provider_tells_itself_goes_before_the_list() -> None:
    assert (await asked({**TOLD, "cost": 0.30000000000000004})).cost == 0.3
    assert (await asked({**TOLD, "cost": 0})).cost == 0


async def test_audio_is_told_apart() -> None:
    audio = {"prompt_tokens_details": {"audio_tokens": 300}, "completion_tokens_details": {"audio_tokens": 80}}
    result = await asked({**TOLD, **audio}, "gpt-4o-audio-preview")
    assert (result.usage.input_audio_tokens, result.usage.output_audio_tokens) == (300, 80)
    assert result.cost is not None


@pytest.mark.usefixtures("no_library")
async def test_without_the_library_a_run_has_no_cost() -> None:
    result = await asked(TOLD)
    assert (result.cost, result.unpriced_models) == (None, ["openai:gpt-5"])


# --- the limit


@pytest.mark.usefixtures("no_library")
async def test_a_limit_without_the_library_names_the_install_command_before_anything_runs() -> None:
    store = MemoryStore()
    async with Executor(store=store) as executor:
        with pytest.raises(ImportError, match=r"'openai:gpt-5'.*pip install 'helix-agents\[cost\]'"):
            await executor.execute(
                Agent("a", model=Named("openai:gpt-5", ScriptedModel([]))), "go", run_id="r", limits=Limits(cost=1)
            )
        with pytest.raises(helix.UnknownRun):
            await executor.get_handle("r")


UNKNOWN = Named("my:model", ScriptedModel([]))
DEEP = Agent("worker", model=UNKNOWN)


@pytest.mark.parametrize(
    ("agent", "limits"),
    [
        (Agent("a", model=UNKNOWN), Limits(cost=1)),
        (Agent("a", model=UNKNOWN, limits=Limits(cost=1)), None),
        (Agent("a", model=FallbackModel(ScriptedModel([]), UNKNOWN)), Limits(cost=1)),
        (Agent("a", model=ScriptedModel([]), sub_agents=[DEEP]), Limits(cost=1)),
        (Agent("a", model=ScriptedModel([]), sub_agents=[DEEP.replace(limits=Limits(cost=1))]), None),
        (Agent("a", model=ScriptedModel([]), sub_agents=[DEEP.as_tool(limits=Limits(cost=1))]), None),
        (Agent("a", model=UNKNOWN, sub_agents=[DEEP.replace(model=None).as_tool(limits=Limits(cost=1))]), None),
    ],
)
async def test_a_model_without_a_price_under_a_limit_is_refused_before_anything_runs(agent: Any, limits: Any) -> None:
    async with Executor(prices={"scripted": PRICE}) as executor:
        with pytest.raises(DefinitionError, match=r"no price of 'my:model' is known.*Executor\(prices="):
            await executor.execute(agent, "go", limits=limits)


async def test_a_model_that_costs_as_much_as_an_unlisted_one_is_refused_with_both_names() -> None:
    async with Executor(prices={"my:model": "openai:gpt-nope"}) as executor:
        words = "no price of 'openai:gpt-nope', which 'my:model' is to cost as much as, is known"
        with pytest.raises(DefinitionError, match=words):
            await executor.execute(Agent("a", model=UNKNOWN), "go", limits=Limits(cost=1))


async def test_only_what_is_below_the_limit_needs_a_price() -> None:
    script = delegating()
    worker = Agent("worker", model=Named("m", script), limits=Limits(cost=1))
    result, _ = await run(Agent("boss", model=script, sub_agents=[worker]), {"m": PRICE})
    assert result.status == "completed"


async def test_an_agent_that_a_tool_starts_without_a_price_fails_under_a_limit() -> None:
    asked: list[RunResult] = []
    free = ScriptedModel(["w"])

    @tool
    async def ask(ctx: helix.ToolContext) -> str:
        asked.append(await ctx.run_agent(Agent("worker", model=Named("my:model", free)), "x"))
        return "ok"

    boss = Agent("boss", model=ScriptedModel([Turn(calls=[Call("ask")]), "done"]), tools=[ask])
    result, _ = await run(boss, {"scripted": PRICE}, limits=Limits(cost=1))
    assert (result.output, asked[0].error_code, free.requests) == ("done", "limit_cost", [])
    assert asked[0].error == "the limit of $1.00 cannot hold: the price of my:model is not known"


async def test_a_run_is_refused_more_calls_when_what_it_cost_leaves_no_room() -> None:
    model = FunctionModel(lambda request: Turn(calls=[Call("noop")]))
    result, chunks = await run(Agent("a", model=model, tools=[noop]), {"function": PRICE}, limits=Limits(cost=0.0002))
    assert (result.status, result.error_code, result.finish_reason) == ("failed", "limit_cost", "limit")
    assert result.error == "the limit of $0.0002 is reached"
    assert len(model.requests) == 3
    assert result.cost == 0.000243
    starts = [chunk for chunk in chunks if isinstance(chunk, StepStart)]
    assert [start.reserve and start.reserve.cost for start in starts] == [0.01, A_TURN, A_TURN]


class Meter:
    """Workers whose calls cost so much each, and how many calls were open at once."""

    def __init__(self, children: int, cost: float) -> None:
        self.children, self.cost = children, cost
        self.open = self.most_open = 0

    async def answer(self, request: ModelRequest) -> Turn:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        self.open -= 1
        if request.agent_type == "boss" and request.step == 1:
            calls = [Call("worker", input=str(n)) for n in range(self.children)]
            return Turn(calls=calls, input_tokens=0, output_tokens=0)
        return Turn(text="w", input_tokens=0, output_tokens=round(self.cost * 100_000))


async def test_parallel_children_do_not_overshoot_together() -> None:
    meter = Meter(20, cost=0.01)
    worker = Agent("worker", settings=helix.ModelSettings(max_tokens=1000))  # reserves 0.01, and takes it
    boss = Agent("boss", model=FunctionModel(meter.answer), sub_agents=[worker])
    result, chunks = await run(boss, {"function": PRICE}, limits=Limits(cost=0.1))
    done = [end for end in chunks if end.type == "run_end" and end.agent_type == "worker" and end.status == "completed"]
    assert (len(done), meter.most_open) == (10, 10)
    assert result.cost == 0.1
    assert (result.error_code, result.error) == ("limit_cost", "the limit of $0.10 is reached")


async def test_calls_that_do_not_fit_beside_each_other_wait_for_each_other() -> None:
    meter = Meter(5, cost=0.002)
    worker = Agent("worker", settings=helix.ModelSettings(max_tokens=10_000))  # reserves 0.1
    boss = Agent("boss", model=FunctionModel(meter.answer), sub_agents=[worker])
    result, _ = await run(boss, {"function": PRICE}, limits=Limits(cost=0.15))
    assert (result.status, meter.most_open) == ("completed", 1)
    assert result.cost == 0.012


async def test_a_parked_run_goes_on_counting_and_needs_its_prices_again() -> None:
    store = MemoryStore()

    @tool(requires_approval=True)
    def ask() -> str:
        return "ok"

    model = FunctionModel(lambda request: Turn(calls=[Call("ask" if request.step == 2 else "noop")]))
    agent = Agent("a", model=model, tools=[noop, ask])
    async with Executor(store=store, prices={"function": PRICE}) as executor:
        handle = await executor.execute(agent, "go", run_id="r", limits=Limits(cost=0.0003), wait="suspend")
        parked = await handle.result()
        assert (parked.status, parked.cost) == ("suspended", 2 * A_TURN)
        await handle.respond(handle.tree.pending[0].approval_id, helix.Approve())
    async with Executor(store=store, agents=[agent]) as executor:
        with pytest.raises(DefinitionError, match="no price of 'function'"):
            await executor.resume("r")
    async with Executor(store=store, agents=[agent], prices={"function": PRICE}) as executor:
        result = await (await executor.resume("r")).result()
    assert (result.error_code, len(model.requests), result.cost) == ("limit_cost", 4, 4 * A_TURN)


async def test_the_models_of_a_fallback_have_their_own_prices_and_the_dearest_is_reserved() -> None:
    dear = Named("dear", ScriptedModel([Turn(fail="model_unavailable")]))
    model = FallbackModel(dear, Named("cheap", ScriptedModel(["w"])))
    prices = {"dear": Price(input=10, output=100), "cheap": PRICE}
    result, chunks = await run(Agent("a", model=model), prices, limits=Limits(cost=1))
    starts = [chunk for chunk in chunks if isinstance(chunk, StepStart)]
    assert [start.reserve and start.reserve.cost for start in starts] == [0.1, 0.1]
    assert {name: usage.cost for name, usage in result.usage_by_model.items()} == {"dear": 0, "cheap": A_TURN}


def test_limits_of_costs_say_what_is_wrong_with_them() -> None:
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"Limits\(cost=.*\): must be more than 0, and finite"):
            Limits(cost=wrong)


# --- what is shown, and what is kept


NOISE = re.compile(r"\d\.\d{11,}|\d[eE]-(?:1[1-9]|[2-9]\d)")
"""More decimals than a cost has."""


async def test_no_output_of_a_run_shows_the_noise_of_binary_fractions() -> None:
    def answer(request: ModelRequest) -> Turn:
        if request.agent_type == "boss" and request.step == 1:
            return Turn(calls=[Call("worker", input=str(n)) for n in range(30)])
        return Turn(text="w", input_tokens=7 * request.step, output_tokens=11 + len(request.agent_id))

    price = Price(input=0.1, output=0.7, cached=0.03)
    boss = Agent("boss", model=FunctionModel(answer), sub_agents=[Agent("worker")])
    result, chunks = await run(boss, {"function": price}, limits=Limits(cost=0.3))
    assert result.cost is not None
    told: Sequence[str] = [
        str(result),
        repr(result),
        result._repr_html_(),
        json.dumps(result.to_dict()),
        repr(result.usage_by_model),
        repr(result.usage_by_agent),
        *(helix.chunk_to_json(chunk).decode() for chunk in chunks),
    ]
    assert [text for text in told if NOISE.search(text)] == []
    assert NOISE.search(json.dumps(0.1 + 0.2))
    assert "~$" in told[0]
    exact = sum(Decimal(str(end.usage.cost)) for end in chunks if isinstance(end, StepEnd))
    assert Decimal(str(result.cost)) == exact


async def test_the_fold_of_a_prefix_tells_the_costs_of_that_moment() -> None:
    result, chunks = await run(Agent("boss", sub_agents=[Agent("worker")]), {"scripted": PRICE}, model=delegating(3))
    trees: list[RunTree] = [fold(chunks[:end]) for end in range(1, len(chunks) + 1)]
    costs = [tree.root.tree_usage.cost or 0 for tree in trees]
    assert costs == sorted(costs)
    assert costs[-1] == result.cost
    assert all(tree.root.tree_reserved_cost == 0 for tree in trees)


async def test_the_tree_shows_the_cost_of_each_branch() -> None:
    result, _ = await run(Agent("boss", sub_agents=[Agent("worker")]), {"scripted": PRICE}, model=delegating(2))
    first, second, _, last = str(result).splitlines()
    assert first.endswith("36 of 72 tokens  ~$0.000324")
    assert second.endswith("       18 tokens  ~$0.000081")
    assert last == "✓ completed, 72 tokens, ~$0.000324: done"
    assert repr(result).endswith("72 tokens, ~$0.000324)")
    assert result._repr_html_().count("~$0.000081") == 2


async def test_the_command_line_shows_the_cost_of_a_stored_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    agent = Agent("boss", sub_agents=[Agent("worker")], model=delegating(1))
    async with Executor(store=open_store(url), prices={"scripted": PRICE}) as executor:
        await (await executor.execute(agent, "go", run_id="dear")).result()
    assert await to_thread.run_sync(main, ["show", "dear", "--store", url]) == 0
    _, boss, worker, *_ = capsys.readouterr().out.splitlines()
    assert boss.endswith("36 of 54 tokens  ~$0.000243")
    assert worker.endswith("18 tokens  ~$0.000081")


WATCHING = """
import sys, threading
import anyio, helix
from helix import Agent
from helix.testing import ScriptedModel

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("genai_prices."):
            threads.add(threading.current_thread() is threading.main_thread())

class Named(ScriptedModel):
    name = sys.argv[1]

    async def respond(self, request, emit):
        loaded.append("genai_prices" in sys.modules)
        return await super().respond(request, emit)

threads, loaded = set(), ["genai_prices" in sys.modules]
sys.meta_path.insert(0, Finder())
for _ in range(2):
    anyio.run(helix.run, Agent("a", model=Named(["Hi."])), "go")
print(loaded, threads)
"""


@pytest.mark.parametrize(
    ("model", "told"),
    [("openai:gpt-4o", "[False, True, True] {False}"), ("scripted", "[False, False, False] set()")],
)
def test_the_library_is_imported_before_the_first_call_that_it_may_price_and_not_on_the_loop(
    model: str, told: str
) -> None:
    done = subprocess.run([sys.executable, "-c", WATCHING, model], capture_output=True, encoding="utf-8", timeout=60)
    assert (done.stdout.strip(), done.stderr) == (told, "")


@pytest.mark.parametrize("seed", range(40))
async def test_random_trees_pass_a_limit_by_no_more_than_is_said(seed: int) -> None:
    """By one call that is alone, or by what calls that are open together take beyond their reservations."""
    chance = random.Random(seed)

    async def answer(request: ModelRequest) -> Turn:
        turn = random.Random(f"{seed}:{request.agent_id.partition('.')[2]}:{request.step}")
        for _ in range(turn.randint(0, 5)):
            await anyio.lowlevel.checkpoint()
        below = [item.name for item in request.tools]
        calls = [Call(turn.choice(below), input="x") for _ in range(turn.randint(1, 4))] if below else []
        calls = calls if request.step <= 2 else []
        fail: Any = "model_unavailable" if turn.random() < 0.1 and request.attempt == 1 else None
        return Turn(text="w", calls=calls, output_tokens=turn.randint(1, 3000), fail=fail)

    leaf = Agent("leaf", settings=helix.ModelSettings(max_tokens=chance.randint(1, 2000)))
    middle = Agent("middle", sub_agents=[leaf], limits=Limits(cost=0.05) if chance.random() < 0.5 else None)
    root = Agent("root", sub_agents=[middle, leaf])
    limits = Limits(cost=chance.choice([0.01, 0.05, 0.2]))
    result, chunks = await run(root, {"function": PRICE}, model=FunctionModel(answer), limits=limits)
    assert result.cost is not None
    within(chunks)


def within(chunks: list[helix.Chunk]) -> None:
    """Replays the calls: each began below every limit, and beside others only if all their reservations fitted."""
    tree = RunTree()
    for chunk in chunks:
        if isinstance(chunk, StepStart):
            assert chunk.reserve is not None
            assert chunk.reserve.cost is not None
            for scope in tree.agents[chunk.agent_id].lineage():
                bound, used = scope.bounds.cost, scope.tree_usage.cost or 0
                assert bound is None or used < bound
                if bound is not None and scope.tree_reserved_cost:
                    assert dollars(used + scope.tree_reserved_cost + chunk.reserve.cost) <= bound
        tree.apply(chunk)
