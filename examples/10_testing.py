"""Testing an agent: one tool alone, the whole agent with a script, and the grammar's judge over its log."""

import anyio
from pydantic import BaseModel

import helix
from helix import ToolContext, tool
from helix.messages import ToolMessage
from helix.testing import Call, ScriptedModel, Turn, check_stream, context, no_real_models, recorded


class Count(BaseModel):
    value: int = 0


@tool
async def add(ctx: ToolContext[Count], number: int) -> int:
    """Add a number."""
    with ctx.update_state() as count:
        count.value += number
    ctx.emit("added", number)
    return ctx.state.value


adder = helix.Agent("adder", model="openai:gpt-5-mini", state_type=Count, tools=[add])


async def test_the_tool_alone() -> None:
    ctx = context(state=Count(value=1))
    assert await add(ctx, 2) == 3
    assert recorded(ctx).events == [("added", 2)]
    assert recorded(ctx).patches == [[{"op": "replace", "path": "/value", "value": 3}]]


async def test_the_agent() -> None:
    script = [Turn(calls=[Call("add", number=2), Call("add", number="three")]), "2, and I could not add the other."]
    with no_real_models(), ScriptedModel(script) as model:  # turns that are left over are an error
        async with helix.stream(adder, "Add 2 and three.", model=model) as run:
            chunks = await helix.collect(run)
            result = await run.result()
    check_stream(chunks)
    assert result.state == Count(value=2)
    answers = [message for message in model.requests[1].messages if isinstance(message, ToolMessage)]
    assert [answer.is_error for answer in answers] == [False, True]
    print("the model read:", answers[1].content)


for test in (test_the_tool_alone, test_the_agent):
    anyio.run(test)
    print(test.__name__, "passed")
