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
from helix.models._lines import Answer, BrokenOff

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
        self._looked = time.monotonic() if first == self._between else 0.0  # then the timer is set as it should be
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
    feed, heard = decoder.feed, patience.heard

    def take(data: bytes) -> bool:
        heard()
        feed(data if inflate is None else inflate(data))
        return not decoder.done

    heard()
    try:
        await answer.pour(take)
        if inflate is not None and not decoder.done:
            inflate.end()
    except BrokenOff as error:
        raise decoder.dropped(str(error)) from error
    finally:
        await answer.drain()


async def words(answer: Answer) -> bytes:
    """All that an answer says, up to 1 MB of it and as far as it comes soon; nothing if it breaks off."""
    inflate = _inflater(answer)
    said, size = list[bytes](), 0
    with anyio.move_on_after(_WORDS_SECONDS) as scope:

        def take(data: bytes) -> bool:
            nonlocal size
            if inflate is not None:
                data = inflate(data)
            size += len(data)
            if size > _MAX_WORDS:
                scope.cancel()  # which, unlike wanting no more, ends all of the transport's generators
            else:
                said.append(data)
            return True

        try:
            await answer.pour(take)
            return b"".join(said)
        except Exception:
            pass
    return b""


class _Inflater:
    """Inflates gzip's or zlib's bytes, piece by piece. Raises BrokenOff."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(_ANY_HEADER)

    def __call__(self, data: bytes) -> bytes:
        try:
            return self._inflate.decompress(data)
        except zlib.error as error:
            raise BrokenOff(repr(error)) from error

    def end(self) -> None:
        """The body has ended."""
        if not self._inflate.eof:
            raise BrokenOff("the body ended inside its compression")


def _inflater(answer: Answer) -> _Inflater | None:
    return None if answer.encoding in ("", "identity") else _Inflater()
