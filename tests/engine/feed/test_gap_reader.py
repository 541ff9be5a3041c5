"""Reads of what is missing, several tenants at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from engine.feed.gap_reader import GapReader, Start
from engine.feed.ports import Page
from engine.runtime.ports import StoreUnavailableError
from tests.harness.memory_store import MemoryStore


class Asked(MemoryStore):
    """Tells what it was asked, and fails as often as told."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[int, int]] = []
        self.failures = 0

    async def pages_after(self, afters: Mapping[int, int], *_: int) -> dict[int, Page]:
        """Read, or fail."""
        self.asked.append(dict(afters))
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise StoreUnavailableError("away")
        return {tenant: Page([], after + 1, more=False) for tenant, after in afters.items()}


def started_in(group: asyncio.TaskGroup) -> Start:
    """Start work that the group waits for."""

    def start(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        group.create_task(work())

    return start


async def test_gap_reader_many_tenants_share_a_read_and_two_requests_of_one_are_both_answered() -> None:
    store = Asked()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        gaps = GapReader(store, 1 << 20, started_in(group))
        pages = await asyncio.gather(gaps.pages_after(1, 4), gaps.pages_after(2, 7), gaps.pages_after(1, 9))
    assert [page.high_seq for page in pages] == [5, 8, 10]
    assert store.asked == [{1: 4, 2: 7}, {1: 9}]


async def test_gap_reader_failed_read_fails_its_requests_and_no_later_one() -> None:
    store = Asked()
    store.failures = 1
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        gaps = GapReader(store, 1 << 20, started_in(group))
        failed = await asyncio.gather(gaps.pages_after(1, 4), gaps.pages_after(2, 7), return_exceptions=True)
        assert [type(one) for one in failed] == [StoreUnavailableError] * 2
        assert (await gaps.pages_after(1, 4)).high_seq == 5
