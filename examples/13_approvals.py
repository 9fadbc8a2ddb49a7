"""A call that a person must approve, one that the client runs, and a run that parks meanwhile."""

import anyio

import helix
from helix import Agent, Approve, ClientResult, Deny, Executor, ToolContext, tool
from helix.chunks import ApprovalRequest
from helix.testing import Call, ScriptedModel, Turn


def costs(ctx: ToolContext, arguments: dict[str, int]) -> bool | str:
    return f"{arguments['amount']} coins are many" if arguments["amount"] > 10 else False


@tool(requires_approval=costs)
async def buy(amount: int) -> str:
    """Buy tea."""
    return f"tea for {amount}"


@tool(runs_on="client")
async def locate() -> str:
    """Where the user is."""
    raise NotImplementedError  # never called


buyer = Agent("buyer", description="Buys.", tools=[buy])
guide = Agent("guide", sub_agents=[buyer], tools=[locate])


def model() -> ScriptedModel:
    both = Turn(calls=[Call("buyer", input="tea"), Call("locate")])
    return ScriptedModel({"guide": [both, "All set."], "buyer": [Turn(calls=[Call("buy", amount=50)]), "Bought."]})


async def parked() -> None:
    async with Executor() as executor:
        handle = await executor.execute(guide, "Tea, please.", model=model(), wait="suspend")
        print((await handle.result()).status)
        for request in sorted(handle.tree.pending, key=lambda request: request.kind):
            print(request.agent_type, "asks:", request.tool_name, request.arguments, request.reason)
            cheaper, here = Approve(arguments={"amount": 9}), ClientResult("Oslo")
            await handle.respond(request.approval_id, cheaper if request.kind == "approval" else here)
        result = await (await executor.resume(handle.run_id)).result()
        print(result.output, [end.result async for end in helix.filter_stream_by_type(handle.stream(), "tool_end")])


def decide(request: ApprovalRequest) -> Deny | ClientResult:
    return Deny("no money") if request.kind == "approval" else ClientResult("Rome")


anyio.run(parked)
result = helix.run_sync(guide, "Tea, please.", model=model(), on_approval=decide)
print(
    [message.content for message in result.tree.agents[f"{result.run_id}.buyer-1"].messages if message.role == "tool"]
)
