"""Filters and regroupers: which chunks come through, and structured outputs while they are written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import anyio
import pytest
from pydantic import BaseModel

import helix
from helix import (
    Agent,
    Chunk,
    UsageError,
    collect,
    filter_stream,
    filter_stream_by_agent,
    filter_stream_by_type,
    partial_outputs,
)
from helix import chunks as c
from helix.chunks import StepStart, TextDelta, ToolEnd, ToolStart
from helix.testing import ScriptedModel, Turn

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


ROOT, CHILD, DEEP, TWIN = "r", "r.helper-1", "r.helper-1.deep-1", "r.helper-10"

CHUNKS: list[Chunk] = [
    c.StepStart(ROOT, "root", 1, 1, "m"),
    TextDelta(ROOT, "root", "a"),
    ToolStart(ROOT, "root", "t1", "helper", {}),
    TextDelta(CHILD, "helper", "b"),
    TextDelta(DEEP, "deep", "c"),
    TextDelta(TWIN, "helper", "d"),
    c.UnknownChunk(CHILD, "helper", wire_type="hologram", data={"type": "hologram"}),
    ToolEnd(ROOT, "root", "t1", "helper", None),
    TextDelta(ROOT, "root", ""),
    TextDelta(ROOT, "root", "e"),
]


class Source:
    """A stream of the given chunks that notes whether it was closed."""

    def __init__(self, chunks: Sequence[Any] = CHUNKS) -> None:
        self.left = list(chunks)
        self.closed = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop(0)

    async def aclose(self) -> None:
        self.closed += 1


def of_types(*kinds: str) -> list[Chunk]:
    return [chunk for chunk in CHUNKS if chunk.type in kinds]


async def test_by_one_literal_and_by_several() -> None:
    with anyio.fail_after(5):
        assert await collect(filter_stream_by_type(Source(), "text_delta")) == of_types("text_delta")
        both = of_types("tool_start", "tool_end")
        assert await collect(filter_stream_by_type(Source(), "tool_start", "tool_end")) == both
        assert await collect(filter_stream_by_type(Source(), ["tool_start", "tool_end"])) == both
        assert await collect(filter_stream_by_type(Source(), ("tool_end", "tool_start"))) == both
        assert await collect(filter_stream_by_type(Source(), "run_end")) == []


async def test_by_class() -> None:
    with anyio.fail_after(5):
        assert await collect(filter_stream_by_type(Source(), StepStart)) == CHUNKS[:1]
        assert await collect(filter_stream_by_type(Source(), ToolStart, ToolEnd)) == of_types("tool_start", "tool_end")
        assert await collect(filter_stream_by_type(Source(), c.UnknownChunk)) == of_types("unknown")


async def test_chunks_pass_unchanged() -> None:
    with anyio.fail_after(5):
        got = await collect(filter_stream_by_type(Source(), "text_delta"))
    assert [id(chunk) for chunk in got] == [id(chunk) for chunk in of_types("text_delta")]


def test_an_unknown_type_is_an_error_at_once_that_names_the_nearest() -> None:
    for call in (
        lambda: filter_stream_by_type(Source(), "text_detla"),  # pyright: ignore
        lambda: filter_stream_by_type(Source(), "tool_start", "text_detla"),
        lambda: filter_stream_by_type(Source(), ["text_detla"]),
    ):
        with pytest.raises(ValueError, match=r"^no chunk type 'text_detla'\. Did you mean 'text_delta'\?$"):
            call()


async def test_by_agent_alone_or_with_everything_below_it() -> None:
    def ids(chunks: Sequence[Chunk]) -> set[str]:
        return {chunk.agent_id for chunk in chunks}

    with anyio.fail_after(5):
        assert ids(await collect(filter_stream_by_agent(Source(), CHILD))) == {CHILD}
        assert ids(await collect(filter_stream_by_agent(Source(), CHILD, descendants=True))) == {CHILD, DEEP}
        assert await collect(filter_stream_by_agent(Source(), ROOT, descendants=True)) == CHUNKS
        assert await collect(filter_stream_by_agent(Source(), "other", descendants=True)) == []


@pytest.mark.parametrize("name", ["helper", "helper-1"])
@pytest.mark.parametrize(
    "filtered",
    [
        filter_stream_by_agent,
        helix.text,
        lambda stream, name: partial_outputs(stream, str, name),
        lambda stream, name: filter_stream_by_agent(stream, name, descendants=True),
    ],
)
async def test_a_name_where_an_id_is_wanted_is_told_with_the_id_at_the_first_chunk(filtered: Any, name: str) -> None:
    source = Source()
    with anyio.fail_after(5), pytest.raises(UsageError, match=rf"'{name}' is a name; .* has the id 'r\.helper-1'"):
        await collect(filtered(source, name))
    assert len(source.left) == len(CHUNKS) - 4  # not only at the end


async def test_an_id_that_is_also_a_name_is_an_id() -> None:
    chunks = [TextDelta("twin", "twin", "a"), TextDelta("twin.twin-1", "twin", "b")]
    with anyio.fail_after(5):
        assert await collect(helix.text(Source(chunks), "twin")) == ["a"]
        assert await collect(helix.text(Source(chunks[::-1]), "twin")) == ["a"]  # read from a later offset
        assert await collect(filter_stream_by_agent(Source(chunks), "twin", descendants=True)) == chunks


async def test_controls_pass_while_an_id_is_not_known_yet() -> None:
    control = c.StreamEnd("s", 0, "completed", 1)
    with anyio.fail_after(5):
        assert await collect(filter_stream_by_agent(Source([control]), ROOT)) == [control]


async def test_by_predicate_and_filters_on_filters() -> None:
    with anyio.fail_after(5):
        assert await collect(filter_stream(Source(), lambda chunk: chunk.agent_type == "deep")) == [CHUNKS[4]]
        words = filter_stream_by_type(filter_stream_by_agent(Source(), CHILD, descendants=True), "text_delta")
        assert [chunk.delta async for chunk in words] == ["b", "c"]


async def test_text_is_the_roots_or_one_agents() -> None:
    with anyio.fail_after(5):
        assert "".join(await collect(helix.text(Source()))) == "ae"
        assert "".join(await collect(helix.text(Source(), CHILD))) == "b"
        assert "".join(await collect(helix.text(Source(), agent_id=ROOT))) == "ae"


async def test_closing_a_filter_closes_what_is_below() -> None:
    source = Source()
    stacked = helix.text(filter_stream(filter_stream_by_agent(source, ROOT), lambda chunk: True))
    with anyio.fail_after(5):
        assert await stacked.__anext__() == "a"
        await stacked.aclose()
    assert source.closed == 1


async def test_closing_a_filter_ends_the_reader_and_the_run_goes_on() -> None:
    with anyio.fail_after(5):
        async with helix.stream(Agent("a"), "go", model=ScriptedModel([Turn(text=["x", "y", "z"])])) as run:
            reader = run.handle.stream()
            words = filter_stream_by_type(reader, "text_delta")
            assert (await words.__anext__()).delta == "x"
            await words.aclose()
            assert [chunk async for chunk in reader] == []
            assert [chunk async for chunk in words] == []
            assert (await run.result()).output == "xyz"


async def test_closing_a_filter_over_a_plain_iterable_does_nothing() -> None:
    class Plain:
        def __aiter__(self) -> Self:
            return self

        async def __anext__(self) -> Any:
            raise StopAsyncIteration

    with anyio.fail_after(5):
        await filter_stream(Plain(), lambda chunk: True).aclose()


# partial_outputs


class Item(BaseModel):
    label: str
    price: float


class Report(BaseModel):
    title: str
    count: int
    ratio: float
    done: bool
    note: str | None
    items: list[Item]
    table: dict[str, list[list[int]]]


REPORT: dict[str, Any] = {
    "title": 'He said "né\\t" \n\t\u2028 — 😀 12',
    "count": -1234,
    "ratio": -1.5e-07,
    "done": True,
    "note": None,
    "items": [{"label": "", "price": 10.25}, {"label": "}{][,:", "price": 2e10}],
    "table": {"a \\": [[1, 22, 333], []], "": [[-4]]},
}


def pieces(text: str, cut: int) -> list[str]:
    return [piece for piece in (text[:cut], text[cut:]) if piece]


def written(parts: Sequence[str], output: Any) -> list[Chunk]:
    """A step in which the model writes an output, and the validated output."""
    deltas = [c.OutputDelta(ROOT, "root", part) for part in parts]
    return [c.StepStart(ROOT, "root", 1, 1, "m"), *deltas, c.Output(ROOT, "root", output)]


def grows(before: Any, after: Any) -> bool:
    """Whether `after` is `before`, further written: no key or item gone, no text or number other than it was."""
    if isinstance(before, dict):
        return (
            isinstance(after, dict)
            and list(after)[: len(before)] == list(before)
            and all(grows(value, after[key]) for key, value in before.items())
        )
    if isinstance(before, list):
        return (
            isinstance(after, list)
            and len(after) >= len(before)
            and all(grows(old, new) for old, new in zip(before, after, strict=False))
        )
    if isinstance(before, str):
        return isinstance(after, str) and after.startswith(before)
    return type(before) is type(after) and before == after


def test_the_judge_of_growth_judges() -> None:
    assert grows({"a": ["x"]}, {"a": ["xy", 1], "b": None})
    for before, after in (({"a": 1}, {}), ([1], []), ("xy", "x"), (1, 12), (True, 1), ({"a": 1}, {"b": 1, "a": 1})):
        assert not grows(before, after)


TEXTS = [
    pytest.param(json.dumps(REPORT), REPORT, Report, id="escaped"),
    pytest.param(json.dumps(REPORT, ensure_ascii=False, indent=1), REPORT, Report, id="indented"),
    pytest.param('{"result": [1, 23, -4.5e3, 0, 10]}', [1, 23, -4500.0, 0, 10], list[float], id="wrapped-numbers"),
    pytest.param('{"result":["a","b\\u00e9\\ud83d\\ude00","3"]}', ["a", "bé😀", "3"], list[str], id="wrapped-texts"),
    pytest.param('{"result":[[],[{}],[{"a":[true,false,null]}]]}', [[], [{}], [{"a": [True, False, None]}]], list[Any]),
    pytest.param('{"result": 1234}', 1234, int, id="wrapped-number"),
    pytest.param('{"result": {"result": 5}, "other": 1}', {"result": {"result": 5}, "other": 1}, dict[str, Any]),
]


@pytest.mark.parametrize(("text", "value", "kind"), TEXTS)
async def test_letter_by_letter_the_output_only_grows(text: str, value: Any, kind: Any) -> None:
    with anyio.fail_after(5):
        shown = await collect(partial_outputs(Source(written(list(text), value)), kind))
    for before, after in pairwise(shown):
        assert grows(before, after), (before, after)
        assert before != after
    assert shown[-1] == value
    assert all(grows(partial, value) for partial in shown)


@pytest.mark.parametrize(("text", "value", "kind"), TEXTS)
async def test_cut_anywhere_what_is_shown_is_a_beginning_of_the_whole(text: str, value: Any, kind: Any) -> None:
    with anyio.fail_after(5):
        for cut in range(len(text) + 1):
            shown = await collect(partial_outputs(Source(written(pieces(text, cut), value)), kind))
            assert shown[-1] == value
            assert len(shown) <= 2
            assert all(grows(partial, value) for partial in shown), (text[:cut], shown[0])


async def test_texts_are_shown_while_they_grow_and_numbers_once_complete() -> None:
    parts = ['{"title": "He', "ll", 'o 12", "count": 1', "2", '3, "items": [{"price": 1.', "5", "}", "]}"]
    final = {"title": "Hello 12", "count": 123, "items": [{"price": 1.5}]}
    with anyio.fail_after(5):
        shown = await collect(partial_outputs(Source(written(parts, final)), dict[str, Any]))
    assert [partial.get("title") for partial in shown][:3] == ["He", "Hell", "Hello 12"]
    assert {partial.get("count") for partial in shown} == {None, 123}
    assert shown[-1] == final


async def test_written_again_it_begins_anew() -> None:
    chunks = [*written(['{"a": 1, "b": "xy', '"}'], None)[:-1], *written(['{"a": "z', '"}'], {"a": "z"})]
    with anyio.fail_after(5):
        shown = await collect(partial_outputs(Source(chunks), dict[str, Any]))
    assert shown[-1] == {"a": "z"}
    assert {"a": 1, "b": "xy"} in shown
    assert shown[shown.index({"a": 1, "b": "xy"}) + 1] == {"a": "z"}


async def test_only_the_meant_agents_output_is_shown() -> None:
    child = [c.OutputDelta(CHILD, "helper", '{"a": "child"}'), c.Output(CHILD, "helper", {"a": "child"})]
    chunks = [*child, *written(['{"a": "root"}'], {"a": "root"})]
    with anyio.fail_after(5):
        assert await collect(partial_outputs(Source(chunks), dict[str, Any])) == [{"a": "root"}]
        assert await collect(partial_outputs(Source(chunks), dict[str, Any], CHILD)) == [{"a": "child"}]


@pytest.mark.parametrize("final", [None, 0, False, "", [], {}])
async def test_an_empty_final_output_is_shown_too(final: Any) -> None:
    text = json.dumps({"result": final})
    with anyio.fail_after(5):
        shown = await collect(partial_outputs(Source(written([text], final)), Any))
    assert shown[-1:] == [final]


async def test_what_a_run_shows_ends_with_its_output() -> None:
    agent = Agent("a", output_type=Report)
    model = ScriptedModel([Turn(text=list(json.dumps(REPORT)))])
    with anyio.fail_after(5):
        async with helix.stream(agent, "go", model=model) as run:
            shown = await collect(partial_outputs(run, Report))
            result = await run.result()
    assert shown[-1] == REPORT
    assert result.output == Report(**REPORT)
    assert len(shown) > 20
    assert all(grows(before, after) for before, after in pairwise(shown))
