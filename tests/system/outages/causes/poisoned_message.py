"""PostgreSQL refuses a value that the server takes, by a rule that somebody added to a table."""

from __future__ import annotations

import asyncio

from tests.harness.services import execute, rows
from tests.harness.ws_device import connected, put, token
from tests.system.outages.devices import TENANT
from tests.system.outages.drill import Cause
from tests.system.outages.site import Site

_RULE = "ALTER TABLE records ADD CONSTRAINT no_long_notes CHECK (length(data ->> 'note') <= 100)"


async def _begin(site: Site) -> None:
    """Somebody adds a constraint to a table, and a device sends a long note."""
    await asyncio.to_thread(execute, site.dsn, _RULE)


async def _symptom(site: Site) -> str:
    async with connected(site.url, site.http, signed=token(TENANT, "tablet")) as device:
        (result,) = await device.push(put("pump-3", None, note="leaks " * 20))
    assert result["status"] == "rejected"
    await site.server.until("message_poisoned")
    await site.fleet.progress()
    return f"the device was told: {result}\nothers go on: {site.fleet.acknowledged} edits acknowledged"


async def _mended(site: Site) -> None:
    read = "SELECT version, device_id, data ->> 'note' FROM records WHERE id = 'pump-3'"
    assert await asyncio.to_thread(rows, site.dsn, read) == [(1, "tablet", "leaks " * 20)]
    assert await asyncio.to_thread(rows, site.dsn, "SELECT count(*) FROM quarantine") == [(0,)]
    site.say("the note is stored once, as of its device")


CAUSE = Cause(
    begin=_begin,
    symptom=_symptom,
    finds=("message_poisoned", "pump-3", "no_long_notes"),
    mended=_mended,
)
