"""A standard stream whose reader may go away.  Floor 7: the commands write through it."""

from __future__ import annotations

import os
from typing import TextIO


class Console:
    """Writes to a standard stream and flushes; once the reader has closed it, writes nothing more and says so.

    Attributes:
        closed: whether the reader has gone.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.closed = stream is None  # begun with `>&-`

    @property
    def is_terminal(self) -> bool:
        """Whether a person is looking."""
        return self._stream is not None and self._stream.isatty()

    def write(self, data: bytes) -> None:
        """Writes the bytes as they are."""
        if self.closed or self._stream is None:
            return
        try:
            self._stream.buffer.write(data)
            self._stream.buffer.flush()
        except BrokenPipeError:
            self.closed = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # else the interpreter's exit complains

    def line(self, text: str) -> None:
        """Writes a line of text, as UTF-8."""
        self.write(text.encode(errors="replace") + b"\n")
