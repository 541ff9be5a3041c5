"""The most connections that a server had to its database at once, as PostgreSQL itself counts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Final

from engine.runtime.ports import StoreError
from storage.postgres.blocking import connected

_SAMPLE_S: Final = 0.2
#: Of each database, without what the owner does: audits and migrations. Servers of others have the owner's
#: role, and are not counted.
_COUNT: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename <> current_user"
    " GROUP BY datname"
)
#: What was found since the last ``most_connections``.
_found: list[int] = []


def most_connections() -> int | None:
    """Return the most connections of a server since the last call, None where none was looked at."""
    most = max(_found, default=None)
    _found.clear()
    return most


@contextmanager
def counting_connections(dsn: str) -> Iterator[None]:
    """Look at the connections to a PostgreSQL several times a second, in a thread, from the owner's DSN."""
    over = Event()
    thread = Thread(target=_count, args=(dsn, over))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _count(dsn: str, over: Event) -> None:
    while not over.wait(_SAMPLE_S):
        with suppress(StoreError), connected(dsn) as connection, connection.cursor() as cursor:
            while not over.wait(_SAMPLE_S):
                cursor.execute(_COUNT)
                _found[:] = [max(_found + [count for (count,) in cursor.fetchall()], default=0)]
