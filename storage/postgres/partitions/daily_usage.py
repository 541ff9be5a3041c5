"""The usage of a day of kept answers or events, and its subtraction from the usage of tenants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

from storage.postgres.blocking import connected
from storage.postgres.plain_bytes import plain_bytes

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

#: Kinds of rows that are dropped by the day; the names of their columns begin so.
Daily = Literal["answer", "event"]
#: An advisory lock: held alone while a day is dropped and subtracted, shared by those who count.
DROPPING: Final = 0x7469646E


@contextmanager
def dropping(dsn: str) -> Iterator[None]:
    """Keep the recount away while a day is dropped and subtracted. Raises StoreError."""
    with connected(dsn) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (DROPPING,))
        yield


def counted(cursor: Cursor, partition: str, kind: Daily) -> list[tuple[int, int, int]]:
    """Return the usage of a day: tenant, rows and bytes."""
    column = "results" if kind == "answer" else "data"
    cursor.execute(
        f"SELECT tenant_id, count(*), sum({plain_bytes(f'{column}::text')})::bigint FROM {partition}"
        " GROUP BY tenant_id"
    )
    return [(int(tenant_id), int(rows), int(size)) for tenant_id, rows, size in cursor.fetchall()]


def subtract(cursor: Cursor, gone: Iterable[tuple[int, int, int]], kind: Daily) -> None:
    """Subtract dropped rows from the usage of their tenants, each in a transaction of its own."""
    for tenant_id, rows, size_bytes in gone:
        add(cursor, tenant_id, {f"{kind}_rows": -rows, f"{kind}_bytes": -size_bytes})


def add(cursor: Cursor, tenant_id: int, more: dict[str, int]) -> None:
    """Add to the usage of a tenant."""
    changes = ", ".join(f"{name} = {name} + %({name})s" for name in more)
    cursor.execute(
        f"UPDATE tenant_counters SET {changes} WHERE tenant_id = %(tenant)s", {"tenant": tenant_id, **more}
    )
