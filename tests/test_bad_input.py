"""Bad input: a typed error that says what, where and what to do, before anything runs; keys are never shown."""

from __future__ import annotations

import re
from typing import Any, cast

import anyio
import pytest
from pydantic import BaseModel

import helix
from helix import Agent, DefinitionError, Executor, MissingKey, RunExists, UnknownModel, UsageError, UserMessage, tool
from helix.api import RunOptions
from helix.executor import EXECUTE_OPTIONS
from helix.messages import AssistantMessage, TextPart
from helix.testing import Call, ScriptedModel, Turn

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


class Needy(BaseModel):
    name: str
    count: int = 0


class NoSchema:
    pass


@tool
def look() -> str:
    return ""


def untyped(query) -> str:  # type: ignore[no-untyped-def]
    return ""


def variadic(*queries: str) -> str:
    return ""


def cyclic() -> Agent[Any, Any, Any]:
    inner = Agent("a")
    return inner.replace(sub_agents=[Agent("b", sub_agents=[inner])])


@pytest.mark.parametrize(
    ("define", "words"),
    [
        (lambda: Agent("two words"), "agent name 'two words' is not usable: it must be a letter"),
        (lambda: Agent(""), "agent name '' is not usable"),
        (lambda: Agent("a" * 65), "is not usable"),
        (lambda: Agent("a", tools=[look, look]), "agent 'a': two tools are called 'look'; rename one"),
        (lambda: Agent("a", tools=[look], sub_agents=[Agent("look")]), "two tools are called 'look'"),
        (lambda: Agent("a", tools=[untyped]), "tool 'untyped': parameter 'query' has no annotation; write its type"),
        (lambda: Agent("a", tools=[variadic]), r"parameter .\*queries: .* cannot be filled by name"),
        (lambda: Agent("a", tools=[cast(Any, Agent("b"))]), r"stands in tools; put it in sub_agents"),
        (lambda: Agent("a", sub_agents=[look]), "sub_agents takes agents and agent.as_tool"),
        (lambda: Agent("a", state_type=Needy), "Needy.*name"),
        (lambda: Agent("a", output_type=NoSchema), "NoSchema.* has no JSON Schema"),
        (lambda: Agent("a", output_type=Needy, tools=[tool(name="final_result")(untyped_ok)]), "is taken by its"),
        (cyclic, "child cycle: a > b > a"),
        (lambda: tool(name="no good")(untyped_ok), "tool name 'no good' is not usable"),
    ],
)
def test_a_definition_that_cannot_work_is_refused_at_once(define: Any, words: str) -> None:
    with pytest.raises(DefinitionError, match=words):
        define()


def untyped_ok() -> str:
    return ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("opnai:gpt-5", "Did you mean 'openai:gpt-5'"),
        ("gpt-5", "openai:gpt-5"),
        ("nonsense:x", "nonsense"),
    ],
)
async def test_an_unknown_model_names_the_nearest_before_anything_runs(name: str, words: str) -> None:
    with anyio.fail_after(5), pytest.raises(UnknownModel, match=words):
        await helix.run(Agent("a", model=name), "x")


async def test_a_missing_key_of_a_model_deep_in_the_tree_is_told_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    model = ScriptedModel(["never"])
    root = Agent("root", model=model, sub_agents=[Agent("child", model="openai:gpt-5")])
    with anyio.fail_after(5), pytest.raises(MissingKey, match="OPENAI_API_KEY"):
        await helix.run(root, "x")
    assert model.requests == []


async def test_no_model_at_all_says_what_to_write() -> None:
    with anyio.fail_after(5), pytest.raises(DefinitionError, match=r"agent 'a' has no model; write Agent\('a', model="):
        await helix.run(Agent("a"), "x")


async def test_an_executor_outside_of_async_with_says_what_to_write() -> None:
    executor = Executor()
    with pytest.raises(UsageError, match=r"async with Executor\(\) as executor"):
        await executor.execute(Agent("a"), "x", model=ScriptedModel(["x"]))
    with anyio.fail_after(5):
        async with executor:
            with pytest.raises(UsageError, match="already entered"):
                await executor.__aenter__()
    with pytest.raises(UsageError, match="async with"):
        await executor.execute(Agent("a"), "x", model=ScriptedModel(["x"]))


async def test_a_run_id_must_be_usable_and_new() -> None:
    with anyio.fail_after(5):
        async with Executor() as executor:
            with pytest.raises(UsageError, match=r"run_id 'a\.b' is not usable"):
                await executor.execute(Agent("a"), "x", model=ScriptedModel(["x"]), run_id="a.b")
            handle = await executor.execute(Agent("a"), "x", model=ScriptedModel(["x"]), run_id="one")
            await handle.result()
            with pytest.raises(RunExists, match="there is a run 'one' already"):
                await executor.execute(Agent("a"), "x", model=ScriptedModel(["x"]), run_id="one")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "the input is an empty list: there is nothing to say"),
        (
            [{"role": "system", "content": "Be kind."}],
            "message 1 of the input is a system message; say it as the agent",
        ),
        (
            [UserMessage("a"), {"role": "user", "content": 3}],
            "message 2 of the input is not a message of the role 'user'",
        ),
        ({"role": "tool", "content": "x"}, "message 1 of the input is not a message of the role 'tool': toolCallId: "),
    ],
)
async def test_what_is_no_conversation_is_refused_before_anything_runs(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        await helix.run(Agent("a"), given, model=ScriptedModel([]))


@pytest.mark.parametrize(
    ("given", "contents"),
    [
        ({"role": "user", "content": "hi"}, ["hi"]),
        ([{"role": "user", "content": "hi"}, UserMessage("you")], ["hi", "you"]),
        ([{"role": "admin", "content": "x"}], ['[{"role":"admin","content":"x"}]']),
        ([{"role": "user", "name": "Ada"}], ['[{"role":"user","name":"Ada"}]']),
    ],
)
async def test_a_dict_is_a_message_if_it_has_a_role_and_a_content(given: Any, contents: list[str]) -> None:
    with anyio.fail_after(5):
        result = await helix.run(Agent("a"), given, model=ScriptedModel(["done"]))
    assert result.messages[:-1] == [UserMessage(content) for content in contents]


async def test_an_assistants_words_may_be_a_text() -> None:
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]
    result = await helix.run(Agent("a"), [*said, {"role": "user", "content": "and?"}], model=ScriptedModel(["done"]))
    assert result.messages[1] == AssistantMessage([TextPart("Hello.")])


async def test_an_assistants_text_beside_anothers_tool_calls_is_refused() -> None:
    said = {"role": "assistant", "content": "I look.", "tool_calls": []}
    with pytest.raises(helix.UsageError, match="message 1 of the input is not a message of the role 'assistant'"):
        await helix.run(Agent("a"), [said], model=ScriptedModel(["never"]))


async def test_messages_that_were_saved_as_json_are_a_conversation_again() -> None:
    agent = Agent("a", tools=[look])
    with anyio.fail_after(5):
        first = await helix.run(agent, "go", model=ScriptedModel([Turn(text="I look.", calls=[Call("look")]), "seen"]))
        saved = [*first.to_dict()["messages"], {"role": "user", "content": "and now?"}]
        again = await helix.run(agent, saved, model=ScriptedModel(["the same"]))
    assert again.messages[:-1] == [*first.messages, UserMessage("and now?")]


async def test_a_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    agent = Agent(
        "a", model="openai:gpt-5", settings=helix.ModelSettings(max_retries=0, headers={"X-Key": "hidden-too"})
    )
    with anyio.fail_after(10):
        async with helix.stream(agent, "x") as stream:
            chunks = await helix.collect(stream)
            result = await stream.result()
    with pytest.raises(helix.RunFailed) as failed:
        result.raise_for_status()
    shown = [
        repr(agent),
        repr(agent.settings),
        repr(result),
        repr(failed.value),
        repr(stream.handle),
        str(failed.value),
    ]
    shown += [helix.chunk_to_json(chunk).decode() for chunk in chunks]
    assert not [text for text in shown if "very-secret" in text or "hidden-too" in text]
    assert result.error_code == "model_unavailable"


def test_input_that_has_no_json_form_is_refused_before_anything_runs() -> None:
    model = ScriptedModel(["never"])
    with pytest.raises(ValueError, match="input: object has no JSON form"):
        helix.run_sync(Agent("a"), object(), model=model)
    assert model.requests == []


# --- arguments of an agent


@pytest.mark.parametrize(
    ("argument", "value", "wanted"),
    [
        ("model", 3, "'provider:name' or a model object"),
        ("model", ScriptedModel, "'provider:name' or a model object"),
        ("description", None, "a text"),
        ("instructions", ["Be kind."], "a text, or a function of the context that gives one"),
        ("instructions", lambda: "Be kind.", "a text, or a function of the context that gives one"),
        ("tools", look, "a list"),
        ("sub_agents", Agent("b"), "a list"),
        ("output_validators", str.upper, "a list"),
        ("limits", {"steps": 3}, "Limits(…)"),
        ("settings", {"temperature": 0}, "ModelSettings(…)"),
        ("output_retries", -1, "a number from 0"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_refused_when_the_agent_is_made(
    argument: str, value: object, wanted: str
) -> None:
    arguments: Any = {argument: value}
    with pytest.raises(helix.DefinitionError, match=re.escape(f"agent 'a': {argument}= is to be {wanted}, not ")):
        Agent("a", **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"agents": Agent("a")}, "agents= is to be a list of agents, not Agent('a')"),
        ({"agents": ["a"]}, "agents= is to be a list of agents, not ['a']"),
        ({"provider_limits": 4}, "provider_limits= is to be ProviderLimits(…), or a dict of them, not 4"),
        ({"provider_limits": {"openai": 4}}, "provider_limits= is to be ProviderLimits(…), or a dict of them, not {"),
        ({"prices": 3}, "prices= is to be a dict, not 3"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_refused_when_the_executor_is_made(
    arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(helix.DefinitionError, match=re.escape(words)):
        Executor(**arguments)


def test_a_validator_that_is_no_function_is_refused() -> None:
    with pytest.raises(helix.DefinitionError, match="agent 'a': an output validator is a function, not 3"):
        Agent("a", output_validators=[cast(Any, 3)])


# --- what is not known, and what may be meant


MODEL = ScriptedModel(lambda request: "x")
untyped_helix: Any = helix
"""What is wrong below, a type checker would see."""


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: untyped_helix.run_sync(Agent("a"), "x", modle=MODEL),
            r"^run_sync\(\) has no argument 'modle'. .*'model'\?$",
        ),
        (
            lambda: untyped_helix.stream(Agent("a"), "x", sesion_id="s"),
            r"^stream\(\) has no .*'sesion_id'. .*'session_id'\?$",
        ),
        (
            lambda: untyped_helix.stream_sync(Agent("a"), "x", limit=1),
            r"^stream_sync\(\) has no argument 'limit'. .*'limits'",
        ),
        (
            lambda: untyped_helix.stream(Agent("a"), "x", on_busy="queue"),
            r"^stream\(\) has no argument 'on_busy': no other run is in its session. Give it to Executor.execute, or",
        ),
        (lambda: untyped_helix.stream(Agent("a"), "x", zzz=1), r"^stream\(\) has no argument 'zzz'.$"),
        (lambda: Agent("a").replace(modle=1), r"^replace\(\) has no argument 'modle'. Did you mean 'model'\?$"),
        (lambda: untyped_helix.tool(timeot=1), r"^tool\(\) has no argument 'timeot'. Did you mean 'timeout'\?$"),
        (lambda: look.replace(retrys=1), r"^replace\(\) has no argument 'retrys'. Did you mean 'retries'\?$"),
    ],
)
def test_an_argument_that_is_not_known_names_the_nearest(call: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        call()


async def test_the_short_forms_take_every_option_of_a_run_but_one() -> None:
    assert {*RunOptions.__annotations__, "deps", "on_busy"} == EXECUTE_OPTIONS
    with anyio.fail_after(5):
        options = RunOptions[None](run_id="r", session_id="s", metadata={"n": 1}, model=ScriptedModel(["done"]))
        result = await helix.run(Agent("a"), "x", **options)
        assert (result.run_id, result.session_id, result.tree.options["metadata"]) == ("r", "s", {"n": 1})


async def test_an_option_of_a_turn_that_is_not_known_names_the_nearest() -> None:
    with anyio.fail_after(5):
        async with Executor() as executor:
            session = helix.Session(Agent("a"), executor)
            with pytest.raises(TypeError, match=r"send\(\) has no argument 'modle'. Did you mean 'model'\?"):
                await session.send("x", modle=MODEL)
            with pytest.raises(TypeError, match=r"stream\(\) has no argument 'session_id'"):
                session.stream("x", session_id="s")


async def test_a_name_where_an_agents_id_is_wanted_is_answered_with_its_ids() -> None:
    root = Agent("boss", sub_agents=[Agent("helper", description="Helps.")])
    script = {"boss": [Turn(calls=[Call("helper", input="x"), Call("helper", input="y")]), "x"], "helper": ["x", "x"]}
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(root, "x", model=ScriptedModel(script), run_id="r")
            await handle.result()
    with pytest.raises(helix.InvalidChunk, match=r"of 'helper': 'r.helper-1', 'r.helper-2'\.$"):
        handle.tree.agent("helper")
    with pytest.raises(helix.InvalidChunk, match=r"of 'helper-2': 'r.helper-2'\.$"):
        handle.tree.document("helper-2")
    with pytest.raises(helix.InvalidChunk, match=r"Did you mean 'r.helper-2'\?$"):
        handle.tree.agent("r.helper_2")
    with pytest.raises(UsageError, match=r"no agent 'boss' in this run. An agent's id is wanted; of 'boss': 'r'\.$"):
        await handle.cancel("boss")
