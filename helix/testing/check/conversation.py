"""Rule 11: what stands in a conversation. Above `calls`, below `lives`."""

from __future__ import annotations

from collections.abc import Iterator

from helix.chunks import MessageChunk, RunStart
from helix.messages import ToolMessage, UserMessage
from helix.testing.check.calls import calls_of
from helix.testing.check.log import Agent, Log


def user_speaks(log: Log, agent: Agent, chunk: MessageChunk) -> None:
    if not isinstance(chunk.message, UserMessage):
        message = f"the {chunk.kind} for {agent.agent_id} is a message of the role {chunk.message.role!r}"
        log.broken("message-user", chunk, message)


def history_is_settled(log: Log, chunk: RunStart) -> None:
    due: Iterator[str] = iter(())
    for message in [*(chunk.history or []), UserMessage("")]:
        answered = message.tool_call_id if isinstance(message, ToolMessage) else None
        if next(due, None) != answered:
            message = f"the history of {chunk.agent_id} does not answer its calls, or not in their order"
            log.broken("history-settled", chunk, message)
            return
        if answered is None:
            due = iter([call.tool_call_id for call in calls_of(message)])
