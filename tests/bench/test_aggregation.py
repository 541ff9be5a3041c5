"""What the scenario ``aggregation`` writes is one hour that is due, of every tenant."""

from __future__ import annotations

import asyncio

from bench.harness.stage import add_tenants
from bench.scenarios.aggregation import fill
from engine.operate.figures.aggregation import Aggregation
from storage.stores.monitoring.aggregation import PostgresAggregation
from storage.stores.monitoring.voice import PostgresVoice
from storage.stores.sealed.sealing import Sealing
from tests.harness.services import Serving, rows
from tests.harness.uploads.upload_stack import job_run, now_us


async def _aggregated(dsn: str) -> object:
    run, database = job_run(now_us()), Serving(dsn, 1)
    await Aggregation(PostgresAggregation(database), PostgresVoice(database, Sealing()), 0)(run)
    await database.close()
    return run.counts


def test_aggregation_scenario_leaves_one_hour_of_each_tenant_due(dsn: str) -> None:
    add_tenants(dsn, ["a", "b"])
    sizes = fill(dsn, 2)
    assert (sizes[0].name, sizes[0].beside) == ("sync_analytics_snapshot", f"{2 * 2 * 24} rows")
    assert asyncio.run(_aggregated(dsn)) == {"snapshots": 2}
    latest = (
        "SELECT succeeded, sync_requests, items FROM sync_analytics_snapshot ORDER BY hour_start DESC LIMIT 2"
    )
    assert rows(dsn, latest) == [(540, 540, 5400), (540, 540, 5400)]
