"""Minutes in PostgreSQL: a repeated write changes nothing, and windows are sums over processes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from engine.cache.ports import MinuteRow
from engine.model.minutes import MINUTE_US, NO_TENANT, Durations, Minute, TenantMinutes
from engine.operate.ports import NoTenantError
from storage.postgres.pool import Database
from storage.stores.monitoring.minutes import PostgresMinutes
from storage.stores.tenants import PostgresTenants
from tests.harness.services import Serving, execute, rows

ONE, OTHER = "1" * 32, "2" * 32
START_US = 1_800_000_000_000_000 - 1_800_000_000_000_000 % MINUTE_US


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    execute(dsn, "INSERT INTO tenants (name) VALUES ('acme'), ('globex')")
    database = Serving(dsn, 2)
    yield database
    await database.close()


@pytest.fixture
def store(database: Database) -> PostgresMinutes:
    return PostgresMinutes(database)


def minute(syncs: int, *durations_us: int) -> Minute:
    counted = Minute(syncs, 1, 2, 30, 4, 3, 5, 6, 700)
    for duration_us in durations_us:
        counted.durations.add(duration_us)
    return counted


def row(counted: Minute, tenant_id: int = 1, after_m: int = 0, process: str = ONE) -> MinuteRow:
    return MinuteRow(tenant_id, START_US + after_m * MINUTE_US, process, counted)


async def window(store: PostgresMinutes, tenant: str | None = None, minutes: int = 60) -> list[TenantMinutes]:
    return await store.windows(tenant, START_US, START_US + minutes * MINUTE_US)


async def test_minutes_put_twice_count_once(store: PostgresMinutes) -> None:
    counted = minute(10, 5_000, 5_001, 90_000_000)
    await store.put([row(counted)])
    await store.put([row(counted)])
    assert await window(store) == [TenantMinutes("acme", counted)]


async def test_minutes_put_of_an_earlier_count_keeps_the_later(store: PostgresMinutes) -> None:
    await store.put([row(minute(11, 1_000))])
    await store.put([row(minute(10))])
    assert await window(store) == [TenantMinutes("acme", minute(11, 1_000))]


async def test_minutes_of_several_processes_and_minutes_add_up(store: PostgresMinutes) -> None:
    first, second, third = minute(1, 1_000, 2_000), minute(2, 2_000), minute(3)
    await store.put([row(first), row(second, after_m=1), row(third, process=OTHER)])
    assert await window(store) == [TenantMinutes("acme", first.plus(second).plus(third))]


async def test_minutes_windows_begin_inclusive_and_end_exclusive(store: PostgresMinutes) -> None:
    await store.put([row(minute(1), after_m=-1), row(minute(2)), row(minute(3), after_m=1)])
    assert [one.minutes.syncs for one in await window(store, minutes=1)] == [2]


async def test_minutes_windows_of_all_have_those_of_no_tenant_first(store: PostgresMinutes) -> None:
    await store.put([row(minute(1), 2), row(minute(2), 1), row(minute(3), NO_TENANT)])
    assert [(one.tenant, one.minutes.syncs) for one in await window(store)] == [
        (None, 3),
        ("acme", 2),
        ("globex", 1),
    ]
    assert [(one.tenant, one.minutes.syncs) for one in await window(store, "globex")] == [("globex", 1)]


async def test_minutes_windows_of_an_unknown_tenant_are_refused(store: PostgresMinutes) -> None:
    with pytest.raises(NoTenantError):
        await window(store, "nobody")


async def test_minutes_of_a_removed_tenant_are_skipped_and_keep_no_other(
    store: PostgresMinutes, database: Database, dsn: str
) -> None:
    await store.put([row(minute(1))])
    await PostgresTenants(database).remove("acme", erase=False)
    await store.put([row(minute(2)), row(minute(3), 2)])
    assert rows(dsn, "SELECT tenant_id, syncs FROM sync_minutes") == [(2, 3)]
    assert [one.tenant for one in await window(store)] == ["globex"]


async def test_minutes_without_durations_have_none(store: PostgresMinutes) -> None:
    await store.put([row(Minute(syncs=2, refused=2))])
    (found,) = await window(store)
    assert found.minutes.durations == Durations()


async def test_minutes_are_late_two_minutes_after_their_hour(store: PostgresMinutes, dsn: str) -> None:
    ((now_us,),) = rows(dsn, "SELECT (extract(epoch FROM now()) * 1000000)::bigint")
    assert isinstance(now_us, int)
    this_hour_us = now_us - now_us % (60 * MINUTE_US)
    late_us, in_time_us = this_hour_us - 61 * MINUTE_US, this_hour_us
    await store.put([MinuteRow(1, start_us, ONE, minute(1)) for start_us in (late_us, in_time_us)])
    assert rows(dsn, "SELECT late FROM sync_minutes ORDER BY minute_start") == [(True,), (False,)]
