"""What other processes did: told by the bus, or asked of the store.

The bus is fast, but may lose messages. So the heads of the feeds are also polled: rarely while the bus works,
often while it is away. The tenant cache polls the generation of policies by itself.
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

#: The pause between two polls of the feeds' heads. While the bus works, polls find the commits of a process
#: that was killed before it could tell of them.
POLL_WITHOUT_BUS_S: Final = 0.5
POLL_WITH_BUS_S: Final = 5.0


class Sockets(Protocol):
    """The connections of devices to this process."""

    def opened_elsewhere(self, tenant_id: int, device_id: str, session_id: str, at_us: int) -> None:
        """A device uses a connection to another process, opened at ``at_us``."""


class UploadLockOwners(Protocol):
    """The upload locks of this process's requests."""

    def release_requested(self, ref: UploadRef, lock_owner: str) -> None:
        """Another process waits for an upload whose lock ``lock_owner`` has."""


class ClusterListener:
    """``engine.cluster.bus.BusListener``: passes on what is told, and polls the store."""

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
        """Have the generation read again."""
        self._tenants.refresh_soon()

    def feed_advanced(self, tenant_id: int, seq: int) -> None:
        """Catch a tenant's subscribers up."""
        self._feed.note_remote_commit(tenant_id, seq)

    def device_connected(self, tenant_id: int, device_id: str, session_id: str, at_us: int) -> None:
        """Dismiss an older connection of the device."""
        self._sockets.opened_elsewhere(tenant_id, device_id, session_id, at_us)

    def upload_requested(self, tenant_id: int, upload_id: str, lock_owner: str) -> None:
        """Release an upload's lock, if it is of this process."""
        self._uploads.release_requested(UploadRef(tenant_id, upload_id), lock_owner)

    def resync(self) -> None:
        """Look up everything of which a message may have been missed."""
        self._tenants.refresh_soon()
        self._due.set()

    async def run(self) -> None:
        """Listen and poll until cancelled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._bus.run, self)
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_WITH_BUS_S if self._bus.state.up else POLL_WITHOUT_BUS_S):
                        await self._due.wait()
                self._due.clear()
                with suppress(StoreError):  # others log it; the next poll follows soon
                    await self._feed.poll_heads()
