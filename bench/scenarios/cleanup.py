"""Scenario ``cleanup``: how fast the job ``cleanup`` is, and what devices notice of it.

Writes kept answers, events or settled conflicts that are past their time, on a server of its own each.
"""

from __future__ import annotations

from functools import partial
from typing import Final, NamedTuple

from bench.harness.environment import BenchError, fresh
from bench.harness.progress import progress
from bench.harness.stage import Options
from bench.load.workload import MIX, data_of
from bench.report.results import Bar, Figure, Report, lost_bar
from bench.scenarios.job_beside import Load, beside_job
from engine.cluster.job_scheduler import LOOK_S
from storage.postgres.blocking import connected
from storage.stores.usage import recount

TENANTS: Final = [f"bench-{number}" for number in range(8)]
CONNECTIONS: Final = 100
PER_S: Final = 300.0
#: Rows of each kind unless told otherwise, and how many a second are to be deleted at least.
_ROWS: Final = 1_000_000
LEAST_PER_S: Final = 1_000
#: For how long the load goes on once the job begins: the days of a kind are dropped, conflicts deleted at
#: least as fast as they have to be.
_DROPPED_S: Final = 10.0
_SLOWEST: Final = "conflicts"
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


def _check(dsn: str, kind: _Kind) -> None:
    """See that nothing is left. Raises BenchError."""
    past = f"to_regclass('{kind.table}_old')" if kind.attach else "1"
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT count({past}) FROM (SELECT FROM {kind.table} LIMIT 1) AS found")
        ((left,),) = cursor.fetchall()
    if left:
        raise BenchError(f"the clean-up left rows of {kind.table}: give a longer --duration")


async def cleanup(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    rows = options.fill_records or _ROWS
    kinds = [_SLOWEST] if options.suite else list(_KINDS)
    report = Report(
        scenario="cleanup",
        work=f"{rows:,} rows past their time of {', '.join(kinds)}; beside their deletion {PER_S:g} syncs/s"
        f" of {CONNECTIONS} devices, an open loop; {MIX}",
    )
    for name in kinds:
        kind = _KINDS[name]
        lasts_s = options.duration_s or LOOK_S + (_DROPPED_S if kind.attach else rows / LEAST_PER_S)
        with fresh(options.settings) as environment:
            took_s = await beside_job(
                *(report, environment, "cleanup", f"the deletion of {name}"),
                Load(TENANTS, CONNECTIONS, PER_S, lasts_s),
                fill=partial(_fill, kind=kind, rows=rows),
                started=partial(_attach, kind=kind),
                ended=partial(_check, kind=kind),
                settings={"TIDEMARK__RETENTION__EVENTS_D": str(_EVENTS_D)},
            )
        what = "records deleted a second" if name == _SLOWEST else f"{name} deleted a second"
        report.figures.append(Figure(what, rows / took_s, "records/s", f"{rows:,} in {took_s:.1f} s"))
        report.bars.append(Bar(f"{what}, at least", rows / took_s, "at least", LEAST_PER_S, "records/s"))
    report.bars.append(lost_bar(report.rows))
    return report
