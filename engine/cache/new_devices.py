"""Devices that the store does not know yet: each gets a row, as long as its tenant has room.

A row is a write. It may wait for the lock of a tenant, for the disk and for a standby, so that the devices
that have a row do not wait with it.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from engine.cache.device_health import Device, DeviceKey
from engine.cache.ports import DeviceStore
from engine.runtime.metrics import LOOKUP_BOUNDS_S, Distribution
from engine.runtime.ports import Clock, StoreError

#: Devices written by one transaction.
_ROWS: Final = 1000
_RETRY_S: Final = 1.0
#: A refused device is not looked up again for so long, however often it asks.
_REFUSED_FOR_S: Final = 10.0

_log = structlog.get_logger()


class NewDevices:
    """Gives devices a row, a thousand at a time.

    Args:
        store: Where the rows are.
        clock: For how long a refusal stands.
        of_tenant: The most devices of a tenant.
    """

    def __init__(self, store: DeviceStore, clock: Clock, of_tenant: int) -> None:
        #: Of handshakes: from the read that did not find the device to its row.
        self.durations = Distribution(LOOKUP_BOUNDS_S)
        self._store = store
        self._clock = clock
        self._of_tenant = of_tenant
        # With the moment of the read that did not find them (``saved_generation``, and the time in seconds).
        self._waiting: dict[DeviceKey, tuple[Device, int, float]] = {}
        self._has_waiting = asyncio.Event()
        self._round_done = asyncio.Event()
        self._fail = False

    def add(self, devices: list[Device], saved_generation: int, now_s: float) -> None:
        """Have devices introduced which a read at ``now_s`` did not find."""
        if devices:
            self._waiting.update((one.key, (one, saved_generation, now_s)) for one in devices)
            self._has_waiting.set()

    async def settled(self, device: Device) -> None:
        """Wait until a device has its row or its refusal, or until that fails."""
        if device.key not in self._waiting:
            return
        began_s = self._clock.monotonic_s()
        try:
            while device.key in self._waiting and not self._fail:
                await self._round_done.wait()
        finally:
            self.durations.add(self._clock.monotonic_s() - began_s)

    async def introduce(self, devices: list[Device]) -> None:
        """Give devices without a row one; those without room for it are refused. Raises StoreError."""
        if not devices:
            return
        refused = await self._store.introduce(sorted({one.key for one in devices}), self._of_tenant)
        for device in devices:
            if device.key in refused:
                device.refuse(self._clock.monotonic_s() + _REFUSED_FOR_S)
            else:
                device.accept()

    async def run(self) -> None:
        """Introduce what is added until cancelled; try again each second while the store fails."""
        while True:
            await self._has_waiting.wait()
            some = list(self._waiting.values())[:_ROWS]
            try:
                await self.introduce([device for device, _, _ in some])
            except StoreError as error:
                if not self._fail:
                    _log.warning("devices_not_introduced", reason=type(error).__name__)
                self._fail = True
                self._end_round()
                await asyncio.sleep(_RETRY_S)
                continue
            self._fail = False
            for device, saved_generation, now_s in some:
                if self._waiting[device.key][0] is device:
                    del self._waiting[device.key]
                # A save that ran since may be in the store. The next sweep reads the device.
                if device.known and device.saved_generation <= saved_generation:
                    device.read(None, now_s)
            if not self._waiting:
                self._has_waiting.clear()
            self._end_round()

    def _end_round(self) -> None:
        done, self._round_done = self._round_done, asyncio.Event()
        done.set()
