"""Toolsets: opened with the executor before the first run that uses them, closed with it, once."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import helix
from helix import Agent, DefinitionError, Executor, ModelError, Tool, tool
from helix.testing import Call, ScriptedModel, Turn, no_real_models

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


class Archive:
    """A toolset with one tool, that writes down when it is opened and closed."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def __aenter__(self) -> Archive:
        self.log.append("open")
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.log.append("close")

    def tools(self) -> list[Tool[..., Any]]:
        @tool
        def lookup(key: str) -> str:
            self.log.append(f"lookup {key}")
            return key.upper()

        return [lookup]


async def test_a_toolset_is_opened_once_for_all_runs_and_closed_with_the_executor() -> None:
    archive = Archive()
    agent = Agent("a", tools=[archive])
    with anyio.fail_after(5):
        async with Executor() as executor:
            assert archive.log == []
            for key in ("x", "y"):
                model = ScriptedModel([Turn(calls=[Call("lookup", key=key)]), "done"])
                handle = await executor.execute(agent, "go", model=model)
                assert (await handle.result()).output == "done"
                assert [item.name for item in model.requests[0].tools] == ["lookup"]
        assert archive.log == ["open", "lookup x", "lookup y", "close"]


async def test_a_toolset_of_a_sub_agent_is_opened_too_and_closed_after_a_failure() -> None:
    archive = Archive()
    root = Agent("root", sub_agents=[Agent("child", tools=[archive])])
    with anyio.fail_after(5), pytest.raises(ZeroDivisionError):
        async with helix.stream(root, "go", model=ScriptedModel(["hi"])):
            raise ZeroDivisionError
    assert archive.log == ["open", "close"]


async def test_a_toolset_whose_tool_has_a_taken_name_is_refused_before_anything_runs() -> None:
    @tool
    def lookup() -> str:
        return ""

    model = ScriptedModel(["never"])
    with anyio.fail_after(5), pytest.raises(DefinitionError, match="two tools are called 'lookup'"):
        await helix.run(Agent("a", tools=[lookup, Archive()]), "go", model=model)
    assert model.requests == []


async def test_a_taken_name_is_refused_also_when_all_is_open_already() -> None:
    @tool
    def lookup() -> str:
        return ""

    archive, model = Archive(), ScriptedModel(["hi"])
    with anyio.fail_after(5):
        async with Executor() as executor:
            await (await executor.execute(Agent("a", tools=[archive]), "go", model=model)).result()
            with pytest.raises(DefinitionError, match="two tools are called 'lookup'"):
                await executor.execute(Agent("b", tools=[lookup, archive]), "go", model=model, session_id="s")
            assert await executor.history("s") == []
    assert len(model.requests) == 1


async def test_no_real_models_forbids_requests_and_lets_scripts_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-sent")
    with anyio.fail_after(5), no_real_models():
        assert (await helix.run(Agent("a"), "x", model=ScriptedModel(["hi"]))).output == "hi"
        with pytest.raises(helix.RunFailed, match="allows no real models") as failed:
            await helix.run(Agent("a", model="openai:gpt-5"), "x")
    assert failed.value.result.error_code == "internal"
    assert issubclass(ModelError, helix.HelixError)
