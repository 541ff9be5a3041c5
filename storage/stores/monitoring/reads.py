"""Counts of devices and uploads, summed by tenant."""

from __future__ import annotations

from typing import Final

from engine.operate.monitor.judge import DevicesSeen
from engine.operate.monitor.stalled import STALLED_HOURS, STALLED_ITEMS
from engine.operate.rows import UploadsEnded
from storage.postgres.pool import Database
from storage.postgres.roles.named_tenants import of_tenant
from storage.stores.admin_reads import OF_TENANT, list_of_tenant
from storage.stores.jobs.upload_cleanup import PostgresCleanup

#: As ``engine.cache.device_health.score``: summed up here, since a hundred thousand rows would hold the loop.
_SILENT_HOURS: Final = (
    "greatest(0, extract(epoch FROM coalesce(now() - h.last_sync_at, '1 day'))::float8 / 3600)"
)
_SCORE: Final = (
    "CASE WHEN coalesce(h.total_syncs, 0) = 0 THEN 100 ELSE"
    " round(60::float8 * (h.total_syncs - h.failed_syncs) / h.total_syncs"
    f" + greatest(0, 20 - 20 * {_SILENT_HOURS} / 24)"
    " + greatest(0, 20 - 20::float8 * h.conflicts / h.total_syncs)) END"
)
_IS_SEEN: Final = (
    "(WHERE d.revoked_at IS NULL AND greatest(d.last_seen_at, h.last_sync_at) > now() - interval '7 days')"
)
_SEEN: Final = (
    f"SELECT t.name, count(*) FILTER {_IS_SEEN}, coalesce(sum({_SCORE}) FILTER {_IS_SEEN}, 0)::float8,"
    f" coalesce(sum(h.total_syncs) FILTER {_IS_SEEN}, 0)::bigint,"
    f" coalesce(sum(h.failed_syncs) FILTER {_IS_SEEN}, 0)::bigint"
    " FROM tenants AS t LEFT JOIN devices AS d USING (tenant_id)"
    " LEFT JOIN sync_device_health AS h USING (tenant_id, device_id)"
    f" WHERE {OF_TENANT} GROUP BY t.name"
)
#: Stalled devices of a tenant that are named.
_MOST_NAMED: Final = 20


def _last(array: str, ago: int) -> str:
    return f"h.{array}[cardinality(h.{array}) - {ago}]"


#: As ``engine.operate.monitor.stalled`` says, of hours in order. No sum: it might be beyond the range.
_IS_STALLED: Final = " AND ".join(
    (
        f"{_last('depths', 0)} - {_last('depths', STALLED_HOURS - 1)} >= {STALLED_ITEMS}",
        *(f"{_last('succeeded', ago)} > 0" for ago in range(STALLED_HOURS)),
        *(f"{_last('depths', ago + 1)} < {_last('depths', ago)}" for ago in range(STALLED_HOURS - 1)),
    )
)
#: Decided here, since the devices of a tenant may all be stalled: 50,000 rows would hold the loop for 0.5 s.
#: In the hour that goes on a device may not have told its queue: one more is read.
_STALLED: Final = (
    f"SELECT t.name, count(*), (array_agg(s.device_id ORDER BY s.device_id))[1:{_MOST_NAMED}]"
    " FROM tenants AS t JOIN sync_device_health AS s USING (tenant_id)"
    " JOIN devices AS d USING (tenant_id, device_id)"
    " CROSS JOIN LATERAL (SELECT array_agg(syncs - failed ORDER BY hour_start) AS succeeded,"
    " array_agg(queue_depth ORDER BY hour_start) AS depths FROM sync_device_hours"
    " WHERE tenant_id = s.tenant_id AND device_id = s.device_id AND queue_depth IS NOT NULL"
    f" AND hour_start >= date_trunc('hour', now(), 'UTC') - interval '{STALLED_HOURS} hours') AS h"
    f" WHERE {OF_TENANT} AND d.revoked_at IS NULL AND s.queue_depth >= {STALLED_ITEMS}"
    f" AND s.heartbeat_at > now() - interval '{STALLED_HOURS} hours' AND {_IS_STALLED} GROUP BY t.name"
)


class PostgresMonitorReads:
    """``engine.operate.ports.MonitorReads``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._uploads = PostgresCleanup(database)

    async def devices_seen(self, tenant: str | None) -> dict[str | None, DevicesSeen]:
        """Sum up devices."""
        rows = await list_of_tenant(self._database, _SEEN, tenant)
        found = await self._database.query(_STALLED, {"tenant": tenant}, of_tenant(tenant))
        stalled = {name: (count, tuple(named)) for name, count, named in found}
        return {
            name: DevicesSeen(devices, score_sum, syncs, failed, *stalled.get(name, (0, ())))
            for name, devices, score_sum, syncs, failed in rows
        }

    async def uploads_ended(self, tenant: str | None, since_us: int) -> list[UploadsEnded]:
        """Count uploads."""
        found = await self._uploads.abandonment(since_us, tenant)
        return [UploadsEnded(one.tenant, one.finished, one.abandoned) for one in found]
