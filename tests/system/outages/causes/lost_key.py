"""The master key is gone when the server starts again."""

from __future__ import annotations

import shutil

from tests.harness.ws_device import connected, token
from tests.system.outages.devices import TENANT
from tests.system.outages.drill import Cause
from tests.system.outages.site import Layout, Site

_EVENT = {"verification_id": "v-1", "user_id": "u-1", "timestamp": "2026-01-01T00:00:00Z", "verified": True}


async def _begin(site: Site) -> None:
    """Somebody cleans up ``/etc/tidemark``, and the server is restarted."""
    async with connected(site.url, site.http, signed=token(TENANT, "scanner")) as device:
        await device.push({"domain": "voice", "id": "check-1", "op": "append", "data": _EVENT})
    safe = site.postgres.backups.with_name(f"{site.postgres.backups.name}-keys")
    safe.mkdir()
    shutil.move(site.etc / "master.key", safe)
    await site.units["tidemark"].stop()
    await site.units["tidemark"].start()


async def _symptom(site: Site) -> str:
    status = await site.server.ended()
    await site.fleet.held()
    return f"the service ended with {status}: {site.server.said}\n{site.fleet.waiting} edits wait on devices"


CAUSE = Cause(
    begin=_begin,
    symptom=_symptom,
    finds=("Active: failed", r"fault +master key"),
    layout=Layout(sealed=True),
)
