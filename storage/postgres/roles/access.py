"""Whether a role finds the tables of the server by their names, may use them, and sees their rows.

These are faults: a server that starts with one of them would serve wrong rows, or none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from engine.operate.rows import CheckResult
from storage.postgres.roles.hidden import MIGRATE, hidden
from storage.postgres.roles.tables import (
    BY_TENANTS,
    NOT_INSERTED,
    OPENS_TO_JOBS,
    USED,
    WHOLE,
    quoted,
    search_path_remedy,
    values,
)

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so

_ACCESS: Final = "access"
_LACKS: Final = (
    "SELECT current_user::text, current_database()::text, current_setting('search_path'),"
    f" (SELECT c.relname::text FROM pg_class AS c WHERE {USED}"
    " AND NOT (has_schema_privilege(c.relnamespace, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')"
    f" AND (c.relname = ANY(%(not_inserted)s) OR has_table_privilege(c.oid, 'INSERT'))) ORDER BY 1 LIMIT 1)"
)
#: A table that is not found by its name, and the schema of the one that is found instead.
_NOT_FOUND: Final = (
    "SELECT c.relname::text, (SELECT o.relnamespace::regnamespace::text FROM pg_class AS o"
    " WHERE o.oid = to_regclass(quote_ident(c.relname))) FROM pg_class AS c"
    f" WHERE {USED} AND NOT pg_table_is_visible(c.oid) ORDER BY 2 NULLS LAST, 1 LIMIT 1"
)
_HIDDEN: Final = f"SELECT c.relname::text FROM pg_class AS c WHERE {WHOLE} AND {hidden('c.oid')} LIMIT 1"
_OTHER: Final = (
    f"SELECT c.relname::text, c.relrowsecurity AND EXISTS (SELECT FROM pg_policy AS p"
    " WHERE p.polrelid = c.oid AND p.polname = 'tenants') FROM pg_class AS c"
    f" WHERE {WHOLE} AND (NOT c.relrowsecurity OR NOT {BY_TENANTS} OR NOT {OPENS_TO_JOBS} AND EXISTS"
    " (SELECT FROM pg_policy AS p WHERE p.polrelid = c.oid AND p.polname = 'jobs')) ORDER BY 2, 1 LIMIT 1"
)
#: Also a role that this one could become by SET ROLE counts.
_MORE: Final = (
    "SELECT p.polname::text, c.relname::text, current_user::text FROM pg_class AS c"
    f" JOIN pg_policy AS p ON p.polrelid = c.oid WHERE {WHOLE} AND p.polpermissive"
    " AND p.polname NOT IN ('tenants', 'jobs') AND EXISTS (SELECT FROM unnest(p.polroles) AS r"
    " WHERE r = 0 OR pg_has_role(current_user, r, 'MEMBER')) ORDER BY 2, 1"
)


def access_finding(connection: Connection, schema: str, setting: str, *, sees_all: bool) -> CheckResult:
    """Check one role.

    Args:
        connection: The database, as the role.
        schema: The schema of the tables, as their owner finds them.
        setting: The setting that names the role.
        sees_all: Whether it has to see the rows of all tenants.
    """
    with connection.cursor() as cursor:
        cursor.execute(_LACKS, {**values(schema), "not_inserted": list(NOT_INSERTED)})
        role, database, path, lacks = cursor.fetchall()[0]
        cursor.execute(_NOT_FOUND, values(schema))
        not_found = cursor.fetchall()
        cursor.execute(_HIDDEN, values(schema))
        unseen = cursor.fetchall() if sees_all else []
    whose = f"the role {role} of {setting}"
    if lacks is not None:
        found = f"{whose} may not use the table {lacks}"
        return CheckResult("fault", _ACCESS, found, "run `run.py migrate`, which grants it")
    if not_found:
        table, other = not_found[0]
        instead = "finds no table" if other is None else f"finds, in the schema {other}, another table"
        found = (
            f"{whose} {instead} {table}: the server's is in the schema {schema}, its search_path is {path}"
        )
        return CheckResult("fault", _ACCESS, found, search_path_remedy(role, database, schema))
    if unseen:
        found = f"{whose} may not see the rows of the table {unseen[0][0]}"
        return CheckResult("fault", _ACCESS, found, MIGRATE)
    return CheckResult("ok", _ACCESS, f"{whose} may use the tables")


def policy_finding(connection: Connection, schema: str) -> Iterator[CheckResult]:
    """Yield a fault if the policies of a table are not those that migrations make."""
    with connection.cursor() as cursor:
        cursor.execute(_OTHER, values(schema))
        for table, has_one in cursor.fetchall():
            found = (
                f"a policy of the table {table} is not as migrations make it"
                if has_one
                else f"the table {table} has no policy"
            )
            yield CheckResult("fault", "row security", found, "run `run.py migrate`, which makes it anew")


def opening_findings(connection: Connection, schema: str, as_owner: str) -> Iterator[CheckResult]:
    """Yield a fault for each policy beside those of migrations that shows rows to the role of serving.

    Args:
        connection: The database, as the role of serving.
        schema: The schema of the tables, as their owner finds them.
        as_owner: How statements of a remedy begin (``storage.postgres.cell.dsn.owner_prefix``).
    """
    with connection.cursor() as cursor:
        cursor.execute(_MORE, values(schema))
        for policy, table, role in cursor.fetchall():
            found = (
                f"the policy {policy} of the table {table} shows the role {role} rows of tenants that a"
                " transaction does not name"
            )
            remedy = f"{as_owner}DROP POLICY {quoted(policy)} ON {quoted(table)}"
            yield CheckResult("fault", "row security", found, remedy)
