"""The monitor put together: for commands, and for the processes of a server."""

from __future__ import annotations

from compose.alerts import Alerts
from engine.operate.health import HealthCheck
from engine.operate.health_job import HealthJob
from engine.runtime.ports import Clock
from engine.runtime.settings import Settings
from storage.postgres.pool import Database
from storage.stores.monitoring.health import PostgresHealth
from storage.stores.monitoring.minutes import PostgresMinutes
from storage.stores.monitoring.reads import PostgresMonitorReads


def health_check(settings: Settings, database: Database, clock: Clock) -> HealthCheck:
    """Return what judges the tenants of a database."""
    minutes, reads = PostgresMinutes(database), PostgresMonitorReads(database)
    return HealthCheck(minutes, reads, settings.monitor, clock)


def health_job(settings: Settings, database: Database, clock: Clock, alerts: Alerts) -> HealthJob:
    """Return the scheduled judgement of one process."""
    check = health_check(settings, database, clock)
    return HealthJob(
        check,
        PostgresHealth(database),
        clock,
        settings.monitor.window_min * 60,
        alerts.judged,
        by_tenant=settings.metrics.tenants,
    )
