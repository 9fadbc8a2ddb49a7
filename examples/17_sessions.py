"""A conversation that is kept: a turn that waits for the one before it, the history in pages, and how to forget it."""

import tempfile

import anyio

from helix import Agent, Executor, ModelRequest
from helix.testing import FunctionModel


def answer(request: ModelRequest) -> str:
    return f"I have read {len(request.messages)} messages."


clerk = Agent("clerk", model=FunctionModel(answer))


async def main() -> None:
    url = f"sqlite:///{tempfile.mkdtemp()}/runs.db"
    async with Executor(store=url) as executor:
        first = await executor.execute(clerk, "Good morning.", session_id="monday")
        # such as a second browser tab: without on_busy= it would be refused while the first turn is at work
        second = await executor.execute(clerk, "And now?", session_id="monday", on_busy="queue")
        print(first.status, "-", (await second.result()).output)

    async with Executor(store=url) as executor:  # any process, any day
        page = await executor.history("monday", limit=2)  # the newest two
        while page:
            print(page.start, "older:", [message.text for message in page])
            page = await executor.history("monday", limit=2, before=page.start)

        for session in await executor.sessions():
            print(session.session_id, session.runs, "runs,", session.status)
        print(await executor.delete_session("monday"), "runs deleted")
        print(await executor.history("monday"), await executor.sessions())


anyio.run(main)
