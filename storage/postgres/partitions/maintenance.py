"""Partitions by day of the tables that grow with time: added ahead, and dropped after their lifetime.

The last partition of a table, ``…_later``, takes all rows from its lower bound on. Days are split off it
while they are still ahead, when it is almost empty. Rows that it has for these days (the clock of a device
runs ahead, or no server ran for long) move in the same transaction. There is no DEFAULT partition.

If ``events_later`` has many rows, moving them and checking the rest would block every writer for long. Then
it is detached, another partition takes its place, and its rows move in small transactions. Its new bound is
a validated constraint, so that it is attached again without a scan. A read of an event that is dated ahead
looks into the detached table too (commit/reads.py), so that no event is missed. So it is never detached
while it may have events of the current days. A run that was killed is finished by the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from psycopg2.errors import LockNotAvailable

from engine.runtime.ports import StoreRetryError
from storage.postgres.blocking import connected, schema_change
from storage.postgres.cell.citus import is_distributed
from storage.postgres.partitions.bounds import (
    DAY,
    EVENTS,
    IDEMPOTENCY,
    Partition,
    Series,
    is_detached,
    last_begin,
    partitions_of,
    read_partitions,
    spans_between,
)
from storage.postgres.partitions.daily_usage import Daily, counted, dropping, subtract
from storage.postgres.plain_bytes import plain_bytes
from storage.postgres.roles.policies import close_partitions, secure_partitions
from storage.postgres.roles.tables import schema_of_tables

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

#: Servers may be down for a fortnight before a day has no partition.
DAYS_AHEAD: Final = 14
#: Syncs queue behind a statement that waits for a table. So it gives up soon and tries again.
_LOCK_TIMEOUT_MS: Final = 500
_TRIES: Final = 6
#: ``created_at`` is the begin of a transaction, which may be earlier than its rows, by clocks and locks.
_MARGIN: Final = timedelta(hours=2)

#: The last partition may have so many rows to be split in one transaction, which takes milliseconds.
_FEW_ROWS: Final = 10_000
#: The last partition must begin so far ahead to be detached.
_DETACH_AHEAD: Final = timedelta(days=7)
#: Blocks of 8 KiB whose rows move in one transaction, about 5,000 rows.
_MOVED_BLOCKS: Final = 64
#: Takes the place of ``events_later`` while that is detached.
_INTERIM: Final = "events_interim"
_BOUND: Final = "events_later_bound"

#: Deletes late events of days that were dropped, in batches, each a transaction of its own. Tenants that are
#: locked by a batch are left for the next run.
_LATE: Final = (
    f"WITH old AS MATERIALIZED (SELECT ctid AS place, tenant_id AS t, {plain_bytes('data::text')} AS b"
    " FROM events_earlier WHERE received_at < %(before)s LIMIT %(rows)s),"
    " held AS MATERIALIZED (SELECT tenant_id FROM tenant_counters"
    " WHERE tenant_id IN (SELECT t FROM old) FOR UPDATE SKIP LOCKED),"
    " gone AS (DELETE FROM events_earlier AS e USING old, held WHERE held.tenant_id = old.t"
    " AND e.ctid = old.place AND e.tenant_id = old.t RETURNING old.t, old.b),"
    " counted AS (UPDATE tenant_counters AS c SET event_rows = c.event_rows - w.n,"
    " event_bytes = c.event_bytes - w.b FROM (SELECT t, count(*) AS n, sum(b) AS b FROM gone GROUP BY t) AS w"
    " WHERE c.tenant_id = w.t) SELECT count(*) FROM gone"
)
_LATE_ROWS: Final = 5000


def maintain(dsn: str, lifetime_h: float, events_d: int = 0) -> dict[str, int]:
    """Add days ahead and drop days that are past their lifetime, by the clock of the database.

    Args:
        dsn: The database.
        lifetime_h: The lifetime of kept answers.
        events_d: The lifetime of events; 0 is for ever.

    Returns:
        The dropped days of kept answers (``answer_days``) and of events (``event_days``).

    Raises:
        StoreRetryError: A table was too busy; a later run does the rest.
        StoreError: The database is away.
    """
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT now()")
        now: datetime = cursor.fetchall()[0][0].astimezone(UTC)
    ensure_partitions(dsn, now.date(), DAYS_AHEAD)
    answer_days = len(drop_expired(dsn, now - timedelta(hours=lifetime_h)))
    return {"answer_days": answer_days, "event_days": drop_events(dsn, events_d)}


def ensure_partitions(dsn: str, today: date, days_ahead: int = DAYS_AHEAD) -> list[str]:
    """Give every day up to ``days_ahead`` from today a partition; return the names of new ones.

    Days before today without a partition share one. Raises StoreRetryError, StoreError.
    """
    made: list[str] = []
    until = today + (days_ahead + 1) * DAY
    with connected(dsn) as connection:
        with connection.cursor() as cursor:
            detached = is_detached(cursor)
        if detached:  # a run was killed
            _finish_detached(connection)
        for series in (EVENTS, IDEMPOTENCY):
            if last_begin(partitions_of(connection, series)) < until:
                apart = series is EVENTS and _is_ahead(connection, today) and _has_many_rows(connection)
                cut = _detach_later if apart else _split_later
                made += _with_retries(connection, partial(cut, series=series, today=today, until=until))
                if apart:
                    _finish_detached(connection)
        secure_partitions(connection)
    return made


def drop_expired(dsn: str, before: datetime) -> list[str]:
    """Drop the days of kept answers that ended before a time, with a margin; return their names.

    Raises StoreRetryError, StoreError.
    """
    last = (before - _MARGIN).astimezone(UTC).date()
    with connected(dsn) as connection:
        if not _expired(partitions_of(connection, IDEMPOTENCY), last):
            return []
        with dropping(dsn), connection.cursor() as cursor:
            return _drop_counted(connection, cursor, IDEMPOTENCY, last)


def _drop_counted(connection: Connection, cursor: Cursor, series: Series, last: date) -> list[str]:
    """Drop days, and subtract their rows from the usage of tenants."""
    kind: Daily = "answer" if series is IDEMPOTENCY else "event"
    drop = _drop if series is IDEMPOTENCY else _drop_events
    held = {name: counted(cursor, name, kind) for name in _expired(partitions_of(connection, series), last)}
    gone = _with_retries(connection, partial(drop, last=last))
    for name in gone:
        subtract(cursor, held.get(name, ()), kind)
    return gone


def drop_events(dsn: str, events_d: int) -> int:
    """Drop the days of events that ended more than ``events_d`` days ago; return how many. 0 drops none.

    The first partition, ``events_earlier``, takes their place, so that a device that comes back after years
    can store its events. These are deleted by the time of their arrival. Raises StoreRetryError, StoreError.
    """
    if not events_d:
        return 0
    with connected(dsn) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT now() - %s * interval '1 day'", (events_d,))
            before: datetime = cursor.fetchall()[0][0].astimezone(UTC)
        gone: list[str] = []
        if _expired(partitions_of(connection, EVENTS), before.date()):
            with dropping(dsn), connection.cursor() as cursor:
                gone = _drop_counted(connection, cursor, EVENTS, before.date())
        with connection.cursor() as cursor:
            while True:
                cursor.execute(_LATE, {"before": before, "rows": _LATE_ROWS})
                if cursor.fetchall()[0][0] < _LATE_ROWS:
                    return len(gone)


def _drop_events(cursor: Cursor, last: date) -> list[str]:
    """Drop days, and extend the first partition up to where they ended."""
    partitions = read_partitions(cursor, EVENTS)
    gone = _expired(partitions, last)
    if gone:
        ends = max(one.ends for one in partitions if one.name in gone and one.ends)
        for name in gone:
            cursor.execute(f"DROP TABLE {name}")
        cursor.execute("ALTER TABLE events DETACH PARTITION events_earlier")
        cursor.execute(
            "ALTER TABLE events ATTACH PARTITION events_earlier"
            f" FOR VALUES FROM (MINVALUE) TO ({EVENTS.bound(ends)})"
        )
    return gone


def _with_retries(connection: Connection, change: Callable[[Cursor], list[str]]) -> list[str]:
    for _ in range(_TRIES):
        try:
            with schema_change(connection, _LOCK_TIMEOUT_MS) as cursor:
                return change(cursor)
        except LockNotAvailable:
            continue
    raise StoreRetryError("a table is too busy to change its partitions now")


def _split_later(cursor: Cursor, series: Series, today: date, until: date) -> list[str]:
    """Split the days up to ``until`` off the last partition."""
    table, later = series.table, f"{series.table}_later"
    spans = list(spans_between(last_begin(read_partitions(cursor, series)), today, until))
    if not spans:
        return []
    for begins, _ in spans:  # made before anything is locked, so that locks last for milliseconds
        cursor.execute(f"CREATE TABLE {table}_{begins:%Y%m%d} (LIKE {table} INCLUDING ALL)")
    close_partitions(cursor, [f"{table}_{begins:%Y%m%d}" for begins, _ in spans])
    cursor.execute(f"ALTER TABLE {table} DETACH PARTITION {later}")
    for begins, ends in spans:
        cursor.execute(
            f"ALTER TABLE {table} ATTACH PARTITION {table}_{begins:%Y%m%d}"
            f" FOR VALUES FROM ({series.bound(begins)}) TO ({series.bound(ends)})"
        )
    cursor.execute(
        f"WITH moved AS (DELETE FROM {later} WHERE {series.column} < {series.bound(until)} RETURNING *)"
        f" INSERT INTO {table} SELECT * FROM moved"
    )
    cursor.execute(
        f"ALTER TABLE {table} ATTACH PARTITION {later} FOR VALUES FROM ({series.bound(until)}) TO (MAXVALUE)"
    )
    return [f"{table}_{begins:%Y%m%d}" for begins, _ in spans]


def _is_ahead(connection: Connection, today: date) -> bool:
    return last_begin(partitions_of(connection, EVENTS)) >= today + _DETACH_AHEAD


def _has_many_rows(connection: Connection) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM (SELECT FROM events_later LIMIT {_FEW_ROWS + 1}) AS found")
        return bool(cursor.fetchall()[0][0] > _FEW_ROWS)


def _detach_later(cursor: Cursor, series: Series, today: date, until: date) -> list[str]:
    """Add the days up to ``until``, and put another partition in the place of ``events_later``."""
    spans = list(spans_between(last_begin(read_partitions(cursor, series)), today, until))
    if not spans:
        return []
    ranges = [(f"events_{begins:%Y%m%d}", series.bound(begins), series.bound(ends)) for begins, ends in spans]
    ranges.append((_INTERIM, series.bound(until), "MAXVALUE"))
    for name, _, _ in ranges:
        cursor.execute(f"CREATE TABLE {name} (LIKE events_later INCLUDING ALL)")
    close_partitions(cursor, [name for name, _, _ in ranges])
    cursor.execute("ALTER TABLE events DETACH PARTITION events_later")
    for name, begins, ends in ranges:
        cursor.execute(f"ALTER TABLE events ATTACH PARTITION {name} FOR VALUES FROM ({begins}) TO ({ends})")
    return [name for name, _, _ in ranges[:-1]]


def _finish_detached(connection: Connection) -> None:
    """Move the rows of split days out of ``events_later``, and attach it. Processes may do so at once."""
    until = EVENTS.bound(last_begin(partitions_of(connection, EVENTS)))
    with connection.cursor() as cursor:
        size = (
            "citus_relation_size" if is_distributed(cursor, schema_of_tables(cursor)) else "pg_relation_size"
        )
        cursor.execute(f"SELECT {size}('events_later'::regclass) / current_setting('block_size')::int")
        blocks = int(cursor.fetchall()[0][0])
        for first in range(0, blocks, _MOVED_BLOCKS):
            _move_rows(cursor, first, until)
        _with_retries(connection, partial(_add_bound, until=until))
        with connection:
            cursor.execute("SET LOCAL statement_timeout = 0")
            cursor.execute(f"ALTER TABLE events_later VALIDATE CONSTRAINT {_BOUND}")
    _with_retries(connection, partial(_reattach_later, until=until))


def _move_rows(cursor: Cursor, first: int, until: str) -> None:
    cursor.execute(
        f"WITH moved AS (DELETE FROM events_later WHERE ctid >= '({first},0)'"
        f" AND ctid < '({first + _MOVED_BLOCKS},0)' AND sent_at_us < {until} RETURNING *)"
        " INSERT INTO events SELECT * FROM moved"
    )


def _add_bound(cursor: Cursor, until: str) -> list[str]:
    cursor.execute(f"ALTER TABLE events_later DROP CONSTRAINT IF EXISTS {_BOUND}")
    cursor.execute(
        f"ALTER TABLE events_later ADD CONSTRAINT {_BOUND} CHECK (sent_at_us >= {until}) NOT VALID"
    )
    return []


def _reattach_later(cursor: Cursor, until: str) -> list[str]:
    cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (_INTERIM,))
    if cursor.fetchall() == [(True,)]:  # otherwise another process did it
        cursor.execute(f"ALTER TABLE events DETACH PARTITION {_INTERIM}")
        cursor.execute(
            f"ALTER TABLE events ATTACH PARTITION events_later FOR VALUES FROM ({until}) TO (MAXVALUE)"
        )
        cursor.execute(f"INSERT INTO events SELECT * FROM {_INTERIM}")
        cursor.execute(f"DROP TABLE {_INTERIM}")
    cursor.execute(f"ALTER TABLE events_later DROP CONSTRAINT IF EXISTS {_BOUND}")
    return []


def _drop(cursor: Cursor, last: date) -> list[str]:
    """Drop days of kept answers."""
    gone = _expired(read_partitions(cursor, IDEMPOTENCY), last)
    for name in gone:
        cursor.execute(f"DROP TABLE {name}")
    return gone


def _expired(partitions: list[Partition], last: date) -> list[str]:
    """Return the days that ended by ``last``; partitions without a bound stay."""
    return [one.name for one in partitions if one.begins and one.ends and one.ends <= last]
