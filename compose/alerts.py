"""Alerts put together: the receivers of the settings or of a command, and what tells them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

from compose.configuration import AlertSecrets, alert_secrets
from engine.operate.alert_delivery import AlertDelivery, AlertNotSentError
from engine.operate.database_alert import DatabaseAlert
from engine.operate.health import HealthCheck
from engine.operate.monitor.alerts import Alert, AlertThreshold
from engine.operate.monitor.report import Judgement
from engine.operate.rows import AlertTargets, AlertTest, CheckResult
from engine.runtime.metrics import Metric
from engine.runtime.ports import Clock, StoreError
from engine.runtime.services import Service
from engine.runtime.settings import Settings, SettingsError
from handlers.operate.webhooks import SlackWebhook, Webhook, signing_key, url_fault
from storage.postgres.pool import Database
from storage.stores.monitoring.alerts import PostgresAlerts

#: The names of the two URLs, as settings and as options.
_SETTINGS: Final = ("alerts.webhook_url", "alerts.slack_webhook_url")
_OPTIONS: Final = ("--webhook", "--slack-webhook")
#: How often a process looks whether the database answers.
_LOOK_S: Final = 5.0


class Alerts:
    """What tells the receivers, in one process.

    Args:
        senders: The receivers.
        database: What they know, and the database whose absence they are told of.
        clock: The time.
    """

    def __init__(self, senders: Sequence[Webhook], database: Database, clock: Clock) -> None:
        self.delivery = AlertDelivery(PostgresAlerts(database), senders, clock)
        self._database_alert = DatabaseAlert(senders, clock, self.delivery.counts)
        self._database = database
        self._on = bool(senders)

    def services(self) -> list[Service]:
        """List the services; none without a receiver."""
        if not self._on:
            return []
        return [Service("alerts", self.delivery.run), Service("database_alert", self.watch)]

    def metrics(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield from self.delivery.metrics()

    def recorded(self, first: bool, now_us: int) -> None:  # noqa: FBT001  # as ServerProcess tells it
        """Watch the database if this is the first of all server processes."""
        if first != self._database_alert.watches:
            self._database_alert.watch(now_us if first else None)

    async def judged(self, judgement: Judgement) -> None:
        """Note a check of all tenants, as one of several server processes. Raises StoreError."""
        await self.delivery.checked(judgement, everything=True)

    def check_seen(self, at_us: int) -> None:
        """Note when some server process made a check, by the database's clock."""
        if self._database_alert.watches:
            self._database_alert.watch(at_us)

    async def note(self, judgement: Judgement, *, everything: bool) -> None:
        """Note a check of a command, which watches the database by itself.

        Args:
            judgement: The check.
            everything: Whether all tenants were judged.

        Raises:
            StoreError: The receivers hear of it after the next check.
        """
        self._database_alert.watch(int(judgement.reports[0].judged_at.timestamp() * 1e6))
        await self.delivery.checked(judgement, everything=everything)

    async def watch(self) -> None:
        """Look again and again whether the database answers, until cancelled."""
        while True:
            await self._database_alert.observe(await self._fault())
            await asyncio.sleep(_LOOK_S)

    async def _fault(self) -> str | None:
        try:
            await self._database.query("SELECT 1")
        except StoreError as error:
            return str(error)
        return None


def receivers(settings: Settings) -> list[Webhook]:
    """Return the receivers of the settings. Raises SettingsError."""
    return _receivers(settings, alert_secrets(settings), settings.alerts.threshold, _SETTINGS)


def named_receivers(settings: Settings, targets: AlertTargets) -> list[Webhook]:
    """Return the receivers that a command names, or else those of the settings. Raises SettingsError.

    What is bad in one window, or by one threshold, is over in another. So a receiver that hears of several is
    a receiver of its own for each.
    """
    secrets = alert_secrets(settings)
    threshold = targets.threshold or settings.alerts.threshold
    if not (targets.webhook or targets.slack_webhook):
        return _receivers(settings, secrets, threshold, _SETTINGS)
    secrets = AlertSecrets(targets.webhook or "", secrets.webhook_secret, targets.slack_webhook or "")
    found = _receivers(settings, secrets, threshold, _OPTIONS)
    for one in found:
        one.target += f":{targets.window_s}:{threshold}"
    return found


def _receivers(
    settings: Settings, secrets: AlertSecrets, threshold: AlertThreshold, names: tuple[str, str]
) -> list[Webhook]:
    """Return the receivers; ``names`` are of both URLs, where they were given. Raises SettingsError."""
    private = settings.alerts.private_addresses
    for name, url in zip(names, (secrets.webhook_url, secrets.slack_webhook_url), strict=True):
        fault = url_fault(url) if url else None
        if fault is not None:
            raise SettingsError(f"{name}: the URL {fault}: correct it", key=name)
    try:
        signing_key(secrets.webhook_secret)
    except ValueError:
        raise SettingsError(
            'alerts.webhook_secret: after "whsec_" base64 is wanted: correct it', key="alerts.webhook_secret"
        ) from None
    found: list[Webhook] = []
    if secrets.webhook_url:
        found.append(
            Webhook(secrets.webhook_url, threshold, secrets.webhook_secret, private_addresses=private)
        )
    if secrets.slack_webhook_url:
        found.append(SlackWebhook(secrets.slack_webhook_url, threshold, private_addresses=private))
    return found


class AlertingMonitor:
    """``engine.operate.ports.AlertingMonitor``: the monitor of a command.

    Args:
        check: Judges.
        senders: The receivers that are told.
        database: What they know.
        clock: The time.
    """

    def __init__(
        self, check: HealthCheck, senders: Sequence[Webhook], database: Database, clock: Clock
    ) -> None:
        self._check = check
        self._alerts = Alerts(senders, database, clock)

    async def check(self, tenant: str | None, window_s: int) -> Judgement:
        """Judge, and note what the receivers are to be told."""
        judgement = await self._check.check(tenant, window_s)
        await self._alerts.note(judgement, everything=tenant is None)
        return judgement

    async def send(self, patience_s: float) -> int:
        """Send what is due; return how many alerts are left."""
        return await self._alerts.delivery.send_all(patience_s)

    async def keep_sending(self) -> None:
        """Send whatever becomes due, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._alerts.delivery.run())
            group.create_task(self._alerts.watch())


async def send_tests(senders: Sequence[Webhook]) -> list[AlertTest]:
    """Send one alert to each receiver, whatever it knows."""
    alert = Alert(
        id=f"test-{uuid4().hex}",
        kind="fired",
        metric="test",
        tenant=None,
        severity="info",
        current_value=None,
        threshold=None,
        message="this is a test of alerts: nothing is wrong",
        timestamp=datetime.now(UTC),
    )
    return list(await asyncio.gather(*(_tested(sender, alert) for sender in senders)))


async def _tested(sender: Webhook, alert: Alert) -> AlertTest:
    try:
        await sender.send(alert)
    except AlertNotSentError as error:
        return AlertTest(sender.kind, str(error))
    return AlertTest(sender.kind, None)


def alert_findings(settings: Settings) -> Iterator[CheckResult]:
    """Look at the receivers of alerts for ``run.py doctor``; nothing is sent."""
    try:
        found = receivers(settings)
    except SettingsError as error:
        yield CheckResult("fault", "alerts", str(error), "correct it, and try run.py monitor --test-alert")
        return
    if not found:
        yield CheckResult("ok", "alerts", "no receiver is set: nobody is told of what the monitor finds")
    for sender in found:
        yield _examined(sender, signed=bool(alert_secrets(settings).webhook_secret))


def _examined(sender: Webhook, *, signed: bool) -> CheckResult:
    fault = sender.address_fault()
    if fault is not None:
        return CheckResult("fault", "alerts", f"{sender.kind}: {fault}", "correct the URL, or [alerts]")
    if not sender.encrypted:
        found = f"{sender.kind}: http:// sends alerts readable for everybody on the way"
        return CheckResult("warning", "alerts", found, "use https://")
    if isinstance(sender, SlackWebhook) or signed:
        return CheckResult("ok", "alerts", f"{sender.kind}: set; run.py monitor --test-alert sends one")
    found = f"{sender.kind}: alerts are not signed, so anybody can send the receiver some"
    return CheckResult("warning", "alerts", found, "set alerts.webhook_secret")
