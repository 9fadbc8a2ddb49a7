"""Tools: how functions become tools, how their arguments are checked, and how their bodies run inside an agent."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from enum import Enum
from typing import Annotated, Any, Literal, cast

import anyio
import anyio.to_thread
import pytest
from pydantic import BaseModel, Field

import helix
from helix import Agent, Chunk, DefinitionError, Executor, ModelRetry, Tool, ToolContext, ToolEnded, UsageError, tool
from helix.messages import ToolMessage
from helix.testing import Call, ScriptedModel, Turn, check_stream, context, recorded


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@dataclasses.dataclass
class Played:
    """A run that is over: its log, the requests it made, its result."""

    chunks: list[Chunk]
    model: ScriptedModel
    result: helix.RunResult[Any, Any]

    @property
    def ends(self) -> list[Any]:
        return [chunk for chunk in self.chunks if chunk.type == "tool_end"]

    @property
    def answers(self) -> list[ToolMessage]:
        """What the second request says of the calls."""
        return [message for message in self.model.requests[1].messages if isinstance(message, ToolMessage)]

    def index(self, kind: str) -> int:
        return [chunk.type for chunk in self.chunks].index(kind)


async def play(
    tools: Sequence[Tool[..., Any] | Callable[..., Any]], script: Sequence[Turn | str], **options: Any
) -> Played:
    """Runs one agent with these tools."""
    model = ScriptedModel(script)
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(Agent("a", tools=tools, **options), "go", model=model)
            result = await handle.result()
            chunks = await helix.collect(handle.stream())
    check_stream(chunks)
    return Played(chunks, model, result)


async def call(a_tool: Tool[..., Any] | Callable[..., Any], *calls: Call, **options: Any) -> Played:
    return await play([a_tool], [Turn(calls=calls), "done"], **options)


class Unit(Enum):
    METRIC = "metric"
    IMPERIAL = "imperial"


class Place(BaseModel):
    city: str
    zip: int = 0


class Counter(BaseModel):
    count: int = 0
    names: list[str] = []


# --- how a function becomes a tool


def test_the_decorator_with_and_without_options() -> None:
    @tool
    def plain(x: int) -> int:
        """Doubles.

        In every way.
        """
        return 2 * x

    @tool(name="other", description="Does it.", timeout=3, retries=1, replay="safe", sequential=True, finishes=True)
    def named(x: int) -> int:
        return x

    assert (plain.name, plain.description) == ("plain", "Doubles.\n\nIn every way.")
    assert plain(4) == 8
    assert (named.name, named.description, named.timeout, named.retries) == ("other", "Does it.", 3, 1)
    assert (named.replay, named.sequential, named.finishes) == ("safe", True, True)
    assert (plain.timeout, plain.retries, plain.replay, plain.sequential) == (None, None, "never", False)
    assert plain.replace(name="again").name == "again"
    assert plain.parameters == {
        "type": "object",
        "properties": {"x": {"type": "integer"}},
        "required": ["x"],
        "additionalProperties": False,
    }


def test_a_tool_without_arguments_has_an_empty_object() -> None:
    @tool
    def ping(ctx: ToolContext) -> str:
        return "pong"

    assert ping.takes_context
    assert ping.parameters == {"type": "object", "properties": {}, "additionalProperties": False}


def google(city: str, days: int = 1) -> str:
    """Looks up the weather.

    Args:
        city: where it is
        days: how many days
            ahead
    """
    return city * days


def numpy_style(city: str, days: int = 1) -> str:
    """Looks up the weather.

    Parameters
    ----------
    city : str
        where it is
    days : int
        how many days
        ahead
    """
    return city * days


def sphinx(city: str, days: int = 1) -> str:
    """Looks up the weather.

    :param city: where it is
    :param days: how many days
        ahead
    """
    return city * days


@pytest.mark.parametrize("function", [google, numpy_style, sphinx])
def test_descriptions_come_from_the_docstring(function: Callable[..., str]) -> None:
    made = tool(function)
    assert made.description == "Looks up the weather."
    properties = made.parameters["properties"]
    assert properties["city"] == {"type": "string", "description": "where it is"}
    assert properties["days"]["description"].split() == ["how", "many", "days", "ahead"]
    assert properties["days"]["default"] == 1
    assert made.parameters["required"] == ["city"]


def test_a_described_annotation_wins_over_the_docstring() -> None:
    @tool
    def f(a: Annotated[int, Field(description="from the field", ge=1)], b: Annotated[int, Field(ge=1)]) -> int:
        """F.

        Args:
            a: from the docstring
            b: from the docstring
        """
        return a + b

    assert f.parameters["properties"]["a"] == {"type": "integer", "description": "from the field", "minimum": 1}
    assert f.parameters["properties"]["b"] == {"type": "integer", "description": "from the docstring", "minimum": 1}
    with pytest.raises(ValueError, match="a: Input should be greater than or equal to 1"):
        f.validate({"a": 0, "b": 1})


def test_kinds_of_arguments_reach_the_body_typed() -> None:
    @tool
    def f(unit: Unit, mode: Literal["fast", "slow"], place: Place, places: list[Place] | None = None) -> None: ...

    given = f.validate({"unit": "metric", "mode": "fast", "place": {"city": "Rome"}, "places": [{"city": "Oslo"}]})
    assert given == {
        "unit": Unit.METRIC,
        "mode": "fast",
        "place": Place(city="Rome"),
        "places": [Place(city="Oslo")],
    }
    assert f.parameters["properties"]["mode"]["enum"] == ["fast", "slow"]
    assert f.parameters["$defs"]["Unit"]["enum"] == ["metric", "imperial"]
    assert set(f.parameters["$defs"]["Place"]["properties"]) == {"city", "zip"}
    with pytest.raises(ValueError, match="mode: Input should be 'fast' or 'slow'"):
        f.validate({"unit": "metric", "mode": "medium", "place": {"city": "Rome"}})
    with pytest.raises(ValueError, match=r"place\.city: Field required"):
        f.validate({"unit": "metric", "mode": "fast", "place": {}})


def test_arguments_are_coerced_and_surplus_ones_refused() -> None:
    @tool
    def f(count: int, ratio: float = 0.5, flag: bool = False) -> None: ...

    assert f.validate({"count": "7", "ratio": 1, "flag": "true"}) == {"count": 7, "ratio": 1.0, "flag": True}
    with pytest.raises(ValueError) as caught:
        f.validate({"count": "seven", "colour": "red"})
    said = str(caught.value)
    assert "count: Input should be a valid integer" in said
    assert "colour: Unexpected keyword argument" in said
    assert "http" not in said
    assert "red" not in said
    with pytest.raises(ValueError, match="count: "):
        f.validate({})


def test_parameters_may_have_any_name() -> None:
    @tool
    def f(json: str, model_config: int, type: str, schema: str, copy: bool, validate: str, items: int) -> str:
        return f"{json}{model_config}{type}"

    names = ["json", "model_config", "type", "schema", "copy", "validate", "items"]
    assert list(f.parameters["properties"]) == names
    values = {"json": "a", "model_config": 1, "type": "b", "schema": "c", "copy": True, "validate": "d", "items": 2}
    assert f.validate(values) == values
    assert f(**f.validate(values)) == "a1b"


def test_a_mutable_default_is_new_for_each_call() -> None:
    @tool
    def f(items: list[str] = [], by_name: dict[str, int] = {}) -> list[str]:  # noqa: B006
        return [*items, *by_name]

    first = f.validate({})
    first["items"].append("kept")
    first["by_name"]["kept"] = 1
    assert f.validate({}) == {"items": [], "by_name": {}}
    assert "required" not in f.parameters


def test_types_defined_where_the_tool_is_made() -> None:
    class Colour(Enum):
        RED = "red"

    class Paint(BaseModel):
        colour: Colour

    def make() -> Tool[..., Any]:
        @tool
        def f(ctx: ToolContext[Paint], colour: Colour, paint: Paint | None = None) -> str:
            return colour.value

        return f

    f = make()
    assert f.takes_context
    assert f.validate({"colour": "red", "paint": {"colour": "red"}}) == {
        "colour": Colour.RED,
        "paint": Paint(colour=Colour.RED),
    }


def test_what_cannot_be_a_tool_is_refused_with_the_reason() -> None:
    def bare(x) -> None: ...  # pyright: ignore[reportMissingParameterType]

    def late(x: int, ctx: ToolContext) -> None: ...

    def rest(*xs: int) -> None: ...

    def options(**xs: int) -> None: ...

    def positional(x: int, /) -> None: ...

    def lock(x: threading.Event) -> None: ...

    def good() -> None: ...

    for function, words in [
        (bare, "'x' has no annotation.*`x: str`"),
        (late, "must be the first parameter"),
        (rest, "cannot be filled by name"),
        (options, "cannot be filled by name"),
        (positional, "cannot be filled by name"),
        (lock, "tool 'lock'"),
    ]:
        with pytest.raises(DefinitionError, match=words):
            tool(cast(Any, function))
    with pytest.raises(DefinitionError, match="not usable"):
        tool(name="no spaces")(good)
    with pytest.raises(DefinitionError, match="must be a function"):
        tool(cast(Any, 3))
    with pytest.raises(DefinitionError, match="two tools are called 'good'"):
        Agent("a", tools=[good, good])
    with pytest.raises(DefinitionError, match="put it in sub_agents"):
        Agent("a", tools=[cast(Any, Agent("b"))])


class Desk:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    async def times(self, x: int) -> int:
        """Multiplies."""
        return x * self.factor

    def plus(self, ctx: ToolContext, x: int) -> int:
        ctx.emit("plus", x)
        return x + self.factor


class Adder:
    """Adds."""

    def __init__(self, what: int) -> None:
        self.what = what

    def __call__(self, x: int) -> int:
        return x + self.what


class AsyncAdder(Adder):
    async def __call__(self, x: int) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        await anyio.lowlevel.checkpoint()
        return x + self.what


async def scaled(ctx: ToolContext, x: int, factor: int) -> int:
    """Scales."""
    await ctx.emit("scaled", factor)
    return x * factor


CALLABLES = [
    ("function", lambda: google, {"city": "ab", "days": 2}, "abab"),
    ("async method", lambda: Desk(3).times, {"x": 5}, 15),
    ("sync method with a context", lambda: Desk(3).plus, {"x": 5}, 8),
    ("callable object", lambda: Adder(2), {"x": 5}, 7),
    ("async callable object", lambda: AsyncAdder(2), {"x": 5}, 7),
    ("partial of an async function", lambda: tool(name="p")(functools.partial(scaled, factor=4)), {"x": 5}, 20),
    ("partial of a sync function", lambda: tool(name="p")(functools.partial(google, days=2)), {"city": "x"}, "xx"),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("make", "arguments", "result"), [row[1:] for row in CALLABLES], ids=[r[0] for r in CALLABLES])
async def test_every_kind_of_callable_runs(make: Callable[[], Any], arguments: dict[str, Any], result: Any) -> None:
    made = make()
    made = made if isinstance(made, Tool) else tool(made)
    played = await call(made, Call(made.name, **arguments))
    assert [(end.result, end.error) for end in played.ends] == [(result, None)]
    assert played.result.output == "done"


@pytest.mark.anyio
async def test_a_sync_function_that_gives_an_awaitable() -> None:
    played = await call(tool(name="later")(lambda: Desk(3).times(2)), Call("later"))
    assert [(end.result, end.error) for end in played.ends] == [(6, None)]


# --- bodies


@pytest.mark.anyio
async def test_a_sync_body_runs_in_a_thread_and_what_it_writes_keeps_its_order() -> None:
    threads: list[int] = []

    @tool
    def work(ctx: ToolContext[Counter]) -> int:
        threads.append(threading.get_ident())
        for n in range(3):
            ctx.emit("before", n)
            ctx.write(f"line {n}")
            with ctx.update_state() as draft:
                draft.count += 1
                draft.names.append(f"n{n}")
            ctx.emit("after", ctx.state.count)
        return ctx.state.count

    played = await call(work, Call("work"), state_type=Counter)
    inside = played.chunks[played.index("tool_start") + 1 : played.index("tool_end")]
    assert [chunk.type for chunk in inside] == ["custom", "tool_output_delta", "state_patch", "custom"] * 3
    assert [chunk.data for chunk in inside if chunk.type == "custom"] == [0, 1, 1, 2, 2, 3]
    assert played.result.state == Counter(count=3, names=["n0", "n1", "n2"])
    assert played.ends[0].result == 3
    assert threads != [threading.get_ident()]


@pytest.mark.anyio
async def test_an_async_generator_streams_and_each_piece_is_seen_before_the_next_is_let_go() -> None:
    gates = [anyio.Event() for _ in range(3)]

    @tool
    async def lines(ctx: ToolContext) -> AsyncIterator[str]:
        for n, gate in enumerate(gates):
            yield f"line {n}\n"
            await gate.wait()

    await watch(lines, [gate.set for gate in gates])


@pytest.mark.anyio
async def test_a_sync_generator_streams_and_each_piece_is_seen_before_the_next_is_let_go() -> None:
    gates = [threading.Event() for _ in range(3)]

    @tool
    def lines() -> Iterator[str]:
        for n, gate in enumerate(gates):
            yield f"line {n}\n"
            assert gate.wait(4)

    await watch(lines, [gate.set for gate in gates])


async def watch(lines: Tool[..., Any], releases: list[Callable[[], None]]) -> None:
    seen: list[Chunk] = []
    with anyio.fail_after(5):
        model = ScriptedModel([Turn(calls=[Call("lines")]), "done"])
        async with helix.stream(Agent("a", tools=[lines]), "go", model=model) as run:
            async for chunk in run:
                seen.append(chunk)
                if chunk.type == "tool_output_delta":
                    releases[sum(c.type == "tool_output_delta" for c in seen) - 1]()
    check_stream(seen)
    kinds = [chunk.type for chunk in seen if chunk.type.startswith("tool_") and "input" not in chunk.type]
    assert kinds == ["tool_start", *["tool_output_delta"] * 3, "tool_end"]
    [end] = [chunk for chunk in seen if chunk.type == "tool_end"]
    assert end.result == "line 0\nline 1\nline 2\n"
    assert "".join(chunk.delta for chunk in seen if chunk.type == "tool_output_delta") == end.result


@pytest.mark.anyio
async def test_a_generator_that_yields_no_text_or_breaks_is_a_failed_call_and_is_closed() -> None:
    closed: list[str] = []

    @tool
    async def numbers() -> AsyncIterator[Any]:
        try:
            yield "one"
            yield 2
        finally:
            closed.append("numbers")

    @tool
    async def broken() -> AsyncIterator[str]:
        yield "so far"
        raise KeyError("gone")

    played = await play([numbers, broken], [Turn(calls=[Call("numbers"), Call("broken")]), "done"])
    errors = {end.tool_name: end.error for end in played.ends}
    assert "yields texts, not int" in errors["numbers"]
    assert errors["broken"] == "KeyError: 'gone'"
    assert closed == ["numbers"]


def raise_value_error() -> None:
    raise ValueError("no such city")


def raise_system_exit() -> None:
    raise SystemExit(3)


def raise_retry() -> None:
    raise ModelRetry("give the city in English")


def raise_empty() -> None:
    raise RuntimeError


def not_a_number() -> dict[str, float]:
    return {"x": float("nan")}


def no_json() -> object:
    return threading.Event()


RAISING = [
    (raise_value_error, "ValueError: no such city"),
    (raise_system_exit, "SystemExit: 3"),
    (raise_retry, "give the city in English"),
    (raise_empty, "RuntimeError"),
    (not_a_number, "result"),
    (no_json, "result"),
]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(("function", "text"), RAISING, ids=[row[0].__name__ for row in RAISING])
async def test_what_goes_wrong_in_a_body_is_said_to_the_model(
    function: Callable[[], Any], text: str, kind: str
) -> None:
    async def body() -> Any:
        return function()

    played = await call(tool(name="f")(body if kind == "async" else function), Call("f"))
    [end] = played.ends
    assert text in end.error
    assert (end.result, end.error_code) == (None, "tool_failed")
    [answer] = played.answers
    assert (answer.is_error, answer.tool_name) == (True, "f")
    assert text in answer.content
    assert played.result.output == "done"


@pytest.mark.anyio
async def test_an_async_body_out_of_time_is_cut() -> None:
    unwound: list[str] = []

    @tool(timeout=0.01)
    async def slow(ctx: ToolContext) -> None:
        left = ctx.remaining_time()
        assert left is not None
        assert left <= 0.01
        try:
            await anyio.sleep_forever()
        finally:
            unwound.append("slow")

    played = await call(slow, Call("slow"))
    assert [(end.error_code, end.error) for end in played.ends] == [
        ("tool_timeout", "the tool did not finish within 0.01 s")
    ]
    assert unwound == ["slow"]
    assert played.answers[0].is_error


@pytest.mark.anyio
async def test_a_sync_body_out_of_time_is_left_behind_and_cannot_write_any_more() -> None:
    release, over = threading.Event(), threading.Event()
    raised: list[Exception] = []

    @tool(timeout=0.01)
    def slow(ctx: ToolContext[Counter]) -> None:
        release.wait(4)
        assert ctx.cancelled
        for late in (lambda: ctx.emit("late"), lambda: ctx.write("late"), lambda: ctx.update_state().__enter__()):
            try:
                late()
            except ToolEnded as error:
                raised.append(error)
        over.set()

    try:
        played = await call(slow, Call("slow"), state_type=Counter)
    finally:
        release.set()
    assert await anyio.to_thread.run_sync(over.wait, 4)
    assert [end.error_code for end in played.ends] == ["tool_timeout"]
    assert len(raised) == 3
    assert played.result.output == "done"


@pytest.mark.anyio
async def test_calls_run_together_and_their_answers_stand_in_call_order() -> None:
    entered = {name: anyio.Event() for name in "abc"}
    done = {name: anyio.Event() for name in "abc"}
    after = {"a": "b", "b": "c"}

    @tool
    async def meet(name: str) -> str:
        entered[name].set()
        for event in entered.values():
            await event.wait()
        if name in after:
            await done[after[name]].wait()
        done[name].set()
        return name.upper()

    played = await call(meet, *[Call("meet", raw=f'{{"name": "{name}"}}') for name in "abc"])
    assert [end.result for end in played.ends] == ["C", "B", "A"]
    assert [answer.content for answer in played.answers] == ["A", "B", "C"]


@pytest.mark.anyio
async def test_a_sequential_tool_makes_its_step_run_one_call_after_the_other() -> None:
    steps: list[str] = []

    async def body(name: str) -> str:
        steps.append(f"{name} in")
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        steps.append(f"{name} out")
        return name

    tools = [tool(name="one", sequential=True)(body), tool(name="two")(body)]
    calls = [Call(name, raw=f'{{"name": "{name}"}}') for name in ("two", "one", "two")]
    played = await play(tools, [Turn(calls=calls), "done"])
    assert steps == ["two in", "two out", "one in", "one out", "two in", "two out"]
    assert [end.result for end in played.ends] == ["two", "one", "two"]


@pytest.mark.anyio
async def test_a_tool_that_finishes_gives_the_output() -> None:
    @tool(finishes=True)
    def answer(text: str) -> str:
        if not text:
            raise ModelRetry("say something")
        return text.upper()

    played = await play([answer], [Turn(calls=[Call("answer", text="")]), Turn(calls=[Call("answer", text="yes")])])
    assert played.result.output == "YES"
    assert len(played.model.requests) == 2
    assert [chunk.output for chunk in played.chunks if chunk.type == "output"] == ["YES"]


@pytest.mark.anyio
async def test_a_tool_that_fails_more_often_than_its_retries_ends_the_agent() -> None:
    @tool(retries=1)
    def bad() -> None:
        raise ValueError("still broken")

    played = await play([bad], [Turn(calls=[Call("bad")]), Turn(calls=[Call("bad")])])
    assert (played.result.status, played.result.error_code) == ("failed", "tool_failed")
    assert played.result.error == "tool 'bad' failed too often: ValueError: still broken"
    with pytest.raises(helix.RunFailed, match="failed too often"):
        _ = played.result.output


@pytest.mark.anyio
async def test_failures_are_counted_in_a_row() -> None:
    outcomes = iter([False, True, False, True])

    @tool(retries=1)
    def moody() -> str:
        if not next(outcomes):
            raise ModelRetry("again")
        return "ok"

    played = await play([moody], [*[Turn(calls=[Call("moody")])] * 4, "done"])
    assert played.result.output == "done"


@pytest.mark.anyio
async def test_a_result_that_is_too_long_is_cut_at_a_character_and_marked() -> None:
    @tool(max_result_bytes=11)
    def much(plain: bool) -> Any:
        return "ü" * 50 if plain else {"items": list(range(50))}

    @tool(max_result_bytes=11)
    def fits() -> str:
        return "exactly 11!"

    calls = [Call("much", plain=True), Call("much", plain=False), Call("fits")]
    played = await play([much, fits], [Turn(calls=calls), "done"])
    by_call = sorted(played.ends, key=lambda end: end.tool_call_id)
    assert [end.result for end in by_call] == [
        "ü" * 5 + "\n[cut: 100 bytes, 11 kept]",
        '{"items":[0\n[cut: 151 bytes, 11 kept]',
        "exactly 11!",
    ]
    assert [end.truncated for end in by_call] == [True, True, None]
    assert played.answers[0].content == by_call[0].result


@pytest.mark.anyio
async def test_texts_reach_the_model_as_they_are_and_other_results_as_compact_json() -> None:
    results: list[Any] = ['say "hi"\n', {"a": [1, 2.5, None]}, Place(city="Köln"), [Unit.METRIC], None, True, ""]

    @tool
    def give(n: int) -> Any:
        return results[n]

    played = await call(give, *[Call("give", n=n) for n in range(len(results))])
    assert [answer.content for answer in played.answers] == [
        'say "hi"\n',
        '{"a":[1,2.5,null]}',
        '{"city":"Köln","zip":0}',
        '["metric"]',
        "null",
        "true",
        "",
    ]
    assert not any(answer.is_error for answer in played.answers)


# --- calls that never run


@pytest.mark.anyio
async def test_an_unknown_tool_is_answered_with_the_nearest_name() -> None:
    @tool
    def search(query: str) -> str:
        return query

    played = await call(search, Call("serch", query="x"))
    [end] = played.ends
    assert end.error_code == "tool_unknown"
    assert end.error == "there is no tool 'serch'. Did you mean 'search'? The tools are: search"
    assert played.answers[0].content == end.error
    assert not any(chunk.type == "tool_start" for chunk in played.chunks)


@pytest.mark.anyio
@pytest.mark.parametrize("raw", ['{"query": "x"', "[1]", '"x"', "null", "query=x", '{"query": NaN}'])
async def test_arguments_that_are_no_json_object_never_reach_the_body(raw: str) -> None:
    ran: list[str] = []

    @tool
    def search(query: str = "") -> str:
        ran.append(query)
        return query

    played = await call(search, Call("search", raw=raw))
    assert [(end.error_code, end.duration_ms) for end in played.ends] == [("tool_invalid_arguments", None)]
    assert ran == []
    assert not any(chunk.type == "tool_start" for chunk in played.chunks)
    assert played.answers[0].is_error


@pytest.mark.anyio
async def test_arguments_that_do_not_fit_are_answered_with_what_is_wrong() -> None:
    ran: list[str] = []

    @tool
    def search(query: str, limit: int = 5) -> str:
        ran.append(query)
        return query

    calls = [Call("search", limit="many"), Call("search", query="x", page=2), Call("search", query="ok", limit="3")]
    played = await call(search, *calls)
    contents = [answer.content for answer in played.answers]
    assert "query: " in contents[0]
    assert "limit: Input should be a valid integer" in contents[0]
    assert "page: Unexpected keyword argument" in contents[1]
    assert contents[2] == "ok"
    assert ran == ["ok"]


# --- one tool alone


@pytest.mark.anyio
async def test_a_tool_alone_with_a_context() -> None:
    @tool
    async def work(ctx: ToolContext[Counter, str], name: str) -> str:
        await ctx.emit("began", Place(city=name))
        ctx.write("one ")
        ctx.write("two")
        with ctx.update_state() as draft:
            draft.count += 1
            draft.names.append(name)
        return f"{ctx.deps} {ctx.state.count} {ctx.tool_call_id} {ctx.attempt}"

    ctx = context(state=Counter(count=4), deps="deps", tool_call_id="c9", attempt=2)
    assert await work(ctx, "Rome") == "deps 5 c9 2"
    did = recorded(ctx)
    assert did.events == [("began", {"city": "Rome", "zip": 0})]
    assert did.written == ["one ", "two"]
    assert did.state == {"count": 5, "names": ["Rome"]}
    assert helix.apply_patches({"count": 4, "names": []}, did.patches[0]) == did.state
    assert ctx.state == Counter(count=5, names=["Rome"])
    assert (ctx.cancelled, ctx.remaining_time()) == (False, None)


@pytest.mark.anyio
async def test_a_context_alone_runs_no_agents_and_discards_a_broken_draft() -> None:
    ctx = context(state=Counter())
    with pytest.raises(UsageError, match="ScriptedModel for 'helper'"):
        await ctx.run_agent(Agent("helper"), "x")
    with pytest.raises(UsageError, match="ScriptedModel for 'helper'"):
        ctx.stream_agent(Agent("helper"), "x")
    with pytest.raises(KeyError), ctx.update_state() as draft:
        draft.count = 9
        raise KeyError
    assert recorded(ctx).state == {"count": 0, "names": []}
    with pytest.raises(helix.StateError), ctx.update_state() as draft:
        draft.count = cast(Any, "nine")
    assert recorded(ctx).patches == []
