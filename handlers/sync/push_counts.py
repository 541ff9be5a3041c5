"""Counts the outcomes of pushes: for the health of their devices, for minutes, and for the metrics."""

from __future__ import annotations

from typing import Final

import msgspec

from engine.cache.device_health import Device
from engine.cache.devices import DeviceCache
from engine.cache.minutes import Minutes
from engine.plan.work import PushAnswer
from engine.runtime.ports import Clock
from engine.wire.errors import SERVICE_ERRORS, SyncError
from handlers.http.counters import Traffic

#: Errors that are no failure of the device. One over its rate is not counted at all: it comes again.
_NOT_THE_DEVICES: Final = SERVICE_ERRORS | {"rate_limited"}


class _Status(msgspec.Struct):
    status: str


_statuses = msgspec.json.Decoder(list[_Status])


class PushCounts(msgspec.Struct, frozen=True):
    """Counts for one process."""

    devices: DeviceCache
    minutes: Minutes
    traffic: Traffic
    clock: Clock

    def answered(self, device: Device, answer: PushAnswer, items: int, started_us: int) -> None:
        """Count a push of some items that was answered with results. A repeated answer counts no items."""
        now_us = self.clock.now_us()
        duration_us = now_us - started_us
        minute = self.minutes.of(device.key[0])
        minute.syncs += 1
        minute.durations.add(duration_us)
        conflicts = 0
        if answer.replayed:
            minute.replayed += 1
        else:
            minute.items += items
            if not answer.plain:
                conflicts, held = count_conflicts(answer.results)
                minute.conflicts += conflicts
                minute.conflicts_open += held
        device.synced(now_us, duration_us, conflicts)
        self.devices.count_lookup(device)
        self.traffic.sync_answered(duration_us)

    def failed(self, device: Device, error: SyncError, started_us: int) -> None:
        """Count a push that was answered with an error of the device's own."""
        if error.code not in _NOT_THE_DEVICES:
            minute = self.minutes.of(device.key[0])
            minute.syncs += 1
            minute.failed += 1
            self.traffic.syncs_failed += 1
            device.failed(self.clock.now_us() - started_us)
            self.devices.count_lookup(device)

    def refused(self, tenant_id: int, code: str) -> None:
        """Count a push, or a handshake, that the service refused, if ``code`` says so.

        Args:
            tenant_id: Its tenant; ``NO_TENANT`` if it was refused before its token was read.
            code: The code of the answer.
        """
        if code in SERVICE_ERRORS:
            minute = self.minutes.of(tenant_id)
            minute.syncs += 1
            minute.refused += 1
            self.traffic.syncs_refused[code] += 1


def count_conflicts(results: bytes) -> tuple[int, int]:
    """Count the items that met a conflict, and those that are held for a person.

    A search for two texts rules most answers out.
    """
    if b'"status":"resolved"' not in results and b'"status":"conflict"' not in results:
        return 0, 0
    statuses = [one.status for one in _statuses.decode(results)]
    held = statuses.count("conflict")
    return held + statuses.count("resolved"), held
