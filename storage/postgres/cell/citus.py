"""A cell on Citus: a distributed schema, whose tables lie together on one node.

Citus plans each statement anew, so that nothing is prepared there. Some statements it does not plan, or not
rightly (seen with 13.0.5). So no statement of a server has

- an ``INSERT … SELECT`` that reads a table and needs the time, be it in a default of a column: its rows come
  from a ``MATERIALIZED`` expression before it;
- in ``RETURNING`` a subquery, or a function that is not immutable; a subquery among ``VALUES``; in ``SET`` a
  function that is not immutable within ``CASE`` or ``coalesce``: they stand in a query around the change;
- in an ``UPDATE`` a function that is not immutable and takes a column, such as ``text::json`` or
  ``timestamptz - interval``: a ``MATERIALIZED`` expression before it computes the values;
- a materialized expression without a column (``SELECT FROM``), or with locks at its top: the locks stand in a
  subquery of it;
- a function that returns a set within an expression;
- in a trigger a query over its transition table that names another table, too.

Nearly all statements run whole on the node, in one snapshot. Those with an ``INSERT`` within an expression
are run part by part, each part in a snapshot of its own: a lock or a unique key has to keep them right. If it
is an ``INSERT … SELECT``, every node is sent the rows, and has to be there: only telemetry and jobs have such
ones.

What a node has of its own (transaction ids, settings, sizes) is asked beside a table, ``FROM cluster_state``:
else the coordinator answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

HAS_CITUS: Final = "EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"
_IS_DISTRIBUTED: Final = "SELECT EXISTS (SELECT FROM pg_dist_schema WHERE schemaid = to_regnamespace(%s))"


def has_citus(cursor: Cursor) -> bool:
    """Return whether the database is of Citus."""
    cursor.execute(f"SELECT {HAS_CITUS}")
    return bool(cursor.fetchall()[0][0])


def is_on_citus(cursor: Cursor, cell: str) -> bool:
    """Return whether a cell is on Citus. A deployment without a schema is on the coordinator alone."""
    return bool(cell) and has_citus(cursor)


def is_distributed(cursor: Cursor, schema: str) -> bool:
    """Return whether Citus has spread a schema."""
    if not has_citus(cursor):
        return False
    cursor.execute(_IS_DISTRIBUTED, (schema,))
    return bool(cursor.fetchall()[0][0])


def distribute(cursor: Cursor, schema: str) -> None:
    """Have Citus put a schema, with its rows, on one of its nodes."""
    # Unsafe are triggers that write to a table on another node: all tables of a schema are on one.
    cursor.execute("SET LOCAL citus.enable_unsafe_triggers = on")
    cursor.execute("SELECT citus_schema_distribute(%s::text::regnamespace)", (schema,))
