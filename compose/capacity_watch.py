"""Watches the free space of the disks, what tenants hold, and how full the fullest tenant is."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import structlog

from engine.model.rows import TenantUsage
from engine.plan.bounds.capacity import CapacityState
from engine.runtime.ports import StoreError
from engine.runtime.settings import Settings
from storage.postgres.disk import Disk
from storage.postgres.pool import Database
from storage.stores.usage import PostgresUsage

_INTERVAL_S: Final = 15.0
#: The disk of the files may be a network's, which hangs: the database's disk is watched all the same.
_FILES_S: Final = 1.0

_log = structlog.get_logger()


class CapacityWatch:
    """Reads them every 15 seconds; ``state`` is as of the last read."""

    def __init__(self, database: Database, settings: Settings) -> None:
        limits = settings.tenant_limits
        self.state = CapacityState(limits.usage(), TenantUsage(), most_devices=limits.device_rows)
        self._usage = PostgresUsage(database)
        self._files = None if settings.s3.bucket else Path(settings.data.dir)
        self._looking: asyncio.Future[tuple[int, int] | tuple[None, None]] | None = None
        self._disk = Disk(database, settings.postgres.min_free_bytes, settings.postgres.max_bytes)

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await anyio.sleep(_INTERVAL_S)
            await self.check()

    async def check(self) -> None:
        """Read once. A state that cannot be read stays as it was.

        The disk comes first, and without what tenants hold: that read may wait for the only connection for
        reports, while the disk fills.
        """
        try:
            await self._check_disk()
        except StoreError as error:
            _log.warning("capacity_unread", of="disk", reason=type(error).__name__)
        if self._files is not None:
            await self._check_files(self._files)
        state = self.state
        try:
            state.fullest, state.held, state.open_conflicts, state.devices = await self._usage.totals()
        except StoreError as error:
            _log.warning("capacity_unread", of="tenants", reason=type(error).__name__)

    async def _check_disk(self) -> None:
        """Look at the disk of the database. Raises StoreError."""
        state = self.state
        state.free_bytes, state.disk_bytes, full = await self._disk.check()
        if full is not None and state.full is None:
            _log.error("disk_full", reason=full)
        elif full is None and state.full is not None:
            _log.info("disk_has_room")
        state.full = full

    async def _check_files(self, directory: Path) -> None:
        """Look at the disk of the files; while one look hangs, no other begins."""
        if self._looking is None:
            look = anyio.to_thread.run_sync(_room, directory, abandon_on_cancel=True)
            self._looking = asyncio.ensure_future(look)
        await asyncio.wait([self._looking], timeout=_FILES_S)
        free_bytes = total_bytes = None
        if self._looking.done():
            free_bytes, total_bytes = self._looking.result()
            self._looking = None
        self.state.files_free_bytes, self.state.files_disk_bytes = free_bytes, total_bytes


def _room(directory: Path) -> tuple[int, int] | tuple[None, None]:
    """Return the free bytes and the size of a directory's disk."""
    try:
        found = shutil.disk_usage(directory)
    except OSError:
        return None, None
    return found.free, found.total
