"""What the roles of serving and of jobs may do: the owner of the tables grants it whenever it migrates.

Three roles, whose names are the operator's: those of the DSNs. A DSN that is not set is that of serving, and
the owner needs no grant. Each step asks the catalog what is missing, so that nothing is done twice: a grant
has every connection plan its statements again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from psycopg2 import sql
from psycopg2.extensions import parse_dsn

from engine.operate.ports import RefusedError
from storage.postgres.blocking import connected, schema_change, tables_changed
from storage.postgres.roles.connecting import connecting_role
from storage.postgres.roles.policies import jobs_statements
from storage.postgres.roles.tables import Table, read_tables, schema_of_tables

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

_READ: Final = frozenset({"SELECT"})
_WRITE: Final = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})
_CHANGE: Final = frozenset({"SELECT", "UPDATE", "DELETE"})
_KEEP: Final = frozenset({"SELECT", "INSERT", "UPDATE"})
_KEEP_ROWS: Final = frozenset({"SELECT", "UPDATE"})
#: Where a role may do less than write. The audit log is appended to; the job of retention deletes from it.
#: A row less of ``KEPT`` would unseal a domain, hide a lost master key, let old tokens in or stop servers;
#: commands seal a domain as the role of jobs.
#: ``events_later`` is used by its name while it is detached (storage/postgres/partitions/maintenance.py).
_OTHERWISE: Final = {
    "audit_log": (frozenset({"SELECT", "INSERT"}), frozenset({"SELECT", "INSERT", "DELETE"})),
    "events_later": (_CHANGE, _CHANGE),
    "_yoyo_migration": (_READ, _READ),
    "sealed_domains": (_READ, _KEEP),
    "master_keys": (_KEEP, _KEEP),
    "removed_tenants": (_KEEP, _KEEP),
    "cluster_state": (_KEEP_ROWS, _KEEP_ROWS),
}
_LOCK_TIMEOUT_MS: Final = 5000
_SELF: Final = "SELECT current_user::text, current_database()::text"
#: Whether a role may come in, and whether that was granted to it by name. The right to connect is that of
#: the whole database: a role that another schema lets in keeps it, which may be another cell's.
_REACHES: Final = (
    "SELECT r.rolname::text, has_database_privilege(r.oid, current_database(), 'CONNECT'),"
    " has_schema_privilege(r.oid, n.oid, 'USAGE'), EXISTS (SELECT FROM pg_database AS d,"
    " aclexplode(d.datacl) AS g WHERE d.datname = current_database() AND g.grantee = r.oid)"
    " AND NOT EXISTS (SELECT FROM pg_namespace AS other, aclexplode(other.nspacl) AS g"
    " WHERE other.oid <> n.oid AND g.grantee = r.oid),"
    " EXISTS (SELECT FROM aclexplode(n.nspacl) AS g WHERE g.grantee = r.oid)"
    " FROM pg_roles AS r, pg_namespace AS n WHERE r.rolname = ANY(%s) AND n.nspname = %s"
)
_MAKE: Final = (
    "DO $$ BEGIN CREATE ROLE {role} LOGIN PASSWORD {password};"
    " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
)
#: By it a role sees where the files of PostgreSQL are, of which disk the server watches the free space.
_SEES_SETTINGS: Final = "pg_read_all_settings"


class _Roles(NamedTuple):
    """Who gets rights.

    Attributes:
        serving: The role of serving.
        jobs: The role of jobs.
        owner: The owner of the tables, who needs none.
        in_use: Whether server processes run.
        guarded: Whether the schema has row-level security. Without it these roles have no rights: they would
            see the rows of every tenant.
    """

    serving: str
    jobs: str
    owner: str
    in_use: bool
    guarded: bool

    @property
    def others(self) -> list[str]:
        """Those that are not the owner."""
        return sorted({self.serving, self.jobs} - {self.owner})


def grant_roles(
    owner_dsn: str, serving_dsn: str, jobs_dsn: str, *, make: bool = False, in_use: bool = False
) -> int:
    """Grant to the roles of serving and of jobs what they need, and take back the rest of it.

    A schema from before row-level security is the owner's alone: there all is taken back.

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
        StoreError: The database is away, refused a statement, or a table stayed locked.
    """
    serving, jobs = connecting_role(serving_dsn), connecting_role(jobs_dsn)
    with connected(owner_dsn) as connection:
        with schema_change(connection, _LOCK_TIMEOUT_MS) as cursor:
            cursor.execute(_SELF)
            owner, database = cursor.fetchall()[0]
            schema = schema_of_tables(cursor)
            tables = read_tables(cursor, schema)
            guarded = any("tenants" in table.policies for table in tables)
            roles = _Roles(serving, jobs, owner, in_use, guarded)
            passwords = {
                role: parse_dsn(dsn).get("password")
                for role, dsn in ((serving, serving_dsn), (jobs, jobs_dsn))
            }
            count = _make(cursor, roles, passwords, database, schema) if make and guarded else 0
            if guarded:
                _refuse_missing(cursor, roles.others)
            for statement in list(_reaching(cursor, roles, database, schema)):
                cursor.execute(statement)
                count += 1

        def grant(cursor: Cursor, name: str) -> None:
            nonlocal count
            for table in read_tables(cursor, schema, name):
                statements = list(_of_table(table, schema, roles))
                for statement in statements:
                    cursor.execute(statement)
                count += len(statements)

        due = [table.name for table in tables if any(_of_table(table, schema, roles))]
        tables_changed(connection, due, grant)
    return count


def _of_table(table: Table, schema: str, roles: _Roles) -> Iterator[sql.Composable]:
    """Yield what a table lacks. The policies come last: they alone wait for readers."""
    yield from _rights(table, schema, roles)
    if roles.guarded:
        jobs = None if roles.jobs == roles.owner else roles.jobs
        yield from jobs_statements(table, schema, jobs, in_use=roles.in_use)


def _make(
    cursor: Cursor, roles: _Roles, passwords: Mapping[str, str | None], database: str, schema: str
) -> int:
    missing = _missing(cursor, roles.others)
    for role in missing:
        cursor.execute(
            sql.SQL(_MAKE).format(role=sql.Identifier(role), password=sql.Literal(passwords[role]))
        )
    cursor.execute(
        "SELECT rolname::text FROM pg_roles WHERE rolname = ANY(%s) AND NOT pg_has_role(oid, %s, 'USAGE')",
        (roles.others, _SEES_SETTINGS),
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


def _reaching(cursor: Cursor, roles: _Roles, database: str, schema: str) -> Iterator[sql.Composable]:
    """Yield the grants by which roles come to the database and its schema."""
    cursor.execute(_REACHES, (roles.others, schema))
    for role, connects, uses, may_connect, may_use in cursor.fetchall():
        names = {
            "role": sql.Identifier(role),
            "database": sql.Identifier(database),
            "schema": sql.Identifier(schema),
        }
        if roles.guarded:
            if not connects:
                yield sql.SQL("GRANT CONNECT ON DATABASE {database} TO {role}").format(**names)
            if not uses:
                yield sql.SQL("GRANT USAGE ON SCHEMA {schema} TO {role}").format(**names)
            continue
        if may_connect:
            yield sql.SQL("REVOKE ALL ON DATABASE {database} FROM {role}").format(**names)
        if may_use:
            yield sql.SQL("REVOKE ALL ON SCHEMA {schema} FROM {role}").format(**names)


def _rights(table: Table, schema: str, roles: _Roles) -> Iterator[sql.Composable]:
    """Yield the grants on a table that are missing, and take back those that are too many.

    A partition is nobody's but the owner's: from it also what everybody has is taken back.
    """
    for role in [*roles.others, *([""] if table.is_part else [])]:
        granted = {right for whom, _, right in (one.rpartition(" ") for one in table.granted) if whom == role}
        wanted = frozenset[str]().union(
            _wanted(table, is_jobs=False) if role == roles.serving and roles.guarded else (),
            _wanted(table, is_jobs=True) if role == roles.jobs and roles.guarded else (),
        )
        names = {
            "table": sql.Identifier(schema, table.name),
            "role": sql.Identifier(role) if role else sql.SQL("PUBLIC"),
        }
        for verb, rights in (
            ("GRANT {rights} ON {table} TO {role}", wanted - granted),
            ("REVOKE {rights} ON {table} FROM {role}", granted - wanted),
        ):
            if rights:
                listed = sql.SQL(", ".join(sorted(rights)))
                yield sql.SQL(verb).format(rights=listed, **names)


def _wanted(table: Table, *, is_jobs: bool) -> frozenset[str]:
    if table.name in _OTHERWISE:
        return _OTHERWISE[table.name][is_jobs]
    return frozenset() if table.is_part else _WRITE
