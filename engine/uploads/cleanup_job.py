"""Schedules the clean-up of uploads: one process at a time runs it, and every process knows its result."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import msgspec
import structlog

from engine.cluster.leases import JobLeases
from engine.runtime.metrics import Metric, counter, gauge
from engine.uploads.cleanup import OrphansRemoved, RowsCleaned, UploadCleanup

#: Rows are cleaned every 5 minutes. Orphans every hour: finding them means listing every file.
_ROWS_EVERY_S: Final = 300.0
_ORPHANS_EVERY_S: Final = 3600.0
_LOOK_S: Final = 30.0
#: The names of the two jobs among the leases.
_ROWS: Final = "uploads"
_ORPHANS: Final = "upload_orphans"
#: An operator should look into it when more uploads than this are given up.
_MAX_ABANDONED: Final = 0.2

_log = structlog.get_logger()


class CleanupCounters(msgspec.Struct):
    """What this process removed since it started. ``abandonment_ratio`` is of all, None without data."""

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
    """What the last run leaves for all processes."""

    abandonment_ratio: float | None


class CleanupJob:
    """Runs the clean-up when it is due and this process gets the lease."""

    def __init__(self, leases: JobLeases, cleanup: UploadCleanup) -> None:
        self.counters = CleanupCounters()
        self._leases = leases
        self._cleanup = cleanup
        self._alarmed = False

    async def run(self) -> None:
        """Clean up whenever it is due, until cancelled."""
        logged: str | None = None
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self.expire_and_free(_ROWS_EVERY_S)
                await self.remove_orphans(_ORPHANS_EVERY_S)
                logged = None
            except Exception as error:  # the next run does what this one left, and serving goes on
                reason = type(error).__name__
                if reason != logged:
                    _log.warning("uploads_not_cleaned", reason=reason)
                logged = reason

    async def expire_and_free(self, every_s: float) -> RowsCleaned | None:
        """Clean the rows, unless another process does or did so less than ``every_s`` ago.

        Returns:
            What was done; None if it was not due here.

        Raises:
            LeaseLostError: Another process took the lease.
            StoreError: The store failed.
        """
        async with self._leases.acquire(_ROWS, every_s) as lease:
            if lease is None:
                await self._read_report()
                return None
            cleaned = await self._cleanup.expire_and_free(lease.now_us, lease.renew)
            ratio = abandonment_ratio(cleaned)
            lease.report = msgspec.json.encode(_Report(ratio))
        self.counters.expired += cleaned.expired
        self.counters.freed += cleaned.freed
        self.counters.abandonment_ratio = ratio
        _log.info(
            "uploads_cleaned",
            expired=cleaned.expired,
            freed=cleaned.freed,
            forgotten=cleaned.forgotten,
            emptied=cleaned.emptied,
            conflicts=cleaned.conflicts,
            quarantined=cleaned.quarantined,
            left=cleaned.left,
            abandonment_ratio=ratio,
        )
        self._alarm(ratio)
        return cleaned

    async def remove_orphans(self, every_s: float) -> OrphansRemoved | None:
        """Delete bytes without a row, unless another process does or did so less than ``every_s`` ago.

        Returns:
            What was done; None if it was not due here.

        Raises:
            LeaseLostError: Another process took the lease.
            StoreError: The store failed.
            BlobsError: The bytes could not be listed.
        """
        async with self._leases.acquire(_ORPHANS, every_s) as lease:
            if lease is None:
                return None
            removed = await self._cleanup.remove_orphans(lease.now_us, lease.renew)
        self.counters.orphans += removed.orphans
        _log.info(
            "orphans_removed", orphans=removed.orphans, orphan_bytes=removed.orphan_bytes, left=removed.left
        )
        return removed

    async def _read_report(self) -> None:
        report = await self._leases.report(_ROWS)
        if report is not None:
            self.counters.abandonment_ratio = msgspec.json.decode(report, type=_Report).abandonment_ratio

    def _alarm(self, ratio: float | None) -> None:
        """Log a high ratio once, and again only after it was lower."""
        abandoned = ratio is not None and ratio > _MAX_ABANDONED
        if abandoned and not self._alarmed:
            _log.warning("uploads_abandoned", abandonment_ratio=ratio)
        self._alarmed = abandoned


def abandonment_ratio(cleaned: RowsCleaned) -> float | None:
    """Return the share of all tenants' uploads that were given up, None if none ended."""
    abandoned = sum([one.abandoned for one in cleaned.abandonment])
    ended = sum([one.finished + one.abandoned for one in cleaned.abandonment])
    return abandoned / ended if ended else None
