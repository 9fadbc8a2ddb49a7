"""The event stream decoder against the standard's own cases, at every split."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest

from helix.models._sse import EventStreamDecoder, ServerSentEvent

FIXTURE = Path(__file__).parent / "fixtures" / "sse" / "parse-cases.json"
CASES: list[dict[str, Any]] = json.loads(FIXTURE.read_bytes())["cases"]
PIECES = [b"data: x", b"data:", b"data", b": hb", b"id: 1", b"id", b"event: e", b"\r", b"\n", b"\r\n", b"\xef\xbb\xbf"]


def decode(*pieces: bytes) -> list[dict[str, str]]:
    decoder = EventStreamDecoder()
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return [{"event": e.event, "data": e.data.decode("utf-8", "replace"), "last_id": e.last_id} for e in events]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_stream_gives_the_standards_events_at_every_split(case: dict[str, Any]) -> None:
    body, expected = base64.b64decode(case["bytes_b64"]), case["expect"]
    assert decode(body) == expected
    assert decode(*(body[i : i + 1] for i in range(len(body)))) == expected
    step = max(1, len(body) // 500)  # every position but in the two long ones
    for at in range(0, len(body) + 1, step):
        assert decode(body[:at], b"", body[at:]) == expected, at


def test_an_event_is_given_out_by_the_byte_that_completes_it() -> None:
    decoder = EventStreamDecoder()
    assert decoder.feed(b"data: a\r") == []
    assert decoder.feed(b"\n") == []
    assert decoder.feed(b"\r") == [ServerSentEvent("message", b"a", "")]
    assert decoder.feed(b"\ndata: b\n\n") == [ServerSentEvent("message", b"b", "")]


def test_line_ends_may_be_mixed_within_one_read() -> None:
    assert [e["data"] for e in decode(b"data: a\n\r\ndata: b\r\rdata: c\r\n\ndata: d\n\n")] == ["a", "b", "c", "d"]


def test_the_id_of_an_unfinished_block_does_not_count() -> None:
    decoder = EventStreamDecoder()
    decoder.feed(b"id: 1\ndata: a\n\nid: 2\ndata: b\n")
    assert decoder.last_id == "1"


def test_the_reconnection_time_is_kept() -> None:
    decoder = EventStreamDecoder()
    decoder.feed(b"retry: 1500\nretry: soon\n\n")
    assert decoder.retry == 1500


def test_random_streams_do_not_depend_on_their_splits() -> None:
    rng = random.Random(7)
    for _ in range(300):
        body = b"".join(rng.choice(PIECES) for _ in range(rng.randrange(40)))
        cuts = sorted(rng.randrange(len(body) + 1) for _ in range(rng.randrange(8)))
        pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        assert decode(*pieces) == decode(body)
