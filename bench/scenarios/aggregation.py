"""Scenario ``aggregation``: what the job ``aggregate`` costs.

Writes what 1,000 tenants leave in 30 days, and the minutes and counts of their last hour.
"""

from __future__ import annotations

from typing import Final

import msgspec

from bench.harness.administer import administer
from bench.harness.environment import fresh
from bench.harness.progress import progress
from bench.harness.stage import Options
from bench.load.workload import MIX
from bench.report.results import Figure, Report, lost_bar
from bench.scenarios.job_beside import Load, beside_job
from engine.cluster.jobs import JOBS
from engine.model.commit_counts import HOUR_US, CommitCounts, encode_counts
from storage.postgres.blocking import connected
from storage.stores.monitoring.aggregation import PostgresAggregation

TENANTS, DAYS = 1000, 30
_CONNECTIONS: Final = 200
_LASTS_S: Final = 100.0
_OTHERS: Final = [job for job in JOBS if job != "aggregate"]
_HOUR: Final = "(to_timestamp(%(until)s / 1000000.0) - interval '1 hour')"
#: A busy hour meets 60 buckets of durations and five domains. Nothing but the measured job is due.
_BUCKETS: Final = "array(SELECT generate_series(200, {last})::smallint), array_fill(9, ARRAY[{last} - 199])"
_FILL: Final = f"""
INSERT INTO sync_analytics_snapshot (tenant_id, hour_start, sync_requests, succeeded, items, bytes_synced,
    duration_us, domains, duration_buckets, duration_counts)
SELECT tenant_id, h, 540, 540, 1080, 300000, 5400000, %(domains)s::jsonb, {_BUCKETS.format(last=259)}
FROM tenants,
    generate_series({_HOUR} - %(days)s * interval '1 day', {_HOUR} - interval '1 hour', '1 hour') AS h;
INSERT INTO sync_analytics_day
SELECT tenant_id, d, 10, 10
FROM tenants, generate_series({_HOUR}::date - %(days)s, {_HOUR}::date, '1 day') AS d;
INSERT INTO sync_device_hours (tenant_id, device_id, hour_start, syncs, failed, conflicts, user_id)
SELECT tenant_id, 'd' || d, h, 54, 0, 0, 'u' || d FROM tenants, generate_series(1, 10) AS d,
    generate_series({_HOUR} - interval '6 days', {_HOUR}, '1 hour') AS h;
INSERT INTO sync_minutes (tenant_id, minute_start, process, syncs, failed, refused, items, conflicts,
    conflicts_open, uploads_finished, uploads_abandoned, bytes_in, duration_us, duration_buckets,
    duration_counts)
SELECT tenant_id, {_HOUR} + m * interval '1 minute', gen_random_uuid(), 9, 0, 0, 18, 0, 0, 0, 0, 5000, 90000,
    {_BUCKETS.format(last=208)} FROM tenants, generate_series(0, 59) AS m;
UPDATE tenant_counters SET sync_hour = %(until)s / 3600000000 - 1, sync_counts = %(counts)s;
UPDATE cluster_state SET aggregated_until = {_HOUR}, commits_counted_since = 'epoch';
INSERT INTO job_runs (job, due_at, attempt, by_hand, place, held_until, ended_at, outcome)
SELECT j, now(), 1, false, '', now(), now(), 'succeeded' FROM unnest(%(others)s) AS j;
"""
_TABLES: Final = (
    *("sync_analytics_snapshot", "sync_analytics_day", "sync_device_hours", "sync_minutes"),
    *("sync_hour_counts", "tenant_counters"),
)
_SIZES: Final = (
    "SELECT t, (SELECT n_live_tup FROM pg_stat_user_tables WHERE relname = t)::bigint,"
    " pg_total_relation_size(t::regclass)::bigint FROM unnest(%s) AS t"
)


def fill(dsn: str, days: int) -> list[Figure]:
    """Write the rows. Returns the size of each table."""
    until_us = administer(dsn, lambda database: PostgresAggregation(database).due()).until_us
    items = {name: [972, 54, 27, 9, 18] for name in ("task", "ticket", "attendance", "journal", "voice")}
    counts = CommitCounts(540, 300_000, 90_000, items)
    values = {
        "until": until_us // HOUR_US * HOUR_US,
        "days": days,
        "others": _OTHERS,
        "counts": encode_counts(counts).decode(),
        "domains": msgspec.json.encode(counts.by_domain()).decode(),
    }
    with connected(dsn) as connection, connection.cursor() as cursor:
        progress("writing snapshots, devices' hours and minutes")
        cursor.execute(_FILL, values)
        cursor.execute("VACUUM (ANALYZE)")
        cursor.execute("CHECKPOINT")
        cursor.execute(_SIZES, (list(_TABLES),))
        return [Figure(name, size / 1e6, "MB", f"{rows:,} rows") for name, rows, size in cursor.fetchall()]


async def aggregation(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    report = Report(
        scenario="aggregation",
        work=f"one hour of {TENANTS:,} tenants beside {DAYS} days of snapshots;"
        f" {options.rate_per_s:g} syncs/s of {_CONNECTIONS} devices, an open loop; {MIX}",
    )
    load = Load(
        [f"bench-{number}" for number in range(TENANTS)],
        *(_CONNECTIONS, options.rate_per_s, options.duration_s or _LASTS_S),
    )
    with fresh(options.settings) as environment:
        took_s = await beside_job(
            *(report, environment, "aggregate", "the aggregation", load),
            fill=lambda dsn: report.figures.extend(fill(dsn, DAYS)),
        )
    report.figures.append(Figure("the aggregation took", took_s, "s"))
    report.bars.append(lost_bar(report.rows))
    return report
