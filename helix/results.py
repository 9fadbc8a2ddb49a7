"""What a run came to: `RunResult`, and the three errors that carry one.

Floor 2: above `fold` and `outline`; tools get it from `ctx.run_agent`, callers from `helix.run` and `handle.result()`.
"""

from __future__ import annotations

from html import escape
from typing import Any, Generic, cast

from pydantic import TypeAdapter
from typing_extensions import TypeVar

from helix.chunks import ErrorCode, FinishReason, RunStatus
from helix.errors import HelixError
from helix.fold import AgentNode, RunTree, settled
from helix.limits import Usage
from helix.messages import Message
from helix.outline import GLYPHS, estimate, one_line, outline, outline_html

OutputT = TypeVar("OutputT", covariant=True, default=Any)
StateT = TypeVar("StateT", covariant=True, default=Any)

_IN_REPR = 60
_IN_STR = 300
"""Characters of an output, or of an error, that are shown."""
_SHOWN = 5
"""How many requests an error names."""


class RunResult(Generic[OutputT, StateT]):
    """What an agent's run came to, or how far it is when it is parked. Plain data.

    Attributes:
        status: `completed`, `failed`, `cancelled`, `interrupted` or `suspended`.
        state: the agent's state, typed; None without a state type.
        messages: its whole conversation, oldest first: valid as the history of a next request.
        usage: what it and everything below it used, and its `cost`; `own_usage` leaves the children out.
        finish_reason: why the last step ended.
        error: one sentence, when it failed; `error_code` is the protocol's code for it.
        run_id: the agent's id; `agent_type` its name, `session_id` its session's.
        last_sequence: the number of the last chunk that is in this result.
        tree: the whole run, folded.
    """

    def __init__(self, tree: RunTree, agent_id: str, *, output: Any, state: Any) -> None:
        node = tree.agents[agent_id]
        self._output: Any = output
        self._node: AgentNode = node
        self.status: RunStatus = cast(RunStatus, node.status if node.ended else tree.status)
        self.state: StateT = state
        self.messages: list[Message] = list(node.messages) + ([] if node.open_calls else list(settled(node)))
        self.usage: Usage = node.tree_usage
        self.own_usage: Usage = node.usage
        self.finish_reason: FinishReason | None = node.finish_reason
        self.error: str | None = node.error
        self.error_code: ErrorCode | None = node.error_code
        self.run_id: str = agent_id
        self.agent_type: str = node.agent_type
        self.session_id: str | None = node.session_id
        self.last_sequence: int = tree.sequence
        self.tree: RunTree = tree

    @property
    def output(self) -> OutputT:
        """The output, typed.

        Raises:
            RunFailed, RunCancelled, RunSuspended: the run did not complete.
        """
        self.raise_for_status()
        return self._output

    @property
    def usage_by_agent(self) -> dict[str, Usage]:
        """The own usage of this agent and of each below it, by agent id."""
        return {node.agent_id: node.usage for node in self.tree.subtree(self.run_id)}

    @property
    def usage_by_model(self) -> dict[str, Usage]:
        """What was used of each model, by this agent and those below it, by the model's name."""
        found: dict[str, Usage] = {}
        for node in self.tree.subtree(self.run_id):
            for model, usage in node.usage_by_model.items():
                found[model] = found.get(model, Usage()) + usage
        return found

    @property
    def cost(self) -> float | None:
        """What it and everything below it cost in US dollars, as estimated; None when that is not known of all of it.

        `unpriced_models` says of which models it is not known; what the others cost stands in `usage_by_model`.
        """
        return self.usage.cost

    @property
    def unpriced_models(self) -> list[str]:
        """The models that were used and whose price was not known at that time, by name."""
        return [model for model, usage in self.usage_by_model.items() if usage.unpriced]

    def raise_for_status(self) -> None:
        """Raises the error that fits the status; does nothing for a completed run."""
        if self.status != "completed":
            raise _ERRORS.get(self.status, RunSuspended)(self)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON data, in camelCase."""
        return {
            "status": self.status,
            "output": self._node.result if self.status == "completed" else None,
            "state": self.tree.document(self.run_id),
            "messages": _messages.dump_python(self.messages, mode="json", by_alias=True),
            "usage": _usage.dump_python(self.usage, mode="json", by_alias=True),
            "ownUsage": _usage.dump_python(self.own_usage, mode="json", by_alias=True),
            "finishReason": self.finish_reason,
            "error": self.error,
            "errorCode": self.error_code,
            "runId": self.run_id,
            "agentType": self.agent_type,
            "sessionId": self.session_id,
            "lastSequence": self.last_sequence,
        }

    def __repr__(self) -> str:
        if self.status == "completed":
            shown = f", output={one_line(repr(self._output), _IN_REPR)}"
        else:
            shown = f", error={one_line(repr(self.error), _IN_REPR)}" if self.error else ""
        return f"RunResult({one_line(self.agent_type, _IN_REPR)}, {self.status}{shown}, {self.used})"

    def __str__(self) -> str:
        """The tree of agents in at most 20 lines, and a last line with status, tokens and a short output or the error.

        For people to read; control characters in it are replaced. The whole output is `output`.
        """
        told = self._told
        lines = outline(self.tree, self.run_id)
        return "\n".join([*lines, f"{GLYPHS.get(self.status, '·')} {self._summary}{told and f': {told}'}"])

    def _repr_html_(self) -> str:
        """The same for notebooks: escaped, without scripts, readable on light and on dark."""
        told = self._told and f'<div style="white-space:pre-wrap;margin-top:.4em">{escape(self._told)}</div>'
        tree = outline_html(self.tree, self.run_id)
        return f"<div>{tree}<div><strong>{escape(self._summary)}</strong></div>{told}</div>"

    @property
    def _told(self) -> str:
        if self.status == "completed":
            return one_line(self._node.result, _IN_STR)
        return one_line(self.error or "", _IN_STR)

    @property
    def _summary(self) -> str:
        code = f" ({one_line(self.error_code, _IN_REPR)})" if self.error_code else ""
        return f"{self.status}{code}, {self.used}"

    @property
    def used(self) -> str:
        """The tokens and, where it is known, the cost, for people: `1,240 tokens, ~$0.0031`."""
        tokens, parts = f"{self.usage.total_tokens:,} tokens", self.usage_by_model
        known = sum((usage for usage in parts.values() if not usage.unpriced), Usage())
        if known.cost is None:
            return tokens
        without = ", ".join(one_line(model, _IN_REPR) for model in self.unpriced_models[:_SHOWN])
        return f"{tokens}, {estimate(known.cost)}{without and f' without {without}'}"


class RunError(HelixError):
    """A run did not complete. `result` has everything that it did: messages, state, usage, the tree."""

    def __init__(self, result: RunResult[Any, Any]) -> None:
        super().__init__(_sentence(result))
        self.result = result


class RunFailed(RunError):
    """The run failed; `result.error_code` says how."""


class RunCancelled(RunError):
    """The run was cancelled through helix. (A cancelled surrounding task gets its own cancellation instead.)"""


class RunSuspended(RunError):
    """The run is parked, interrupted or waiting; `Executor.resume` goes on with it."""


def _sentence(result: RunResult[Any, Any]) -> str:
    code = f" ({result.error_code})" if result.error_code else ""
    why = f": {result.error}" if result.error else ""
    if result.status == "suspended" and result.tree.pending:
        waits = [f"{item.tool_name} of {item.agent_type} ({item.approval_id})" for item in result.tree.pending]
        why = f": waits for an answer to {', '.join(waits[:_SHOWN])}{', …' if len(waits) > _SHOWN else ''}"
    return f"{result.agent_type} {result.status}{code}{why}"


_ERRORS: dict[str, type[RunError]] = {"failed": RunFailed, "cancelled": RunCancelled}
_messages: TypeAdapter[list[Message]] = TypeAdapter(list[Message])
_usage: TypeAdapter[Usage] = TypeAdapter(Usage)
