"""Sealed data that cannot be opened: the message or the tenant is refused alone, and comes again later."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from engine.cache.key_ring import KeysUnavailableError
from engine.model.rows import ReadSet
from engine.runtime.ports import StoreError, StoreUnreadableError
from engine.wire.errors import SyncError
from tests.engine.commit.test_committer import Bench, FaultyStore, bench, put
from tests.harness.memory_store import MemoryTransaction

LOST, BROKEN = "tenant 3 has lost its newest key", "records.data of task broken: of another row"


class Unreadable(FaultyStore):
    """Cannot open the keys of tenant 3, nor the record ``broken``. ``begins`` are the tenants of each try."""

    def __init__(self, error: StoreError | None = None) -> None:
        super().__init__()
        self.error = error or StoreUnreadableError(BROKEN)
        self.begins: list[list[int]] = []

    async def begin(self, read_set: ReadSet) -> MemoryTransaction:
        """Begin, unless something cannot be opened."""
        self.begins.append(read_set.tenants)
        if 3 in read_set.tenants:
            raise KeysUnavailableError(LOST)
        if any(key.id == "broken" for key in read_set.records):
            raise self.error
        return await super().begin(read_set)


async def together(one: Bench, *messages: tuple[str, int, str]) -> None:
    """Submit messages (key, tenant, record) so that they are in one batch, and wait for their answers."""
    one.store.gate.clear()
    while not one.store.committing.empty():
        one.store.committing.get_nowait()
    one.submit("first" + messages[0][0], put("f"), tenant=8)
    await one.store.committing.get()
    for key, tenant, record_id in messages:
        one.submit(key, put(record_id, x=1), tenant=tenant, device=f"d-{key}")
    one.store.gate.set()
    await one.committer.drain()


async def test_committer_lost_keys_of_a_tenant_are_asked_for_apart_from_others_after_the_first_time() -> None:
    store = Unreadable()
    async with bench(store=store) as one:
        await together(one, *((f"a{tenant}", tenant, "r") for tenant in range(1, 8)))
        assert one.code("a3") == "unavailable"
        store.begins.clear()
        await together(one, *((f"b{tenant}", tenant, "s") for tenant in range(1, 8)))
        assert sorted(store.begins) == [[1, 2, 4, 5, 6, 7], [3], [8]]
        assert one.code("b3") == "unavailable"
        for tenant in (1, 2, 4, 5, 6, 7):
            assert one.statuses(f"a{tenant}") == one.statuses(f"b{tenant}") == ["applied"]


async def test_committer_lost_keys_are_asked_for_once_for_all_messages_of_their_tenant() -> None:
    store = Unreadable()
    async with bench(store=store) as one:
        keys = [f"k{number}" for number in range(16)]
        await together(one, *((key, 3, key) for key in keys))
        assert store.begins == [[8], [3]]
        assert [one.code(key) for key in keys] == ["unavailable"] * 16


@pytest.mark.parametrize("error", [StoreUnreadableError(BROKEN), StoreError("wrong schema: 'secret'")])
async def test_committer_what_the_store_cannot_read_comes_again_and_fails_no_other(error: StoreError) -> None:
    async with bench(store=Unreadable(error)) as one:
        with capture_logs() as logs:
            await together(one, ("k1", 1, "a"), ("k2", 1, "broken"), ("k3", 1, "b"), ("k4", 2, "c"))
        assert one.statuses("k1") == one.statuses("k3") == one.statuses("k4") == ["applied"]
        (refused,) = [outcome for _, outcome in one.replies if isinstance(outcome, SyncError)]
        assert refused.code == "unavailable"
        assert refused.details.keys() == {"retry_after_ms"}
        assert str(error) not in refused.message
        (line,) = [line for line in logs if line["event"] == "store_failed"]
        assert (line["tenant_id"], line["device_id"]) == (1, "d-k2")
        assert line["reason"] == type(error).__name__
        assert line["detail"] == (BROKEN if isinstance(error, StoreUnreadableError) else None)
