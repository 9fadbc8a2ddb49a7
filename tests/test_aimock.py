"""helix against a provider that others wrote, aimock: through the command line in real processes, and in Python."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

import helix
from helix import Agent, ModelSettings
from helix.cli import main
from helix.model import OutputMode
from helix.models.openai_chat import AzureOpenAIChatModel, OpenAIChatModel
from helix.testing import Recorded, check_stream
from tests.aimock.server import AIMock

KEY = "sk-of-the-mock"
HELIX = [sys.executable, "-W", "error", "-m", "helix.cli"]

AGENTS = '''
from helix import Agent, ModelSettings, tool


@tool
def population(city: str) -> int:
    """How many people live in a city."""
    return {"Bergen": 290_000, "Zürich": 430_000}[city]


quick = ModelSettings(retry_delay=0)
plain = Agent("plain", settings=quick)
once = Agent("once", settings=ModelSettings(max_retries=0))
child = Agent("child", description="Helps.", settings=quick)
parent = Agent("parent", tools=[population], sub_agents=[child], settings=quick)
'''


@pytest.fixture(scope="module")
def server() -> Iterator[AIMock]:
    with AIMock() as mock:
        yield mock


class Done:
    """What `helix run` did, and what `helix check` says of the log that it saved."""

    def __init__(
        self, process: subprocess.CompletedProcess[str], log: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.code, self.answer, self.told = process.returncode, process.stdout, process.stderr.splitlines()
        self.chunks: list[Any] = [helix.parse_chunk(line) for line in log.read_bytes().splitlines()]
        capsys.readouterr()
        code = main(["check", str(log)])
        self.check = (code, capsys.readouterr().out.partition(f"ok: {len(self.chunks)} chunks, ")[2].strip())

    def all(self, kind: str) -> list[Any]:
        return [chunk for chunk in self.chunks if chunk.type == kind]


Run = Callable[..., Done]


@pytest.fixture
def run(server: AIMock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`helix run mod:agent prompt` against the mock, in a process."""
    (tmp_path / "mod.py").write_text(AGENTS)

    def run(agent: str, prompt: str, model: str = "gpt-4o") -> Done:
        env = {**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"{server.url}/v1"}
        command = [*HELIX, "run", f"mod:{agent}", prompt, "-m", f"openai:{model}", "--save", "run.jsonl"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=60)
        return Done(done, tmp_path / "run.jsonl", capsys)

    return run


def says(prompt: str, content: Any, **more: Any) -> dict[str, Any]:
    """A fixture: to that prompt these words; `match_…` narrows the match, `reply_…` adds to the reply."""
    taken = {name: value for name, value in more.items() if not name.startswith(("match_", "reply_"))}
    match = {name[6:]: value for name, value in more.items() if name.startswith("match_")}
    reply = {name[6:]: value for name, value in more.items() if name.startswith("reply_")}
    response = {**({} if content is None else {"content": content}), **reply}
    return {"match": {"userMessage": prompt, **match}, "response": response, **taken}


def fails(prompt: str, status: int, message: str, **more: Any) -> dict[str, Any]:
    return says(prompt, None, reply_error={"message": message, "type": "some_error"}, reply_status=status, **more)


# --- the command line


def test_text_is_the_answer_and_its_usage_the_last_line(server: AIMock, run: Run) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    server.play(says("hello", "Grüezi 🌍 !\nTwo lines, wörld.", reply_usage=usage, chunkSize=3))
    done = run("plain", "hello")
    assert (done.code, done.answer) == (0, "Grüezi 🌍 !\nTwo lines, wörld.\n")
    assert done.told[-1].startswith("[15 tokens, ~$0.0000")
    assert len(done.all("text_delta")) == 10
    assert done.check == (0, "1 agent, completed")
    assert server.requests()[0]["messages"] == [{"role": "user", "content": "hello"}]


def test_parallel_tool_calls_and_a_sub_agent(server: AIMock, run: Run) -> None:
    calls = [
        {"name": "population", "arguments": {"city": "Zürich"}, "id": "one"},
        {"name": "child", "arguments": {"input": "a word, please"}, "id": "two"},
        {"name": "population", "arguments": {"city": "Bergen"}, "id": "three"},
    ]
    server.play(
        says("a word, please", "Fjord."),
        says("compare", "I count.", reply_toolCalls=calls, match_hasToolResult=False, chunkSize=4),
        says("compare", "Zürich is bigger.", match_hasToolResult=True),
    )
    done = run("parent", "compare")
    assert (done.code, done.answer) == (0, "Zürich is bigger.\n")
    results = {end.tool_call_id: end.result for end in done.all("tool_end")}
    assert results == {"one": 430_000, "two": "Fjord.", "three": 290_000}
    sent = server.requests()[-1]["messages"]
    assert [message.get("tool_call_id") for message in sent[2:]] == ["one", "two", "three"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == ["one", "two", "three"]
    assert done.check == (0, "2 agents, completed")
    agents: dict[str, Any] = {}
    exec(AGENTS, agents)
    with Recorded(done.chunks) as again:  # the same run once more, without the provider
        assert helix.run_sync(agents["parent"], "compare", model=again).output == "Zürich is bigger."


def test_slow_reasoning_and_words_are_logged_as_they_come(server: AIMock, run: Run) -> None:
    slowly = {"chunkSize": 6, "streamingProfile": {"ttft": 100, "tps": 40}}
    server.play(says("think", "one word and then another", reply_reasoning="Two and two are four.", **slowly))
    done = run("plain", "think", "o3")
    assert (done.code, done.answer) == (0, "one word and then another\n")
    thoughts, deltas = done.all("thinking"), done.all("text_delta")
    assert "".join(part.content for part in thoughts if not part.is_complete) == "Two and two are four."
    assert [part.content for part in thoughts if part.is_complete] == ["Two and two are four."]
    assert (len(thoughts), len(deltas)) == (5, 5)
    assert deltas[-1].timestamp - thoughts[0].timestamp >= 100
    assert thoughts[0].timestamp - done.all("step_start")[0].timestamp >= 90
    assert done.check == (0, "1 agent, completed")


def test_a_rate_limit_is_waited_for_as_the_provider_asks(server: AIMock, run: Run) -> None:
    server.play(
        fails("limited", 429, "Slow down.", match_sequenceIndex=0, reply_retryAfter=1),
        says("limited", "Now I may.", match_sequenceIndex=1),
    )
    done = run("plain", "limited")
    assert (done.code, done.answer) == (0, "Now I may.\n")
    [error] = done.all("error")
    assert (error.code, error.error, error.recoverable) == ("model_rate_limited", "Slow down.", True)
    first, second = done.all("step_start")
    assert second.timestamp - first.timestamp >= 1000
    assert done.check == (0, "1 agent, completed")


def test_a_disconnect_in_mid_reply_is_tried_again(server: AIMock, run: Run) -> None:
    words = "This answer is cut in the middle of it."
    server.play(
        says("cut", words, match_sequenceIndex=0, chunkSize=5, latency=20, truncateAfterChunks=4),
        says("cut", words, match_sequenceIndex=1),
    )
    done = run("plain", "cut")
    assert (done.code, done.answer) == (0, f"{words}\n")
    assert [(end.attempt, end.outcome) for end in done.all("step_end")] == [(1, "abandoned"), (2, "committed")]
    assert [(error.code, error.recoverable) for error in done.all("error")] == [("model_stream_dropped", True)]
    _, second = done.all("step_start")
    void = [chunk.delta for chunk in done.all("text_delta") if chunk.sequence < second.sequence]
    assert void
    assert words.startswith("".join(void))
    assert done.check == (0, "1 agent, completed")


def test_a_fault_that_stays_is_one_clear_line_and_exit_code_1(server: AIMock, run: Run) -> None:
    server.play(says("chaos", "Never read.", chaos={"rateLimitRate": 1}))
    done = run("once", "chaos")
    assert (done.code, done.answer) == (1, "")
    assert done.told[-2:] == ["once: ✗ failed (model_rate_limited): Chaos: rate limit exceeded", "[0 tokens, ~$0.00]"]
    assert done.check == (0, "1 agent, failed")


# --- in Python

ONCE = ModelSettings(max_retries=0)
QUICK = ModelSettings(retry_delay=0)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


def model(server: AIMock, name: str = "gpt-4o", *, path: str = "/v1") -> OpenAIChatModel:
    return OpenAIChatModel(name, api_key=KEY, base_url=f"{server.url}{path}")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fault", "code", "detail"),
    [
        ({"rateLimitRate": 1}, "model_rate_limited", "HTTP 429"),
        ({"dropRate": 1}, "model_unavailable", "HTTP 500"),
        ({"disconnectRate": 1}, "model_unavailable", "Server disconnected"),
        ({"malformedRate": 1}, "model_stream_dropped", "{malformed json"),
    ],
    ids=["429", "500", "disconnect", "no-stream"],
)
async def test_each_fault_is_the_runs_error(server: AIMock, fault: dict[str, float], code: str, detail: str) -> None:
    server.play(says("chaos", "Never read.", chaos=fault))
    with anyio.fail_after(20):
        async with helix.stream(Agent("a", settings=ONCE), "chaos", model=model(server)) as run:
            chunks = await helix.collect(run)
            result = await run.result()
    check_stream(chunks)
    assert (result.status, result.error_code) == ("failed", code)
    assert [(error.code, error.recoverable) for error in chunks if error.type == "error"] == [(code, False)]
    assert detail in str([error.detail for error in chunks if error.type == "error"])
    assert KEY not in str(chunks)
    assert len(server.requests()) == 1


@pytest.mark.anyio
async def test_a_first_byte_that_comes_too_late_ends_the_attempt(server: AIMock) -> None:
    server.play(
        says("late", "Never read.", match_sequenceIndex=0, streamingProfile={"ttft": 20_000}),
        says("late", "In time.", match_sequenceIndex=1),
    )
    with anyio.fail_after(20):
        agent = Agent("a", settings=ModelSettings(timeout=0.3, retry_delay=0))
        result = await helix.run(agent, "late", model=model(server))
    assert result.output == "In time."
    assert len(server.requests()) == 2


@pytest.mark.anyio
async def test_leaving_a_slow_reply_does_not_wait_for_its_end(server: AIMock) -> None:
    server.play(says("slow", "word " * 100, chunkSize=5, streamingProfile={"ttft": 1, "tps": 10}))
    with anyio.fail_after(5):
        async with helix.stream(Agent("a"), "slow", model=model(server)) as run:
            async for piece in helix.text(run):
                assert piece == "word "
                break
        result = await run.result()
        chunks = await helix.collect(run.handle.stream())
    assert result.status == "cancelled"
    check_stream(chunks)


class City(BaseModel):
    name: str
    districts: list[str]


@pytest.mark.anyio
async def test_a_structured_output_as_a_tool_call_and_as_text(server: AIMock) -> None:
    value = {"name": "Zürich", "districts": ["Enge", "Höngg"]}
    server.play(
        says("map", value, match_responseFormat="json_schema", chunkSize=3),
        says("map", None, reply_toolCalls=[{"name": "final_result", "arguments": value}], chunkSize=3),
    )
    modes: list[OutputMode] = ["tool", "native"]
    for mode in modes:
        with anyio.fail_after(20):
            agent = Agent("mapper", output_type=City, output_mode=mode, model=model(server))
            async with helix.stream(agent, "map") as run:
                partial = await helix.collect(helix.partial_outputs(run, City))
                result = await run.result()
        assert result.output == City(name="Zürich", districts=["Enge", "Höngg"])
        assert len(partial) > 5
        check_stream(await helix.collect(run.handle.stream()))


@pytest.mark.anyio
async def test_openrouters_dialect_with_keepalive_comments_and_reasoning(server: AIMock) -> None:
    slug = "openai/o3"
    server.play(says("hi", "Hello.", reply_reasoning="A greeting.", match_model=slug, openRouterProcessing=True))
    with anyio.fail_after(20):
        async with helix.stream(Agent("a"), "hi", model=model(server, slug, path="/api/v1")) as run:
            chunks = await helix.collect(run)
    check_stream(chunks)
    assert [chunk.content for chunk in chunks if chunk.type == "thinking" and chunk.is_complete] == ["A greeting."]
    assert [chunk.delta for chunk in chunks if chunk.type == "text_delta"] == ["Hello."]


@pytest.mark.anyio
async def test_azures_paths(server: AIMock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", server.url)
    monkeypatch.setenv("OPENAI_API_VERSION", "2025-01-01")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    monkeypatch.delenv("AZURE_OPENAI_AD_TOKEN", raising=False)
    server.play(says("hi", "From a deployment."))
    with anyio.fail_after(20):
        result = await helix.run(Agent("a", settings=QUICK), "hi", model=AzureOpenAIChatModel("my-gpt"))
    assert result.output == "From a deployment."
