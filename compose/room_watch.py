"""How much room is left: on the database's disk, and for the fullest tenant."""

from __future__ import annotations

from typing import Final

import anyio
import msgspec
import structlog

from engine.model.rows import TenantUsage
from engine.plan.capacity import CapacityState
from engine.runtime.ports import StoreError
from engine.runtime.settings import Settings
from storage.postgres.disk import Disk
from storage.postgres.pool import Database
from storage.stores.usage import PostgresUsage

_LOOK_S: Final = 15.0

_log = structlog.get_logger()


class RoomWatch:
    """Looks now and then; ``state`` is as of the last look."""

    def __init__(self, database: Database, settings: Settings) -> None:
        bounds = TenantUsage(**msgspec.structs.asdict(settings.tenant_limits))
        self.state = CapacityState(bounds, TenantUsage())
        self._usage = PostgresUsage(database)
        self._disk = Disk(database, settings.postgres.min_free_bytes, settings.postgres.max_bytes)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await anyio.sleep(_LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Look once. What cannot be read stays as it was."""
        state = self.state
        try:
            state.fullest = await self._usage.fullest()
            state.free_bytes, full = await self._disk.look()
        except StoreError as error:
            _log.warning("room_unread", reason=type(error).__name__)
            return
        if full is not None and state.full is None:
            _log.error("disk_full", reason=full)
        elif full is None and state.full is not None:
            _log.info("disk_has_room")
        state.full = full
