"""Many readers of one run: filters, a reader that leaves and comes back, and one that comes late."""

import anyio

import helix
from helix import collect, filter_stream_by_agent, filter_stream_by_type
from helix.testing import Call, ScriptedModel, Turn

model = ScriptedModel(
    {
        "lead": [Turn(text="I ask the scout.", calls=[Call("scout", input="the hill")]), "The hill is clear."],
        "scout": [Turn(text=["I see ", "nothing ", "at all."])],
    }
)
lead = helix.Agent("lead", sub_agents=[helix.Agent("scout", description="Looks at places.")], model=model)


async def main() -> None:
    async with helix.Executor() as executor:
        handle = await executor.execute(lead, "Is the hill clear?")

        seen = 0
        async for chunk in handle.stream():
            seen = chunk.sequence
            if chunk.type == "subagent_start":
                break  # this reader leaves; the run goes on
        print("left after", seen)

        rest = await collect(handle.stream(from_offset=seen))
        print("came back for", rest[0].sequence, "to", rest[-1].sequence)

        words = await collect(filter_stream_by_type(handle.stream(), "text_delta"))
        print([word.delta for word in words])

        scout = f"{handle.run_id}.scout-1"
        print([chunk.type for chunk in await collect(filter_stream_by_agent(handle.stream(), scout))])

        joined = await collect(filter_stream_by_type(handle.stream(coalesce=True), "text_delta"))
        print([word.delta for word in joined])

        before = handle.at(seen)  # the run as it was when the first reader left
        print(before.status, list(before.agents) == [handle.run_id], "->", handle.status)


anyio.run(main)
