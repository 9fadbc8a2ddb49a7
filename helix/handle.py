"""The handle of a run: by it a run is read, waited for, answered, steered and stopped.

Floor 5: above `owner` and `log`; the executor gives it out.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, overload

from typing_extensions import TypeVar

from helix import chunks as c
from helix.agent import Agent, as_message
from helix.commands import Approve, Cancel, ClientResult, Command, Deny, Interrupt, Respond, Send
from helix.fold import RunTree, fold
from helix.live import Run, result_of
from helix.log import LogReader, RunLog
from helix.owner import check, take
from helix.results import RunResult

OutputT = TypeVar("OutputT", default=Any)
StateT = TypeVar("StateT", default=Any)


class RunHandle(Generic[OutputT, StateT]):
    """One run, live or not: read it, wait for it, stop it.

    Attributes:
        run_id: the root agent's id.
        session_id: its session's.
    """

    def __init__(self, agent: Agent[OutputT, StateT, Any], log: RunLog) -> None:
        self._agent = agent
        self._log = log
        self._run: Run | None = None
        self.run_id = log.run_id
        self.session_id: str | None = log.tree.root.session_id

    def __repr__(self) -> str:
        tree = self._log.tree
        agents = f"{len(tree.agents)} agent{'' if len(tree.agents) == 1 else 's'}"
        name, where = self._agent.name, f"at sequence {tree.sequence}"
        return f"RunHandle({name}, run_id={self.run_id!r}, {tree.status}, {agents}, {where})"

    @property
    def agent(self) -> Agent[OutputT, StateT, Any]:
        """The root's definition."""
        return self._agent

    @property
    def run(self) -> Run | None:
        """The live side of it, as it is or was last in this executor; for the executor only."""
        return self._run

    @property
    def tree(self) -> RunTree:
        """The run as it is now, folded. Not to be changed."""
        return self._log.tree

    @property
    def status(self) -> str:
        """`running`, or as in the last `run_end` or `run_pause`."""
        return self._log.tree.status

    @overload
    def stream(
        self, from_offset: int = 0, *, follow: bool = False, coalesce: bool = False, control: Literal[False] = False
    ) -> LogReader[c.Chunk]: ...
    @overload
    def stream(
        self, from_offset: int = 0, *, follow: bool = False, coalesce: bool = False, control: bool
    ) -> LogReader[c.Chunk | c.Control]: ...
    def stream(
        self, from_offset: int = 0, *, follow: bool = False, coalesce: bool = False, control: bool = False
    ) -> LogReader[Any]:
        """The chunks above `from_offset`, in order: what is there at once, then live, until the run rests.

        Any number of readers may read at any time, also after the end. Leaving one detaches it; the run goes on.

        Args:
            from_offset: the `sequence` of the last chunk that was seen; 0 for all.
            follow: go on when the run is parked, until it is resumed and ends.
            coalesce: join adjacent deltas of one agent when the reader is behind; the joined chunk has the number of
                its last part, so nothing is lost and offsets keep their meaning.
            control: deliver the `stream_end` control message too, last.
        """
        return self._log.read(from_offset, follow=follow, coalesce=coalesce, control=control)

    async def result(self) -> RunResult[OutputT, StateT]:
        """What the run has come to, once it has ended or is parked. Needs no reader, and never raises for a failure."""
        await self._log.rest()
        if self._log.kept is not None:
            await self._log.kept.settle()
        return self.snapshot()

    def snapshot(self) -> RunResult[OutputT, StateT]:
        """How far the run is now."""
        outputs = None if self._run is None else self._run.outputs
        return result_of(self._agent, self._log.tree, self.run_id, outputs)

    def at(self, sequence: int) -> RunTree:
        """The run as it was after that chunk, folded from the log."""
        return fold(chunk for chunk in self._log.structure if chunk.sequence <= sequence)

    def structure(self, up_to: int) -> list[c.Chunk]:
        """What a `Resync` stands for: the chunks up to that number, of which deltas may be missing."""
        return [chunk for chunk in self._log.structure if chunk.sequence <= up_to]

    async def respond(
        self, approval_id: str, answer: Approve | Deny | ClientResult, *, by: str | None = None, command_id: str = ""
    ) -> None:
        """Answers a request, live or while the run is parked; `tree.pending` has the requests.

        A call whose run is parked goes on once the run is resumed. Edited arguments (`Approve(arguments=…)`) are
        validated like the model's, and the model is told of them.

        Args:
            approval_id: which request.
            answer: `Approve` or `Deny`; of a tool that runs on the client, `ClientResult` or `Deny`.
            by: who answers, for the log.
            command_id: names this answer; the same one given again does nothing.

        Raises:
            UnknownApproval: nobody has asked for that.
            AlreadyAnswered: it is answered, too old, or its call has ended; `decision` says which.
            InvalidAnswer: it does not fit the request, which still waits.
        """
        await self._command(Respond(command_id, approval_id, answer, by))

    async def send(self, text: Any, *, to: str | None = None, command_id: str = "") -> None:
        """Says something to an agent, which reads it with its next model call, behind all tool results.

        An agent that was about to end with words goes on instead.

        Args:
            text: what is said: a text; an `Image`, `Audio` or `File`, or a list of texts and those.
            to: the agent's id; the root by default.
            command_id: names this message; the same one given again does nothing.

        Raises:
            AgentEnded: the agent has ended.
            UsageError: there is no such agent.
        """
        await self._command(Send(command_id, as_message(text).content, to))

    async def cancel(self, agent_id: str | None = None) -> None:
        """Stops the run, or one agent and what is below it, at once; returns when that has ended.

        The parent of a cancelled branch sees a failed call and goes on. Does nothing for what has ended.

        A run that another process owns is told; if that has died, the run is ended from here as soon as its lease has
        passed (15 s at most).

        Raises:
            UsageError: there is no such agent.
            StoreError: the store cannot be reached.
        """
        target = agent_id or self.run_id
        if self._log.kept is not None and not self._log.live:
            if not self._log.tree.ended:
                await self._log.kept.tell(Cancel("", agent_id), self._take, self._check)
            return
        self.cancel_nowait(target)
        while self._log.live and not self._log.tree.agents[target].ended:
            await self._log.news()
        if target == self.run_id:
            await self._log.rest()
        if self._log.kept is not None:
            await self._log.kept.flush()

    def cancel_nowait(self, agent_id: str | None = None) -> None:
        """`cancel`, without waiting for the end.

        Raises:
            UsageError: there is no such agent; or the run is not live and one branch of it is meant.
        """
        self._take(Cancel("", agent_id))

    async def interrupt(self) -> None:
        """Stops the run before its next model calls; running tools finish. Returns when it rests.

        `Executor.resume` goes on with it. A run that had nothing more to ask ends instead. Not to be awaited in a tool
        of the same run: it would wait for itself.
        """
        kept = self._log.kept
        if self._log.live:
            self._take(Interrupt(""))
        elif kept is not None and not self._log.here:
            await kept.tell(Interrupt(""), self._take, self._check)
        await self._log.rest()
        if kept is not None:
            await kept.settle()

    def attach(self, run: Run) -> None:
        """A new owner has begun to run it. Only the executor calls this."""
        self._run = run

    async def _command(self, command: Command) -> None:
        if self._run is not None and self._run.parking:  # it is about to rest; then the answer is kept in the log
            await self._log.rest()
        kept = self._log.kept
        if kept is not None and not self._log.live:
            await kept.tell(command, self._take, self._check)
            return
        self._take(command)
        if kept is not None:
            await kept.flush()

    def _take(self, command: Command) -> None:
        if not self._log.live:
            self._check(command)
        take(self._log, self._run if self._log.live else None, command)

    def _check(self, command: Command) -> None:
        check(self._log, command, self._agent)
