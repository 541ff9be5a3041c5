"""Bounds of the devices that a process remembers, and counts since its start."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from engine.runtime.metrics import LOOKUP_BOUNDS_S, Distribution, Metric, counter


class DeviceLimits(msgspec.Struct, frozen=True):
    """Bounds of devices.

    - ``remembered``: the most devices in memory. Each is reread after ``ttl_s``, saved every ``flush_s``.
    - ``of_tenant``: the most devices of a tenant in the store.
    """

    remembered: int
    ttl_s: float
    flush_s: float
    of_tenant: int


class DeviceCounters(msgspec.Struct):
    """Counts since the start: lookups of devices in memory and of others, reads at handshakes, flushes."""

    hits: int = 0
    misses: int = 0
    reads: int = 0
    refused: int = 0
    flush_rows: int = 0
    flush_s: float = 0.0
    flush_failures: int = 0
    durations: Distribution = msgspec.field(default_factory=lambda: Distribution(LOOKUP_BOUNDS_S))

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts."""
        yield from (
            counter("tidemark_device_hits", "Syncs of devices in memory", self.hits),
            counter("tidemark_device_misses", "Syncs of devices not read yet", self.misses),
            counter("tidemark_device_reads", "Devices read when they connected", self.reads),
            counter(
                "tidemark_devices_refused",
                "Handshakes and requests of devices for which their tenant had no room",
                self.refused,
            ),
            counter("tidemark_health_flush_rows", "Rows of health written behind", self.flush_rows),
            counter("tidemark_health_flush_seconds", "Time that writing health behind took", self.flush_s),
            counter(
                "tidemark_health_flush_failures",
                "Writes of health that failed and are tried again",
                self.flush_failures,
            ),
        )
        text = "Reads of devices that connect, from memory or from the database"
        yield self.durations.metric("tidemark_device_read_duration_seconds", text)
