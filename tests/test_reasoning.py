"""`reasoning_effort`, `reasoning_budget` and `show_reasoning`: what each adapter sends for them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from helix import ModelError, ModelSettings
from helix.errors import DefinitionError
from helix.messages import UserMessage
from helix.model import History, Model, ModelRequest, OutputDefinition
from helix.models.anthropic import DEFAULT_MAX_TOKENS, AnthropicModel
from helix.models.google import GoogleModel
from helix.models.openai_chat import OpenAIChatModel
from helix.models.openai_responses import OpenAIResponsesModel
from tests.dialects import DIALECTS, KEY, Dialect
from tests.recorded import Recorder
from tests.replay import Answer, ReplayServer

pytestmark = pytest.mark.anyio
CHAT, RESPONSES, ANTHROPIC, GOOGLE = DIALECTS
MAKERS: dict[str, Any] = {
    "openai_chat": OpenAIChatModel,
    "openai_responses": OpenAIResponsesModel,
    "anthropic": AnthropicModel,
    "google": GoogleModel,
}
OUTPUT = OutputDefinition("final_result", "The result.", {"type": "object", "properties": {}})


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def sent(wire: Dialect, model_name: str, output: OutputDefinition | None = None, **settings: Any) -> Any:
    """The body of the request that a model makes under these settings."""
    with ReplayServer(Answer(body=wire.said("fine"))) as server:
        model: Model = MAKERS[wire.name](model_name, api_key=KEY, base_url=server.url)
        history = History([UserMessage("hi")])
        given = ModelSettings(**settings)
        request = ModelRequest("r", "a", 1, 1, "", messages=history, tools=(), output=output, settings=given)
        await model.respond(request, Recorder())
    return server.requests[0].json


async def fields(wire: Dialect, model_name: str, **settings: Any) -> dict[str, Any]:
    """What these settings add to the request, or change in it."""
    plain, told = await sent(wire, model_name), await sent(wire, model_name, **settings)
    return {name: value for name, value in told.items() if plain.get(name) != value}


async def test_chat_completions() -> None:
    for effort in ("none", "minimal", "low", "medium", "high", "xhigh"):
        assert await fields(CHAT, "gpt-x", reasoning_effort=effort) == {"reasoning_effort": effort}
    assert await fields(CHAT, "gpt-x", show_reasoning=True) == {}


async def test_responses() -> None:
    assert await fields(RESPONSES, "gpt-5", reasoning_effort="low") == {"reasoning": {"effort": "low"}}
    both = await sent(RESPONSES, "gpt-5", reasoning_effort="high", show_reasoning=True)
    assert both["reasoning"] == {"effort": "high", "summary": "auto"}
    assert (both["store"], both["include"]) == (False, ["reasoning.encrypted_content"])
    assert await fields(RESPONSES, "gpt-5", show_reasoning=False) == {}


@pytest.mark.parametrize(("wire", "model"), [(CHAT, "gpt-x"), (RESPONSES, "gpt-5"), (ANTHROPIC, "claude-opus-4-7")])
async def test_a_budget_is_refused_before_a_request_where_it_is_not_known(wire: Dialect, model: str) -> None:
    with ReplayServer(Answer(body=wire.said("fine"))) as server:
        asked = MAKERS[wire.name](model, api_key=KEY, base_url=server.url)
        settings = ModelSettings(reasoning_budget=2000)
        request = ModelRequest("r", "a", 1, 1, "", History([UserMessage("hi")]), (), None, settings)
        with pytest.raises(ModelError, match=f"{model} takes no reasoning_budget: give it a reasoning_effort") as told:
            await cast(Model, asked).respond(request, Recorder())
    assert (told.value.code, told.value.retryable, server.requests) == ("model_rejected", False, [])


@pytest.mark.parametrize("name", ["claude-sonnet-4-6", "claude-opus-4-7", "claude-opus-5", "claude-fable-5-20260901"])
async def test_claude_from_4_6_on_decides_itself_under_an_effort(name: str) -> None:
    adaptive = {"type": "adaptive"}
    assert await fields(ANTHROPIC, name, reasoning_effort="xhigh") == {
        "thinking": adaptive,
        "output_config": {"effort": "xhigh"},
    }
    least = await sent(ANTHROPIC, name, reasoning_effort="minimal", show_reasoning=True)
    assert least["output_config"] == {"effort": "low"}
    assert least["thinking"] == {"type": "adaptive", "display": "summarized"}
    hidden = await sent(ANTHROPIC, name, reasoning_effort="high", show_reasoning=False)
    assert hidden["thinking"] == {"type": "adaptive", "display": "omitted"}
    for nothing in ({"reasoning_effort": "none"}, {"show_reasoning": True}):
        assert await fields(ANTHROPIC, name, **nothing) == {}


@pytest.mark.parametrize(
    "name",
    ["claude-3-7-sonnet-20250219", "claude-sonnet-4-5", "claude-haiku-4-5-20251001", "claude-sonnet-4-20250514"],
)
async def test_claude_up_to_4_5_has_a_budget_for_an_effort(name: str) -> None:
    assert await fields(ANTHROPIC, name, reasoning_effort="medium") == {
        "thinking": {"type": "enabled", "budget_tokens": 8192},
        "max_tokens": DEFAULT_MAX_TOKENS + 8192,
    }
    told = await sent(ANTHROPIC, name, reasoning_effort="high", max_tokens=4096)
    assert (told["max_tokens"], told["thinking"]["budget_tokens"]) == (4096, 2048)
    assert await fields(ANTHROPIC, name, reasoning_effort="none") == {}


async def test_a_budget_at_anthropic_goes_before_the_effort() -> None:
    for name in ("claude-opus-4-6", "claude-sonnet-4-5"):
        told = await fields(ANTHROPIC, name, reasoning_effort="high", reasoning_budget=3000, show_reasoning=False)
        thinking = {"type": "enabled", "budget_tokens": 3000, "display": "omitted"}
        assert told == {"thinking": thinking, "max_tokens": DEFAULT_MAX_TOKENS + 3000}
        assert await fields(ANTHROPIC, name, reasoning_budget=0) == {}


async def test_claude_is_not_forced_to_call_while_it_thinks() -> None:
    plain = await sent(ANTHROPIC, "claude-opus-4-7", OUTPUT)
    thinking = await sent(ANTHROPIC, "claude-opus-4-7", OUTPUT, reasoning_effort="low")
    assert plain["tool_choice"]["type"] == "tool"
    assert "tool_choice" not in thinking


async def config(model: str, **settings: Any) -> Any:
    return (await sent(GOOGLE, model, **settings)).get("generationConfig", {}).get("thinkingConfig")


async def test_gemini_has_levels_from_its_third_generation_on() -> None:
    efforts = ("none", "minimal", "low", "medium", "high", "xhigh")
    levels = [await config("gemini-3-pro", reasoning_effort=effort) for effort in efforts]
    told = ("minimal", "minimal", "low", "medium", "high", "high")
    assert levels == [{"thinkingLevel": level} for level in told]
    assert await config("gemini-3-pro", reasoning_effort="low", show_reasoning=True) == {
        "thinkingLevel": "low",
        "includeThoughts": True,
    }


async def test_gemini_has_budgets_before() -> None:
    efforts = ("none", "minimal", "low", "medium", "high", "xhigh")
    budgets = [(await config("gemini-2.5-flash", reasoning_effort=effort))["thinkingBudget"] for effort in efforts]
    assert budgets == [0, 1024, 1024, 8192, 24_576, 24_576]
    assert await config("gemini-2.5-flash", show_reasoning=False) == {"includeThoughts": False}
    for model in ("gemini-2.5-pro", "gemini-3-pro"):
        assert await config(model, reasoning_budget=500, reasoning_effort="high") == {"thinkingBudget": 500}
    assert await config("gemini-2.5-pro") is None


async def test_extra_body_goes_over_all_of_it() -> None:
    own = {"type": "enabled", "budget_tokens": 1500}
    told = await sent(ANTHROPIC, "claude-sonnet-4-5", reasoning_effort="high", extra_body={"thinking": own})
    assert (told["thinking"], told["max_tokens"]) == (own, DEFAULT_MAX_TOKENS + 1500)
    own = {"effort": "low", "summary": "detailed"}
    told = await sent(RESPONSES, "gpt-5", reasoning_effort="high", extra_body={"reasoning": own})
    assert told["reasoning"] == own
    extra = {"generationConfig": {"thinkingConfig": {"thinkingBudget": 7}}}
    assert await config("gemini-2.5-pro", reasoning_effort="high", extra_body=extra) == {"thinkingBudget": 7}


def test_mistakes_are_told_at_once() -> None:
    with pytest.raises(DefinitionError, match=r"'hihg'\): there is no such effort. Did you mean 'high'\? Known are"):
        ModelSettings(reasoning_effort=cast(Any, "hihg"))
    with pytest.raises(DefinitionError, match="must be at least 0"):
        ModelSettings(reasoning_budget=-1)
