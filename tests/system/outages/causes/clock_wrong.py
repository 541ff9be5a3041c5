"""The clock of one of two hosts is wrong."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

import pytest
from aiohttp import WSServerHandshakeError

from compose.configuration import VARIABLE
from tests.harness.supervised import Supervised
from tests.harness.ws_device import connected, put, token
from tests.system.outages.devices import TENANT
from tests.system.outages.drill import Cause
from tests.system.outages.site import Layout, Site

_FAST_S: Final = 600
_OFFSET: Final = "/etc/tidemark/clock"
_PAUSE_S: Final = 0.2
#: It tells processes another time than that of this machine.
_LIBRARY: Final = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


class Chrony:
    """The service that sets the clock of the host."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.active = False

    async def start(self) -> None:
        """Set the clock right."""
        self._path.write_text("+0", "ascii")
        self.active = True

    async def stop(self) -> None:
        """Leave the clock alone."""
        self.active = False

    def log(self) -> list[str]:
        """What it said."""
        return []


async def _begin(site: Site) -> None:
    """The clock of one host goes forward by ten minutes; another host serves devices, too."""
    if _LIBRARY is None:
        pytest.skip("there is no libfaketime here: install it (apt-get install faketime)")
    offset = Path(site.placed(_OFFSET))
    site.units["chrony"] = Chrony(offset)
    other = Supervised(1, {VARIABLE: str(site.etc / "config.toml")})
    site.stack.push_async_callback(other.stop)
    await other.launch()
    await other.until("listening")
    desk = await site.stack.enter_async_context(connected(other.url, site.http, signed=token(TENANT, "desk")))

    async def work() -> None:
        number = 0
        while True:
            number += 1
            await desk.push(put(f"desk-{number}", None, n=number))
            await asyncio.sleep(_PAUSE_S)

    working = asyncio.create_task(work())
    site.stack.callback(working.cancel)
    offset.write_text(f"+{_FAST_S}", "ascii")


async def _symptom(site: Site) -> str:
    await site.server.until("bus_message_rejected")
    signed = token(TENANT, "tablet", exp=int(time.time()) + _FAST_S // 2)
    try:
        async with connected(site.url, site.http, signed=signed):
            raise AssertionError("a token that expires in five minutes is accepted")
    except WSServerHandshakeError as refused:
        return f"a token that expires in five minutes is refused with {refused.status}"


CAUSE = Cause(
    begin=_begin,
    symptom=_symptom,
    finds=("bus_message_rejected", "clock"),
    layout=Layout(
        settings={
            "LD_PRELOAD": str(_LIBRARY or ""),
            "FAKETIME_TIMESTAMP_FILE": _OFFSET,
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
    ),
)
