"""Snapshots in PostgreSQL: the sums of hours, the same from each run, and again for what came late."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from engine.cache.ports import MinuteRow
from engine.cluster.jobs import Begun, JobRun
from engine.model.minutes import MINUTE_US, NO_TENANT, Minute, TenantMinutes
from engine.operate.figures.aggregation import Aggregation, LateHour
from storage.postgres.pool import Database
from storage.stores.monitoring.aggregation import PostgresAggregation
from storage.stores.monitoring.minutes import PostgresMinutes
from storage.stores.monitoring.voice import PostgresVoice
from storage.stores.sealed.sealing import Sealing
from tests.engine.cache.test_devices import Clock
from tests.harness.services import Serving, execute, rows

ONE, OTHER = "1" * 32, "2" * 32
HOUR_US = 60 * MINUTE_US


class World:
    """A database with two tenants, at a time that ``hours`` count back from."""

    def __init__(self, dsn: str, database: Database) -> None:
        self.dsn = dsn
        self.database = database
        self.minutes = PostgresMinutes(database)
        self.store = PostgresAggregation(database)
        ((now_us,),) = rows(dsn, "SELECT (extract(epoch FROM now()) * 1000000)::bigint")
        assert isinstance(now_us, int)
        self.now_us = now_us
        self.settled_us = (now_us - 3 * MINUTE_US) // HOUR_US * HOUR_US

    def row(
        self, hours: int, minute: Minute, tenant_id: int = 1, after_m: int = 0, process: str = ONE
    ) -> MinuteRow:
        """Return a minute of an hour; 1 is the last that has ended."""
        return MinuteRow(tenant_id, self.settled_us - hours * HOUR_US + after_m * MINUTE_US, process, minute)

    async def run(self) -> dict[str, float | None]:
        """Run the job."""
        run = JobRun(Begun("aggregate", self.now_us, 1, self.now_us), Clock())
        await Aggregation(self.store, PostgresVoice(self.database, Sealing()), 0)(run)
        return run.counts

    def snapshots(self, columns: str = "sync_requests") -> list[tuple[object, ...]]:
        """Read snapshots, as tenant, hour counted back, and columns."""
        return rows(
            self.dsn,
            f"SELECT tenant_id, ({self.settled_us // HOUR_US} - extract(epoch FROM hour_start) / 3600)::int,"
            f" {columns} FROM sync_analytics_snapshot ORDER BY 1, 2",
        )


@pytest.fixture
async def world(dsn: str) -> AsyncIterator[World]:
    execute(dsn, "INSERT INTO tenants (name) VALUES ('acme'), ('globex')")
    # The schema may be of the hour before, if the tests run over the full hour.
    execute(dsn, "UPDATE cluster_state SET commits_counted_since = now()")
    database = Serving(dsn, 1)
    yield World(dsn, database)
    await database.close()


def minute(syncs: int, *durations_us: int) -> Minute:
    counted = Minute(syncs, 1, 2, 30, 4, 3, 5, 6, 700)
    for duration_us in durations_us:
        counted.durations.add(duration_us)
    return counted


async def test_aggregation_sums_minutes_of_all_processes_by_hour_and_tenant(world: World) -> None:
    await world.minutes.put(
        [
            world.row(1, minute(10, 10_000)),
            world.row(1, minute(20, 10_000, 500_000), after_m=59),
            world.row(1, minute(30, *[10_000] * 18), process=OTHER),
            world.row(2, minute(40)),
            world.row(1, minute(50), tenant_id=2),
            world.row(0, minute(60)),
            world.row(1, minute(70), tenant_id=NO_TENANT),
        ]
    )
    counts = await world.run()
    assert counts == {"snapshots": 3}, "neither the present hour nor what has no tenant"
    figures = (
        "sync_requests::int, succeeded::int, failed::int, refused::int, round(avg_duration_ms)::int,"
        " round(p95_duration_ms)::int, conflicts_total::int, conflicts_auto::int, conflicts_manual::int,"
        " bytes_synced::int"
    )
    assert world.snapshots(figures) == [
        (1, 1, 60, 51, 3, 6, 33, 10, 12, 3, 9, 2100),
        (1, 2, 40, 37, 1, 2, None, None, 4, 1, 3, 700),
        (2, 1, 50, 47, 1, 2, None, None, 4, 1, 3, 700),
    ]
    rates = world.snapshots("items_per_sync, conflict_rate")
    assert rates[0] == (1, 1, 90 / 51, 12 / 90)


async def test_aggregation_run_again_changes_nothing_and_sums_new_hours_only(world: World) -> None:
    await world.minutes.put([world.row(1, minute(10, 10_000)), world.row(2, minute(20))])
    assert await world.run() == {"snapshots": 2}
    execute(world.dsn, "UPDATE sync_minutes SET late = false")  # they were in time
    before = world.snapshots("*")
    execute(world.dsn, "UPDATE sync_analytics_snapshot SET unique_users = 7")
    assert await world.run() == {}
    execute(world.dsn, "UPDATE cluster_state SET aggregated_until = 'epoch'")
    assert await world.run() == {"snapshots": 2}
    assert world.snapshots("*") == before


async def test_aggregation_sums_an_hour_again_whose_minutes_came_late(world: World) -> None:
    await world.minutes.put([world.row(2, minute(10)), world.row(3, minute(10), tenant_id=2)])
    await world.run()
    late = world.row(2, minute(5), after_m=7, process=OTHER)
    await world.minutes.put([late])
    assert (await world.store.due()).late == [LateHour(world.settled_us - 2 * HOUR_US, 1)]
    assert await world.run() == {"snapshots": 1}
    assert world.snapshots() == [(1, 2, 15), (2, 3, 10)]
    assert (await world.store.due()).late == []
    await world.minutes.put([late._replace(minute=minute(6))])
    assert await world.run() == {"snapshots": 1}
    assert world.snapshots()[0] == (1, 2, 16)


async def test_windows_with_summed_hours_are_those_of_their_minutes(world: World) -> None:
    await world.minutes.put(
        [
            world.row(hours, minute(hours + after_m, 1_000 * (hours + 1), 50_000), tenant_id, after_m)
            for hours in range(6)
            for after_m in (0, 20, 59)
            for tenant_id in (NO_TENANT, 1, 2)
            if (hours, tenant_id) != (3, 2)
        ]
    )
    execute(world.dsn, "UPDATE sync_minutes SET late = false")  # as if each had come in time

    async def windows() -> list[list[TenantMinutes]]:
        first_us = world.settled_us - 5 * HOUR_US
        return [
            await world.minutes.windows(
                tenant, first_us + since_m * MINUTE_US, first_us + until_m * MINUTE_US
            )
            for tenant in (None, "acme")
            for since_m, until_m in ((0, 300), (20, 240), (21, 239), (20, 40), (60, 120), (-600, 900), (5, 5))
        ]

    before = await windows()
    assert before[0][0].minutes.durations.count == 30
    await world.run()
    assert await windows() == before
    hours = "UPDATE sync_analytics_snapshot SET sync_requests = sync_requests + 1000 WHERE tenant_id = 1"
    execute(world.dsn, hours)
    counted = [one[1].minutes.syncs for one in (await windows())[:6]]
    assert [
        new - old for new, old in zip(counted, [one[1].minutes.syncs for one in before[:6]], strict=True)
    ] == [
        *(5000, 3000, 2000, 0, 1000, 5000),
    ], "whole hours are read from their sums"
    await world.minutes.put([world.row(2, minute(1), after_m=7, process=OTHER)])
    late = await world.minutes.windows("acme", world.settled_us - 2 * HOUR_US, world.settled_us - HOUR_US)
    assert late[0].minutes.syncs == 2 * 3 + 79 + 1, "an hour with late minutes is not"


async def test_aggregation_deletes_minutes_after_three_days_and_device_hours_after_seven(
    world: World,
) -> None:
    old = [world.row(76, minute(1), tenant_id) for tenant_id in (NO_TENANT, 1, 2)]
    await world.minutes.put([*old, world.row(72, minute(2))])
    hours = ", ".join(f"(1, 'd{days}', now() - interval '{days} days', 1, 0, 0)" for days in (1, 6, 8, 9))
    execute(
        world.dsn,
        "INSERT INTO sync_device_hours (tenant_id, device_id, hour_start, syncs, failed, conflicts)"
        f" VALUES {hours}",
    )
    counts = await world.run()
    assert (counts["minutes_deleted"], counts["device_hours_deleted"]) == (3, 2)
    assert counts["snapshots"] == 1, "hours of before three days are not summed"
    assert rows(world.dsn, "SELECT syncs::int FROM sync_minutes") == [(2,)]
    assert rows(world.dsn, "SELECT device_id FROM sync_device_hours ORDER BY 1") == [("d1",), ("d6",)]
