"""Devices in PostgreSQL: counts add up, nobody waits for nobody, and what is revoked stays so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from bench.harness.clusters import migrate_for_roles
from engine.cache.device_health import Counts, DeviceKey, Facts, Health
from engine.cache.ports import HealthUnknownError, Revoked
from engine.operate.ports import RefusedError
from engine.runtime.ports import StoreError, StorePoisonError, StoreRetryError
from storage.postgres.connection import ConnectionLostError, PooledConnection
from storage.postgres.driver import Row, Values
from storage.postgres.migrate import migrate
from storage.postgres.pool import Database
from storage.stores.devices import PostgresDevices
from tests.harness.services import Serving, execute, rows

PHONE, TABLET, OTHER = DeviceKey(1, "phone"), DeviceKey(1, "tablet"), DeviceKey(2, "phone")
COUNTED = "SELECT tenant_id, device_rows FROM tenant_storage ORDER BY 1"
EMPTY = "SELECT count(*)::int FROM sync_device_health"


@pytest.fixture
def tenants(dsn: str) -> str:
    """A database with the tenants 1 and 2."""
    execute(dsn, "INSERT INTO tenants (name) VALUES ('acme'), ('globex')")
    return dsn


@pytest.fixture
async def store(tenants: str) -> AsyncIterator[PostgresDevices]:
    database = Serving(tenants, 3)
    yield PostgresDevices(database)
    await database.close()


def change(key: DeviceKey, *counts: int, at_us: int | None = None) -> Health:
    return Health(key, Counts(*counts), at_us)


async def test_devices_add_sums_counts_and_keeps_the_latest_sync(store: PostgresDevices) -> None:
    said = Health(PHONE, Counts(2, 1, 3_000, 4), 2_000_001, "4g", "1.0", "14", seen=True)
    await store.add([said])
    await store.add([change(PHONE, 1, 0, 500, 1, at_us=1_000_000), change(OTHER, 1)])
    found = {one.key: one for one in await store.health([OTHER, PHONE, TABLET])}
    assert found == {
        PHONE: Health(PHONE, Counts(3, 1, 3_500, 5), 2_000_001, "4g", "1.0", "14"),
        OTHER: Health(OTHER, Counts(1, 0, 0, 0)),
    }
    assert await store.health([]) == []
    assert [one.key for one in await store.latest(10)] == [PHONE]
    assert await store.latest(0) == []


async def test_devices_introduce_by_two_processes_fills_each_tenant_to_its_bound(tenants: str) -> None:
    databases = Serving(tenants, 1), Serving(tenants, 1)
    first = [DeviceKey(1, f"a{number}") for number in range(8)] + [DeviceKey(2, "only")]
    second = [DeviceKey(1, f"{letter}{number}") for letter in "ab" for number in range(6)]
    try:
        stores = [PostgresDevices(database) for database in databases]
        refused = set[DeviceKey]().union(
            *await asyncio.gather(stores[0].introduce(first, 10), stores[1].introduce(second, 10))
        )
        again = await stores[0].introduce(first, 10) | await stores[1].introduce(second, 10)
    finally:
        for database in databases:
            await database.close()
    assert again == refused
    made = rows(tenants, "SELECT tenant_id, device_id FROM devices ORDER BY 1, 2")
    assert made == sorted({*first, *second} - refused)
    assert rows(tenants, COUNTED) == [(1, 10), (2, 1)]


async def test_devices_are_counted_whoever_writes(store: PostgresDevices, tenants: str) -> None:
    await store.add([Health(PHONE, Counts(1), seen=True)])
    await store.revoke("acme", "lost")
    await store.revoke("acme", "phone")
    execute(tenants, "INSERT INTO devices (tenant_id, device_id) VALUES (2, 'by hand'), (2, 'another')")
    assert rows(tenants, COUNTED) == [(1, 2), (2, 2)]
    execute(tenants, "DELETE FROM devices WHERE device_id IN ('by hand', 'lost')")
    assert rows(tenants, COUNTED) == [(1, 1), (2, 1)]
    assert await store.introduce([PHONE, TABLET, OTHER], 1) == {TABLET, OTHER}


async def test_devices_introduce_without_room_or_need_locks_and_writes_nothing(
    store: PostgresDevices, tenants: str
) -> None:
    assert await store.introduce([PHONE, OTHER], 1) == set()
    upload = Serving(tenants, 1)
    try:
        async with upload.transaction(tenants=[1, 2]) as transaction:
            await transaction.query("SELECT FROM tenant_storage FOR UPDATE")
            assert await store.introduce([PHONE, TABLET, OTHER], 1) == {TABLET}
            with pytest.raises(StoreRetryError):
                await store.introduce([PHONE, TABLET, OTHER], 2)
    finally:
        await upload.close()
    assert rows(tenants, COUNTED) == [(1, 1), (2, 1)]


async def test_devices_add_keeps_versions_and_first_sight(store: PostgresDevices, tenants: str) -> None:
    await store.add([Health(PHONE, Counts(), None, "4g", "1.0", "14", seen=True)])
    first = rows(tenants, "SELECT first_seen_at FROM devices")
    await store.add([Health(PHONE, Counts(), None, None, "1.1", None, seen=True)])
    await store.add([change(PHONE, 1)])
    wanted = "SELECT app_version, os_version FROM devices"
    assert rows(tenants, wanted) == [("1.1", "14")]
    assert rows(tenants, wanted.replace("devices", "sync_device_health")) == [("1.1", "14")]
    assert rows(tenants, "SELECT first_seen_at FROM devices") == first
    assert rows(tenants, "SELECT last_seen_at > first_seen_at FROM devices") == [(True,)]


def told(key: DeviceKey, at_us: int, *values: float | None) -> Health:
    battery, queue_depth, storage_free_mb = values
    assert queue_depth is None or isinstance(queue_depth, int)
    return Health(key, Counts(1), facts=Facts(at_us, battery, queue_depth, storage_free_mb))


async def test_devices_add_keeps_the_facts_of_the_later_heartbeat(
    store: PostgresDevices, tenants: str
) -> None:
    facts = (
        "SELECT battery, queue_depth, storage_free_mb, (extract(epoch FROM heartbeat_at))::int"
        " FROM sync_device_health"
    )
    await store.add([Health(PHONE, Counts(), seen=True)])
    await store.add([told(PHONE, 2_000_000, 0.5, 7, 900.5)])
    await store.add([told(PHONE, 1_000_000, 0.9, 1, 1.0)])
    await store.add([change(PHONE, 1)])
    assert rows(tenants, facts) == [(0.5, 7, 900.5, 2)]
    await store.add([told(PHONE, 3_000_000, None, 8, None)])
    assert rows(tenants, facts) == [(0.5, 8, 900.5, 3)], "what it leaves out stays"
    (found,) = await store.devices("acme")
    assert (found.battery, found.queue_depth, found.storage_free_mb) == (0.5, 8, 900.5)
    assert found.heartbeat_at is not None


async def test_devices_add_sums_the_counts_of_a_devices_hour(store: PostgresDevices, tenants: str) -> None:
    await store.add([told(PHONE, 1, 0.5, 7, None), change(OTHER, 1)])
    await store.add([change(PHONE, 4, 2, 9_000, 3)])
    await store.add([told(PHONE, 2, None, 0, None)])
    hours = "SELECT tenant_id, device_id, syncs, failed, conflicts, battery, queue_depth"
    assert rows(tenants, f"{hours} FROM sync_device_hours ORDER BY 1") == [
        (1, "phone", 6, 2, 3, 0.5, 0),
        (2, "phone", 1, 0, 0, None, None),
    ]
    aligned = "hour_start = date_bin('1 hour', hour_start, 'epoch') AND hour_start > now() - interval '2 h'"
    assert rows(tenants, f"SELECT DISTINCT {aligned} FROM sync_device_hours") == [(True,)]


async def test_devices_add_mean_follows_from_the_sum(store: PostgresDevices, tenants: str) -> None:
    await store.add([change(PHONE, 3, 0, 9_000), change(TABLET)])
    await store.add([change(PHONE, 1, 0, 1_000), change(TABLET)])
    means = "SELECT avg_sync_duration_ms FROM sync_device_health ORDER BY device_id"
    assert rows(tenants, means) == [(2.5,), (None,)]
    migrate(tenants, 12, down=True)
    assert rows(tenants, means) == [(2.5,), (None,)]
    migrate_for_roles(tenants)  # on the way down the roles lost their rights
    assert (await store.health([PHONE]))[0].counts == Counts(4, 0, 10_000, 0)


async def test_devices_add_removed_tenant_is_skipped(store: PostgresDevices, tenants: str) -> None:
    execute(tenants, "DELETE FROM tenants WHERE tenant_id = 1")
    await store.add([Health(PHONE, Counts(1), seen=True), Health(OTHER, Counts(1), seen=True)])
    for table in ("devices", "sync_device_health"):
        assert rows(tenants, f"SELECT tenant_id, device_id FROM {table}") == [OTHER]


async def test_devices_add_refused_value_is_poison_and_writes_nothing(
    store: PostgresDevices, tenants: str
) -> None:
    with pytest.raises(StorePoisonError):
        await store.add([change(PHONE, 1), Health(TABLET, Counts(1), network_type="\0", seen=True)])
    assert rows(tenants, EMPTY) == [(0,)]


async def test_devices_add_processes_at_once_lose_nothing(tenants: str) -> None:
    keys = sorted(DeviceKey(1 + number % 2, f"d{number}") for number in range(200))
    databases = [Serving(tenants, 1) for _ in range(3)]
    try:
        for _ in range(5):
            changes = [Health(key, Counts(1, 0, 2, 1), seen=True) for key in keys]
            await asyncio.gather(*[PostgresDevices(database).add(changes) for database in databases])
    finally:
        for database in databases:
            await database.close()
    sums = "SELECT min(total_syncs)::int, max(total_syncs)::int, count(*)::int FROM sync_device_health"
    assert rows(tenants, sums) == [(15, 15, 200)]


async def test_devices_add_lock_timeout_fires_before_deadlock_detection(
    store: PostgresDevices, tenants: str
) -> None:
    await store.add([change(PHONE, 1)])
    database = Database(tenants, 1)
    try:
        async with database.connection() as session:
            await session.run("BEGIN; SELECT FROM sync_device_health FOR UPDATE")
            with pytest.raises(StoreRetryError, match="lock timeout"):
                await store.add([change(PHONE, 1)])
            await session.run("ROLLBACK")
    finally:
        await database.close()
    await store.add([change(PHONE, 1)])
    assert (await store.health([PHONE]))[0].counts.syncs == 2


async def test_devices_add_update_leaves_indexes_alone(store: PostgresDevices, tenants: str) -> None:
    hot = (
        "SELECT sum(n_tup_upd)::int, sum(n_tup_hot_upd)::int FROM pg_stat_user_tables"
        " WHERE relname IN ('devices', 'sync_device_health')"
    )
    for _ in range(3):
        await store.add([Health(PHONE, Counts(1), 1, "4g", "1.0", "14", seen=True)])
    await store._database.close()  # statistics are sent when a connection ends
    while rows(tenants, hot)[0][0] != 4:  # noqa: ASYNC110  # the server tells nobody when
        await asyncio.sleep(0.01)
    assert rows(tenants, hot) == [(4, 4)]


class _Losing(PooledConnection):
    """A connection that breaks at COMMIT, before or after the server heard of it."""

    heard = True

    async def _run(self, statements: str, values: Values | None) -> list[Row]:
        """Run, or break."""
        if statements != "COMMIT":
            return await super()._run(statements, values)
        if self.heard:
            await super()._run(statements, values)
        self.close()
        raise ConnectionLostError("broken")


@pytest.mark.parametrize("heard", [True, False])
async def test_devices_stored_receipt_decides_an_unknown_commit(
    store: PostgresDevices, monkeypatch: pytest.MonkeyPatch, *, heard: bool
) -> None:
    monkeypatch.setattr("storage.postgres.pool.PooledConnection", _Losing)
    monkeypatch.setattr(_Losing, "heard", heard)
    with pytest.raises(HealthUnknownError) as unknown:
        await store.add([change(PHONE, 1)])
    monkeypatch.undo()
    await store._database.close()
    while (stored := await store.stored(unknown.value.receipt)) is None:  # noqa: ASYNC110  # as above
        await asyncio.sleep(0.01)
    assert stored is heard
    assert len(await store.health([PHONE])) == heard


async def test_devices_stored_receipt_of_another_server_is_not_written(store: PostgresDevices) -> None:
    assert await store.stored(str(2**40)) is False


async def test_devices_stored_open_transaction_is_undecided(store: PostgresDevices, tenants: str) -> None:
    database = Serving(tenants, 1)
    try:
        async with database.connection() as session:
            ((receipt,),) = await session.run("BEGIN; SELECT pg_current_xact_id()::text")
            assert await store.stored(receipt) is None
            await session.run("ROLLBACK")
        assert await store.stored(receipt) is False
    finally:
        await database.close()


async def test_devices_health_reads_by_key_among_many(store: PostgresDevices, tenants: str) -> None:
    execute(
        tenants,
        "INSERT INTO sync_device_health (tenant_id, device_id)"
        " SELECT 1, 'd' || n FROM generate_series(1, 20000) AS n",
    )
    reads = "SELECT seq_tup_read::int, idx_tup_fetch::int FROM pg_stat_user_tables"
    reads += " WHERE relname = 'sync_device_health' AND schemaname = current_schema()"
    keys = [DeviceKey(1, f"d{number}") for number in range(1, 101)]
    assert len(await store.health(keys)) == 100
    await store._database.close()
    while rows(tenants, reads)[0][1] == 0:  # noqa: ASYNC110  # as above
        await asyncio.sleep(0.01)
    assert rows(tenants, reads) == [(0, 100)]


async def test_devices_revoke_is_listed_and_stays(store: PostgresDevices, tenants: str) -> None:
    generation = "SELECT generation::int FROM cluster_state"
    [(before,)] = rows(tenants, generation)
    await store.add([Health(PHONE, Counts(1), seen=True)])
    assert await store.revoked() == Revoked({}, set())
    assert await store.revoke("acme", "phone")
    assert not await store.revoke("acme", "phone")
    assert await store.revoke("globex", "never seen")
    await store.add([Health(PHONE, Counts(1), seen=True)])
    assert await store.revoked() == Revoked({PHONE: None, DeviceKey(2, "never seen"): None}, set())
    assert rows(tenants, generation) == [(int(str(before)) + 3,)]


async def test_devices_revocations_that_the_role_may_not_see_are_an_error(
    store: PostgresDevices, tenants: str
) -> None:
    await store.revoke("acme", "phone")
    for table in ("devices", "revoked_tokens"):
        execute(tenants, f"ALTER POLICY jobs ON {table} TO tidemark_serving")
        with pytest.raises(StoreError, match=f"may not see the rows of the table {table}: run"):
            await store.revoked()
        execute(tenants, f"ALTER POLICY jobs ON {table} TO tidemark_jobs")
    assert await store.revoked() == Revoked({PHONE: None}, set())


async def test_devices_restore_keeps_older_tokens_refused(store: PostgresDevices, tenants: str) -> None:
    assert not await store.known("acme", "phone")
    await store.revoke("acme", "phone")
    assert await store.known("acme", "phone")
    assert await store.restore("acme", "phone")
    [(from_s,)] = rows(tenants, "SELECT floor(extract(epoch FROM tokens_from))::bigint FROM devices")
    assert await store.revoked() == Revoked({PHONE: int(str(from_s))}, set())
    shown = await store.device("acme", "phone")
    assert (shown.revoked_at, shown.tokens_from is None) == (None, False)
    assert not await store.restore("acme", "phone")
    assert await store.revoked() == Revoked({PHONE: int(str(from_s))}, set())
    with pytest.raises(RefusedError, match="tenant acme has no device tablet"):
        await store.restore("acme", "tablet")
    await store.revoke("acme", "phone")
    assert await store.revoked() == Revoked({PHONE: None}, set())
