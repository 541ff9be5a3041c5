"""Gathers the counts of a window from the stores, and has them judged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from engine.model.minutes import MINUTE_US, Minute, TenantMinutes
from engine.operate.monitor.judge import DevicesSeen, Window, WindowCounts, judge, judge_all, judgement
from engine.operate.monitor.report import Judgement
from engine.operate.ports import MinuteReads, MonitorReads
from engine.operate.rows import UploadsEnded
from engine.runtime.ports import Clock
from engine.runtime.settings import Monitor

#: An upload is given up a day after its last byte: in minutes hardly any ends.
_DAY_US: Final = 86_400_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class HealthCheck:
    """Judges tenants by what all processes stored.

    Args:
        minutes: The minutes.
        reads: Devices and uploads.
        monitor: The thresholds.
        clock: The end of a window.
    """

    def __init__(self, minutes: MinuteReads, reads: MonitorReads, monitor: Monitor, clock: Clock) -> None:
        self._minutes = minutes
        self._reads = reads
        self._monitor = monitor
        self._clock = clock

    async def check(self, tenant: str | None, window_s: int) -> Judgement:
        """Judge one tenant, or all.

        Raises:
            RefusedError: There is no such tenant.
            StoreError: The database is away.
        """
        now_us = self._clock.now_us()
        since_us = now_us - window_s * 1_000_000
        since_us -= since_us % MINUTE_US
        minutes = await self._minutes.windows(tenant, since_us, now_us)
        ended = await self._reads.uploads_ended(tenant, now_us - _DAY_US)
        devices = await self._reads.devices_seen(tenant)
        counts = gathered(tenant, minutes, ended, devices)
        ends_at = _EPOCH + timedelta(microseconds=now_us)
        window = Window(ends_at, window_s, (now_us - since_us) / 1_000_000)
        if tenant is not None:
            return judgement([judge(next(counts), self._monitor.thresholds(tenant), window)])
        steps = judge_all(counts, self._monitor, window)
        while True:  # a thousand tenants take 60 ms
            try:
                next(steps)
            except StopIteration as done:
                judged: Judgement = done.value
                return judged
            await asyncio.sleep(0)


def gathered(
    tenant: str | None,
    minutes: Iterable[TenantMinutes],
    ended: Iterable[UploadsEnded],
    devices: Mapping[str | None, DevicesSeen],
) -> Iterator[WindowCounts]:
    """Yield the counts of one tenant, or those of each tenant that has any."""
    summed = {one.tenant: one.minutes for one in minutes}
    uploads: dict[str | None, UploadsEnded] = {one.tenant: one for one in ended}
    for name in summed.keys() | uploads.keys() | devices.keys() if tenant is None else {tenant}:
        upload = uploads.get(name)
        yield WindowCounts(
            name,
            summed.get(name) or Minute(),
            0 if upload is None else upload.finished,
            0 if upload is None else upload.abandoned,
            devices.get(name) or DevicesSeen(),
        )
