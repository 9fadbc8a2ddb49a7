"""`partial_items`: wherever the JSON is cut, each element comes once, whole, and not before it is complete."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, Field

import helix
from helix import Agent, Chunk, DefinitionError, collect, partial_items
from helix import chunks as c
from helix.testing import Call, ScriptedModel, Turn

pytestmark = pytest.mark.anyio

ROOT, CHILD = "run", "run.child-1"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


class Source:
    """A stream of these chunks, which knows how many were taken."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = iter(chunks)
        self.taken = 0

    def __aiter__(self) -> Source:
        return self

    async def __anext__(self) -> Chunk:
        for chunk in self._chunks:
            self.taken += 1
            return chunk
        raise StopAsyncIteration


def step(parts: Iterable[str], agent: str = ROOT) -> list[Chunk]:
    """A step in which a model writes an output in these pieces."""
    return [c.StepStart(agent, "a", 1, 1, "m"), *(c.OutputDelta(agent, "a", part) for part in parts)]


async def items(chunks: list[Chunk], kind: Any, field: str | None = None, agent_id: str | None = None) -> list[Any]:
    with anyio.fail_after(10):
        return await collect(partial_items(Source(chunks), kind, field, agent_id))


class Finding(BaseModel):
    text: str
    tags: list[list[str]] = []
    weight: float | None = Field(default=None, alias="w")


FINDINGS: list[Any] = [
    {"text": "plain"},
    {"text": '}{][,:" \\ \\" \n é 😀 \u2028', "tags": [["a", "]"], [], ["[,"]], "w": -1.5e-7},
    {"text": "", "tags": [], "w": None},
]
NESTED: list[Any] = [[], [[1, 22], [[]], {"a": [3, {"b": "]"}]}], 333, "x, y", None, True, {"findings": [4]}]

TEXTS = [
    pytest.param({"title": "[1, 2", "findings": FINDINGS, "more": ["n"]}, "findings", Finding, FINDINGS, id="field"),
    pytest.param({"result": {"a": {"findings": [0]}, "findings": FINDINGS}}, "findings", Finding, FINDINGS, id="union"),
    pytest.param({"result": FINDINGS}, None, Finding, FINDINGS, id="list"),
    pytest.param(FINDINGS, None, Finding, FINDINGS, id="bare-list"),
    pytest.param({"deep": {"findings": [9]}, "findings": NESTED}, "findings", Any, NESTED, id="nested"),
    pytest.param({"n": 1, 'k"[ é': [1, 23, -4.5e3, 0]}, 'k"[ é', float, [1.0, 23.0, -4500.0, 0.0], id="odd-key"),
    pytest.param({"findings": []}, "findings", Finding, [], id="empty"),
    pytest.param({"n": 1, "result": {"findings": [1]}}, "findings", int, [], id="not-the-wrapper"),
    pytest.param({"findings": {"findings": [1]}}, "findings", int, [], id="too-deep"),
]


def ways(value: Any) -> list[str]:
    return [
        json.dumps(value),
        json.dumps(value, ensure_ascii=False, indent=2),
        json.dumps(value, separators=(",", ":")),
    ]


def expected(values: list[Any], kind: Any) -> list[Any]:
    return [Finding.model_validate(value) for value in values] if kind is Finding else values


@pytest.mark.parametrize(("value", "field", "kind", "elements"), TEXTS)
async def test_cut_anywhere_every_element_comes_once(value: Any, field: str, kind: Any, elements: list[Any]) -> None:
    for text in ways(value):
        for cut in range(len(text) + 1):
            assert await items(step([text[:cut], text[cut:]]), kind, field) == expected(elements, kind), text[:cut]
        assert await items(step(text), kind, field) == expected(elements, kind)


@pytest.mark.parametrize(("value", "field", "kind", "elements"), TEXTS)
async def test_no_element_comes_before_it_is_complete_and_none_later(
    value: Any, field: str, kind: Any, elements: list[Any]
) -> None:
    for text in ways(value):
        source = Source(step(text))
        found: list[Any] = []
        async for item in partial_items(source, kind, field):
            found.append(item)
            written = text[: source.taken - 1]
            assert written[-1] in ",]"
            assert written[:-1].endswith(tuple('}]"0123456789el \n'))
            assert found == expected(elements[: len(found)], kind)
        assert len(found) == len(elements)


async def test_an_element_is_given_while_the_next_one_is_still_written() -> None:
    source = Source(step(['{"findings": [1, 2', "2, 3", "]", "}"]))
    stream = partial_items(source, int, "findings")
    given = [(item, source.taken) async for item in stream]
    assert given == [(1, 2), (22, 3), (3, 4)]


async def test_the_cost_of_a_long_list_is_linear() -> None:
    count = 40_000  # joining what is there for every piece would copy 20 GB
    text = json.dumps({"findings": [{"text": f"number {number}"} for number in range(count)]})
    parts = [text[at : at + 7] for at in range(0, len(text), 7)]
    found = await items(step(parts), dict[str, str], "findings")
    assert len(found) == count


async def test_one_long_element_is_linear_too() -> None:
    text = json.dumps({"findings": ["x" * 1_000_000]})
    [found] = await items(step(text[at : at + 7] for at in range(0, len(text), 7)), str, "findings")
    assert len(found) == 1_000_000


async def test_an_invalid_element_is_an_error_that_names_it_and_the_iteration_may_go_on() -> None:
    stream = partial_items(Source(step('{"findings": [{"text": "a"}, {"w": 1}, {"text": "b"}]}')), Finding, "findings")
    found: list[Any] = []
    with pytest.raises(ValueError, match=r"^findings\[1\]: text: Field required$"):
        async for item in stream:
            found.append(item)
    found += [item async for item in stream]
    assert [item.text for item in found] == ["a", "b"]


async def test_an_element_that_is_no_json_is_an_error_too() -> None:
    with pytest.raises(ValueError, match=r"^output\[0\]: not valid JSON: "):
        await items(step('{"result": [{"text": }]}'), Finding)


@pytest.mark.parametrize("text", ["]]}}", "[1,,2]", '{"a" [1]}', "}{", "[1, 2", '{"findings": [1}', ":,", '"\\'])
async def test_malformed_texts_break_nothing(text: str) -> None:
    with anyio.fail_after(10):
        for kind in (None, "findings"):
            stream = partial_items(Source(step(text)), Any, kind)
            while True:
                try:
                    await anext(stream)
                except ValueError:
                    continue
                except StopAsyncIteration:
                    break


async def test_what_is_written_again_is_not_given_again_unless_it_changed() -> None:
    chunks = [*step('{"findings": [1, 2, 3, 4'), *step('{"findings": [1, 2, 33, 4, true]}')]
    assert await items(chunks, Any, "findings") == [1, 2, 3, 33, 4, True]
    chunks = [*step('{"findings": [1, 2'), *step('{"findings": [true, 2]}')]
    assert await items(chunks, Any, "findings") == [1, True, 2]


async def test_an_output_that_came_in_no_pieces_is_given_whole() -> None:
    whole: list[Chunk] = [c.StepStart(ROOT, "a", 1, 1, "m"), c.Output(ROOT, "a", {"findings": [1, 2]})]
    assert await items(whole, int, "findings") == [1, 2]
    assert await items([*step('{"findings": [1, 2]}'), whole[1]], int, "findings") == [1, 2]
    assert await items([c.Output(ROOT, "a", [1])], int) == [1]
    assert await items([c.Output(ROOT, "a", "text")], int, "findings") == []


async def test_only_one_agents_output_is_shown() -> None:
    pairs = zip(step('{"result": [1, 2]}'), step('{"result": [3, 4]}', CHILD), strict=True)
    mixed = [chunk for pair in pairs for chunk in pair]
    assert await items(mixed, int) == [1, 2]
    assert await items(mixed, int, agent_id=CHILD) == [3, 4]


async def test_a_type_without_a_schema_is_a_definition_error() -> None:
    with pytest.raises(DefinitionError, match="has no JSON Schema"):
        partial_items(Source([]), Source)


class Report(BaseModel):
    title: str
    findings: list[Finding]


@pytest.mark.parametrize("by_call", [True, False])
async def test_of_a_run_that_has_to_write_its_output_twice(by_call: bool) -> None:
    good: dict[str, Any] = {"title": "t", "findings": [{"text": "a"}, {"text": "b"}]}
    bad: dict[str, Any] = {**good, "title": 1}
    turns = [Turn(calls=[Call("final_result", **value)]) if by_call else Turn(output=value) for value in (bad, good)]
    with anyio.fail_after(10):
        agent = Agent("a", output_type=Report, model=ScriptedModel(turns))
        async with helix.stream(agent, "go") as run:
            found = await collect(partial_items(run, Finding, "findings"))
            result = await run.result()
    assert found == result.output.findings
