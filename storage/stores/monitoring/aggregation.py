"""Snapshots: the hours of tenants, summed from minutes and from what commits counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engine.model.commit_counts import HOUR_US
from engine.operate.figures.aggregation import CAUGHT_UP_US, HoursDue, LateHour, Snapshot
from storage.postgres.arrays import int_array, number_array_or_null, text_array
from storage.postgres.pool import Database
from storage.postgres.roles.named_tenants import EVERYONE
from storage.stores.monitoring.hours import HOUR_OF_MINUTE, SYNCED, read_hours, span
from storage.stores.monitoring.minutes import BEFORE, LATE_AFTER, SINCE, UNTIL

#: An hour is summed when each of its minutes that is still to come will be marked as late.
_SETTLED_AFTER: Final = f"({LATE_AFTER} + interval '1 minute')"
_DUE: Final = (
    "SELECT (extract(epoch FROM aggregated_until) * 1000000)::bigint,"
    f" (extract(epoch FROM date_bin('1 hour', now() - {_SETTLED_AFTER}, 'epoch')) * 1000000)::bigint"
    " FROM cluster_state"
)
#: An hour's counts that are set aside later than its end are not summed yet.
_LATE: Final = (
    f"SELECT DISTINCT {HOUR_OF_MINUTE}, tenant_id FROM sync_minutes WHERE late AND minute_start < {SINCE}"
    " AND minute_start >= to_timestamp(%(from)s::float8 / 1000000)"
    f" UNION SELECT sync_hour * {HOUR_US}, tenant_id FROM sync_hour_counts"
    f" WHERE NOT summed AND sync_hour < %(since)s::bigint / {HOUR_US}"
    f" AND sync_hour >= %(from)s::bigint / {HOUR_US}"
)
#: As the commit path does it (``storage.stores.commit.writes``), and in the same order of locks.
_END_HOURS: Final = (
    "WITH over AS MATERIALIZED (SELECT tenant_id, sync_hour, sync_counts FROM tenant_counters"
    " WHERE tenant_id = ANY(%(tenants)s::int[]) AND sync_counts IS NOT NULL"
    " AND sync_hour < floor(extract(epoch FROM now()) / 3600) ORDER BY tenant_id FOR UPDATE),"
    " moved AS (INSERT INTO sync_hour_counts (tenant_id, sync_hour, sync_counts) SELECT * FROM over)"
    " UPDATE tenant_counters AS c SET sync_counts = NULL FROM over WHERE c.tenant_id = over.tenant_id"
)
_SUMMED_COUNTS: Final = (
    "UPDATE sync_hour_counts SET summed = true WHERE NOT summed AND tenant_id = ANY(%(tenants)s::int[])"
    " AND sync_hour >= %(since_hour)s AND sync_hour < %(until_hour)s"
)
_UNMARK: Final = (
    "UPDATE sync_minutes SET late = false WHERE late AND tenant_id = ANY(%(tenants)s::int[])"
    f" AND minute_start >= {SINCE} AND minute_start < {UNTIL}"
)
_BUCKETS: Final = ("duration_buckets", "duration_counts")
_UNIQUES: Final = ("unique_devices", "unique_users")
_FIGURES: Final = tuple(name for name in Snapshot._fields if name != "domains")
_COLUMNS: Final = f"(tenant_id, hour_start, {', '.join((*_FIGURES, *_BUCKETS, 'domains', *_UNIQUES))})"
_WRITE: Final = (
    f"WITH hours {_COLUMNS} AS MATERIALIZED (SELECT w.*, u.devices, u.users"
    " FROM (SELECT w.tenant_id, to_timestamp(w.hour_us / 1000000) AS hour_start, "
    + ", ".join(f"w.{name}" for name in _FIGURES)
    + ", w.duration_buckets::smallint[], w.duration_counts::int[], w.domains::jsonb"
    " FROM unnest(%(tenants)s::int[], %(hours)s::bigint[], "
    + ", ".join(f"%({name})s::float8[]" for name in _FIGURES)
    + ", %(duration_buckets)s::text[], %(duration_counts)s::text[], %(domains)s::text[])"
    f" AS w(tenant_id, hour_us, {', '.join(_FIGURES)}, duration_buckets, duration_counts, domains)"
    ") AS w CROSS JOIN LATERAL (SELECT count(*) AS devices, count(DISTINCT user_id) AS users"
    " FROM sync_device_hours AS d WHERE d.tenant_id = w.tenant_id AND d.hour_start = w.hour_start"
    f" AND {SYNCED}) AS u WHERE EXISTS (SELECT FROM tenants WHERE tenants.tenant_id = w.tenant_id))"
    f" INSERT INTO sync_analytics_snapshot AS t {_COLUMNS} SELECT * FROM hours"
    " ON CONFLICT (tenant_id, hour_start) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in (*Snapshot._fields, *_BUCKETS, *_UNIQUES))
    + " RETURNING 1"
)
_DAY: Final = (
    "INSERT INTO sync_analytics_day (tenant_id, day, unique_devices, unique_users)"
    " SELECT d.tenant_id, (to_timestamp(%(day)s::bigint) AT TIME ZONE 'UTC')::date,"
    " count(DISTINCT device_id), count(DISTINCT user_id) FROM sync_device_hours AS d"
    " WHERE d.tenant_id = ANY(%(tenants)s::int[]) AND hour_start >= to_timestamp(%(day)s::bigint)"
    f" AND hour_start < to_timestamp(%(day)s::bigint + 86400) AND {SYNCED} GROUP BY 1"
    " ON CONFLICT (tenant_id, day) DO UPDATE SET unique_devices = excluded.unique_devices,"
    " unique_users = excluded.unique_users"
)
_SUMMED: Final = f"UPDATE cluster_state SET aggregated_until = {UNTIL} WHERE aggregated_until < {UNTIL}"
#: Tenant by tenant, by the primary key: an index of time alone would cost every minute a write.
_DELETE_MINUTES: Final = (
    "WITH old AS MATERIALIZED (SELECT f.* FROM"
    " (SELECT 0 AS tenant_id UNION ALL SELECT tenant_id FROM tenants) AS t CROSS JOIN LATERAL"
    " (SELECT m.tenant_id AS t, m.minute_start AS s, m.process AS p FROM sync_minutes AS m"
    f" WHERE m.tenant_id = t.tenant_id AND m.minute_start < {BEFORE}"
    " ORDER BY m.minute_start LIMIT %(limit)s::int) AS f LIMIT %(limit)s::int),"
    " gone AS (DELETE FROM sync_minutes AS g USING old WHERE g.tenant_id = old.t AND g.minute_start = old.s"
    " AND g.process = old.p RETURNING 1) SELECT count(*) FROM gone"
)
_DELETE_COUNTS: Final = (
    "WITH old AS MATERIALIZED (SELECT f.* FROM tenants AS t CROSS JOIN LATERAL"
    " (SELECT m.tenant_id AS t, m.sync_hour AS s, m.part AS p FROM sync_hour_counts AS m"
    f" WHERE m.tenant_id = t.tenant_id AND m.sync_hour < %(before)s::bigint / {HOUR_US}"
    " ORDER BY m.sync_hour LIMIT %(limit)s::int) AS f LIMIT %(limit)s::int),"
    " gone AS (DELETE FROM sync_hour_counts AS g USING old WHERE g.tenant_id = old.t AND g.sync_hour = old.s"
    " AND g.part = old.p RETURNING 1) SELECT count(*) FROM gone"
)
_DELETE_DEVICE_HOURS: Final = (
    "WITH old AS MATERIALIZED (SELECT tenant_id AS t, device_id AS d, hour_start AS s FROM sync_device_hours"
    f" WHERE hour_start < {BEFORE} ORDER BY hour_start LIMIT %(limit)s::int),"
    " gone AS (DELETE FROM sync_device_hours AS g USING old WHERE g.tenant_id = old.t"
    " AND g.device_id = old.d AND g.hour_start = old.s RETURNING 1) SELECT count(*) FROM gone"
)


class PostgresAggregation:
    """``engine.operate.figures.aggregation.AggregationStore``.

    Statements are planned each time: tables grow.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(self) -> HoursDue:
        """Read what is to be summed."""
        database = self._database
        ((since_us, until_us),) = await database.query(_DUE)
        tenants = await database.query("SELECT tenant_id FROM tenants ORDER BY tenant_id")
        late = await database.query(_LATE, {"since": since_us, "from": until_us - CAUGHT_UP_US}, EVERYONE)
        return HoursDue(
            since_us, until_us, [int(tenant_id) for (tenant_id,) in tenants], [LateHour(*row) for row in late]
        )

    async def end_hours(self, tenant_ids: Sequence[int]) -> None:
        """Set aside what was counted in hours that are over."""
        await self._database.execute(_END_HOURS, {"tenants": int_array(tenant_ids)}, tenants=tenant_ids)

    async def sum_hours(self, tenant_ids: Sequence[int], since_us: int, until_us: int) -> int:
        """Write snapshots. A late minute that comes meanwhile waits for the mark, and is marked again."""
        async with self._database.transaction(tenants=tenant_ids) as transaction:
            which = span(tenant_ids, since_us, until_us)
            await transaction.query(_UNMARK, which)
            await transaction.query(_SUMMED_COUNTS, which)
            hours = await read_hours(transaction, tenant_ids, since_us, until_us)
            if not hours:
                return 0
            filled = [hour.durations.filled() for hour in hours]
            columns = dict(
                zip(Snapshot._fields, zip(*[hour.figures for hour in hours], strict=True), strict=True)
            )
            values: dict[str, object] = {name: number_array_or_null(columns[name]) for name in _FIGURES}
            values["tenants"] = int_array(hour.tenant_id for hour in hours)
            values["hours"] = int_array(hour.start_us for hour in hours)
            values["duration_buckets"] = text_array(int_array(buckets) for buckets, _ in filled)
            values["duration_counts"] = text_array(int_array(counts) for _, counts in filled)
            values["domains"] = text_array(columns["domains"])
            return len(await transaction.query(_WRITE, values))

    async def sum_day(self, tenant_ids: Sequence[int], day_us: int) -> None:
        """Count the devices and users of a day."""
        which = {"tenants": int_array(tenant_ids), "day": day_us // 1_000_000}
        await self._database.execute(_DAY, which, tenants=tenant_ids)

    async def summed(self, until_us: int) -> None:
        """Store up to where all hours are summed; it never goes back."""
        await self._database.execute(_SUMMED, {"until": until_us})

    async def delete_minutes(self, before_us: int, limit: int) -> int:
        """Delete minutes, each tenant's oldest first."""
        return await self._delete(_DELETE_MINUTES, before_us, limit)

    async def delete_counts(self, before_us: int, limit: int) -> int:
        """Delete counts of commits, each tenant's oldest first."""
        return await self._delete(_DELETE_COUNTS, before_us, limit)

    async def delete_device_hours(self, before_us: int, limit: int) -> int:
        """Delete devices' hours, the oldest first."""
        return await self._delete(_DELETE_DEVICE_HOURS, before_us, limit)

    async def _delete(self, statement: str, before_us: int, limit: int) -> int:
        ((count,),) = await self._database.execute(
            statement, {"before": before_us, "limit": limit}, tenants=EVERYONE
        )
        return int(count)
