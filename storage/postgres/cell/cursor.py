"""Cursors of a blocking connection to a cell, whose statements also define tables.

The first statement of each transaction sets a ``search_path`` for it, in its own string, so that it holds
behind a pooler too. Nothing is prepared here, so it comes in time. A definition must not be the first one:
Citus sends its nodes the whole string.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from psycopg2 import sql
from psycopg2.extensions import TRANSACTION_STATUS_INERROR, TRANSACTION_STATUS_INTRANS
from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

from storage.postgres.cell.names import Names, names_in

#: Statements that PostgreSQL runs in no transaction, and so in no string with others. Only benchmarks have
#: them, which use no pooler.
_ALONE: Final = ("VACUUM", "CREATE DATABASE")
#: In a transaction that failed only its rollback is let through, also that to a savepoint.
_BEGUN: Final = (TRANSACTION_STATUS_INTRANS, TRANSACTION_STATUS_INERROR)


@lru_cache(maxsize=16)
def cursor_in(schema: str) -> type[Cursor]:
    """Return the class of cursors of a schema; psycopg2's own without one."""
    names = names_in(schema)
    return Cursor if names is None else type("CellCursor", (_CellCursor,), {"names": names})


class _CellCursor(Cursor):
    """A cursor that finds tables in the schema of a cell."""

    names: Names

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002  # the driver's name
        """Run a statement, or several."""
        text = query.as_string(self) if isinstance(query, sql.Composable) else query
        if text.startswith(_ALONE):
            super().execute(f'SET search_path = "{self.names.schema}"')
            super().execute(text, vars)
            return
        begun = self.connection.info.transaction_status in _BEGUN
        super().execute(("" if begun else self.names.search_path) + self.names.locks(text), vars)
