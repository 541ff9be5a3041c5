"""What the scenarios of jobs write is what is due: the clean-up finds all of it, the aggregation one hour.

And connections to PostgreSQL are counted as it counts them.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Literal

import pytest

from bench.harness import connections
from bench.harness.clusters import as_role
from bench.harness.connections import counting_connections
from bench.harness.stage import add_tenants
from bench.scenarios.aggregation import fill
from bench.scenarios.cleanup import _EVENTS_D, _KINDS, TENANTS, _attach, _fill
from engine.cluster.jobs import Counts
from engine.operate.figures.aggregation import Aggregation
from engine.operate.retention import KeptFor, Retention
from storage.postgres.blocking import connected
from storage.postgres.partitions.maintenance import maintain
from storage.stores.jobs.retention import PostgresRetention
from storage.stores.monitoring.aggregation import PostgresAggregation
from storage.stores.monitoring.voice import PostgresVoice
from storage.stores.sealed.sealing import Sealing
from tests.harness.services import Serving, rows
from tests.harness.uploads.upload_stack import job_run, now_us

Role = Literal["serving", "jobs"]


async def test_connections_of_a_server_are_the_most_at_once_without_the_owners(dsn: str) -> None:
    def held(role: Role | None, count: int) -> ExitStack:
        stack = ExitStack()
        for _ in range(count):
            stack.enter_context(connected(dsn if role is None else as_role(dsn, role)))
        return stack

    connections.most_connections()
    with counting_connections(dsn), held(None, 30), held("serving", 12), held("jobs", 3):
        await _seen(15)
    assert connections.most_connections() == 15
    assert connections.most_connections() is None


async def _seen(count: int) -> None:
    async with asyncio.timeout(10):
        while max(connections._found, default=0) < count:  # noqa: ASYNC110  # it is counted in a thread
            await asyncio.sleep(0.01)


async def _cleaned(dsn: str) -> Counts:
    run, database = job_run(now_us()), Serving(dsn, 1)
    await Retention(PostgresRetention(database), KeptFor(0, 90 * 86_400, 0))(run)
    await database.close()
    return run.counts


@pytest.mark.parametrize("name", _KINDS)
def test_cleanup_scenario_rows_are_past_their_time(dsn: str, name: str) -> None:
    add_tenants(dsn, TENANTS)
    _fill(dsn, _KINDS[name], 80)
    _attach(dsn, _KINDS[name])
    count = f"SELECT count(*)::int FROM {_KINDS[name].table}"
    assert rows(dsn, count) == [(80,)]
    days = maintain(dsn, 720, _EVENTS_D)
    counts = asyncio.run(_cleaned(dsn))
    assert rows(dsn, count) == [(0,)]
    assert [days, counts] == {
        "answers": [{"answer_days": 1, "event_days": 0}, {}],
        "events": [{"answer_days": 0, "event_days": 1}, {}],
        "conflicts": [{"answer_days": 0, "event_days": 0}, {"conflicts": 80}],
    }[name]


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
