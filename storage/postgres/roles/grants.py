"""What the roles of serving and of jobs may do: the owner of the tables grants it whenever it migrates.

Three roles, whose names are the operator's: those of the DSNs. A DSN that is not set is that of serving, and
the owner needs no grant. Each step asks the catalog what is missing, so that nothing is done twice: a grant
has every connection plan its statements again.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from psycopg2 import sql
from psycopg2.extensions import parse_dsn

from engine.operate.ports import RefusedError
from storage.postgres.blocking import connected, schema_change

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

#: Tables that do not grow with what devices send. They have no policy: a tenant is found by its name, and all
#: processes share the others. Tables with rows of tenants are found by their column ``tenant_id``.
REFERENCE: Final = (
    "tenants",
    "removed_tenants",
    "cluster_state",
    "job_runs",
    "server_processes",
    "health_report",
    "alerts",
    "audit_log",
    "master_keys",
    "sealed_domains",
)
#: The tenants that a transaction names, as in storage/migrations/0041.row_security.sql.
_NAMED: Final = (
    "tenant_id IN (SELECT unnest(string_to_array(current_setting('tidemark.tenants', true), ',')::int[]))"
)
_READ: Final = frozenset({"SELECT"})
_WRITE: Final = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})
_CHANGE: Final = frozenset({"SELECT", "UPDATE", "DELETE"})
#: Where a role may do less than write. The audit log is appended to; the job of retention deletes from it.
#: ``events_later`` is used by its name while it is detached (storage/postgres/partitions/maintenance.py).
_OTHERWISE: Final = {
    "audit_log": (frozenset({"SELECT", "INSERT"}), frozenset({"SELECT", "INSERT", "DELETE"})),
    "events_later": (_CHANGE, _CHANGE),
    "_yoyo_migration": (_READ, _READ),
}
_LOCK_TIMEOUT_MS: Final = 5000

#: Every table of the server with its policies, in an order that is the same for all: the counters first, as
#: batches lock them.
_TABLES: Final = (
    "SELECT c.relname::text, c.relispartition, c.relrowsecurity,"
    " EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id'"
    " AND NOT a.attisdropped) AND c.relname <> ALL(%(reference)s),"
    " ARRAY(SELECT polname::text FROM pg_policy WHERE polrelid = c.oid),"
    " ARRAY(SELECT pg_get_userbyid(role)::text FROM pg_policy, unnest(polroles) AS role"
    " WHERE polrelid = c.oid AND polname = 'jobs' AND role <> 0),"
    " ARRAY(SELECT pg_get_userbyid(g.grantee)::text || ' ' || g.privilege_type"
    " FROM aclexplode(c.relacl) AS g WHERE g.grantee <> 0)"
    " FROM pg_class AS c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')"
    " AND (c.relname = ANY(%(reference)s) OR c.relname = '_yoyo_migration'"
    " OR EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id'"
    " AND NOT a.attisdropped)) ORDER BY c.relname <> 'tenant_counters', c.relname"
)
_SELF: Final = (
    "SELECT current_user::text, current_database()::text, current_schema()::text,"
    " to_regclass('records') IS NOT NULL"
)
_REACHES: Final = (
    "SELECT r.rolname::text, has_database_privilege(r.oid, current_database(), 'CONNECT'),"
    " has_schema_privilege(r.oid, current_schema(), 'USAGE') FROM pg_roles AS r WHERE r.rolname = ANY(%s)"
)
_MAKE: Final = (
    "DO $$ BEGIN CREATE ROLE {role} LOGIN PASSWORD {password};"
    " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
)
#: By it a role sees where the files of PostgreSQL are, of which disk the server watches the free space.
_SEES_SETTINGS: Final = "pg_read_all_settings"


class _Table(NamedTuple):
    """A table as the catalog has it: its policies, the roles of the policy of jobs, and what is granted."""

    name: str
    is_partition: bool
    secured: bool
    growing: bool
    policies: list[str]
    jobs: list[str]
    granted: list[str]


def role_of(dsn: str) -> str:
    """Return the role that a DSN connects as."""
    named = parse_dsn(dsn).get("user") or os.environ.get("PGUSER")
    return str(named or getpass.getuser())


def secure_growing_tables(cursor: Cursor) -> None:
    """Give every growing table the policy, those of later migrations too."""
    for table in _tables(cursor):
        if not table.growing or (table.is_partition and table.name != "events_later"):
            continue
        name = sql.Identifier(table.name)
        if not table.secured:
            cursor.execute(sql.SQL("ALTER TABLE {} ENABLE ROW LEVEL SECURITY").format(name))
        if "tenants" not in table.policies:
            policy = sql.SQL("CREATE POLICY tenants ON {} USING ({named}) WITH CHECK ({named})")
            cursor.execute(policy.format(name, named=sql.SQL(_NAMED)))


def grant_roles(
    owner_dsn: str, serving_dsn: str, jobs_dsn: str, *, make: bool = False, in_use: bool = False
) -> int:
    """Grant to the roles of serving and of jobs what they need, and take back the rest of it.

    Args:
        owner_dsn: The DSN of the owner.
        serving_dsn: The DSN of serving.
        jobs_dsn: The DSN of jobs. Its role reads the rows of all tenants.
        make: Whether roles are made that are missing, and rights of everybody taken back: on a PostgreSQL
            of the server's own.
        in_use: Whether server processes run, perhaps as another role of jobs: it keeps its policy then.

    Returns:
        The number of statements that it took; 0 if all was as it should be.

    Raises:
        RefusedError: A role does not exist.
        StoreError: The database is away, or refused a statement.
    """
    serving, jobs = role_of(serving_dsn), role_of(jobs_dsn)
    with connected(owner_dsn) as connection, schema_change(connection, _LOCK_TIMEOUT_MS) as cursor:
        cursor.execute(_SELF)
        owner, database, schema, has_tables = cursor.fetchall()[0]
        others = {serving, jobs} - {owner}
        made = _make(cursor, others, (serving_dsn, jobs_dsn), database, schema) if make else 0
        if not has_tables:
            return made
        _refuse_missing(cursor, others)
        tables = _tables(cursor)
        statements = [
            *_reaching(cursor, others, database, schema),
            *_rights(tables, serving, jobs, others),
            *_policies(tables, None if jobs == owner else jobs, in_use=in_use),
        ]
        for statement in statements:
            cursor.execute(statement)
    return made + len(statements)


def _tables(cursor: Cursor) -> list[_Table]:
    cursor.execute(_TABLES, {"reference": list(REFERENCE)})
    return [_Table(*row) for row in cursor.fetchall()]


def _make(cursor: Cursor, roles: Collection[str], dsns: Collection[str], database: str, schema: str) -> int:
    missing = _missing(cursor, roles)
    passwords = {role_of(dsn): parse_dsn(dsn).get("password") for dsn in dsns}
    for role in missing:
        cursor.execute(
            sql.SQL(_MAKE).format(role=sql.Identifier(role), password=sql.Literal(passwords[role]))
        )
    cursor.execute(
        "SELECT rolname::text FROM pg_roles WHERE rolname = ANY(%s) AND NOT pg_has_role(oid, %s, 'USAGE')",
        (list(roles), _SEES_SETTINGS),
    )
    for (role,) in cursor.fetchall():
        cursor.execute(sql.SQL("GRANT {} TO {}").format(*map(sql.Identifier, (_SEES_SETTINGS, role))))
    cursor.execute(
        "SELECT EXISTS (SELECT FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) AS g"
        " WHERE g.grantee = 0), EXISTS (SELECT FROM pg_namespace AS n, aclexplode(n.nspacl) AS g"
        " WHERE n.nspname = %s AND g.grantee = 0 AND g.privilege_type = 'CREATE')"
        " FROM pg_database WHERE datname = %s",
        (schema, database),
    )
    for open_to_all, what in zip(
        cursor.fetchall()[0], (f'ALL ON DATABASE "{database}"', f'CREATE ON SCHEMA "{schema}"'), strict=True
    ):
        if open_to_all:
            cursor.execute(f"REVOKE {what} FROM PUBLIC")
    return len(missing)


def _missing(cursor: Cursor, roles: Collection[str]) -> list[str]:
    """Return the roles that do not exist, sorted."""
    cursor.execute("SELECT rolname::text FROM pg_roles WHERE rolname = ANY(%s)", (list(roles),))
    return sorted(set(roles) - {name for (name,) in cursor.fetchall()})


def _refuse_missing(cursor: Cursor, roles: Collection[str]) -> None:
    missing = _missing(cursor, roles)
    if missing:
        raise RefusedError(
            f"PostgreSQL has no role {missing[0]}, which postgres.dsn or postgres.jobs_dsn names: as a"
            f" superuser: CREATE ROLE {missing[0]} LOGIN PASSWORD '…'"
        )


def _reaching(cursor: Cursor, roles: Collection[str], database: str, schema: str) -> Iterator[sql.Composable]:
    """Yield the grants by which roles come to the database and its schema."""
    cursor.execute(_REACHES, (list(roles),))
    for role, connects, uses in cursor.fetchall():
        names = {
            "role": sql.Identifier(role),
            "database": sql.Identifier(database),
            "schema": sql.Identifier(schema),
        }
        if not connects:
            yield sql.SQL("GRANT CONNECT ON DATABASE {database} TO {role}").format(**names)
        if not uses:
            yield sql.SQL("GRANT USAGE ON SCHEMA {schema} TO {role}").format(**names)


def _rights(
    tables: Collection[_Table], serving: str, jobs: str, roles: Collection[str]
) -> Iterator[sql.Composable]:
    """Yield the grants on tables that are missing, and take back those that are too many."""
    for table in tables:
        for role in sorted(roles):
            granted = {
                one.removeprefix(f"{role} ") for one in table.granted if one.rpartition(" ")[0] == role
            }
            wanted = frozenset[str]().union(
                _wanted(table, is_jobs=False) if role == serving else (),
                _wanted(table, is_jobs=True) if role == jobs else (),
            )
            names = {"table": sql.Identifier(table.name), "role": sql.Identifier(role)}
            for verb, rights in (
                ("GRANT {rights} ON {table} TO {role}", wanted - granted),
                ("REVOKE {rights} ON {table} FROM {role}", granted - wanted),
            ):
                if rights:
                    listed = sql.SQL(", ".join(sorted(rights)))
                    yield sql.SQL(verb).format(rights=listed, **names)


def _wanted(table: _Table, *, is_jobs: bool) -> frozenset[str]:
    if table.name in _OTHERWISE:
        return _OTHERWISE[table.name][is_jobs]
    return frozenset() if table.is_partition else _WRITE


def _policies(tables: Collection[_Table], jobs: str | None, *, in_use: bool) -> Iterator[sql.Composable]:
    """Yield what gives the policy of jobs to a role or to none, and unless in use takes it from others.

    Without it a running server would find all tables empty, and accept revoked devices.
    """
    for table in tables:
        name = sql.Identifier(table.name)
        if "jobs" in table.policies:
            roles = {*(table.jobs if in_use else ()), *(() if jobs is None else (jobs,))}
            if not roles:
                yield sql.SQL("DROP POLICY jobs ON {}").format(name)
            elif roles != set(table.jobs):
                listed = sql.SQL(", ").join(map(sql.Identifier, sorted(roles)))
                yield sql.SQL("ALTER POLICY jobs ON {} TO {}").format(name, listed)
        elif jobs is not None and "tenants" in table.policies:
            policy = sql.SQL("CREATE POLICY jobs ON {} TO {} USING (true) WITH CHECK (true)")
            yield policy.format(name, sql.Identifier(jobs))
