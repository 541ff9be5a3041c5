"""Which server processes use a database, so that nobody takes its schema from under them."""

from __future__ import annotations

import os
import socket
import uuid
from typing import TYPE_CHECKING, Final

import anyio
import structlog

from engine.runtime.ports import StoreError
from storage.postgres.pool import Database
from storage.postgres.transactions import LOCAL_SETTINGS

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

#: How often a process says that it is there.
SAID_S: Final = 10.0
#: One that was silent for longer is gone: it missed two words and the time that a commit may take.
GONE_S: Final = 30.0

_SEEN: Final = (
    "INSERT INTO server_processes (process, place) VALUES (%(process)s::uuid, %(place)s::text)"
    " ON CONFLICT (process) DO UPDATE SET seen_at = now()"
)
#: Those that were killed could not do so themselves.
_LEAVE: Final = (
    "DELETE FROM server_processes WHERE process = %(process)s::uuid OR seen_at < now() - interval '1 day'"
)
_PRESENT: Final = (
    "SELECT place, extract(epoch FROM now() - seen_at)::float8 FROM server_processes"
    " WHERE seen_at > now() - %s * interval '1 second' ORDER BY seen_at DESC"
)

_log = structlog.get_logger()


class Presence:
    """One server process, which says every ten seconds that it uses the database."""

    def __init__(self, database: Database, port: int) -> None:
        self._database = database
        place = f"{socket.gethostname()}, port {port}, process {os.getpid()}"
        self._values = {"process": str(uuid.uuid4()), "place": place}

    async def say(self) -> None:
        """Say that this process is there. Raises StoreError."""
        await self._run(_SEEN)

    async def run(self) -> None:
        """Go on saying so. While the database is away it waits for the next time."""
        failed = False
        while True:
            await anyio.sleep(SAID_S)
            try:
                await self.say()
            except StoreError as error:
                if not failed:
                    _log.warning("presence_not_stored", reason=type(error).__name__)
                failed = True
            else:
                failed = False

    async def leave(self) -> None:
        """Say that this process is gone; if that fails, its silence says so later."""
        try:
            await self._run(_LEAVE)
        except StoreError as error:
            _log.warning("presence_not_stored", reason=type(error).__name__)

    async def _run(self, statement: str) -> None:
        # Not prepared: behind a pooler the first prepared statement of a process may fail, and this one is
        # not repeated. No wait for a standby: the next word comes in ten seconds.
        await self._database.execute(statement, self._values, LOCAL_SETTINGS)


def present(cursor: Cursor) -> list[tuple[str, float]]:
    """List the processes that use a database: where each is, and for how many seconds it was silent."""
    cursor.execute("SELECT to_regclass('server_processes') IS NOT NULL")
    if cursor.fetchall() == [(False,)]:
        return []
    cursor.execute(_PRESENT, (GONE_S,))
    return [(str(place), float(silent_s)) for place, silent_s in cursor.fetchall()]
