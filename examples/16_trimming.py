"""A store keeps every word as it came. Once nobody will watch a run again, its deltas can be dropped."""

import tempfile
from datetime import timedelta

import anyio

from helix import Agent, Executor, StateMirror
from helix.chunks import Resync
from helix.testing import ScriptedModel, Turn

poet = Agent("poet", model=ScriptedModel([Turn(text=["The ", "tide ", "is ", "out."])]))


async def main() -> None:
    url = f"sqlite:///{tempfile.mkdtemp()}/runs.db"
    async with Executor(store=url) as executor:
        handle = await executor.execute(poet, "A line, please.")
        print(len([chunk async for chunk in handle.stream()]), "chunks were seen")

    async with Executor(store=url, agents=[poet]) as executor:  # such as a job of every night
        print(await executor.trim(older_than=timedelta(days=30)), "deltas are that old")
        print(await executor.trim(handle.run_id), "deltas dropped")

        handle = await executor.get_handle(handle.run_id)
        print((await handle.result()).output)  # what a run is, stays

        mirror = StateMirror()
        async for chunk in handle.stream():  # who reads from a place that is gone is told, and goes on from there
            mirror.apply(chunk)
            if isinstance(chunk, Resync):
                agent = chunk.snapshot.agent()
                print("resync up to chunk", chunk.floor, agent and [message.role for message in agent.messages])


anyio.run(main)
