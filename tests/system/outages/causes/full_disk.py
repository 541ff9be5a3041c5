"""A replication slot that nobody reads keeps WAL until the database's disk is full."""

from __future__ import annotations

import asyncio
import shutil

from tests.harness.services import execute, rows
from tests.system.outages.drill import Cause
from tests.system.outages.site import Layout, Site

_DISK_BYTES = 600 << 20
_MIN_FREE_BYTES = 200 << 20
#: Each segment of WAL that is left for the next one takes 16 MiB. With frequent checkpoints PostgreSQL keeps
#: few of them for reuse.
_FILL = ("SELECT pg_logical_emit_message(false, 'fill', 'x')", "SELECT pg_switch_wal()", "CHECKPOINT")
#: The second one has nobody now, as while its receiver restarts, and keeps nothing yet.
_SLOTS = (
    "SELECT pg_create_physical_replication_slot('old_standby', true)",
    "SELECT pg_create_physical_replication_slot('receiver')",
)


async def _begin(site: Site) -> None:
    """A standby was removed, and its replication slot was left behind."""
    superuser = site.postgres.cluster.dsn
    await asyncio.to_thread(execute, superuser, *_SLOTS)
    while shutil.disk_usage(site.postgres.log_folder).free > _MIN_FREE_BYTES:
        await asyncio.to_thread(execute, superuser, *_FILL)


async def _symptom(site: Site) -> str:
    await site.server.until("disk_full")
    await site.fleet.held()
    return f"{site.server.told('disk_full')[0]['reason']}\n{site.fleet.waiting} edits wait on devices"


async def _mended(site: Site) -> None:
    await site.server.until("disk_has_room")
    left = "SELECT slot_name FROM pg_replication_slots"
    assert await asyncio.to_thread(rows, site.dsn, left) == [("receiver",)]


CAUSE = Cause(
    begin=_begin,
    symptom=_symptom,
    finds=("bytes are to stay free|are to stay free", r"old_standby +\| f +\| \d+ MB"),
    layout=Layout(
        disk_bytes=_DISK_BYTES, settings={"TIDEMARK__POSTGRES__MIN_FREE_BYTES": str(_MIN_FREE_BYTES)}
    ),
    mended=_mended,
)
