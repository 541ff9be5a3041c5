"""What analytics reads: snapshots, and the hours that have none yet as they are now."""

from __future__ import annotations

from typing import Final

from engine.model.minutes import Durations
from engine.operate.aggregation import Snapshot
from engine.operate.analytics import HourFigures
from storage.postgres.pool import Database
from storage.stores.monitoring.hours import read_hours
from storage.stores.monitoring.minutes import SINCE, UNTIL
from storage.stores.tenant_rows import tenant_id_of

_SUMMED_UNTIL: Final = "SELECT (extract(epoch FROM aggregated_until) * 1000000)::bigint FROM cluster_state"
_SNAPSHOTS: Final = (
    "SELECT (extract(epoch FROM hour_start) * 1000000)::bigint, duration_buckets, duration_counts, "
    + ", ".join(f"{name}::text" if name == "domains" else name for name in Snapshot._fields)
    + " FROM sync_analytics_snapshot WHERE tenant_id = %(tenant)s"
    f" AND hour_start >= {SINCE} AND hour_start < {UNTIL} ORDER BY hour_start"
)


class PostgresAnalytics:
    """``engine.operate.analytics.AnalyticsReads``."""

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
        for start_us, buckets, counts, *figures in await database.query(_SNAPSHOTS, values):
            row = Snapshot(*figures)
            durations = Durations.of(buckets, counts, row.duration_us) if buckets else Durations()
            hours.append(HourFigures(start_us, row, durations))
        present = await read_hours(database, [tenant_id], split_us, until_us)
        return hours + [HourFigures(one.start_us, one.figures, one.durations) for one in present]
