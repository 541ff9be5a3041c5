"""The listener: what the bus tells goes to the right part, and the store is polled besides."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from engine.cache.tenants import TenantCache
from engine.cluster import listener as listener_module
from engine.cluster.bus import Bus, BusListener, BusState
from engine.cluster.listener import ClusterListener
from engine.feed.feed import Feed
from engine.model.uploads import UploadRef
from engine.runtime.ports import StoreUnavailableError


class Parts:
    """All parts that a listener knows. Each notes what it is told in ``told``."""

    def __init__(self) -> None:
        self.state = BusState(up=True)
        self.told: list[tuple[Any, ...]] = []
        self.has_polled = asyncio.Event()
        self.failures = 0

    async def run(self, listener: BusListener) -> None:
        """Stand for the bus, which tells nothing by itself."""
        assert isinstance(listener, ClusterListener)

    def refresh_soon(self) -> None:
        """Stand for the tenant cache."""
        self.told.append(("refresh",))

    def note_remote_commit(self, tenant_id: int, seq: int) -> None:
        """Stand for the feed."""
        self.told.append(("remote commit", tenant_id, seq))

    async def poll_heads(self) -> None:
        """Stand for the feed, and fail as often as told."""
        self.told.append(("poll",))
        self.has_polled.set()
        if self.failures:
            self.failures -= 1
            raise StoreUnavailableError("away")

    def opened_elsewhere(self, *device: Any) -> None:
        """Stand for the connections."""
        self.told.append(("connected", *device))

    def release_requested(self, ref: UploadRef, lock_owner: str) -> None:
        """Stand for the upload locks."""
        self.told.append(("release", ref, lock_owner))

    async def polled(self) -> None:
        """Wait for the next poll."""
        async with asyncio.timeout(10):
            self.has_polled.clear()
            await self.has_polled.wait()


def listener_of(parts: Parts) -> ClusterListener:
    """Make a listener of these parts."""
    return ClusterListener(cast(Bus, parts), cast(Feed, parts), cast(TenantCache, parts), parts, parts)


async def test_listener_news_of_the_bus_goes_to_its_part() -> None:
    parts = Parts()
    listener = listener_of(parts)
    listener.generation_moved()
    listener.feed_advanced(7, 5)
    listener.device_connected(7, "phone", "s1", 99)
    listener.upload_requested(7, "u1", "owner")
    assert parts.told == [
        ("refresh",),
        ("remote commit", 7, 5),
        ("connected", 7, "phone", "s1", 99),
        ("release", UploadRef(7, "u1"), "owner"),
    ]


async def test_listener_resync_reads_the_generation_and_polls_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener_module, "POLL_WITH_BUS_S", 3600.0)
    parts = Parts()
    listener = listener_of(parts)
    task = asyncio.create_task(listener.run())
    listener.resync()
    await parts.polled()
    task.cancel()
    await asyncio.wait({task})
    assert parts.told == [("refresh",), ("poll",)]


@pytest.mark.parametrize(
    ("up", "name", "other"),
    [(True, "POLL_WITH_BUS_S", "POLL_WITHOUT_BUS_S"), (False, "POLL_WITHOUT_BUS_S", "POLL_WITH_BUS_S")],
)
async def test_listener_polls_by_the_state_of_the_bus_also_after_a_failed_poll(
    monkeypatch: pytest.MonkeyPatch, up: bool, name: str, other: str
) -> None:
    monkeypatch.setattr(listener_module, name, 0.001)
    monkeypatch.setattr(listener_module, other, 3600.0)
    parts = Parts()
    parts.state.up = up
    parts.failures = 1
    task = asyncio.create_task(listener_of(parts).run())
    await parts.polled()
    await parts.polled()
    assert not task.done()
    task.cancel()
    await asyncio.wait({task})
