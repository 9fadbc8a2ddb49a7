"""A model that asks another one when one fails.

Floor 3, above the adapters: each model that it asks is behind the same seam as itself. It remembers nothing: whose turn
it is follows from the failures that the log has, so it is the same for everybody who reads it, and after a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self, cast

from helix.chunks import ERROR_CODES, ErrorCode
from helix.errors import DefinitionError, did_you_mean
from helix.model import Choice, Emit, Model, ModelReply, ModelRequest
from helix.models import resolve_model

PASSING: Final[tuple[ErrorCode, ...]] = ("model_rate_limited", "model_unavailable", "model_stream_dropped")
"""The failures after which another model is asked, unless `on=` says otherwise."""


class FallbackModel:
    """Asks the first model, and the next one when that fails, before its reply or in the middle of it.

    Each failure is an attempt of the step: what was said in it is void, its error names the model, and the next
    attempt, with the next model, follows at once. The log's steps have the names of the models that were asked.

    An agent goes on with the model that answered, to its end; its next run, and its sub-agents, begin with the first
    again. A switch is no retry: only when all models have failed in a step does the last one's own error decide, and
    a retry, after its wait, begins another round. All models get the same `ModelSettings`; `extra_body` is seldom for
    more than one. It may be shared as its models may. Inside a model of your own it cannot be seen by the loop, and
    what that raises is retried as any other error.
    """

    def __init__(self, first: Model | str, *others: Model | str, on: Iterable[ErrorCode] = PASSING) -> None:
        """Opens no connection.

        Args:
            first: a model, or the name of one. A `FallbackModel` stands for its models.
            others: whom to ask next, in this order.
            on: the error codes after which the next one is asked.

        Raises:
            DefinitionError: there is no such code.
            UnknownModel: there is no model of a name.
            MissingKey: a model's key is not in the environment.
        """
        self.models: Final = tuple(model for each in (first, *others) for model in _flat(each))
        self.on: Final = frozenset[str](on)
        for code in self.on - ERROR_CODES:
            raise DefinitionError(f"FallbackModel(on=…): no error code {code!r}.{did_you_mean(code, ERROR_CODES)}")

    @property
    def name(self) -> str:
        """`fallback(…)` with the names of all its models."""
        return f"fallback({', '.join(model.name for model in self.models)})"

    def __repr__(self) -> str:
        return f"FallbackModel({', '.join(map(repr, self.models))})"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as entered:
            for model in self.models:
                if hasattr(model, "__aenter__"):
                    await entered.enter_async_context(cast(Any, model))
            entered.pop_all()  # nothing to keep: the models count their users themselves
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        async with AsyncExitStack() as entered:
            for model in self.models:
                if hasattr(model, "__aexit__"):
                    entered.push_async_exit(cast(Any, model))

    def choose(self, failures: Sequence[str], attempt: int) -> Choice:
        """Whose turn it is: every failure in `on` has passed it on."""
        models, failed = self.models, [reason in self.on for reason in failures]
        turn = sum(failed)
        switches = sum(failed[len(failed) - (attempt - 1) :])  # in this step
        is_last = switches % len(models) == len(models) - 1
        return Choice(
            models[turn % len(models)],
            retries=attempt - 1 - switches + switches // len(models),
            following=None if is_last else models[(turn + 1) % len(models)],
            on=self.on,
        )

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        """Asks the model whose turn it is.

        Raises:
            ModelError: it failed.
        """
        return await self.choose(request.failures, request.attempt).model.respond(request, emit)


def _flat(model: Model | str) -> tuple[Model, ...]:
    if isinstance(model, FallbackModel):
        return model.models
    return (resolve_model(model) if isinstance(model, str) else model,)
