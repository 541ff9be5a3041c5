"""Gathers the facts of a window from the stores, and has them judged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from engine.model.minutes import MINUTE_US, TenantMinutes
from engine.operate.monitor.judge import DevicesSeen, Facts, Window, judge, judge_all, judgement
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
        facts = gathered(tenant, minutes, ended, devices)
        ends_at = _EPOCH + timedelta(microseconds=now_us)
        window = Window(ends_at, window_s, (now_us - since_us) / 1_000_000)
        if tenant is not None:
            return judgement([judge(facts[0], self._monitor.thresholds(tenant), window)])
        # Of a thousand tenants this takes a tenth of a second, which no event loop has.
        return await asyncio.to_thread(judge_all, facts, self._monitor, window)


def gathered(
    tenant: str | None,
    minutes: Iterable[TenantMinutes],
    ended: Iterable[UploadsEnded],
    devices: dict[str, DevicesSeen],
) -> list[Facts]:
    """Return the facts of one tenant, or those of each tenant that has any."""
    facts: dict[str | None, Facts] = {} if tenant is None else {tenant: Facts(tenant)}
    replace = msgspec.structs.replace
    for one in minutes:
        facts[one.tenant] = Facts(one.tenant, one.minutes)
    for upload in ended:
        facts[upload.tenant] = replace(
            facts.get(upload.tenant) or Facts(upload.tenant),
            uploads_finished=upload.finished,
            uploads_abandoned=upload.abandoned,
        )
    for name, seen in devices.items():
        facts[name] = replace(facts.get(name) or Facts(name), devices=seen)
    return list(facts.values())
