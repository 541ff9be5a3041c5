"""What devices notice of a job of the server, and how long it takes beside them.

A server begins its jobs 30 s after its start, in the process that answers an open loop of syncs. The syncs
that were due while a job ran are compared with all others.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Final, NamedTuple

from bench.harness.environment import BenchError, Environment
from bench.harness.load_run import Target, run_tasks
from bench.harness.product import HERE, variables
from bench.harness.stage import add_tenants, tallied
from bench.report.results import Bar, Figure, Report
from bench.report.statistics import over
from bench.report.summary import latencies_beside, row_of
from storage.postgres.blocking import connected

_WARMUP_S: Final = 3.0
#: How much slower a sync may be beside a job.
SYNC_RATIO: Final = 2.0
_RAN: Final = (
    "SELECT extract(epoch FROM began_at)::float8, extract(epoch FROM ended_at)::float8 FROM job_runs"
    " WHERE job = %s AND outcome = 'succeeded' ORDER BY began_at LIMIT 1"
)


class Load(NamedTuple):
    """The syncs beside a job, an open loop; ``lasts_s`` includes the time until the job begins."""

    tenants: list[str]
    connections: int
    per_s: float
    lasts_s: float


async def beside_job(
    report: Report,
    environment: Environment,
    job: str,
    what: str,
    load: Load,
    *,
    fill: Callable[[str], None],
    started: Callable[[str], None] = lambda _: None,
    ended: Callable[[str], None] = lambda _: None,
    settings: Mapping[str, str] | None = None,
) -> float:
    """Have a new server run a job beside a load, and add a row, figures and a bar.

    Args:
        report: Where they are added.
        environment: The services.
        job: The job's name.
        what: What it does, as figures name it.
        load: The syncs beside it.
        fill: Writes what the job has to do into a database with its tenants.
        started: Called with the database once the server runs.
        ended: Called with it once the job is done.
        settings: Environment variables of the server.

    Returns:
        How long the job took, in seconds.

    Raises:
        BenchError: The job did not end in the time of the load.
        StoreError: The database failed.
    """
    dsn, secret = environment.database(f"beside_{len(report.rows)}"), secrets.token_urlsafe(48)
    add_tenants(dsn, load.tenants)
    await asyncio.to_thread(fill, dsn)
    async with (
        HERE.server({**variables(environment, dsn, secret, None), **(settings or {})}) as server,
        tallied(server, report.logged),
    ):
        await asyncio.to_thread(started, dsn)
        watched = {"server": server.pid, "postgres": environment.postgres_pid}
        target = Target(port=server.port, secret=secret, tenants=load.tenants, watched=watched)
        run = await run_tasks(
            *(f"beside {what}", target, "open", load.connections, load.lasts_s),
            per_s=load.per_s,
            warmup_s=_WARMUP_S,
        )
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(_RAN, (job,))
        ran = cursor.fetchall()
    if not ran:
        raise BenchError(f"the job {job} did not end in the time of the load: give a longer --duration")
    ended(dsn)
    ((began_s, ended_s),) = ran
    clock_s = perf_counter() - time.time()
    alone, beside = latencies_beside(run, began_s + clock_s, ended_s + clock_s, warmup_s=_WARMUP_S)
    report.rows.append(row_of(run))
    report.figures += [
        Figure(f"p95 of a sync without {what}", alone.p95_ms, "ms"),
        Figure(f"p95 of a sync beside {what}", beside.p95_ms, "ms", f"{ended_s - began_s:.1f} s long"),
    ]
    slower = over(beside.p95_ms, alone.p95_ms) if beside.max_ms else None
    report.bars.append(
        Bar(f"p95 of a sync beside {what}, over without", slower, "at most", SYNC_RATIO, "times")
    )
    return float(ended_s - began_s)
