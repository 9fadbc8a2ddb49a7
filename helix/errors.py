"""Every error that helix raises, named for what the caller can do about it.  Floor 1: imports only `limits`.

`RunFailed`, `RunCancelled` and `RunSuspended` carry a result and stand beside it, in `helix.results`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Protocol

from helix.limits import Usage


class HelixError(Exception):
    """The base of all errors that helix raises."""


class DefinitionError(HelixError, ValueError):
    """An agent, a tool, a state or an output type is defined in a way that cannot work. Nothing has run."""


class UsageError(HelixError, RuntimeError):
    """helix was called in an order or a place that cannot work, such as an executor before `async with`."""


class UnknownModel(HelixError, ValueError):
    """A model was named that helix does not know; the message names the nearest one that it does."""


class MissingKey(HelixError, ValueError):
    """A provider's key is neither given nor in the environment."""


class UnknownRun(HelixError, LookupError):
    """No run of that id is in the store."""


class UnknownAgent(HelixError, LookupError):
    """An agent was named that the executor was not given."""


class SessionBusy(HelixError, RuntimeError):
    """The session's last run is still live or parked; wait for it, resume it, or cancel it."""


class UnknownApproval(HelixError, LookupError):
    """Nobody has asked for an answer of that id in this run."""


class AlreadyAnswered(HelixError, RuntimeError):
    """The request is closed: it was answered, its deadline has passed, or its call ended in another way.

    Attributes:
        decision: how it was closed: `approve`, `deny`, `result`, `expired`; `ended` if its call ended without.
    """

    def __init__(self, message: str, decision: str) -> None:
        super().__init__(message)
        self.decision = decision


class InvalidAnswer(HelixError, ValueError):
    """The answer does not fit the request: the wrong kind, or arguments that the tool does not take. It still waits."""


class AgentEnded(HelixError, RuntimeError):
    """The agent has ended, and reads nothing any more."""


class StoreError(HelixError, RuntimeError):
    """The store itself failed: not reachable, full, damaged, of a newer version; the message says what to do."""


class StaleWriter(HelixError, RuntimeError):
    """Another process owns the run now, or it was given up; nothing was written. Read on, but do not write.

    Attributes:
        epoch: the run's epoch in the store.
    """

    def __init__(self, message: str, epoch: int) -> None:
        super().__init__(message)
        self.epoch = epoch


class RunExists(HelixError, ValueError):
    """There is a run of that id in the store already."""


class RunBusy(HelixError, RuntimeError):
    """The run has an owner whose lease is fresh; ask again when it has run out, or tell the owner by a command.

    Attributes:
        owner: who has it.
        remaining: seconds until the lease runs out, unless it is renewed.
    """

    def __init__(self, message: str, owner: str, remaining: float) -> None:
        super().__init__(message)
        self.owner = owner
        self.remaining = remaining


class RunEnded(HelixError, RuntimeError):
    """The run has ended; nothing can be added to it, and nobody reads what is posted to it.

    Attributes:
        status: how it ended.
    """

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status


class InvalidChunk(HelixError, ValueError):
    """A chunk that cannot be parsed, or that does not fit the log it was appended to."""


class InvalidPatch(HelixError, ValueError):
    """An RFC 6902 patch that cannot be applied; the document is as it was."""


class StateError(HelixError, ValueError):
    """A state draft was given a value that the state's type does not allow; nothing of it was written."""


class ToolEnded(HelixError, RuntimeError):
    """A tool's body wrote or emitted after its call had ended (it was cancelled, or timed out)."""


class LimitReached(HelixError, RuntimeError):
    """A child could not be started because a limit forbids it.

    Attributes:
        code: the protocol's `limit_*` code.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ModelRetry(Exception):
    """Raise it in a tool, or in an output check, to tell the model what was wrong and let it try again."""


class ModelError(HelixError):
    """A model call failed.

    Attributes:
        code: one of the protocol's `model_*` codes (or `internal`).
        retryable: whether the same request may succeed when it is made again.
        retry_after: seconds that the provider asked to wait, if it did.
        detail: what a developer wants to know beyond the message; never a key.
        usage: what the provider said the failed call used, if it said so.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
        detail: str | None = None,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after
        self.detail = detail
        self.usage = usage


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` when one of `known` is near to `name`, else an empty text."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_arguments(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """As Python refuses keyword arguments that a function does not have, and with the one that may be meant.

    Raises:
        TypeError: one of `given` is not in `known`.
    """
    names = list(known)
    for name in given:
        if name not in names:
            raise TypeError(f"{function}() has no argument {name!r}.{did_you_mean(name, names)}")


class HasAgent(Protocol):
    """Whatever tells of one agent: a chunk, a node of a tree."""

    @property
    def agent_id(self) -> str:
        """The agent's id in its run."""
        ...

    @property
    def agent_type(self) -> str:
        """The agent's name."""
        ...


def which_agent(given: str, agents: Iterable[HasAgent]) -> str:
    """A hint for who gave what is no agent's id: the ids of the agents of that name, else the nearest id."""
    known = {agent.agent_id: agent.agent_type for agent in agents}
    named = [agent_id for agent_id, name in known.items() if given in (name, agent_id.rpartition(".")[2])]
    if not named:
        return did_you_mean(given, known)
    shown = ", ".join(repr(agent_id) for agent_id in named[:_IDS]) + (", …" if len(named) > _IDS else "")
    return f" An agent's id is wanted; of {given!r}: {shown}."


_IDS = 5
"""How many ids a hint names."""
