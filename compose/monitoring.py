"""The monitor put together: for commands, and for the processes of a server."""

from __future__ import annotations

from engine.operate.health import HealthCheck
from engine.operate.health_job import HealthJob
from engine.operate.rows import AlertTargets
from engine.runtime.ports import Clock
from engine.runtime.settings import Settings
from handlers.commands.deployment import DeploymentError
from storage.postgres.pool import Database
from storage.stores.minutes import PostgresMinutes
from storage.stores.monitoring.facts import PostgresMonitorReads
from storage.stores.monitoring.health import PostgresHealth


def health_check(settings: Settings, database: Database, clock: Clock) -> HealthCheck:
    """Return what judges the tenants of a database."""
    minutes, reads = PostgresMinutes(database), PostgresMonitorReads(database)
    return HealthCheck(minutes, reads, settings.monitor, clock)


def health_job(settings: Settings, database: Database, clock: Clock) -> HealthJob:
    """Return the scheduled judgement of one process."""
    check = health_check(settings, database, clock)
    return HealthJob(
        check,
        PostgresHealth(database),
        clock,
        settings.monitor.window_min * 60,
        by_tenant=settings.metrics.tenants,
    )


def refuse_targets(targets: AlertTargets) -> None:
    """Refuse targets of alerts. Raises DeploymentError."""
    if targets.webhook is not None or targets.slack_webhook is not None:
        raise DeploymentError("this version sends no alerts: leave out --webhook and --slack-webhook")
