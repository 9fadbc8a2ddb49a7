"""Where runs are kept: `open_store("sqlite:///runs.db")`, or the class of one of the modules here.

Floor 2: implementations of `helix.store.Store`. Each module is imported when it is used, with its driver.
"""

from __future__ import annotations

from urllib.parse import unquote

from helix.errors import DefinitionError, did_you_mean
from helix.store import Store

SCHEMES = ("memory", "sqlite", "postgresql", "postgres", "redis", "rediss", "unix")
"""What a store's URL begins with."""


def open_store(url: str) -> Store:
    """The store that a URL names; to be entered with `async with`.

    `memory:`, `sqlite:///runs.db` (a relative path; four slashes for an absolute one), `postgresql://user@host/database`
    (all that libpq takes; `?schema=` for another schema than `helix`), `redis://host:6379/0` (`rediss://` with TLS,
    `unix:///path` for a socket; `?prefix=` for other keys than `helix`).

    Raises:
        DefinitionError: no store has such a URL; the message names the nearest.
        ImportError: its driver is not installed; the message has the command that installs it.
    """
    scheme, colon, rest = url.partition(":")
    if scheme == "memory":
        from helix.stores.memory import MemoryStore

        return MemoryStore()
    if scheme == "sqlite" and rest.startswith("///") and len(rest) > 3:
        from helix.stores.sqlite import SqliteStore

        return SqliteStore(unquote(rest[3:]))
    if scheme in ("postgresql", "postgres") and rest.startswith("//"):
        from helix.stores.postgres import PostgresStore

        return PostgresStore(url)
    if scheme in ("redis", "rediss", "unix") and rest.startswith("//"):
        from helix.stores.redis import RedisStore

        return RedisStore(url)
    raise DefinitionError(_unknown(scheme, colon))


def _unknown(scheme: str, colon: str) -> str:
    forms = "memory:, sqlite:///PATH, postgresql://USER@HOST/DATABASE or redis://HOST:PORT/0"
    if not colon:
        return f"a store's URL is wanted: {forms}"
    if scheme in SCHEMES:
        return f"not a whole {scheme} URL: {forms}"
    return f"no store has URLs that begin with {scheme + ':'!r}.{did_you_mean(scheme, SCHEMES)} There are {forms}"
