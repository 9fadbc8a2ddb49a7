"""Structured output: watched while it is written, validated at the end, typed in the result."""

import anyio
from pydantic import BaseModel

import helix
from helix import partial_outputs
from helix.testing import ScriptedModel, Turn


class Recipe(BaseModel):
    name: str
    minutes: int
    steps: list[str]


model = ScriptedModel(
    [
        # The first answer is not valid: the model is told why, and tries again.
        Turn(text='{"name": "Tea", "minutes": "a few", "steps": []}'),
        Turn(text=['{"name": "Te', 'a", "minutes": 4, "st', 'eps": ["boil water", "wait', '", "pour"]}']),
    ]
)
cook = helix.Agent("cook", output_type=Recipe, model=model)


async def main() -> None:
    async with helix.stream(cook, "How do I make tea?") as run:
        async for partial in partial_outputs(run, Recipe):
            print(partial)
        result = await run.result()
    recipe = result.output  # a Recipe, to the type checker too
    print(f"{recipe.name}, {recipe.minutes} minutes: {', then '.join(recipe.steps)}")


anyio.run(main)
