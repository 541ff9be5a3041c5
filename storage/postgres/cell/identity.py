"""The identity of a PostgreSQL, by which a restored database is known.

It is asked in a statement without tables: Citus runs a statement on the node where its tables are, and each
node has an identity of its own. So it is always that of the node that the DSN names, and a cell that was
moved is not taken for a restored one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

SYSTEM_IDENTIFIER: Final = "SELECT system_identifier FROM pg_control_system()"


def system_identifier(cursor: Cursor) -> int:
    """Return the identity of the PostgreSQL that a cursor is connected to."""
    cursor.execute(SYSTEM_IDENTIFIER)
    return int(cursor.fetchall()[0][0])


def is_restored(cursor: Cursor) -> bool:
    """Return whether the database is of another PostgreSQL than its epoch; also if it has no epoch."""
    here = system_identifier(cursor)
    cursor.execute("SELECT system_identifier FROM cluster_state")
    return cursor.fetchall() != [(here,)]
