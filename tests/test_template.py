"""Recognising the deltas of a stream by their bytes: never anything that the parser would have read otherwise."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from pydantic_core import from_json

from helix.models._template import TextTemplate


def shapes(text: str, number: int, filler: str) -> list[bytes]:
    """One delta in the recorded orders of its fields; json.dumps separates with blanks, or does not."""
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    kind, rest = {"type": "response.output_text.delta"}, {"logprobs": [], "obfuscation": filler}
    orders: list[dict[str, Any]] = [
        {**kind, **place, "delta": text},
        {**kind, "sequence_number": number, **place, "delta": text, **rest},
        {**kind, "content_index": 0, "delta": text, **rest, "output_index": 0, "sequence_number": number},
        {**kind, "delta": text, "sequence_number": number, **place, **rest},
    ]
    return [
        json.dumps(order, separators=separators, ensure_ascii=ensure).encode()
        for order in orders
        for separators in ((",", ":"), (", ", ": "))
        for ensure in (False, True)
    ]


def learned(data: bytes) -> tuple[TextTemplate, list[str]]:
    pushed: list[str] = []
    template = TextTemplate()
    template.learn(data, from_json(data)["delta"], lambda parsed: parsed["delta"], pushed.append, "e")
    return template, pushed


def framed(data: bytes) -> bytes:
    return b"event: e\ndata: " + data + b"\n\n"


@pytest.mark.parametrize("shape", range(16))
def test_deltas_are_recognised_whatever_the_order_of_their_fields(shape: int) -> None:
    template, pushed = learned(shapes(" the", 7, "ab1")[shape])
    texts = ["a", " b c", "é", "line\n", "back\\slash", "tab\t", "1", "0"]
    events = [framed(shapes(text, 9 + n * 37, "0Z" * (n + 1))[shape]) for n, text in enumerate(texts)]
    other = framed(shapes('a "quote"', 500, "ab1")[shape])
    assert template.take(b"".join((*events, other, *events)), 0) == len(b"".join(events))
    assert pushed == texts
    assert template.take(events[0] + events[1][:-1], 0) == len(events[0])


@pytest.mark.parametrize("number", [b"0", b"007", b"-1", b"1.5", b"1e3", b"", b'"7"', b"null", b"9" * 30, b"1_0"])
@pytest.mark.parametrize("shape", [4, 8, 12])
def test_what_is_no_plain_number_is_left_to_the_parser(shape: int, number: bytes) -> None:
    data = shapes(" the", 7, "ab1")[shape]
    template, pushed = learned(data)
    assert template.take(framed(data.replace(b":7", b":" + number)), 0) == 0
    assert pushed == []


@pytest.mark.parametrize("shape", range(16))
def test_what_is_recognised_is_what_the_parser_would_have_read(shape: int) -> None:
    """Any byte of an event may be changed, or lost: then it is parsed, unless it says the same but for its holes."""
    rng = random.Random(shape)
    data = shapes("té\n" if shape % 2 else "té", 41, "ab1")[shape]
    template, pushed = learned(shapes("x", 7, "ab1")[shape])
    event = framed(data)
    for _ in range(1_500):
        at = rng.randrange(len(event))
        new = bytes([rng.choice([*b'"\\,:{}[]09aZ \n\r\t\x00\xff\xc3', event[at]])])
        changed = event[:at] + new * rng.randrange(2) + event[at + 1 :]
        pushed.clear()
        taken = template.take(changed, 0)
        if taken:
            assert changed[:taken].endswith(b"\n\n")
            parsed = from_json(changed[len(b"event: e\ndata: ") : taken])
            assert pushed == [parsed["delta"]]
            same = {**from_json(data), "delta": 0, "sequence_number": 0, "obfuscation": 0}
            assert {**parsed, "delta": 0, "sequence_number": 0, "obfuscation": 0} == same
