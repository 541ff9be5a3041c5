"""When uploads are cleaned up, by one process for all of them, and what all of them know of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import msgspec
import structlog

from engine.cluster.leases import JobLeases
from engine.runtime.metrics import Metric, counter, gauge
from engine.uploads.cleanup import OrphansRemoved, RowsCleaned, UploadCleanup

#: Rows are gone over often; to go over the bytes is to read the names of all files, for what is a day old.
_TIDY_EVERY_S: Final = 300.0
_SWEEP_EVERY_S: Final = 3600.0
_LOOK_S: Final = 30.0
_TIDY: Final = "uploads"
_SWEEP: Final = "upload_orphans"
#: More than this is given up, and somebody should know.
_MOST_ABANDONED: Final = 0.2

_log = structlog.get_logger()


class CleanupCounters(msgspec.Struct):
    """What this process removed since it started; ``abandonment_ratio`` is of all, None without data."""

    expired: int = 0
    freed: int = 0
    orphans: int = 0
    abandonment_ratio: float | None = None

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts, and the ratio if it is known."""
        yield counter(
            "tidemark_uploads_expired", "Uploads given up, as the clean-up found them", self.expired
        )
        yield counter("tidemark_upload_files_freed", "Files removed after their records", self.freed)
        yield counter("tidemark_upload_orphans_removed", "Drafts and files without a row", self.orphans)
        if self.abandonment_ratio is not None:
            text = "The part of the last day's uploads, of all tenants, that was given up"
            yield gauge("tidemark_upload_abandonment_ratio", text, self.abandonment_ratio)


class _Report(msgspec.Struct):
    """What the last lease leaves for all processes."""

    abandonment_ratio: float | None


class CleanupJob:
    """Takes this process's leases."""

    def __init__(self, leases: JobLeases, cleanup: UploadCleanup) -> None:
        self.counters = CleanupCounters()
        self._leases = leases
        self._cleanup = cleanup
        self._alarmed = False

    async def run(self) -> None:
        """Take leases until cancelled."""
        told: str | None = None
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self.expire_and_free(_TIDY_EVERY_S)
                await self.remove_orphans(_SWEEP_EVERY_S)
                told = None
            except Exception as error:  # what is left now is found later, and serving goes on
                reason = type(error).__name__
                if reason != told:
                    _log.warning("uploads_not_cleaned", reason=reason)
                told = reason

    async def expire_and_free(self, every_s: float) -> RowsCleaned | None:
        """Go over the rows, if it is time and nobody else does.

        Raises StoreError, LeaseLostError.
        """
        async with self._leases.acquire(_TIDY, every_s) as lease:
            if lease is None:
                await self._follow()
                return None
            tidied = await self._cleanup.expire_and_free(lease.now_us, lease.renew)
            ratio = abandonment_ratio(tidied)
            lease.report = msgspec.json.encode(_Report(ratio))
        self.counters.expired += tidied.expired
        self.counters.freed += tidied.freed
        self.counters.abandonment_ratio = ratio
        _log.info(
            "uploads_cleaned",
            expired=tidied.expired,
            freed=tidied.freed,
            forgotten=tidied.forgotten,
            emptied=tidied.emptied,
            conflicts=tidied.conflicts,
            quarantined=tidied.quarantined,
            left=tidied.left,
            abandonment_ratio=ratio,
        )
        self._alarm(ratio)
        return tidied

    async def remove_orphans(self, every_s: float) -> OrphansRemoved | None:
        """Go over the bytes, if it is time and nobody else does.

        Raises StoreError, BlobsError, LeaseLostError.
        """
        async with self._leases.acquire(_SWEEP, every_s) as lease:
            if lease is None:
                return None
            swept = await self._cleanup.remove_orphans(lease.now_us, lease.renew)
        self.counters.orphans += swept.orphans
        _log.info("orphans_removed", orphans=swept.orphans, orphan_bytes=swept.orphan_bytes, left=swept.left)
        return swept

    async def _follow(self) -> None:
        report = await self._leases.report(_TIDY)
        if report is not None:
            self.counters.abandonment_ratio = msgspec.json.decode(report, type=_Report).abandonment_ratio

    def _alarm(self, ratio: float | None) -> None:
        """Say it once, until it is better."""
        abandoned = ratio is not None and ratio > _MOST_ABANDONED
        if abandoned and not self._alarmed:
            _log.warning("uploads_abandoned", abandonment_ratio=ratio)
        self._alarmed = abandoned


def abandonment_ratio(tidied: RowsCleaned) -> float | None:
    """Add up all tenants; None where nothing ended."""
    abandoned = sum([one.abandoned for one in tidied.abandonment])
    ended = sum([one.finished + one.abandoned for one in tidied.abandonment])
    return abandoned / ended if ended else None
