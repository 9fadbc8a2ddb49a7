"""Without async: run_sync and stream_sync work in scripts, threads and notebooks."""

import helix
from helix import tool
from helix.testing import Call, ScriptedModel, Turn


@tool
def double(number: int) -> int:
    """Double a number. (Sync tools run in threads.)"""
    return 2 * number


def script() -> ScriptedModel:
    return ScriptedModel([Turn(text="Let me see.", calls=[Call("double", number=21)]), Turn(text=["It is ", "42."])])


doubler = helix.Agent("doubler", tools=[double])

result = helix.run_sync(doubler, "Double 21.", model=script())
print(result.output, result.usage.requests, "requests")

with helix.stream_sync(doubler, "Double 21.", model=script()) as run:
    for chunk in run:
        if chunk.type == "text_delta":
            print("text", repr(chunk.delta))
        elif chunk.type == "tool_end":
            print("tool", chunk.result)
    print(run.result().status)
