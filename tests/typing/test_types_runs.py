"""What type checkers know of runs and their results: pyright and mypy check this file; its functions never run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, assert_type

from pydantic import BaseModel

import helix
from helix import (
    Agent,
    Approve,
    ClientResult,
    Deny,
    Executor,
    Message,
    RunCancelled,
    RunFailed,
    RunHandle,
    RunResult,
    RunStream,
    RunSuspended,
    RunTree,
    Session,
    Usage,
    chunks,
)
from helix.chunks import ApprovalRequest, Chunk
from helix.messages import HistoryPage
from helix.sync import SyncRunStream


class Report(BaseModel):
    title: str


class Cart(BaseModel):
    items: list[str] = []


@dataclass
class Shop:
    currency: str


@dataclass
class BookShop(Shop):
    shelves: int


plain = Agent("plain")
reporter = Agent("reporter", output_type=Report)
listing = Agent("listing", output_type=list[Report])
either = Agent("either", output_type=Report | int)
stateful = Agent("stateful", state_type=Cart)
needy = Agent("needy", output_type=Report, state_type=Cart, deps_type=Shop)


async def run_gives_the_agents_types() -> None:
    result = await helix.run(reporter, "go")
    assert_type(result, RunResult[Report, None])
    assert_type(result.output, Report)
    assert_type(result.state, None)
    assert_type((await helix.run(plain, "go")).output, str)
    assert_type((await helix.run(listing, "go")).output, list[Report])
    assert_type((await helix.run(either, "go")).output, Report | int)
    assert_type((await helix.run(stateful, "go", state=Cart())).state, Cart)
    assert_type(await helix.run(needy, "go", deps=Shop("EUR")), RunResult[Report, Cart])
    assert_type(await helix.run(needy, "go", deps=BookShop("EUR", 3)), RunResult[Report, Cart])
    assert_type(await helix.run(plain, "go", run_id="r", session_id="s", metadata={"n": 1}), RunResult[str, None])
    assert_type(await helix.run(plain, "go", deps=3, limits=helix.Limits(steps=3), model="a:b"), RunResult[str, None])


def run_sync_gives_the_same() -> None:
    assert_type(helix.run_sync(reporter, "go"), RunResult[Report, None])
    assert_type(helix.run_sync(needy, "go", deps=Shop("EUR")).output, Report)


async def streams_are_of_chunks_and_end_in_a_result() -> None:
    async with helix.stream(reporter, "go") as run:
        assert_type(run, RunStream[Report, None])
        async for chunk in run:
            assert_type(chunk, Chunk)
        assert_type(run.handle, RunHandle[Report, None])
        assert_type((await run.result()).output, Report)
    async with helix.stream(needy, "go", deps=Shop("EUR")) as needy_run:
        assert_type((await needy_run.result()).state, Cart)
    with helix.stream_sync(stateful, "go") as sync_run:
        assert_type(sync_run, SyncRunStream[str, Cart])
        for chunk in sync_run:
            assert_type(chunk, Chunk)
        assert_type(sync_run.result(), RunResult[str, Cart])


def a_result_has_typed_parts(result: RunResult[Report, Cart]) -> None:
    assert_type(result.output, Report)
    assert_type(result.state, Cart)
    assert_type(result.status, Literal["completed", "failed", "cancelled", "interrupted", "suspended"])
    assert_type(result.messages, list[Message])
    assert_type(result.usage, Usage)
    assert_type(result.usage_by_agent, dict[str, Usage])
    assert_type(result.finish_reason, chunks.FinishReason | None)
    assert_type(result.error_code, chunks.ErrorCode | None)
    assert_type(result.tree, RunTree)
    wider: RunResult[object, object] = result
    narrower: RunResult[int, Cart] = result  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    str(result.output.titel)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    print(wider, narrower)


async def the_errors_of_a_run_carry_its_result() -> None:
    try:
        await helix.run(reporter, "go")
    except (RunFailed, RunCancelled, RunSuspended) as error:
        assert_type(error.result, RunResult[Any, Any])


async def handles_are_typed() -> None:
    async with Executor() as executor:
        handle = await executor.execute(reporter, "go")
        assert_type(handle, RunHandle[Report, None])
        assert_type(await handle.result(), RunResult[Report, None])
        assert_type(handle.snapshot().output, Report)
        assert_type(handle.at(3), RunTree)
        async for chunk in handle.stream(3, follow=True, coalesce=True):
            assert_type(chunk, Chunk)
        async for item in handle.stream(control=True):
            assert_type(item, Chunk | chunks.Control)
        assert_type(await executor.get_handle(handle.run_id), RunHandle[Any, Any])
        assert_type(await executor.resume(handle.run_id), RunHandle[Any, Any])
        assert_type(await executor.execute(needy, "go", deps=Shop("EUR")), RunHandle[Report, Cart])
        handle.stream("3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


async def sessions_are_typed(executor: Executor) -> None:
    session = Session(stateful, executor)
    assert_type(session, Session[str, Cart])
    assert_type(await session.send("go"), RunResult[str, Cart])
    assert_type(session.result.state, Cart)
    assert_type(await session.history(), HistoryPage)
    async for chunk in session.stream("go"):
        assert_type(chunk, Chunk)
    Session(stateful)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def at_once(request: ApprovalRequest) -> bool:
    return request.kind == "approval"


async def after_a_while(request: ApprovalRequest) -> Approve | Deny | ClientResult:
    return Approve({"n": 1}) if request.reason else Deny("no")


def gives_a_text(request: ApprovalRequest) -> str:
    return "yes"


async def approvals_are_typed(executor: Executor) -> None:
    await helix.run(plain, "go", on_approval=at_once)
    await helix.run(plain, "go", on_approval=after_a_while)
    await helix.run(plain, "go", on_approval=lambda request: ClientResult(request.arguments))
    handle = await executor.execute(plain, "go", on_approval=after_a_while, wait="suspend")
    assert_type(handle.tree.pending, list[ApprovalRequest])
    await handle.respond("id", Approve(), by="ada")
    await handle.send("go on", to="id")
    await handle.respond("id", True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await executor.execute(plain, "go", wait="forever")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await executor.execute(plain, "go", on_approval=gives_a_text)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def missing_or_wrong_arguments_are_static_errors() -> None:
    await helix.run(needy, "go")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await helix.run(needy, "go", deps="EUR")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    helix.run_sync(needy, "go")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    helix.stream(needy, "go")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    helix.stream_sync(needy, "go")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await helix.run(stateful, "go", state="full")  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    await helix.run(plain)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await helix.run(plain, "go", on_busy="queue")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await helix.run(plain, "go", modell="x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await helix.run("plain", "go")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


def test_the_agents_above_are_made() -> None:
    assert (plain.output_type, either.output_type, needy.deps_type) == (str, Report | int, Shop)
