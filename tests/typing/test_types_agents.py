"""What type checkers know of agents: pyright and mypy check this file; its functions never run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, assert_type

from pydantic import BaseModel
from typing_extensions import TypedDict

from helix import Agent, Tool, ToolContext, tool


class Report(BaseModel):
    title: str


class Refusal(BaseModel):
    reason: str


class Cart(BaseModel):
    items: list[str] = []


class Point(TypedDict):
    x: int


@dataclass
class Shop:
    currency: str


@dataclass
class BookShop(Shop):
    shelves: int


plain = Agent("plain")
reporter = Agent("reporter", output_type=Report)
stateful = Agent("stateful", state_type=Cart)
needy = Agent("needy", output_type=Report, state_type=Cart, deps_type=Shop)
listing = Agent("listing", output_type=list[Report])
either = Agent("either", output_type=Report | Refusal)
perhaps = Agent("perhaps", output_type=Report | None)
choosing = Agent("choosing", output_type=Literal["yes", "no"])
pointing = Agent("pointing", output_type=Point)
counting = Agent("counting", output_type=dict[str, int])


def an_agent_has_three_types_with_defaults() -> None:
    assert_type(plain, Agent[str, None, object])
    assert_type(reporter, Agent[Report, None, object])
    assert_type(stateful, Agent[str, Cart, object])
    assert_type(needy, Agent[Report, Cart, Shop])
    assert_type(needy.replace(description="x"), Agent[Report, Cart, Shop])


def the_common_annotation_is_one_type(agent: Agent[Report], bare: Agent) -> None:
    assert_type(agent, Agent[Report, None, object])
    assert_type(bare, Agent[str, None, object])


def an_output_type_may_be_a_union_a_list_or_any_type_form() -> None:
    assert_type(listing, Agent[list[Report], None, object])
    assert_type(either, Agent[Report | Refusal, None, object])
    assert_type(perhaps, Agent[Report | None, None, object])
    assert_type(choosing, Agent[Literal["yes", "no"], None, object])
    assert_type(pointing, Agent[Point, None, object])
    assert_type(counting, Agent[dict[str, int], None, object])


def outputs_are_covariant_and_deps_contravariant() -> None:
    wider: Agent[Report | Refusal] = reporter
    anything: Agent[object] = listing
    for_books: Agent[Report, Cart, BookShop] = needy
    for_all: Agent[Report, Cart, object] = needy  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    narrower: Agent[Report] = either  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    other_state: Agent[str, Shop] = stateful  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(wider, anything, for_books, for_all, narrower, other_state)


def children_may_need_no_more_than_the_parent_has() -> None:
    Agent("parent", sub_agents=[plain, reporter, listing])
    Agent("shop", sub_agents=[needy, plain], deps_type=Shop)
    Agent("books", sub_agents=[needy], deps_type=BookShop)
    Agent("wrong", sub_agents=[needy], deps_type=int)  # type: ignore[misc]  # pyright: ignore[reportArgumentType]


def arguments_are_checked() -> None:
    Agent(name=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Agent("a", instruction="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Agent("a", tools=[3])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    Agent()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def instructions_get_the_agents_own_context() -> None:
    def greet(ctx: ToolContext[Cart, Shop]) -> str:
        assert_type(ctx.state, Cart)
        return ctx.deps.currency

    async def later(ctx: ToolContext[Cart, Shop]) -> str:
        return greet(ctx)

    Agent("a", state_type=Cart, deps_type=Shop, instructions=greet)
    Agent("a", state_type=Cart, deps_type=Shop, instructions=later)
    Agent("a", instructions=greet, deps_type=int)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def validators_get_the_output_and_the_agents_own_context() -> None:
    def checked(output: Report) -> Report:
        return output

    def only_checked(output: Report) -> None: ...

    async def priced(ctx: ToolContext[Cart, Shop], output: Report) -> Report | None:
        assert_type(ctx.deps, Shop)
        return output if ctx.state.items else None

    def of_carts(output: Cart) -> Cart:
        return output

    both = Agent("a", output_type=Report, output_validators=[checked, only_checked])
    assert_type(both, Agent[Report, None, object])
    Agent("a", output_type=Report, output_validators=[checked, priced], state_type=Cart, deps_type=Shop)
    Agent("a", output_type=list[Report], output_validators=[lambda reports: reports[:3]])
    Agent("a", output_validators=[str.strip])
    Agent("a", output_type=Report, output_validators=[of_carts])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    Agent("a", output_type=Report, output_validators=[priced], deps_type=int)  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


def agents_are_tools_with_their_own_input() -> None:
    assert_type(plain.as_tool().agent, Agent[Any, Any, Any])
    as_tool: Tool[..., Any] = needy.as_tool(input_type=Report, prompt=lambda report: report.title)
    needy.as_tool(input_type=Report, prompt=lambda it: it.titel)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    Agent("parent", sub_agents=[as_tool, plain.as_tool(name="other")])


@tool
def needs_a_shop(ctx: ToolContext[Cart, Shop]) -> str:
    return ctx.deps.currency


def tools_are_taken_as_they_are() -> None:
    def undecorated(query: str) -> str:
        return query

    Agent("a", tools=[needs_a_shop, undecorated], state_type=Cart, deps_type=Shop)


def test_the_agents_above_are_made() -> None:
    assert (plain.output_type, reporter.output_type, needy.state_type) == (str, Report, Cart)
    assert str(listing.output_type) == f"list[{Report.__module__}.Report]"
    assert needs_a_shop.name == "needs_a_shop"
