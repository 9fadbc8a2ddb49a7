"""What an executor opens for its runs, once for all of them: models and toolsets.

Floor 3: above `agent`, `models` and `prices`; the executor holds one and hands it to its runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, cast

import anyio
from anyio.lowlevel import checkpoint

from helix.agent import Agent
from helix.errors import DefinitionError, UsageError
from helix.limits import Limits
from helix.model import Model
from helix.models import resolve_model
from helix.prices import Prices
from helix.tools import Tool, Toolset


class Resources:
    """Models by name, entered once each; the tools of toolsets, by identity.

    Args:
        stack: what is opened is closed by it.
        prices: what models cost; a limit of costs is checked against them.
    """

    def __init__(self, stack: AsyncExitStack, prices: Prices) -> None:
        self.prices = prices
        self._stack = stack
        self._opening = anyio.Lock()
        self.forget()

    def forget(self) -> None:
        """Nothing is open any more: the stack closes it."""
        self._models: dict[str, Model] = {}
        self._entered: dict[int, Model] = {}
        self._tools: dict[int, Sequence[Tool[..., Any]]] = {}

    async def open(self, agent: Agent[Any, Any, Any], override: Model | None, limits: Limits | None) -> Model:
        """Resolves and enters every model and toolset of a tree, before anything runs.

        Args:
            agent: the root.
            override: the model of every agent of the tree, if it is given one.
            limits: those of the run, over the agent's own.

        Returns:
            The root's model.

        Raises:
            DefinitionError, UnknownModel, MissingKey: something of the tree cannot work.
            ImportError: a limit of costs needs the extra `cost`.
        """
        root_model = override or self.model(_model_of(agent))
        agents = [agent, *agent.descendants()]
        models = [root_model]
        if override is None:
            models += [self.model(item.model) for item in agents if item.model is not None]
        await self.prices.load(models)
        self._check_prices(agent, root_model, override, limits)
        if self._are_open(agents, models):
            await checkpoint()
        else:
            async with self._opening:
                await self._open_all(agents, models)
        for item in agents:
            if item.toolsets:
                item.toolbox([tool for toolset in item.toolsets for tool in self.toolset(toolset)])
        return root_model

    def model(self, model: str | Model) -> Model:
        """The model of that name, the same one each time; a model is itself.

        Raises:
            UnknownModel, MissingKey: there is none of that name, or no key for it.
        """
        if not isinstance(model, str):
            return model
        if model not in self._models:
            self._models[model] = resolve_model(model)
        return self._models[model]

    def toolset(self, toolset: Toolset) -> Sequence[Tool[..., Any]]:
        """The tools of an open toolset.

        Raises:
            UsageError: it was not opened.
        """
        tools = self._tools.get(id(toolset))
        if tools is None:
            raise UsageError(
                f"the toolset {toolset!r} was not open when the run began; agents started with ctx.run_agent may only "
                "use toolsets of the run's own tree"
            )
        return tools

    def _check_prices(
        self, agent: Agent[Any, Any, Any], root_model: Model, override: Model | None, limits: Limits | None
    ) -> None:
        def model_of(child: Agent[Any, Any, Any], above: Model) -> Model:
            return above if override or child.model is None else self.model(child.model)

        self.prices.check(agent, limits, root_model, model_of)

    def _are_open(self, agents: Sequence[Agent[Any, Any, Any]], models: Sequence[Model]) -> bool:
        for model in models:
            if id(model) not in self._entered:
                return False
        for item in agents:
            for toolset in item.toolsets:
                if id(toolset) not in self._tools:
                    return False
        return True

    async def _open_all(self, agents: Sequence[Agent[Any, Any, Any]], models: Sequence[Model]) -> None:
        for model in models:
            await self._enter(model)
        for item in agents:
            for toolset in item.toolsets:
                if id(toolset) not in self._tools:
                    await self._stack.enter_async_context(toolset)
                    self._tools[id(toolset)] = tuple(toolset.tools())

    async def _enter(self, model: Model) -> None:
        if id(model) not in self._entered:
            if isinstance(model, AbstractAsyncContextManager):
                await self._stack.enter_async_context(cast("AbstractAsyncContextManager[Any]", model))
            self._entered[id(model)] = model


def _model_of(agent: Agent[Any, Any, Any]) -> str | Model:
    if agent.model is None:
        raise DefinitionError(
            f"agent {agent.name!r} has no model; write Agent({agent.name!r}, model='openai:…') or give the run one: "
            "model=…"
        )
    return agent.model
