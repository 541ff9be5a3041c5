"""The scheduled clean-up, run once by a command, with a committer of its own."""

from __future__ import annotations

import asyncio
import uuid

from compose.command_commit import OnFeedsAdvanced, command_committer
from compose.server import SystemClock
from compose.uploads import cleanup_job, open_blobs
from engine.cache.minutes import Minutes
from engine.cluster.leases import LEASE_S, LeaseLostError
from engine.operate.ports import RefusedError
from engine.operate.rows import CleanedUp, TenantAbandonment
from engine.runtime.ports import StoreError
from engine.runtime.settings import Settings
from engine.uploads.blobs import BlobsError
from engine.uploads.cleanup import OrphansRemoved, RowsCleaned
from engine.uploads.cleanup_job import abandonment_ratio
from storage.postgres.partitions import drop_events
from storage.postgres.pool import Database
from storage.stores.commit.store import PostgresStore
from storage.stores.minutes import PostgresMinutes


class CleanupAdmin:
    """``engine.operate.ports.CleanupAdmin``. ``on_feeds_advanced`` is called when something was committed."""

    def __init__(self, dsn: str, settings: Settings, on_feeds_advanced: OnFeedsAdvanced) -> None:
        self._dsn = dsn
        self._settings = settings
        self._on_feeds_advanced = on_feeds_advanced

    async def clean_up(self) -> CleanedUp:
        """Clean up, also if it was done a moment ago."""
        try:
            tidied, swept = await self._cleaned_up()
        except LeaseLostError:
            raise RefusedError("another process went on with it: this one stood still for too long") from None
        except BlobsError as error:
            raise StoreError(f"the files cannot be looked at now: {error}") from None
        event_days = await asyncio.to_thread(drop_events, self._dsn, self._settings.retention.events_d)
        return CleanedUp(
            tidied.expired,
            tidied.freed,
            tidied.forgotten,
            tidied.emptied,
            tidied.conflicts,
            tidied.quarantined,
            event_days,
            swept.orphans,
            swept.orphan_bytes,
            tidied.left + swept.left,
            abandonment_ratio(tidied),
            [
                TenantAbandonment(one.tenant, one.finished, one.abandoned, one.ratio)
                for one in tidied.abandonment
            ],
        )

    async def _cleaned_up(self) -> tuple[RowsCleaned, OrphansRemoved]:
        settings = self._settings
        database, writes = Database(self._dsn, 1), Database(self._dsn, 1)
        blobs = open_blobs(settings)
        tenants: set[int] = set()
        store = PostgresStore(writes, settings.idempotency.lifetime_h)
        committer = command_committer(store, settings, {}, tenants)
        clock = SystemClock()
        minutes = Minutes(PostgresMinutes(database), clock, lambda: uuid.uuid4().hex)
        job = cleanup_job(settings, database, blobs, committer, clock, minutes)
        committing = asyncio.create_task(committer.run())
        try:
            tidied = await job.expire_and_free(0)
            swept = None if tidied is None else await job.remove_orphans(0)
        finally:
            await minutes.drain()
            committing.cancel()
            await asyncio.wait([committing])
            await database.close()
            await writes.close()
            blobs.close()
            if tenants:
                self._on_feeds_advanced(tenants)
        if tidied is None or swept is None:
            raise RefusedError(
                f"another process is at it: try again when it is done, {LEASE_S} s from now if it was killed"
            )
        return tidied, swept
