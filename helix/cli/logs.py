"""A log that was saved as JSON Lines, read from its file.  Floor 7: used by the commands that are given one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from helix.chunks import Chunk, Control, Resync, StepEnd, StreamEnd, TextDelta, parse_chunk
from helix.errors import HelixError, InvalidChunk, UsageError


class MalformedLog(HelixError):
    """A line of a log is no chunk."""


def log_name(path: str) -> str:
    """What a log is called in messages."""
    return "standard input" if path == "-" else path


@dataclass(frozen=True)
class KeptLog:
    """A log that a command was given.

    Attributes:
        name: what it is called in messages.
        chunks: all that are kept, in order.
        floor: deltas up to that number may be missing.
    """

    name: str
    chunks: list[Chunk]
    floor: int = 0


def read_log(path: str) -> KeptLog:
    """The log in a file; `-` is standard input. A `resync` says that it is one of a trimmed run.

    Raises:
        UsageError: the file cannot be read.
        MalformedLog: a line is no chunk; says which and why. Or the beginning of the log is not there.
    """
    name, chunks, floor = log_name(path), list[Chunk](), 0
    try:
        with open(sys.stdin.fileno() if path == "-" else path, "rb", closefd=path != "-") as lines:
            for chunk in _parsed(lines, name):
                if isinstance(chunk, Resync):
                    floor = max(floor, chunk.floor)
                elif not isinstance(chunk, StreamEnd):
                    chunks.append(chunk)
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None
    if floor and (not chunks or chunks[0].sequence > 1):
        raise MalformedLog(
            f"{name}: it begins with a resync, and what that stands for, up to chunk {floor}, is not in it; "
            "look at the run in its store, or at what `helix run --save` writes"
        )
    return KeptLog(name, chunks, floor)


def with_words(chunks: Iterable[Chunk], floor: int) -> Iterator[Chunk]:
    """A trimmed log to look at: the words of each step up to its floor are there whole, in one piece."""
    for chunk in chunks:
        words = chunk.message.text if isinstance(chunk, StepEnd) and chunk.message else ""
        if words and chunk.sequence <= floor:
            yield TextDelta(chunk.agent_id, chunk.agent_type, words, timestamp=chunk.timestamp, sequence=chunk.sequence)
        yield chunk


def _parsed(lines: BinaryIO, name: str) -> Iterator[Chunk | Control]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield parse_chunk(line)
        except InvalidChunk as error:
            raise MalformedLog(f"{name}, line {number}: {_cut_off(line) or error}") from None


def _cut_off(line: bytes) -> str:
    """Says so if a line, which is no chunk, looks like the end of a file that was not written to its end."""
    if line.endswith(b"\n") or not line.startswith(b"{"):
        return ""
    return (
        "the last line is cut off: the run was stopped while it was written, or it still goes on. "
        "Without that line, `helix check --prefix` can judge the log"
    )
