"""Scheduled jobs, listed and run once by a command, with a committer of its own."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple

from compose.alerts import Alerts, receivers
from compose.command_commit import OnFeedsAdvanced, command_committer
from compose.jobs import job_bodies, schedules
from compose.monitoring import health_job
from compose.sealing.stores import FollowedSealing, open_sealing
from compose.server import SystemClock
from compose.uploads import cleanup_job, open_blobs
from engine.cache.minutes import Minutes
from engine.cluster.jobs import HELD_S, JOBS, Counts, RunLostError, perform
from engine.operate.ports import RefusedError
from engine.operate.rows import CleanedUp, JobSummary, TenantAbandonment
from engine.runtime.ports import StoreError
from engine.runtime.settings import Settings
from engine.uploads.blobs import BlobsError
from engine.uploads.cleanup_job import RATIO, CleanupJob
from storage.embedded.servers import Services
from storage.postgres.pool import Database
from storage.stores.commit.store import PostgresStore
from storage.stores.jobs.runs import PostgresJobs
from storage.stores.monitoring.minutes import PostgresMinutes

_Watch = Callable[[Counts], None]


class _Opened(NamedTuple):
    """What jobs share: their database, what seals, and the clean-up of uploads."""

    database: Database
    sealing: FollowedSealing
    uploads: CleanupJob


class JobAdmin:
    """``engine.operate.ports.JobAdmin``.

    Args:
        at: The database, for what a job reads and writes.
        database: The database, for the runs of jobs.
        settings: Those of a server.
        on_feeds_advanced: Called when something was committed.
    """

    def __init__(
        self, at: Services, database: Database, settings: Settings, on_feeds_advanced: OnFeedsAdvanced
    ) -> None:
        self._at = at
        self._settings = settings
        self._store = PostgresJobs(database)
        self._on_feeds_advanced = on_feeds_advanced

    async def jobs(self) -> list[JobSummary]:
        """List the jobs."""
        timezone = self._settings.jobs.timezone
        now, last = await self._store.last_runs(list(JOBS))
        now_us = int(now.timestamp() * 1e6)
        return [
            JobSummary(
                name,
                schedule.expression,
                timezone,
                datetime.fromtimestamp(schedule.next(now_us) / 1e6, UTC),
                last.get(name),
            )
            for name, schedule in schedules(self._settings).items()
        ]

    async def run(self, job: str, watch: _Watch) -> Counts:
        """Run a job now."""
        async with self._open() as opened:
            return await self._run(job, opened, watch)

    async def clean_up(self, watch: _Watch) -> CleanedUp:
        """Run both clean-ups now."""
        async with self._open() as opened:
            rows = await self._run("uploads", opened, watch)
            others = await self._run("cleanup", opened, watch)
            abandonment = opened.uploads.abandonment
        numbers = {name: int(number) for name, number in {**others, **rows}.items() if number is not None}
        left = int(rows.get("left") or 0) + int(others.get("left") or 0)
        kept = [name for name in CleanedUp.__struct_fields__ if name not in ("left", RATIO, "abandonment")]
        return CleanedUp(
            **{name: numbers.get(name, 0) for name in kept},
            left=left,
            abandonment_ratio=rows.get(RATIO),
            abandonment=[
                TenantAbandonment(one.tenant, one.finished, one.abandoned, one.ratio) for one in abandonment
            ],
        )

    async def _run(self, job: str, opened: _Opened, watch: _Watch) -> Counts:
        database, sealing, uploads = opened
        clock = SystemClock()
        alerts = Alerts(receivers(self._settings), database, clock)
        health = health_job(self._settings, database, clock, alerts)
        body = job_bodies(self._settings, self._at, database, sealing, uploads, health)[job]
        begun = await self._store.begin(job, None)
        if begun is None:
            raise RefusedError(
                f"another process is at it: try again when it is done, {HELD_S} s from now if it was killed"
            )
        try:
            return await perform(self._store, clock, begun, body, watch)
        except RunLostError:
            raise RefusedError("another process went on with it: this one stood still for too long") from None
        except BlobsError as error:
            raise StoreError(f"the files cannot be looked at now: {error}") from None

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[_Opened]:
        """Open the database of the jobs, and the clean-up of uploads, with what it commits to."""
        settings = self._settings
        database, writes = Database(self._at.jobs, 1), Database(self._at.dsn, 1)
        blobs = open_blobs(settings)
        tenants: set[int] = set()
        sealing = await open_sealing(settings, database)
        store = PostgresStore(writes, settings.idempotency.lifetime_h, sealing)
        committer = command_committer(store, settings, sealing, {}, tenants)
        minutes = Minutes(PostgresMinutes(database), SystemClock(), lambda: uuid.uuid4().hex)
        committing = asyncio.create_task(committer.run())
        try:
            yield _Opened(database, sealing, cleanup_job(settings, database, blobs, committer, minutes))
        finally:
            await minutes.drain()
            committing.cancel()
            await asyncio.wait([committing])
            await database.close()
            await writes.close()
            blobs.close()
            if tenants:
                self._on_feeds_advanced(tenants)
