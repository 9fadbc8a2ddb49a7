"""The database servers that tests need: at their usual local ports, or where the environment says.

On a user's machine tests skip where one is missing; in CI they fail.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

POSTGRES = os.environ.get("HELIX_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test")
REDIS = os.environ.get("HELIX_TEST_REDIS", "redis://127.0.0.1:6379/0")


PLACES = {"postgresql": 5432, "redis": 6379}
"""The usual ports."""


def address(url: str) -> tuple[str, int]:
    """Where the server is."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or PLACES[parts.scheme]


def _need(name: str, variable: str, url: str) -> None:
    try:
        socket.create_connection(address(url), timeout=5).close()
    except OSError as error:
        text = f"{name} does not answer ({error}); start one there or set {variable}=URL to run these tests"
        if "CI" in os.environ:
            pytest.fail(text)
        pytest.skip(text)


@contextmanager
def postgres() -> Generator[str]:
    """The URL of a store in a schema that nobody has, and that is dropped afterwards."""
    _need("PostgreSQL", "HELIX_TEST_POSTGRES", POSTGRES)
    schema = f"helix_test_{secrets.token_hex(4)}"
    try:
        yield f"{POSTGRES}?schema={schema}"
    finally:
        sql(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@contextmanager
def store(kind: str, directory: Path, backend: Any) -> Generator[str]:
    """The URL of a new store: `sqlite`, `postgresql` or `redis`; skips where its driver does not know the backend."""
    if kind == "sqlite":
        yield f"sqlite:///{directory}/runs.db"
        return
    if "trio" in str(backend):
        pytest.skip("PostgreSQL and Redis are for asyncio")
    with postgres() if kind == "postgresql" else redis_server() as url:
        yield url


def sql(statement: Any) -> list[tuple[Any, ...]]:
    """The rows of a statement, beside any store."""
    with psycopg.connect(POSTGRES, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def redis_server() -> Generator[str]:
    """The URL of a store with a prefix that nobody has, and whose keys are deleted afterwards."""
    _need("Redis", "HELIX_TEST_REDIS", REDIS)
    prefix = f"helix_test_{secrets.token_hex(4)}"
    try:
        yield f"{REDIS}?prefix={prefix}"
    finally:
        with plain_redis() as client:
            for key in client.scan_iter(match=f"{{{prefix}}}*", count=1000):
                client.delete(key)


@contextmanager
def plain_redis() -> Generator[Any]:
    """A client beside any store."""
    make: Any = redis.Redis
    client: Any = make.from_url(REDIS)
    with client:
        yield client
