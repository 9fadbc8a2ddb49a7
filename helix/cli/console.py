"""A standard stream whose reader may go away, and what may be written to a terminal.

Floor 7: the commands write through it.
"""

from __future__ import annotations

import os
import re
from typing import TextIO

from helix.outline import plain

_ESCAPES = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]"  # colours, cursor movements
    "|\x9b[0-?]*[ -/]*[@-~]"
    "|\x1b[\\]PX^_][^\x07\x1b]{0,4096}(?:\x07|\x1b\\\\)"  # titles, links, device strings
    "|\x1b[ -/]*[0-~]"
)


def printable(text: str) -> str:
    """The text without what would steer a terminal; line ends stay, tabs become spaces."""
    if text.isprintable():
        return text
    text = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", " ").replace("\t", "    ")
    return "\n".join(plain(line) for line in text.split("\n"))


class Console:
    """Writes to a standard stream and flushes; once the reader has closed it, writes nothing more and says so.

    Attributes:
        closed: whether the reader has gone.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.closed = stream is None  # begun with `>&-`

    @property
    def is_terminal(self) -> bool:
        """Whether a person is looking."""
        return self.stream is not None and self.stream.isatty()

    def write(self, data: bytes) -> None:
        """Writes the bytes as they are."""
        if self.closed or self.stream is None:
            return
        try:
            self.stream.buffer.write(data)
            self.stream.buffer.flush()
        except BrokenPipeError:
            self.closed = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())  # else the interpreter's exit complains

    def text(self, text: str) -> None:
        """Writes text, as UTF-8: at a terminal without what would steer it, elsewhere as it is."""
        self.write((printable(text) if self.is_terminal else text).encode(errors="replace"))

    def line(self, text: str) -> None:
        """Writes a line of text."""
        self.text(f"{text}\n")
