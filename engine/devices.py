"""What this process knows of each device: its health and its rate, in memory, bounded.

The least recently seen devices are forgotten first; a forgotten device starts anew as one that never
synced, so the bound is to be well above the devices that one process serves.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from engine.admission import TokenBucket

_HOUR_US = 3_600_000_000


class Device(msgspec.Struct, kw_only=True):
    """One device. ``failed_syncs`` were answered with an error; ``conflicts`` counts items that met one."""

    bucket: TokenBucket
    last_sync_at_us: int | None = None
    total_syncs: int = 0
    failed_syncs: int = 0
    sync_duration_us: int = 0
    conflicts: int = 0
    network_type: str | None = None
    app_version: str | None = None
    os_version: str | None = None

    @property
    def avg_sync_duration_ms(self) -> float:
        """Mean time from a sync's arrival to its answer; 0.0 before the first."""
        return self.sync_duration_us / self.total_syncs / 1000 if self.total_syncs else 0.0

    def synced(self, now_us: int, duration_us: int, conflicts: int) -> None:
        """Count a sync that was answered with results."""
        self.last_sync_at_us = now_us
        self.total_syncs += 1
        self.sync_duration_us += duration_us
        self.conflicts += conflicts

    def failed(self, duration_us: int) -> None:
        """Count a sync that was answered with an error."""
        self.total_syncs += 1
        self.failed_syncs += 1
        self.sync_duration_us += duration_us

    def introduce(
        self, *, network_type: str | None, app_version: str | None, os_version: str | None
    ) -> None:
        """Take in what a device says of itself; what it leaves out stays as known."""
        self.network_type = network_type or self.network_type
        self.app_version = app_version or self.app_version
        self.os_version = os_version or self.os_version

    def health_score(self, now_us: int) -> int:
        """Return 0 to 100 as of now: a silent device decays."""
        if self.last_sync_at_us is None:
            silent_hours = 0.0 if not self.total_syncs else 24.0
        else:
            silent_hours = max(0, now_us - self.last_sync_at_us) / _HOUR_US
        return health_score(self.total_syncs, self.failed_syncs, self.conflicts, silent_hours)


def health_score(total: int, failed: int, conflicts: int, silent_hours: float) -> int:
    """60 points for success, 20 for a recent sync, 20 for few conflicts; 100 before the first sync."""
    if total == 0:
        return 100
    success = 60 * (total - failed) / total
    recent = max(0.0, 20 - 20 * silent_hours / 24)
    agreed = max(0.0, 20 - 20 * conflicts / total)
    return round(success + recent + agreed)


class Devices:
    """Devices by (tenant_id, device_id)."""

    def __init__(self, max_devices: int, messages_per_minute: int) -> None:
        self._max_devices = max_devices
        self._messages_per_minute = messages_per_minute
        self._devices: OrderedDict[tuple[int, str], Device] = OrderedDict()

    def seen(self, tenant_id: int, device_id: str, now_s: float) -> Device:
        """Return a device's entry, new or known; hold on to it for the length of a connection."""
        key = (tenant_id, device_id)
        device = self._devices.get(key)
        if device is None:
            bucket = TokenBucket(float(self._messages_per_minute), now_s)
            device = self._devices[key] = Device(bucket=bucket)
            if len(self._devices) > self._max_devices:
                self._devices.popitem(last=False)
        else:
            self._devices.move_to_end(key)
        return device

    def __len__(self) -> int:
        """How many devices are remembered."""
        return len(self._devices)
