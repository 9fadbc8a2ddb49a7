"""The statements of `helix.stores.postgres`; `{s}` is the schema. Floor 2."""

from __future__ import annotations

from typing import Final, LiteralString

HAS_VERSION: Final = (  # not to_regclass: it remembers, for the whole transaction, that there was none
    "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
    " WHERE n.nspname = %(schema)s AND c.relname = 'version')"
)
VERSION: Final = "SELECT version FROM {s}.version"
SET_VERSION: Final = (
    "INSERT INTO {s}.version VALUES (1, %(version)s) ON CONFLICT (id) DO UPDATE SET version = excluded.version"
)
LOCK: Final = "SELECT pg_advisory_xact_lock(1751477368, hashtext(%(schema)s))"

MIGRATIONS: list[list[LiteralString]] = [
    [
        "CREATE SCHEMA IF NOT EXISTS {s}",
        "CREATE TABLE {s}.version (id int PRIMARY KEY, version int NOT NULL)",
        "CREATE TABLE {s}.runs (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, run_id text NOT NULL,"
        " session_id text, agent_type text NOT NULL, metadata text NOT NULL, status text NOT NULL,"
        " last_sequence bigint NOT NULL, epoch int NOT NULL, claim text NOT NULL, owner text,"
        " lease_until timestamptz NOT NULL, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL,"
        " deadline bigint, floor bigint NOT NULL DEFAULT 0, posted bigint NOT NULL DEFAULT 0,"
        " CONSTRAINT one_run_an_id UNIQUE (run_id)) WITH (fillfactor = 50)",
        "CREATE UNIQUE INDEX one_open_run_a_session ON {s}.runs (session_id)"
        " WHERE status NOT IN ('completed', 'failed', 'cancelled')",
        "CREATE INDEX runs_of_session ON {s}.runs (session_id, number)",
        "CREATE INDEX open_runs ON {s}.runs (number) WHERE status NOT IN ('completed', 'failed', 'cancelled')",
        "CREATE TABLE {s}.chunks (run bigint NOT NULL REFERENCES {s}.runs ON DELETE CASCADE, sequence bigint NOT NULL,"
        " delta boolean NOT NULL, data bytea NOT NULL, PRIMARY KEY (run, sequence))",
        "CREATE INDEX structure ON {s}.chunks (run, sequence) WHERE NOT delta",
        "CREATE TABLE {s}.posts (run bigint NOT NULL REFERENCES {s}.runs ON DELETE CASCADE, position bigint NOT NULL,"
        " command_id text NOT NULL, data bytea, PRIMARY KEY (run, position), UNIQUE (run, command_id))",
    ],
    [
        "ALTER TABLE {s}.runs ADD COLUMN follows text",
        "UPDATE {s}.runs SET follows = before.run_id FROM (SELECT number, lag(run_id) OVER (PARTITION BY session_id"
        " ORDER BY number) AS run_id FROM {s}.runs WHERE session_id IS NOT NULL) AS before"
        " WHERE before.number = runs.number",
        "CREATE UNIQUE INDEX one_run_follows ON {s}.runs (session_id, coalesce(follows, ''))",
    ],
]
"""What makes schema n + 1 of schema n. `posts.data` is null once the command is acknowledged.

`one_run_follows`: of two that go on with one run at once, the later one may not see the other one even when that has
ended by then; the index does.
"""

_LINES = (
    "SELECT number, %(after)s + n, delta, data"
    " FROM run, unnest(%(deltas)b::boolean[], %(data)b::bytea[]) WITH ORDINALITY AS line (delta, data, n)"
)
_LEASE = "clock_timestamp() + make_interval(secs => %(lease)s::float8)"
_OPEN = "status NOT IN ('completed', 'failed', 'cancelled')"
_FREE = "(owner IS NULL OR lease_until <= clock_timestamp())"
_NEWEST = "(SELECT run_id FROM {s}.runs WHERE session_id = %(session_id)s ORDER BY number DESC LIMIT 1)"

CREATE: Final = (
    "WITH run AS (INSERT INTO {s}.runs (run_id, session_id, agent_type, metadata, status, last_sequence, epoch, claim,"
    " owner, lease_until, created_at, updated_at, follows) SELECT %(run_id)s::text, %(session_id)s::text,"
    " %(agent_type)s, %(metadata)s, 'running', cardinality(%(data)b::bytea[]), 1, %(claim)s, %(owner)s,"
    f" {_LEASE}, now(), now(), %(follows)s::text WHERE %(session_id)s::text IS NULL"
    f" OR {_NEWEST} IS NOT DISTINCT FROM %(follows)s::text RETURNING number),"
    " added AS (INSERT INTO {s}.chunks (run, sequence, delta, data) SELECT number, n, delta, data"
    " FROM run, unnest(%(deltas)b::boolean[], %(data)b::bytea[]) WITH ORDINALITY AS line (delta, data, n))"
    " SELECT number FROM run"
)
REFUSED: Final = (
    f"SELECT EXISTS (SELECT 1 FROM {{s}}.runs WHERE run_id = %(run_id)s), {_NEWEST},"
    f" NOT EXISTS (SELECT 1 FROM {{s}}.runs WHERE session_id = %(session_id)s AND {_OPEN})"
)
IS_MINE: Final = "SELECT epoch, last_sequence FROM {s}.runs WHERE run_id = %(run_id)s AND claim = %(claim)s"
CLAIM: Final = (
    f"UPDATE {{s}}.runs SET epoch = epoch + 1, owner = %(owner)s, lease_until = {_LEASE}, claim = %(claim)s"
    f" WHERE run_id = %(run_id)s AND {_OPEN} AND {_FREE} RETURNING epoch, last_sequence"
)
APPEND: Final = (
    "WITH run AS (UPDATE {s}.runs SET last_sequence = last_sequence + cardinality(%(data)b::bytea[]),"
    f" updated_at = clock_timestamp(), lease_until = {_LEASE}, status = coalesce(%(status)s::text, status),"
    " deadline = CASE WHEN %(status)s::text IS NULL THEN deadline ELSE %(deadline)s::bigint END,"
    " owner = CASE WHEN %(gives_up)s THEN NULL ELSE owner END"
    " WHERE run_id = %(run_id)s AND epoch = %(epoch)s AND owner IS NOT NULL AND last_sequence = %(after)s"
    " RETURNING number),"
    " added AS (INSERT INTO {s}.chunks (run, sequence, delta, data) " + _LINES + "),"
    " done AS (UPDATE {s}.posts SET data = NULL FROM run"
    " WHERE posts.run = run.number AND command_id = ANY(%(acknowledge)s::text[]))"
    " SELECT number FROM run"
)
_RECORD = (
    "run_id, agent_type, session_id, metadata, status, last_sequence, epoch, owner,"
    " CASE WHEN owner IS NULL THEN 0 ELSE greatest(0, extract(epoch FROM lease_until - clock_timestamp())) END::float8,"
    " (extract(epoch FROM created_at) * 1000)::bigint, (extract(epoch FROM updated_at) * 1000)::bigint,"
    " deadline, floor"
)
GET: Final = f"SELECT {_RECORD} FROM {{s}}.runs WHERE run_id = %(run_id)s"
RUNS: Final = (
    f"SELECT {_RECORD} FROM {{s}}.runs WHERE (%(session_id)s::text IS NULL OR session_id = %(session_id)s)"
    " AND (%(before)s::text IS NULL OR number < (SELECT number FROM {s}.runs WHERE run_id = %(before)s))"
    " AND (%(statuses)s::text[] IS NULL OR status = ANY(%(statuses)s)) ORDER BY number DESC LIMIT %(limit)s"
)
_READ = (
    "SELECT sequence, data FROM {s}.chunks WHERE run = (SELECT number FROM {s}.runs WHERE run_id = %(run_id)s)"
    " AND sequence > %(after)s"
)
READ: Final = _READ + " ORDER BY sequence LIMIT %(limit)s"
READ_STRUCTURE: Final = _READ + " AND NOT delta ORDER BY sequence LIMIT %(limit)s"
POSITIONS: Final = "SELECT run_id, last_sequence, posted FROM {s}.runs WHERE run_id = ANY(%(run_ids)s::text[])"
POST: Final = (
    "WITH run AS (UPDATE {s}.runs SET posted = posted + 1 WHERE run_id = %(run_id)s"
    f" AND {_OPEN} AND NOT EXISTS (SELECT 1 FROM {{s}}.posts WHERE run = number AND command_id = %(command_id)s)"
    " RETURNING number, posted)"
    " INSERT INTO {s}.posts (run, position, command_id, data) SELECT number, posted, %(command_id)s, %(data)b FROM run"
    " RETURNING position"
)
IS_POSTED: Final = (
    "SELECT 1 FROM {s}.posts WHERE run = (SELECT number FROM {s}.runs WHERE run_id = %(run_id)s)"
    " AND command_id = %(command_id)s"
)
TAKE: Final = (
    "SELECT position, command_id, data FROM {s}.posts"
    " WHERE run = (SELECT number FROM {s}.runs WHERE run_id = %(run_id)s) AND position > %(after)s"
    " AND data IS NOT NULL ORDER BY position"
)
CLAIMABLE: Final = (
    f"SELECT run_id FROM {{s}}.runs WHERE {_OPEN} AND {_FREE} AND (status = 'running'"
    " OR deadline <= extract(epoch FROM clock_timestamp()) * 1000"
    " OR EXISTS (SELECT 1 FROM {s}.posts WHERE run = number AND data IS NOT NULL)) ORDER BY number LIMIT %(limit)s"
)
SESSIONS: Final = (
    "SELECT s.session_id, s.runs, last.run_id, last.status, (extract(epoch FROM s.created_at) * 1000)::bigint,"
    " (extract(epoch FROM s.updated_at) * 1000)::bigint FROM (SELECT session_id, count(*) AS runs,"
    " max(number) AS newest, min(created_at) AS created_at, max(updated_at) AS updated_at FROM {s}.runs"
    " WHERE session_id IS NOT NULL GROUP BY session_id) AS s JOIN {s}.runs AS last ON last.number = s.newest"
    " WHERE %(before)s::text IS NULL OR s.newest < (SELECT max(number) FROM {s}.runs WHERE session_id = %(before)s)"
    " ORDER BY s.newest DESC LIMIT %(limit)s"
)
DELETE: Final = f"DELETE FROM {{s}}.runs WHERE run_id = %(run_id)s AND NOT ({_OPEN} AND NOT {_FREE}) RETURNING run_id"
DELETE_SESSION: Final = (
    "WITH all_of AS (SELECT number, run_id, " + f"{_OPEN} AND NOT {_FREE}" + " AS live FROM {s}.runs"
    " WHERE session_id = %(session_id)s FOR UPDATE),"
    " gone AS (DELETE FROM {s}.runs USING all_of WHERE runs.number = all_of.number"
    " AND NOT EXISTS (SELECT 1 FROM all_of WHERE live) RETURNING runs.run_id)"
    " SELECT (SELECT array_agg(run_id) FROM gone), (SELECT array_agg(run_id) FROM all_of WHERE live)"
)
TRIM: Final = (
    "WITH run AS (UPDATE {s}.runs SET floor = greatest(floor, least(%(up_to)s::bigint, last_sequence))"
    " WHERE run_id = %(run_id)s RETURNING number, last_sequence),"
    " gone AS (DELETE FROM {s}.chunks USING run WHERE chunks.run = run.number"
    " AND sequence <= least(%(up_to)s::bigint, last_sequence) AND delta RETURNING 1)"
    " SELECT (SELECT count(*) FROM run), (SELECT count(*) FROM gone)"
)
