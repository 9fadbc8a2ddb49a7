"""What people and clients tell a run: answers, words, stops. Plain data, the same in a process and between processes.

Floor 1: imports only `parts`. `owner.take` is the one place that does what a command says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from helix.parts import Content


@dataclass(slots=True, frozen=True)
class Approve:
    """Yes: the call may run.

    Attributes:
        arguments: run it with these instead; they are validated like the model's own, and the model is told of them.
    """

    arguments: dict[str, Any] | None = None
    type: Literal["approve"] = field(default="approve", kw_only=True, repr=False)


@dataclass(slots=True, frozen=True)
class Deny:
    """No: the call does not run; the model reads it as a failed call.

    Attributes:
        reason: what the model is told.
    """

    reason: str = ""
    type: Literal["deny"] = field(default="deny", kw_only=True, repr=False)


@dataclass(slots=True, frozen=True)
class ClientResult:
    """What a client has got from running a tool with `runs_on="client"`.

    Attributes:
        value: the call's result: any value with a JSON form.
    """

    value: Any = None
    type: Literal["result"] = field(default="result", kw_only=True, repr=False)


Answer: TypeAlias = Annotated[Approve | Deny | ClientResult, Field(discriminator="type")]
"""What can be answered to an `ApprovalRequest`."""


@dataclass(slots=True, frozen=True)
class Respond:
    """Answer a request.

    Attributes:
        command_id: names this command; the same one given twice counts once.
        approval_id: which request.
        answer: what is answered.
        by: who answered, for the log.
    """

    command_id: str
    approval_id: str
    answer: Answer
    by: str | None = None
    type: Literal["respond"] = field(default="respond", kw_only=True, repr=False)


@dataclass(slots=True, frozen=True)
class Send:
    """Say something to an agent.

    Attributes:
        command_id: names this command; the same one given twice counts once.
        text: what is said: a text, or a list of texts, images, audio and files.
        to: the agent's id; None: the root.
    """

    command_id: str
    text: Content
    to: str | None = None
    type: Literal["send"] = field(default="send", kw_only=True, repr=False)


@dataclass(slots=True, frozen=True)
class Cancel:
    """Stop an agent and all below it, at once.

    Attributes:
        command_id: names this command.
        agent_id: the agent's id; None: the root.
    """

    command_id: str
    agent_id: str | None = None
    type: Literal["cancel"] = field(default="cancel", kw_only=True, repr=False)


@dataclass(slots=True, frozen=True)
class Interrupt:
    """Stop the run before its next model calls; running tools finish.

    Attributes:
        command_id: names this command.
        end: end the run as cancelled then, also if it is parked already, so that nobody goes on with it; else it is
            parked.
    """

    command_id: str
    end: bool = False
    type: Literal["interrupt"] = field(default="interrupt", kw_only=True, repr=False)


Command: TypeAlias = Annotated[Respond | Send | Cancel | Interrupt, Field(discriminator="type")]
"""Whatever a run can be told from outside."""

_adapter: TypeAdapter[Command] = TypeAdapter(Command)


def command_to_json(command: Command) -> bytes:
    """The command's JSON text."""
    return _adapter.dump_json(command)


def parse_command(data: str | bytes) -> Command:
    """A command from its JSON text.

    Raises:
        ValueError: it is not one.
    """
    return _adapter.validate_json(data)
