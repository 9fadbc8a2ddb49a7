"""`Recorded`: a log as a model makes the same run again, and says where a run leaves it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

import helix
from helix import Agent, Chunk, Executor, ModelError, ModelSettings, RunFailed, RunResult, tool
from helix.cli import demo
from helix.messages import AssistantMessage, RefusalPart, TextPart, ThinkingPart, ToolCall
from helix.model import Emit, ModelReply, ModelRequest
from helix.testing import Call, Recorded, ScriptedModel, Turn, check_stream, recorded
from tests import random_trees

pytestmark = pytest.mark.anyio

_DELTAS = {"text_delta", "thinking", "output_delta", "tool_input_start", "tool_input_delta", "tool_input_end"}
OF_MODELS = _DELTAS | {"step_start", "step_end", "output", "message"}


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


async def watched(
    agent: Agent[Any, Any, Any], prompt: Any, **options: Any
) -> tuple[RunResult[Any, Any], list[helix.Chunk]]:
    with anyio.fail_after(20):
        async with Executor() as executor:
            handle = await executor.execute(agent, prompt, run_id="root", session_id="s", **options)
            result = await handle.result()
            chunks = await helix.collect(handle.stream())
    check_stream(chunks)
    return result, chunks


def by_agent(chunks: Iterable[Chunk]) -> dict[str, list[dict[str, Any]]]:
    """What each agent did, without times, numbers and the model's name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for chunk in chunks:
        data = helix.chunk_to_dict(chunk)
        left_out = ("timestamp", "_sequence", "durationMs", "model")
        found.setdefault(chunk.agent_id, []).append({k: v for k, v in data.items() if k not in left_out})
    return found


def said(chunks: Iterable[Chunk]) -> list[str]:
    """What the model of each agent did, whatever the agents' ids: trio starts parallel children in any order."""
    own = [chunk for chunk in chunks if chunk.type in OF_MODELS or (chunk.type == "error" and not chunk.tool_call_id)]
    lives = by_agent(own).values()
    return sorted(json.dumps([{**data, "agentId": ""} for data in life]) for life in lives)


def save(chunks: Iterable[Chunk], path: Path) -> Path:
    path.write_bytes(b"".join(helix.chunk_to_json(chunk) + b"\n" for chunk in chunks))
    return path


# --- the same again


async def test_the_demo_tree_makes_the_same_log_again(tmp_path: Path, anyio_backend: str) -> None:
    result, chunks = await watched(demo.boss, demo.QUESTION, deps=0.0, model=demo.scripted(0))
    with Recorded(save(chunks, tmp_path / "run.jsonl")) as model:
        again, chunks_again = await watched(demo.boss, demo.QUESTION, deps=0.0, model=model)
    assert again.output == result.output
    assert again.usage == result.usage
    assert said(chunks_again) == said(chunks)
    if anyio_backend == "asyncio":  # where parallel children start in their order
        assert by_agent(chunks_again) == by_agent(chunks)
    assert len(model.requests) == sum(chunk.type == "step_start" for chunk in chunks)


@pytest.mark.parametrize("seed", range(20))
async def test_in_random_trees_every_model_says_the_same_again(seed: int) -> None:
    root = random_trees.make_tree(seed)
    original = random_trees.make_model(seed, root)
    options: Any = {"deps": random_trees.World(seed), "on_approval": random_trees.some_answer(seed)}
    result, chunks = await watched(root, "go", model=original, **options)
    again, chunks_again = await watched(root, "go", model=Recorded(chunks), **options)
    assert (again.status, again.messages[-1]) == (result.status, result.messages[-1])
    assert said(chunks_again) == said(chunks)


class Speaker:
    """A model that says everything that there is to say."""

    name = "speaker"

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        emit.thinking("Hm, ")
        emit.thinking("so.")
        emit.provider_data("p", {"signature": "abc"}, to="part")
        emit.text("I say ")
        emit.text("no: ")
        emit.refusal("I would rather not.")
        if request.step == 1:
            emit.tool_call(0, call_id="x", name="ping", arguments='{"n"')
            emit.tool_call(1, call_id="y", name="ping", arguments='{"n": 2}')
            emit.tool_call(0, arguments=": 1}")
            emit.tool_call(2, call_id="x", name="ping", arguments="{broken")
            emit.provider_data("p", {"of": "the call"}, to="part")
        emit.provider_data("p", {"of": "the message"})
        return ModelReply("tool_calls" if request.step == 1 else "refusal", helix.Usage(3, 4, 7, 1, 2, 1, 0.5))


@tool
def ping(n: int) -> int:
    return n


async def test_signatures_refusals_interleaved_calls_and_costs_are_kept() -> None:
    agent = Agent("a", tools=[ping])
    result, chunks = await watched(agent, "go", model=Speaker())
    again, chunks_again = await watched(agent, "go", model=Recorded(chunks))
    assert again.messages == result.messages
    first = again.messages[1]
    assert isinstance(first, AssistantMessage)
    assert [type(part) for part in first.content] == [ThinkingPart, TextPart, RefusalPart, ToolCall, ToolCall, ToolCall]
    assert first.content[0].provider_data == {"p": {"signature": "abc"}}
    assert first.provider_data == {"p": {"of": "the message"}}
    assert said(chunks_again) == said(chunks)
    assert again.usage == result.usage


async def test_a_log_without_its_pieces_gives_the_same_messages() -> None:
    agent = Agent("a", tools=[ping])
    result, chunks = await watched(agent, "go", model=Speaker())
    kept = {"run_start", "step_start", "step_end", "tool_start", "tool_end", "run_end"}
    again, _ = await watched(agent, "go", model=Recorded(chunk for chunk in chunks if chunk.type in kept))
    assert again.messages == result.messages


class City(BaseModel):
    name: str


@pytest.mark.parametrize(
    "turn", [Turn(output={"name": "Bergen"}), Turn(text="It is:", calls=[Call("final_result", name="Bergen")])]
)
async def test_a_structured_output_comes_as_it_came(turn: Turn) -> None:
    agent = Agent("a", output_type=City)
    result, chunks = await watched(agent, "go", model=ScriptedModel([Turn(output={"nam": 1}), turn]))
    again, chunks_again = await watched(agent, "go", model=Recorded(chunks))
    assert again.output == result.output == City(name="Bergen")
    assert said(chunks_again) == said(chunks)


async def test_failed_attempts_fail_again_and_are_not_waited_for() -> None:
    overloaded = ModelError("model_rate_limited", "later", retryable=True, retry_after=0.001, detail="HTTP 429")
    script = [Turn(text="ha", fail=overloaded), Turn(thinking="h", drop=True), "Done."]
    quick, patient = ModelSettings(retry_delay=0), ModelSettings(retry_delay=1000)
    _, chunks = await watched(Agent("a", settings=quick), "go", model=ScriptedModel(script))
    again, chunks_again = await watched(Agent("a", settings=patient), "go", model=Recorded(chunks))
    assert again.output == "Done."
    assert said(chunks_again) == said(chunks)


async def test_children_that_begin_in_another_order_are_known_by_their_question() -> None:
    def boss(first: str, second: str) -> list[Any]:
        return [Turn(calls=[Call("child", input=first), Call("child", input=second)]), "Both."]

    agent = Agent("boss", sub_agents=[Agent("child")])
    script = {"boss": boss("one", "two"), "child": lambda request: f"{request.messages[0].content}!"}
    _, chunks = await watched(agent, "go", model=ScriptedModel(script))
    model = Recorded(chunks)

    class Swapped:
        """Asks the children the other way round."""

        name = "swapped"

        async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
            scripted = ScriptedModel([boss("two", "one")[0]])
            source = scripted if request.agent_type == "boss" and request.step == 1 else model
            if request.agent_type == "boss" and request.step == 1:
                await model.respond(request, Silent())
            return await source.respond(request, emit)

    result, _ = await watched(agent, "go", model=Swapped())
    assert [message.content for message in result.messages[2:4]] == ["two!", "one!"]


class Silent:
    def text(self, delta: str) -> None: ...
    def refusal(self, delta: str) -> None: ...
    def thinking(self, delta: str) -> None: ...
    def tool_call(self, index: int, **_: Any) -> None: ...
    def provider_data(self, provider: str, data: dict[str, Any], **_: Any) -> None: ...


async def test_a_child_that_its_parent_cut_stalls_until_it_is_cut_again() -> None:
    slow = Agent("slow")

    @tool(timeout=0.05)
    async def try_it(ctx: helix.ToolContext) -> str:
        return (await ctx.run_agent(slow, "go")).output

    agent = Agent("boss", tools=[try_it])
    script = {"boss": [Turn(calls=[Call("try_it")]), "Too slow."], "slow": [Turn(text="I am", stall=True)]}
    result, chunks = await watched(agent, "go", model=ScriptedModel(script))
    again, chunks_again = await watched(agent, "go", model=Recorded(chunks))
    assert result.output == again.output == "Too slow."
    assert said(chunks_again) == said(chunks)


# --- where a run leaves its log


async def hello(*script: Any, prompt: str = "Hello?") -> list[Chunk]:
    return (await watched(Agent("a"), prompt, model=ScriptedModel(list(script or ["Hi."]))))[1]


async def fails_with(model: Recorded, prompt: str = "Hello?", agent: Agent[Any] | None = None) -> str:
    with pytest.raises(RunFailed) as failed, anyio.fail_after(10):
        await helix.run(agent or Agent("a", tools=[ping]), prompt, model=model)
    assert failed.value.result.error_code == "internal"
    return str(failed.value.result.error)


async def test_another_question_is_an_error_that_shows_both(tmp_path: Path) -> None:
    path = save(await hello(), tmp_path / "run.jsonl")
    told = await fails_with(Recorded(path), "Good day?")
    assert told == "run.jsonl: a was asked 'Hello?' in chunk 1, and is asked 'Good day?' now"
    assert (await helix.run(Agent("a"), "Good day?", model=Recorded(path, strict=False))).output == "Hi."


async def test_a_step_too_many_is_an_error_that_says_where_the_log_ends(tmp_path: Path) -> None:
    chunks = await hello(Turn(calls=[Call("nothing")]), "Done.")
    [start] = [chunk.sequence for chunk in chunks if chunk.type == "step_start" and chunk.step == 1]
    end = next(chunk.sequence for chunk in chunks if chunk.type == "step_start" and chunk.step == 2)
    model = Recorded(save([chunk for chunk in chunks if chunk.sequence < end], tmp_path / "run.jsonl"))
    told = await fails_with(model)
    assert told == f"run.jsonl: a asks for step 2, attempt 1; its last one is in chunk {start}"


async def test_an_agent_that_was_not_there_is_an_error_with_those_that_were() -> None:
    told = await fails_with(Recorded(await hello()), agent=Agent("b"))
    assert told == "the recorded run: no 'b' was recorded that is not taken; there were: a"


async def test_steps_that_are_left_over_are_an_error_when_the_block_is_left() -> None:
    chunks = await hello(Turn(calls=[Call("nothing")]), "Done.")
    with pytest.raises(AssertionError, match=r"^the recorded run: recorded steps were not asked for: 2 of a$"):
        Recorded(chunks).__exit__(None, None, None)
    with Recorded(chunks, strict=False):
        pass


async def test_a_log_that_stops_in_a_step_says_so() -> None:
    chunks = await hello()
    told = await fails_with(Recorded([chunk for chunk in chunks if chunk.type not in ("step_end", "run_end")]))
    assert told == "the recorded run: the log ends in the middle of the step that begins in chunk 2"


async def test_a_run_that_was_cancelled_ends_where_it_was_cut() -> None:
    async with helix.stream(Agent("a"), "Hello?", model=ScriptedModel([Turn(text="I think", stall=True)])) as run:
        async for chunk in run:
            if chunk.type == "text_delta":
                break
        await run.cancel()
        chunks = await helix.collect(run.handle.stream())
    told = await fails_with(Recorded(chunks))
    cut = next(chunk.sequence for chunk in chunks if chunk.type == "step_end")
    assert told == f"the recorded run: the step was cut in chunk {cut}, and the run with it; there is no more to play"


async def test_what_a_crash_left_behind_is_not_played() -> None:
    chunks = await hello()
    crashed: list[Any] = [helix.parse_chunk(helix.chunk_to_json(chunk)) for chunk in (*chunks[:3], chunks[3])]
    crashed[3].outcome, crashed[3].reason, crashed[3].message = "abandoned", "crash", None
    result = await helix.run(Agent("a"), "Hello?", model=Recorded([*crashed, *chunks[1:]]))
    assert result.output == "Hi."


async def test_a_file_that_is_no_log_is_refused_with_its_line(tmp_path: Path) -> None:
    path = save(await hello(), tmp_path / "run.jsonl")
    path.write_bytes(path.read_bytes() + b"\nnonsense\n")
    lines = len(path.read_bytes().splitlines())
    with pytest.raises(helix.InvalidChunk, match=rf"^run.jsonl, line {lines}: not a chunk"):
        Recorded(path)
    path.write_text("")
    with pytest.raises(helix.UsageError, match=r"^run.jsonl: no run begins in it"):
        Recorded(str(path))
    with pytest.raises(FileNotFoundError):
        Recorded(tmp_path / "absent.jsonl")


async def test_the_function_recorded_is_still_the_functions_name() -> None:
    assert callable(recorded)
    assert repr(Recorded(await hello())) == "Recorded(the recorded run, 1 agent)"
