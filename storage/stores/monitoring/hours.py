"""Hours of tenants as they are now: their minutes and what was committed in them, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engine.model.commit_counts import HOUR_US, CommitCounts, decode_counts
from engine.model.minutes import Minute
from engine.operate.figures.aggregation import Hour, snapshot
from storage.postgres.arrays import int_array
from storage.postgres.driver import Values
from storage.stores.monitoring.minutes import MINUTES, SINCE, SUMS, UNTIL, summed_minute
from storage.stores.tenant_rows import Reader

HOUR_OF_MINUTE: Final = "(extract(epoch FROM date_bin('1 hour', minute_start, 'epoch')) * 1000000)::bigint"
_MINUTES: Final = SUMS.format(rows=MINUTES.format(period=HOUR_OF_MINUTE, since=SINCE, until=UNTIL))
_OF_HOURS: Final = (
    "tenant_id = ANY(%(tenants)s::int[]) AND sync_hour >= %(since_hour)s AND sync_hour < %(until_hour)s"
)
#: In one statement, since a commit may set aside what the counter holds.
_COMMITS: Final = (
    f"SELECT tenant_id, sync_hour, sync_counts FROM sync_hour_counts WHERE {_OF_HOURS}"
    " UNION ALL SELECT tenant_id, sync_hour, sync_counts FROM tenant_counters"
    f" WHERE sync_counts IS NOT NULL AND {_OF_HOURS}"
)
#: An hour of a device in which it synced; without, it told only facts, or failed.
SYNCED: Final = "d.syncs > d.failed"
#: The first hour in which commits were counted.
_COUNTED_FROM: Final = (
    "SELECT ceil(extract(epoch FROM commits_counted_since) / 3600)::bigint FROM cluster_state"
)


def span(tenant_ids: Sequence[int], since_us: int, until_us: int) -> Values:
    """Return the values for statements about some tenants' hours."""
    return {
        "tenants": int_array(tenant_ids),
        "since": since_us,
        "until": until_us,
        "since_hour": since_us // HOUR_US,
        "until_hour": until_us // HOUR_US,
    }


async def read_hours(reader: Reader, tenant_ids: Sequence[int], since_us: int, until_us: int) -> list[Hour]:
    """Return the hours of which anything is counted, by tenant and time.

    Args:
        reader: Runs the statements.
        tenant_ids: The tenants.
        since_us: The beginning of the first hour.
        until_us: The end of the last hour.

    Raises:
        StoreError: The database is away.
    """
    which = span(tenant_ids, since_us, until_us)
    minutes = {
        (row[0], row[1]): summed_minute(row) for row in await reader.query(_MINUTES, which, tenant_ids)
    }
    commits: dict[tuple[int, int], CommitCounts] = {}
    for tenant_id, hour, counts in await reader.query(_COMMITS, which, tenant_ids):
        commits.setdefault((tenant_id, hour * HOUR_US), CommitCounts()).add(decode_counts(counts))
    ((counted_from,),) = await reader.query(_COUNTED_FROM)
    hours: list[Hour] = []
    for tenant_id, start_us in sorted(minutes.keys() | commits.keys()):
        minute = minutes.get((tenant_id, start_us)) or Minute()
        committed = commits.get((tenant_id, start_us), CommitCounts())
        figures = snapshot(minute, committed if start_us >= counted_from * HOUR_US else None)
        hours.append(Hour(tenant_id, start_us, figures, minute.durations))
    return hours
