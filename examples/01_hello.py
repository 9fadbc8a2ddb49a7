"""One agent, its words as they come, and what it came to."""

import anyio

import helix
from helix.testing import ScriptedModel

# A real one would be model="openai:gpt-5-mini"; the scripted model needs no network and no key.
model = ScriptedModel(["Hello. I am a helix agent, and this is my only line."], pace=0.02)
greeter = helix.Agent("greeter", instructions="Greet the user.", model=model)


async def main() -> None:
    async with helix.stream(greeter, "Who are you?") as run:
        async for delta in helix.text(run):
            print(delta, end="", flush=True)
        result = await run.result()
    print()
    print(result.status, result.usage.total_tokens, "tokens")


anyio.run(main)
