"""What other processes did, as far as it matters here: told by the bus, or asked of the store.

The bus makes it fast and may lose messages. So the feeds are looked up now and then as well, often while
the bus is away; policies are followed by their generation in any case.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final, Protocol

import anyio

from engine.cache.tenants import TenantCache
from engine.cluster.bus import Bus
from engine.feed.feed import Feed
from engine.model.uploads import UploadRef
from engine.runtime.ports import StoreError

#: Between two looks at how far the feeds have come: while the bus is away, and while it works, for what
#: a process that was killed had no time to tell.
AWAY_S: Final = 0.5
WORKING_S: Final = 5.0


class Sockets(Protocol):
    """Who holds the connections of devices."""

    def opened_elsewhere(self, tenant_id: int, device_id: str, session_id: str, at_us: int) -> None:
        """A device connected to another process."""


class UploadLockOwners(Protocol):
    """Who holds the uploads of this process's requests."""

    def release_requested(self, ref: UploadRef, lock_owner: str) -> None:
        """Somebody waits for an upload that ``holder`` has."""


class Neighbours:
    """``engine.cluster.bus.BusListener``: hands on what is told, and asks when nothing is."""

    def __init__(
        self, bus: Bus, feed: Feed, tenants: TenantCache, sockets: Sockets, uploads: UploadLockOwners
    ) -> None:
        self._bus = bus
        self._feed = feed
        self._tenants = tenants
        self._sockets = sockets
        self._uploads = uploads
        self._due = asyncio.Event()

    def generation_moved(self) -> None:
        """Follow the generation."""
        self._tenants.refresh_soon()

    def moved(self, tenant_id: int, seq: int) -> None:
        """Catch a tenant's subscribers up."""
        self._feed.note_remote_commit(tenant_id, seq)

    def opened(self, tenant_id: int, device_id: str, session_id: str, at_us: int) -> None:
        """Let an older connection of the device go."""
        self._sockets.opened_elsewhere(tenant_id, device_id, session_id, at_us)

    def wanted(self, tenant_id: int, upload_id: str, holder: str) -> None:
        """Let an upload go."""
        self._uploads.release_requested(UploadRef(tenant_id, upload_id), holder)

    def missed(self) -> None:
        """Look up everything that may have been missed."""
        self._tenants.refresh_soon()
        self._due.set()

    async def run(self) -> None:
        """Listen, and look now and then, until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._bus.run, self)
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(WORKING_S if self._bus.state.up else AWAY_S):
                        await self._due.wait()
                self._due.clear()
                with suppress(StoreError):  # said by others already; the next look is not far
                    await self._feed.poll_heads()
