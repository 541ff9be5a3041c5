"""Devices in memory: when they are read, saved and evicted, also if the store fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.device_health import Counts, Device, DeviceKey, Facts, Health, health_score
from engine.cache.device_limits import DeviceLimits
from engine.cache.devices import DeviceCache
from engine.cache.ports import HealthUnknownError, Revoked
from engine.runtime.metrics import Histogram
from engine.runtime.ports import StoreError, StorePoisonError, StoreRetryError, StoreUnavailableError
from engine.runtime.rate_limit import TokenBucket
from engine.wire.errors import SyncError

HOUR_US = 3_600_000_000
TTL_S = 300.0


class Clock:
    """Time that moves when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def now_us(self) -> int:
        """Give the same in microseconds."""
        return int(self.now_s * 1_000_000)

    def monotonic_s(self) -> float:
        """Give the seconds."""
        return self.now_s


class Stored:
    """``engine.cache.ports.DeviceStore`` in a dict; ``outcomes`` says how the next calls of ``add`` end."""

    def __init__(self) -> None:
        self.rows: dict[DeviceKey, Counts] = {}
        self.introduced: set[DeviceKey] = set()
        self.reads: list[list[DeviceKey]] = []
        self.outcomes: list[str] = []
        self.away = False
        self.poison: DeviceKey | None = None
        self.receipts: dict[str, bool | None] = {}
        self.gate: asyncio.Event | None = None
        self.introductions = 0
        self.locked = False
        self.introducing: asyncio.Event | None = None
        self.asked = asyncio.Event()
        self.answered = asyncio.Event()

    async def health(self, keys: list[DeviceKey]) -> list[Health]:
        """Read."""
        self.reads.append(keys)
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise StoreUnavailableError("away")
        self.answered.set()
        return [self._health(key) for key in keys if key in self.rows]

    async def latest(self, limit: int) -> list[Health]:
        """Read the first ones: the test puts them in order."""
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise StoreUnavailableError("away")
        return [self._health(key) for key in list(self.rows)[:limit]]

    def _health(self, key: DeviceKey) -> Health:
        return Health(key, self.rows[key], 7, "4g", "1.0", "14")

    async def introduce(self, keys: list[DeviceKey], most: int) -> set[DeviceKey]:
        """Count, or fail as told."""
        assert keys == sorted(set(keys))
        self.introductions += 1
        if self.introducing is not None:
            await self.introducing.wait()
        if self.away:
            raise StoreUnavailableError("away")
        if self.locked:
            raise StoreRetryError("an upload of the tenant has the lock")
        for key in keys:
            if len(self.introduced | {key}) <= most:
                self.introduced.add(key)
        return set(keys) - self.introduced

    async def add(self, changes: list[Health]) -> None:
        """Add, or fail as told."""
        keys = [one.key for one in changes]
        assert keys == sorted(set(keys))
        assert keys
        outcome = self.outcomes.pop(0) if self.outcomes else "written"
        if self.poison in keys:
            raise StorePoisonError("refused")
        if outcome == "retry" or self.away:
            raise StoreRetryError("not now")
        if outcome in ("written", "unknown and written"):
            for one in changes:
                self.rows[one.key] = self.rows.get(one.key, Counts()).plus(one.counts)
        if outcome.startswith("unknown"):
            receipt = str(len(self.receipts))
            self.receipts[receipt] = outcome == "unknown and written"
            raise HealthUnknownError(receipt)

    async def stored(self, receipt: str) -> bool | None:
        """Look a receipt up."""
        if self.away:
            raise StoreUnavailableError("away")
        return self.receipts[receipt]

    async def revoked(self) -> Revoked:
        """Nobody."""
        return Revoked({}, set())


class Process:
    """One process's devices, on a store that it may share."""

    def __init__(
        self,
        store: Stored,
        clock: Clock,
        remembered: int = 100,
        per_minute: int = 60,
        of_tenant: int = 10_000,
    ) -> None:
        self.connected: set[DeviceKey] = set()
        self.clock = clock
        self.devices = DeviceCache(
            store,
            clock,
            self.connected.__contains__,
            DeviceLimits(remembered, TTL_S, 5, of_tenant),
            per_minute,
        )

    def seen(self, name: str, tenant_id: int = 1) -> Device:
        """Give a device's entry."""
        return self.devices.get(tenant_id, name, self.clock.now_s)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the service meanwhile."""
        task = asyncio.create_task(self.devices.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture
def store() -> Stored:
    return Stored()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def process(store: Stored, clock: Clock) -> Process:
    return Process(store, clock)


def device() -> Device:
    """Make a device that has not synced yet."""
    return Device(key=DeviceKey(1, "phone"), bucket=TokenBucket(1.0, 0.0), changed=[])


# -- the score --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "failed", "conflicts", "silent_hours", "score"),
    [
        (0, 0, 0, 0.0, 100),
        (0, 0, 0, 1000.0, 100),
        (10, 0, 0, 0.0, 100),
        (10, 5, 0, 0.0, 70),
        (10, 10, 0, 0.0, 40),
        (10, 0, 0, 12.0, 90),
        (10, 0, 0, 24.0, 80),
        (10, 0, 0, 1000.0, 80),
        (10, 0, 5, 0.0, 90),
        (10, 0, 10, 0.0, 80),
        (10, 0, 500, 0.0, 80),
        (10, 10, 10, 24.0, 0),
        (4, 1, 1, 6.0, 75),
    ],
)
def test_health_score_counts_success_silence_and_conflicts(
    total: int, failed: int, conflicts: int, silent_hours: float, score: int
) -> None:
    assert health_score(total, failed, conflicts, silent_hours) == score


@given(
    total=st.integers(0, 10**9),
    share=st.floats(0, 1),
    conflicts=st.integers(0, 10**9),
    silent_hours=st.floats(0, 1e6),
)
def test_health_score_is_between_0_and_100(
    total: int, share: float, conflicts: int, silent_hours: float
) -> None:
    assert 0 <= health_score(total, int(total * share), conflicts, silent_hours) <= 100


def test_health_score_silent_device_decays() -> None:
    one = device()
    assert one.health_score(0) == 100
    one.synced(HOUR_US, 1000, 0)
    scores = [one.health_score(HOUR_US + hours * HOUR_US) for hours in range(0, 30, 6)]
    assert scores == [100, 95, 90, 85, 80]
    assert one.health_score(0) == 100, "a clock that was set back"


def test_device_failed_sync_is_not_a_recent_sync() -> None:
    one = device()
    one.failed(5_000)
    assert (one.counts, one.last_sync_at_us) == (Counts(1, 1, 5_000, 0), None)
    assert one.health_score(0) == 20
    one.synced(HOUR_US, 15_000, 1)
    assert (one.counts, one.last_sync_at_us) == (Counts(2, 1, 20_000, 1), HOUR_US)


def test_device_introduction_without_a_value_keeps_the_known_one() -> None:
    one = device()
    one.introduce(network_type="4g", app_version="1.0", os_version="14")
    one.introduce(network_type=None, app_version="1.1", os_version=None)
    assert (one.network_type, one.app_version, one.os_version) == ("4g", "1.1", "14")
    assert one.seen
    one.take_unsaved()
    one.introduce(network_type="4g", app_version="1.1", os_version=None)
    assert not one.seen, "nothing new is nothing to store"


# -- entries and their bound ------------------------------------------------------------------


def test_device_cache_one_entry_for_each_tenant_and_device(process: Process) -> None:
    assert process.seen("a") is process.seen("a")
    assert process.seen("a") is not process.seen("a", tenant_id=2)
    assert len(process.devices) == 2


async def test_device_cache_evicts_the_least_recently_seen_first(store: Stored, clock: Clock) -> None:
    process = Process(store, clock, remembered=3)
    first = {name: process.seen(name) for name in "abc"}
    await process.devices.flush()
    process.seen("a")
    process.seen("d")
    assert len(process.devices) == 3
    assert process.seen("a") is first["a"]
    assert process.seen("c") is first["c"]
    assert process.seen("b") is not first["b"]


async def test_device_cache_never_evicts_unsaved_or_connected_devices(store: Stored, clock: Clock) -> None:
    process = Process(store, clock, remembered=2)
    connected = process.seen("connected")
    process.connected.add(connected.key)
    await process.devices.flush()
    unstored = process.seen("unstored")
    unstored.synced(1, 1, 1)
    for number in range(20):
        process.seen(f"d{number}")
    assert process.seen("connected") is connected
    assert process.seen("unstored") is unstored
    assert len(process.devices) == 22
    await process.devices.flush()
    for number in range(20, 40):
        process.seen(f"d{number}")
        await process.devices.flush()
    assert len(process.devices) == 2
    assert process.seen("connected") is connected


async def test_device_cache_evicts_devices_gone_for_the_time_to_live(process: Process, clock: Clock) -> None:
    gone, unstored, connected = [process.seen(name) for name in ("gone", "unstored", "connected")]
    process.connected.add(connected.key)
    await process.devices.flush()
    clock.now_s += TTL_S + 1
    unstored.failed(1)
    await process.devices.sweep()
    assert len(process.devices) == 2
    assert process.seen("unstored") is unstored
    assert process.seen("connected") is connected
    assert process.seen("gone") is not gone


def test_rate_limit_new_device_may_send_a_minutes_worth_at_once(process: Process) -> None:
    bucket = process.seen("a").bucket
    now_s = process.clock.now_s
    assert [bucket.take(60, now_s) for _ in range(60)] == [0] * 60
    assert bucket.take(60, now_s) == 1000
    assert bucket.take(60, now_s + 0.5) == 500
    assert bucket.take(60, now_s + 1.0) == 0
    assert bucket.take(60, 1_000_000.0) == 0
    assert bucket.tokens == 59.0, "a full bucket holds one minute's worth"


@given(
    per_minute=st.integers(1, 6000),
    steps_s=st.lists(st.floats(0, 100), min_size=1, max_size=200),
)
def test_rate_limit_holds_and_waiting_as_told_helps(per_minute: int, steps_s: list[float]) -> None:
    bucket = TokenBucket(float(per_minute), 0.0)
    now_s, passed = 0.0, 0
    for step_s in steps_s:
        now_s += step_s
        wait_ms = bucket.take(per_minute, now_s)
        assert wait_ms >= 0
        passed += wait_ms == 0
        if wait_ms:
            assert bucket.take(per_minute, now_s + wait_ms / 1000 + 1e-6) == 0
            now_s += wait_ms / 1000 + 1e-6
            passed += 1
    assert passed <= per_minute * (1 + now_s / 60) + 1


# -- reading ----------------------------------------------------------------------------------


async def test_device_cache_simultaneous_handshakes_share_one_read(process: Process, store: Stored) -> None:
    store.rows[DeviceKey(1, "d3")] = Counts(5, 1, 10, 2)
    async with process.running():
        await asyncio.gather(*[process.devices.load(1, f"d{number}") for number in range(50)])
        assert [len(keys) for keys in store.reads] == [50]
        await process.devices.load(1, "d3")
    assert len(store.reads) == 1
    assert process.seen("d3").counts == Counts(5, 1, 10, 2)
    assert process.seen("d3").app_version == "1.0"
    counters = process.devices.counters
    process.devices.count_lookup(process.seen("d3"))
    process.devices.count_lookup(process.seen("new"))
    assert (counters.hits, counters.misses, counters.reads) == (1, 1, 50)


async def test_device_cache_handshakes_during_a_read_share_the_next(process: Process, store: Stored) -> None:
    store.gate = asyncio.Event()
    async with process.running():
        first = asyncio.create_task(process.devices.load(1, "first"))
        await store.asked.wait()
        later = [asyncio.create_task(process.devices.load(1, f"d{number}")) for number in range(5)]
        await asyncio.sleep(0)
        store.gate.set()
        await asyncio.gather(first, *later)
    assert [len(keys) for keys in store.reads] == [1, 5]


async def test_device_cache_store_unavailable_admits_devices_and_reads_them_later(
    process: Process, store: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.cache.devices._RETRY_S", 0.001)
    store.rows[DeviceKey(1, "phone")] = Counts(5, 0, 0, 0)
    store.away = True
    async with process.running():
        await process.devices.load(1, "phone")
        phone = process.seen("phone")
        assert phone.read_at_s is None
        phone.synced(9, 1, 0)
        store.away = False
        store.answered.clear()
        await store.answered.wait()
    assert phone.counts == Counts(6, 0, 1, 0)
    assert phone.last_sync_at_us == 9


async def test_device_cache_stale_devices_are_reread_together(
    process: Process, store: Stored, clock: Clock
) -> None:
    names = [f"d{number}" for number in range(5)]
    store.rows = {DeviceKey(1, name): Counts(1, 0, 0, 0) for name in names}
    for name in names:
        process.connected.add(process.seen(name).key)
    await process.devices.sweep()
    await process.devices.sweep()
    assert [len(keys) for keys in store.reads] == [5]
    await process.devices.flush()
    store.rows[DeviceKey(1, "d0")] = Counts(9, 0, 0, 0)
    clock.now_s += TTL_S + 1
    await process.devices.sweep()
    assert [len(keys) for keys in store.reads] == [5, 5]
    assert process.seen("d0").counts == Counts(9, 0, 0, 0)


async def test_device_cache_read_during_a_save_does_not_overwrite_counts(
    process: Process, store: Stored
) -> None:
    phone = process.seen("phone")
    process.connected.add(phone.key)
    phone.synced(1, 1, 0)
    store.gate = asyncio.Event()
    reading = asyncio.create_task(process.devices.sweep())
    await store.asked.wait()
    await process.devices.flush()
    store.rows[phone.key] = Counts()  # what the read saw, had it been a moment earlier
    store.gate.set()
    await reading
    assert phone.counts == Counts(1, 0, 1, 0)
    assert phone.read_at_s is None, "it is asked for again"


async def test_device_cache_preload_reads_the_latest_devices(process: Process, store: Stored) -> None:
    store.rows = {DeviceKey(1, f"d{number}"): Counts(number + 1, 0, 0, 0) for number in range(3)}
    await process.devices.preload()
    assert len(process.devices) == 3
    await process.devices.load(1, "d2")
    assert process.seen("d2").counts.syncs == 3
    assert store.reads == []


async def test_device_cache_preload_store_unavailable_does_not_fail_the_start(
    process: Process, store: Stored
) -> None:
    store.away = True
    await process.devices.preload()
    assert len(process.devices) == 0


async def test_device_cache_preload_again_adds_others_while_there_is_room(
    clock: Clock, store: Stored
) -> None:
    process = Process(store, clock, remembered=4)
    phone, tablet = process.seen("phone"), process.seen("tablet", tenant_id=2)
    phone.synced(1, 1, 0)
    latest = [tablet.key, *(DeviceKey(3 + number, "d") for number in range(3))]
    store.rows = {key: Counts(9, 0, 0, 0) for key in latest}
    assert await process.devices.preload(10) == {2, 3, 4, 5}
    assert len(process.devices) == 3, "room for two: one of them is in memory"
    assert process.seen("phone").counts == Counts(1, 0, 1, 0)
    assert process.seen("tablet", tenant_id=2) is tablet
    assert process.seen("d", tenant_id=3).counts.syncs == 9


async def test_device_cache_preload_during_a_save_leaves_new_devices_unread(
    process: Process, store: Stored
) -> None:
    """A device that was saved and evicted during the read may be read as before its save."""
    process.seen("other").synced(1, 1, 0)
    store.rows = {DeviceKey(1, "phone"): Counts(9, 0, 0, 0)}
    store.gate = asyncio.Event()
    reading = asyncio.create_task(process.devices.preload())
    await store.asked.wait()
    await process.devices.flush()
    store.gate.set()
    await reading
    assert process.seen("phone").read_at_s is None
    await process.devices.sweep()
    assert process.seen("phone").counts.syncs == 9


# -- the bound of a tenant --------------------------------------------------------------------


async def test_device_cache_new_device_past_the_bound_is_refused(store: Stored, clock: Clock) -> None:
    process = Process(store, clock, of_tenant=2)
    store.rows = {DeviceKey(1, "known"): Counts(9, 0, 0, 0)}
    async with process.running():
        for name in ("first", "second", "known"):
            await process.devices.load(1, name)
        for _ in range(2):
            with pytest.raises(
                SyncError, match=r"tenant_limits\.device_rows.* no device is ever removed"
            ) as refused:
                await process.devices.load(1, "third")
            assert refused.value.code == "insufficient_storage"
        await process.devices.load(1, "first")
        assert process.devices.counters.refused == 2
        await process.devices.flush()
        assert set(store.rows) == {DeviceKey(1, name) for name in ("first", "second", "known")}
        store.introduced.remove(DeviceKey(1, "second"))
        clock.now_s += 10
        await process.devices.load(1, "third")
        await process.devices.flush()
        assert DeviceKey(1, "third") in store.rows, "that it was seen is stored"


async def test_device_cache_refused_device_asks_the_store_no_more_for_ten_seconds(
    store: Stored, clock: Clock
) -> None:
    process = Process(store, clock, of_tenant=0)
    async with process.running():
        for _ in range(3):
            with pytest.raises(SyncError):
                await process.devices.load(1, "new")
            await process.devices.flush()
        assert (len(store.reads), store.introductions) == (1, 1)
        clock.now_s += 10
        with pytest.raises(SyncError):
            await process.devices.load(1, "new")
    assert (len(store.reads), store.introductions) == (2, 2)


async def test_device_cache_known_devices_do_not_wait_for_new_ones(
    process: Process, store: Stored, clock: Clock
) -> None:
    store.rows = {DeviceKey(2, "known"): Counts(9, 0, 0, 0)}
    store.introducing = asyncio.Event()
    async with process.running():
        new = asyncio.create_task(process.devices.load(1, "new"))
        async with asyncio.timeout(10):
            for name in ("known", "other"):
                store.rows[DeviceKey(2, name)] = Counts(9, 0, 0, 0)
                await process.devices.load(2, name)
                assert process.seen(name, tenant_id=2).counts.syncs == 9
        assert not new.done()
        store.introducing.set()
        await new
        assert process.seen("new").read_at_s == clock.now_s


async def test_device_cache_duration_of_a_read_ends_before_the_row_of_a_new_device(
    process: Process, store: Stored, clock: Clock
) -> None:
    store.rows = {DeviceKey(2, "known"): Counts(9, 0, 0, 0)}
    store.introducing = asyncio.Event()
    async with process.running():
        new = asyncio.create_task(process.devices.load(1, "new"))
        known = asyncio.create_task(process.devices.load(2, "known"))
        await known  # they wake in the order in which they came
        clock.now_s += 5.0
        store.introducing.set()
        await new
    durations = {metric.name: metric for metric in process.devices.metrics() if isinstance(metric, Histogram)}
    assert durations["tidemark_device_read_duration_seconds"].sum == 0.0
    assert durations["tidemark_device_row_duration_seconds"].sum == 5.0


async def test_device_cache_new_devices_that_get_no_row_fail_nobody(
    process: Process, store: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.cache.new_devices._RETRY_S", 0.01)
    store.rows = {DeviceKey(2, "known"): Counts(9, 0, 0, 0)}
    store.locked = True
    async with process.running(), asyncio.timeout(10):
        await asyncio.gather(process.devices.load(1, "new"), process.devices.load(2, "known"))
        assert process.seen("known", tenant_id=2).counts.syncs == 9
        assert process.seen("new").read_at_s is None
        store.locked = False
        while process.seen("new").read_at_s is None:
            await process.devices.load(1, "new")
    assert DeviceKey(1, "new") in store.introduced


async def test_device_cache_device_past_the_bound_in_an_outage_gets_no_row(
    store: Stored, clock: Clock
) -> None:
    process = Process(store, clock, of_tenant=1)
    store.away = True
    async with process.running():
        for name in ("first", "second"):
            await process.devices.load(1, name)
            process.seen(name).synced(1, 1, 0)
        store.away = False
        await process.devices.flush()
        assert set(store.rows) == store.introduced
        assert len(store.rows) == 1
        await process.devices.sweep()
        (refused,) = {DeviceKey(1, "first"), DeviceKey(1, "second")} - store.introduced
        with pytest.raises(SyncError):
            await process.devices.load(*refused)


# -- writing behind ---------------------------------------------------------------------------


async def test_device_cache_refused_device_does_not_stop_the_others(process: Process, store: Stored) -> None:
    store.poison = DeviceKey(1, "d3")
    for number in range(7):
        process.seen(f"d{number}").synced(1, 1, 0)
    await process.devices.flush()
    assert set(store.rows) == {DeviceKey(1, f"d{number}") for number in range(7) if number != 3}
    assert process.devices.counters.flush_rows == 7
    await process.devices.flush()
    assert process.devices.counters.flush_rows == 7


async def test_device_cache_flush_in_pieces_keeps_what_failed(process: Process, store: Stored) -> None:
    for number in range(2500):
        process.seen(f"d{number}").failed(2)
    store.outcomes = ["written", "retry"]
    with pytest.raises(StoreRetryError):
        await process.devices.flush()
    assert len(store.rows) == 1000
    assert process.devices.counters.flush_failures == 1
    await process.devices.flush()
    assert len(store.rows) == 2500
    assert set(map(repr, store.rows.values())) == {repr(Counts(1, 1, 2, 0))}


async def test_device_cache_evicted_entry_in_use_is_saved_beside_its_successor(
    store: Stored, clock: Clock
) -> None:
    process = Process(store, clock, remembered=1)
    old = process.seen("phone")
    await process.devices.flush()
    process.seen("tablet")
    new = process.seen("phone")
    assert new is not old
    old.synced(1, 1, 0)
    new.synced(2, 1, 0)
    await process.devices.drain()
    assert store.rows[old.key] == Counts(2, 0, 2, 0)


async def test_device_cache_drain_retries_and_ends(
    process: Process, store: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.runtime.batching._LAST_PAUSE_S", 0.001)
    process.seen("phone").synced(1, 1, 0)
    store.outcomes = ["retry", "unknown and written"]
    await process.devices.drain()
    assert store.rows == {DeviceKey(1, "phone"): Counts(1, 0, 1, 0)}
    process.seen("phone").synced(1, 1, 0)
    store.away = True
    await process.devices.drain()


ENDS = ("written", "retry", "unknown and written", "unknown and lost")
STEPS = st.one_of(
    st.tuples(st.just("sync"), st.integers(0, 1), st.integers(0, 2)),
    st.tuples(st.just("fail"), st.integers(0, 1), st.integers(0, 2)),
    st.tuples(st.just("flush"), st.integers(0, 1), st.sampled_from(ENDS)),
    st.tuples(st.just("away"), st.integers(0, 1), st.booleans()),
    st.tuples(st.just("read"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("undecided"), st.integers(0, 1), st.booleans()),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_device_cache_counts_of_two_processes_add_up_under_any_failure(
    steps: list[tuple[str, int, object]],
) -> None:
    asyncio.run(_adds_up(steps))


async def _adds_up(steps: list[tuple[str, int, object]]) -> None:
    store, clock = Stored(), Clock()
    processes = [Process(store, clock), Process(store, clock)]
    counted: dict[DeviceKey, Counts] = {}
    hidden: dict[str, bool | None] = {}
    for what, which, detail in steps:
        process = processes[which]
        if what in ("sync", "fail"):
            one = process.seen(f"d{detail}")
            process.connected.add(one.key)
            if what == "sync":
                one.synced(1, 3, 2)
            else:
                one.failed(5)
            added = Counts(1, 0, 3, 2) if what == "sync" else Counts(1, 1, 5, 0)
            counted[one.key] = counted.get(one.key, Counts()).plus(added)
        elif what == "flush":
            store.outcomes = [str(detail)]
            with suppress(StoreError):
                await process.devices.flush()
            store.outcomes = []
        elif what == "away":
            store.away = bool(detail)
        elif what == "undecided" and detail:
            hidden |= {name: known for name, known in store.receipts.items() if known is not None}
            store.receipts = dict.fromkeys(store.receipts)
        elif what == "undecided":
            store.receipts |= hidden
        else:
            clock.now_s += TTL_S + 1
            with suppress(StoreError):
                await process.devices.sweep()
    store.away = False
    store.receipts |= hidden
    for process in processes:
        await process.devices.flush()
    assert {key: counts for key, counts in store.rows.items() if counts != Counts()} == counted
    clock.now_s += TTL_S + 1
    for process in processes:
        await process.devices.sweep()
        for key in process.connected:
            assert process.seen(key.device_id).counts == counted[key]


# -- facts of heartbeats ------------------------------------------------------------------------


def new_device() -> Device:
    return Device(key=DeviceKey(1, "phone"), bucket=TokenBucket(60.0, 0.0), changed=[])


def test_device_facts_are_stored_at_once_if_the_queue_changed_and_else_every_five_minutes() -> None:
    device = new_device()
    stored = []
    for minute, depth in enumerate([3, 3, 3, 4, 4, 4, 4, 4, 4, 4]):
        device.report(Facts(minute * 60_000_000, 1.0 - minute / 100, depth))
        if device.unsaved is not None and (facts := device.take_unsaved().facts) is not None:
            stored.append(facts.at_us // 60_000_000)
    assert stored == [0, 3, 8]


def test_device_facts_that_a_heartbeat_leaves_out_stay() -> None:
    device = new_device()
    device.report(Facts(1, 0.5, 3, 900.0))
    device.report(Facts(2, None, 4, None))
    assert device.take_unsaved().facts == Facts(2, 0.5, 4, 900.0)


def test_device_facts_go_with_the_next_change_once_and_again_if_that_failed() -> None:
    device = new_device()
    device.report(Facts(1, 0.5, 3, 900.0))
    taken = device.take_unsaved()
    device.synced(2, 1_000, 0)
    assert device.take_unsaved().facts is None
    device.restore(taken)
    assert device.take_unsaved().facts == taken.facts == Facts(1, 0.5, 3, 900.0)
