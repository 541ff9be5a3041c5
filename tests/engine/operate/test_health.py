"""Counts of a window: what is asked of the stores, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from engine.model.minutes import TenantMinutes
from engine.operate.health import HealthCheck
from engine.operate.monitor.judge import DevicesSeen
from engine.operate.rows import UploadsEnded
from tests.engine.operate.monitor.test_judge import MONITOR, minute

_MINUTE_US, _DAY_US = 60_000_000, 86_400_000_000
#: 42 seconds of a minute have passed.
NOW_US = 1_000 * _DAY_US + 12 * _MINUTE_US + 42_000_000


class World:
    """Stores that know acme and globex, and what they were asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    async def windows(self, tenant: str | None, since_us: int, until_us: int) -> list[TenantMinutes]:
        """Give minutes of acme, and of no tenant."""
        self.asked.append(("minutes", tenant, since_us, until_us))
        found = [TenantMinutes("acme", minute(30)), TenantMinutes(None, minute(refused=10))]
        return [one for one in found if tenant in (None, one.tenant)]

    async def uploads_ended(self, tenant: str | None, since_us: int) -> list[UploadsEnded]:
        """Give uploads of globex."""
        self.asked.append(("uploads", tenant, since_us))
        return [one for one in [UploadsEnded("globex", 15, 5)] if tenant in (None, one.tenant)]

    async def devices_seen(self, tenant: str | None) -> Mapping[str | None, DevicesSeen]:
        """Give devices of both."""
        self.asked.append(("devices", tenant))
        found: dict[str | None, DevicesSeen] = {"acme": DevicesSeen(2, 180, 30, 0), "globex": DevicesSeen()}
        return {name: seen for name, seen in found.items() if tenant in (None, name)}

    def now_us(self) -> int:
        """Return the time."""
        return NOW_US

    def monotonic_s(self) -> float:
        """Return 0."""
        return 0.0

    def health(self) -> HealthCheck:
        """Return a check of these stores."""
        return HealthCheck(self, self, MONITOR, self)


async def test_health_check_window_begins_with_a_whole_minute_and_uploads_a_day_ago() -> None:
    world = World()
    judged = await world.health().check(None, 900)
    since_us = NOW_US - 42_000_000 - 15 * _MINUTE_US
    assert world.asked == [
        ("minutes", None, since_us, NOW_US),
        ("uploads", None, NOW_US - _DAY_US),
        ("devices", None),
    ]
    together = judged.reports[0]
    assert (together.judged_at.timestamp() * 1e6, together.window_s) == (NOW_US, 900)
    assert together.values.failed_per_minute == pytest.approx(10 / (15 + 42 / 60))


async def test_health_check_of_all_has_every_tenant_with_its_own_facts() -> None:
    together, acme, globex = (await World().health().check(None, 900)).reports
    assert (together.tenant, acme.tenant, globex.tenant) == (None, "acme", "globex")
    assert (together.values.syncs, together.values.refused, together.values.devices) == (40, 10, 2)
    assert (acme.values.syncs, acme.values.refused, acme.values.device_health) == (30, 0, 90)
    assert (acme.status, acme.values.upload_abandonment) == ("healthy", None)
    assert (globex.values.syncs, globex.values.upload_abandonment, globex.status) == (0, 0.25, "degraded")


async def test_health_check_of_one_tenant_asks_for_it_alone() -> None:
    world = World()
    judged = await world.health().check("globex", 3600)
    assert [asked[1] for asked in world.asked] == ["globex"] * 3
    (report,) = judged.reports
    assert (report.tenant, judged.status, report.values.uploads_abandoned) == ("globex", "degraded", 5)
