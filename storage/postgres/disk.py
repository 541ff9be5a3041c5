"""Whether the database has room for more.

A full disk stops PostgreSQL for everybody, and for longer than it was full. So nothing more is taken in
before.
"""

from __future__ import annotations

import os
from typing import Final

from storage.postgres.pool import Database

#: Of a database on another host, or in a container, there is no directory of that name here, or not this one.
_DIRECTORY: Final = (
    "SELECT setting FROM pg_settings WHERE name = 'data_directory'"
    " AND coalesce(inet_server_addr() <<= inet '127.0.0.0/8' OR inet_server_addr() = inet '::1', true)"
)
#: Room that comes back has to be this much more than is wanted, so that it does not come and go.
_SPARE: Final = 1.25


class Disk:
    """Looks at the directory of the database, where it is on this host, and at the database's size.

    Args:
        database: Where it is asked.
        min_free_bytes: With less room on the disk it is full.
        max_bytes: From this size on the database is full; 0 is any.
    """

    def __init__(self, database: Database, min_free_bytes: int, max_bytes: int) -> None:
        self._database = database
        self._min_free_bytes = min_free_bytes
        self._max_bytes = max_bytes
        self._full = False

    async def look(self) -> tuple[int | None, str | None]:
        """Return the bytes that are free, if that can be told, and why nothing more is to be taken in.

        Raises StoreError.
        """
        free_bytes = await self._free_bytes()
        reason = self._no_disk(free_bytes)
        if reason is None and self._max_bytes:
            rows = await self._database.query("SELECT pg_database_size(current_database())")
            if rows[0][0] >= self._max_bytes:
                reason = (
                    f"the database has {rows[0][0]} bytes, the limit is {self._max_bytes}:"
                    " make room, or raise postgres.max_bytes"
                )
        self._full = reason is not None
        return free_bytes, reason

    async def _free_bytes(self) -> int | None:
        rows = await self._database.query(_DIRECTORY)
        try:
            found = os.statvfs(rows[0][0]) if rows else None
        except OSError:
            return None
        return None if found is None else found.f_bavail * found.f_frsize

    def _no_disk(self, free_bytes: int | None) -> str | None:
        wanted_bytes = self._min_free_bytes * (_SPARE if self._full else 1)
        if free_bytes is None or free_bytes >= wanted_bytes:
            return None
        return (
            f"the database's disk has {free_bytes} bytes left, {self._min_free_bytes} are to stay free:"
            " make room, or lower postgres.min_free_bytes"
        )
