"""Sessions: several runs as one conversation.

Floor 5: above `executor`, which keeps the history and the state between the turns.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Self

from typing_extensions import TypeVar

from helix.agent import Agent
from helix.api import answering
from helix.chunks import Chunk
from helix.errors import UsageError, check_arguments
from helix.executor import EXECUTE_OPTIONS, Executor
from helix.handle import RunHandle
from helix.log import LogReader
from helix.messages import HistoryPage
from helix.results import RunResult

OutputT = TypeVar("OutputT", default=Any)
StateT = TypeVar("StateT", default=Any)


class Session(Generic[OutputT, StateT]):
    """A conversation with an agent: each turn knows the ones before it, and the state goes on.

    Args:
        agent: whom one talks to.
        executor: where the runs live; it must be entered.
        session_id: an earlier conversation to go on with; a new one by default.
    """

    def __init__(self, agent: Agent[OutputT, StateT, Any], executor: Executor, session_id: str | None = None) -> None:
        self._agent = agent
        self._executor = executor
        self._last: RunHandle[OutputT, StateT] | None = None
        self.session_id = secrets.token_hex(8) if session_id is None else session_id

    async def send(self, input: Any, **options: Any) -> RunResult[OutputT, StateT]:
        """One turn, to its end; never raises for a failed run. Options are those of `Executor.execute`.

        What needs approval is denied, unless the turn has `on_approval=` or `wait="suspend"`. (In a turn that is
        streamed, answer with `handle.respond`.)

        Raises:
            SessionBusy: an earlier turn is still going; `on_busy="queue"` waits for it, `"interrupt"` stops it.
        """
        check_arguments("send", options, EXECUTE_OPTIONS - {"session_id"})
        handle = await self._execute(input, answering(options))
        return await handle.result()

    def stream(self, input: Any, **options: Any) -> SessionStream[OutputT, StateT]:
        """One turn, as the stream of its chunks. Leaving the iteration detaches; the turn goes on.

        Raises:
            SessionBusy: at the first step of the iteration: an earlier turn is still going.
        """
        check_arguments("stream", options, EXECUTE_OPTIONS - {"session_id"})
        return SessionStream(lambda: self._execute(input, options))

    @property
    def handle(self) -> RunHandle[OutputT, StateT]:
        """The latest turn's handle, to answer it, steer it or stop it.

        Raises:
            UsageError: there was none yet.
        """
        if self._last is None:
            raise UsageError("this session has had no turn yet; call send or stream first")
        return self._last

    @property
    def result(self) -> RunResult[OutputT, StateT]:
        """What the latest turn has come to.

        Raises:
            UsageError: there was none yet, or it is still going.
        """
        if not self.handle.tree.at_rest:
            raise UsageError("the latest turn is still going; read its stream to the end first")
        return self.handle.snapshot()

    async def history(self, *, limit: int | None = None, before: int | None = None) -> HistoryPage:
        """The conversation so far, oldest first, in pages if `limit` is given; see `Executor.history`."""
        return await self._executor.history(self.session_id, limit=limit, before=before)

    async def _execute(self, input: Any, options: dict[str, Any]) -> RunHandle[OutputT, StateT]:
        self._last = await self._executor.execute(self._agent, input, session_id=self.session_id, **options)
        return self._last


class SessionStream(Generic[OutputT, StateT]):
    """The chunks of a session's turn; the turn begins with the first one that is asked for."""

    def __init__(self, execute: Callable[[], Coroutine[Any, Any, RunHandle[OutputT, StateT]]]) -> None:
        self._execute = execute
        self._reader: LogReader[Chunk] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._reader is None:
            self._reader = (await self._execute()).stream()
        return await self._reader.__anext__()

    async def aclose(self) -> None:
        """Ends the iteration; the turn goes on."""
        if self._reader is not None:
            await self._reader.aclose()
