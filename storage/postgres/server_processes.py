"""The server processes that use a database: no migration takes the schema from them, and one watches it.

The first of those that run, by the names of their slots, watches the database for all. A process that is
started again has the slot of the one before, so it watches at once if that one did.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import anyio
import structlog

from engine.runtime.ports import StoreError
from storage.postgres.arrays import hex_array
from storage.postgres.driver import Row, Values
from storage.postgres.pool import Database
from storage.postgres.transactions import LOCAL_SETTINGS

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

#: How often a process records that it runs.
SAID_S: Final = 10.0
#: A process that recorded nothing for longer has ended: that is two records and the time of a slow commit.
GONE_S: Final = 30.0

#: What this version can do with sealed values; 0 is a version that knows of none.
SEALING: Final = 1

#: The rows are read as they were before. So the silence of others counts to this process's last
#: record: after an outage, in which nobody recorded anything, the first does not take all others for gone.
_SEEN: Final = (
    "WITH before AS MATERIALIZED (SELECT NOT EXISTS (SELECT FROM server_processes AS other"
    " WHERE other.slot < %(slot)s::text AND other.seen_at > coalesce("
    "(SELECT seen_at FROM server_processes WHERE process = %(process)s::uuid), now())"
    f" - interval '{GONE_S} seconds') AS is_first),"
    " said AS (INSERT INTO server_processes (process, place, slot, sealing, master_keys)"
    f" VALUES (%(process)s::uuid, %(place)s::text, %(slot)s::text, {SEALING}, %(master_keys)s::text[])"
    " ON CONFLICT (process) DO UPDATE SET seen_at = excluded.seen_at, master_keys = excluded.master_keys"
    " RETURNING 1) SELECT is_first, (extract(epoch FROM now()) * 1000000)::bigint FROM before"
)
#: Rows of processes that were killed go as well, after a day.
_LEAVE: Final = (
    "DELETE FROM server_processes WHERE process = %(process)s::uuid OR seen_at < now() - interval '1 day'"
)
_PRESENT: Final = (
    "SELECT place, extract(epoch FROM now() - seen_at)::float8 FROM server_processes"
    " WHERE seen_at > now() - %s * interval '1 second' ORDER BY seen_at DESC"
)

_log = structlog.get_logger()


async def _no_keys() -> list[str]:
    return []


class ServerProcess:
    """One server process, which records every ten seconds that it uses the database.

    Args:
        database: The database.
        port: The port of the server.
        worker: The number of the worker, 0 without a supervisor.
        recorded: Called after each record with whether this process is the first, and the database's time.
        master_keys: Returns the ids of the master keys that this process has.
    """

    def __init__(
        self,
        database: Database,
        port: int,
        worker: int = 0,
        recorded: Callable[[bool, int], None] = lambda *_: None,
        master_keys: Callable[[], Awaitable[list[str]]] = _no_keys,
    ) -> None:
        self._database = database
        self._recorded = recorded
        self._master_keys = master_keys
        host = socket.gethostname()
        self._values = {
            "process": str(uuid.uuid4()),
            "place": f"{host}, port {port}, process {os.getpid()}",
            "slot": f"{host} {port:05} {worker:05}",
        }

    async def record(self) -> None:
        """Record that this process runs. Raises StoreError."""
        keys = hex_array(await self._master_keys())
        ((first, now_us),) = await self._run(_SEEN, {"master_keys": keys})
        self._recorded(first, now_us)

    async def run(self) -> None:
        """Record it until cancelled. A record that fails is left out."""
        failed = False
        while True:
            await anyio.sleep(SAID_S)
            try:
                await self.record()
            except StoreError as error:
                if not failed:
                    _log.warning("server_process_not_recorded", reason=type(error).__name__)
                failed = True
            else:
                failed = False

    async def leave(self) -> None:
        """Record that this process ends. If that fails, its row expires after ``GONE_S``."""
        try:
            await self._run(_LEAVE, {})
        except StoreError as error:
            _log.warning("server_process_not_recorded", reason=type(error).__name__)

    async def _run(self, statement: str, more: Values) -> list[Row]:
        # Not prepared: behind a pooler the first prepared statement of a process may fail, and this one is
        # not repeated. No wait for a standby: the next record comes in ten seconds.
        return await self._database.execute(statement, {**self._values, **more}, LOCAL_SETTINGS)


def running_processes(cursor: Cursor) -> list[tuple[str, float]]:
    """List the processes that use a database: the host of each, and the seconds since its last record."""
    cursor.execute("SELECT to_regclass('server_processes') IS NOT NULL")
    if cursor.fetchall() == [(False,)]:
        return []
    cursor.execute(_PRESENT, (GONE_S,))
    return [(str(place), float(silent_s)) for place, silent_s in cursor.fetchall()]
