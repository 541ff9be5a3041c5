"""Whether the role of serving could pass row-level security by: asked by doctor, and at each start."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.operate.ports import RefusedError
from engine.operate.rows import CheckResult
from storage.postgres.blocking import connected
from storage.postgres.cell.citus import is_distributed
from storage.postgres.cell.dsn import owner_prefix
from storage.postgres.roles.access import access_finding, opening_findings, policy_finding
from storage.postgres.roles.connecting import connecting_role
from storage.postgres.roles.named_tenants import SETTING
from storage.postgres.roles.tables import BY_TENANTS, OWNED, PARTS, WHOLE, schema_of_tables, values

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so

_ROW: Final = "row security"
_NAME: Final = "SELECT c.relname::text FROM pg_class AS c WHERE"
_FIRST: Final = "ORDER BY 1 LIMIT 1"
#: Also a role that this one could become by SET ROLE counts.
_MEMBER: Final = "pg_has_role(current_user, {}, 'MEMBER')"


class _Way(NamedTuple):
    """A way past the policies.

    Attributes:
        query: Returns what opens it; nothing if it is closed.
        found: What is said of it. ``§`` stands for the role, ``{}`` for what the query returned.
        remedy: What to do; ``§`` stands for the role.
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
_NO_POLICIES: Final = (
    "Citus takes no policies: the conditions of the statements alone keep tenants of this cell apart",
    "give a tenant that needs more a cell of its own (docs/scaling.md, Citus)",
)
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
        f"{_NAME} {WHOLE} AND {_MEMBER.format('c.relowner')} {_FIRST}",
        "the role § owns the table {}: no policy holds an owner",
        _SPLIT,
        decisive=True,
    ),
    _Way(
        f"{_NAME} {WHOLE} AND EXISTS (SELECT FROM pg_policy AS p, unnest(p.polroles) AS r"
        " WHERE p.polrelid = c.oid AND p.polpermissive AND p.polname = 'jobs'"
        f" AND (r = 0 OR {_MEMBER.format('r')})) {_FIRST}",
        "the policy jobs of the table {} lets the role § read all tenants",
        "set postgres.jobs_dsn to a role of its own, of which § is no member, and run `run.py migrate`",
    ),
    _Way(
        f"{_NAME} {PARTS}"
        f" AND has_table_privilege(c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE') {_FIRST}",
        "the role § may use the partition {} by its name, past the policy of its table",
        _REVOKE,
    ),
    _Way(
        f"{_NAME} {PARTS} AND NOT (c.relrowsecurity AND {BY_TENANTS}) {_FIRST}",
        "the partition {} has no policy, or not the one that migrations make: a grant on it would open it",
        "run `run.py migrate`, or let a server run: it makes the policy in its job `cleanup`",
    ),
    _Way(
        f"{_NAME} {WHOLE} AND has_table_privilege(c.oid, 'TRUNCATE, TRIGGER') {_FIRST}",
        "the role § may truncate the table {}, or give it triggers",
        _REVOKE,
    ),
    _Way(
        f"{_NAME} {OWNED} AND c.relname = ANY(%(kept)s)"
        f" AND has_table_privilege(c.oid, 'DELETE, TRUNCATE, TRIGGER') {_FIRST}",
        "the role § may delete from the table {}, of which rows stay, or give it triggers",
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


def ways_past(connection: Connection, schema: str) -> Iterator[tuple[str, str]]:
    """Yield the ways in which the role of a connection could pass the policies: what opens it, the remedy.

    Args:
        connection: The database, as the role.
        schema: The schema of the tables, as their owner finds them. The role may find others by their names.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user::text")
        role = cursor.fetchall()[0][0]
        for way in _WAYS:
            cursor.execute(way.query, values(schema))
            opened = cursor.fetchall()
            if opened:
                yield way.found.format(opened[0][0]).replace("§", role), way.remedy.replace("§", role)
            if opened and way.decisive:
                return


def check_roles(serving_dsn: str, owner_dsn: str, jobs_dsn: str) -> list[tuple[str, str]]:
    """Return the ways in which the role of serving could pass the policies, each with its remedy.

    Raises:
        RefusedError: The DSNs do not lead to one database, or name several roles for a cell on Citus.
        StoreError: The database is away.
    """
    with connected(owner_dsn) as connection:
        place = _place(connection)
        schema = _schema(connection)
        with connection.cursor() as cursor:
            if is_distributed(cursor, schema):
                refuse_other_roles(owner_dsn, serving_dsn, jobs_dsn)
                return [_NO_POLICIES]
    with connected(serving_dsn) as connection:
        if _place(connection) != place:
            raise _elsewhere("owner_dsn")
        found = list(ways_past(connection, schema))
    if jobs_dsn not in {serving_dsn, owner_dsn}:
        with connected(jobs_dsn) as connection:
            if _place(connection) != place:
                raise _elsewhere("jobs_dsn")
    return found


def refuse_other_roles(owner_dsn: str, serving_dsn: str, jobs_dsn: str) -> None:
    """Refuse roles beside the owner for a cell on Citus: no policy would hold them, nor are they let in.

    Raises:
        RefusedError: A DSN is of another role.
        StoreError: The database is away.
    """
    if len({connecting_role(dsn) for dsn in (owner_dsn, serving_dsn, jobs_dsn)}) > 1:
        raise RefusedError(
            "Citus takes no policies of row-level security, so a cell on it has one role: leave"
            " postgres.owner_dsn and postgres.jobs_dsn empty, and have postgres.dsn name the owner of the"
            " tables (docs/scaling.md, Citus)"
        )


def _elsewhere(name: str) -> RefusedError:
    return RefusedError(f"postgres.{name} leads to another database than postgres.dsn: name the same in both")


def _schema(connection: Connection) -> str:
    with connection.cursor() as cursor:
        return schema_of_tables(cursor)


def _place(connection: Connection) -> tuple[str, str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT system_identifier::text, current_database()::text FROM pg_control_system()")
        system, database = cursor.fetchall()[0]
    return str(system), str(database)


def access_findings(serving_dsn: str, owner_dsn: str, jobs_dsn: str) -> Iterator[CheckResult]:
    """Check that the roles of serving and of jobs find and may use the tables, and that jobs sees all rows.

    The policies have to be as migrations make them, too.

    Raises:
        StoreError: The database is away.
    """
    with connected(owner_dsn) as connection:
        schema = _schema(connection)
        if serving_dsn != owner_dsn:
            yield from policy_finding(connection, schema)
    for setting, dsn in (("postgres.dsn", serving_dsn), ("postgres.jobs_dsn", jobs_dsn)):
        if dsn != owner_dsn:
            with connected(dsn) as connection:
                yield access_finding(connection, schema, setting, sees_all=dsn == jobs_dsn)
                if dsn == serving_dsn:
                    yield from opening_findings(connection, schema, owner_prefix(dsn))


def row_security_findings(ways: Collection[tuple[str, str]]) -> Iterator[CheckResult]:
    """Return what doctor says of the ways past the policies."""
    for found, remedy in ways:
        yield CheckResult("warning", _ROW, f"bypassed: {found}", remedy)
    if not ways:
        yield CheckResult("ok", _ROW, "a transaction sees only rows of tenants that it names")
