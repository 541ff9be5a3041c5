"""A database is restored from a backup with a damaged page."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from bench.client.crew import pull_all
from tests.harness.services import execute, rows
from tests.harness.ws_device import connected, put, token
from tests.system.outages.devices import TENANT
from tests.system.outages.drill import Cause
from tests.system.outages.site import Layout, Site

_HISTORY = 400
_DAMAGED = "history-200"
_PAGE_BYTES = 8192
_SETTINGS = "/etc/postgresql/15/main/conf.d/recovery.conf"
_RESTORE = f"""cp -a /var/backups/tidemark/base-2026-11-29 /var/lib/postgresql/15/main
echo "restore_command = 'cp /var/backups/tidemark/archive/%f %p'" >{_SETTINGS}
touch /var/lib/postgresql/15/main/recovery.signal
systemctl start postgresql
rm {_SETTINGS}
"""


async def _begin(site: Site) -> None:
    """The database is moved to another disk by restoring Sunday's backup, in which a byte is wrong."""
    async with connected(site.url, site.http, signed=token(TENANT, "office")) as device:
        await device.push(*(put(f"history-{number}", None, note="x" * 400) for number in range(_HISTORY)))
    await asyncio.to_thread(execute, site.dsn, "VACUUM (FREEZE) records")
    await asyncio.to_thread(site.postgres.back_up, "base-2026-11-28")
    await site.fleet.progress()
    sunday = await asyncio.to_thread(site.postgres.back_up, "base-2026-11-29")
    await asyncio.to_thread(_damage, site.dsn, sunday)
    await site.fleet.progress()
    await site.postgres.stop()
    await asyncio.to_thread(shutil.rmtree, site.postgres.cluster.data)
    await site.run(_RESTORE, strict=True)


def _damage(dsn: str, backup: Path) -> None:
    """Change a byte of a page that has records of long ago alone."""
    read = f"SELECT pg_relation_filepath('records'), ctid::text FROM records WHERE id = '{_DAMAGED}'"
    ((path, ctid),) = rows(dsn, read)
    page = int(str(ctid).strip("()").split(",")[0])
    with (backup / str(path)).open("r+b") as file:
        file.seek(page * _PAGE_BYTES + _PAGE_BYTES // 2)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


async def _symptom(site: Site) -> str:
    await site.fleet.progress()
    body = await site.refusals("/v1/changes?limit=1000")
    return f"edits are acknowledged, and a first pull is refused: {body}"


async def _mended(site: Site) -> None:
    await site.ready()
    found = await pull_all(site.http, site.url, token(TENANT, "tablet"))
    assert len(found) == _HISTORY + site.layout.devices
    site.say(f"a first pull brings all {len(found)} records")


CAUSE = Cause(
    begin=_begin,
    symptom=_symptom,
    finds=("invalid page in block", "base-2026-11-29.*\n.*checksum mismatch", "backup successfully verified"),
    layout=Layout(archived=True),
    mended=_mended,
)
