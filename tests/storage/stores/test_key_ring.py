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
from storage.stores.keys.admin import PostgresKeyAdmin
from storage.stores.keys.wrapped import PostgresTenantKeys
from tests.harness.admin import add_tenants, remove_tenant
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
    await ring(Source(TWO)).load_to_seal([ids["acme"]])
    source = Source(ONE)
    one = ring(source)
    await one.load_to_seal([ids["globex"]])
    for _ in range(2):
        with pytest.raises(KeysUnavailableError, match=f"{master_key_id(TWO)} is needed"):
            await one.load_to_seal([ids["acme"]])
    assert said == ["keys_unavailable"]
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


async def test_end_rotation_keys_that_the_role_may_not_see_retires_nothing(
    ring: Made, ids: dict[str, int], database: Database, dsn: str
) -> None:
    await ring().load_to_seal([ids["acme"]])
    execute(dsn, "ALTER POLICY jobs ON tenant_keys TO tidemark_serving")
    with pytest.raises(StoreError, match="may not see the rows of the table tenant_keys"):
        await PostgresKeyAdmin(database).end_rotation("another", 0)
    assert rows(dsn, "SELECT master_key_id, retired_at FROM master_keys") == [(master_key_id(ONE), None)]
