"""A run that is interrupted and resumed, with a word in between; and a conversation of several runs."""

import anyio

import helix
from helix import Executor, ModelRequest, Session, tool
from helix.testing import Call, FunctionModel, ScriptedModel, Turn


@tool
async def measure(what: str) -> int:
    """Measure something, which takes a moment."""
    await anyio.sleep(0.1)
    return len(what)


async def interrupted() -> None:
    model = ScriptedModel([Turn(calls=[Call("measure", what="rope")]), "It is 4 long."])
    surveyor = helix.Agent("surveyor", tools=[measure], model=model)
    async with Executor() as executor:
        handle = await executor.execute(surveyor, "How long is the rope?")
        async for chunk in handle.stream():
            if chunk.type == "tool_start":
                await handle.interrupt()  # the tool finishes; no further model call is made
        print(handle.status, "after", handle.tree.sequence, "chunks")

        handle = await executor.resume(handle.run_id, "In a whole sentence, please.")
        result = await handle.result()
        print(result.status, [message.role for message in result.messages])
        print(result.output)


async def conversation() -> None:
    def answer(request: ModelRequest) -> str:
        messages = request.messages
        return f"That was message {len(messages)}; the first was {messages[0].content!r}."

    chatter = helix.Agent("chatter", model=FunctionModel(answer))
    async with Executor() as executor:
        session = Session(chatter, executor)
        await session.send("I am Ada.")
        async for delta in helix.text(session.stream("Who am I?")):
            print(delta)
        print(len(await session.history()), "messages,", session.result.status)


anyio.run(interrupted)
anyio.run(conversation)
