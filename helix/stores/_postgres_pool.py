"""Connections to a PostgreSQL server: made when they are needed, kept, replaced; errors in helix's words.

Floor 2: above the driver, psycopg; `helix.stores.postgres` stands on it. Every statement is a transaction of its own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, LiteralString, TypeAlias

import anyio

from helix.errors import DefinitionError, StoreError
from helix.stores._lost import Lost, option, shown, whole, without_secrets

try:
    import psycopg
    from psycopg import errors, sql
    from psycopg.conninfo import conninfo_to_dict
except ImportError as error:
    raise ImportError("the PostgreSQL store needs a driver: pip install 'helix-agents[postgres]'") from error

Connection: TypeAlias = psycopg.AsyncConnection[Any]
UniqueViolation = errors.UniqueViolation

_DEFAULTS: dict[str, Any] = {
    "application_name": "helix",
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""A server that is gone without a word is found out in about 15 seconds; the URL may say otherwise."""
_SESSION = (
    "SELECT set_config('idle_in_transaction_session_timeout', '30s', false), set_config('statement_timeout', '30s',"
    " false), set_config('default_transaction_isolation', 'read committed', false)"
)
"""No writer holds a lock for longer, whatever has become of it; and its fence is made for this isolation."""

_MEANINGS: list[tuple[type[psycopg.Error], str]] = [
    (errors.DiskFull, "the server's disk is full. Nothing of this was written. Make room and try again"),
    (errors.InsufficientPrivilege, "its user may not do this; grant it the rights on the schema"),
    (errors.InvalidSchemaName, "the schema is gone; enter the store again to make it"),
    (errors.UndefinedTable, "its tables are gone; enter the store again to make them"),
    (errors.ReadOnlySqlTransaction, "the server is read-only: a standby? Give the URL of the primary"),
    (errors.QueryCanceled, "it took longer than 30 s. Nothing of this was written"),
]
_AGAIN = (errors.SerializationFailure, errors.DeadlockDetected)


class PostgresPool:
    """A few connections to one database.

    Args:
        url: what libpq takes, and `schema=`.
        size: how many connections at most.
    """

    def __init__(self, url: str, size: int) -> None:
        self.url = shown(url)
        self._dsn, self.schema = option(url, "schema", "helix")
        if not self.schema.isidentifier() or not self.schema.isascii() or not self.schema.islower():
            raise DefinitionError(f"the schema {self.schema!r} is not usable: small letters, digits and '_' only")
        self._idle: list[Connection] = []
        self._slots = anyio.Semaphore(size)
        self._keeps = True
        self._texts: dict[str, bytes] = {}

    def open(self) -> None:
        """From now on connections are kept."""
        self._keeps = True

    def text(self, query: LiteralString) -> bytes:
        """The statement, with the schema's name for `{s}`."""
        found = self._texts.get(query)
        if found is None:
            found = self._texts[query] = sql.SQL(query).format(s=sql.Identifier(self.schema)).as_bytes(None)
        return found

    async def execute(self, query: LiteralString, values: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """The rows of one statement.

        Raises:
            Lost: the connection went away, or could not be made.
            StoreError: the server refuses.
            UniqueViolation: as the database says it.
        """
        async with self.connection() as connection:
            # Cancelled, the driver asks the server to stop, is cancelled once more while it waits for that, and warns.
            return await whole(_rows(connection, self.text(query), values))

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """A connection for a while; not kept when it is left in the middle of something."""
        async with self._slots:
            connection = self._idle.pop() if self._idle else await self.connect()
            try:
                yield connection
            except psycopg.Error as error:
                await self._give_back(connection)
                if isinstance(error, UniqueViolation):
                    raise
                raise self._meaning(error, connection.closed) from self._cause(error)
            except BaseException:
                await connection.close()
                raise
            await self._give_back(connection)

    async def connect(self) -> Connection:
        """A new connection, which belongs to the caller.

        Raises:
            Lost: it could not be made.
        """
        try:
            given: dict[str, Any] = {**_DEFAULTS, **conninfo_to_dict(self._dsn)}
            return await _connected(given)
        except psycopg.ProgrammingError as error:
            raise DefinitionError(f"not a URL for PostgreSQL: {without_secrets(str(error), self._dsn)}") from None
        except psycopg.Error as error:
            raise self._meaning(error, closed=True) from self._cause(error)

    async def close(self) -> None:
        """Closes all connections; those in use, when they are given back."""
        self._keeps = False
        await self._drop_idle()

    async def _drop_idle(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    async def _give_back(self, connection: Connection) -> None:
        if connection.closed:
            await self._drop_idle()  # the server is gone, and with it the others
        elif not self._keeps or connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            await connection.close()
        else:
            self._idle.append(connection)

    def _meaning(self, error: psycopg.Error, closed: bool) -> StoreError:
        said = without_secrets(" ".join(str(error).split()), self._dsn)
        meaning = next((text for kind, text in _MEANINGS if isinstance(error, kind)), None)
        if meaning is None and (closed or isinstance(error, _AGAIN)):
            return Lost(f"the store {self.url} cannot be reached ({said}); see that it runs, and that the URL is right")
        return StoreError(f"the store {self.url}: {meaning or 'the server refuses'} ({said})")

    def _cause(self, error: psycopg.Error) -> psycopg.Error | None:
        """The error to show beneath; none if it tells a password."""
        return error if without_secrets(str(error), self._dsn) == str(error) else None


async def _rows(connection: Connection, text: bytes, values: Mapping[str, Any] | None) -> list[tuple[Any, ...]]:
    cursor = await connection.execute(text, values, binary=True)
    return await cursor.fetchall() if cursor.description else []


async def _connected(given: Mapping[str, Any]) -> Connection:
    connection = await psycopg.AsyncConnection.connect(**given, autocommit=True, prepare_threshold=2)
    try:
        await whole(connection.execute(_SESSION))
    except BaseException:
        await connection.close()
        raise
    return connection
