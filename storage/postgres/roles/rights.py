"""Checks of doctor: the rights of the role, and the names of tenants in the settings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from engine.operate.rows import CheckResult
from storage.postgres.cell.schema import lacking_right
from storage.postgres.roles.tables import FOREIGN, OWNED, made_elsewhere, schema_of_tables, values

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so

_MAY_CREATE: Final = (
    "SELECT current_user::text, current_database()::text, current_schema()::text,"
    " coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"
)
#: Tables of the server, not others in the same schema. Only their owner can add and drop partitions.
_OTHERS: Final = (
    "SELECT c.relname::text, pg_get_userbyid(c.relowner)::text FROM pg_class AS c"
    f" WHERE {OWNED} AND NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1 LIMIT 1"
)
_FOREIGN: Final = (
    "SELECT quote_ident(c.relname), ARRAY(SELECT DISTINCT CASE g.grantee WHEN 0 THEN 'PUBLIC'"
    " ELSE quote_ident(pg_get_userbyid(g.grantee)) END FROM aclexplode(c.relacl) AS g"
    f" WHERE g.grantee <> c.relowner ORDER BY 1) FROM pg_class AS c WHERE {FOREIGN} ORDER BY 1"
)
_UNKNOWN: Final = "SELECT name FROM unnest(%s::text[]) AS name EXCEPT SELECT name FROM tenants"


def rights_finding(connection: Connection, cell: str = "") -> CheckResult:
    """Check that the role owns the tables and may create more. ``cell`` is the schema of a cell."""
    with connection.cursor() as cursor:
        cursor.execute(_MAY_CREATE)
        role, database, schema, may_create = cursor.fetchall()[0]
        if cell and schema is None:
            if lacking := lacking_right(cursor, cell):
                return CheckResult("fault", "rights", *lacking)
            return CheckResult(
                "ok", "rights", f"the role {role} may make the schema {cell}, which is to come"
            )
        if not may_create:
            where = f"in the schema {schema}" if schema else "in any schema of its search_path"
            remedy = f"as a superuser: ALTER DATABASE {database} OWNER TO {role}"
            return CheckResult("fault", "rights", f"the role {role} may create no table {where}", remedy)
        tables = schema_of_tables(cursor)
        cursor.execute(_OTHERS, values(tables))
        others = cursor.fetchall()
    if others:
        table, owner = others[0]
        found = f"the table {table} belongs to {owner}, and the role {role} may not change it"
        remedy = f"connect as {owner}, or as a superuser: ALTER TABLE … OWNER TO {role} for each table"
        return CheckResult("fault", "rights", found, remedy)
    if schema != tables:
        return CheckResult("fault", "rights", *made_elsewhere(role, database, schema, tables))
    return CheckResult("ok", "rights", f"the role {role} owns its tables and may create more")


def foreign_findings(connection: Connection) -> Iterator[CheckResult]:
    """Yield a warning for each table beside those of the server that may have rows of tenants."""
    with connection.cursor() as cursor:
        cursor.execute(_FOREIGN, values(schema_of_tables(cursor)))
        for table, granted in cursor.fetchall():
            found = (
                f"the table {table} is none of the server's, and has a column tenant_id: what it has"
                " of tenants is under no policy, and stays when a tenant is removed, a retention passes or a"
                " domain is sealed"
            )
            remedy = f"drop it, or move it out of the schema of the server (ALTER TABLE {table} SET SCHEMA …)"
            if granted:
                remedy += f"; until then, revoke all that is granted on it to {', '.join(granted)}"
            yield CheckResult("warning", "tables", found, remedy)


def tenant_findings(connection: Connection, named: Mapping[str, Collection[str]]) -> Iterator[CheckResult]:
    """Check that every tenant exists that has settings of its own.

    Args:
        connection: The database.
        named: The names of tenants, by the setting that has them.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('tenants') IS NULL")
        if cursor.fetchall() == [(True,)]:
            return
        for setting, names in named.items():
            if not names:
                continue
            cursor.execute(_UNKNOWN, (list(names),))
            unknown = sorted(str(name) for (name,) in cursor.fetchall())
            if unknown:
                found = f"{setting} names no tenant that there is: {', '.join(unknown)}"
                yield CheckResult("warning", setting, found, "correct the name, or add the tenant")
            else:
                yield CheckResult("ok", setting, f"{len(names)} tenants have their own")
