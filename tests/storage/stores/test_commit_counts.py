"""Counts in the counter rows: exact over hours, clocks that go back, processes side by side, and failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from engine.model.commit_counts import PLACES, CommitCounts, decode_counts
from engine.model.rows import ReadSet, Record, WriteSet
from engine.operate.figures.aggregation import LateHour
from engine.runtime.ports import StorePoisonError
from storage.stores.commit.store import PostgresStore
from storage.stores.monitoring.aggregation import PostgresAggregation
from storage.stores.sealed.sealing import Sealing
from tests.harness.services import Serving, execute, rows

HOUR_US = 3_600_000_000


class World:
    """A database with two tenants, and processes that commit to it."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.databases = [Serving(dsn, 1) for _ in range(3)]
        self.stores = [PostgresStore(database, 24, Sealing()) for database in self.databases]
        self.jobs = PostgresAggregation(self.databases[0])

    async def commit(
        self, *tenants: int, process: int = 0, syncs: int = 1, record: Record | None = None
    ) -> None:
        """Commit one batch that counts the same for some tenants."""
        transaction = await self.stores[process].begin(ReadSet(sorted(tenants), [], [], [], [], []))
        counts = {tenant: CommitCounts(syncs=syncs, sent_bytes=10) for tenant in tenants}
        for one in counts.values():
            one.items_of("task")[PLACES["applied"]] += syncs
        seqs = {tenant: seq + 1 for tenant, seq in transaction.snapshot.seqs.items()}
        writes = WriteSet(seqs, [] if record is None else [record], [], [], [], [], counts=counts)
        await transaction.commit(writes)

    def clock(self, hours: int) -> None:
        """Make what was counted in the present hour so many hours older, as if time had passed."""
        execute(self.dsn, f"UPDATE tenant_counters SET sync_hour = sync_hour - {hours}")

    def counted(self) -> dict[tuple[int, int], CommitCounts]:
        """Return the counts by tenant and hour, counted back from the present one."""
        found: dict[tuple[int, int], CommitCounts] = {}
        for tenant_id, hour, text in rows(
            self.dsn,
            "SELECT tenant_id, (extract(epoch FROM now())::bigint / 3600 - sync_hour)::int, sync_counts FROM"
            " (SELECT tenant_id, sync_hour, sync_counts FROM sync_hour_counts UNION ALL SELECT tenant_id,"
            " sync_hour, sync_counts FROM tenant_counters WHERE sync_counts IS NOT NULL) AS f",
        ):
            assert isinstance(tenant_id, int)
            assert isinstance(hour, int)
            found.setdefault((tenant_id, hour), CommitCounts()).add(decode_counts(str(text)))
        return found


@pytest.fixture
async def world(dsn: str) -> AsyncIterator[World]:
    execute(
        dsn,
        "INSERT INTO tenants (name) VALUES ('acme'), ('globex')",
        "INSERT INTO tenant_counters SELECT tenant_id FROM tenants",
    )
    world = World(dsn)
    yield world
    for database in world.databases:
        await database.close()


def of(syncs: int, batches: int) -> CommitCounts:
    return CommitCounts(syncs, 10 * batches, 0, {"task": [syncs, 0, 0, 0, 0]})


async def test_commit_counts_of_processes_side_by_side_add_up(world: World) -> None:
    async def commits(process: int) -> None:
        for syncs in range(1, 21):
            await world.commit(1, 2, process=process, syncs=syncs)

    await asyncio.gather(*[commits(process) for process in range(3)])
    assert world.counted() == {(1, 0): of(630, 60), (2, 0): of(630, 60)}
    assert rows(world.dsn, "SELECT seq::int FROM tenant_counters") == [(60,), (60,)]


async def test_commit_counts_that_are_rolled_back_do_not_count(world: World) -> None:
    await world.commit(1, syncs=5)
    refused = Record(1, "task", "a1", 1, 2, 0, None, 1, b"{")
    with pytest.raises(StorePoisonError):
        await world.commit(1, syncs=7, record=refused)
    world.clock(2)
    with pytest.raises(StorePoisonError):
        await world.commit(1, syncs=7, record=refused)
    assert world.counted() == {(1, 2): of(5, 1)}
    assert rows(world.dsn, "SELECT FROM sync_hour_counts") == []


async def test_commit_of_another_hour_sets_the_last_one_aside_also_if_the_clock_goes_back(
    world: World,
) -> None:
    await world.commit(1, syncs=1)
    world.clock(5)
    await world.commit(1, 2, syncs=2)
    await world.commit(1, syncs=3)
    world.clock(-2)  # as if the clock went back by two hours
    await world.commit(1, syncs=4)
    world.clock(2)
    await world.commit(2, syncs=5)
    found = world.counted()
    assert sum(counts.syncs for (tenant, _), counts in found.items() if tenant == 1) == 10
    assert found[1, 5 - 2 + 2] == of(1, 1)
    assert found[2, 0] == of(7, 2)
    assert rows(world.dsn, "SELECT tenant_id FROM sync_hour_counts") == [(1,), (1,)]


async def test_aggregation_sets_hours_aside_that_no_commit_follows_and_sums_what_changes_later(
    world: World,
) -> None:
    await world.commit(1, 2, syncs=3)
    await world.jobs.end_hours([1, 2])
    assert rows(world.dsn, "SELECT FROM sync_hour_counts") == [], "the present hour goes on"
    world.clock(4)
    await world.jobs.end_hours([1])
    await world.jobs.end_hours([1])
    assert rows(world.dsn, "SELECT tenant_id FROM sync_hour_counts") == [(1,)]
    execute(world.dsn, "UPDATE cluster_state SET commits_counted_since = 'epoch'")
    due = await world.jobs.due()
    await world.jobs.sum_hours([1, 2], due.until_us - 9 * HOUR_US, due.until_us)
    await world.jobs.summed(due.until_us)
    summed = "SELECT tenant_id, succeeded::int FROM sync_analytics_snapshot ORDER BY 1"
    assert rows(world.dsn, summed) == [(1, 3), (2, 3)], "also what no row has yet"
    assert (await world.jobs.due()).late == []
    await world.commit(1, syncs=8)
    world.clock(4)  # a clock that went back
    await world.jobs.end_hours([1, 2])
    late = (await world.jobs.due()).late
    assert {hour.tenant_id for hour in late} == {1, 2}
    for hour in late:
        assert isinstance(hour, LateHour)
        await world.jobs.sum_hours([hour.tenant_id], hour.start_us, hour.start_us + HOUR_US)
    assert rows(world.dsn, f"{summed}, 2") == [(1, 11), (2, 3), (2, 3)]
    assert (await world.jobs.due()).late == []
