"""The reads of one reply, and how long they may take.  Floor 3: above `_lines`, below the adapters."""

from __future__ import annotations

import math
import time
import zlib
from types import TracebackType
from typing import Final, Protocol, Self

import anyio

from helix.errors import ModelError
from helix.model import ModelSettings
from helix.models._lines import Answer

FIRST_BYTE: Final = 600.0
"""Seconds until a reply must have begun, unless the settings say otherwise; as the openai client has it."""
BETWEEN_BYTES: Final = 600.0
"""Seconds after which a silent reply is given up, unless the settings say otherwise."""
_WORDS_SECONDS = 2.0
_MAX_WORDS = 1 << 20
_ANY_HEADER = 32 + zlib.MAX_WBITS  # gzip's or zlib's


class Decoder(Protocol):
    """What turns the bytes of a reply into pushes.

    Attributes:
        done: whether the provider has said that the reply is complete.
    """

    done: bool

    def feed(self, data: bytes) -> None:
        """Pushes all that `data` completes. Raises ModelError."""
        ...

    def dropped(self, detail: str) -> ModelError:
        """The error for a reply that broke off."""
        ...


class Patience:
    """How long one reply may take: in all, until its head is there, and from one read to the next. One timer for all.

    Used as a context manager around the exchange; `ran_out` tells afterwards whether it was cut, and why.
    """

    __slots__ = ("_between", "_end", "_looked", "_scope", "_total", "ran_out")

    def __init__(self, settings: ModelSettings) -> None:
        self._total = settings.timeout
        self._between = BETWEEN_BYTES if settings.between_bytes is None else settings.between_bytes
        now = anyio.current_time()
        self._end = math.inf if self._total is None else now + self._total
        first = FIRST_BYTE if settings.first_byte is None else settings.first_byte
        self._scope = anyio.CancelScope(deadline=min(self._end, now + first))
        self._looked = 0.0
        self.ran_out = ""

    def __enter__(self) -> Self:
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        cut = self._scope.__exit__(kind, error, traceback)
        if self._scope.cancelled_caught:
            self.ran_out = "The model was silent for too long."
            if self._total is not None and anyio.current_time() >= self._end:
                self.ran_out = f"The model gave no complete reply within {self._total:g} seconds."
        return bool(cut)

    def heard(self) -> None:
        """Something has come; the time for the next read begins."""
        now = time.monotonic()
        if now - self._looked > self._between / 8:  # so seldom that the timer costs nothing
            self._looked = now
            self._scope.deadline = min(self._end, anyio.current_time() + self._between)


async def read(answer: Answer, decoder: Decoder, patience: Patience) -> None:
    """Feeds every network read to the decoder, until the reply is complete or the body ends.

    Raises:
        ModelError: the decoder's, or the connection broke.
    """
    inflate = _inflater(answer)
    read, feed, heard = answer.read, decoder.feed, patience.heard
    heard()
    try:
        while not decoder.done:
            try:
                data = await read() or await read()
                ended = not data
                if inflate is not None:
                    data = inflate.decompress(data)
            except Exception as error:  # whatever the transport raises: the reply is not complete
                raise decoder.dropped(repr(error)) from error
            if ended:
                if inflate is not None and not inflate.eof:
                    raise decoder.dropped("the body ended inside its compression")
                return
            heard()
            feed(data)
    finally:
        await answer.drain()


async def words(answer: Answer) -> bytes:
    """All that an answer says, up to 1 MB of it and as far as it comes soon; nothing if it breaks off."""
    inflate = _inflater(answer)
    said, size = list[bytes](), 0
    with anyio.move_on_after(_WORDS_SECONDS) as scope:
        try:
            while data := await answer.read() or await answer.read():
                if inflate is not None:
                    data = inflate.decompress(data)
                size += len(data)
                if size > _MAX_WORDS:
                    scope.cancel()  # which, unlike leaving the loop, ends all of the transport's generators
                else:
                    said.append(data)
            return b"".join(said)
        except Exception:
            pass
    return b""


class _Inflater(Protocol):
    """`zlib.decompressobj()`, whose class has no public name."""

    @property
    def eof(self) -> bool: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _inflater(answer: Answer) -> _Inflater | None:
    return None if answer.encoding in ("", "identity") else zlib.decompressobj(_ANY_HEADER)
