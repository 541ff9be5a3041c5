"""Reads of what is missing, several tenants at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from engine.feed.gap_reader import GapReader
from engine.feed.ports import Page
from engine.runtime.ports import StoreUnavailableError
from tests.harness.memory_store import MemoryStore


class Asked(MemoryStore):
    """Notes what it was asked, and fails as often as told. Tenant 3 was removed."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[int, int]] = []
        self.failures = 0
        self.has_asked = asyncio.Event()

    async def pages_after(self, afters: Mapping[int, int], *_: int) -> dict[int, Page]:
        """Read, or fail."""
        self.asked.append(dict(afters))
        self.has_asked.set()
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise StoreUnavailableError("away")
        return {tenant: Page([], after + 1, more=False) for tenant, after in afters.items() if tenant != 3}


@asynccontextmanager
async def running(store: Asked) -> AsyncIterator[GapReader]:
    """Run a reader."""
    reader = GapReader(store, 1 << 20)
    async with asyncio.timeout(10):
        task = asyncio.create_task(reader.run())
        yield reader
        task.cancel()
        await asyncio.wait({task})


async def test_gap_reader_many_tenants_share_a_read_and_two_requests_of_one_are_both_answered() -> None:
    store = Asked()
    async with running(store) as reader:
        pages = await asyncio.gather(
            reader.page_after(1, 4), reader.page_after(2, 7), reader.page_after(1, 9), reader.page_after(3, 2)
        )
    assert [page.high_seq for page in pages] == [5, 8, 5, 2]
    assert store.asked == [{1: 4, 2: 7, 3: 2}]


async def test_gap_reader_requests_during_a_read_share_the_next() -> None:
    store = Asked()
    async with running(store) as reader:
        first = asyncio.create_task(reader.page_after(1, 4))
        await store.has_asked.wait()
        pages = await asyncio.gather(first, reader.page_after(1, 9), reader.page_after(2, 7))
    assert [page.high_seq for page in pages] == [5, 10, 8]
    assert store.asked == [{1: 4}, {1: 9, 2: 7}]


async def test_gap_reader_failed_read_fails_its_requests_and_no_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.runtime.batching.RETRY_FOR_S", 0.0)
    store = Asked()
    store.failures = 1
    async with running(store) as reader:
        failed = await asyncio.gather(
            reader.page_after(1, 4), reader.page_after(2, 7), return_exceptions=True
        )
        assert [type(one) for one in failed] == [StoreUnavailableError] * 2
        assert (await reader.page_after(1, 4)).high_seq == 5
