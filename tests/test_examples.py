"""Every example runs as it is, by itself, and prints what it promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("[0-9]*.py"))

EXPECTED: dict[str, list[str]] = {
    "01_hello": ["Hello. I am a helix agent, and this is my only line.", "completed 18 tokens"],
    "02_tools": [
        "end    call_1 no part 'bolts'; the parts are bolt, nut",
        "event  call_2 progress {'shelf': 'A3'}",
        "output call_2 'counting bolt\\n'",
        "end    call_3 80",
        "There are 120 bolts and 80 nuts.",
    ],
    "03_sub_agents": [
        "  1  editor               run_start          ",
        " 15  editor > writer-1    run_start          ",
        " 19  editor > writer-2    run_start          ",
        " 37  editor               run_end            ",
        "Bees dance; ants leave scent.",
        "writer 1 18",
    ],
    "04_state": ["items=['tea', 'milk'] total=5.7"],
    "05_structured_output": [
        "{'name': 'Tea', 'minutes': 'a few', 'steps': []}",
        "{'name': 'Tea', 'minutes': 4, 'steps': ['boil water', 'wait']}",
        "{'name': 'Tea', 'minutes': 4, 'steps': ['boil water', 'wait', 'pour']}",
        "Tea, 4 minutes: boil water, then wait, then pour",
        "Toast",
    ],
    "06_filter_and_resume": [
        "left after 10",
        "came back for 11 to 23",
        "['I ask the scout.', 'I see ', 'nothing ', 'at all.', 'The hill is clear.']",
        "['run_start', 'step_start', 'text_delta', 'text_delta', 'text_delta', 'step_end', 'run_end']",
        "['I ask the scout.', 'I see nothing at all.', 'The hill is clear.']",
        "running True -> completed",
    ],
    "07_orchestration": [
        "drafter completed 'draft of tea'",
        "drafter completed 'draft of rain'",
        "critic: Too short. ",
        "critic cancelled None",
        "write ['draft of tea', 'draft of rain']",
        "Done.",
    ],
    "08_limits_and_cancel": [
        "boss completed None",
        "worker completed None",
        "worker failed limit_requests",
        "One of two is done. 3 requests",
        "worker-1 completed",
        "worker-2 cancelled",
        "b did not answer.",
    ],
    "09_interrupt_and_sessions": [
        "interrupted after 10 chunks",
        "completed ['user', 'assistant', 'tool', 'user', 'assistant']",
        "It is 4 long.",
        "That was message 3; the first was 'I am Ada.'.",
        "4 messages, completed",
    ],
    "10_testing": [
        "test_the_tool_alone passed",
        "the model read: number: Input should be a valid integer, unable to parse string as an integer",
        "test_the_agent passed",
    ],
    "11_sync": ["It is 42. 2 requests", "tool 42", "text 'It is '", "completed"],
    "12_recorded": [
        "23 chunks saved",
        "the same again: 12 and 30, so 42",
        "run.jsonl: teacher was asked '6 + 6, times 2.5?' in chunk 1, and is asked '1 + 1?' now",
    ],
    "13_approvals": [
        "suspended",
        "buyer asks: buy {'amount': 50} 50 coins are many",
        "guide asks: locate {} None",
        "All set. ['tea for 9', 'Oslo', 'Bought.']",
        "['denied: no money']",
    ],
    "14_surviving": [
        "first: suspended after 17 chunks",
        "second: dig {'place': 'garden'} waits",
        "second: a hole in the garden",
        "second: That was message 1.",
        "later: That was message 2.",
    ],
    "15_images": [
        "user: 'Is this in the kitchen?\\n[image: dot.gif]'",
        "tool: 'The kitchen, just now:\\n[image: kitchen.gif]'",
        "The same white dot is in the kitchen.",
        "Image: url= must begin with https:// or the like; for a file use Image.from_path(…)",
    ],
    "16_trimming": [
        "8 chunks were seen",
        "0 deltas are that old",
        "4 deltas dropped",
        "The tide is out.",
        "resync up to chunk 8 ['user', 'assistant']",
    ],
    "17_sessions": [
        "completed - I have read 3 messages.",
        "2 older: ['And now?', 'I have read 3 messages.']",
        "0 older: ['Good morning.', 'I have read 1 messages.']",
        "monday 2 runs, completed",
        "2 runs deleted",
        "[] []",
    ],
}
"""Lines that each example prints, in this order; others may stand between them."""


def test_every_example_is_listed_here() -> None:
    assert {path.stem for path in EXAMPLES} == set(EXPECTED)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)], capture_output=True, encoding="utf-8", timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    printed = iter(done.stdout.splitlines())
    for line in EXPECTED[path.stem]:
        assert line in printed, f"{path.stem} did not print {line!r} (or not in this order):\n{done.stdout}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
