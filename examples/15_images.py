"""Images, audio and files: beside the words of an input, and as a tool's result. A script stands for the model."""

import tempfile
from pathlib import Path

import helix
from helix import Image, tool
from helix.testing import Call, ScriptedModel, Turn

PIXEL = bytes.fromhex("47494638396101000100800000ffffff00000021f90401000000002c00000000010001000002024401003b")


@tool
def camera(room: str) -> list[str | Image]:
    """Take a picture."""
    return [f"The {room}, just now:", Image(data=PIXEL, media_type="image/gif", name=f"{room}.gif")]


watcher = helix.Agent("watcher", model="openai-responses:gpt-5-mini", tools=[camera])
SCRIPT = [Turn(calls=[Call("camera", room="kitchen")]), "The same white dot is in the kitchen."]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dot.gif"
        path.write_bytes(PIXEL)
        asked = ["Is this in the kitchen?", Image.from_path(path)]

    model = ScriptedModel(SCRIPT)
    result = helix.run_sync(watcher, asked, model=model)
    for message in model.requests[1].messages:
        print(f"{message.role}: {message.text!r}")
    print(result.output)

    try:
        helix.run_sync(watcher, Image(url="kitchen.gif"))
    except ValueError as error:
        print(error)


main()
