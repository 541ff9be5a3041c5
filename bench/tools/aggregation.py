"""The cost of the job ``aggregate``: ``python -m bench.tools.aggregation``.

Writes what 1,000 tenants leave in 30 days, and the minutes and counts of their last hour, on a server of its
own. The server begins the job 30 s after its start, in the process that answers an open loop of syncs. The
95th percentile of the syncs that were due while it ran is compared with that of all others.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from time import perf_counter
from typing import Final

import click
import msgspec

from bench.harness.administer import administer
from bench.harness.environment import BenchError, Environment, fresh, read_settings
from bench.harness.load_run import Target, run_tasks
from bench.harness.product import HERE, variables
from bench.harness.progress import progress
from bench.harness.stage import add_tenants
from bench.report.summary import latencies_beside
from bench.report.text import table
from engine.cluster.jobs import JOBS
from engine.model.commit_counts import HOUR_US, CommitCounts, encode_counts
from storage.postgres.blocking import connected
from storage.stores.monitoring.aggregation import PostgresAggregation

_CONNECTIONS: Final = 200
WARMUP_S: Final = 3.0
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
_RAN: Final = (
    "SELECT extract(epoch FROM began_at)::float8, extract(epoch FROM ended_at)::float8 FROM job_runs"
    " WHERE job = 'aggregate' AND outcome = 'succeeded' ORDER BY began_at LIMIT 1"
)
_SIZES: Final = (
    "SELECT t, (SELECT n_live_tup FROM pg_stat_user_tables WHERE relname = t)::bigint,"
    " pg_total_relation_size(t::regclass)::bigint FROM unnest(%s) AS t"
)


def fill(dsn: str, days: int) -> list[list[str]]:
    """Write the rows; return how many there are, and their size."""
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
        return [[name, f"{rows:,}", f"{size / 1e6:,.1f}"] for name, rows, size in cursor.fetchall()]


def _ran(dsn: str) -> tuple[float, float]:
    """Return when the job began and ended, in seconds since 1970. Raises BenchError."""
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(_RAN)
        found = cursor.fetchall()
    if not found:
        raise BenchError("the job did not end in the time of the load: give a longer --duration")
    return float(found[0][0]), float(found[0][1])


async def _measure(
    tenants: int, days: int, per_s: float, duration_s: float, environment: Environment
) -> tuple[list[list[str]], list[str]]:
    dsn, secret = environment.database("aggregation"), secrets.token_urlsafe(48)
    names = [f"bench-{number}" for number in range(tenants)]
    add_tenants(dsn, names)
    sizes = await asyncio.to_thread(fill, dsn, days)
    async with HERE.server(variables(environment, dsn, secret, None)) as server:
        target = Target(port=server.port, secret=secret, tenants=names)
        run = await run_tasks(
            "load", target, "open", _CONNECTIONS, duration_s, per_s=per_s, warmup_s=WARMUP_S
        )
    began_s, ended_s = _ran(dsn)
    calm, beside = latencies_beside(
        run, *(at_s - time.time() + perf_counter() for at_s in (began_s, ended_s)), warmup_s=WARMUP_S
    )
    figures = (ended_s - began_s, calm.p95_ms, beside.p95_ms, beside.p95_ms / calm.p95_ms, os.getloadavg()[0])
    return sizes, [f"{figure:.2f}" for figure in figures]


@click.command()
@click.option("--tenants", default=1000, show_default=True, help="Tenants.")
@click.option("--days", default=30, show_default=True, help="Days of snapshots.")
@click.option("--rate", default=1200.0, show_default=True, help="Syncs a second.")
@click.option("--duration", default=100.0, show_default=True, help="Seconds of load: 60 more than the job.")
@click.option("--data-dir", help="Where its PostgreSQL and Redis keep their data for the time of the run.")
def main(tenants: int, days: int, rate: float, duration: float, data_dir: str | None) -> None:
    """Print the size of the tables, the time of an hour's job, and p95 of syncs calm and beside it."""
    with fresh(read_settings(None, data_dir)) as environment:
        sizes, figures = asyncio.run(_measure(tenants, days, rate, duration, environment))
    for line in table([["table", "rows", "MB"], *sizes]):
        click.echo(line)
    click.echo()
    for line in table([["job s", "p95 calm ms", "p95 beside ms", "ratio", "load"], figures]):
        click.echo(line)


if __name__ == "__main__":
    main()
