"""Goes through the checklist for a deployment: what doctor looks at, and what only a deployment has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from compose.alerts import receivers, send_tests
from compose.configuration import bus_url
from compose.doctor.backup import backup_ended_at, backup_finding
from compose.doctor.edge import certificate_finding, websocket_finding
from compose.doctor.opened import with_database
from compose.doctor.verify import asked, shape_and_plans
from engine.operate.checklist import DeviceAddress, PointState, gone_through
from engine.operate.rows import CheckResult
from engine.runtime.settings import Settings, SettingsError
from handlers.commands.deployment import DeploymentError
from handlers.http.tokens import UnusableKeyError
from storage.bus.checkup import redis_clock_findings
from storage.embedded.servers import Services
from storage.postgres.checkup.deployment import archive_finding, pooler_finding, read_archive


def go_through(
    settings: Settings, findings: list[CheckResult], at: DeviceAddress | None, sign: Callable[[], str] | None
) -> list[PointState]:
    """Return the state of each point.

    Args:
        settings: The settings.
        findings: What doctor found.
        at: The address of devices, if it was given.
        sign: Signs a token for a handshake to its end; None without a tenant.
    """
    migrated = any(one.subject == "epoch" for one in findings)
    reached = any(one.subject == "durability" for one in findings)
    more = [
        *(_database(settings, migrated=migrated) if reached else ()),
        *_clock_of_redis(settings),
        *(() if at is None else _edge(at, sign)),
        *_alert_tests(settings, findings),
    ]
    return gone_through([*findings, *more])


def _database(settings: Settings, *, migrated: bool) -> Iterator[CheckResult]:
    place = Path(settings.data.dir)
    ended_at = backup_ended_at(place)

    def kept(at: Services) -> Iterator[CheckResult]:
        archive = read_archive(at.owner)
        if archive.archives or ended_at is not None:
            yield archive_finding(archive)
        archived = archive.archives or archive.followers > 0
        yield backup_finding(place, ended_at, datetime.now(UTC), archived=archived)

    def look(at: Services, *, migrates_itself: bool) -> Iterator[CheckResult]:
        del migrates_itself
        yield from asked(lambda: kept(at))
        yield from asked(lambda: pooler_finding((at.dsn, at.jobs)))
        if migrated:
            yield from shape_and_plans(settings, at)

    return with_database(settings, look)


def _clock_of_redis(settings: Settings) -> Iterator[CheckResult]:
    with suppress(SettingsError, ValueError):  # doctor has told of these
        url = bus_url(settings)
        if url:
            yield from redis_clock_findings(url)


def _edge(at: DeviceAddress, sign: Callable[[], str] | None) -> Iterator[CheckResult]:
    yield certificate_finding(at)
    try:
        yield asyncio.run(websocket_finding(at, sign))
    except (DeploymentError, UnusableKeyError) as error:
        remedy = "let it sign, or leave --tenant out"
        yield CheckResult("not checked", "websocket", f"no token was signed: {error}", remedy)


def _alert_tests(settings: Settings, findings: list[CheckResult]) -> Iterator[CheckResult]:
    """Send a test to each receiver, if doctor finds nothing wrong with it."""
    if any(one.subject == "alerts" and one.level == "fault" for one in findings):
        return
    known = receivers(settings)
    if not known:
        remedy = "set alerts.webhook_url_file, or watch /metrics by Prometheus"
        yield CheckResult("not checked", "alert test", "no receiver is set: nobody is told", remedy)
    for sent in asyncio.run(send_tests(known)):
        if sent.fault is None:
            yield CheckResult("ok", "alert test", f"{sent.target}: took the test")
        else:
            remedy = "see that it runs and that the URL is right, then try run.py monitor --test-alert"
            yield CheckResult("fault", "alert test", f"{sent.target}: {sent.fault}", remedy)
