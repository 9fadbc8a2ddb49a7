"""Typed state: tools change it, clients follow it by patches, here with a StateMirror."""

import anyio
from pydantic import BaseModel

import helix
from helix import StateMirror, ToolContext, tool
from helix.chunks import StatePatch
from helix.testing import Call, ScriptedModel, Turn


class Basket(BaseModel):
    items: list[str] = []
    total: float = 0


PRICES = {"tea": 4.5, "milk": 1.2}


@tool
async def put(ctx: ToolContext[Basket], item: str) -> str:
    """Put an item into the basket."""
    with ctx.update_state() as basket:
        basket.items.append(item)
        basket.total += PRICES[item]
    return f"{len(ctx.state.items)} items"


model = ScriptedModel([Turn(calls=[Call("put", item="tea"), Call("put", item="milk")]), "Tea and milk: 5.70."])
shopper = helix.Agent("shopper", state_type=Basket, tools=[put], model=model)


async def main() -> None:
    mirror = StateMirror()
    async with helix.stream(shopper, "Tea and milk.") as run:
        async for chunk in run:
            mirror.apply(chunk)
            if isinstance(chunk, StatePatch):
                print(chunk.patches)
        result = await run.result()
    assert mirror.state(run.run_id, Basket) == result.state
    print(result.state)


anyio.run(main)
