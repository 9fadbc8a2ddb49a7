"""`FallbackModel`: another model is asked when one fails, and the log shows it."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import anyio
import pytest

import helix
from helix import Agent, ModelError, ModelSettings, RunFailed, tool
from helix.errors import DefinitionError, MissingKey, UnknownModel
from helix.limits import Usage
from helix.model import Emit, History, Model, ModelReply, ModelRequest
from helix.models.fallback import FallbackModel
from helix.models.google import GoogleModel
from helix.testing import Call, ScriptedModel, Turn, check_stream
from tests.dialects import DIALECTS, event
from tests.recorded import Recorder
from tests.replay import JSON, Answer, ReplayServer

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


class Named(ScriptedModel):
    """A scripted model with a name of its own, which counts who is using it."""

    def __init__(self, name: str, *turns: Turn | str) -> None:
        super().__init__(list(turns))
        self._name = name
        self.users = 0

    @property
    def name(self) -> str:
        return self._name

    async def __aenter__(self) -> Self:
        self.users += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.users -= 1


BUSY = ModelError("model_rate_limited", "Too many requests.", retryable=True, retry_after=300.0)
WRONG = ModelError("model_rejected", "No such model.")


def failing(error: Any = BUSY, said: str = "") -> Turn:
    return Turn(said, fail=error)


async def watched(
    model: Model, settings: ModelSettings | None = None
) -> tuple[helix.RunResult[Any, Any], list[helix.Chunk]]:
    agent = Agent("a", model=model, settings=settings)
    with anyio.fail_after(20):
        async with helix.stream(agent, "go") as run:
            chunks = await helix.collect(run)
            result = await run.result()
    check_stream(chunks)
    return result, chunks


def steps(chunks: list[helix.Chunk]) -> list[tuple[int, int, str]]:
    return [(chunk.step, chunk.attempt, chunk.outcome) for chunk in chunks if chunk.type == "step_end"]


def errors(chunks: list[helix.Chunk]) -> list[str]:
    return [chunk.error for chunk in chunks if chunk.type == "error"]


async def test_the_next_model_answers_when_one_fails_in_mid_reply_and_both_attempts_are_in_the_log() -> None:
    first, second = Named("one", failing(said="Half an ")), Named("two", "A whole answer.")
    result, chunks = await watched(FallbackModel(first, second))
    assert result.output == "A whole answer."
    assert steps(chunks) == [(1, 1, "abandoned"), (1, 2, "committed")]
    assert errors(chunks) == ["one: Too many requests; next: two"]
    assert [chunk.code for chunk in chunks if chunk.type == "error"] == ["model_rate_limited"]
    assert [chunk.model for chunk in chunks if chunk.type == "step_start"] == ["one", "two"]
    assert [chunk.model for chunk in chunks if chunk.type == "run_start"] == ["fallback(one, two)"]
    assert [type(message).__name__ for message in result.messages] == ["UserMessage", "AssistantMessage"]
    assert second.requests[0].attempt == 2


async def test_a_model_that_breaks_is_named_once() -> None:
    class Broken(Named):
        async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
            raise LookupError("no such thing")

    result, chunks = await watched(FallbackModel(Broken("one"), Named("two", "Fine."), on=["internal"]))
    assert result.output == "Fine."
    assert errors(chunks) == ["one: LookupError: no such thing; next: two"]
    _, chunks = await watched(Broken("alone"))
    assert errors(chunks) == ["alone: LookupError: no such thing"]


async def test_an_agent_goes_on_with_the_model_that_answered_and_its_next_run_begins_with_the_first() -> None:
    @tool
    def look() -> str:
        return "seen"

    first = Named("one", failing(), "From the first.")
    second = Named("two", Turn(calls=[Call("look")]), "From the second.")
    model = FallbackModel(first, second)
    with anyio.fail_after(20):
        async with helix.Executor() as executor:
            agent = Agent("a", model=model, tools=[look])
            session = helix.Session(agent, executor)
            assert (await session.send("go")).output == "From the second."
            assert [(request.step, request.attempt) for request in second.requests] == [(1, 2), (2, 1)]
            assert (await session.send("go")).output == "From the first."


async def test_agents_do_not_share_whose_turn_it_is() -> None:
    first = ScriptedModel({"a": [Turn(fail=BUSY), "a"], "b": ["b"]})
    second = ScriptedModel({"a": ["a"]})
    model = FallbackModel(first, second)
    with anyio.fail_after(20):
        for name in ("a", "b", "a"):
            assert (await helix.run(Agent(name, model=model), "go")).output == name


async def test_the_last_models_own_error_decides() -> None:
    first, second = Named("one", failing()), Named("two", failing(WRONG))
    with pytest.raises(RunFailed, match="two: No such model") as caught:
        await helix.run(Agent("a", model=FallbackModel(first, second)), "go")
    assert caught.value.result.error_code == "model_rejected"
    again = ModelError("model_unavailable", "Down.", retryable=True, retry_after=0.0)
    first, second = Named("one", failing(), "Up again."), Named("two", failing(again))
    result, chunks = await watched(FallbackModel(first, second))
    assert result.output == "Up again."
    assert errors(chunks) == ["one: Too many requests; next: two", "two: Down."]


async def test_only_the_codes_of_on_pass_the_turn_on() -> None:
    first, second = Named("one", failing(WRONG)), Named("two", "Right.")
    with pytest.raises(RunFailed, match="one: No such model"):
        await helix.run(Agent("a", model=FallbackModel(first, second)), "go")
    first = Named("one", failing(WRONG))
    result, _ = await watched(FallbackModel(first, second, on=["model_rejected"]))
    assert result.output == "Right."
    same = ModelError("model_unavailable", "Down.", retryable=True, retry_after=0.0)
    first = Named("one", failing(same), "Up again.")
    result, chunks = await watched(FallbackModel(first, second, on=["model_rejected"]))
    assert (result.output, errors(chunks)) == ("Up again.", ["one: Down."])


async def test_a_switch_is_no_retry_and_a_retry_is_another_round() -> None:
    models = [Named(str(number), failing(), failing(), failing()) for number in range(4)]
    result, chunks = await watched(FallbackModel(*models, Named("last", "x")))
    assert (result.output, len(steps(chunks))) == ("x", 5)
    down = ModelError("model_unavailable", "Down.", retryable=True, retry_after=0.0)
    models = [Named(str(number), *[failing(down)] * 9) for number in range(3)]
    with pytest.raises(RunFailed, match="2: Down"):
        await helix.run(Agent("a", model=FallbackModel(*models), settings=ModelSettings(max_retries=1)), "go")
    assert [len(model.requests) for model in models] == [2, 2, 2]


async def test_a_step_that_begins_with_the_second_model_asks_the_first_before_it_gives_up() -> None:
    @tool
    def look() -> str:
        return "seen"

    first = Named("one", failing(), "From the first.")
    second = Named("two", Turn(calls=[Call("look")]), failing())
    agent = Agent("a", model=FallbackModel(first, second), tools=[look], settings=ModelSettings(max_retries=0))
    assert (await helix.run(agent, "go")).output == "From the first."


async def test_a_failure_that_is_not_in_on_is_a_retry_of_the_same_model() -> None:
    same = ModelError("model_unavailable", "Down.", retryable=True, retry_after=0.0)
    first, second = Named("one", failing(same), failing(same), failing(WRONG)), Named("two", failing(same), "Right.")
    model = FallbackModel(first, second, on=["model_rejected"])
    with pytest.raises(RunFailed, match="two: Down"):
        await helix.run(Agent("a", model=model, settings=ModelSettings(max_retries=2)), "go")
    assert (len(first.requests), len(second.requests)) == (3, 1)


async def test_what_a_provider_wants_back_goes_to_no_other() -> None:
    @tool
    def look() -> str:
        return "seen"

    signature = "signed-by-google-alone"
    call = {"functionCall": {"name": "look", "args": {}}, "thoughtSignature": signature}
    said = {"candidates": [{"content": {"parts": [call]}, "finishReason": "STOP"}]}
    busy = Answer(body=b'{"error":{"code":503,"status":"UNAVAILABLE"}}', status=503, content_type=JSON)
    google = [Answer(body=event(said)), busy]
    for other in DIALECTS[:3]:
        with ReplayServer(google) as first, ReplayServer(Answer(body=other.said("Done."))) as second:
            gemini = GoogleModel("gemini-3-pro", api_key="AIza-not-a-key", base_url=first.url)
            agent = Agent("a", model=FallbackModel(gemini, other.model(second.url)), tools=[look])
            assert (await helix.run(agent, "go")).output == "Done."
        assert signature in str(first.requests[1])
        assert signature not in str(second.requests[0])


async def test_a_model_that_takes_too_long_passes_the_turn_on() -> None:
    first, second, third = Named("one", failing()), Named("two", Turn("Wait", stall=True)), Named("three", "Here.")
    settings = ModelSettings(timeout=0.05, retry_delay=0)
    result, chunks = await watched(FallbackModel(first, second, third), settings=settings)
    assert result.output == "Here."
    assert steps(chunks) == [(1, 1, "abandoned"), (1, 2, "abandoned"), (1, 3, "committed")]
    assert [len(model.requests) for model in (first, second, third)] == [1, 1, 1]


async def test_what_a_failed_attempt_used_is_counted() -> None:
    used = ModelError("model_stream_dropped", "Cut.", retryable=True, usage=Usage(5, 2, 7, requests=1))
    result, _ = await watched(
        FallbackModel(Named("one", failing(used)), Named("two", Turn("x", input_tokens=1, output_tokens=1)))
    )
    assert (result.usage.total_tokens, result.usage.requests) == (9, 2)


async def test_the_models_are_open_as_long_as_it_is() -> None:
    first, second, plain = Named("one"), Named("two"), ScriptedModel([])
    model = FallbackModel(first, plain, second)
    async with model:
        async with model:
            assert (first.users, second.users) == (2, 2)
        assert (first.users, second.users) == (1, 1)
    assert (first.users, second.users) == (0, 0)


async def test_a_model_that_cannot_be_opened_leaves_none_open() -> None:
    class Closed(Named):
        async def __aenter__(self) -> Self:
            raise OSError("closed")

    first = Named("one")
    with pytest.raises(OSError, match="closed"):
        async with FallbackModel(first, Closed("two")):
            pass
    assert first.users == 0


def chosen(model: FallbackModel, *failures: str, attempt: int) -> tuple[str, int, str | None]:
    choice = model.choose(failures, attempt)
    return choice.model.name, choice.retries, None if choice.following is None else choice.following.name


def test_whose_turn_it_is_follows_from_the_failures_alone() -> None:
    model = FallbackModel(Named("one"), FallbackModel(Named("two"), Named("three")))
    busy, crash = "model_rate_limited", "crash"
    assert chosen(model, attempt=1) == ("one", 0, "two")
    assert chosen(model, busy, attempt=2) == ("two", 0, "three")
    assert chosen(model, busy, busy, attempt=3) == ("three", 0, None)
    assert chosen(model, busy, busy, busy, attempt=4) == ("one", 1, "two")
    assert chosen(model, busy, attempt=1) == ("two", 0, "three")
    assert chosen(model, busy, busy, attempt=1) == ("three", 0, "one")
    assert chosen(model, crash, attempt=2) == ("one", 1, "two")
    assert chosen(model, busy, crash, busy, attempt=3) == ("three", 1, "one")


async def test_a_model_around_it_gets_its_answers_too() -> None:
    inner = FallbackModel(Named("one", failing()), Named("two", "Here."))
    recorder = Recorder()
    request = ModelRequest("r", "a", 1, 2, "", History(), (), None, ModelSettings(), failures=["model_rate_limited"])
    await inner.respond(request, recorder)
    assert recorder.said == "Here."


async def test_a_real_adapter_that_is_refused_gives_way_to_another() -> None:
    refusal = Answer(
        body=b'{"error":{"code":503,"message":"Overloaded.","status":"UNAVAILABLE"}}', status=503, content_type=JSON
    )
    with ReplayServer(refusal) as server:
        busy = GoogleModel("gemini-2.5-flash", api_key="AIza-not-a-key", base_url=server.url)
        result, chunks = await watched(FallbackModel(busy, Named("two", "Here.")))
    assert result.output == "Here."
    assert errors(chunks) == ["google:gemini-2.5-flash: Overloaded; next: two"]


async def test_names_and_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AIza-not-a-key")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    named = FallbackModel("google:gemini-2.5-pro", "google:gemini-2.5-flash")
    assert named.name == "fallback(google:gemini-2.5-pro, google:gemini-2.5-flash)"
    assert repr(named) == "FallbackModel(GoogleModel('gemini-2.5-pro'), GoogleModel('gemini-2.5-flash'))"
    with pytest.raises(UnknownModel):
        FallbackModel("gemini")
    with pytest.raises(MissingKey):
        FallbackModel("google:gemini-2.5-pro", "openai:gpt-5")
    with pytest.raises(DefinitionError, match=r"no error code 'rate_limited'\. Did you mean 'model_rate_limited'"):
        FallbackModel(named, on=["rate_limited"])  # pyright: ignore[reportArgumentType] - the mistake
