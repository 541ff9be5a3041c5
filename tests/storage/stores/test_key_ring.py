"""Keys of tenants: the ring in memory on the real store, and several rings side by side."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable

import pytest

from engine.cache import key_ring
from engine.cache.key_ring import KeysUnavailableError, TenantKeyRing
from engine.runtime.ports import StoreError
from engine.seal.master_keys import MasterKeyError, MasterKeys, master_key_id
from engine.seal.ports import KeysMissingError
from engine.seal.sealer import MOST_SEALS
from storage.postgres.pool import Database
from storage.stores.keys import wrapped
from storage.stores.keys.admin import PostgresKeyAdmin
from storage.stores.keys.wrapped import PostgresTenantKeys
from tests.harness.admin import add_tenants, remove_tenant
from tests.harness.postgres_stalls import WAITS_FOR_LOCK, Stall, backend
from tests.harness.services import Serving, execute, rows

ONE, TWO = b"1" * 32, b"2" * 32
BLOCK = 64
PLACE = ("records", "voice", "r1", 1)


class Source:
    """Master keys as a test gives them."""

    def __init__(self, *given: bytes) -> None:
        self.given = given

    async def keys(self, _: str | None = None) -> MasterKeys:
        """Return them."""
        if not self.given:
            raise MasterKeyError("no master key is set")
        return MasterKeys(self.given)


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    database = Serving(dsn, 4)
    yield database
    await database.close()


Made = Callable[..., TenantKeyRing]


@pytest.fixture
def ring(database: Database) -> Made:
    def make(source: Source | None = None) -> TenantKeyRing:
        store = PostgresTenantKeys(database)
        return TenantKeyRing(store, source or Source(ONE), os.urandom, BLOCK)

    return make


@pytest.fixture
def ids(dsn: str) -> dict[str, int]:
    add_tenants(dsn, "acme", "globex")
    return {str(name): int(str(number)) for name, number in rows(dsn, "SELECT name, tenant_id FROM tenants")}


def keys_in(dsn: str) -> list[tuple[object, ...]]:
    return rows(
        dsn,
        "SELECT key_number, retired_at IS NOT NULL, seals_leased FROM tenant_keys JOIN tenants"
        " USING (tenant_id) WHERE name = 'acme' ORDER BY key_number",
    )


async def test_load_to_seal_makes_the_first_key_and_takes_a_block(
    ring: Made, ids: dict[str, int], dsn: str
) -> None:
    one = ring()
    with pytest.raises(KeysMissingError):
        one.sealing_keys_of(ids["acme"])
    await one.load_to_seal([ids["acme"], 0])
    sealed = one.sealing_keys_of(ids["acme"]).seal(*PLACE, b"plain")
    assert keys_in(dsn) == [(1, False, BLOCK)]
    assert rows(dsn, "SELECT master_key_id, retired_at FROM master_keys") == [(master_key_id(ONE), None)]
    other = ring()
    await other.load_to_seal(list(ids.values()))
    assert other.sealing_keys_of(ids["acme"]).open(*PLACE, sealed) == b"plain"
    assert keys_in(dsn) == [(1, False, 2 * BLOCK)]
    with pytest.raises(KeysMissingError):
        one.sealing_keys_of(0)


async def test_load_where_nothing_can_be_written_opens_without_a_lease(
    ring: Made, ids: dict[str, int], dsn: str
) -> None:
    one = ring()
    await one.load_to_seal([ids["acme"]])
    sealed = one.sealing_keys_of(ids["acme"]).seal(*PLACE, b"plain")
    execute(dsn, "REVOKE INSERT, UPDATE ON tenant_keys FROM tidemark_serving")
    other = ring()
    await other.load(list(ids.values()))
    assert other.keys_of(ids["acme"]).open(*PLACE, sealed) == b"plain"
    assert keys_in(dsn) == [(1, False, BLOCK)]
    with pytest.raises(KeysMissingError):
        other.sealing_keys_of(ids["acme"])
    with pytest.raises(KeysMissingError):
        other.keys_of(ids["globex"])  # it has none yet
    with pytest.raises(StoreError, match="permission denied"):
        await other.load_to_seal([ids["acme"]])
    assert other.keys_of(ids["acme"]).open(*PLACE, sealed) == b"plain"


async def test_keys_of_at_the_end_of_a_block_still_opens(ring: Made, ids: dict[str, int]) -> None:
    one = ring()
    await one.load_to_seal([ids["acme"]])
    keys = one.sealing_keys_of(ids["acme"])
    sealed = [keys.seal(*PLACE, b"plain") for _ in range(BLOCK)]
    assert one.keys_of(ids["acme"]).open(*PLACE, sealed[-1]) == b"plain"


async def test_lease_of_another_key_of_the_same_number_gives_nothing(
    ring: Made, ids: dict[str, int], database: Database, dsn: str
) -> None:
    one = ring()
    await one.load_to_seal([ids["acme"]])
    lost = one.sealing_keys_of(ids["acme"]).active_id
    execute(dsn, "UPDATE tenant_keys SET key_id = gen_random_uuid()")
    assert await PostgresTenantKeys(database).lease({ids["acme"]: lost}, BLOCK) == set()
    assert keys_in(dsn) == [(1, False, BLOCK)]


async def test_load_to_seal_by_many_rings_at_once_makes_one_key(
    ring: Made, ids: dict[str, int], dsn: str
) -> None:
    rings = [ring() for _ in range(8)]
    await asyncio.gather(*(one.load_to_seal([ids["acme"]]) for one in rings))
    assert keys_in(dsn) == [(1, False, 8 * BLOCK)]
    sealed = rings[0].sealing_keys_of(ids["acme"]).seal(*PLACE, b"plain")
    assert {one.sealing_keys_of(ids["acme"]).open(*PLACE, sealed) for one in rings} == {b"plain"}


async def test_sealing_keys_of_shortly_before_the_end_of_a_block_asks_for_another(
    ring: Made, ids: dict[str, int], dsn: str
) -> None:
    one = ring()
    await one.load_to_seal([ids["acme"]])
    seals = BLOCK - BLOCK // 4 + 1  # a batch may seal the rest before it asks again
    for _ in range(seals):
        one.sealing_keys_of(ids["acme"]).seal(*PLACE, b"")
    with pytest.raises(KeysMissingError):
        one.sealing_keys_of(ids["acme"])
    await one.load_to_seal([ids["acme"]])
    assert one.sealing_keys_of(ids["acme"]).seals == seals
    assert keys_in(dsn) == [(1, False, 2 * BLOCK)]


async def test_load_to_seal_when_seals_are_used_up_rotates_the_key(
    ring: Made, ids: dict[str, int], dsn: str
) -> None:
    one, other = ring(), ring()
    await one.load_to_seal([ids["acme"]])
    sealed = one.sealing_keys_of(ids["acme"]).seal(*PLACE, b"plain")
    execute(dsn, f"UPDATE tenant_keys SET seals_leased = {MOST_SEALS - BLOCK + 1}")
    await other.load_to_seal([ids["acme"]])
    assert other.sealing_keys_of(ids["acme"]).active == 2
    assert other.sealing_keys_of(ids["acme"]).open(*PLACE, sealed) == b"plain"
    assert keys_in(dsn) == [(1, True, MOST_SEALS - BLOCK + 1), (2, False, BLOCK)]
    assert one.sealing_keys_of(ids["acme"]).active == 1  # its own block still holds
    await one.refresh()
    await one.load_to_seal([ids["acme"]])
    assert one.sealing_keys_of(ids["acme"]).active == 2
    assert rows(dsn, "SELECT event, target, times FROM audit_log WHERE event LIKE '%key%'") == [
        ("tenant_key_rotated", "2", 1)
    ]


async def test_rotate_by_many_rings_at_once_gives_each_its_own_key(
    ring: Made, ids: dict[str, int], dsn: str
) -> None:
    rings = [ring() for _ in range(3)]
    await asyncio.gather(*(one.load_to_seal([ids["acme"]]) for one in rings))
    numbers = await asyncio.gather(*(one.rotate(ids["acme"]) for one in rings))
    assert sorted(numbers) == [2, 3, 4]
    assert [(number, retired) for number, retired, _ in keys_in(dsn)] == [
        (1, True),
        (2, True),
        (3, True),
        (4, False),
    ]
    for one in rings:
        await one.load_to_seal([ids["acme"]])
        assert one.sealing_keys_of(ids["acme"]).active == 4


async def test_rotate_of_a_removed_tenant_is_refused(ring: Made, ids: dict[str, int], dsn: str) -> None:
    one = ring()
    await one.load_to_seal([ids["acme"]])
    remove_tenant(dsn, "acme", erase=False)
    assert keys_in(dsn) == []
    with pytest.raises(StoreError, match="the tenant was removed"):
        await one.rotate(ids["acme"])
    await one.refresh()
    assert len(one) == 0


async def test_load_to_seal_with_an_unknown_master_key_is_refused_until_it_is_given(
    ring: Made, ids: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(key_ring._log, "error", lambda event, **_: said.append(event), raising=False)
    source = Source(ONE)
    one = ring(source)
    await one.load_to_seal([ids["globex"]])
    await ring(Source(TWO, ONE)).load_to_seal([ids["acme"]])
    for _ in range(2):
        with pytest.raises(KeysUnavailableError, match=f"{master_key_id(TWO)} is needed"):
            await one.load_to_seal([ids["acme"]])
    assert said == ["keys_unavailable"]
    assert one.failures == 2
    source.given = (ONE, TWO)
    await one.load_to_seal([ids["acme"]])
    assert one.sealing_keys_of(ids["acme"]).active == 1


async def test_load_to_seal_without_a_master_key_is_refused(
    ring: Made, ids: dict[str, int], dsn: str
) -> None:
    with pytest.raises(KeysUnavailableError, match="no master key is set"):
        await ring(Source()).load_to_seal([ids["acme"]])
    assert keys_in(dsn) == []


async def test_load_to_seal_after_a_rewrap_keeps_the_seals_that_were_counted(
    ring: Made, ids: dict[str, int], dsn: str
) -> None:
    one = ring(Source(ONE, TWO))
    await one.load_to_seal([ids["acme"]])
    one.sealing_keys_of(ids["acme"]).seal(*PLACE, b"")
    before = one.sealing_keys_of(ids["acme"])
    execute(dsn, f"UPDATE tenant_keys SET master_key_id = '{master_key_id(TWO)}'")  # not opened again
    await one.refresh()
    assert one.sealing_keys_of(ids["acme"]) is before


async def test_end_rotation_waits_for_a_key_that_is_being_wrapped(
    ring: Made, ids: dict[str, int], database: Database, dsn: str
) -> None:
    admin = PostgresKeyAdmin(database)
    masters = MasterKeys([ONE])
    await ring().load_to_seal([ids["globex"]])
    execute(dsn, "UPDATE tenant_keys SET master_key_id = 'another'")  # as rotate-master leaves it
    wrapping = await database.begin(tenants=[ids["acme"]])
    key = masters.wrap(b"u" * 16, 1, b"k" * 32, b"n" * 12)
    assert await wrapped._replaced(wrapping, ids["acme"], None, key, masters.ids)
    ending = asyncio.create_task(admin.end_rotation(["another", master_key_id(ONE)], 0))
    await backend(dsn, WAITS_FOR_LOCK)
    await wrapping.commit()
    assert await ending == []
    assert await admin.master_keys_in_use() == ["another", master_key_id(ONE)]
    assert rows(dsn, "SELECT master_key_id FROM master_keys WHERE retired_at IS NOT NULL") == []


async def test_wrapping_waits_for_a_rotation_that_ends_and_puts_its_key_in_use_again(
    ring: Made, ids: dict[str, int], database: Database, dsn: str
) -> None:
    admin = PostgresKeyAdmin(database)
    await ring().load_to_seal([ids["acme"]])
    execute(dsn, "UPDATE tenant_keys SET master_key_id = 'another'")
    stall = Stall(dsn)
    stall.run("SELECT FROM master_keys FOR UPDATE")
    loading = asyncio.create_task(ring().load_to_seal([ids["globex"]]))
    await backend(dsn, WAITS_FOR_LOCK)
    stall.run("UPDATE master_keys SET retired_at = now(); COMMIT")
    stall.let_go()
    await loading
    assert await admin.master_keys_in_use() == [master_key_id(ONE), "another"]


async def test_master_keys_in_use_are_those_that_wrap_keys_whatever_is_called_retired(
    ring: Made, ids: dict[str, int], database: Database, dsn: str
) -> None:
    admin = PostgresKeyAdmin(database)
    assert await admin.master_keys_in_use() == []
    await ring().load_to_seal([ids["acme"]])
    execute(dsn, "UPDATE master_keys SET retired_at = now()")
    assert await admin.master_keys_in_use() == [master_key_id(ONE)]
    execute(dsn, "ALTER POLICY jobs ON tenant_keys TO tidemark_serving")
    with pytest.raises(StoreError, match="may not see the rows of the table tenant_keys"):
        await admin.master_keys_in_use()


async def test_load_of_vanished_keys_is_refused_for_that_tenant_alone(
    ring: Made, ids: dict[str, int], database: Database, dsn: str
) -> None:
    one = ring()
    await one.load_to_seal(list(ids.values()))
    execute(
        dsn, "CREATE TABLE kept AS SELECT * FROM tenant_keys", "DELETE FROM tenant_keys WHERE tenant_id = 1"
    )
    assert ids["acme"] == 1
    fresh = ring()
    for refused in (fresh.load([1]), fresh.load_to_seal([1]), fresh.rotate(1)):
        with pytest.raises(
            KeysUnavailableError, match="tenant 1 has lost its newest key, which has the number 1"
        ):
            await refused
    assert keys_in(dsn) == []
    await one.refresh()
    assert len(one) == 1
    await fresh.load_to_seal([ids["globex"]])
    assert [state.lost for state in await PostgresKeyAdmin(database).tenants()] == [True, False]
    execute(dsn, "INSERT INTO tenant_keys SELECT * FROM kept WHERE tenant_id = 1")
    await fresh.load_to_seal([1])
    assert fresh.keys_of(1).active == 1


async def test_load_without_the_newest_key_is_refused(ring: Made, ids: dict[str, int], dsn: str) -> None:
    one = ring()
    await one.load_to_seal([ids["acme"]])
    await one.rotate(ids["acme"])
    execute(
        dsn,
        "DELETE FROM tenant_keys WHERE key_number = 2",
        "UPDATE tenant_keys SET retired_at = NULL",  # as a backup from before the rotation has it
    )
    with pytest.raises(KeysUnavailableError, match="which has the number 2"):
        await ring().load([ids["acme"]])


async def test_refresh_where_only_retired_keys_are_left_drops_that_tenant_alone(
    ring: Made, ids: dict[str, int], database: Database, dsn: str
) -> None:
    one = ring()
    await one.load_to_seal(list(ids.values()))
    execute(
        dsn,
        "UPDATE tenant_keys SET retired_at = now() WHERE tenant_id = 1",
        "UPDATE tenants SET newest_key = 0",  # as a restore of some tables may leave it
    )
    await one.refresh()
    assert len(one) == 1
    for refused in (one.load([1]), one.load_to_seal([1]), ring().rotate(1)):
        with pytest.raises(KeysUnavailableError, match="has lost its newest key, which has a number above 1"):
            await refused
    assert [state.lost for state in await PostgresKeyAdmin(database).tenants()] == [True, False]


async def test_tenants_name_every_key_that_is_missing(
    ring: Made, ids: dict[str, int], database: Database, dsn: str
) -> None:
    one = ring()
    await one.load_to_seal(list(ids.values()))
    for _ in range(3):
        await one.rotate(ids["acme"])
    execute(dsn, "DELETE FROM tenant_keys WHERE tenant_id = 1 AND key_number IN (1, 3)")
    acme, globex = await PostgresKeyAdmin(database).tenants()
    assert (acme.lost, acme.missing_keys, globex.missing_keys) == (False, [1, 3], [])
    execute(dsn, "DELETE FROM tenant_keys WHERE tenant_id = 1")
    acme, _ = await PostgresKeyAdmin(database).tenants()
    assert (acme.lost, acme.missing_keys) == (True, [1, 2, 3, 4])


async def test_end_rotation_keys_that_the_role_may_not_see_retires_nothing(
    ring: Made, ids: dict[str, int], database: Database, dsn: str
) -> None:
    await ring().load_to_seal([ids["acme"]])
    execute(dsn, "ALTER POLICY jobs ON tenant_keys TO tidemark_serving")
    with pytest.raises(StoreError, match="may not see the rows of the table tenant_keys"):
        await PostgresKeyAdmin(database).end_rotation(["another", master_key_id(ONE)], 0)
    assert rows(dsn, "SELECT master_key_id, retired_at FROM master_keys") == [(master_key_id(ONE), None)]


async def test_wrapping_with_a_new_master_key_while_one_in_use_is_missing_is_refused(
    ring: Made, ids: dict[str, int], dsn: str
) -> None:
    await ring().load_to_seal([ids["globex"]])
    for wrong in (ring(Source(TWO)).load_to_seal([ids["acme"]]), ring(Source(TWO)).rotate(ids["acme"])):
        with pytest.raises(KeysUnavailableError, match=f"{master_key_id(ONE)} is needed to open sealed data"):
            await wrong
    assert rows(dsn, "SELECT master_key_id FROM master_keys") == [(master_key_id(ONE),)]
    assert keys_in(dsn) == []
    await ring(Source(TWO, ONE)).load_to_seal([ids["acme"]])
    assert {row[0] for row in rows(dsn, "SELECT master_key_id FROM master_keys")} == {
        master_key_id(ONE),
        master_key_id(TWO),
    }


async def test_wrapping_with_two_master_keys_at_once_takes_one_of_them(
    ring: Made, ids: dict[str, int], dsn: str
) -> None:
    both = (ring(Source(one)).load_to_seal([ids[name]]) for one, name in ((ONE, "acme"), (TWO, "globex")))
    done = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(one).__name__ for one in done) == ["KeysUnavailableError", "NoneType"]
    assert len(rows(dsn, "SELECT FROM master_keys")) == 1
