"""The tables of the server as the catalog has them: which grow, their policies, and what is granted on them.

All queries name the schema of the tables, since a ``search_path`` may have another schema before it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

#: Tables that do not grow with what devices send. They have no policy: a tenant is found by its name, and all
#: processes share the others.
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
#: Tables with rows of tenants. They are named: a table of an operator's own in the same schema, as a copy
#: of one of these, is none of the server's, and gets neither grants nor policies.
GROWING_TABLES: Final = (
    "conflict_resolution_log",
    "device_telemetry",
    "devices",
    "events",
    "events_later",
    "quarantine",
    "records",
    "reseal_passes",
    "revoked_tokens",
    "sync_analytics_day",
    "sync_analytics_snapshot",
    "sync_device_health",
    "sync_device_hours",
    "sync_hour_counts",
    "sync_idempotency_record",
    "sync_minutes",
    "telemetry_names",
    "tenant_conflict_policy",
    "tenant_counters",
    "tenant_keys",
    "tenant_storage",
    "upload_session",
    "voice_verification_log",
)
#: Tables of which no role but the owner deletes rows.
KEPT: Final = ("sealed_domains", "master_keys", "removed_tenants", "cluster_state")
#: Tables into which the role of serving inserts nothing.
NOT_INSERTED: Final = ("events_later", "sealed_domains", "cluster_state")
#: A partition that is read by its own name while it is detached (storage/postgres/partitions/maintenance.py).
BY_NAME: Final = "events_later"
#: The tenants that a transaction names: the condition of every policy ``tenants``. The list is taken apart
#: once for each statement, by a hashed sub-plan: = ANY looks through it for each row, which costs five times
#: as much at 400 tenants.
NAMED: Final = (
    "tenant_id IN (SELECT unnest(string_to_array(current_setting('tidemark.tenants', true), ',')::int[]))"
)

#: PostgreSQL writes a condition with more parentheses and types than it was given.
_WRITTEN: Final = r"pg_catalog\.|::[a-z]+(\[\])?|AS unnest|[\s()]"
_PLAIN: Final = re.sub(_WRITTEN, "", NAMED)
_AS_WRITTEN: Final = f"regexp_replace(pg_get_expr({{}}, p.polrelid), '{_WRITTEN}', '', 'g')"
#: A policy for all rows and statements that calls nothing outside of PostgreSQL's own schema: a function of
#: the same name is told by its dependency, not by the text.
_MADE: Final = (
    "p.polrelid = c.oid AND p.polpermissive AND p.polcmd = '*' AND NOT EXISTS (SELECT FROM pg_depend AS d"
    " WHERE d.classid = 'pg_policy'::regclass AND d.objid = p.oid"
    " AND (d.refclassid <> 'pg_class'::regclass OR d.refobjid <> p.polrelid))"
)
IN_SCHEMA: Final = "c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)"
_OF_TENANTS: Final = (
    "(c.relname = ANY(%(growing)s) OR c.relispartition AND (SELECT o.relname FROM pg_class AS o"
    " WHERE o.oid = pg_partition_root(c.oid)) = ANY(%(growing)s))"
)
#: A table ``c`` that is none of the server's, and may have rows of tenants.
FOREIGN: Final = (
    f"{IN_SCHEMA} AND c.relkind IN ('r', 'p', 'm') AND NOT c.relispartition"
    " AND c.relname <> ALL(%(reference)s) AND c.relname <> ALL(%(growing)s)"
    " AND EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'tenant_id'"
    " AND NOT a.attisdropped)"
)
#: Conditions on a table ``c``: one that grows, one that is used by its name, any table of the server, one
#: that grows and is used by its name, and a partition that nobody but the owner uses by its name.
GROWING: Final = f"{IN_SCHEMA} AND c.relkind IN ('r', 'p') AND {_OF_TENANTS}"
USED: Final = (
    f"{IN_SCHEMA} AND c.relkind IN ('r', 'p') AND (NOT c.relispartition OR c.relname = '{BY_NAME}')"
    f" AND (c.relname = ANY(%(reference)s) OR {_OF_TENANTS})"
)
OWNED: Final = (
    f"{IN_SCHEMA} AND c.relkind IN ('r', 'p')"
    f" AND (c.relname = ANY(%(reference)s) OR c.relname = '_yoyo_migration' OR {_OF_TENANTS})"
)
WHOLE: Final = f"{GROWING} AND (NOT c.relispartition OR c.relname = '{BY_NAME}')"
PARTS: Final = f"{GROWING} AND c.relispartition AND c.relname <> '{BY_NAME}'"
#: Whether a table ``c`` has the policy ``tenants`` as this version makes it, and ``jobs`` for whom it may be.
BY_TENANTS: Final = (
    f"EXISTS (SELECT FROM pg_policy AS p WHERE p.polname = 'tenants' AND {_MADE} AND p.polroles = '{{0}}'"
    f" AND {_AS_WRITTEN.format('p.polqual')} = %(plain)s"
    f" AND {_AS_WRITTEN.format('p.polwithcheck')} = %(plain)s)"
)
OPENS_TO_JOBS: Final = (
    f"EXISTS (SELECT FROM pg_policy AS p WHERE p.polname = 'jobs' AND {_MADE}"
    " AND pg_get_expr(p.polqual, p.polrelid) = 'true' AND pg_get_expr(p.polwithcheck, p.polrelid) = 'true')"
)

#: The counters first, as batches lock them.
_TABLES: Final = (
    f"SELECT c.relname::text, c.relispartition, c.relrowsecurity, {BY_TENANTS}, {GROWING},"
    " ARRAY(SELECT polname::text FROM pg_policy WHERE polrelid = c.oid),"
    f" {OPENS_TO_JOBS}, ARRAY(SELECT pg_get_userbyid(role)::text FROM pg_policy, unnest(polroles) AS role"
    " WHERE polrelid = c.oid AND polname = 'jobs' AND role <> 0),"
    " ARRAY(SELECT CASE g.grantee WHEN 0 THEN '' ELSE pg_get_userbyid(g.grantee)::text END"
    " || ' ' || g.privilege_type FROM aclexplode(c.relacl) AS g WHERE g.grantee <> c.relowner)"
    f" FROM pg_class AS c WHERE {OWNED} AND (%(only)s::text IS NULL OR c.relname = %(only)s)"
    " ORDER BY c.relname <> 'tenant_counters', c.relname"
)
#: Where the tables are; before there are any, where the first ones will be made.
_SCHEMA: Final = (
    "SELECT coalesce((SELECT n.nspname::text FROM pg_class AS c"
    " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = to_regclass('tenant_counters')),"
    " current_schema()::text)"
)


#: A name that needs no quotes in SQL.
_SIMPLE: Final = re.compile(r"[a-z_][a-z0-9_]*")


class Table(NamedTuple):
    """A table as the catalog has it.

    Attributes:
        name: Its name.
        is_partition: Whether it is one of another table.
        secured: Whether its policies count.
        by_tenants: Whether it has the policy ``tenants`` as this version makes it.
        growing: Whether it has rows of tenants.
        policies: The names of its policies.
        opens_to_jobs: Whether the policy ``jobs`` shows all rows.
        jobs: The roles of that policy.
        granted: ``role right`` for each grant to others than the owner. The role of all is empty.
    """

    name: str
    is_partition: bool
    secured: bool
    by_tenants: bool
    growing: bool
    policies: list[str]
    opens_to_jobs: bool
    jobs: list[str]
    granted: list[str]

    @property
    def is_part(self) -> bool:
        """Whether nobody but the owner uses it by its name."""
        return self.is_partition and self.name != BY_NAME


def values(schema: str) -> dict[str, object]:
    """Return the values of the conditions above."""
    return {
        "schema": schema,
        "reference": list(REFERENCE),
        "growing": list(GROWING_TABLES),
        "plain": _PLAIN,
        "kept": list(KEPT),
    }


def schema_of_tables(cursor: Cursor) -> str:
    """Return the schema of the tables, as the owner finds them."""
    cursor.execute(_SCHEMA)
    return str(cursor.fetchall()[0][0])


def read_tables(cursor: Cursor, schema: str, only: str | None = None) -> list[Table]:
    """Return the tables in an order that is the same for all processes, or one of them."""
    cursor.execute(_TABLES, {**values(schema), "only": only})
    return [Table(*row) for row in cursor.fetchall()]


def made_elsewhere(role: str, database: str, schema: str, tables: str) -> tuple[str, str]:
    """Return what is found, and the remedy, if the owner would make tables in another schema."""
    return (
        f"the role {role} would make tables in the schema {schema}, and the server's are in {tables}",
        search_path_remedy(role, database, tables),
    )


def search_path_remedy(role: str, database: str, schema: str) -> str:
    """Return the statement by which a role finds the tables of a schema."""
    role, database, schema = map(quoted, (role, database, schema))
    return f"ALTER ROLE {role} IN DATABASE {database} SET search_path = {schema}"


def quoted(name: str) -> str:
    """Return a name as SQL has it, in quotes if it needs them."""
    return name if _SIMPLE.fullmatch(name) else '"' + name.replace('"', '""') + '"'
