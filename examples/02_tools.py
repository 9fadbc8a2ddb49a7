"""Tools: typed functions. Progress while they run, and a second chance for the model."""

import anyio

import helix
from helix import ModelRetry, ToolContext, tool
from helix.chunks import Custom, ToolEnd, ToolOutputDelta, ToolStart
from helix.testing import Call, ScriptedModel, Turn

STOCK = {"bolt": 120, "nut": 80}


@tool
async def stock(ctx: ToolContext, part: str) -> int:
    """How many of a part are in stock.

    Args:
        part: The part's name, singular.
    """
    ctx.emit("progress", {"shelf": "A3"})
    ctx.write(f"counting {part}\n")
    if part not in STOCK:
        raise ModelRetry(f"no part {part!r}; the parts are {', '.join(STOCK)}")
    return STOCK[part]


model = ScriptedModel(
    [
        Turn(calls=[Call("stock", part="bolts")]),
        Turn(calls=[Call("stock", part="bolt"), Call("stock", part="nut")]),
        "There are 120 bolts and 80 nuts.",
    ]
)
keeper = helix.Agent("keeper", tools=[stock], model=model)


async def main() -> None:
    async with helix.stream(keeper, "How many bolts and nuts are there?") as run:
        async for chunk in run:
            match chunk:
                case ToolStart():
                    print("start ", chunk.tool_call_id, chunk.arguments)
                case Custom():
                    print("event ", chunk.tool_call_id, chunk.event_name, chunk.data)
                case ToolOutputDelta():
                    print("output", chunk.tool_call_id, repr(chunk.delta))
                case ToolEnd():
                    print("end   ", chunk.tool_call_id, chunk.error or chunk.result)
                case _:
                    pass
        print((await run.result()).output)


anyio.run(main)
