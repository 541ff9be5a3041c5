"""How fast the job ``cleanup`` is, and what devices notice of it: ``python -m bench.tools.cleanup``.

Writes a number of kept answers, events or settled conflicts that are past their time, on a server of its own.
The server's first clean-up begins 30 s after its start, under an open loop of syncs. The 95th percentile of
the syncs that were due while it ran is compared with that of all others.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from time import perf_counter
from typing import Final, NamedTuple

import click

from bench.harness.child import progress
from bench.harness.environment import BenchError, Environment, fresh, read_settings
from bench.harness.load_run import Run, Target, run_tasks
from bench.harness.product import HERE, variables
from bench.harness.stage import add_tenants
from bench.load.workload import data_of
from bench.report.statistics import Latency, latency_of
from bench.report.text import table
from storage.postgres.blocking import connected
from storage.stores.usage import recount

TENANTS: Final = [f"bench-{number}" for number in range(8)]
CONNECTIONS: Final = 100
WARMUP_S: Final = 3.0
_DAY_US: Final = 86_400_000_000
#: A day that ended 44 days ago begins at this time, and so many microseconds after 1970.
_OLD: Final = "((current_date - 45)::timestamp AT TIME ZONE 'UTC')"
_OLD_US: Final = f"((current_date - 45 - date '1970-01-01')::bigint * {_DAY_US})"
_EVENTS_D: Final = 40
#: A table has one partition for all days before its database was made: a day takes its place in part. It is
#: attached when the server runs, because a start drops what is past its time.
_ATTACH: Final = """
DO $$ BEGIN
    ALTER TABLE {table} DETACH PARTITION {table}_earlier;
    EXECUTE format('ALTER TABLE {table} ATTACH PARTITION {table}_earlier FOR VALUES FROM (MINVALUE)'
        ' TO (%%L)', {begin});
    EXECUTE format('ALTER TABLE {table} ATTACH PARTITION {table}_old FOR VALUES FROM (%%L) TO (%%L)',
        {begin}, {end});
END $$"""


class _Kind(NamedTuple):
    """What is past its time: its table, columns and values, and how a day is attached; empty without days."""

    table: str
    columns: str
    values: str
    attach: str = ""


_KINDS: Final = {
    "answers": _Kind(
        "sync_idempotency_record",
        "tenant_id, key_hash, created_at, request_sha256, results",
        f'tenant_id, gen_random_uuid(), {_OLD}, sha256(n::text::bytea), \'[{{"status":"applied"}}]\'',
        _ATTACH.format(table="sync_idempotency_record", begin=_OLD, end=f"{_OLD} + interval '1 day'"),
    ),
    "events": _Kind(
        "events",
        "tenant_id, domain, id, sent_at_us, at_us, device_id, data",
        f"tenant_id, 'metrics', md5(n::text), {_OLD_US} + n, {_OLD_US} + n, 'phone', %(data)s::json",
        _ATTACH.format(table="events", begin=_OLD_US, end=f"{_OLD_US} + {_DAY_US}"),
    ),
    "conflicts": _Kind(
        "conflict_resolution_log",
        "tenant_id, conflict_id, domain, record_id, device_id, policy, outcome, server_version, server_data,"
        " client_base, client_op, client_at_us, client_data, opened_at_us",
        "tenant_id, md5(n::text), 'task', 'r' || n, 'phone', 'server_wins', 'server', 2, %(data)s::json,"
        f" 1, 'put', 0, %(data)s::json, {_OLD_US} - 60 * {_DAY_US} + n",
    ),
}
_RAN: Final = (
    "SELECT extract(epoch FROM began_at)::float8, extract(epoch FROM ended_at)::float8 FROM job_runs"
    " WHERE job = 'cleanup' AND outcome = 'succeeded'"
)


def _fill(dsn: str, kind: _Kind, rows: int) -> None:
    progress(f"{kind.table}: writing {rows:,} rows")
    table = f"{kind.table}_old" if kind.attach else kind.table
    insert = f"INSERT INTO {table} ({kind.columns}) SELECT {kind.values} FROM tenants CROSS JOIN"
    with connected(dsn) as connection, connection.cursor() as cursor:
        if kind.attach:
            cursor.execute(f"CREATE TABLE {table} (LIKE {kind.table} INCLUDING ALL)")
        values = {"each": rows // len(TENANTS), "data": data_of(0, 0).decode()}
        cursor.execute(f"{insert} generate_series(1, %(each)s) AS n", values)
        cursor.execute(f"VACUUM (ANALYZE) {table}")
        cursor.execute("CHECKPOINT")


def _attach(dsn: str, kind: _Kind) -> None:
    """Make the rows those of their table, and count them as its tenants'."""
    with connected(dsn) as connection, connection.cursor() as cursor:
        if kind.attach:
            cursor.execute(kind.attach, {})
    recount(dsn, 600)


def _ran(dsn: str, kind: _Kind) -> tuple[float, float]:
    """Return when the server's clean-up began and ended, in seconds since 1970. Raises BenchError."""
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(_RAN)
        ran = cursor.fetchall()
        past = f"to_regclass('{kind.table}_old')" if kind.attach else "1"
        cursor.execute(f"SELECT count({past}) FROM (SELECT FROM {kind.table} LIMIT 1) AS found")
        left = cursor.fetchall()[0][0]
    if not ran or left:
        raise BenchError("the clean-up did not end in the time of the load: give a longer --duration")
    return ran[0]


def latencies(run: Run, began_s: float, ended_s: float) -> tuple[Latency, Latency]:
    """Return the latency of syncs that were due outside of a time, and of those within it."""
    begin_us, end_us = ((at_s - run.began_s) * 1e6 for at_s in (began_s, ended_s))
    due = zip(run.outcome.due_us, run.outcome.done_us, run.codes, strict=True)
    found: dict[bool, list[int]] = {False: [], True: []}
    for due_us, done_us, code in due:
        if code == "synced" and due_us >= WARMUP_S * 1e6:
            found[begin_us <= due_us < end_us].append(done_us - due_us)
    return latency_of(found[False]), latency_of(found[True])


async def _measure(
    name: str, rows: int, per_s: float, duration_s: float, environment: Environment
) -> list[str]:
    kind, dsn, secret = _KINDS[name], environment.database(name), secrets.token_urlsafe(48)
    add_tenants(dsn, TENANTS)
    _fill(dsn, kind, rows)
    chosen = {"TIDEMARK__RETENTION__EVENTS_D": str(_EVENTS_D)}
    async with HERE.server({**variables(environment, dsn, secret, None), **chosen}) as server:
        _attach(dsn, kind)
        target = Target(port=server.port, secret=secret, tenants=TENANTS)
        run = await run_tasks(name, target, "open", CONNECTIONS, duration_s, per_s=per_s, warmup_s=WARMUP_S)
        began_s, ended_s = _ran(dsn, kind)
    alone, beside = latencies(run, *(at_s - time.time() + perf_counter() for at_s in (began_s, ended_s)))
    took_s = ended_s - began_s
    figures = (took_s, alone.p95_ms, beside.p95_ms, beside.p95_ms / alone.p95_ms, os.getloadavg()[0])
    return [name, f"{rows:,}", f"{rows / took_s:,.0f}", *(f"{figure:.2f}" for figure in figures)]


@click.command()
@click.option("--rows", default=1_000_000, show_default=True, help="Rows of each kind.")
@click.option("--rate", default=500.0, show_default=True, help="Syncs a second.")
@click.option(
    "--duration", default=90.0, show_default=True, help="Seconds of load for each kind: 60 more than its job."
)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(_KINDS)), help="One kind alone.")
@click.option(
    "--data-dir", help="Where its own PostgreSQL and Redis keep their data for the time of the run."
)
def main(rows: int, rate: float, duration: float, kinds: tuple[str, ...], data_dir: str | None) -> None:
    """Print records/s of the clean-up of each kind, and p95 of syncs alone and beside it."""
    found = [["kind", "rows", "rows/s", "job s", "p95 alone ms", "p95 beside ms", "ratio", "load"]]
    for name in kinds or _KINDS:
        with fresh(read_settings(None, data_dir)) as environment:
            found.append(asyncio.run(_measure(name, rows, rate, duration, environment)))
    for line in table(found):
        click.echo(line)


if __name__ == "__main__":
    main()
