"""What analytics reads: snapshots, and the hours that have none yet as they are now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from engine.model.commit_counts import Unit
from engine.model.minutes import Durations
from engine.operate.figures.aggregation import Snapshot
from engine.operate.figures.analytics import HourFigures, Uniques
from storage.postgres.pool import Database
from storage.stores.monitoring.hours import SYNCED, read_hours
from storage.stores.monitoring.minutes import SINCE, UNTIL
from storage.stores.tenant_rows import tenant_id_of

_SUMMED_UNTIL: Final = "SELECT (extract(epoch FROM aggregated_until) * 1000000)::bigint FROM cluster_state"
_SNAPSHOTS: Final = (
    "SELECT (extract(epoch FROM hour_start) * 1000000)::bigint, duration_buckets, duration_counts, "
    + ", ".join(f"{name}::text" if name == "domains" else name for name in Snapshot._fields)
    + " FROM sync_analytics_snapshot WHERE tenant_id = %(tenant)s"
    f" AND hour_start >= {SINCE} AND hour_start < {UNTIL} ORDER BY hour_start"
)


#: What was stored of an hour or a day comes first: the hours of devices that it was counted from are deleted.
_UNIQUES: Final = (
    "SELECT 0, (extract(epoch FROM {start}) * 1000000)::bigint, unique_devices, unique_users FROM {table}"
    f" WHERE tenant_id = %(tenant)s AND {{start}} >= {SINCE} AND {{start}} < {UNTIL}"
    " UNION ALL SELECT 1, (extract(epoch FROM f.start) * 1000000)::bigint, f.devices, f.users FROM"
    " (SELECT date_bin('1 {unit}', d.hour_start, 'epoch') AS start,"
    " count(DISTINCT d.device_id) AS devices, count(DISTINCT d.user_id) AS users"
    f" FROM sync_device_hours AS d WHERE d.tenant_id = %(tenant)s AND d.hour_start >= {SINCE}"
    f" AND d.hour_start < {UNTIL} AND {SYNCED} GROUP BY 1) AS f ORDER BY 1"
)
_UNIQUES_BY: Final[Mapping[Unit, str]] = {
    "hour": _UNIQUES.format(unit="hour", table="sync_analytics_snapshot", start="hour_start"),
    "day": _UNIQUES.format(
        unit="day", table="sync_analytics_day", start="(day::timestamp AT TIME ZONE 'UTC')"
    ),
}


class PostgresAnalytics:
    """``engine.operate.figures.analytics.AnalyticsReads``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def hours(self, tenant: str, since_us: int, until_us: int) -> list[HourFigures]:
        """Read a tenant's hours."""
        database = self._database
        tenant_id = await tenant_id_of(database, tenant)
        ((summed_until_us,),) = await database.query(_SUMMED_UNTIL)
        split_us = min(max(since_us, summed_until_us), until_us)
        values = {"tenant": tenant_id, "since": since_us, "until": split_us}
        hours = []
        for start_us, buckets, counts, *figures in await database.query(_SNAPSHOTS, values, [tenant_id]):
            row = Snapshot(*figures)
            durations = Durations.of(buckets, counts, row.duration_us) if buckets else Durations()
            hours.append(HourFigures(start_us, row, durations))
        present = await read_hours(database, [tenant_id], split_us, until_us)
        return hours + [HourFigures(one.start_us, one.figures, one.durations) for one in present]

    async def uniques(self, tenant: str, since_us: int, until_us: int, by: Unit) -> Mapping[int, Uniques]:
        """Read or count how many devices and users synced."""
        tenant_id = await tenant_id_of(self._database, tenant)
        values = {"tenant": tenant_id, "since": since_us, "until": until_us}
        found: dict[int, Uniques] = {}
        rows = await self._database.query(_UNIQUES_BY[by], values, [tenant_id])
        for _, start_us, devices, users in rows:
            found.setdefault(start_us, Uniques(devices, users))
        return found
