"""A plain connection for what runs beside the event loop: migrations, partitions, commands.

Statements may take as long as they need, which those of a server (``storage/postgres/pool.py``) may not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import TYPE_CHECKING, Final

import psycopg2
import psycopg2.errors

from engine.runtime.ports import StoreError, StoreRetryError, StoreUnavailableError
from storage.postgres.hosts import order_of
from storage.postgres.remedies import fault_of, lock_sentence, said, sentence

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

#: Whoever changes what tables there are holds this, so that one does at a time over all hosts. It
#: belongs to the transaction, not to the session, and so works behind transaction pooling as well.
_SCHEMA_LOCK: Final = 0x7469646D


@contextmanager
def connected(dsn: str) -> Iterator[Connection]:
    """Connect to the primary, in autocommit.

    Raises:
        StoreError: In one sentence: a DatabaseFaultError where the remedy is known.
    """
    connection = _connect(dsn)
    try:
        connection.autocommit = True
        yield connection
    except psycopg2.errors.LockNotAvailable as error:
        raise StoreRetryError(lock_sentence(connection, error)) from None
    except psycopg2.Error as error:
        raise fault_of(error) or StoreError(sentence(error)) from None
    finally:
        connection.close()


def _connect(dsn: str) -> Connection:
    """Connect to the first host that is the primary. Raises StoreError."""
    order = order_of(dsn)
    refusals: list[StoreError] = []
    for host in order.now():
        places = host.places_now(one_of_several=order.several)
        if not places:
            refusals.append(StoreUnavailableError(host.unknown))
        for place in order.sorted(places):
            try:
                return psycopg2.connect(
                    place.dsn,
                    connect_timeout=ceil(place.patience_s),
                    application_name="tidemark",
                    target_session_attrs="read-write",
                    keepalives_idle=5,
                    keepalives_interval=2,
                    keepalives_count=3,
                )
            except psycopg2.Error as error:
                order.place_failed(place)
                refusals.append(fault_of(error) or StoreUnavailableError(said(error)))
        order.failed(host)
    if len(refusals) == 1:
        raise refusals[0]
    raise StoreUnavailableError("; ".join(map(str, refusals)))


@contextmanager
def schema_change(connection: Connection, lock_timeout_ms: int) -> Iterator[Cursor]:
    """Open a transaction in which nobody else changes what tables there are.

    Its turn is waited for as long as need be, a table's lock ``lock_timeout_ms``: while one is waited
    for, everybody who comes to that table later waits behind.
    """
    with connection, connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
        cursor.execute(f"SET LOCAL lock_timeout = {lock_timeout_ms}")
        yield cursor
