"""Structured output: watched while it is written, validated at the end, typed in the result; or given by a tool."""

import anyio
from pydantic import BaseModel

import helix
from helix import ModelRetry, partial_outputs, tool
from helix.testing import Call, ScriptedModel, Turn


class Recipe(BaseModel):
    name: str
    minutes: int
    steps: list[str]


def quick(recipe: Recipe) -> Recipe:
    """Looks at every recipe that fits its type; may change it, or have it corrected."""
    if recipe.minutes > 10:
        raise ModelRetry("That takes too long; give one of ten minutes at most.")
    return recipe.model_copy(update={"name": recipe.name.title()})


@tool(finishes=True)
def from_the_book(name: str) -> Recipe:
    """Take a recipe from the book; that is the answer then."""
    return Recipe(name=name, minutes=3, steps=["toast bread"])


model = ScriptedModel(
    [
        # The first answer is not valid, the second too slow: the model is told why, and tries again.
        Turn(text='{"name": "Tea", "minutes": "a few", "steps": []}'),
        Turn(text='{"name": "Beef tea", "minutes": 90, "steps": []}'),
        Turn(text=['{"name": "Te', 'a", "minutes": 4, "st', 'eps": ["boil water", "wait', '", "pour"]}']),
    ]
)
cook = helix.Agent("cook", output_type=Recipe, output_validators=[quick], tools=[from_the_book])


async def main() -> None:
    async with helix.stream(cook, "How do I make tea?", model=model) as run:
        async for partial in partial_outputs(run, Recipe):
            print(partial)
        result = await run.result()
    recipe = result.output  # a Recipe, to the type checker too
    print(f"{recipe.name}, {recipe.minutes} minutes: {', then '.join(recipe.steps)}")

    finishing = ScriptedModel([Turn(calls=[Call("from_the_book", name="toast")])])  # asked once: the call ends the run
    print((await helix.run(cook, "Something simple?", model=finishing)).output.name)


anyio.run(main)
