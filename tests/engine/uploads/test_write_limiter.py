"""Chunks take limiter: in their order, never more than there are, fewer while syncs come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.uploads.write_limiter import ALONE, BESIDE_SYNCS, REST_S_PER_SYNC, SYNCS_PER_S, WriteLimiter


class Site:
    """Time and syncs that the test moves."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.syncs = 0
        self.limiter = WriteLimiter(lambda: self.syncs, self)

    def now_us(self) -> int:
        """Nobody asks."""
        raise AssertionError

    def monotonic_s(self) -> float:
        """Give the time."""
        return self.time_s

    def passed(self, seconds: float, syncs_per_s: float) -> None:
        """Let time pass with so many syncs."""
        self.time_s += seconds
        self.syncs += round(seconds * syncs_per_s)


async def served(site: Site, asked: int) -> tuple[list[int], list[asyncio.Task[None]], asyncio.Event]:
    """Have so many ask for a turn, and keep it until told to go; gives those who have theirs."""
    having: list[int] = []
    leave = asyncio.Event()

    async def one(number: int) -> None:
        async with site.limiter.slot():
            having.append(number)
            await leave.wait()

    tasks = [asyncio.create_task(one(number)) for number in range(asked)]
    for _ in range(3):
        await asyncio.sleep(0)
    return having, tasks, leave


@pytest.mark.parametrize(
    ("syncs_per_s", "most"), [(0, ALONE), (SYNCS_PER_S - 10, ALONE), (SYNCS_PER_S + 10, BESIDE_SYNCS)]
)
async def test_write_limiter_fewer_slots_beside_syncs(syncs_per_s: float, most: int) -> None:
    site = Site()
    site.passed(1.0, syncs_per_s)
    having, tasks, leave = await served(site, ALONE + 5)
    assert having == list(range(most))
    leave.set()
    await asyncio.gather(*tasks)
    assert having == list(range(ALONE + 5)), "who came first had it first"


async def test_write_limiter_slot_rests_by_the_rate_of_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []

    def call_later(delay_s: float, callback: Callable[[], None]) -> None:
        rests.append(delay_s)
        callback()

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", call_later)
    for syncs_per_s in (0, 200, 1200, 1_000_000):
        site = Site()
        site.passed(1.0, syncs_per_s)
        async with site.limiter.slot():
            pass
    assert rests == [200 * REST_S_PER_SYNC, 1200 * REST_S_PER_SYNC, 0.1]


async def test_write_limiter_all_slots_again_after_syncs() -> None:
    site = Site()
    site.passed(1.0, 1000)
    async with AsyncExitStack() as first:
        await first.enter_async_context(site.limiter.slot())
        having, tasks, leave = await served(site, ALONE)
        assert len(having) == BESIDE_SYNCS - 1
        site.passed(1.0, 0)
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(having) == ALONE
    leave.set()
    await asyncio.gather(*tasks)


@given(st.lists(st.integers(0, 30), max_size=20))
def test_write_limiter_cancelled_wait_gives_its_slot_on(cancelled: list[int]) -> None:
    async def run() -> None:
        site = Site()
        having, tasks, leave = await served(site, 31)
        for number in cancelled:
            tasks[number].cancel()
        leave.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert {*having} >= {*range(31)} - {*cancelled}
        assert site.limiter._taken == 0
        assert not site.limiter._queue

    asyncio.run(run())
