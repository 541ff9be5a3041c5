"""Minutes: written by the processes that counted them, and summed over processes for windows.

A day of a busy tenant are thousands of rows. So the whole hours of a window come from their sums
(``storage.stores.monitoring.aggregation``), which are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from engine.cache.ports import MinuteRow
from engine.model.minutes import MINUTE_US, NO_TENANT, Durations, Minute, TenantMinutes
from storage.postgres.arrays import hex_array, int_array, text_array
from storage.postgres.connection import Statement
from storage.postgres.driver import Row
from storage.postgres.pool import Database
from storage.postgres.roles.named_tenants import of_tenant
from storage.postgres.transactions import LOCAL_SETTINGS
from storage.stores.tenant_rows import tenant_id_of

#: The columns of counts, in the order of the fields of ``Minute``.
COUNTS: Final = (
    "syncs",
    "failed",
    "refused",
    "items",
    "conflicts",
    "conflicts_open",
    "uploads_finished",
    "uploads_abandoned",
    "bytes_in",
    "replayed",
    "bytes_saved_compression",
)
_WRITTEN: Final = (*COUNTS, "duration_us", "duration_buckets", "duration_counts")
#: As ``Minute.events``: it grows with every count.
_EVENTS: Final = "{0}.syncs + {0}.items + {0}.uploads_finished + {0}.uploads_abandoned + {0}.bytes_in"
#: A row that is written when its hour has been over for so long is marked. The hour is summed at the earliest
#: when no row can be written any longer without a mark (``storage.stores.monitoring.aggregation``).
LATE_AFTER: Final = "interval '2 minutes'"
_PUT_COLUMNS: Final = f"(tenant_id, minute_start, process, {', '.join(_WRITTEN)}, late)"
#: A write that was given up may end after the one that took its place. So the higher count stays.
_PUT: Final = Statement(
    f"WITH put {_PUT_COLUMNS} AS MATERIALIZED"
    " (SELECT w.tenant_id, 'epoch'::timestamptz + w.start_us * interval '1 microsecond', w.process,"
    f" {', '.join(f'w.{name}' for name in COUNTS)}, w.duration_us, w.buckets::smallint[], w.counts::int[],"
    " 'epoch'::timestamptz + (w.start_us / 3600000000 + 1) * interval '1 hour'"
    f" < now() - {LATE_AFTER}"
    " FROM unnest(%(tenants)s::int[], %(starts)s::bigint[], %(processes)s::uuid[],"
    f" {', '.join(f'%({name})s::bigint[]' for name in COUNTS)}, %(duration_us)s::bigint[],"
    " %(buckets)s::text[], %(counts)s::text[])"
    f" AS w(tenant_id, start_us, process, {', '.join(COUNTS)}, duration_us, buckets, counts)"
    f" WHERE w.tenant_id = {NO_TENANT} OR EXISTS (SELECT FROM tenants WHERE tenants.tenant_id = w.tenant_id))"
    f" INSERT INTO sync_minutes AS t {_PUT_COLUMNS} SELECT * FROM put"
    " ON CONFLICT (tenant_id, minute_start, process) DO UPDATE SET"
    f" {', '.join(f'{name} = excluded.{name}' for name in (*_WRITTEN, 'late'))}"
    f" WHERE {_EVENTS.format('excluded')} > {_EVENTS.format('t')}"
)
_INSTANT: Final = "to_timestamp(%({0})s::float8 / 1000000)"
SINCE, UNTIL, BEFORE, _HOURS_SINCE, _HOURS_UNTIL = (
    _INSTANT.format(name) for name in ("since", "until", "before", "hours_since", "hours_until")
)
_COUNTED: Final = ", ".join(_WRITTEN)
#: Minutes of some tenants.
MINUTES: Final = (
    f"SELECT {{period}} AS period, tenant_id, {_COUNTED} FROM sync_minutes"
    " WHERE tenant_id = ANY(%(tenants)s::int[]) AND minute_start >= {since} AND minute_start < {until}"
)
_HOURS: Final = (
    "SELECT 0, tenant_id, sync_requests, failed, refused, items, conflicts_total, conflicts_manual,"
    " uploads_finished, uploads_abandoned, bytes_in, replayed, bytes_saved_compression,"
    " duration_us, duration_buckets, duration_counts"
    " FROM sync_analytics_snapshot WHERE tenant_id = ANY(%(tenants)s::int[])"
    f" AND hour_start >= {_HOURS_SINCE} AND hour_start < {_HOURS_UNTIL}"
)
#: Sums of rows by tenant and period; buckets are summed by bucket.
SUMS: Final = (
    "WITH m AS MATERIALIZED ({rows}),"
    " b AS (SELECT m.tenant_id, m.period, u.bucket, sum(u.n)::bigint AS n FROM m"
    " CROSS JOIN LATERAL unnest(m.duration_buckets, m.duration_counts) AS u(bucket, n) GROUP BY 1, 2, 3),"
    " d AS (SELECT tenant_id, period, array_agg(bucket) AS buckets, array_agg(n) AS counts FROM b"
    " GROUP BY 1, 2),"
    " s AS (SELECT tenant_id, period, "
    + ", ".join(f"sum({name})::bigint AS {name}" for name in (*COUNTS, "duration_us"))
    + " FROM m GROUP BY 1, 2)"
    " SELECT s.*, d.buckets, d.counts FROM s LEFT JOIN d USING (tenant_id, period) ORDER BY 1, 2"
)
#: Whole hours come from their sums, what is before and after them from minutes.
_WINDOW: Final = SUMS.format(
    rows=f"{MINUTES.format(period='0', since=SINCE, until=_HOURS_SINCE)} UNION ALL {_HOURS} UNION ALL"
    f" {MINUTES.format(period='0', since=_HOURS_UNTIL, until=UNTIL)}"
)
#: The end of the last hour whose sum has all that is written of it.
_SUMMED_UNTIL: Final = (
    "SELECT (extract(epoch FROM least(aggregated_until,"
    " (SELECT date_bin('1 hour', min(minute_start), 'epoch') FROM sync_minutes WHERE late)"
    ")) * 1000000)::bigint FROM cluster_state"
)
#: Rows that one statement reads: it takes a second at most, and reads of devices go on meanwhile.
_READ_ROWS: Final = 60_000
#: Tenants of one statement: its rows take the event loop a millisecond.
_TENANTS: Final = 50
#: Processes that count a tenant, as an estimate of its rows; and the rows that cost as much as an hour's sum.
_PROCESSES: Final = 4
_MINUTES_OF_HOUR: Final = 8
_HOUR_US: Final = 60 * MINUTE_US


class _Window(NamedTuple):
    """A window, and in it the hours whose sums are read."""

    since_us: int
    until_us: int
    hours_since_us: int
    hours_until_us: int


class PostgresMinutes:
    """``engine.cache.ports.MinuteStore`` and ``engine.operate.ports.MinuteReads``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, rows: list[MinuteRow]) -> None:
        """Store minutes."""
        await self._database.execute(_PUT, _values(rows), LOCAL_SETTINGS, {row.tenant_id for row in rows})

    async def windows(self, tenant: str | None, since_us: int, until_us: int) -> list[TenantMinutes]:
        """Sum the minutes of a window."""
        names = await self._names(tenant)
        ((summed_until_us,),) = await self._database.query(_SUMMED_UNTIL, tenants=of_tenant(tenant))
        window = _window(since_us, until_us, summed_until_us)
        summed: list[TenantMinutes] = []
        if tenant is None:
            without_hours = window._replace(hours_since_us=until_us, hours_until_us=until_us)
            summed += await self._summed({NO_TENANT: None}, [NO_TENANT], without_hours)
        for some in _chunks(list(names), window):
            summed += await self._summed(names, some, window)
        return summed

    async def _summed(
        self, names: Mapping[int, str | None], tenant_ids: Sequence[int], window: _Window
    ) -> list[TenantMinutes]:
        values = {
            "tenants": int_array(tenant_ids),
            "since": window.since_us,
            "hours_since": window.hours_since_us,
            "hours_until": window.hours_until_us,
            "until": window.until_us,
        }
        rows = await self._database.query(_WINDOW, values, tenant_ids)
        return [TenantMinutes(names[row[0]], summed_minute(row)) for row in rows]

    async def _names(self, tenant: str | None) -> dict[int, str | None]:
        if tenant is not None:
            return {await tenant_id_of(self._database, tenant): tenant}
        rows = await self._database.query("SELECT tenant_id, name FROM tenants ORDER BY name")
        return {int(tenant_id): str(name) for tenant_id, name in rows}


def _window(since_us: int, until_us: int, summed_until_us: int) -> _Window:
    """Return a window with its whole hours that are summed; without any, their span is empty, at its end."""
    first_us = -(-since_us // _HOUR_US) * _HOUR_US
    last_us = min(until_us, summed_until_us) // _HOUR_US * _HOUR_US
    span = (first_us, last_us) if first_us < last_us else (until_us, until_us)
    return _Window(since_us, until_us, *span)


def _chunks(tenant_ids: Sequence[int], window: _Window) -> Iterator[Sequence[int]]:
    """Split tenants into those that one statement reads."""
    hours_us = window.hours_until_us - window.hours_since_us
    rows = _PROCESSES * ((window.until_us - window.since_us - hours_us) // MINUTE_US + 1)
    rows += _MINUTES_OF_HOUR * hours_us // _HOUR_US
    size = max(1, min(_TENANTS, _READ_ROWS // rows))
    for first in range(0, len(tenant_ids), size):
        yield tenant_ids[first : first + size]


def summed_minute(row: Row) -> Minute:
    """Return the sums of a row of ``SUMS``."""
    _, _, *counts, duration_us, buckets, bucket_counts = row
    minute = Minute(*counts)
    if buckets:
        minute.durations = Durations.of(buckets, bucket_counts, duration_us)
    return minute


def _values(rows: list[MinuteRow]) -> dict[str, object]:
    minutes = [row.minute for row in rows]
    filled = [minute.durations.filled() for minute in minutes]
    values: dict[str, object] = {
        name: int_array(getattr(minute, name) for minute in minutes) for name in COUNTS
    }
    return values | {
        "tenants": int_array(row.tenant_id for row in rows),
        "starts": int_array(row.start_us for row in rows),
        "processes": hex_array(row.process for row in rows),
        "duration_us": int_array(minute.durations.sum_us for minute in minutes),
        "buckets": text_array(int_array(buckets) for buckets, _ in filled),
        "counts": text_array(int_array(counts) for _, counts in filled),
    }
