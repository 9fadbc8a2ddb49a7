"""A model that asks another one when one fails.

Floor 3, above the adapters: each model that it asks is behind the same seam as itself. It asks one model for each
attempt of a step, so that the log shows every failure and what was said before it; the core makes the next attempt.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self, cast

import anyio

from helix.chunks import ERROR_CODES, ErrorCode
from helix.errors import DefinitionError, ModelError, did_you_mean
from helix.model import Emit, Model, ModelReply, ModelRequest
from helix.models import resolve_model

PASSING: Final[tuple[ErrorCode, ...]] = ("model_rate_limited", "model_unavailable", "model_stream_dropped")
"""The failures after which another model is asked, unless `on=` says otherwise."""

_REMEMBERED = 4096


class FallbackModel:
    """Asks the first model, and the next one when that fails, before its reply or in the middle of it.

    A failure ends the attempt as any failure does: what was said in it is void, its error names the model, and the next
    attempt follows at once. An agent goes on with the model that answered, to its end; its next run begins with the
    first again. When the last model has failed too, its own error decides, and a further attempt begins with the first.

    A step has `max_retries + 1` attempts in all, three by default: for more models than that raise `max_retries`. All
    models get the same `ModelSettings`; `extra_body` is seldom for more than one. It may be shared as its models may.
    """

    def __init__(self, first: Model | str, *others: Model | str, on: Iterable[ErrorCode] = PASSING) -> None:
        """Opens no connection.

        Args:
            first: a model, or the name of one.
            others: whom to ask next, in this order.
            on: the error codes after which the next one is asked.

        Raises:
            DefinitionError: there is no such code.
            UnknownModel: there is no model of a name.
            MissingKey: a model's key is not in the environment.
        """
        self.models: Final = tuple(resolve_model(each) if isinstance(each, str) else each for each in (first, *others))
        self.on: Final = frozenset(on)
        for code in self.on - ERROR_CODES:
            raise DefinitionError(f"FallbackModel(on=…): no error code {code!r}.{did_you_mean(code, ERROR_CODES)}")
        self._lock = threading.Lock()
        self._turn: dict[str, int] = {}  # whose turn it is, by agent; the first's where nothing is said

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

    async def respond(self, request: ModelRequest, emit: Emit) -> ModelReply:
        """Asks the model whose turn it is.

        Raises:
            ModelError: it failed. It is to be tried again if there is another one to ask.
        """
        turn = self._whose_turn(request)
        model = self.models[turn]
        try:
            return await model.respond(request, emit)
        except ModelError as error:
            raise self._failed(request, turn, error) from error
        except anyio.get_cancelled_exc_class():
            self._pass_on(request, turn, "model_unavailable")  # a timeout, or nobody asks again
            raise

    def _whose_turn(self, request: ModelRequest) -> int:
        with self._lock:
            if request.attempt > 1:  # when nothing is remembered, the attempts before were in another process
                return self._turn.get(request.agent_id, (request.attempt - 1) % len(self.models))
            if request.step == 1:
                self._turn.pop(request.agent_id, None)  # an earlier run had the same id
            return self._turn.get(request.agent_id, 0)

    def _pass_on(self, request: ModelRequest, turn: int, code: str) -> int:
        """Whose turn it is after a failure."""
        following = (turn + 1) % len(self.models) if code in self.on else turn
        with self._lock:
            self._turn.pop(request.agent_id, None)
            self._turn[request.agent_id] = following
            if len(self._turn) > _REMEMBERED:
                del self._turn[next(iter(self._turn))]  # the one that failed least recently
        return following

    def _failed(self, request: ModelRequest, turn: int, error: ModelError) -> ModelError:
        following = self._pass_on(request, turn, error.code)
        asks_next = following > turn
        text = f"{self.models[turn].name}: {error.message}"
        return ModelError(
            error.code,
            f"{text.rstrip('.')}; next: {self.models[following].name}" if asks_next else text,
            retryable=asks_next or error.retryable,
            retry_after=0.0 if asks_next else error.retry_after,
            detail=error.detail,
            usage=error.usage,
        )
