"""Free space for the database.

A full disk stops PostgreSQL for all tenants, and for longer than the disk is full. So the server refuses
writes before that.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from storage.postgres.pool import Database

#: The directory of a database on this host. On another host, or in a container, it is another one or none.
_DIRECTORY: Final = (
    "SELECT setting FROM pg_settings WHERE name = 'data_directory'"
    " AND coalesce(inet_server_addr() <<= inet '127.0.0.0/8' OR inet_server_addr() = inet '::1', true)"
)
#: Beside a table: on Citus it is then the size on the node that has the tables.
_SIZE: Final = "SELECT pg_database_size(current_database()) FROM cluster_state"
#: Once full, the disk needs this factor more than ``min_free_bytes``, so that the state does not flap.
_SPARE: Final = 1.25


class DiskState(NamedTuple):
    """The disk of the database: its free and all its bytes, None if unknown, and why to refuse writes."""

    free_bytes: int | None
    total_bytes: int | None
    full: str | None


class Disk:
    """Reads the free space of the database's disk, if it is on this host, and the size of the database.

    Args:
        database: The database.
        min_free_bytes: The disk is full with less free space.
        max_bytes: The database is full from this size on; 0 is no limit.
    """

    def __init__(self, database: Database, min_free_bytes: int, max_bytes: int) -> None:
        self._database = database
        self._min_free_bytes = min_free_bytes
        self._max_bytes = max_bytes
        self._full = False

    async def check(self) -> DiskState:
        """Return the state of the disk. Raises StoreError."""
        free_bytes, total_bytes = await self._bytes()
        reason = self._no_disk(free_bytes)
        if reason is None and self._max_bytes:
            rows = await self._database.query(_SIZE)
            if rows[0][0] >= self._max_bytes:
                reason = (
                    f"the database has {rows[0][0]} bytes, the limit is {self._max_bytes}:"
                    " make room, or raise postgres.max_bytes"
                )
        self._full = reason is not None
        return DiskState(free_bytes, total_bytes, reason)

    async def _bytes(self) -> tuple[int, int] | tuple[None, None]:
        rows = await self._database.query(_DIRECTORY)
        try:
            found = os.statvfs(rows[0][0]) if rows else None
        except OSError:
            found = None
        if found is None:
            return None, None
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def _no_disk(self, free_bytes: int | None) -> str | None:
        wanted_bytes = self._min_free_bytes * (_SPARE if self._full else 1)
        if free_bytes is None or free_bytes >= wanted_bytes:
            return None
        return (
            f"the database's disk has {free_bytes} bytes left, {self._min_free_bytes} are to stay free:"
            " make room, or lower postgres.min_free_bytes"
        )
