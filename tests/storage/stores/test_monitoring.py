"""Counts for the monitor: devices' scores as the engine computes them, and the last judgement."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from engine.cache.device_health import Counts, score
from engine.operate.monitor.judge import DevicesSeen
from engine.operate.monitor.statuses import HealthStatus, LastHealth
from engine.operate.ports import NoTenantError
from storage.postgres.pool import Database
from storage.stores.monitoring.health import PostgresHealth
from storage.stores.monitoring.reads import PostgresMonitorReads
from tests.harness.services import Serving, execute

HOUR_US = 3_600_000_000


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    opened = Serving(dsn, 2)
    yield opened
    await opened.close()


def add_device(
    tenant_id: int, device: str, counts: Counts | None = None, silent_h: float | None = 0, seen_h: float = 0
) -> str:
    """Return statements that store a device; with ``silent_h`` None it never had a sync that succeeded."""
    statement = (
        f"INSERT INTO devices (tenant_id, device_id, last_seen_at)"
        f" VALUES ({tenant_id}, '{device}', now() - interval '{seen_h} hours')"
    )
    if counts is None:
        return statement
    last = "NULL" if silent_h is None else f"now() - interval '{silent_h} hours'"
    return statement + (
        "; INSERT INTO sync_device_health (tenant_id, device_id, total_syncs, failed_syncs, conflicts,"
        f" last_sync_at) VALUES ({tenant_id}, '{device}', {counts.syncs}, {counts.failed},"
        f" {counts.conflicts}, {last})"
    )


async def test_devices_seen_scores_equal_those_of_the_engine(database: Database, dsn: str) -> None:
    """Each tenant has one device, so that each score is seen."""
    chance = random.Random(7)
    expected: dict[str, int] = {}
    statements = []
    for tenant_id in range(1, 151):
        syncs = chance.choice([0, 1, 2, 3, 20, 1000])
        counts = Counts(syncs, chance.randint(0, syncs), 0, chance.choice([0, 1, syncs // 2, 3 * syncs]))
        silent_h = None if syncs in (0, counts.failed) else chance.choice([0, 1, 5.5, 23, 24, 100])
        latest_us = None if silent_h is None else time.time_ns() // 1000 - int(silent_h * HOUR_US)
        expected[f"t{tenant_id}"] = score(counts, latest_us, time.time_ns() // 1000)
        statements += [
            f"INSERT INTO tenants (name) VALUES ('t{tenant_id}')",
            add_device(tenant_id, "phone", counts, silent_h),
        ]
    execute(dsn, *statements)
    found = await PostgresMonitorReads(database).devices_seen(None)
    assert found.keys() == expected.keys()
    for tenant, wanted in expected.items():
        # A score next to a half may have been rounded the other way a moment later.
        assert abs(found[tenant].score_sum - wanted) <= 1, tenant
    assert sum(found[tenant].score_sum != wanted for tenant, wanted in expected.items()) <= 5


async def test_devices_seen_sums_those_of_a_week_that_are_not_revoked(database: Database, dsn: str) -> None:
    execute(
        dsn,
        "INSERT INTO tenants (name) VALUES ('acme'), ('globex'), ('empty')",
        add_device(1, "new"),
        add_device(1, "good", Counts(10, 0, 0, 0), seen_h=1000),
        add_device(1, "bad", Counts(10, 10, 0, 0), silent_h=None, seen_h=160),
        add_device(1, "gone", Counts(10, 10, 0, 0), silent_h=170, seen_h=170),
        add_device(1, "revoked", Counts(10, 10, 0, 0)),
        add_device(2, "phone", Counts(1, 0, 0, 0)),
        "UPDATE devices SET revoked_at = now() WHERE device_id = 'revoked'",
    )
    reads = PostgresMonitorReads(database)
    found = await reads.devices_seen(None)
    acme = found["acme"]
    assert (acme.devices, acme.score_sum, acme.syncs, acme.failed) == (3, 100 + 100 + 20, 20, 10)
    assert found.keys() == {"acme", "globex", "empty"}
    for tenant in ("globex", "empty"):
        assert await reads.devices_seen(tenant) == {tenant: found[tenant]}
    assert found["empty"] == DevicesSeen()
    with pytest.raises(NoTenantError):
        await reads.devices_seen("nobody")


def add_hours(tenant_id: int, device: str, *hours: tuple[int, int, int | None]) -> str:
    """Return statements that store a device's last hours, the last one going on: syncs, failed, queue."""
    depth = next((str(depth) for _, _, depth in reversed(hours) if depth is not None), "NULL")
    rows = ", ".join(
        f"({tenant_id}, '{device}', date_trunc('hour', now(), 'UTC') - interval '{ago} hours',"
        f" {syncs}, {failed}, 0, {'NULL' if depth is None else depth})"
        for ago, (syncs, failed, depth) in enumerate(reversed(hours))
    )
    columns = "tenant_id, device_id, hour_start, syncs, failed, conflicts, queue_depth"
    return (
        f"INSERT INTO sync_device_hours ({columns}) VALUES {rows};"
        " INSERT INTO sync_device_health (tenant_id, device_id, queue_depth, heartbeat_at)"
        f" VALUES ({tenant_id}, '{device}', {depth}, now())"
    )


async def test_devices_seen_names_those_whose_queue_grows_while_they_sync(
    database: Database, dsn: str
) -> None:
    devices: dict[str, list[tuple[int, int, int | None]]] = {
        "stalled": [(3, 0, 5), (3, 1, 20), (1, 0, 30)],
        "hour-goes-on": [(3, 0, 5), (3, 1, 20), (1, 0, 30), (1, 0, None)],
        "new-hour": [(3, 0, 900), (3, 0, 5), (3, 1, 20), (1, 0, 30)],
        "works": [(3, 0, 30), (3, 1, 20), (1, 0, 5)],
        "fails": [(3, 0, 5), (3, 3, 20), (1, 0, 30)],
        "tells-no-queue": [(3, 0, None), (3, 0, None), (1, 0, None)],
        "long-ago": [(3, 0, 5), (3, 1, 20), (1, 0, 30), (1, 0, None), (1, 0, None)],
        "revoked": [(3, 0, 5), (3, 1, 20), (1, 0, 30)],
    }
    statements = ["INSERT INTO tenants (name) VALUES ('acme'), ('globex')", add_device(2, "phone")]
    for device, hours in devices.items():
        statements += [add_device(1, device), add_hours(1, device, *hours)]
    execute(dsn, *statements, "UPDATE devices SET revoked_at = now() WHERE device_id = 'revoked'")
    found = await PostgresMonitorReads(database).devices_seen(None)
    assert found["acme"].stalled == ("hour-goes-on", "new-hour", "stalled")
    assert (found["acme"].stalled_devices, found["globex"].stalled_devices) == (3, 0)
    assert (await PostgresMonitorReads(database).devices_seen("globex"))["globex"].stalled == ()


def is_stalled(hours: list[tuple[int, int, int | None]]) -> bool:
    """Return whether a queue grew in each of the last three hours in which it was told, by 10 in all."""
    last = [(syncs - failed, depth) for syncs, failed, depth in hours if depth is not None][-3:]
    depths = [depth for _, depth in last]
    grew = all(before < after for before, after in pairwise(depths))
    return len(last) == 3 and grew and depths[2] - depths[0] >= 10 and all(good for good, _ in last)


async def test_devices_seen_stalled_of_any_hours_are_those_of_the_rule(database: Database, dsn: str) -> None:
    chance = random.Random(1)
    most = 2**31 - 1
    devices = {
        f"phone-{number:03}": [
            (3, chance.choice((0, 0, 0, 3)), depth)
            for depth in sorted(
                chance.choices((0, 4, 5, 9, 10, 20, most - 10, most), k=chance.randint(1, 4)),
                key=lambda depth: depth if number % 4 else chance.random(),
            )
        ]
        for number in range(400)
    }
    statements = ["INSERT INTO tenants (name) VALUES ('acme')"]
    for device, hours in devices.items():
        statements += [add_device(1, device), add_hours(1, device, *hours)]
    execute(dsn, *statements)
    acme = (await PostgresMonitorReads(database).devices_seen("acme"))["acme"]
    stalled = [device for device, hours in devices.items() if is_stalled([*hours])]
    assert len(stalled) > 20
    assert (acme.stalled_devices, acme.stalled) == (len(stalled), tuple(stalled[:20]))


async def test_devices_seen_names_twenty_stalled_ones_at_most(database: Database, dsn: str) -> None:
    statements = ["INSERT INTO tenants (name) VALUES ('acme')"]
    for number in range(22):
        device = f"phone-{number:02}"
        statements += [add_device(1, device), add_hours(1, device, (1, 0, 0), (1, 0, 9), (1, 0, 10))]
    execute(dsn, *statements)
    acme = (await PostgresMonitorReads(database).devices_seen("acme"))["acme"]
    assert (acme.stalled_devices, len(acme.stalled), acme.stalled[-1]) == (22, 20, "phone-19")


async def test_health_last_is_the_one_that_replaced_others(database: Database) -> None:
    store = PostgresHealth(database)
    assert await store.last() is None
    first = LastHealth(1, HealthStatus("unknown", None), {})
    second = LastHealth(2, HealthStatus("critical", 3), {"acme": HealthStatus("healthy", 100)})
    for health in (first, second):
        await store.replace(health)
        assert await store.last() == health


async def test_health_row_of_another_version_counts_as_none_and_is_replaced(
    database: Database, dsn: str
) -> None:
    store = PostgresHealth(database)
    execute(dsn, """INSERT INTO health_report (health) VALUES ('{"overall": {"status": "asleep"}}')""")
    assert await store.last() is None
    health = LastHealth(1, HealthStatus("healthy", 100), {})
    await store.replace(health)
    assert await store.last() == health
