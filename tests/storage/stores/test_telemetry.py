"""Telemetry in PostgreSQL: once by key whatever comes twice, bounded by device and tenant, and summed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping

import pytest

from engine.cache.ports import TelemetryOutcome
from engine.model.commit_counts import HOUR_US
from engine.model.telemetry import TelemetryRow
from engine.operate.figures.telemetry import telemetry_analytics
from engine.operate.ports import NoTenantError
from storage.postgres.pool import Database
from storage.stores.monitoring import telemetry
from storage.stores.monitoring.telemetry import PostgresTelemetry
from storage.stores.tenants import PostgresTenants
from tests.harness.postgres_stalls import WAITS_FOR_LOCK, Stall, backend
from tests.harness.services import Serving, execute, rows

DAY = 490_000
NOW_US = DAY * HOUR_US


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    execute(dsn, "INSERT INTO tenants (name) VALUES ('acme'), ('globex')")
    database = Serving(dsn, 4)
    yield database
    await database.close()


@pytest.fixture
def store(database: Database) -> PostgresTelemetry:
    return PostgresTelemetry(database)


def row(
    key: str = "1",
    device: str = "phone",
    hour: int = DAY,
    tenant_id: int = 1,
    counters: Mapping[str, int] | None = None,
    histograms: Mapping[str, Mapping[int, int]] | None = None,
) -> TelemetryRow:
    counters, histograms = counters or {"photos": 1}, histograms or {}
    pairs = [
        (place, *pair)
        for place, buckets in enumerate(histograms.values(), 1)
        for pair in sorted(buckets.items())
    ]
    return TelemetryRow(
        tenant_id,
        device,
        hour,
        key.rjust(32, "0"),
        tuple(counters),
        tuple(counters.values()),
        tuple(histograms),
        *(tuple(pair[column] for pair in pairs) for column in range(3)),
    )


async def put(store: PostgresTelemetry, *sent: TelemetryRow) -> list[TelemetryOutcome]:
    return await store.put(sent)


async def test_telemetry_put_counts_a_key_once_in_and_over_batches_and_processes(
    store: PostgresTelemetry, database: Database, dsn: str
) -> None:
    one, other = row("a"), row("a", counters={"photos": 2})
    assert await put(store, one, row("b"), one, other) == ["stored", "stored", "replayed", "reused"]
    again = PostgresTelemetry(database)
    assert await put(again, one, other, row("a", hour=DAY + 1)) == ["replayed", "reused", "stored"]
    assert await put(again, row("a", "tablet"), row("a", tenant_id=2)) == ["stored", "stored"]
    assert await put(again, row("a", histograms={"photos": {1: 1}})) == ["reused"]
    assert rows(dsn, "SELECT count(*)::int FROM device_telemetry") == [(5,)]


async def test_telemetry_put_by_several_processes_at_once_counts_once_and_bounds_parts(
    database: Database, dsn: str
) -> None:
    processes = [PostgresTelemetry(database) for _ in range(4)]
    sent = [row(str(key), f"d{device}", counters={f"n{key}": key}) for key in range(6) for device in range(5)]
    found = await asyncio.gather(
        *(store.put(sent[place:] + sent[:place]) for place, store in enumerate(processes))
    )
    outcomes = Counter(outcome for some in found for outcome in some)
    assert outcomes["stored"] == 20, "four parts of each of five devices"
    assert outcomes.keys() == {"stored", "replayed", "parts"}
    parts = rows(dsn, "SELECT device_id, array_agg(part ORDER BY part) FROM device_telemetry GROUP BY 1")
    assert [part for _, part in parts] == [[1, 2, 3, 4]] * 5
    stored = rows(dsn, "SELECT device_id, key_hash FROM device_telemetry")
    assert len(set(stored)) == 20


async def test_telemetry_put_key_that_another_process_stores_at_the_same_time_counts_once(
    store: PostgresTelemetry, dsn: str
) -> None:
    assert await put(store, row(hour=DAY - 1)) == ["stored"]  # it knows the name, and waits for no number
    other = Stall(dsn)
    other.run(
        "INSERT INTO device_telemetry SELECT tenant_id, hour_start + interval '1 hour', device_id, 1,"
        f" '{row('b').key_hash}', now(), counter_names, counter_values, histogram_names, histogram_places,"
        " histogram_buckets, histogram_counts FROM device_telemetry"
    )
    storing = asyncio.create_task(put(store, row("a"), row("b")))
    await backend(dsn, WAITS_FOR_LOCK)
    other.run("COMMIT")
    other.let_go()
    assert await storing == ["stored", "replayed"]
    earlier = "SELECT min(hour_start) FROM device_telemetry"
    keys = rows(dsn, f"SELECT key_hash FROM device_telemetry WHERE hour_start > ({earlier})")
    assert len(keys) == len(set(keys)) == 2


async def test_telemetry_put_of_the_largest_messages_is_split_and_answers_all_in_order(
    store: PostgresTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "_MOST_VALUES", 5)
    large = [row(str(key), histograms={"h": dict.fromkeys(range(3), 1)}) for key in range(4)]
    assert await put(store, *large, large[0]) == ["stored"] * 4 + ["replayed"]


async def test_telemetry_put_of_a_removed_tenant_keeps_no_other_from_being_stored(
    store: PostgresTelemetry, database: Database, dsn: str
) -> None:
    execute(dsn, "INSERT INTO tenant_counters (tenant_id) SELECT tenant_id FROM tenants")
    assert await put(store, row(tenant_id=2)) == ["stored"]
    await PostgresTenants(database).remove("globex", erase=True)
    assert await put(store, row(), row("2", tenant_id=2)) == ["stored", "no_tenant"]


async def test_telemetry_names_are_bounded_by_device_and_by_tenant(
    store: PostgresTelemetry, database: Database, dsn: str
) -> None:
    def named(device: int, first: int, count: int = 50) -> TelemetryRow:
        names = {f"n{number}": 1 for number in range(first, first + count)}
        return row(str(first), f"d{device}", counters=names)

    assert await put(store, named(1, 0), named(1, 50)) == ["stored", "stored"]
    assert await put(store, named(1, 100), named(2, 100)) == ["stored", "stored"], "another brings them up"
    assert await put(store, named(1, 150)) == ["names"], "a device has brought up its 100"
    for device in range(2, 9):
        await put(store, *(named(device, 100 * (device - 1) + part, 25) for part in range(0, 100, 25)))
    ((names, most),) = rows(dsn, "SELECT count(*)::int, max(number)::int FROM telemetry_names")
    assert (names, most) == (500, 500)
    assert await put(PostgresTelemetry(database), row(device="new", counters={"n1": 1})) == ["stored"]
    assert await put(store, row(device="new", counters={"another": 1})) == ["names"]
    assert await put(store, row(tenant_id=2, counters={"another": 1})) == ["stored"], "of another tenant"


async def test_telemetry_is_deleted_by_its_hour_and_names_after_it(
    store: PostgresTelemetry, database: Database, dsn: str
) -> None:
    days = [0]
    store = PostgresTelemetry(database, lambda: days[0])
    await put(store, row("1", hour=DAY - 1, counters={"old": 1}), row("2", counters={"new": 1}))
    execute(dsn, "UPDATE telemetry_names SET used_on = to_timestamp(0)")
    assert await store.delete_names(NOW_US, 10) == 0, "rows have them"
    assert [await store.delete(NOW_US, 1), await store.delete(NOW_US, 1)] == [1, 0]
    days[0] = 1  # it asks again for the numbers of names, which notes that they are used
    await put(store, row("3", counters={"new": 1}))
    assert [await store.delete_names(NOW_US, 1), await store.delete_names(NOW_US, 1)] == [1, 0]
    assert rows(dsn, "SELECT name FROM telemetry_names") == [("new",)]
    await put(store, row("4", counters={"newer": 1}))
    assert rows(dsn, "SELECT number::int FROM telemetry_names WHERE name = 'newer'") == [(2,)], "free again"


async def test_telemetry_sums_are_those_of_all_values_by_hour_and_day(store: PostgresTelemetry) -> None:
    day = DAY // 24 * 24
    await put(
        store,
        row("1", "a", day, counters={"x": 2**53, "y": 0}, histograms={"h": {231: 3, 673: 1}, "e": {}}),
        row("2", "a", day, counters={"x": 2**53}, histograms={"h": {231: 1}}),
        row("1", "b", day + 1, counters={"x": 5}, histograms={"h": {0: 95, 231: 1}}),
        row("1", "b", day + 24, counters={"x": 7}),
        row("1", "c", day, tenant_id=2, counters={"x": 1000}),
    )
    since_us, until_us = day * HOUR_US, (day + 25) * HOUR_US
    hours = await telemetry_analytics(store, "acme", since_us, until_us, "hour")
    assert [(one.name, one.devices, one.total, one.buckets) for one in hours.rows] == [
        ("x", 1, 2**54, None),
        ("y", 1, 0, None),
        ("e", 1, 0, []),
        ("h", 1, 5, [(231, 4), (673, 1)]),
        ("x", 1, 5, None),
        ("h", 1, 96, [(0, 95), (231, 1)]),
        ("x", 1, 7, None),
    ]
    days = await telemetry_analytics(store, "acme", since_us, until_us, "day")
    assert len({one.start for one in days.rows}) == 2
    assert [(one.name, one.devices, one.total) for one in days.total] == [
        ("x", 2, 2**54 + 12),
        ("y", 1, 0),
        ("e", 1, 0),
        ("h", 2, 101),
    ]
    whole = days.total[-1]
    assert whole.buckets == [(0, 95), (231, 5), (673, 1)]
    assert (whole.p50_ms, whole.p95_ms, whole.p99_ms) == pytest.approx((0.1, 9.6, 9.6), rel=0.01)
    assert (await telemetry_analytics(store, "acme", 0, since_us, "day")).rows == []
    with pytest.raises(NoTenantError):
        await telemetry_analytics(store, "nobody", since_us, until_us, "day")
