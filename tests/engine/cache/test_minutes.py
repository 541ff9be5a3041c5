"""Minutes in memory against a store that fails: nothing is counted twice, nothing is lost but by a bound."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.cache import minutes as module
from engine.cache.minutes import Minutes
from engine.cache.ports import MinuteRow
from engine.model.minutes import MINUTE_US, Durations, Minute
from engine.runtime.ports import StoreError, StorePoisonError, StoreRetryError, StoreUnknownError

BEGIN_US = 1_000_000 * MINUTE_US


class Clock:
    """Time that moves when a test says so."""

    def __init__(self) -> None:
        self.us = BEGIN_US

    def now_us(self) -> int:
        """Give the microseconds."""
        return self.us

    def monotonic_s(self) -> float:
        """Give seconds, which do not matter here."""
        return 0.0


class Stored:
    """``engine.cache.ports.MinuteStore`` in a dict; ``outcomes`` says how the next calls end."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int, str], Minute] = {}
        self.sizes: list[int] = []
        self.outcomes: list[str] = []
        self.during: Callable[[], None] = lambda: None

    async def put(self, rows: list[MinuteRow]) -> None:
        """Store, or fail as told."""
        outcome = self.outcomes.pop(0) if self.outcomes else "written"
        if outcome in ("written", "unknown and written"):
            self.sizes.append(len(rows))
            for tenant_id, start_us, process, minute in rows:
                self.rows[tenant_id, start_us, process] = Minute().plus(minute)
        self.during()
        await asyncio.sleep(0)
        if outcome == "refused":
            raise StorePoisonError("a value")
        if outcome == "retry":
            raise StoreRetryError("not now")
        if outcome.startswith("unknown"):
            raise StoreUnknownError("no answer")

    def sums(self) -> dict[tuple[int, int], Minute]:
        """Sum over processes: by tenant and minute of the test."""
        sums: dict[tuple[int, int], Minute] = {}
        for (tenant_id, start_us, _), minute in self.rows.items():
            key = tenant_id, (start_us - BEGIN_US) // MINUTE_US
            sums[key] = sums.get(key, Minute()).plus(minute)
        return sums


def counted_minutes() -> Minutes:
    """Return minutes that stay in memory, for components under test that count in them."""
    return Minutes(Stored(), Clock(), lambda: "0" * 32)


class Process:
    """The minutes of one process, and a model of what it counted."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = Stored()
        ids = count(1)
        self.minutes = Minutes(self.store, self.clock, lambda: f"{next(ids):032x}")
        self.model: dict[tuple[int, int], Minute] = {}

    def sync(self, tenant_id: int = 1, duration_us: int = 5_000) -> None:
        """Count one sync, also in the model."""
        key = tenant_id, (self.clock.us - BEGIN_US) // MINUTE_US
        for minute in (self.minutes.of(tenant_id), self.model.setdefault(key, Minute())):
            minute.syncs += 1
            minute.durations.add(duration_us)

    def pass_minutes(self, minutes: int) -> None:
        """Move the clock, back if negative."""
        self.clock.us += minutes * MINUTE_US
        self.minutes.end_minute()

    async def flush(self) -> None:
        """Write, whether the store fails or not."""
        with suppress(StoreError):
            await self.minutes.flush()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.runtime.batching._LAST_PAUSE_S", 0)


outcomes = st.sampled_from(["written", "retry", "unknown", "unknown and written"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("sync"), st.integers(0, 3)),
        st.tuples(st.just("pass"), st.integers(-2, 2)),
        st.tuples(st.just("flush"), st.lists(outcomes, max_size=3)),
    ),
    max_size=40,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
async def test_minutes_of_any_course_are_stored_exactly_once_everything_is_written(
    course: list[tuple[str, int | list[str]]],
) -> None:
    process = Process()
    for step, value in course:
        if isinstance(value, list):
            process.store.outcomes = list(value)
            await process.flush()
        elif step == "sync":
            process.sync(value, 1_000 * value)
        else:
            process.pass_minutes(value)
    process.store.outcomes = ["retry", "unknown"]
    await process.minutes.drain()
    assert process.store.sums() == process.model


class Passing(Clock):
    """Time that goes on by itself, from shortly before the end of a minute."""

    def now_us(self) -> int:
        """Give the microseconds."""
        return self.us + MINUTE_US - 50_000 + time.monotonic_ns() // 1000 - self._began_us

    def __init__(self) -> None:
        super().__init__()
        self._began_us = time.monotonic_ns() // 1000


async def test_minutes_run_ends_a_minute_in_time_and_writes_before_and_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.001)
    store, both = Stored(), asyncio.Event()
    minutes = Minutes(store, Passing(), lambda: "1" * 32)

    def count() -> None:
        minutes.of(1).syncs += 1
        if len(store.rows) == 2:
            both.set()

    store.during = count
    count()
    running = asyncio.create_task(minutes.run())
    await asyncio.wait_for(both.wait(), 10)
    running.cancel()
    await asyncio.wait([running])
    assert list(store.rows) == [(1, BEGIN_US, "1" * 32), (1, BEGIN_US + MINUTE_US, "1" * 32)]


async def test_minutes_run_goes_on_while_the_store_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.001)
    process = Process()
    process.sync()
    written = asyncio.Event()
    process.store.outcomes = ["retry", "unknown", "retry"]
    process.store.during = lambda: written.set() if process.store.rows else None
    running = asyncio.create_task(process.minutes.run())
    await asyncio.wait_for(written.wait(), 10)
    running.cancel()
    await asyncio.wait([running])
    assert process.store.sums() == process.model
    assert process.minutes.counters.failures == 3


async def test_minutes_counted_during_a_write_are_written_by_the_next() -> None:
    process = Process()
    process.sync()
    process.store.during = process.sync
    await process.minutes.flush()
    process.store.during = lambda: None
    await process.minutes.flush()
    assert process.store.sums() == process.model


async def test_minutes_that_end_during_a_write_are_complete_after_the_next() -> None:
    process = Process()
    for tenant_id in range(120):
        process.sync(tenant_id)

    def sync_and_pass() -> None:
        process.store.during = lambda: None
        process.sync(7)
        process.pass_minutes(1)
        process.sync(7)

    process.store.during = sync_and_pass
    await process.minutes.flush()
    await process.minutes.flush()
    assert process.store.sums() == process.model


async def test_minutes_without_a_change_are_not_written_again() -> None:
    process = Process()
    process.sync(1)
    process.sync(2)
    await process.minutes.flush()
    process.sync(2)
    await process.minutes.flush()
    process.pass_minutes(1)
    await process.minutes.flush()
    assert process.store.sizes == [2, 1]


async def test_minutes_of_many_tenants_are_written_in_bounded_statements() -> None:
    process = Process()
    for tenant_id in range(120):
        process.sync(tenant_id)
    await process.minutes.flush()
    assert process.store.sizes == [25, 25, 25, 25, 20]
    assert process.minutes.counters.rows == 120


async def test_minutes_past_the_bound_drop_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 2)
    process = Process()
    for _ in range(4):
        process.sync()
        process.pass_minutes(1)
    await process.minutes.flush()
    assert sorted(minute for _, minute in process.store.sums()) == [2, 3]
    assert process.minutes.counters.dropped == 2


async def test_minutes_that_the_store_refuses_keep_no_other_waiting() -> None:
    process = Process()
    process.sync()
    process.pass_minutes(1)
    process.sync()
    process.store.outcomes = ["refused"]
    await process.minutes.flush()
    assert list(process.store.sums()) == [(1, 1)]
    assert process.minutes.counters.dropped == 1


async def test_minutes_refused_leave_the_rows_beside_them() -> None:
    class Picky(Stored):
        async def put(self, rows: list[MinuteRow]) -> None:
            if any(row.tenant_id == 2 for row in rows):
                raise StorePoisonError("a value")
            await super().put(rows)

    store = Picky()
    minutes = Minutes(store, Clock(), lambda: "0" * 32)
    for tenant_id in (1, 2, 3):
        minutes.of(tenant_id).syncs += 1
    await minutes.flush()
    assert sorted(store.sums()) == [(1, 0), (3, 0)]
    assert (minutes.counters.rows, minutes.counters.dropped) == (2, 1)


async def test_minutes_of_a_clock_that_goes_back_do_not_replace_those_before() -> None:
    process = Process()
    process.sync()
    process.pass_minutes(1)
    await process.minutes.flush()
    process.pass_minutes(-1)
    process.sync()
    await process.minutes.flush()
    assert process.store.sums()[1, 0].syncs == 2
    assert len(process.store.rows) == 2


def test_minutes_metrics_tell_what_waits() -> None:
    process = Process()
    process.sync()
    process.pass_minutes(1)
    waiting = {metric.name: metric for metric in process.minutes.metrics()}["tidemark_minute_rows_waiting"]
    assert getattr(waiting, "values") == 1  # noqa: B009  # a histogram has none
    assert process.minutes.of(1).durations == Durations()
