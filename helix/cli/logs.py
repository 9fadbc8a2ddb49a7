"""A log that was saved as JSON Lines, read from its file.  Floor 7: used by the commands that are given one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from helix.chunks import Chunk, Control, Resync, StepEnd, StreamEnd, TextDelta, parse_chunk
from helix.errors import HelixError, InvalidChunk, UsageError


class MalformedLog(HelixError):
    """A line of a log is no chunk."""


def log_name(path: str) -> str:
    """What a log is called in messages."""
    return "standard input" if path == "-" else path


def read_log(path: str) -> list[Chunk]:
    """The chunks of a log, in order; `-` is standard input. What a reader adds at the end of a stream is left out.

    Raises:
        UsageError: the file cannot be read.
        MalformedLog: a line is no chunk; says which and why.
    """
    try:
        with open(sys.stdin.fileno() if path == "-" else path, "rb", closefd=path != "-") as lines:
            return [chunk for chunk in _parsed(lines, log_name(path)) if not isinstance(chunk, StreamEnd | Resync)]
    except OSError as error:
        raise UsageError(f"{log_name(path)}: {error.strerror}") from None


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
