"""The scheduled jobs put together: for a server, and for a command that runs one now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Final

import msgspec

from compose.alerts import Alerts
from compose.monitoring import health_job
from compose.sealing.stores import FollowedSealing
from engine.cache.devices import DeviceCache
from engine.cache.tenants import TenantCache
from engine.cluster.job_scheduler import JobScheduler
from engine.cluster.jobs import JOBS, JobBody, JobKind, JobRun, in_sequence, in_thread
from engine.operate.figures.aggregation import Aggregation
from engine.operate.health_job import HealthJob
from engine.operate.reseal import Reseal
from engine.operate.retention import KeptFor, Retention
from engine.runtime.metrics import Metric, gauge
from engine.runtime.ports import Clock
from engine.runtime.schedule import Schedule
from engine.runtime.services import Service
from engine.runtime.settings import Settings
from engine.uploads.cleanup_job import RATIO, CleanupJob
from storage.embedded.servers import Services
from storage.postgres.partitions.maintenance import maintain
from storage.postgres.pool import Database
from storage.stores.audit import PostgresAudit
from storage.stores.jobs.retention import PostgresRetention
from storage.stores.jobs.runs import PostgresJobs
from storage.stores.keys.reseal import PostgresReseal
from storage.stores.monitoring.aggregation import PostgresAggregation
from storage.stores.monitoring.telemetry import PostgresTelemetry
from storage.stores.monitoring.voice import PostgresVoice
from storage.stores.tenants import PostgresTenants
from storage.stores.usage import recount

#: The rows of one statement: they are read while devices are served, and hold the loop for some milliseconds.
_WARMED_DEVICES: Final = 1000


class Jobs:
    """The jobs of one server process.

    Args:
        settings: All settings.
        at: The database, for blocking work.
        database: The database, for all else; its connections are for jobs alone.
        sealing: Opens voice events, and seals their log.
        uploads: The clean-up of uploads.
        warm: Reads what this process keeps in memory.
        clock: For rests.
        alerts: Are told each judgement.
    """

    def __init__(
        self,
        settings: Settings,
        at: Services,
        database: Database,
        sealing: FollowedSealing,
        uploads: CleanupJob,
        warm: Callable[[], Awaitable[None]],
        clock: Clock,
        alerts: Alerts,
    ) -> None:
        self._health = health = health_job(settings, database, clock, alerts)

        async def judged() -> None:
            alerts.check_seen(self._scheduler.last_success_us("monitor"))
            await health.follow()

        bodies = job_bodies(settings, at, database, sealing, uploads, health)
        times = schedules(settings)
        kinds = [JobKind(name, times[name], body) for name, body in bodies.items()]
        self._alerts = alerts
        self._uploads = uploads
        self._scheduler = JobScheduler(
            PostgresJobs(database), clock, kinds, {"warm": warm, "monitor": judged}
        )

    async def preload(self) -> None:
        """Read which runs succeeded last, and what the last judgement found. Raises StoreError."""
        await self._scheduler.preload()
        await self._health.follow()

    def services(self) -> list[Service]:
        """List the services."""
        return [Service("jobs", self._scheduler.run), *self._alerts.services()]

    def metrics(self) -> Iterator[Metric]:
        """Yield the metrics of jobs, of health, and of the clean-up of uploads."""
        yield from self._scheduler.metrics()
        yield from self._health.metrics()
        yield from self._alerts.metrics()
        yield from self._uploads.counters.metrics()
        ratio = self._scheduler.last_counts("uploads").get(RATIO)
        if ratio is not None:
            text = "The part of the last day's uploads, of all tenants, that was given up"
            yield gauge("tidemark_upload_abandonment_ratio", text, ratio)


def schedules(settings: Settings) -> dict[str, Schedule]:
    """Return when each job is due."""
    chosen = msgspec.structs.asdict(settings.jobs)
    return {name: Schedule(chosen[name], settings.jobs.timezone) for name in JOBS}


async def warm(tenants: TenantCache, devices: DeviceCache) -> None:
    """Read policies, and the devices that synced last. Raises StoreError."""
    await tenants.preload(await devices.preload(_WARMED_DEVICES))


def job_bodies(
    settings: Settings,
    at: Services,
    database: Database,
    sealing: FollowedSealing,
    uploads: CleanupJob,
    health: HealthJob,
) -> Mapping[str, JobBody]:
    """Return the work of each job.

    Args:
        settings: All settings.
        at: The database, for blocking work.
        database: The database, for all else, as the role of jobs.
        sealing: Opens voice events, and seals their log.
        uploads: The clean-up of uploads.
        health: The judgement.
    """
    jobs = PostgresJobs(database)
    kept_for = KeptFor(
        settings.records.tombstone_data_h * 3600,
        settings.retention.conflict_log_d * 86_400.0,
        settings.retention.quarantine_d * 86_400.0,
    )
    lifetime_h, events_d = settings.idempotency.lifetime_h, settings.retention.events_d

    async def forget_runs(run: JobRun) -> None:
        run.count("job_runs", await jobs.forget())

    async def forget_events(run: JobRun) -> None:
        if kept_d := settings.retention.audit_d:
            before_us = run.now_us - kept_d * 86_400_000_000
            await run.pages("audit_events", partial(PostgresAudit(database).forget, before_us))

    async def forget_telemetry(run: JobRun) -> None:
        if kept_d := settings.retention.telemetry_d:
            before_us, store = run.now_us - kept_d * 86_400_000_000, PostgresTelemetry(database)
            await run.pages("telemetry", partial(store.delete, before_us))
            await run.pages("telemetry_names", partial(store.delete_names, before_us))

    async def read_again(_: JobRun) -> None:
        await PostgresTenants(database).have_read_again()

    return {
        "uploads": uploads.expire_and_free,
        "cleanup": in_sequence(
            in_thread(partial(maintain, at.owner, lifetime_h, events_d)),
            Retention(PostgresRetention(database), kept_for),
            uploads.remove_orphans,
            forget_runs,
            forget_events,
            forget_telemetry,
            in_thread(lambda: {"tenants_counted": recount(at.jobs)}),
        ),
        "aggregate": Aggregation(PostgresAggregation(database), PostgresVoice(database, sealing), events_d),
        "warm": read_again,
        "monitor": health,
        "reseal": Reseal(PostgresReseal(database, sealing, sealing.refresh)),
    }
