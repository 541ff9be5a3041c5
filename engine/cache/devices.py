"""Devices in memory: their health and their rate limits, bounded.

Nothing on the hot path asks the store. A device is read when it connects; all handshakes during one read
share the next one. Counts are added to the store every few seconds, for all devices in one transaction. While
the store is unavailable, devices are admitted unread and their counts are kept.
"""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

import structlog

from engine.cache.device_health import Device, DeviceKey, Health
from engine.cache.device_limits import DeviceCounters, DeviceLimits
from engine.cache.new_devices import NewDevices
from engine.cache.ports import DeviceStore, HealthUnknownError
from engine.runtime.batching import write_last
from engine.runtime.metrics import Metric, gauge
from engine.runtime.ports import Clock, StoreError, StorePoisonError
from engine.runtime.rate_limit import TokenBucket, retry_later_ms
from engine.wire.errors import SyncError

#: Devices read or written by one statement.
_ROWS: Final = 1000
#: Devices read at the start, so that the devices that reconnect first are in memory.
_PRELOADED: Final = 10_000
#: The longest wait of a handshake for the read of its device.
_READ_TIMEOUT_S: Final = 1.0
_RETRY_S: Final = 1.0
#: After a flush, the pause is at least this many times as long as the flush took, so that flushes take at
#: most a hundredth of the time.
_REST_FACTOR: Final = 99.0
_LONGEST_PAUSE_S: Final = 60.0
#: Sweeps over all devices in one time to live.
_SWEEPS: Final = 10
#: Devices that a sweep visits before other work gets its turn on the loop.
_DEVICES_PER_PASS: Final = 500
#: The most devices, from the least recently seen on, that are tried for eviction at a time.
_EVICTION_ATTEMPTS: Final = 8
_BEING_SAVED: Final = sys.maxsize
_NO_ROOM: Final = (
    "the tenant has as many devices as it may (tenant_limits.device_rows), and this one is new: have an"
    " operator raise the limit, since no device is ever removed, and give a device the same id again when its"
    " app is installed anew"
)

_log = structlog.get_logger()

_Taken = list[tuple[Device, Health]]


class DeviceCache:
    """Devices by tenant and id.

    Args:
        store: Where health is read and added up.
        clock: For times to live.
        connected: Returns True if a device has a connection to this process; then it is not evicted.
        limits: Bounds and pauses.
        messages_per_minute: The rate limit of a device.
    """

    def __init__(
        self,
        store: DeviceStore,
        clock: Clock,
        connected: Callable[[DeviceKey], bool],
        limits: DeviceLimits,
        messages_per_minute: int,
    ) -> None:
        self.counters = DeviceCounters()
        self._store = store
        self._clock = clock
        self._connected = connected
        self._new = NewDevices(store, clock, limits.of_tenant)
        self._limits = limits
        self._messages_per_minute = messages_per_minute
        self._devices: OrderedDict[DeviceKey, Device] = OrderedDict()
        self._changed: list[Device] = []
        self._unread: dict[DeviceKey, Device] = {}
        self._has_unread = asyncio.Event()
        self._read_done = asyncio.Event()
        self._unknown_outcomes: list[tuple[str, _Taken]] = []
        self._flushing = asyncio.Lock()
        # Counts finished saves. A read that began before a device's last save ended may lack that save.
        self._saved_generation = 0
        self._reads_fail = False
        self._writes_fail = False

    def __len__(self) -> int:
        """The number of devices in memory."""
        return len(self._devices)

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts of lookups and flushes, and the number of devices in memory."""
        yield gauge("tidemark_devices_remembered", "Devices in memory", len(self))
        yield from self.counters.metrics()
        yield self._new.durations.metric(
            "tidemark_device_row_duration_seconds",
            "Waits of new devices for the write of their row, after the read that did not find it",
        )

    # -- lookups --------------------------------------------------------------------------------

    def get(self, tenant_id: int, device_id: str, now_s: float) -> Device:
        """Return a device's entry, and create it if needed. A connection keeps its entry."""
        key = DeviceKey(tenant_id, device_id)
        device = self._devices.get(key)
        new = device is None
        if device is None:
            device = self._add_device(key, now_s)
        else:
            self._devices.move_to_end(key)
        if device.seen_at_s is None or now_s - device.seen_at_s > self._limits.ttl_s:
            device.seen_at_s = now_s
            device.note()
        if new:
            self._evict()
        return device

    async def load(self, tenant_id: int, device_id: str) -> None:
        """Read a device before it is served. If the store does not answer in time, go on without.

        Raises:
            SyncError: ``insufficient_storage``: the device is new, and its tenant has as many as it may.
        """
        began_s = self._clock.monotonic_s()
        read_at_s = None
        device = self.get(tenant_id, device_id, began_s)
        if device.read_at_s is None and began_s >= device.refused_until_s:
            self.counters.reads += 1
            self._unread[device.key] = device
            self._has_unread.set()
            if not self._reads_fail:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_READ_TIMEOUT_S):
                        await self._read_done.wait()
                        read_at_s = self._clock.monotonic_s()
                        await self._new.settled(device)
        self.counters.durations.add((read_at_s or self._clock.monotonic_s()) - began_s)
        if device.refused:
            self.counters.refused += 1
            raise SyncError("insufficient_storage", _NO_ROOM, retry_after_ms=retry_later_ms())

    def count_lookup(self, device: Device) -> None:
        """Count a sync as a hit if the device has been read, as a miss otherwise."""
        if device.read_at_s is None:
            self.counters.misses += 1
        else:
            self.counters.hits += 1

    def _add_device(self, key: DeviceKey, now_s: float) -> Device:
        bucket = TokenBucket(float(self._messages_per_minute), now_s)
        device = self._devices[key] = Device(key=key, bucket=bucket, changed=self._changed)
        return device

    def _evict(self) -> None:
        devices = self._devices
        for _ in range(_EVICTION_ATTEMPTS):
            if len(devices) <= self._limits.remembered:
                return
            key, device = next(iter(devices.items()))
            if self._may_be_evicted(device):
                del devices[key]
            else:
                devices.move_to_end(key)

    def _may_be_evicted(self, device: Device) -> bool:
        being_saved = device.saved_generation == _BEING_SAVED
        return device.unsaved is None and not being_saved and not self._connected(device.key)

    # -- as a service ---------------------------------------------------------------------------

    async def preload(self, devices: int = _PRELOADED) -> set[int]:
        """Read the devices that synced last, as many as there is room for, unless they are in memory.

        Returns:
            The ids of their tenants; empty if the store failed.
        """
        saved_generation, now_s = self._saved_generation, self._clock.monotonic_s()
        try:
            found = await self._store.latest(min(devices, self._limits.remembered))
        except StoreError as error:
            self._not_read(error)
            return set()
        room = max(0, self._limits.remembered - len(self._devices))
        for health in reversed(found[:room]):
            if health.key not in self._devices:
                device = self._add_device(health.key, now_s)
                # Otherwise the next sweep reads it: a save that ran during the read may be in it or not.
                if saved_generation == self._saved_generation:
                    device.read(health, now_s)
        return {health.key.tenant_id for health in found}

    async def run(self) -> None:
        """Read devices that connect, save counts, and evict devices that are gone, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_unread())
            group.create_task(self._new.run())
            group.create_task(self._run_flushes())
            group.create_task(self._run_sweeps())

    async def drain(self) -> None:
        """Save all counts; try again a few times if the store fails."""
        error = await write_last(self._flush_all)
        if error is not None:
            _log.error("health_lost", devices=len(self._changed), reason=type(error).__name__)

    async def _flush_all(self) -> None:
        while self._changed or self._unknown_outcomes:
            await self.flush()

    # -- reading --------------------------------------------------------------------------------

    async def _read_unread(self) -> None:
        while True:
            await self._has_unread.wait()
            self._has_unread.clear()
            unread, self._unread = self._unread, {}
            read_done, self._read_done = self._read_done, asyncio.Event()
            try:
                await self._read(list(unread.values()))
            except StoreError as error:
                self._not_read(error)
                self._unread = unread | self._unread
                self._has_unread.set()
                read_done.set()
                await asyncio.sleep(_RETRY_S)
            else:
                read_done.set()

    async def _read(self, devices: list[Device]) -> None:
        for some in _chunks(devices):
            saved_generation, now_s = self._saved_generation, self._clock.monotonic_s()
            found = {health.key: health for health in await self._store.health([one.key for one in some])}
            self._new.add(
                [one for one in some if one.key not in found and not one.known], saved_generation, now_s
            )
            for device in some:
                # A save that ran during the read may be in it or not. The next sweep reads the device again.
                known = device.known or device.key in found
                if known and device.saved_generation <= saved_generation:
                    device.read(found.get(device.key), now_s)
        self._reads_fail = False

    def _not_read(self, error: StoreError) -> None:
        if not self._reads_fail:
            _log.warning("health_not_read", reason=type(error).__name__)
        self._reads_fail = True

    async def _run_sweeps(self) -> None:
        while True:
            await asyncio.sleep(self._limits.ttl_s / _SWEEPS)
            try:
                await self.sweep()
            except StoreError as error:
                self._not_read(error)

    async def sweep(self) -> None:
        """Evict devices that are gone for the time to live, and reread stale ones. Raises StoreError."""
        old_s = self._clock.monotonic_s() - self._limits.ttl_s
        stale: list[Device] = []
        for visited, (key, device) in enumerate(list(self._devices.items()), start=1):
            if max(device.bucket.at_s, device.seen_at_s or 0.0) < old_s and not self._connected(key):
                if self._may_be_evicted(device) and self._devices.get(key) is device:
                    del self._devices[key]
            elif device.read_at_s is None or device.read_at_s < old_s:
                stale.append(device)
            if visited % _DEVICES_PER_PASS == 0:
                await asyncio.sleep(0)
        await self._read(stale)

    # -- writing --------------------------------------------------------------------------------

    async def _run_flushes(self) -> None:
        pause_s = self._limits.flush_s
        while True:
            await asyncio.sleep(pause_s)
            before_s = self.counters.flush_s
            try:
                await self.flush()
                self._writes_fail = False
            except StoreError as error:
                if not self._writes_fail:
                    _log.warning("health_not_stored", reason=type(error).__name__)
                self._writes_fail = True
            took_s = self.counters.flush_s - before_s
            pause_s = max(self._limits.flush_s, min(_REST_FACTOR * took_s, _LONGEST_PAUSE_S))

    async def flush(self) -> None:
        """Save all counts. Raises StoreError; counts that were not saved wait for the next flush."""
        async with self._flushing:
            begun_s = self._clock.monotonic_s()
            try:
                await self._learn_outcomes()
                rest = len(self._changed)
                while rest > 0:
                    some = self._changed[: min(rest, _ROWS)]
                    del self._changed[: len(some)]
                    rest -= len(some)
                    if taken := self._take(some):
                        await self._add(taken)
            except StoreError:
                self.counters.flush_failures += 1
                raise
            finally:
                self.counters.flush_s += self._clock.monotonic_s() - begun_s

    def _take(self, devices: list[Device]) -> _Taken:
        taken: dict[DeviceKey, tuple[Device, Health]] = {}
        for device in devices:
            if device.key in taken:  # it was evicted while a request used it, and was added again
                self._changed.append(device)
            elif device.unsaved is not None:
                device.saved_generation = _BEING_SAVED
                taken[device.key] = (device, device.take_unsaved())
        return [taken[key] for key in sorted(taken)]

    async def _add(self, taken: _Taken) -> None:
        try:
            taken = await self._with_rows(taken)
            if taken:
                await self._store.add([health for _, health in taken])
        except HealthUnknownError as error:
            self._unknown_outcomes.append((error.receipt, taken))
            raise
        except StorePoisonError:
            await self._add_by_halves(taken)
        except StoreError:
            self._restore(taken)
            raise
        else:
            self._saved(taken)

    async def _with_rows(self, taken: _Taken) -> _Taken:
        """Return the changes of devices that have a row, or that get one now. Raises StoreError.

        A handshake gives a device its row. One that was not read, since the store was away, has none yet.
        """
        await self._new.introduce([device for device, _ in taken if not device.known])
        self._advance_generation([one for one in taken if one[0].refused])
        return [one for one in taken if not one[0].refused]

    async def _add_by_halves(self, taken: _Taken) -> None:
        """Save halves of a refused batch, so that only the device that the store refuses is left out."""
        if len(taken) == 1:
            key = taken[0][1].key
            _log.error("health_refused", tenant_id=key.tenant_id, device_id=key.device_id)
            self._saved(taken)
            return
        middle = len(taken) // 2
        try:
            await self._add(taken[:middle])
        except StoreError:
            self._restore(taken[middle:])
            raise
        await self._add(taken[middle:])

    async def _learn_outcomes(self) -> None:
        """Look up the commits of unknown outcome, before anything else is saved."""
        while self._unknown_outcomes:
            receipt, taken = self._unknown_outcomes[0]
            stored = await self._store.stored(receipt)
            if stored is None:
                raise HealthUnknownError(receipt)
            del self._unknown_outcomes[0]
            if stored:
                self._saved(taken)
            else:
                self._restore(taken)

    def _saved(self, taken: _Taken) -> None:
        self.counters.flush_rows += len(taken)
        self._advance_generation(taken)

    def _restore(self, taken: _Taken) -> None:
        for device, health in taken:
            device.restore(health)
        self._advance_generation(taken)

    def _advance_generation(self, taken: _Taken) -> None:
        self._saved_generation += 1
        for device, _ in taken:
            device.saved_generation = self._saved_generation


def _chunks(devices: list[Device]) -> Iterator[list[Device]]:
    for first in range(0, len(devices), _ROWS):
        yield devices[first : first + _ROWS]
