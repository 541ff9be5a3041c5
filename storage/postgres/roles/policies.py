"""Policies of row-level security: what gives them to tables, one table at a time.

PostgreSQL locks a table against all others to change its policies. Syncs wait behind that lock while it waits
for a reader. So each table is changed in a transaction of its own, which gives up soon and is tried again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from psycopg2 import sql

from storage.postgres.blocking import tables_changed
from storage.postgres.cell.citus import is_distributed
from storage.postgres.roles.tables import (
    BY_NAME,
    GROWING,
    IN_SCHEMA,
    NAMED,
    Table,
    read_tables,
    schema_of_tables,
    values,
)

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

#: By its name alone: migrations and doctor compare the policies with what they should be.
_OPEN_PARTITIONS: Final = (
    f"SELECT c.relname::text FROM pg_class AS c WHERE {GROWING}"
    f" AND (c.relispartition OR c.relname = '{BY_NAME}') AND NOT (c.relrowsecurity"
    " AND EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = c.oid AND p.polname = 'tenants'))"
)
_GRANTED: Final = (
    "SELECT DISTINCT c.relname::text,"
    " CASE g.grantee WHEN 0 THEN '' ELSE pg_get_userbyid(g.grantee)::text END"
    f" FROM pg_class AS c, aclexplode(c.relacl) AS g WHERE {IN_SCHEMA} AND c.relname = ANY(%(names)s)"
    " AND g.grantee <> c.relowner"
)


def secure_growing_tables(connection: Connection) -> None:
    """Give every growing table the policy, its partitions and those of later migrations too.

    Raises:
        LockNotAvailable: A table stayed locked. The others have their policy.
    """
    with connection.cursor() as cursor:
        schema = schema_of_tables(cursor)
        due = [table.name for table in read_tables(cursor, schema) if any(_tenants(table, schema))]
    _secure(connection, schema, due)


def secure_partitions(connection: Connection) -> None:
    """Give the policy to partitions without one, such as those that a process of an older version made.

    Raises:
        LockNotAvailable: A table stayed locked. The others have their policy.
    """
    with connection.cursor() as cursor:
        schema = schema_of_tables(cursor)
        if is_distributed(cursor, schema):
            return  # Citus takes no policy, and its cells have one role
        cursor.execute(_OPEN_PARTITIONS, values(schema))
        due = [str(name) for (name,) in cursor.fetchall()]
    _secure(connection, schema, due)


def _secure(connection: Connection, schema: str, due: Sequence[str]) -> None:
    def secure(cursor: Cursor, name: str) -> None:
        for table in read_tables(cursor, schema, name):
            for statement in _tenants(table, schema):
                cursor.execute(statement)

    tables_changed(connection, due, secure)


def close_partitions(cursor: Cursor, names: Sequence[str]) -> None:
    """Give new partitions the policy, and take from others what default privileges gave them.

    They are read through their table, whose policy counts then: their own guards them against a grant by
    mistake.
    """
    schema = schema_of_tables(cursor)
    if is_distributed(cursor, schema):
        return
    statements = [statement for name in names for statement in _guarded(sql.Identifier(schema, name))]
    cursor.execute(sql.SQL("; ").join(statements))
    cursor.execute(_GRANTED, {**values(schema), "names": list(names)})
    for name, role in cursor.fetchall():
        whom = sql.Identifier(role) if role else sql.SQL("PUBLIC")
        cursor.execute(sql.SQL("REVOKE ALL ON {} FROM {}").format(sql.Identifier(schema, name), whom))


def _guarded(name: sql.Identifier) -> Iterator[sql.Composable]:
    yield sql.SQL("ALTER TABLE {} ENABLE ROW LEVEL SECURITY").format(name)
    policy = sql.SQL("CREATE POLICY tenants ON {} USING ({named}) WITH CHECK ({named})")
    yield policy.format(name, named=sql.SQL(NAMED))


def _tenants(table: Table, schema: str) -> Iterator[sql.Composable]:
    """Yield what gives a table the policy of tenants, and makes an altered one anew."""
    if not table.growing:
        return
    name = sql.Identifier(schema, table.name)
    secure, make = _guarded(name)
    if not table.secured:
        yield secure
    if not table.by_tenants:
        if "tenants" in table.policies:
            yield sql.SQL("DROP POLICY tenants ON {}").format(name)
        yield make


def jobs_statements(table: Table, schema: str, jobs: str | None, *, in_use: bool) -> Iterator[sql.Composable]:
    """Yield what gives the policy of jobs to a role or to none, and unless in use takes it from others.

    Without it a running server would find all tables empty, and accept revoked devices.
    """
    name = sql.Identifier(schema, table.name)
    has_it = "jobs" in table.policies
    roles = {*(table.jobs if in_use else ()), *(() if jobs is None else (jobs,))}
    if table.is_part or "tenants" not in table.policies or not roles:
        if has_it:
            yield sql.SQL("DROP POLICY jobs ON {}").format(name)
        return
    listed = sql.SQL(", ").join(map(sql.Identifier, sorted(roles)))
    if has_it and table.opens_to_jobs:
        if roles != set(table.jobs):
            yield sql.SQL("ALTER POLICY jobs ON {} TO {}").format(name, listed)
        return
    if has_it:
        yield sql.SQL("DROP POLICY jobs ON {}").format(name)
    if jobs is not None:
        yield sql.SQL("CREATE POLICY jobs ON {} TO {} USING (true) WITH CHECK (true)").format(name, listed)
