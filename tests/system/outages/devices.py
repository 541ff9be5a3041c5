"""Devices that work during an outage, and the audit of what they were told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Final

from aiohttp import ClientSession

from bench.scenarios.guided import Guided, beside
from tests.harness.services import rows
from tests.harness.ws_device import token

TENANT: Final = "north"
_EDITS_PER_S: Final = 10.0
#: Longer than devices wait by themselves after the longest outage here.
_PATIENCE_S: Final = 90
_LOOK_S: Final = 0.05


class Fleet:
    """Reference devices, each of which edits a record of its own again and again, on disk first."""

    def __init__(self, home: Path, url: str, count: int, session: ClientSession) -> None:
        self.devices = [
            Guided(f"phone-{number}", home, url, token(TENANT, f"phone-{number}"), session)
            for number in range(1, count + 1)
        ]
        self._working = AsyncExitStack()
        self._connected = AsyncExitStack()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Have all of them connect and work."""
        random = Random(1)
        async with self._connected, self._working:
            for device in self.devices:
                await self._connected.enter_async_context(beside(device.run()))
                work = device.work(lambda: random.expovariate(_EDITS_PER_S))
                await self._working.enter_async_context(beside(work))
            yield

    @property
    def acknowledged(self) -> int:
        """How many edits the server has acknowledged."""
        return sum(len(device.applied) for device in self.devices)

    @property
    def waiting(self) -> int:
        """How many edits are on devices alone."""
        return sum(device.edits - device.answered for device in self.devices)

    async def progress(self, by: int = 2) -> None:
        """Wait until the server has acknowledged so many more edits of each device."""
        wanted = {device: len(device.applied) + by for device in self.devices}
        await self.until(lambda: all(len(device.applied) >= count for device, count in wanted.items()))

    async def held(self, edits: int = 5) -> None:
        """Wait until so many edits wait for the server."""
        await self.until(lambda: self.waiting >= edits)

    async def until(self, holds: Callable[[], bool], patience_s: float = _PATIENCE_S) -> None:
        """Wait until something holds of the devices."""
        async with asyncio.timeout(patience_s):
            while not holds():  # noqa: ASYNC110  # they tell nobody
                await asyncio.sleep(_LOOK_S)

    async def finish(self, dsn: str) -> str:
        """Have devices send what they hold, and compare the database with what they were told.

        Each edit is one version of its device's record, and has its number in the data.

        Returns:
            What was found, as a sentence.
        """
        await self._working.aclose()
        began_s = time.monotonic()
        await self.until(lambda: not self.waiting)
        waited_s = time.monotonic() - began_s
        await self._connected.aclose()
        read = "SELECT id, version, data ->> 'number' FROM records WHERE id LIKE 'record of phone-%'"
        stored = {str(name): (version, int(str(number))) for name, version, number in rows(dsn, read)}
        for device in self.devices:
            device.store.close()
            assert device.odd == []
            assert device.applied == list(range(1, device.edits + 1))
            assert stored[f"record of {device.name}"] == (device.edits, device.edits)
        edits = sum(device.edits for device in self.devices)
        return (
            f"{edits} edits of {len(self.devices)} devices were acknowledged, and each is in the database"
            f" once; {waited_s:.1f} s after the last edit all were answered"
        )
