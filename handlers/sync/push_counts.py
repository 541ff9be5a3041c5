"""Counts the outcomes of pushes: for the health of their devices, and for the metrics."""

from __future__ import annotations

from typing import Final

import msgspec

from engine.cache.device_health import Device
from engine.cache.devices import DeviceCache
from engine.plan.work import PushAnswer
from engine.runtime.ports import Clock
from engine.wire.errors import SyncError
from handlers.http.counters import Traffic

#: Errors of a server that refuses everybody for now: no failure of the device.
_REFUSALS: Final = frozenset({"rate_limited", "overloaded", "unavailable"})


class _Status(msgspec.Struct):
    status: str


_statuses = msgspec.json.Decoder(list[_Status])


class PushCounts(msgspec.Struct, frozen=True):
    """Counts for one process."""

    devices: DeviceCache
    traffic: Traffic
    clock: Clock

    def answered(self, device: Device, answer: PushAnswer, started_us: int) -> None:
        """Count a push that was answered with results."""
        now_us = self.clock.now_us()
        duration_us = now_us - started_us
        conflicts = 0 if answer.plain or answer.replayed else count_conflicts(answer.results)
        device.synced(now_us, duration_us, conflicts)
        self.devices.count_lookup(device)
        self.traffic.sync_answered(duration_us)

    def failed(self, device: Device, error: SyncError, started_us: int) -> None:
        """Count a push that was answered with an error, unless it was only put off."""
        if error.code not in _REFUSALS:
            device.failed(self.clock.now_us() - started_us)
            self.devices.count_lookup(device)


def count_conflicts(results: bytes) -> int:
    """Count the items that met a conflict. A search for two texts rules most answers out."""
    if b'"status":"resolved"' not in results and b'"status":"conflict"' not in results:
        return 0
    return sum(one.status in ("resolved", "conflict") for one in _statuses.decode(results))
