"""A switch that forbids requests to real models.  Floor 6."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from helix import model


@contextmanager
def no_real_models() -> Generator[None]:
    """While it is on, every adapter refuses to make a request, in all threads; scripted models work.

    Such as in `conftest.py`: `with no_real_models(): yield` in a session fixture.
    """
    before, model.real_requests_allowed = model.real_requests_allowed, False
    try:
        yield
    finally:
        model.real_requests_allowed = before
