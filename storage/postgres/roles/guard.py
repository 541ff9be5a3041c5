"""Whether the role of serving could pass row-level security by: asked by doctor, and at each start."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.operate.ports import RefusedError
from engine.operate.rows import CheckResult
from storage.postgres.blocking import connected
from storage.postgres.roles.grants import REFERENCE
from storage.postgres.roles.hidden import MIGRATE, hidden
from storage.postgres.roles.named_tenants import SETTING

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so

_ROW: Final = "row security"
_ACCESS: Final = "access"
#: Growing tables of the server; a partition is not one, but for events_later, which is read by its name.
_GROWING: Final = (
    "FROM pg_class AS c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')"
    " AND c.relname <> 'tenants' AND EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid"
    " AND a.attname = 'tenant_id' AND NOT a.attisdropped)"
)
_WHOLE: Final = f"{_GROWING} AND (NOT c.relispartition OR c.relname = 'events_later')"
_PARTS: Final = f"{_GROWING} AND c.relispartition AND c.relname <> 'events_later'"
_LACKS: Final = (
    "SELECT current_user::text, (SELECT c.relname::text FROM pg_class AS c"
    " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition"
    " AND pg_table_is_visible(c.oid) AND n.nspname !~ '^pg_' AND (c.relname = ANY(%(reference)s) OR EXISTS"
    " (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id'"
    " AND NOT a.attisdropped)) AND NOT (has_table_privilege(c.oid, 'SELECT')"
    " AND has_table_privilege(c.oid, 'INSERT')) ORDER BY 1 LIMIT 1)"
)
_HIDDEN: Final = f"SELECT c.relname::text {_WHOLE} AND {hidden('c.oid')} ORDER BY 1 LIMIT 1"
#: Also a role that this one could become by SET ROLE counts.
_MEMBER: Final = "pg_has_role(current_user, {}, 'MEMBER')"


class _Way(NamedTuple):
    """A way past the policies.

    Attributes:
        query: Returns what opens it; nothing if it is closed.
        found: What is said of it. ``§`` stands for the role, ``{}`` for what the query returned.
        remedy: What to do.
        decisive: Whether the policies hold nothing any more, so that no other way matters.
    """

    query: str
    found: str
    remedy: str
    decisive: bool = False


_SPLIT: Final = (
    "set postgres.owner_dsn and postgres.jobs_dsn to roles of their own (docs/operations.md, Roles)"
)
_REVOKE: Final = "run `run.py migrate`, which takes it back, or take it back as the one who granted it"
_WAYS: Final = (
    _Way(
        "SELECT rolname::text FROM pg_roles WHERE (rolsuper OR rolbypassrls)"
        f" AND {_MEMBER.format('oid')} ORDER BY rolname <> current_user LIMIT 1",
        "the role § is, or can become, {}, whom no policy holds",
        _SPLIT,
        decisive=True,
    ),
    _Way(
        "SELECT rolname::text FROM pg_roles WHERE (rolcreaterole OR rolreplication)"
        f" AND {_MEMBER.format('oid')} ORDER BY rolname <> current_user LIMIT 1",
        "the role § is, or can become, {}, who may make roles or copy the cluster",
        "ALTER ROLE … NOCREATEROLE NOREPLICATION",
    ),
    _Way(
        f"SELECT c.relname::text {_WHOLE} AND {_MEMBER.format('c.relowner')} ORDER BY 1 LIMIT 1",
        "the role § owns the table {}: no policy holds an owner",
        _SPLIT,
        decisive=True,
    ),
    _Way(
        f"SELECT c.relname::text {_WHOLE} AND (NOT c.relrowsecurity OR NOT EXISTS (SELECT FROM pg_policy AS p"
        " WHERE p.polrelid = c.oid AND p.polname = 'tenants')) ORDER BY 1 LIMIT 1",
        "the table {} has no policy",
        "run `run.py migrate`",
    ),
    _Way(
        f"SELECT c.relname::text {_WHOLE} AND EXISTS (SELECT FROM pg_policy AS p, unnest(p.polroles) AS r"
        " WHERE p.polrelid = c.oid AND p.polpermissive AND p.polname <> 'tenants'"
        f" AND (r = 0 OR {_MEMBER.format('r')})) ORDER BY 1 LIMIT 1",
        "a policy of the table {} lets the role § read all tenants",
        "set postgres.jobs_dsn to a role of its own, which § is no member of, and run `run.py migrate`",
    ),
    _Way(
        f"SELECT c.relname::text {_PARTS}"
        " AND has_table_privilege(c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE') ORDER BY 1 LIMIT 1",
        "the role § may use the partition {} by its name, past the policy of its table",
        _REVOKE,
    ),
    _Way(
        f"SELECT c.relname::text {_WHOLE} AND has_table_privilege(c.oid, 'TRUNCATE, TRIGGER')"
        " ORDER BY 1 LIMIT 1",
        "the role § may truncate the table {}, or give it triggers",
        _REVOKE,
    ),
    _Way(
        "SELECT 'the schema ' || nspname FROM pg_namespace WHERE nspname = ANY(current_schemas(false))"
        " AND has_schema_privilege(oid, 'CREATE')"
        " UNION ALL SELECT 'the database' WHERE has_database_privilege(current_database(), 'CREATE')"
        " UNION ALL SELECT 'the database (temporary tables)'"
        " WHERE has_database_privilege(current_database(), 'TEMPORARY') LIMIT 1",
        "the role § may create in {}: what it makes there could stand before the server's own tables",
        "REVOKE ALL ON DATABASE … FROM PUBLIC; REVOKE CREATE ON SCHEMA … FROM PUBLIC",
    ),
    _Way(
        f"SELECT current_setting('{SETTING}', true) WHERE current_setting('{SETTING}', true) <> ''",
        f"{SETTING} is set for every session: transactions that name no tenant see those of {{}}",
        f"take it out of the DSN, the role and the database (ALTER ROLE … RESET {SETTING})",
    ),
)


def ways_past(connection: Connection) -> Iterator[tuple[str, str]]:
    """Yield the ways in which the role of a connection could pass the policies: what opens it, the remedy."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user::text, to_regclass('records') IS NOT NULL")
        role, has_tables = cursor.fetchall()[0]
        if not has_tables:
            return
        for way in _WAYS:
            cursor.execute(way.query)
            opened = cursor.fetchall()
            if opened:
                yield way.found.format(opened[0][0]).replace("§", role), way.remedy
            if opened and way.decisive:
                return


def check_roles(serving_dsn: str, owner_dsn: str, jobs_dsn: str) -> list[tuple[str, str]]:
    """Return the ways in which the role of serving could pass the policies, each with its remedy.

    Raises:
        RefusedError: The DSNs do not lead to one database.
        StoreError: The database is away.
    """
    with connected(serving_dsn) as connection:
        found = list(ways_past(connection))
        place = _place(connection)
    for name, dsn in (("owner_dsn", owner_dsn), ("jobs_dsn", jobs_dsn)):
        if dsn != serving_dsn:
            with connected(dsn) as connection:
                if _place(connection) != place:
                    raise RefusedError(
                        f"postgres.{name} leads to another database than postgres.dsn: name the same in both"
                    )
    return found


def _place(connection: Connection) -> tuple[str, str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT system_identifier::text, current_database()::text FROM pg_control_system()")
        system, database = cursor.fetchall()[0]
    return str(system), str(database)


def access_findings(serving_dsn: str, owner_dsn: str, jobs_dsn: str) -> Iterator[CheckResult]:
    """Check that the roles of serving and of jobs may use the tables, and that jobs sees all their rows.

    Raises:
        StoreError: The database is away.
    """
    for setting, dsn in (("postgres.dsn", serving_dsn), ("postgres.jobs_dsn", jobs_dsn)):
        if dsn != owner_dsn:
            with connected(dsn) as connection:
                yield _access_finding(connection, setting, sees_all=dsn == jobs_dsn)


def _access_finding(connection: Connection, setting: str, *, sees_all: bool) -> CheckResult:
    with connection.cursor() as cursor:
        cursor.execute(_LACKS, {"reference": list(REFERENCE)})
        role, lacks = cursor.fetchall()[0]
        cursor.execute(_HIDDEN)
        unseen = cursor.fetchall() if sees_all else []
    if lacks is not None:
        found = f"the role {role} of {setting} may not use the table {lacks}"
        return CheckResult("fault", _ACCESS, found, "run `run.py migrate`, which grants it")
    if unseen:
        found = f"the role {role} of {setting} may not see the rows of the table {unseen[0][0]}"
        return CheckResult("fault", _ACCESS, found, MIGRATE)
    return CheckResult("ok", _ACCESS, f"the role {role} of {setting} may use the tables")


def row_security_findings(ways: Collection[tuple[str, str]]) -> Iterator[CheckResult]:
    """Return what doctor says of the ways past the policies."""
    for found, remedy in ways:
        yield CheckResult("warning", _ROW, f"bypassed: {found}", remedy)
    if not ways:
        yield CheckResult("ok", _ROW, "a transaction sees only rows of tenants that it names")
