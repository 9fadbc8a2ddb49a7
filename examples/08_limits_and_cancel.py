"""Limits hold for an agent and everything below it; one branch can be cancelled, and the others live on."""

import anyio

import helix
from helix import Limits, Price
from helix.testing import Call, ScriptedModel, Turn

worker = helix.Agent("worker", description="Works.")
boss = helix.Agent("boss", sub_agents=[worker])
two_calls = Turn(text="Go.", calls=[Call("worker", input="a"), Call("worker", input="b")])


async def limited() -> None:
    """Three model calls for all of them; one is kept back, so that the boss can still answer."""
    model = ScriptedModel({"boss": [two_calls, "One of two is done."], "worker": ["done", "done"]})
    async with helix.stream(boss, "Work.", model=model, limits=Limits(requests=3)) as run:
        result = await run.result()
    for node in result.tree.agents.values():
        print(node.agent_type, node.status, node.error_code)
    print(result.output, result.usage.requests, "requests")


async def priced() -> None:
    """A tenth of a cent for all of them. What a model costs comes from the extra `cost`, or from here."""
    model = ScriptedModel({"boss": [two_calls, "Done."], "worker": ["done", "done"]})
    async with helix.Executor(prices={"scripted": Price(input=2.5, output=10)}) as executor:
        result = await (await executor.execute(boss, "Work.", model=model, limits=Limits(cost=0.001))).result()
    print(result)


async def cancelled() -> None:
    """The second worker hangs; it is cancelled, and the boss is told."""
    model = ScriptedModel(
        {"boss": [two_calls, "b did not answer."], "worker-1": ["done"], "worker-2": [Turn(text="Hm", stall=True)]}
    )
    async with helix.stream(boss, "Work.", model=model) as run:
        async for chunk in run:
            if chunk.type == "text_delta" and chunk.agent_id.endswith("worker-2"):
                await run.cancel(chunk.agent_id)
            elif chunk.type == "subagent_end":
                print(chunk.sub_agent_run_id.partition(".")[2], chunk.status)
        print((await run.result()).output)


async def out_of_time() -> None:
    model = ScriptedModel([Turn(text="Thinking", stall=True)])
    try:
        await helix.run(worker, "Work.", model=model, limits=Limits(seconds=0.05))
    except helix.RunFailed as error:
        print(error, "| it had said:", error.result.messages[-1])


for example in (limited, priced, cancelled, out_of_time):
    anyio.run(example)
