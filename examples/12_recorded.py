"""A saved run as a test: `Recorded` answers as the log says, offline; tools and everything else run anew."""

import tempfile
from pathlib import Path

import helix
from helix import tool
from helix.testing import Call, Recorded, ScriptedModel, Turn


@tool
async def add(a: float, b: float) -> float:
    """Add two numbers."""
    return a + b


@tool
async def times(a: float, b: float) -> float:
    """Multiply two numbers."""
    return a * b


teacher = helix.Agent("teacher", model="openai:gpt-5-mini", tools=[add, times])
QUESTION = "6 + 6, times 2.5?"


def record(path: Path) -> None:
    """Once, against the real model (here a script); `helix run … --save run.jsonl` does the same."""
    script = [
        Turn(text="One by one.", calls=[Call("add", a=6, b=6)]),
        Turn(calls=[Call("times", a=12, b=2.5)]),
        Turn(text=["12 and 30, ", "so 42"]),
    ]
    with helix.stream_sync(teacher, QUESTION, model=ScriptedModel(script)) as run:
        chunks = list(run)
    path.write_bytes(b"".join(helix.chunk_to_json(chunk) + b"\n" for chunk in chunks))
    print(len(chunks), "chunks saved")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.jsonl"
        record(path)

        with Recorded(path) as model:  # recorded steps that are left over are an error
            result = helix.run_sync(teacher, QUESTION, model=model)
        print("the same again:", result.output)
        assert [message.role for message in result.messages][-2:] == ["tool", "assistant"]

        try:
            helix.run_sync(teacher, "1 + 1?", model=Recorded(path))
        except helix.RunFailed as failed:
            print(failed.result.error)


main()
