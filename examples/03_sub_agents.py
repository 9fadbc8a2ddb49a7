"""A parent and two children that work at the same time: one stream, every chunk tagged with who produced it."""

import anyio

import helix
from helix.testing import Call, ScriptedModel, Turn

model = ScriptedModel(
    {
        "editor": [
            Turn(text="Two facts, please.", calls=[Call("writer", input="bees"), Call("writer", input="ants")]),
            "Bees dance; ants leave scent.",
        ],
        "writer-1": [Turn(text=["Bees ", "dance."])],
        "writer-2": [Turn(text=["Ants ", "leave ", "scent."])],
    }
)
writer = helix.Agent("writer", description="Writes one sentence about an animal.")
editor = helix.Agent("editor", instructions="Ask the writers.", sub_agents=[writer], model=model)


async def main() -> None:
    async with helix.stream(editor, "How do insects talk?") as run:
        async for chunk in run:
            place = " > ".join(["editor", *chunk.agent_id.split(".")[1:]])
            print(f"{chunk.sequence:>3}  {place:<20} {chunk.type:<18} {getattr(chunk, 'delta', '')}")
        result = await run.result()
    print(result.output)
    for agent_id, usage in result.usage_by_agent.items():
        print(result.tree.agent(agent_id).agent_type, agent_id.count("."), usage.total_tokens)


anyio.run(main)
