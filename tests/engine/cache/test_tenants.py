"""The cache of tenants: when the store is asked, and what is returned in the meantime."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from engine.cache.tenants import TTL_S, UNKNOWN_S, TenantCache
from engine.model.domains import DomainPolicy
from engine.model.tenants import Tenant, TenantPolicies
from engine.runtime.ports import StoreUnavailableError
from storage.stores.tenants import PostgresTenants
from tests.harness.admin import add_tenants
from tests.harness.services import Serving, execute

MANUAL = DomainPolicy("manual")
DEFAULTS = {"task": DomainPolicy("most_recent_wins"), "note": MANUAL}


class World:
    """A store of tenants, a clock and a watcher. Reads wait while ``gate`` is closed."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.tenants: dict[int, TenantPolicies] = {}
        self.number = 0
        self.away = self.refuses = False
        self.asked: Counter[str] = Counter()
        self.told: list[tuple[str, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.read = asyncio.Event()
        self.followed = asyncio.Event()
        self.cache = TenantCache(self, self, DEFAULTS, self, self.renewed)

    def add(self, tenant_id: int, name: str, **own: DomainPolicy) -> None:
        """Commit a tenant as it is from now on; it moves the generation."""
        self.tenants[tenant_id] = TenantPolicies(Tenant(tenant_id, name), own)
        self.number += 1

    def remove(self, tenant_id: int) -> None:
        """Remove a tenant; it moves the generation."""
        del self.tenants[tenant_id]
        self.number += 1

    async def _asked(self, what: str) -> None:
        self.asked[what] += 1
        if self.away:
            raise StoreUnavailableError("away")
        self.read.set()
        await self.gate.wait()

    # -- as the store

    async def find(self, name: str) -> TenantPolicies | None:
        """Give what stands when the question arrives, however late the answer does."""
        found = next((one for one in self.tenants.values() if one.tenant.name == name), None)
        await self._asked(name)
        return found

    async def reread(self, tenant_ids: list[int]) -> dict[int, TenantPolicies]:
        """Give those that are left."""
        found = {number: self.tenants[number] for number in tenant_ids if number in self.tenants}
        await self._asked("reread")
        return found

    async def newest(self, limit: int) -> list[int]:
        """Give the highest ids."""
        return sorted(self.tenants, reverse=True)[:limit]

    async def generation(self) -> tuple[int, str]:
        """Give the number, and let a test know that it was asked for."""
        if self.away:
            raise StoreUnavailableError("away")
        self.followed.set()
        return self.number, "epoch"

    # -- as the clock

    def now_us(self) -> int:
        """Nobody asks."""
        raise AssertionError

    def monotonic_s(self) -> float:
        """Stand still until a test moves it."""
        return self.now_s

    # -- as the watcher

    def policies_changed(self, tenant_id: int) -> None:
        """Note it."""
        self.told.append(("changed", tenant_id))

    def tenant_removed(self, tenant_id: int) -> None:
        """Note it."""
        self.told.append(("removed", tenant_id))

    async def renewed(self) -> None:
        """Note it, unless it is to fail."""
        if self.refuses:
            raise StoreUnavailableError("refused")
        self.told.append(("renewed", self.number))

    async def follow(self) -> None:
        """Wait until the generation was asked for twice: what the first time found is settled by then."""
        for _ in range(2):
            self.followed.clear()
            self.cache.refresh_soon()
            await self.followed.wait()


@asynccontextmanager
async def followed(world: World) -> AsyncIterator[None]:
    """Run the cache, which by itself looks hardly ever."""
    task = asyncio.create_task(world.cache.run())
    await world.follow()
    world.told.clear()
    yield
    task.cancel()
    await asyncio.wait({task})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A store with one tenant."""
    monkeypatch.setattr("engine.cache.tenants.POLL_S", 3600.0)
    world = World()
    world.add(1, "acme", task=DomainPolicy("server_wins"))
    return world


async def waiting(world: World, *names: str) -> list[asyncio.Task[Tenant | None]]:
    """Ask for names at once, the store being slow, until all wait."""
    world.gate.clear()
    tasks = [asyncio.create_task(world.cache.find(name)) for name in names]
    await world.read.wait()
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_tenant_cache_own_policies_override_the_defaults(world: World) -> None:
    assert world.cache.policies_of(1) == DEFAULTS
    assert await world.cache.find("acme") == Tenant(1, "acme")
    assert world.cache.policies_of(1) == {"task": DomainPolicy("server_wins"), "note": MANUAL}
    await world.cache.find("acme")
    assert world.asked == {"acme": 1}


async def test_tenant_cache_many_lookups_of_one_name_ask_the_store_once(world: World) -> None:
    tasks = await waiting(world, *["acme"] * 50, *["nobody"] * 50)
    world.gate.set()
    found = await asyncio.gather(*tasks)
    assert found == [Tenant(1, "acme")] * 50 + [None] * 50
    assert world.asked == {"acme": 1, "nobody": 1}


async def test_tenant_cache_lookup_that_waits_for_a_read_is_no_hit(world: World) -> None:
    tasks = await waiting(world, *["acme"] * 5)
    world.gate.set()
    await asyncio.gather(*tasks)
    assert (world.cache.hits, world.cache.misses) == (0, 5)
    await world.cache.find("acme")
    world.cache.policies_of(1)
    world.cache.policies_of(99)  # of no tenant in memory: the defaults
    assert (world.cache.hits, world.cache.misses) == (2, 6)


async def test_tenant_cache_lookups_of_different_names_run_side_by_side(world: World) -> None:
    world.add(2, "globex")
    (slow,) = await waiting(world, "nobody")
    world.gate.set()
    world.gate = asyncio.Event()
    stuck = asyncio.create_task(world.cache.find("globex"))
    await asyncio.sleep(0)
    world.gate, held = asyncio.Event(), world.gate
    world.gate.set()
    assert await world.cache.find("acme") == Tenant(1, "acme")
    assert not stuck.done()
    held.set()
    assert await stuck == Tenant(2, "globex")
    assert await slow is None


async def test_tenant_cache_cancelled_lookup_is_taken_over_by_another(world: World) -> None:
    first, *others = await waiting(world, *["acme"] * 3)
    first.cancel()
    await asyncio.wait({first})
    world.gate.set()
    assert await asyncio.gather(*others) == [Tenant(1, "acme")] * 2
    assert world.asked["acme"] == 2


async def test_tenant_cache_cancelled_wait_leaves_the_lookup_running(world: World) -> None:
    first, second = await waiting(world, *["acme"] * 2)
    second.cancel()
    await asyncio.wait({second})
    world.gate.set()
    assert await first == Tenant(1, "acme")


async def test_tenant_cache_store_unavailable_is_asked_once_for_all_waiting(world: World) -> None:
    world.away = True
    tasks = [asyncio.create_task(world.cache.find("acme")) for _ in range(5)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, StoreUnavailableError) for one in outcomes)
    world.away = False
    assert await world.cache.find("acme") == Tenant(1, "acme")


async def test_tenant_cache_unknown_name_is_asked_again_after_a_while(world: World) -> None:
    for _ in range(3):
        assert await world.cache.find("globex") is None
    assert world.asked == {"globex": 1}
    world.tenants[2] = TenantPolicies(Tenant(2, "globex"), {})  # by hand, without a move
    world.now_s += UNKNOWN_S
    assert await world.cache.find("globex") == Tenant(2, "globex")


async def test_tenant_cache_new_tenant_is_found_with_the_generation(world: World) -> None:
    async with followed(world):
        assert await world.cache.find("globex") is None
        world.add(2, "globex")
        await world.follow()
        assert await world.cache.find("globex") == Tenant(2, "globex")


async def test_tenant_cache_unknown_names_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.cache.tenants.UNKNOWN_NAMES", 10)
    for number in range(95):
        await world.cache.find(f"nobody{number}")
    assert len(world.cache._unknown) <= 10


Overtaken = Callable[[World], None]
OVERTAKEN: dict[str, tuple[str, Overtaken, DomainPolicy]] = {
    "a policy": ("acme", lambda world: world.add(1, "acme", task=MANUAL), MANUAL),
    "a tenant that comes": ("globex", lambda world: world.add(2, "globex"), DEFAULTS["task"]),
}


@pytest.mark.parametrize(("name", "change", "policy"), OVERTAKEN.values(), ids=OVERTAKEN)
async def test_tenant_cache_read_before_a_new_generation_is_repeated(
    world: World, name: str, change: Overtaken, policy: DomainPolicy
) -> None:
    """An answer of before the change arrives after the generation was followed: nobody would look again."""
    async with followed(world):
        (asking,) = await waiting(world, name)
        change(world)
        await world.follow()
        world.gate.set()
        tenant = await asking
        assert tenant is not None
        assert world.cache.policies_of(tenant.tenant_id)["task"] == policy
        assert world.asked[name] == 2


async def test_tenant_cache_new_generation_rereads_all_tenants_in_few_reads(world: World) -> None:
    for number in range(2, 1202):
        world.add(number, f"tenant{number}")
        await world.cache.find(f"tenant{number}")
    async with followed(world):
        world.asked.clear()
        world.add(700, "tenant700", note=DomainPolicy("client_wins"))
        world.remove(1100)
        await world.follow()
        assert world.asked == {"reread": 3}
        assert world.told == [("renewed", world.number), ("changed", 700), ("removed", 1100)]
        assert world.cache.policies_of(700)["note"] == DomainPolicy("client_wins")
        assert await world.cache.find("tenant1100") is None
        world.asked.clear()
        await world.follow()
        assert not world.asked


async def test_tenant_cache_tenant_added_again_under_its_name_is_another(world: World) -> None:
    await world.cache.find("acme")
    async with followed(world):
        world.remove(1)
        world.add(2, "acme")
        await world.follow()
        assert world.told[1:] == [("removed", 1)]
        assert await world.cache.find("acme") == Tenant(2, "acme")


async def test_tenant_cache_tenant_is_reread_after_its_time_to_live(world: World) -> None:
    await world.cache.find("acme")
    async with followed(world):
        world.tenants[1] = TenantPolicies(Tenant(1, "acme"), {})  # by hand, without a move
        world.now_s += TTL_S / 2
        await world.follow()
        assert world.told == []
        world.now_s += TTL_S
        await world.follow()
        assert world.told == [("changed", 1)]


async def test_tenant_cache_store_unavailable_keeps_the_known_policies(world: World) -> None:
    await world.cache.find("acme")
    async with followed(world):
        world.away = True
        world.number += 1
        world.cache.refresh_soon()
        assert await world.cache.find("acme") == Tenant(1, "acme")
        world.away = False
        world.add(1, "acme")
        await world.follow()
        assert world.cache.policies_of(1) == DEFAULTS


async def test_tenant_cache_on_generation_fails_tenants_are_followed_and_it_is_tried_again(
    world: World,
) -> None:
    await world.cache.find("acme")
    async with followed(world):
        world.refuses = True
        world.add(1, "acme")
        await world.follow()
        assert world.told == [("changed", 1)]
        assert await world.cache.find("nobody") is None
        world.asked.clear()
        await world.follow()
        assert await world.cache.find("nobody") is None
        assert not world.asked
        world.refuses = False
        await world.follow()
        assert world.told == [("changed", 1), ("renewed", world.number)]


async def test_tenant_cache_preload_reads_those_that_are_not_in_memory(world: World) -> None:
    world.add(2, "globex", task=DomainPolicy("client_wins"))
    await world.cache.find("acme")
    await world.cache.preload([1, 2, 999])
    assert world.asked == {"acme": 1, "reread": 1}
    assert await world.cache.find("globex") == Tenant(2, "globex")
    assert world.cache.policies_of(2)["task"] == DomainPolicy("client_wins")
    assert world.asked["globex"] == 0


async def test_tenant_cache_preload_fills_one_statement_with_the_newest_tenants(world: World) -> None:
    for number in range(2, 700):
        world.add(number, f"tenant-{number}")
    await world.cache.preload([3])
    assert world.asked == {"reread": 1}
    assert [number for number in range(1, 700) if world.cache.name_of(number)] == [3, *range(201, 700)]


async def test_tenant_cache_change_after_the_preload_is_seen_by_the_first_read_of_the_generation(
    world: World,
) -> None:
    await world.cache.preload([])
    world.add(1, "acme", task=MANUAL)
    async with followed(world):
        assert world.cache.policies_of(1)["task"] == MANUAL


async def test_tenant_cache_preload_keeps_a_later_read_of_a_lookup(world: World) -> None:
    held = world.gate = asyncio.Event()
    reading = asyncio.create_task(world.cache.preload([]))
    await world.read.wait()
    world.gate = asyncio.Event()
    world.gate.set()
    world.add(1, "acme", task=MANUAL)
    await world.cache.find("acme")
    held.set()
    await reading
    assert world.cache.policies_of(1)["task"] == MANUAL


async def test_tenant_cache_preload_of_before_a_change_is_not_believed(world: World) -> None:
    async with followed(world):
        world.gate.clear()
        reading = asyncio.create_task(world.cache.preload({1}))
        await world.read.wait()
        world.add(2, "globex")
        await world.follow()
        world.gate.set()
        await reading
        assert len(world.cache) == 0


async def test_tenant_store_returns_each_tenant_its_own_policies(dsn: str) -> None:
    add_tenants(dsn, "acme", "globex", "initech")
    execute(
        dsn,
        "INSERT INTO tenant_conflict_policy (tenant_id, domain, policy, fallback)"
        " SELECT tenant_id, 'task', 'field_merge', 'manual' FROM tenants WHERE name = 'acme'",
        "INSERT INTO tenant_conflict_policy (tenant_id, domain, policy)"
        " SELECT tenant_id, domain, 'server_wins' FROM tenants, unnest(ARRAY['task', 'note']) AS domain"
        " WHERE name = 'globex'",
    )
    database = Serving(dsn, 1)
    try:
        store = PostgresTenants(database)
        found = {name: await store.find(name) for name in ("acme", "globex", "initech", "nobody")}
        everybody = [one for one in found.values() if one is not None]
        assert found.pop("nobody") is None
        assert [one.own for one in everybody] == [
            {"task": DomainPolicy("field_merge", "manual")},
            {"task": DomainPolicy("server_wins"), "note": DomainPolicy("server_wins")},
            {},
        ]
        numbers = [one.tenant.tenant_id for one in everybody]
        assert await store.reread([*numbers, 999]) == dict(zip(numbers, everybody, strict=True))
        assert await store.reread([]) == {}
        assert await store.newest(2) == sorted(numbers, reverse=True)[:2]
    finally:
        await database.close()
