"""Whether row-level security hides a table from the role of jobs: it looks empty then, without an error."""

from __future__ import annotations

from typing import Final

from storage.postgres.remedies import DatabaseFaultError

MIGRATE: Final = "run `run.py migrate`, with the same postgres.jobs_dsn"


def hidden(table: str) -> str:
    """Return the condition that policies hold the current role, and that none shows it every row.

    Args:
        table: The table's oid, as an expression of SQL.
    """
    return (
        f"(row_security_active({table}) AND NOT EXISTS (SELECT 1 FROM pg_policy AS p"
        f" WHERE p.polrelid = {table} AND p.polname = 'jobs' AND (0 = ANY(p.polroles) OR EXISTS"
        " (SELECT 1 FROM pg_roles AS r WHERE r.oid = ANY(p.polroles) AND pg_has_role(r.oid, 'USAGE')))))"
    )


def hidden_error(table: str) -> DatabaseFaultError:
    """Return the error of a read that must not take a hidden table for an empty one."""
    return DatabaseFaultError(f"the role of jobs may not see the rows of the table {table}", MIGRATE)
