"""A run that stops in the middle, and goes on in another executor, as in another process on another day."""

import tempfile

import anyio

from helix import Agent, Approve, Executor, tool
from helix.messages import AssistantMessage, UserMessage
from helix.model import ModelRequest
from helix.testing import Call, ScriptedModel, Turn


@tool(replay="safe")
async def survey(place: str) -> str:
    """Look at a place. Looking twice does no harm: a crash in the middle of it is no reason to ask anybody."""
    return f"the {place} is soft"


@tool(requires_approval=True)
async def dig(place: str) -> str:
    """Dig."""
    return f"a hole in the {place}"


def turn(request: ModelRequest) -> Turn | str:
    """What the model says next follows from the conversation, so it does not matter which process asks."""
    said = [message for message in request.messages if isinstance(message, AssistantMessage)]
    if len(said) < 2:
        return Turn(calls=[Call("survey", place="garden") if not said else Call("dig", place="garden")])
    return f"That was message {sum(isinstance(message, UserMessage) for message in request.messages)}."


digger = Agent("digger", tools=[survey, dig], model=ScriptedModel(turn))


async def main() -> None:
    url = f"sqlite:///{tempfile.mkdtemp()}/runs.db"

    async with Executor(store=url) as executor:
        handle = await executor.execute(digger, "Dig.", session_id="garden", wait="suspend")
        seen = [chunk.sequence async for chunk in handle.stream()]
        print("first:", handle.status, "after", seen[-1], "chunks")

    async with Executor(store=url, agents=[digger]) as executor:  # knows the agent by its name, and nothing else
        handle = await executor.get_handle(handle.run_id)
        [request] = handle.tree.pending
        print("second:", request.tool_name, request.arguments, "waits")
        await handle.respond(request.approval_id, Approve())
        handle = await executor.resume(handle.run_id)
        async for chunk in handle.stream(seen[-1]):  # a reader goes on where it was, too
            if chunk.type == "tool_end":
                print("second:", chunk.result)
        print("second:", (await handle.result()).output)

        result = await (await executor.execute(digger, "And now?", session_id="garden")).result()
        print("later:", result.output)


anyio.run(main)
