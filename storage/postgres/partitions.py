"""Days of the tables that grow by time: added ahead, and dropped when nobody may ask for them.

A table's last partition, ``…_later``, takes everything from its lower bound on. Days are cut off its
front while they are ahead, so that it is all but empty then; rows that it holds for them (a device's
clock runs ahead, or nobody was here for long) are moved in the same transaction. There is no DEFAULT
partition.

Where ``events_later`` holds many rows, moving them and looking through the rest would keep every writer
waiting for long. Then it is set apart, with another partition in its place, and moves its rows in small
transactions. Its new bound is a constraint that was validated, so that it is attached again without a look at
its rows. Whoever looks for an event that is dated ahead looks into it as well (commit/reads.py), so
that none is missed meanwhile; so it is never set apart while it may have events of these days. What was cut
short is finished by the next run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from psycopg2.errors import LockNotAvailable

from engine.runtime.ports import StoreRetryError
from storage.postgres.blocking import connected, schema_change
from storage.postgres.daily_usage import Daily, counted, dropping, subtract
from storage.postgres.driver import Row
from storage.postgres.pool import Database

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

#: Missed runs of a fortnight do no harm.
DAYS_AHEAD: Final = 14
#: Syncs queue behind whoever waits for a table: rather give up and try again.
_LOCK_TIMEOUT_MS: Final = 500
_TRIES: Final = 6
#: A transaction may have begun, and so its created_at be, before a clock or a lock let it write.
_MARGIN: Final = timedelta(hours=2)

#: Of the last partition so many rows are moved and looked through in one transaction: milliseconds.
_FEW_ROWS: Final = 10_000
#: The last partition begins so far ahead when it is set apart.
_APART_AHEAD: Final = timedelta(days=7)
#: Blocks of 8 KiB that are gone through in one transaction, about 5,000 rows.
_MOVED_BLOCKS: Final = 64
#: Stands in for ``events_later`` while that is set apart.
_INTERIM: Final = "events_interim"
_BOUND: Final = "events_later_bound"

_DAY: Final = timedelta(days=1)
_DAY_US: Final = 86_400_000_000
_EPOCH: Final = date(1970, 1, 1)
#: The ends of what a bigint can say.
_EARLIEST_US: Final = -(1 << 63)
_LATEST_US: Final = (1 << 63) - 1
#: Events of days that are gone, which came late. In batches: each is a transaction of its own.
#: Tenants that a batch has at hand are left for the next run.
_LATE: Final = (
    "WITH old AS MATERIALIZED (SELECT ctid AS place, tenant_id AS t, octet_length(data::text) AS b"
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
_BOUNDS: Final = re.compile(r"FOR VALUES FROM \('?([^')]+)'?\) TO \('?([^')]+)'?\)\Z")


#: Whether ``events_later`` is set apart.
_APART: Final = "SELECT NOT relispartition FROM pg_class WHERE oid = 'events_later'::regclass"
#: The bounds of partitions, written in UTC whatever the settings of the role.
_PARTITIONS_OF: Final = (
    "SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO';"
    " SELECT part.relname::text, pg_get_expr(part.relpartbound, part.oid) FROM pg_inherits"
    " JOIN pg_class AS part ON part.oid = inhrelid WHERE inhparent = %(table)s::regclass"
    " ORDER BY part.relname"
)


class _Series(NamedTuple):
    """A table partitioned by day of ``column``: how a day's beginning is written in SQL, and read."""

    table: str
    column: str
    bound: Callable[[date], str]
    day: Callable[[str], date]


class _Partition(NamedTuple):
    """Days from ``begins`` up to, not including, ``ends``; None is without bound."""

    name: str
    begins: date | None
    ends: date | None


def _us(day: date) -> str:
    return str((day - _EPOCH).days * _DAY_US)


def _of_us(text: str) -> date:
    return _EPOCH + timedelta(days=int(text) // _DAY_US)


def _instant(day: date) -> str:
    return f"'{day} 00:00:00+00'"


def _of_instant(text: str) -> date:
    return datetime.fromisoformat(text).astimezone(UTC).date()


EVENTS: Final = _Series("events", "sent_at_us", _us, _of_us)
IDEMPOTENCY: Final = _Series("sync_idempotency_record", "created_at", _instant, _of_instant)


def maintain(dsn: str, lifetime_h: float, events_d: int = 0) -> None:
    """Add days ahead and drop answers kept for longer than ``lifetime_h``, by the database's clock.

    Days of events go after ``events_d``, where that is not 0.

    Raises StoreRetryError when a table was too busy; nothing is lost by trying again later.
    """
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT now()")
        now: datetime = cursor.fetchall()[0][0].astimezone(UTC)
    ensure_partitions(dsn, now.date(), DAYS_AHEAD)
    drop_expired(dsn, now - timedelta(hours=lifetime_h))
    drop_events(dsn, events_d)


def ensure_partitions(dsn: str, today: date, days_ahead: int = DAYS_AHEAD) -> list[str]:
    """Give every day up to ``days_ahead`` from today a partition of its own; return those made.

    Days before today for which there is none yet share one. Raises StoreRetryError, StoreError.
    """
    made: list[str] = []
    until = today + (days_ahead + 1) * _DAY
    with connected(dsn) as connection:
        if _is_apart(connection):  # a run was cut short
            _join(connection)
        for series in (EVENTS, IDEMPOTENCY):
            if _front(_partitions(connection, series)) < until:
                apart = series is EVENTS and _is_ahead(connection, today) and _holds_many(connection)
                cut = _set_apart if apart else _cut
                made += _patiently(connection, partial(cut, series=series, today=today, until=until))
                if apart:
                    _join(connection)
    return made


def days_ahead(dsn: str, today: date) -> int:
    """Count the days from today on that have partitions, in the table that has fewest. Raises StoreError."""
    with connected(dsn) as connection:
        fronts = [_front(_partitions(connection, series)) for series in (EVENTS, IDEMPOTENCY)]
    return max(0, (min(fronts) - today).days)


async def event_days(database: Database) -> list[tuple[int, int]]:
    """List the spans that have partitions of events, from the earliest on, in microseconds since 1970.

    Raises StoreRetryError while ``events_later`` is set apart: a reader of ``events`` misses what is in it.
    """
    if await database.query(_APART) == [(True,)]:
        raise StoreRetryError("days of events are being moved: try again in a minute")
    found = _parsed(await database.query(_PARTITIONS_OF, {"table": EVENTS.table}), EVENTS)
    return sorted(
        (
            _EARLIEST_US if one.begins is None else int(_us(one.begins)),
            _LATEST_US if one.ends is None else int(_us(one.ends)),
        )
        for one in found
    )


def drop_expired(dsn: str, before: datetime) -> list[str]:
    """Drop the days of kept answers that ended well before an instant; return those dropped.

    Raises StoreRetryError, StoreError.
    """
    last = (before - _MARGIN).astimezone(UTC).date()
    with connected(dsn) as connection:
        if not _expired(_partitions(connection, IDEMPOTENCY), last):
            return []
        with dropping(dsn), connection.cursor() as cursor:
            return _drop_counted(connection, cursor, IDEMPOTENCY, last)


def _drop_counted(connection: Connection, cursor: Cursor, series: _Series, last: date) -> list[str]:
    """Drop days, and take what was in them off what their tenants hold."""
    kind: Daily = "answer" if series is IDEMPOTENCY else "event"
    drop = _drop if series is IDEMPOTENCY else _drop_events
    held = {name: counted(cursor, name, kind) for name in _expired(_partitions(connection, series), last)}
    gone = _patiently(connection, partial(drop, last=last))
    for name in gone:
        subtract(cursor, held.get(name, ()), kind)
    return gone


def drop_events(dsn: str, events_d: int) -> int:
    """Drop the days of events that ended more than ``events_d`` days ago, 0 being never; count those dropped.

    The first partition, ``events_earlier``, takes their place, so that an event whose device comes back after
    years is stored still. What it holds goes by when it was received. Raises StoreRetryError, StoreError.
    """
    if not events_d:
        return 0
    with connected(dsn) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT now() - %s * interval '1 day'", (events_d,))
            before: datetime = cursor.fetchall()[0][0].astimezone(UTC)
        gone: list[str] = []
        if _expired(_partitions(connection, EVENTS), before.date()):
            with dropping(dsn), connection.cursor() as cursor:
                gone = _drop_counted(connection, cursor, EVENTS, before.date())
        with connection.cursor() as cursor:
            while True:
                cursor.execute(_LATE, {"before": before, "rows": _LATE_ROWS})
                if cursor.fetchall()[0][0] < _LATE_ROWS:
                    return len(gone)


def _drop_events(cursor: Cursor, last: date) -> list[str]:
    """Drop days, and have the first partition begin where they ended."""
    partitions = _read(cursor, EVENTS)
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


def _patiently(connection: Connection, change: Callable[[Cursor], list[str]]) -> list[str]:
    for _ in range(_TRIES):
        try:
            with schema_change(connection, _LOCK_TIMEOUT_MS) as cursor:
                return change(cursor)
        except LockNotAvailable:
            continue
    raise StoreRetryError("a table is too busy to change its partitions now")


def _cut(cursor: Cursor, series: _Series, today: date, until: date) -> list[str]:
    """Cut the days up to ``until`` off the front of the last partition."""
    table, later = series.table, f"{series.table}_later"
    spans = list(_spans(_front(_read(cursor, series)), today, until))
    if not spans:
        return []
    for begins, _ in spans:  # standalone: what is locked from here on is locked for milliseconds
        cursor.execute(f"CREATE TABLE {table}_{begins:%Y%m%d} (LIKE {table} INCLUDING ALL)")
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
    return _front(_partitions(connection, EVENTS)) >= today + _APART_AHEAD


def _holds_many(connection: Connection) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM (SELECT FROM events_later LIMIT {_FEW_ROWS + 1}) AS found")
        return bool(cursor.fetchall()[0][0] > _FEW_ROWS)


def _is_apart(connection: Connection) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(_APART)
        return bool(cursor.fetchall()[0][0])


def _set_apart(cursor: Cursor, series: _Series, today: date, until: date) -> list[str]:
    """Cut the days up to ``until``, and have another partition in place of ``events_later``."""
    spans = list(_spans(_front(_read(cursor, series)), today, until))
    if not spans:
        return []
    ranges = [(f"events_{begins:%Y%m%d}", series.bound(begins), series.bound(ends)) for begins, ends in spans]
    ranges.append((_INTERIM, series.bound(until), "MAXVALUE"))
    for name, _, _ in ranges:
        cursor.execute(f"CREATE TABLE {name} (LIKE events_later INCLUDING ALL)")
    cursor.execute("ALTER TABLE events DETACH PARTITION events_later")
    for name, begins, ends in ranges:
        cursor.execute(f"ALTER TABLE events ATTACH PARTITION {name} FOR VALUES FROM ({begins}) TO ({ends})")
    return [name for name, _, _ in ranges[:-1]]


def _join(connection: Connection) -> None:
    """Empty ``events_later`` of what is cut off it, and put it back. Several may do so at once."""
    until = EVENTS.bound(_front(_partitions(connection, EVENTS)))
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_relation_size('events_later') / current_setting('block_size')::int")
        blocks = int(cursor.fetchall()[0][0])
        for first in range(0, blocks, _MOVED_BLOCKS):
            _move(cursor, first, until)
        _patiently(connection, partial(_add_bound, until=until))
        cursor.execute("SET statement_timeout = 0")
        cursor.execute(f"ALTER TABLE events_later VALIDATE CONSTRAINT {_BOUND}")
    _patiently(connection, partial(_put_back, until=until))


def _move(cursor: Cursor, first: int, until: str) -> None:
    cursor.execute(
        f"WITH moved AS (DELETE FROM events_later WHERE ctid >= '({first},0)'"
        f" AND ctid < '({first + _MOVED_BLOCKS},0)' AND sent_at_us < {until} RETURNING *)"
        " INSERT INTO events SELECT * FROM moved"
    )


def _add_bound(cursor: Cursor, until: str) -> list[str]:
    cursor.execute(
        f"ALTER TABLE events_later DROP CONSTRAINT IF EXISTS {_BOUND},"
        f" ADD CONSTRAINT {_BOUND} CHECK (sent_at_us >= {until}) NOT VALID"
    )
    return []


def _put_back(cursor: Cursor, until: str) -> list[str]:
    cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (_INTERIM,))
    if cursor.fetchall() == [(True,)]:  # else another process did so by now
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
    gone = _expired(_read(cursor, IDEMPOTENCY), last)
    for name in gone:
        cursor.execute(f"DROP TABLE {name}")
    return gone


def _expired(partitions: list[_Partition], last: date) -> list[str]:
    """Find the days that ended by ``last``; those without bounds stay, whatever the time."""
    return [one.name for one in partitions if one.begins and one.ends and one.ends <= last]


def _spans(begins: date, today: date, until: date) -> Iterator[tuple[date, date]]:
    if begins < today:
        yield begins, today
        begins = today
    while begins < until:
        yield begins, begins + _DAY
        begins += _DAY


def _partitions(connection: Connection, series: _Series) -> list[_Partition]:
    with connection, connection.cursor() as cursor:
        return _read(cursor, series)


def _read(cursor: Cursor, series: _Series) -> list[_Partition]:
    cursor.execute(_PARTITIONS_OF, {"table": series.table})
    return _parsed(cursor.fetchall(), series)


def _parsed(rows: list[tuple[str, str]] | list[Row], series: _Series) -> list[_Partition]:
    partitions = []
    for name, text in rows:
        bounds = _BOUNDS.match(text)
        if bounds is not None:
            low, high = bounds.groups()
            begins = None if low == "MINVALUE" else series.day(low)
            partitions.append(_Partition(name, begins, None if high == "MAXVALUE" else series.day(high)))
    return partitions


def _front(partitions: list[_Partition]) -> date:
    """Find where the last partition begins."""
    return next(one.begins for one in partitions if one.begins and not one.ends)
