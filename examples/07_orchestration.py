"""Orchestration in plain Python: a tool that runs agents, in parallel and watched."""

import anyio

import helix
from helix import ToolContext, tool
from helix.testing import Call, FunctionModel, ScriptedModel, Turn

drafter = helix.Agent("drafter", model=FunctionModel(lambda request: f"draft of {request.messages[0].content}"))
critic = helix.Agent("critic", model=ScriptedModel([Turn(text=["Too short. ", "STOP ", "And too long."], stall=True)]))


@tool
async def write(ctx: ToolContext, topics: list[str]) -> list[str]:
    """Write about each topic, and have it criticised."""
    drafts: dict[str, str] = {}

    async def draft(topic: str) -> None:
        child = await ctx.run_agent(drafter, topic)
        drafts[topic] = child.output

    async with anyio.create_task_group() as tasks:
        for topic in topics:
            tasks.start_soon(draft, topic)

    async with ctx.stream_agent(critic, "\n".join(drafts.values())) as child:
        async for word in helix.text(child, child.agent_id):
            if "STOP" in word:
                break  # leaving the block cancels the child
            ctx.write(f"critic: {word}\n")
    return [drafts[topic] for topic in topics]


model = ScriptedModel([Turn(calls=[Call("write", topics=["tea", "rain"])]), "Done."])
editor = helix.Agent("editor", tools=[write], model=model)


async def main() -> None:
    async with helix.stream(editor, "Write.") as run:
        async for chunk in run:
            if chunk.type == "tool_output_delta":
                print(chunk.delta, end="")
            elif chunk.type == "subagent_end":
                print(chunk.sub_agent_type, chunk.status, repr(chunk.result))
            elif chunk.type == "tool_end":
                print(chunk.tool_name, chunk.result)
        print((await run.result()).output)


anyio.run(main)
