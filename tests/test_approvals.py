"""Waiting for people and clients: who asks waits, everybody else goes on, and whatever is answered is in the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

import helix
from helix import (
    Agent,
    AlreadyAnswered,
    Approve,
    ClientResult,
    Deny,
    Executor,
    InvalidAnswer,
    Limits,
    MemoryStore,
    ModelRequest,
    RunHandle,
    RunSuspended,
    SessionBusy,
    ToolContext,
    ToolMessage,
    UnknownApproval,
    UsageError,
    tool,
)
from helix.chunks import ApprovalRequest, Chunk, StatePatch, StreamEnd
from helix.commands import Respond
from helix.fold import fold
from helix.owner import take
from helix.testing import Call, FunctionModel, ScriptedModel, Turn, check_stream
from tests.left import leave
from tests.random_trees import as_data

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


ran: list[tuple[str, Any]] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@tool(requires_approval=True)
async def delete(ctx: ToolContext, path: str) -> str:
    """Delete a file."""
    ran.append(("delete", path))
    return f"deleted {path}"


@tool(runs_on="client")
async def locate(precise: bool = False) -> str:
    """Where the user is."""
    raise AssertionError("this runs on the client")


@tool
async def look() -> str:
    ran.append(("look", None))
    return "seen"


def deletion(*paths: str) -> Turn:
    return Turn(calls=[Call("delete", path=path) for path in paths])


async def asked(handle: RunHandle[Any, Any], number: int = 1) -> list[ApprovalRequest]:
    """The pending requests, once there are so many."""
    offset = 0
    while len(handle.tree.pending) < number:
        async for chunk in handle.stream(offset):
            offset = chunk.sequence
            if isinstance(chunk, ApprovalRequest):
                break
    return sorted(handle.tree.pending, key=lambda request: request.tool_call_id)


async def checked(handle: RunHandle[Any, Any], *, finished: bool = True) -> list[Chunk]:
    """The log, which keeps the grammar and folds to the live tree."""
    chunks = await helix.collect(handle.stream())
    check_stream(chunks, finished=finished)
    assert as_data(fold(chunks)) == as_data(handle.tree)
    return chunks


def ends(chunks: list[Chunk]) -> list[tuple[str, Any, str | None]]:
    return [(end.tool_name, end.result, end.error_code) for end in chunks if end.type == "tool_end"]


def read_by(model: ScriptedModel, step: int = 1) -> list[str]:
    """What the model read last, in its request of that number."""
    return [message.text for message in model.requests[step].messages if message.role != "assistant"][1:]


# --- yes, no, otherwise


async def test_a_call_waits_for_approval_and_then_runs() -> None:
    model = ScriptedModel([deletion("a.txt"), "gone"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("clerk", tools=[delete]), "go", model=model)
            [request] = await asked(handle)
            assert (request.agent_type, request.tool_name, request.arguments) == ("clerk", "delete", {"path": "a.txt"})
            assert request.approval_id == f"{handle.run_id}/{request.tool_call_id}"
            assert (request.kind, request.reason, request.deadline) == ("approval", None, None)
            assert ran == []
            await handle.respond(request.approval_id, Approve(), by="ada")
            assert handle.tree.pending == []
            assert (await handle.result()).output == "gone"
    chunks = await checked(handle)
    assert ran == [("delete", "a.txt")]
    kinds = [chunk.type for chunk in chunks if chunk.type.startswith(("approval", "tool_start", "tool_end"))]
    assert kinds == ["approval_request", "approval_response", "tool_start", "tool_end"]
    [response] = [chunk for chunk in chunks if chunk.type == "approval_response"]
    assert (response.decision, response.by) == ("approve", "ada")


@pytest.mark.parametrize(
    ("answer", "told"), [(Deny("too risky"), "denied: too risky"), (Deny(), "denied")], ids=["reason", "no reason"]
)
async def test_a_denial_is_a_failed_call_with_its_reason(answer: Deny, told: str) -> None:
    model = ScriptedModel([deletion("a.txt"), "as you wish"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("clerk", tools=[delete]), "go", model=model)
            [request] = await asked(handle)
            await handle.respond(request.approval_id, answer)
            assert (await handle.result()).output == "as you wish"
    chunks = await checked(handle)
    assert ran == []
    assert ends(chunks) == [("delete", None, "tool_denied")]
    assert not any(chunk.type == "tool_start" for chunk in chunks)
    assert read_by(model) == [told]


async def test_edited_arguments_take_effect_and_the_model_is_told() -> None:
    model = ScriptedModel([deletion("a.txt"), "gone"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("clerk", tools=[delete]), "go", model=model)
            [request] = await asked(handle)
            with pytest.raises(InvalidAnswer, match="the arguments do not fit delete: path"):
                await handle.respond(request.approval_id, Approve({"path": 5}))
            with pytest.raises(InvalidAnswer, match="as a dict"):
                await handle.respond(request.approval_id, Approve(["b.txt"]))  # type: ignore[arg-type]
            await handle.respond(request.approval_id, Approve({"path": "b.txt"}))
            await handle.result()
    chunks = await checked(handle)
    assert ran == [("delete", "b.txt")]
    assert [chunk.arguments for chunk in chunks if chunk.type == "tool_start"] == [{"path": "b.txt"}]
    result, notice = read_by(model)
    assert result == "deleted b.txt"
    assert notice.endswith('was approved with other arguments, and run with: {"path":"b.txt"}')


async def test_the_same_arguments_are_no_edit() -> None:
    model = ScriptedModel([deletion("a.txt"), "gone"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("clerk", tools=[delete]), "go", model=model)
            [request] = await asked(handle)
            await handle.respond(request.approval_id, Approve({"path": "a.txt"}))
            await handle.result()
    assert read_by(model) == ["deleted a.txt"]


async def test_a_client_gives_the_result_of_its_tool() -> None:
    model = ScriptedModel([Turn(calls=[Call("locate")]), "in Oslo"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("guide", tools=[locate]), "go", model=model)
            [request] = await asked(handle)
            assert request.kind == "client_tool"
            with pytest.raises(InvalidAnswer, match=r"locate of guide waits for a client's result: .* not Approve"):
                await handle.respond(request.approval_id, Approve())
            with pytest.raises(ValueError, match="no JSON form"):
                await handle.respond(request.approval_id, ClientResult(object()))
            await handle.respond(request.approval_id, ClientResult({"city": "Oslo"}))
            await handle.result()
    assert ends(await checked(handle)) == [("locate", {"city": "Oslo"}, None)]
    assert read_by(model) == ['{"city":"Oslo"}']


async def test_a_client_may_deny_and_give_nothing() -> None:
    model = ScriptedModel([Turn(calls=[Call("locate"), Call("locate")]), "well"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("guide", tools=[locate]), "go", model=model)
            first, second = await asked(handle, 2)
            await handle.respond(second.approval_id, Deny("location is off"))
            await handle.respond(first.approval_id, ClientResult())
            await handle.result()
    assert read_by(model) == ["null", "denied: location is off"]
    await checked(handle)


async def test_approval_is_not_answered_with_a_result() -> None:
    model = ScriptedModel([deletion("a.txt")])
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(Agent("clerk", tools=[delete]), "go", model=model)
            [request] = await asked(handle)
            with pytest.raises(InvalidAnswer, match="delete of clerk waits for approval: answer with Approve or Deny"):
                await handle.respond(request.approval_id, ClientResult("done"))
            await handle.cancel()


# --- who is asked


async def test_a_function_of_the_arguments_says_whether_and_why() -> None:
    def asks(ctx: ToolContext[Any, Any], arguments: dict[str, Any]) -> bool | str:
        assert ctx.deps == "deps"
        assert ctx.tool_call_id
        return f"{arguments['amount']:.2f} is much" if arguments["amount"] > 100 else False

    @tool(requires_approval=asks)
    async def pay(amount: float) -> str:
        return f"paid {amount}"

    model = ScriptedModel([Turn(calls=[Call("pay", amount="5"), Call("pay", amount=500)]), "done"])
    with anyio.fail_after(5), model:
        async with Executor(deps="deps") as executor:
            handle = await executor.execute(Agent("clerk", tools=[pay]), "go", model=model)
            [request] = await asked(handle)
            assert (request.arguments, request.reason) == ({"amount": 500}, "500.00 is much")
            await handle.respond(request.approval_id, Approve())
            await handle.result()
    assert read_by(model) == ["paid 5.0", "paid 500.0"]
    await checked(handle)


async def raises(ctx: ToolContext[Any, Any], arguments: dict[str, Any]) -> bool:
    raise RuntimeError("no idea")


def forgets(ctx: ToolContext[Any, Any], arguments: dict[str, Any]) -> Any:
    return None


@pytest.mark.parametrize(
    ("asks", "told"),
    [
        (raises, "requires_approval of act: RuntimeError: no idea"),
        (forgets, "requires_approval of act: TypeError: it must give a bool or a text, not NoneType"),
    ],
    ids=["raises", "forgets to return"],
)
async def test_a_function_that_fails_lets_nothing_through(asks: Any, told: str) -> None:
    @tool(requires_approval=asks)
    async def act() -> str:
        raise AssertionError("it must not run")

    model = ScriptedModel([Turn(calls=[Call("act")]), "hm"])
    with anyio.fail_after(5), model:
        result = await helix.run(Agent("a", tools=[act]), "go", model=model)
    assert read_by(model) == [told]
    assert result.output == "hm"


async def test_nobody_is_asked_about_arguments_that_do_not_fit() -> None:
    model = ScriptedModel([Turn(calls=[Call("delete", file="a.txt")]), "sorry"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("clerk", tools=[delete]), "go", model=model)
            await handle.result()
    assert ends(await checked(handle)) == [("delete", None, "tool_invalid_arguments")]


async def test_a_sub_agent_may_need_approval() -> None:
    root = Agent("root", sub_agents=[Agent("worker").as_tool(requires_approval=True)])
    model = ScriptedModel(
        {"root": [Turn(calls=[Call("worker", input="dig"), Call("worker", input="burn")]), "ok"], "worker": ["dug"]}
    )
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(root, "go", model=model)
            first, second = await asked(handle, 2)
            await handle.respond(second.approval_id, Deny("no fire"))
            await handle.respond(first.approval_id, Approve({"input": "dig here"}))
            result = await handle.result()
    chunks = await checked(handle)
    assert ends(chunks) == [("worker", None, "tool_denied"), ("worker", "dug", None)]
    assert result.tree.agents[f"{handle.run_id}.worker-1"].input[0].content == "dig here"


async def test_approvals_are_answered_in_any_order_and_by_command_id_once() -> None:
    model = ScriptedModel([deletion("a", "b", "c"), "done"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("clerk", tools=[delete]), "go", model=model)
            first, second, third = await asked(handle, 3)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(handle.respond, third.approval_id, Approve())
                tasks.start_soon(handle.respond, first.approval_id, Approve())
            await handle.respond(second.approval_id, Approve(), command_id="c1")
            await handle.respond(second.approval_id, Approve(), command_id="c1")
            with pytest.raises(AlreadyAnswered):
                await handle.respond(second.approval_id, Deny(), command_id="c2")
            await handle.result()
    assert sorted(ran) == [("delete", "a"), ("delete", "b"), ("delete", "c")]
    assert read_by(model) == ["deleted a", "deleted b", "deleted c"]
    await checked(handle)


async def test_only_the_branch_that_asks_waits() -> None:
    """Three branches; one waits for a person two levels down, the other two finish meanwhile."""
    deep = Agent("deep", tools=[delete])
    middle = Agent("middle", sub_agents=[deep])
    root = Agent("root", sub_agents=[middle, Agent("left", tools=[look]), Agent("right", tools=[look])])
    model = ScriptedModel(
        {
            "root": [Turn(calls=[Call(name, input="go") for name in ("middle", "left", "right")]), "all done"],
            "middle": [Turn(calls=[Call("deep", input="go")]), "middle done"],
            "deep": [deletion("x"), "deep done"],
            "left": [Turn(calls=[Call("look")]), "left done"],
            "right": [Turn(calls=[Call("look")]), "right done"],
        }
    )
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(root, "go", model=model)
            [request] = await asked(handle)
            ended: set[str] = set()
            async for chunk in handle.stream():
                if chunk.type == "run_end":
                    ended.add(chunk.agent_type)
                if ended == {"left", "right"}:
                    break
            assert handle.status == "running"
            assert handle.tree.pending == [request]
            assert request.agent_type == "deep"
            assert handle.tree.agents[request.agent_id].depth == 2
            await handle.respond(request.approval_id, Approve())
            assert (await handle.result()).output == "all done"
    await checked(handle)
    assert sorted(ran) == [("delete", "x"), ("look", None), ("look", None)]


# --- answers that have no place


async def test_unknown_ids_duplicates_and_late_answers_say_what_is_wrong() -> None:
    model = ScriptedModel([Turn(calls=[Call("delete", id="call_1", path="a")]), "done"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("clerk", tools=[delete]), "go", model=model, run_id="r1")
            await asked(handle)
            with pytest.raises(UnknownApproval, match="Did you mean 'r1/call_1'"):
                await handle.respond("r1/call_2", Approve())
            for given in ("call_1", "delete", "clerk", "r1"):
                with pytest.raises(UnknownApproval, match=f"An approval's id is wanted; of '{given}': 'r1/call_1'"):
                    await handle.respond(given, Approve())
            await handle.respond("r1/call_1", Approve())
            with pytest.raises(AlreadyAnswered, match="the answer was 'approve'") as info:
                await handle.respond("r1/call_1", Deny())
            assert info.value.decision == "approve"
            await handle.result()
            with pytest.raises(AlreadyAnswered):
                await handle.respond("r1/call_1", Approve())
            with pytest.raises(UnknownApproval):
                await handle.respond("r1/call_9", Approve())
    await checked(handle)


@tool(requires_approval=True, approval_timeout=0.001)
async def hurry() -> str:
    raise AssertionError("nobody approved it")


@tool(runs_on="client", approval_timeout=0.001)
async def locate_fast() -> str:
    raise AssertionError("this runs on the client")


async def test_a_request_that_nobody_answers_in_time_expires() -> None:
    model = ScriptedModel([Turn(calls=[Call("hurry"), Call("locate_fast")]), "well then"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("a", tools=[hurry, locate_fast]), "go", model=model)
            assert (await handle.result()).output == "well then"
            for approval_id in handle.tree.closed:
                with pytest.raises(AlreadyAnswered) as info:
                    await handle.respond(approval_id, Deny())
                assert info.value.decision == "expired"
    chunks = await checked(handle)
    assert sorted(ends(chunks)) == [("hurry", None, "tool_denied"), ("locate_fast", None, "tool_timeout")]
    assert read_by(model) == [
        "nobody approved this within 0.001 s; nothing was run",
        "the client gave no result within 0.001 s",
    ]
    assert all(chunk.deadline for chunk in chunks if isinstance(chunk, ApprovalRequest))


async def test_an_answer_before_the_deadline_counts() -> None:
    @tool(requires_approval=True, approval_timeout=3600)
    async def act() -> str:
        return "acted"

    model = ScriptedModel([Turn(calls=[Call("act")]), "done"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("a", tools=[act]), "go", model=model)
            [request] = await asked(handle)
            assert request.deadline is not None
            assert request.deadline - request.timestamp > 3_599_000
            await handle.respond(request.approval_id, Approve())
            assert (await handle.result()).output == "done"
    assert ends(await checked(handle)) == [("act", "acted", None)]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"runs_on": "client", "requires_approval": True}, "leave out requires_approval"),
        ({"runs_on": "browser"}, "neither 'server' nor 'client'"),
        ({"requires_approval": True, "approval_timeout": 0}, "must be more than 0"),
    ],
)
async def test_settings_that_cannot_work_are_refused(options: Any, problem: str) -> None:
    with pytest.raises(helix.DefinitionError, match=problem):
        tool(**options)(look.function)
    with pytest.raises(helix.DefinitionError, match=problem):
        look.replace(**options)


# --- while it waits


async def waiting_below(root: Agent[Any, Any, Any], executor: Executor, **options: Any) -> RunHandle[Any, Any]:
    model = ScriptedModel(
        {"root": [Turn(calls=[Call("child", input="go")]), "root done"], "child": [deletion("x"), "child done"]}
    )
    handle = await executor.execute(root, "go", model=model, **options)
    await asked(handle)
    return handle


PARENT = Agent("root", sub_agents=[Agent("child", tools=[delete])])


async def test_cancelling_the_run_or_a_branch_closes_what_it_asked() -> None:
    with anyio.fail_after(5):
        async with Executor() as executor:
            whole = await waiting_below(PARENT, executor)
            [request] = whole.tree.pending
            await whole.cancel()
            assert whole.status == "cancelled"
            assert whole.tree.pending == []
            with pytest.raises(AlreadyAnswered, match="its call has ended") as info:
                await whole.respond(request.approval_id, Approve())
            assert info.value.decision == "ended"

            branch = await waiting_below(PARENT, executor)
            await branch.cancel(branch.tree.pending[0].agent_id)
            assert (await branch.result()).output == "root done"
            assert branch.tree.pending == []
    await checked(whole)
    await checked(branch)
    assert ran == []


async def test_a_limit_of_time_and_a_timeout_cut_a_branch_that_waits() -> None:
    late = Agent("root", sub_agents=[Agent("child", tools=[delete]).as_tool(timeout=0.02)])
    with anyio.fail_after(5):
        async with Executor() as executor:
            limited = await executor.execute(
                Agent("clerk", tools=[delete]), "go", model=ScriptedModel([deletion("x")]), limits=Limits(seconds=0.02)
            )
            assert (await limited.result()).error_code == "limit_time"
            timed = await waiting_below(late, executor)
            assert (await timed.result()).output == "root done"
    assert ends(await checked(limited)) == [("delete", None, "cancelled")]
    assert [end[2] for end in ends(await checked(timed))] == ["cancelled", "tool_timeout"]


async def test_an_interrupt_parks_what_waits_and_answers_are_taken_meanwhile() -> None:
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await waiting_below(PARENT, executor)
            [request] = handle.tree.pending
            await handle.interrupt()
            assert handle.status == "interrupted"
            pauses = [chunk for chunk in await checked(handle, finished=False) if chunk.type == "run_pause"]
            assert [pause.waiting_for for pause in pauses] == [[request.approval_id]]
            await handle.respond(request.approval_id, Approve())
            assert handle.status == "interrupted"
            assert handle.tree.pending == []
            assert ran == []
            again = await executor.resume(handle.run_id)
            assert (await again.result()).output == "root done"
    await checked(handle)
    assert ran == [("delete", "x")]


async def test_an_interrupted_run_waits_on_after_it_is_resumed() -> None:
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await waiting_below(PARENT, executor)
            [request] = handle.tree.pending
            await handle.interrupt()
            handle = await executor.resume(handle.run_id)
            assert handle.tree.pending == [request]
            await handle.respond(request.approval_id, Approve())
            assert (await handle.result()).output == "root done"
    await checked(handle)


async def test_a_broken_patch_elsewhere_does_not_lose_the_wait() -> None:
    """The log folds itself anew when an append fails; whoever waits must look at the new tree."""
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await waiting_below(PARENT, executor)
            with pytest.raises(helix.InvalidPatch):
                handle._log.append(StatePatch(handle.run_id, "root", [{"op": "remove", "path": "/nothing"}]))
            await handle.respond(handle.tree.pending[0].approval_id, Approve())
            assert (await handle.result()).output == "root done"
    await checked(handle)


# --- suspended


def in_two_levels(level: Agent[Any, Any, Any]) -> Agent[Any, Any, Any]:
    return Agent("root", sub_agents=[level, Agent("other", tools=[look])])


def two_waits() -> ScriptedModel:
    return ScriptedModel(
        {
            "root": [Turn(calls=[Call("child", input="go"), Call("other", input="go")]), "root done"],
            "child": [deletion("x"), Turn(calls=[Call("locate")]), "child done"],
            "other": [Turn(calls=[Call("look")]), "other done"],
        }
    )


async def test_a_run_is_suspended_once_nothing_else_can_go_on_and_resumed_twice() -> None:
    root, model = in_two_levels(Agent("child", tools=[delete, locate])), two_waits()
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(root, "go", model=model, wait="suspend")
            result = await handle.result()
            assert result.status == "suspended"
            statuses = {node.agent_type: node.status for node in result.tree.agents.values()}
            assert statuses == {"root": "running", "child": "running", "other": "completed"}
            with pytest.raises(RunSuspended, match=r"root suspended: waits for an answer to delete of child \("):
                _ = result.output
            [request] = handle.tree.pending
            pauses = [chunk for chunk in await checked(handle, finished=False) if chunk.type == "run_pause"]
            assert [(pause.status, pause.waiting_for) for pause in pauses] == [("suspended", [request.approval_id])]
            ended = [chunk async for chunk in handle.stream(control=True) if isinstance(chunk, StreamEnd)]
            assert ended[0].status == "suspended"

            unanswered = await executor.resume(handle.run_id)
            assert (await unanswered.result()).status == "suspended"

            await handle.respond(request.approval_id, Approve())
            assert handle.status == "suspended"
            assert ran == [("look", None)]
            with pytest.raises(AlreadyAnswered):
                await handle.respond(request.approval_id, Deny())
            second = await (await executor.resume(handle.run_id)).result()
            assert second.status == "suspended"
            assert ran == [("look", None), ("delete", "x")]
            await handle.respond(handle.tree.pending[0].approval_id, ClientResult("here"))
            assert (await (await executor.resume(handle.run_id)).result()).output == "root done"
    await checked(handle)


async def test_an_answer_that_comes_while_the_run_parks_is_kept() -> None:
    model = ScriptedModel([deletion("x"), "done"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("clerk", tools=[delete]), "go", model=model, wait="suspend")
            [request] = await asked(handle)
            await handle.respond(request.approval_id, Approve())
            assert handle.status == "suspended"
            assert (await (await executor.resume(handle.run_id)).result()).output == "done"
    await checked(handle)


async def test_edited_arguments_that_do_not_fit_are_found_when_a_suspended_run_goes_on() -> None:
    model = ScriptedModel([deletion("x"), "hm"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("clerk", tools=[delete]), "go", model=model, wait="suspend")
            await handle.result()
            (request,) = handle.tree.pending
            with pytest.raises(InvalidAnswer, match="the arguments do not fit delete"):
                await handle.respond(request.approval_id, Approve({"path": 7}))
            take(
                handle._log, None, Respond("", request.approval_id, Approve({"path": 7}))
            )  # as one says who has not the tool
            await (await executor.resume(handle.run_id)).result()
    assert ends(await checked(handle)) == [("delete", None, "tool_invalid_arguments")]
    assert ran == []


@pytest.mark.parametrize("replay", ["safe", "never"])
async def test_only_bodies_that_may_run_twice_are_parked_under(replay: Any) -> None:
    helper = Agent("helper", tools=[delete])
    attempts: list[int] = []

    @tool(replay=replay)
    async def orchestrate(ctx: ToolContext) -> str:
        attempts.append(ctx.attempt)
        try:
            return (await ctx.run_agent(helper, "one")).output
        except Exception:
            raise AssertionError("parking must not show in a body") from None

    model = ScriptedModel({"root": [Turn(calls=[Call("orchestrate")]), "done"], "helper": [deletion("x"), "helped"]})
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("root", tools=[orchestrate]), "go", model=model, wait="suspend")
            [request] = await asked(handle)
            if replay == "safe":
                assert (await handle.result()).status == "suspended"
            else:
                await anyio.wait_all_tasks_blocked()
                assert handle.status == "running"
            await handle.respond(request.approval_id, Approve())
            if replay == "safe":
                handle = await executor.resume(handle.run_id)
            assert (await handle.result()).output == "done"
    assert attempts == ([1, 2] if replay == "safe" else [1])
    assert ran == [("delete", "x")]
    await checked(handle)


async def test_a_branch_that_cannot_park_keeps_the_others_live() -> None:
    helper = Agent("helper", tools=[delete])

    @tool
    async def orchestrate(ctx: ToolContext) -> str:
        return (await ctx.run_agent(helper, "one")).output

    root = Agent("root", tools=[orchestrate, delete])
    turn = Turn(calls=[Call("orchestrate"), Call("delete", path="y")])
    model = ScriptedModel({"root": [turn, "done"], "helper": [deletion("x"), "helped"]})
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(root, "go", model=model, wait="suspend")
            requests = await asked(handle, 2)
            await anyio.wait_all_tasks_blocked()
            assert handle.status == "running"
            inner = next(request for request in requests if request.agent_type == "helper")
            await handle.respond(inner.approval_id, Approve())
            assert (await handle.result()).status == "suspended"  # what is left can park
            await handle.respond(handle.tree.pending[0].approval_id, Approve())
            assert (await (await executor.resume(handle.run_id)).result()).output == "done"
    await checked(handle)


async def test_calls_behind_a_sequential_one_that_waits_are_parked_too() -> None:
    first = delete.replace(sequential=True)
    model = ScriptedModel([Turn(calls=[Call("delete", path="x"), Call("look")]), "done"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("a", tools=[first, look]), "go", model=model, wait="suspend")
            assert (await handle.result()).status == "suspended"
            assert ran == []
            await handle.respond(handle.tree.pending[0].approval_id, Approve())
            assert (await (await executor.resume(handle.run_id)).result()).output == "done"
    assert ran == [("delete", "x"), ("look", None)]
    await checked(handle)


async def test_a_deadline_that_passes_while_the_run_is_suspended() -> None:
    @tool(requires_approval=True, approval_timeout=0.05)
    async def act() -> str:
        raise AssertionError("nobody approved it")

    model = ScriptedModel([Turn(calls=[Call("act")]), "well then"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("a", tools=[act]), "go", model=model, wait="suspend")
            [request] = (await handle.result()).tree.pending
            request.deadline = 1  # long ago
            with pytest.raises(AlreadyAnswered, match="its deadline has passed"):
                await handle.respond(request.approval_id, Approve())
            assert (await (await executor.resume(handle.run_id)).result()).output == "well then"
    assert ends(await checked(handle)) == [("act", None, "tool_denied")]


async def test_a_suspended_run_can_be_cancelled_and_another_executor_can_resume_it() -> None:
    store, agent = MemoryStore(), Agent("clerk", tools=[delete])
    with anyio.fail_after(5):
        async with Executor(store=store) as executor:
            doomed = await executor.execute(agent, "go", model=ScriptedModel([deletion("x")]), wait="suspend")
            await doomed.result()
            await doomed.cancel()
            kept = await executor.execute(agent, "go", model=ScriptedModel([deletion("y")]), wait="suspend")
            await kept.result()
        async with Executor(store=store, agents=[agent]) as other:
            handle = await other.get_handle(kept.run_id)
            await handle.respond(handle.tree.pending[0].approval_id, Approve())
            resumed = await other.resume(kept.run_id, "hurry", model=ScriptedModel(["done"]))
            assert (await resumed.result()).output == "done"
    assert doomed.status == "cancelled"
    await checked(doomed)
    await checked(handle)
    assert ran == [("delete", "y")]


async def test_a_session_whose_last_run_is_suspended_says_so_and_goes_on_once_it_is_resumed() -> None:
    model = ScriptedModel([deletion("x"), "done", "hello again"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            session = helix.Session(Agent("clerk", tools=[delete], model=model), executor)
            assert (await session.send("go", wait="suspend")).status == "suspended"
            assert session.result.status == "suspended"
            with pytest.raises(SessionBusy, match="has a parked run"):
                await session.send("more")
            await session.handle.respond(session.handle.tree.pending[0].approval_id, Approve())
            await (await executor.resume(session.handle.run_id)).result()
            assert session.result.output == "done"
            assert (await session.send("more")).output == "hello again"


async def test_how_to_wait_is_one_of_two() -> None:
    async with Executor() as executor:
        with pytest.raises(UsageError, match="neither 'hold' nor 'suspend'"):
            await executor.execute(Agent("a"), "go", model=ScriptedModel([]), wait="forever")  # type: ignore[arg-type]


# --- on_approval, and nobody


def yes(request: ApprovalRequest) -> bool:
    return request.tool_name == "delete"


async def maybe(request: ApprovalRequest) -> Any:
    return ClientResult("Oslo") if request.kind == "client_tool" else Approve({"path": "b"})


def broken(request: ApprovalRequest) -> bool:
    raise RuntimeError("no line to the boss")


class Wrong:
    async def __call__(self, request: ApprovalRequest) -> str:
        return "yes"


@pytest.mark.parametrize(
    ("callback", "told"),
    [
        (yes, ["deleted a", "denied"]),
        (maybe, ["deleted b", "Oslo"]),
        (lambda request: maybe(request), ["deleted b", "Oslo"]),
        (broken, ["denied: on_approval failed: RuntimeError: no line to the boss"] * 2),
        (
            Wrong(),
            ["denied: on_approval failed: TypeError: it must give Approve, Deny, ClientResult or a bool, not str"] * 2,
        ),
        (
            lambda request: Approve({"path": 1}),
            [
                "denied: on_approval failed: InvalidAnswer: the arguments do not fit delete: "
                "path: Input should be a valid string",
                "denied: on_approval failed: InvalidAnswer: locate of clerk waits for a client's result: "
                "answer with ClientResult or Deny, not Approve",
            ],
        ),
    ],
    ids=["sync", "async", "gives an awaitable", "raises", "gives something else", "gives what does not fit"],
)
async def test_a_callback_answers(callback: Callable[[ApprovalRequest], Any], told: list[str]) -> None:
    model = ScriptedModel([Turn(calls=[Call("delete", path="a"), Call("locate")]), "done"])
    with anyio.fail_after(5), model:
        result = await helix.run(Agent("clerk", tools=[delete, locate]), "go", model=model, on_approval=callback)
    assert result.output == "done"
    assert [line for line in read_by(model) if "was approved with" not in line] == told


async def test_the_handle_may_be_faster_than_the_callback() -> None:
    entered = anyio.Event()

    async def never(request: ApprovalRequest) -> bool:
        entered.set()
        await anyio.sleep_forever()
        return True

    model = ScriptedModel([deletion("x"), "done"])
    with anyio.fail_after(5), model:
        async with helix.stream(Agent("clerk", tools=[delete]), "go", model=model, on_approval=never) as run:
            await entered.wait()
            await run.respond(run.tree.pending[0].approval_id, Approve())
            assert (await run.result()).output == "done"


async def test_an_interrupt_leaves_the_callback_and_a_resume_asks_it_again() -> None:
    calls: list[str] = []
    entered = anyio.Event()

    async def slow(request: ApprovalRequest) -> bool:
        calls.append(request.tool_name)
        entered.set()
        if len(calls) == 1:
            await anyio.sleep_forever()
        return True

    model = ScriptedModel([deletion("x"), "done"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("clerk", tools=[delete]), "go", model=model, on_approval=slow)
            await entered.wait()
            await handle.interrupt()
            assert (await (await executor.resume(handle.run_id)).result()).output == "done"
    assert calls == ["delete", "delete"]
    await checked(handle)


async def test_what_nobody_can_answer_is_denied_and_does_not_hang() -> None:
    told = "denied: there is nobody to ask; give the run on_approval=, or start it with Executor.execute"

    def answer(request: ModelRequest) -> Turn:
        last = request.messages[-1]
        return Turn(text=last.text) if isinstance(last, ToolMessage) else deletion("x")

    agent = Agent("clerk", tools=[delete], model=FunctionModel(answer))
    with anyio.fail_after(5):
        assert (await helix.run(agent, "go")).output == told
        async with Executor() as executor:
            assert (await helix.Session(agent, executor).send("go")).output == told
    assert helix.run_sync(agent, "go").output == told
    assert ran == []
    with pytest.raises(RunSuspended):
        await helix.run(agent, "go", wait="suspend")


def test_a_stream_for_code_that_is_not_async_is_answered_too() -> None:
    model = ScriptedModel([deletion("x"), "done"])
    with helix.stream_sync(Agent("clerk", tools=[delete]), "go", model=model) as run:
        for chunk in run:
            if isinstance(chunk, ApprovalRequest):
                run.respond(chunk.approval_id, Approve())
        assert run.result().output == "done"
    assert ran == [("delete", "x")]


# --- from any prefix


async def test_a_run_goes_on_from_every_prefix_of_a_log_with_approvals() -> None:
    root, store = in_two_levels(Agent("child", tools=[delete, locate])), MemoryStore()
    answers: dict[str, Any] = {"delete": Approve({"path": "z"}), "locate": ClientResult("here")}

    def say(request: ModelRequest) -> Turn:
        script = {
            "root": [Turn(calls=[Call("child", input="go"), Call("other", input="go")]), Turn(text="root done")],
            "child": [deletion("x"), Turn(calls=[Call("locate")]), Turn(text="child done")],
            "other": [Turn(calls=[Call("look")]), Turn(text="other done")],
        }
        return script[request.agent_type][request.step - 1]

    model = FunctionModel(say)
    with anyio.fail_after(10):
        async with Executor(store=store) as executor:
            handle = await executor.execute(root, "go", model=model, wait="suspend")
            while (await handle.result()).status == "suspended":
                for request in handle.tree.pending:
                    await handle.respond(request.approval_id, answers[request.tool_name])
                handle = await executor.resume(handle.run_id)
        chunks = await checked(handle)
        assert len(chunks) > 40
        for length in range(1, len(chunks)):
            parsed: Any = [helix.parse_chunk(helix.chunk_to_json(chunk)) for chunk in chunks[:length]]
            copies = MemoryStore()
            await leave(copies, parsed)
            async with Executor(store=copies, agents=[root]) as other:
                resumed = await other.resume(
                    handle.run_id, model=model, on_approval=lambda request: answers[request.tool_name]
                )
                result = await resumed.result()
            assert result.output == "root done", length
            check_stream(await helix.collect(resumed.stream()))


# --- nothing else can go on: found whatever ended last


class Gate:
    """A tool that runs until it is let go."""

    def __init__(self) -> None:
        self.open = anyio.Event()
        self.tool = tool(name="gate")(self.body)

    async def body(self) -> str:
        await self.open.wait()
        return "through"


async def test_a_run_is_suspended_when_the_last_branch_beside_a_wait_ends() -> None:
    gate = Gate()
    root = Agent("root", sub_agents=[Agent("child", tools=[delete]), Agent("slow", tools=[gate.tool])])
    model = ScriptedModel(
        {
            "root": [Turn(calls=[Call("child", input="go"), Call("slow", input="go")])],
            "child": [deletion("x")],
            "slow": [Turn(calls=[Call("gate")]), "slow done"],
        }
    )
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(root, "go", model=model, wait="suspend")
            await asked(handle)
            await anyio.wait_all_tasks_blocked()
            assert handle.status == "running"
            gate.open.set()
            assert (await handle.result()).status == "suspended"
            await handle.cancel()
    await checked(handle)


async def test_a_run_is_suspended_when_the_last_child_beside_a_wait_in_a_body_ends() -> None:
    gate = Gate()
    asker, slow = Agent("asker", tools=[delete]), Agent("slow", tools=[gate.tool])

    @tool(replay="safe")
    async def both(ctx: ToolContext) -> list[str]:
        found: list[str] = []

        async def one(agent: Agent[Any, Any, Any]) -> None:
            found.append((await ctx.run_agent(agent, "go")).output)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, asker)
            tasks.start_soon(one, slow)
        return sorted(found)

    model = ScriptedModel(
        {
            "root": [Turn(calls=[Call("both")]), "done"],
            "asker": [deletion("x"), "asker done"],
            "slow": [Turn(calls=[Call("gate")]), "slow done"],
        }
    )
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("root", tools=[both]), "go", model=model, wait="suspend")
            await asked(handle)
            await anyio.wait_all_tasks_blocked()
            assert handle.status == "running"
            gate.open.set()
            assert (await handle.result()).status == "suspended"
            await handle.respond(handle.tree.pending[0].approval_id, Approve())
            assert (await (await executor.resume(handle.run_id)).result()).output == "done"
    assert ("both", ["asker done", "slow done"], None) in ends(await checked(handle))


async def test_a_run_is_suspended_when_the_branch_beside_a_wait_is_cancelled() -> None:
    gate = Gate()
    root = Agent("root", sub_agents=[Agent("child", tools=[delete]), Agent("slow", tools=[gate.tool])])
    model = ScriptedModel(
        {
            "root": [Turn(calls=[Call("child", input="go"), Call("slow", input="go")])],
            "child": [deletion("x")],
            "slow": [Turn(calls=[Call("gate")])],
        }
    )
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(root, "go", model=model, wait="suspend")
            await asked(handle)
            await anyio.wait_all_tasks_blocked()
            await handle.cancel(next(name for name in handle.tree.agents if ".slow-" in name))
            assert (await handle.result()).status == "suspended"
            await handle.cancel()
    await checked(handle)


async def test_a_client_may_give_the_output() -> None:
    form = locate.replace(finishes=True)
    model = ScriptedModel([Turn(calls=[Call("locate")])])
    with anyio.fail_after(5), model:
        result = await helix.run(
            Agent("guide", tools=[form]), "go", model=model, on_approval=lambda request: ClientResult("Oslo")
        )
    assert result.output == "Oslo"


async def test_what_a_client_gives_is_cut_when_it_is_too_long() -> None:
    short = locate.replace(max_result_bytes=4)
    model = ScriptedModel([Turn(calls=[Call("locate")]), "well"])
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            agent = Agent("guide", tools=[short])
            handle = await executor.execute(
                agent, "go", model=model, on_approval=lambda request: ClientResult("0123456789")
            )
            await handle.result()
    assert [chunk.truncated for chunk in await checked(handle) if chunk.type == "tool_end"] == [True]


async def test_an_answer_waits_until_a_run_that_parks_is_parked() -> None:
    leaving, leave = anyio.Event(), anyio.Event()
    helper = Agent("helper", tools=[delete])

    @tool(replay="safe")
    async def slow_to_leave(ctx: ToolContext) -> str:
        try:
            return (await ctx.run_agent(helper, "go")).output
        finally:
            leaving.set()
            with anyio.move_on_after(2, shield=True):
                await leave.wait()

    model = ScriptedModel(
        {"root": [Turn(calls=[Call("slow_to_leave")]), "done"], "helper": [deletion("x"), "helped"]},
    )
    with anyio.fail_after(5), model:
        async with Executor() as executor:
            handle = await executor.execute(Agent("root", tools=[slow_to_leave]), "go", model=model, wait="suspend")
            await leaving.wait()
            assert handle.status == "running"
            [request] = handle.tree.pending
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(handle.respond, request.approval_id, Approve())
                await anyio.wait_all_tasks_blocked()
                assert handle.tree.pending == [request]
                leave.set()
            assert (handle.status, handle.tree.pending, ran) == ("suspended", [], [])
            assert (await (await executor.resume(handle.run_id)).result()).output == "done"
    chunks = await checked(handle)
    assert [chunk.waiting_for for chunk in chunks if chunk.type == "run_pause"] == [[request.approval_id], None]
