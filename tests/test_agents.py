"""Agents: instructions, sub-agents, agents that tools run, usage of trees, and model calls that fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, ConfigDict, Field

import helix
from helix import Agent, Chunk, DefinitionError, Executor, RunFailed, ToolContext, Usage, tool
from helix.testing import Call, ScriptedModel, Turn, check_stream

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


class Notes(BaseModel):
    lines: list[str] = []
    count: int = 0


class Errand(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    what: str
    times: int = Field(default=1, ge=1)


async def play(
    agent: Agent[Any, Any, Any], model: ScriptedModel, input: Any = "go", **options: Any
) -> tuple[list[Chunk], helix.RunResult[Any, Any]]:
    """Runs an agent, to its end; all that was scripted must have been used."""
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(agent, input, model=model, **options)
            result = await handle.result()
            chunks = await helix.collect(handle.stream())
    check_stream(chunks)
    return chunks, result


def of(chunks: list[Chunk], kind: str) -> list[Any]:
    return [chunk for chunk in chunks if chunk.type == kind]


def asked(model: ScriptedModel, agent_type: str) -> list[Any]:
    return [request for request in model.requests if request.agent_type == agent_type]


@tool
async def step() -> str:
    return "stepped"


# --- the definition


async def test_agents_are_frozen_and_replaced() -> None:
    agent = Agent("a", instructions="be brief", tools=[step])
    with pytest.raises(AttributeError, match=r"agents are frozen; use agent\.replace\(name=…\)"):
        agent.name = "b"
    other = agent.replace(name="b", instructions="be long")
    assert (agent.name, agent.instructions) == ("a", "be brief")
    assert (other.name, other.instructions, other.tools) == ("b", "be long", agent.tools)
    with pytest.raises(TypeError, match="colour"):
        agent.replace(colour="red")


async def test_definitions_that_cannot_work_are_refused() -> None:
    with pytest.raises(DefinitionError, match="child cycle: a > b > a"):
        Agent("a", sub_agents=[Agent("b", sub_agents=[Agent("a")])])
    with pytest.raises(DefinitionError, match="agent name 'no name' is not usable"):
        Agent("no name")
    with pytest.raises(DefinitionError, match="two tools are called 'step'"):
        Agent("a", tools=[step], sub_agents=[Agent("step")])
    with pytest.raises(DefinitionError, match="both need the same state_type"):
        Agent("a", sub_agents=[Agent("b", state_type=Notes).as_tool(share_state=True)])
    with pytest.raises(DefinitionError, match=r"takes agents and agent\.as_tool"):
        Agent("a", sub_agents=[step])
    with anyio.fail_after(5), pytest.raises(DefinitionError, match="agent 'a' has no model"):
        await helix.run(Agent("a"), "go")


async def test_instructions_see_deps_and_the_state_of_each_step() -> None:
    @tool
    async def note(ctx: ToolContext[Notes], line: str) -> None:
        with ctx.update_state() as draft:
            draft.lines.append(line)

    def now(ctx: ToolContext[Notes, str]) -> str:
        ctx.emit("asked", ctx.agent_id)
        return f"{ctx.deps} knows {len(ctx.state.lines)}"

    async def later(ctx: ToolContext[Notes, str]) -> str:
        await anyio.lowlevel.checkpoint()
        return now(ctx)

    for instructions in (now, later):
        agent = Agent("a", instructions=instructions, state_type=Notes, deps_type=str, tools=[note])
        model = ScriptedModel([Turn(calls=[Call("note", line="x")]), "done"])
        chunks, result = await play(agent, model, deps="Ann")
        assert [request.instructions for request in model.requests] == ["Ann knows 0", "Ann knows 1"]
        assert [(chunk.event_name, chunk.tool_call_id) for chunk in of(chunks, "custom")] == [("asked", None)] * 2
        assert result.state == Notes(lines=["x"])


async def test_instructions_that_break_fail_the_run() -> None:
    def broken(ctx: ToolContext) -> str:
        raise LookupError("no prompt")

    chunks, result = await play(Agent("a", instructions=broken), ScriptedModel([]))
    assert (result.status, result.error_code) == ("failed", "internal")
    assert "LookupError: no prompt" in (result.error or "")
    assert [chunk.recoverable for chunk in of(chunks, "error")] == [False]


# --- sub-agents


async def test_a_sub_agent_takes_one_text() -> None:
    child = Agent("child", description="Helps.", instructions="you help")
    model = ScriptedModel({"root": [Turn(calls=[Call("child", input="fetch it")]), "done"], "child": ["fetched"]})
    chunks, result = await play(Agent("root", sub_agents=[child]), model)
    [definition] = model.requests[0].tools
    assert (definition.name, definition.description) == ("child", "Helps.")
    assert definition.parameters["required"] == ["input"]
    [request] = asked(model, "child")
    assert [message.content for message in request.messages] == ["fetch it"]
    assert request.instructions == "you help"
    [end] = of(chunks, "tool_end")
    assert end.result == "fetched"
    assert result.output == "done"


async def test_a_sub_agent_takes_a_typed_input() -> None:
    child = Agent("child")
    root = Agent(
        "root",
        sub_agents=[
            child.as_tool(input_type=Errand, description="Runs errands."),
            child.as_tool(input_type=Errand, name="ask", prompt=lambda errand: f"{errand.what}, {errand.times} times"),
            child.as_tool(input_type=list[int], name="numbers"),
        ],
    )
    calls = [
        Call("child", what="milk"),
        Call("ask", what="bread", times="2"),
        Call("numbers", input=[1, 2]),
        Call("child", what="milk", times=0),
        Call("child", input="milk"),
        Call("numbers", input=[1], more=1),
    ]
    model = ScriptedModel({"root": [Turn(calls=calls), "done"], "child": ["a", "b", "c"]})
    chunks, _ = await play(root, model)
    assert sorted(request.messages[0].content for request in asked(model, "child")) == sorted(
        ['{"what":"milk","times":1}', "bread, 2 times", "[1,2]"]
    )
    refused = {end.tool_call_id: end.error for end in of(chunks, "tool_end") if end.error}
    assert set(refused) == {"call_4", "call_5", "call_6"}
    assert "times: Input should be greater than or equal to 1" in refused["call_4"]
    assert "what: Field required" in refused["call_5"]
    assert {end.error_code for end in of(chunks, "tool_end") if end.error} == {"tool_invalid_arguments"}


async def test_a_prompt_that_breaks_is_a_failed_call() -> None:
    def prompt(errand: Errand) -> str:
        raise KeyError(errand.what)

    root = Agent("root", sub_agents=[Agent("child").as_tool(input_type=Errand, prompt=prompt)])
    model = ScriptedModel({"root": [Turn(calls=[Call("child", what="milk")]), "done"], "child": []})
    chunks, result = await play(root, model)
    assert "KeyError: 'milk'" in of(chunks, "tool_end")[0].error
    assert result.output == "done"


async def test_one_agent_many_times_at_once_has_ids_of_its_own() -> None:
    together = anyio.Event()
    waiting: list[str] = []

    async def answer(request: helix.ModelRequest) -> str:
        waiting.append(request.agent_id)
        if len(waiting) == 5:
            together.set()
        await together.wait()
        return f"did {request.messages[0].content}"

    calls = [Call("child", input=f"part {n}") for n in range(5)]
    model = ScriptedModel({"root": [Turn(calls=calls), "done"], "child": answer})
    chunks, result = await play(Agent("root", sub_agents=[Agent("child")]), model)
    root_id = result.run_id
    assert sorted(waiting) == [f"{root_id}.child-{n}" for n in range(1, 6)]
    assert [message.content for message in model.requests[-1].messages[2:]] == [f"did part {n}" for n in range(5)]
    assert len({start.call_id for start in of(chunks, "subagent_start")}) == 5
    assert {chunk.parent_id for chunk in of(chunks, "run_start")[1:]} == {root_id}


async def test_two_children_at_once_are_each_bracketed() -> None:
    calls = [Call("left", input="l"), Call("right", input="r")]
    both = {name: [Turn(calls=[Call("step")]), f"{name} done"] for name in ("left", "right")}
    model = ScriptedModel({"root": [Turn(calls=calls), "done"], **both})
    root = Agent("root", sub_agents=[Agent("left", tools=[step]), Agent("right", tools=[step])])
    chunks, result = await play(root, model)
    for start in of(chunks, "subagent_start"):
        [end] = [chunk for chunk in of(chunks, "subagent_end") if chunk.sub_agent_run_id == start.sub_agent_run_id]
        inside = [chunk.sequence for chunk in chunks if chunk.agent_id == start.sub_agent_run_id]
        assert start.sequence < min(inside)
        assert max(inside) < end.sequence
        assert (start.agent_id, end.agent_id) == (result.run_id, result.run_id)
        assert (end.call_id, end.status, end.result) == (start.call_id, "completed", f"{start.sub_agent_type} done")
        assert end.usage.total_tokens == 36


async def test_a_child_that_fails_is_a_failed_call_and_its_siblings_live_on() -> None:
    failed = anyio.Event()

    async def wait() -> None:
        await failed.wait()

    calls = [Call("bad", input="x"), Call("good", input="y")]
    model = ScriptedModel(
        {
            "root": [Turn(calls=calls), "done"],
            "bad": [Turn(fail="model_rejected")],
            "good": [Turn(text="well", wait=wait)],
        }
    )
    root = Agent("root", sub_agents=[Agent("bad"), Agent("good")])
    seen: list[Chunk] = []
    with anyio.fail_after(5), model:
        async with helix.stream(root, "go", model=model) as run:
            async for chunk in run:
                seen.append(chunk)
                if chunk.type == "tool_end" and chunk.tool_name == "bad":
                    failed.set()
            result = await run.result()
    check_stream(seen)
    assert result.output == "done"
    ends = {end.tool_name: end for end in of(seen, "tool_end")}
    assert ends["bad"].error_code == "subagent_failed"
    assert ends["bad"].error == "bad failed: scripted failure: model_rejected"
    assert (ends["good"].result, ends["good"].error) == ("well", None)
    assert {end.sub_agent_type: end.status for end in of(seen, "subagent_end")} == {
        "bad": "failed",
        "good": "completed",
    }
    answers: list[Any] = list(model.requests[-1].messages)[-2:]
    assert [(answer.content, answer.is_error) for answer in answers] == [(ends["bad"].error, True), ("well", False)]


async def test_a_shared_state_is_the_parents_document() -> None:
    @tool
    async def note(ctx: ToolContext[Notes], line: str) -> int:
        with ctx.update_state() as draft:
            draft.lines.append(line)
            draft.count += 1
        return ctx.state.count

    below = Agent("below", state_type=Notes, tools=[note])
    child = Agent("child", state_type=Notes, tools=[note], sub_agents=[below.as_tool(share_state=True)])
    root = Agent("root", state_type=Notes, tools=[note], sub_agents=[child.as_tool(share_state=True)])
    model = ScriptedModel(
        {
            "root": [
                Turn(calls=[Call("note", line="r1")]),
                Turn(calls=[Call("child", input="x")]),
                Turn(calls=[Call("note", line="r2")]),
                "done",
            ],
            "child": [Turn(calls=[Call("note", line="c")]), Turn(calls=[Call("below", input="y")]), "child done"],
            "below": [Turn(calls=[Call("note", line="b")]), "below done"],
        }
    )
    chunks, result = await play(root, model)
    assert result.state == Notes(lines=["r1", "c", "b", "r2"], count=4)
    assert [end.result for end in of(chunks, "tool_end") if end.tool_name == "note"] == [1, 2, 3, 4]
    patches = of(chunks, "state_patch")
    assert [(patch.agent_type, patch.state_id) for patch in patches] == [
        ("root", None),
        ("child", result.run_id),
        ("below", result.run_id),
        ("root", None),
    ]
    document: Any = {"lines": [], "count": 0}
    for patch in patches:
        document = helix.apply_patches(document, patch.patches)
    assert document == {"lines": ["r1", "c", "b", "r2"], "count": 4}


async def test_without_share_state_each_has_its_own() -> None:
    @tool
    async def note(ctx: ToolContext[Notes]) -> int:
        with ctx.update_state() as draft:
            draft.count += 1
        return ctx.state.count

    child = Agent("child", state_type=Notes, tools=[note])
    root = Agent("root", state_type=Notes, tools=[note], sub_agents=[child])
    one = Turn(calls=[Call("note")])
    model = ScriptedModel({"root": [one, Turn(calls=[Call("child", input="x")]), "done"], "child": [one, "well"]})
    chunks, result = await play(root, model, state=Notes(count=10))
    assert result.state == Notes(count=11)
    assert [end.result for end in of(chunks, "tool_end") if end.tool_name == "note"] == [11, 1]


async def test_deep_nesting() -> None:
    agent = Agent("level-8")
    script: dict[str, Any] = {"level-8": ["bottom"]}
    for level in reversed(range(8)):
        script[f"level-{level}"] = [Turn(calls=[Call(agent.name, input=f"to {level + 1}")]), f"back at {level}"]
        agent = Agent(f"level-{level}", sub_agents=[agent])
    chunks, result = await play(agent, ScriptedModel(script))
    assert result.output == "back at 0"
    assert len(result.tree.agents) == 9
    assert result.usage.requests == 17
    deepest = max(result.tree.agents, key=len)
    assert deepest.count(".") == 8
    assert [chunk.agent_type for chunk in of(chunks, "run_end")] == [f"level-{n}" for n in reversed(range(9))]


async def test_a_level_too_deep_is_a_failed_call() -> None:
    root = Agent("root", sub_agents=[Agent("child", sub_agents=[Agent("grandchild")])])
    model = ScriptedModel(
        {
            "root": [Turn(calls=[Call("child", input="x")]), "done"],
            "child": [Turn(calls=[Call("grandchild", input="y")]), "alone then"],
            "grandchild": [],
        }
    )
    chunks, result = await play(root, model, limits=helix.Limits(depth=1))
    assert result.output == "done"
    assert {end.tool_name: end.error_code for end in of(chunks, "tool_end")} == {
        "grandchild": "limit_depth",
        "child": None,
    }


# --- agents that tools run


async def test_a_tool_runs_agents() -> None:
    helper = Agent("helper", output_type=Errand)
    outputs: list[Any] = []

    @tool
    async def orchestrate(ctx: ToolContext) -> str:
        first = await ctx.run_agent(helper, "one")
        second = await ctx.run_agent(helper, Errand(what="two", times=2))
        failed = await ctx.run_agent(helper.replace(name="broken", output_type=str), "three")
        outputs.extend([first.output, second.output, failed.status, first.usage.total_tokens])
        with pytest.raises(RunFailed, match="scripted failure"):
            _ = failed.output
        return "orchestrated"

    model = ScriptedModel(
        {
            "root": [Turn(calls=[Call("orchestrate")]), "done"],
            "helper": [Turn(output={"what": "a"}), Turn(output={"what": "b", "times": 3})],
            "broken": [Turn(fail="model_rejected")],
        }
    )
    chunks, result = await play(Agent("root", tools=[orchestrate]), model)
    assert outputs == [Errand(what="a"), Errand(what="b", times=3), "failed", 18]
    assert [request.messages[0].content for request in asked(model, "helper")] == ["one", '{"what":"two","times":2}']
    [call] = [end for end in of(chunks, "tool_end") if end.tool_name == "orchestrate"]
    assert call.result == "orchestrated"
    assert {start.call_id for start in of(chunks, "subagent_start")} == {call.tool_call_id}
    assert list(result.usage_by_agent) == [
        result.run_id,
        *[f"{result.run_id}.{name}" for name in ("helper-1", "helper-2", "broken-3")],
    ]


async def test_a_tool_streams_an_agent_and_sees_its_subtree_only() -> None:
    grandchild = Agent("grandchild", tools=[step])
    child = Agent("child", sub_agents=[grandchild])
    noise = Agent("noise", tools=[step])
    seen: list[Chunk] = []

    @tool
    async def watch(ctx: ToolContext) -> str:
        async with ctx.stream_agent(child, "watched") as run:
            async for chunk in run:
                seen.append(chunk)
            assert (await run.result()).output == "child done"
            return run.agent_id

    model = ScriptedModel(
        {
            "root": [Turn(calls=[Call("watch"), Call("noise", input="n")]), "done"],
            "child": [Turn(calls=[Call("grandchild", input="g")]), "child done"],
            "grandchild": [Turn(calls=[Call("step")]), "grandchild done"],
            "noise": [Turn(calls=[Call("step")]), "noise done"],
        }
    )
    chunks, result = await play(Agent("root", tools=[watch], sub_agents=[noise]), model)
    [child_id] = [end.result for end in of(chunks, "tool_end") if end.tool_name == "watch"]
    below = [chunk for chunk in chunks if chunk.agent_id == child_id or chunk.agent_id.startswith(f"{child_id}.")]
    assert [chunk.sequence for chunk in seen] == [chunk.sequence for chunk in below]
    assert (seen[0].type, seen[-1].type) == ("run_start", "run_end")
    assert {chunk.agent_type for chunk in seen} == {"child", "grandchild"}
    assert result.output == "done"


async def test_leaving_a_streamed_agent_early_cancels_it() -> None:
    results: list[Any] = []

    @tool
    async def watch(ctx: ToolContext) -> str:
        async with ctx.stream_agent(Agent("child"), "watched") as run:
            async for chunk in run:
                if chunk.type == "text_delta":
                    break
        results.append(await run.result())
        return "enough"

    model = ScriptedModel({"root": [Turn(calls=[Call("watch")]), "done"], "child": [Turn(text="so far", stall=True)]})
    chunks, result = await play(Agent("root", tools=[watch]), model)
    assert [end.status for end in of(chunks, "subagent_end")] == ["cancelled"]
    assert [(end.result, end.error) for end in of(chunks, "tool_end")] == [("enough", None)]
    assert result.output == "done"
    assert [child.status for child in results] == ["cancelled"]
    assert results[0].messages[-1].text == "so far"


async def test_an_exception_in_the_block_of_a_streamed_agent_comes_out_as_it_is() -> None:
    caught: list[BaseException] = []

    @tool
    async def watch(ctx: ToolContext) -> str:
        try:
            async with ctx.stream_agent(Agent("child"), "watched") as run:
                async for chunk in run:
                    if chunk.type == "text_delta":
                        raise LookupError("mine")
        except Exception as error:
            caught.append(error)
        return "went on"

    model = ScriptedModel({"root": [Turn(calls=[Call("watch")]), "done"], "child": [Turn(text="so far", stall=True)]})
    chunks, result = await play(Agent("root", tools=[watch]), model)
    assert [end.status for end in of(chunks, "subagent_end")] == ["cancelled"]
    assert result.output == "done"
    assert [type(error) for error in caught] == [LookupError]


# --- usage and results


async def test_usage_of_an_agent_and_of_its_tree() -> None:
    child = Agent("child", tools=[step])
    model = ScriptedModel(
        {
            "root": [Turn(calls=[Call("child", input="x")]), "done"],
            "child": [Turn(calls=[Call("step")]), "child done"],
        }
    )
    chunks, result = await play(Agent("root", sub_agents=[child]), model, session_id="s")
    child_id = f"{result.run_id}.child-1"
    own = Usage(22, 14, 36, requests=2)
    assert (result.own_usage, result.usage) == (own, own + own)
    assert (result.own_usage.total_tokens, result.usage.total_tokens) == (36, 72)
    assert result.usage_by_agent == {result.run_id: own, child_id: own}
    ends = {end.agent_id: end for end in of(chunks, "run_end")}
    assert (ends[result.run_id].usage, ends[result.run_id].tree_usage) == (own, own + own)
    assert (ends[child_id].usage, ends[child_id].tree_usage) == (own, own)
    assert [message.role for message in result.messages] == ["user", "assistant", "tool", "assistant"]
    assert result.finish_reason == "stop"

    told = result.to_dict()
    assert told["status"] == "completed"
    assert (told["output"], told["finishReason"], told["agentType"], told["sessionId"]) == ("done", "stop", "root", "s")
    assert (told["usage"]["totalTokens"], told["ownUsage"]["inputTokens"]) == (72, 22)
    assert (told["runId"], told["lastSequence"], told["state"]) == (result.run_id, chunks[-1].sequence, None)
    assert told["messages"][1]["content"][0] == {
        "toolCallId": "call_1",
        "toolName": "child",
        "arguments": {"input": "x"},
        "type": "tool_call",
    }
    assert (told["error"], told["errorCode"]) == (None, None)


# --- model calls that fail


@pytest.mark.parametrize("broken", [Turn(text="half a ", drop=True), Turn(text="half a ", fail="model_unavailable")])
async def test_a_passing_failure_is_tried_again_and_what_was_said_is_void(broken: Turn) -> None:
    model = ScriptedModel([broken, "a whole one"])
    chunks, result = await play(Agent("a"), model)
    [error] = of(chunks, "error")
    assert error.recoverable
    assert [(chunk.step, chunk.attempt) for chunk in of(chunks, "step_start")] == [(1, 1), (1, 2)]
    assert [chunk.outcome for chunk in of(chunks, "step_end")] == ["abandoned", "committed"]
    assert [request.attempt for request in model.requests] == [1, 2]
    assert list(model.requests[1].messages) == list(model.requests[0].messages)
    assert "".join(chunk.delta for chunk in of(chunks, "text_delta")) == "half a a whole one"
    assert result.output == "a whole one"
    assert [getattr(message, "text", "") for message in result.messages] == ["go", "a whole one"]


async def read_all(make: Callable[[], Any]) -> list[Chunk]:
    return [chunk async for chunk in make()]


async def test_a_lasting_failure_fails_the_run_once_and_readers_do_not_raise() -> None:
    model = ScriptedModel([Turn(fail="model_rate_limited")] * 3)
    chunks, result = await play(Agent("a"), model)
    assert [chunk.recoverable for chunk in of(chunks, "error")] == [True, True, False]
    assert [chunk.attempt for chunk in of(chunks, "step_start")] == [1, 2, 3]
    assert (result.status, result.error_code) == ("failed", "model_rate_limited")
    [end] = of(chunks, "run_end")
    assert (end.status, end.error_code) == ("failed", "model_rate_limited")
    assert end == chunks[-1]

    with anyio.fail_after(5), pytest.raises(RunFailed, match="model_rejected") as caught:
        await helix.run(Agent("a"), "go", model=ScriptedModel([Turn(fail="model_rejected")]))
    assert caught.value.result.error_code == "model_rejected"

    seen: list[Chunk] = []
    with anyio.fail_after(5):
        async with helix.stream(Agent("a"), "go", model=ScriptedModel([Turn(fail="model_rejected")])) as run:
            seen = await read_all(lambda: run)
            assert await helix.collect(run.handle.stream()) == seen
            assert (await run.result()).status == "failed"
    check_stream(seen)
    assert [chunk.recoverable for chunk in of(seen, "error")] == [False]
