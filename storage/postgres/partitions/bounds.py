"""The days of partitioned tables: how bounds are written and read, and which partitions there are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from engine.runtime.ports import StoreRetryError
from storage.postgres.driver import Row
from storage.postgres.pool import Database

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so
    from psycopg2.extensions import cursor as Cursor  # noqa: N812

DAY: Final = timedelta(days=1)
_DAY_US: Final = 86_400_000_000
_EPOCH: Final = date(1970, 1, 1)
#: The range of a bigint.
_EARLIEST_US: Final = -(1 << 63)
_LATEST_US: Final = (1 << 63) - 1
_BOUNDS: Final = re.compile(r"FOR VALUES FROM \('?([^')]+)'?\) TO \('?([^')]+)'?\)\Z")

#: Whether ``events_later`` is detached.
_DETACHED: Final = "SELECT NOT relispartition FROM pg_class WHERE oid = 'events_later'::regclass"
#: The bounds of partitions, written in UTC whatever the settings of the role.
_PARTITIONS_OF: Final = (
    "SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO';"
    " SELECT part.relname::text, pg_get_expr(part.relpartbound, part.oid) FROM pg_inherits"
    " JOIN pg_class AS part ON part.oid = inhrelid WHERE inhparent = '{}'::regclass"
    " ORDER BY part.relname"
)


class Series(NamedTuple):
    """A table with partitions by the day of ``column``; ``bound`` writes a day in SQL, ``day`` reads it."""

    table: str
    column: str
    bound: Callable[[date], str]
    day: Callable[[str], date]


class Partition(NamedTuple):
    """The days from ``begins`` to before ``ends``; None is no bound."""

    name: str
    begins: date | None
    ends: date | None


def _us_of_day(day: date) -> str:
    return str((day - _EPOCH).days * _DAY_US)


def _day_of_us(text: str) -> date:
    return _EPOCH + timedelta(days=int(text) // _DAY_US)


def _timestamp_of_day(day: date) -> str:
    return f"'{day} 00:00:00+00'"


def _day_of_timestamp(text: str) -> date:
    return datetime.fromisoformat(text).astimezone(UTC).date()


EVENTS: Final = Series("events", "sent_at_us", _us_of_day, _day_of_us)
IDEMPOTENCY: Final = Series("sync_idempotency_record", "created_at", _timestamp_of_day, _day_of_timestamp)


async def event_days(database: Database) -> list[tuple[int, int]]:
    """List the spans with partitions of events, the earliest first, in microseconds since 1970.

    Raises StoreRetryError while ``events_later`` is detached: a read of ``events`` misses its rows.
    """
    if await database.query(_DETACHED) == [(True,)]:
        raise StoreRetryError("days of events are being moved: try again in a minute")
    found = _parsed(await database.query(_PARTITIONS_OF.format(EVENTS.table)), EVENTS)
    return sorted(
        (
            _EARLIEST_US if one.begins is None else int(_us_of_day(one.begins)),
            _LATEST_US if one.ends is None else int(_us_of_day(one.ends)),
        )
        for one in found
    )


def spans_between(begins: date, today: date, until: date) -> Iterator[tuple[date, date]]:
    """Yield the days from ``begins`` to before ``until``; all before ``today`` are one span."""
    if begins < today:
        yield begins, today
        begins = today
    while begins < until:
        yield begins, begins + DAY
        begins += DAY


def is_detached(cursor: Cursor) -> bool:
    """Return whether ``events_later`` is detached: its rows are moved, or a run was killed."""
    cursor.execute(_DETACHED)
    return bool(cursor.fetchall()[0][0])


def partitions_of(connection: Connection, series: Series) -> list[Partition]:
    """List the partitions of a table by name, in a transaction of its own."""
    with connection, connection.cursor() as cursor:
        return read_partitions(cursor, series)


def read_partitions(cursor: Cursor, series: Series) -> list[Partition]:
    """List the partitions of a table by name, in the transaction of the caller."""
    cursor.execute(_PARTITIONS_OF.format(series.table))
    return _parsed(cursor.fetchall(), series)


def _parsed(rows: list[tuple[str, str]] | list[Row], series: Series) -> list[Partition]:
    partitions = []
    for name, text in rows:
        bounds = _BOUNDS.match(text)
        if bounds is not None:
            low, high = bounds.groups()
            begins = None if low == "MINVALUE" else series.day(low)
            partitions.append(Partition(name, begins, None if high == "MAXVALUE" else series.day(high)))
    return partitions


def last_begin(partitions: list[Partition]) -> date:
    """Return where the last partition begins."""
    return next(one.begins for one in partitions if one.begins and not one.ends)
