"""What people see of a run at a glance: the outline of its agents, results as text and as HTML, one-line reprs."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import anyio
import pytest

import helix
from helix import Agent, Chunk, Executor, RunResult, RunTree
from helix import chunks as c
from helix.fold import fold
from helix.limits import Usage
from helix.outline import MAX_LINES, one_line, outline, outline_html
from helix.testing import Call, ScriptedModel, Turn

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


def start(agent_id: str, agent_type: str = "") -> Chunk:
    parent = agent_id.rpartition(".")[0]
    name = agent_type or agent_id.rpartition(".")[2].rstrip("0123456789").rstrip("-")
    return c.RunStart(agent_id, name, [], "m", None, parent_id=parent or None)


def used(agent_id: str, tokens: int) -> list[Chunk]:
    usage = Usage(tokens, 0, tokens, requests=1)
    return [c.StepStart(agent_id, "", 1, 1, "m"), c.StepEnd(agent_id, "", 1, 1, "cut", usage)]


def end(agent_id: str, status: Any = "completed", code: Any = None) -> Chunk:
    error = None if code is None else "no luck"
    return c.RunEnd(agent_id, "", status, Usage(), Usage(), 1, 1, error=error, error_code=code)


def tree_of(*chunks: Chunk) -> RunTree:
    return fold(chunks)


def result_of(tree: RunTree) -> RunResult[Any, Any]:
    return RunResult(tree, tree.root_id, output=tree.root.result, state=None)


def squeezed(lines: list[str]) -> list[str]:
    return [" ".join(line.split()) for line in lines]


# --- the outline


def test_each_agent_has_a_line_with_its_place_name_status_code_and_tokens() -> None:
    tree = tree_of(
        start("r", "boss"),
        start("r.writer-1"),
        *used("r.writer-1", 1200),
        start("r.writer-1.reader-1"),
        *used("r.writer-1.reader-1", 34),
        end("r.writer-1.reader-1", "failed", "limit_steps"),
        end("r.writer-1"),
        start("r.writer-2"),
        end("r.writer-2", "cancelled"),
        start("r.judge-3"),
    )
    assert len({len(line) for line in outline(tree)}) == 1
    assert squeezed(outline(tree)) == [
        "boss ● running 0 of 1,234 tokens",
        "├─ writer-1 ✓ completed 1,200 of 1,234 tokens",
        "│ └─ reader-1 ✗ failed (limit_steps) 34 tokens",
        "├─ writer-2 ⊘ cancelled 0 tokens",
        "└─ judge-3 ● running 0 tokens",
    ]


def test_a_run_that_has_not_begun_has_no_lines() -> None:
    assert outline(RunTree()) == []


def test_who_lives_in_a_parked_run_is_parked() -> None:
    tree = tree_of(start("r", "boss"), start("r.a-1"), end("r.a-1"), c.RunPause("r", "boss", "interrupted"))
    assert squeezed(outline(tree)) == ["boss ‖ interrupted 0 tokens", "└─ a-1 ✓ completed 0 tokens"]


def test_a_branch_alone() -> None:
    tree = tree_of(start("r", "boss"), start("r.a-1"), start("r.a-1.b-1"), start("r.c-2"))
    assert squeezed(outline(tree, "r.a-1")) == ["a-1 ● running 0 tokens", "└─ b-1 ● running 0 tokens"]


def test_a_wide_fan_out_of_equals_collapses_and_nobody_is_lost() -> None:
    chunks: list[Chunk] = [start("r", "boss")]
    for number in range(1, 101):
        agent_id = f"r.worker-{number}"
        chunks += [start(agent_id), *used(agent_id, 10), end(agent_id)]
    lines = squeezed(outline(tree_of(*chunks)))
    assert len(lines) == MAX_LINES
    assert lines[0] == "boss ● running 0 of 1,000 tokens"
    assert lines[1] == "├─ worker-1 ✓ completed 10 tokens"
    assert lines[-1] == "└─ … 82 more all completed 820 tokens"


def test_of_many_those_that_did_not_complete_are_shown() -> None:
    chunks: list[Chunk] = [start("r", "boss")]
    for number in range(1, 61):
        for agent_id in (f"r.worker-{number}", f"r.worker-{number}.reader-1"):
            chunks.append(start(agent_id))
        chunks.append(
            end(f"r.worker-{number}.reader-1", *(("failed", "model_rejected") if number == 50 else ("completed",)))
        )
        chunks.append(end(f"r.worker-{number}"))
    lines = squeezed(outline(tree_of(*chunks)))
    assert len(lines) <= MAX_LINES
    at = lines.index("├─ worker-50 ✓ completed 0 tokens")
    assert lines[at + 1] == "│ └─ reader-1 ✗ failed (model_rejected) 0 tokens"


def test_what_is_hidden_is_counted_by_its_status() -> None:
    chunks: list[Chunk] = [start("r", "boss")]
    for number in range(1, 11):
        chunks += [start(f"r.w-{number}"), end(f"r.w-{number}", "failed" if number > 3 else "completed")]
    assert squeezed(outline(tree_of(*chunks), max_lines=3)) == [
        "boss ● running 0 tokens",
        "├─ w-4 ✗ failed 0 tokens",
        "└─ … 9 more 6 failed, 3 completed 0 tokens",
    ]


@pytest.mark.parametrize("shape", ["deep", "wide", "bushy"])
def test_a_tree_of_any_shape_fits(shape: str) -> None:
    def parent(number: int) -> int:
        return {"deep": number - 1, "wide": 0, "bushy": (number - 1) // 3}[shape]

    ids = ["r"]
    for number in range(1, 3000):
        ids.append(f"{ids[parent(number)]}.n-{number}" if shape != "deep" else f"r.n-{number}")
    chunks: list[Chunk] = [c.RunStart("r", "root", [], "m", None)]
    chunks += [c.RunStart(ids[n], "n", [], "m", None, parent_id=ids[parent(n)]) for n in range(1, 3000)]
    tree = fold(chunks)
    for max_lines in (2, 3, 7, 20, 200):
        lines = outline(tree, max_lines=max_lines)
        assert max_lines - 1 <= len(lines) <= max_lines
        shown = [line for line in lines if "…" not in line]
        told = sum(int(line.split("… ")[1].split()[0].replace(",", "")) for line in lines if "…" in line)
        assert len(shown) + told == 3000


# --- nothing that steers a terminal or a page


NASTY = "\x1b[31mred\x1b]0;title\x07\u202e\x9b\r<script>alert(1)</script>&\"'"


def nasty_tree() -> RunTree:
    failed = c.RunEnd("r", NASTY, "failed", Usage(), Usage(), 1, 1, error=NASTY, error_code=NASTY)  # pyright: ignore
    return tree_of(start("r", NASTY), start("r.x\x1b-1", NASTY), failed)


def test_control_characters_do_not_reach_the_terminal() -> None:
    result = result_of(nasty_tree())
    for text in (str(result), repr(result), *outline(result.tree), one_line(NASTY, 200)):
        assert not {char for char in text if char != "\n" and not char.isprintable()}, text


class Elements(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_has_only_inert_elements_whatever_the_names_and_errors_are() -> None:
    page = Elements(result_of(nasty_tree())._repr_html_())
    assert page.names == {"div", "table", "tr", "td", "span", "strong"}
    assert page.attributes == {"style"}
    assert page.open == []
    assert "<script>alert(1)" in page.text


def test_html_sets_no_background_and_leaves_the_colour_of_text_to_the_page() -> None:
    page = outline_html(tree_of(start("r", "boss"), end("r")))
    assert page.count("color:") == 1  # the glyph's
    assert "background:none" in page


# --- results and handles


def boss() -> tuple[Agent[Any, Any, Any], ScriptedModel]:
    agent = Agent("boss", sub_agents=[Agent("helper", description="Helps.")])
    script = {"boss": [Turn(calls=[Call("helper", input="go")]), "All\nis well."], "helper": ["Yes."]}
    return agent, ScriptedModel(script)


async def test_a_printed_result_is_its_tree_and_a_line_of_what_it_came_to() -> None:
    agent, model = boss()
    with anyio.fail_after(5):
        result = await helix.run(agent, "x", model=model)
    assert str(result).splitlines() == [
        "boss         ✓ completed  36 of 54 tokens",
        "└─ helper-1  ✓ completed        18 tokens",
        "✓ completed, 54 tokens: All is well.",
    ]
    assert repr(result) == r"RunResult(boss, completed, output='All\nis well.', 54 tokens)"


@pytest.mark.parametrize(
    ("output", "told"),
    [("", ""), ("word " * 1000, f": {'word ' * 59}word…"), (" " * 5000 + "x", ": x"), ("x" + " " * 5000 + "y", ": x…")],
)
async def test_a_long_output_is_cut_in_print_and_in_repr(output: str, told: str) -> None:
    with anyio.fail_after(5):
        result = await helix.run(Agent("a"), "x", model=ScriptedModel([output]))
    assert str(result).splitlines()[-1] == f"✓ completed, 18 tokens{told}"
    assert len(repr(result)) < 130


async def test_a_failed_result_says_why() -> None:
    with anyio.fail_after(5), pytest.raises(helix.RunFailed) as failed:
        await helix.run(Agent("a"), "x", model=ScriptedModel([Turn(fail="model_rejected")]))
    result = failed.value.result
    assert str(result).splitlines() == [
        "a  ✗ failed (model_rejected)  0 tokens",
        "✗ failed (model_rejected), 0 tokens: scripted failure: model_rejected",
    ]
    assert repr(result) == "RunResult(a, failed, error='scripted failure: model_rejected', 0 tokens)"
    assert "scripted failure" in Elements(result._repr_html_()).text


async def test_a_handle_says_which_run_it_is_how_it_stands_and_how_far_it_is() -> None:
    agent, model = boss()
    with anyio.fail_after(5):
        async with Executor() as executor:
            handle = await executor.execute(agent, "x", model=model, run_id="one")
            assert repr(handle) == "RunHandle(boss, run_id='one', running, 1 agent, at sequence 1)"
            result = await handle.result()
    assert repr(handle) == f"RunHandle(boss, run_id='one', completed, 2 agents, at sequence {result.last_sequence})"


@pytest.mark.parametrize(
    ("thing", "shown"),
    [
        (lambda tree: tree, "RunTree('r', running, 2 agents, at sequence 0)"),
        (lambda tree: tree.root, "AgentNode('r', running, 0 steps, 7 tokens)"),
        (lambda tree: RunTree(), "RunTree('', pending, 0 agents, at sequence 0)"),
    ],
)
def test_trees_and_nodes_are_one_short_line(thing: Callable[[RunTree], Any], shown: str) -> None:
    tree = tree_of(start("r", "boss"), start("r.a-1"), *used("r.a-1", 7))
    assert repr(thing(tree)) == shown
