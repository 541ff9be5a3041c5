"""A blocking connection, for work outside the event loop: migrations, partitions, the recount, doctor.

Its statements may take any time. Those of a server (``storage/postgres/pool.py``) may not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import ceil
from typing import TYPE_CHECKING, Final

import psycopg2
import psycopg2.errors

from engine.runtime.ports import StoreError, StoreRetryError, StoreUnavailableError, StoreUnknownError
from storage.postgres.cell.cursor import cursor_in
from storage.postgres.cell.dsn import schema_of
from storage.postgres.hosts import order_of
from storage.postgres.remedies import fault_of, lock_sentence, said, sentence

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

#: An advisory lock for changes of the schema: one at a time over all hosts. It belongs to the transaction, so
#: that it works behind a pooler too.
_SCHEMA_LOCK: Final = 0x7469646D
#: Syncs queue behind a change that waits for a table: it waits so long, then lets them pass, and tries again.
_TABLE_LOCK_MS: Final = 200
_PASS_S: Final = 0.2
#: Citus only warns of a commit that a node did not confirm. Its messages are in no other language.
_UNCONFIRMED: Final = "failed to commit transaction on"
#: A reader that holds a table for longer, such as a dump, is named to the operator.
_GIVE_UP_S: Final = 30.0


@contextmanager
def connected(dsn: str) -> Iterator[Connection]:
    """Connect to the primary, in autocommit.

    Raises:
        DatabaseFaultError: PostgreSQL refused, and the remedy is known.
        StoreUnknownError: A node of Citus did not confirm a commit.
        StoreError: The database is away, or refused for another reason.
    """
    connection = _connect(dsn)
    try:
        connection.autocommit = True
        yield connection
        if unconfirmed := [notice for notice in connection.notices if _UNCONFIRMED in notice]:
            raise StoreUnknownError(f"{unconfirmed[0].strip()}: see what was done, and run this again")
    except psycopg2.errors.LockNotAvailable as error:
        raise StoreRetryError(lock_sentence(connection, error)) from None
    except psycopg2.Error as error:
        raise fault_of(error) or StoreError(sentence(error)) from None
    finally:
        connection.close()


def _connect(dsn: str) -> Connection:
    """Connect to the first host that is the primary. Raises StoreError."""
    order = order_of(dsn)
    cursor_factory = cursor_in(schema_of(dsn))
    refusals: list[StoreError] = []
    for host in order.now():
        addresses = host.addresses_now(one_of_several=order.several)
        if not addresses:
            refusals.append(StoreUnavailableError(host.unknown))
        for address in order.sorted(addresses):
            try:
                return psycopg2.connect(
                    address.dsn,
                    cursor_factory=cursor_factory,
                    connect_timeout=ceil(address.timeout_s),
                    application_name="tidemark",
                    target_session_attrs="read-write",
                    keepalives_idle=5,
                    keepalives_interval=2,
                    keepalives_count=3,
                )
            except psycopg2.Error as error:
                order.address_failed(address)
                refusals.append(fault_of(error) or StoreUnavailableError(said(error)))
        order.failed(host)
    if len(refusals) == 1:
        raise refusals[0]
    raise StoreUnavailableError("; ".join(map(str, refusals)))


@contextmanager
def schema_change(connection: Connection, lock_timeout_ms: int) -> Iterator[Cursor]:
    """Open a transaction that alone changes the schema.

    It waits without limit for other changes of the schema, but only ``lock_timeout_ms`` for the lock of a
    table: all later statements on that table wait behind it.
    """
    with connection, connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
        cursor.execute(f"SET LOCAL lock_timeout = {lock_timeout_ms}")
        yield cursor


def tables_changed(
    connection: Connection, tables: Iterable[str], change: Callable[[Cursor, str], None]
) -> None:
    """Change tables, each in a transaction of its own; one that is busy is tried again after the others.

    Raises:
        LockNotAvailable: A table stayed busy for ``_GIVE_UP_S``. Those that are free are changed.
    """
    due, began_s = list(tables), time.monotonic()
    while due:
        busy: dict[str, psycopg2.errors.LockNotAvailable] = {}
        for table in due:
            late = time.monotonic() - began_s >= _GIVE_UP_S
            try:
                with schema_change(connection, 1 if late else _TABLE_LOCK_MS) as cursor:
                    change(cursor, table)
            except psycopg2.errors.LockNotAvailable as error:
                busy[table] = error
                if not late:
                    time.sleep(_PASS_S)
        if busy and time.monotonic() - began_s >= _GIVE_UP_S:
            raise next(iter(busy.values()))
        due = list(busy)
