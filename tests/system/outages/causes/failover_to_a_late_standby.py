"""The primary dies, and its standby lacks a change that was acknowledged."""

from __future__ import annotations

import asyncio

from tests.harness.postgres_stalls import until
from tests.harness.services import execute, rows
from tests.harness.ws_device import connected, put, token
from tests.system.outages.devices import TENANT
from tests.system.outages.drill import Cause
from tests.system.outages.site import Layout, Site

_SENT = "SELECT FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_lsn()"
_CUT = ("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
_CONNECTED = "SELECT FROM pg_stat_replication"


async def _begin(site: Site) -> None:
    """The line to the standby breaks, a change is acknowledged, and the primary is killed."""
    primary = site.postgres.cluster.dsn

    async def sent() -> bool:
        return bool(await asyncio.to_thread(rows, primary, _SENT))

    async def cut_off() -> bool:
        return not await asyncio.to_thread(rows, primary, _CONNECTED)

    async with connected(site.url, site.http, signed=token(TENANT, "tablet")) as device:
        await device.push(put("pump-1", None))
        await until(sent)
        await asyncio.to_thread(execute, site.standby.dsn, *_CUT)
        await until(cut_off)
        (stored,) = await device.push(put("pump-2", None))
        assert stored["status"] == "applied"
        page = await device.pull(cursor=None)
        (site.home / "cursor").write_text(page["cursor"])
    await site.postgres.kill()


async def _symptom(site: Site) -> str:
    faults = await site.until_readiness(503)
    await site.refusals("/v1/changes")
    return f"/readyz answers 503: {faults}"


async def _mended(site: Site) -> None:
    await site.ready()
    # A cursor beyond the last change would be refused by itself; one that others have passed is not.
    async with connected(site.url, site.http, signed=token(TENANT, "office")) as other:
        await other.push(put("pump-3", None), put("pump-4", None))
    async with connected(site.url, site.http, signed=token(TENANT, "tablet")) as device:
        error = await device.refused("pull", cursor=(site.home / "cursor").read_text())
        assert error["code"] == "cursor_expired"
        page = await device.pull(cursor=None)
        assert [change["id"] for change in page["changes"]] == ["pump-1", "pump-3", "pump-4"]
        (stored,) = await device.push(put("pump-2", None))
        assert stored["version"] == 1
    site.say("the device was told cursor_expired, pulled what is left, and sent again what it holds")


CAUSE = Cause(
    begin=_begin,
    symptom=_symptom,
    finds=("read-only|Connection refused", r"t +\| 0/\w+ +\| 20\d\d-"),
    layout=Layout(standby=True, synchronous=False, devices=0),
    mended=_mended,
)
