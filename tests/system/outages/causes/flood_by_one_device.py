"""One device sends as fast as it can, and takes no answer for an order."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from aiohttp import ClientError, WSServerHandshakeError

from tests.harness.postgres_stalls import until
from tests.harness.services import rows
from tests.harness.ws_device import Closed, connected, put, token
from tests.system.outages.devices import TENANT
from tests.system.outages.drill import Cause
from tests.system.outages.site import Layout, Site

_DEVICE = "kiosk-9"
_AT_ONCE = 50
_PAUSE_S = 0.02


class _Flood:
    """The device. ``stored`` are the records that were acknowledged."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._sent = 0
        self.stored: set[str] = set()
        self.refused = 0
        self.shut_out = asyncio.Event()

    async def run(self) -> None:
        """Send, and connect again whenever the server closes, until it lets nobody in."""
        signed = token(TENANT, _DEVICE)
        while not self.shut_out.is_set():
            try:
                async with connected(self._site.url, self._site.http, signed=signed) as device:
                    while True:
                        for _ in range(_AT_ONCE):
                            self._sent += 1
                            name = f"flood-{self._sent}"
                            items = [put(name, None, n=self._sent)]
                            await device.send({"type": "sync", "id": name, "key": name, "items": items})
                        for _ in range(_AT_ONCE):
                            answer = await device.receive()
                            if answer["type"] == "synced":
                                self.stored.add(answer["id"])
                            elif answer.get("code") == "rate_limited":
                                self.refused += 1
            except WSServerHandshakeError as error:
                if error.status in {401, 403}:
                    self.shut_out.set()
            except (Closed, ClientError, ConnectionError, TimeoutError):
                pass
            await asyncio.sleep(_PAUSE_S)


_floods: dict[Site, _Flood] = {}


async def _begin(site: Site) -> None:
    """The app of a kiosk has a loop without a pause."""
    flood = _floods[site] = _Flood(site)
    site.stack.push_async_callback(_end, asyncio.create_task(flood.run()))


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _symptom(site: Site) -> str:
    flood = _floods[site]
    read = "SELECT sum(times) FROM audit_log WHERE event = 'rate_limited'"

    async def look() -> object:
        return (await asyncio.to_thread(rows, site.dsn, read))[0][0]

    noted = await until(look)
    await site.fleet.progress()
    return (
        f"{flood.refused} syncs of {_DEVICE} were refused as rate_limited, {len(flood.stored)} stored;"
        f" {noted} refusals are in the audit log; other devices go on"
    )


async def _mended(site: Site) -> None:
    flood = _floods.pop(site)
    async with asyncio.timeout(10):
        await flood.shut_out.wait()
    read = f"SELECT id FROM records WHERE version = 1 AND device_id = '{_DEVICE}'"
    stored = {str(name) for (name,) in await asyncio.to_thread(rows, site.dsn, read)}
    assert flood.stored <= stored
    site.say(f"{_DEVICE} is shut out; its {len(flood.stored)} acknowledged records are in the database")


CAUSE = Cause(
    begin=_begin,
    symptom=_symptom,
    finds=(rf"rate_limited.*{_DEVICE}|{_DEVICE}.*rate_limited",),
    layout=Layout(settings={"TIDEMARK__LIMITS__MESSAGES_PER_MINUTE": "1500"}),
    mended=_mended,
)
