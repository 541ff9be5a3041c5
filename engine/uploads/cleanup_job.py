"""The clean-up of uploads as bodies of jobs, and what this process counted of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import structlog

from engine.cluster.jobs import JobRun
from engine.runtime.metrics import Metric, counter
from engine.uploads.cleanup import Abandonment, OrphansRemoved, RowsCleaned, UploadCleanup

#: An operator should look into it when more uploads than this are given up.
_MAX_ABANDONED: Final = 0.2
#: The name of the ratio among the counts of a run.
RATIO: Final = "abandonment_ratio"

_log = structlog.get_logger()


class CleanupCounters(msgspec.Struct):
    """What this process removed since it started."""

    expired: int = 0
    freed: int = 0
    orphans: int = 0

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts."""
        yield counter(
            "tidemark_uploads_expired", "Uploads given up, as the clean-up found them", self.expired
        )
        yield counter("tidemark_upload_files_freed", "Files removed after their records", self.freed)
        yield counter("tidemark_upload_orphans_removed", "Drafts and files without a row", self.orphans)


class CleanupJob:
    """The bodies of two jobs. ``abandonment`` is as of the last run in this process, by tenant."""

    def __init__(self, cleanup: UploadCleanup) -> None:
        self.counters = CleanupCounters()
        self.abandonment: list[Abandonment] = []
        self._cleanup = cleanup
        self._alarmed = False

    async def expire_and_free(self, run: JobRun) -> None:
        """Clean the rows. Raises StoreError."""

        async def after_page(cleaned: RowsCleaned) -> None:
            run.counts.update(_numbers(cleaned))
            await run.rest()

        cleaned = await self._cleanup.expire_and_free(run.now_us, after_page)
        self.abandonment = cleaned.abandonment
        ratio = abandonment_ratio(cleaned.abandonment)
        run.counts.update({**_numbers(cleaned), RATIO: ratio})
        self.counters.expired += cleaned.expired
        self.counters.freed += cleaned.freed
        self._alarm(ratio)

    async def remove_orphans(self, run: JobRun) -> None:
        """Delete bytes without a row.

        Raises:
            StoreError: The store failed.
            BlobsError: The bytes could not be listed.
        """

        async def after_page(removed: OrphansRemoved) -> None:
            run.counts.update(msgspec.structs.asdict(removed))
            await run.rest()

        removed = await self._cleanup.remove_orphans(run.now_us, after_page)
        run.counts.update(msgspec.structs.asdict(removed))
        self.counters.orphans += removed.orphans

    def _alarm(self, ratio: float | None) -> None:
        """Log a high ratio once, and again only after it was lower."""
        abandoned = ratio is not None and ratio > _MAX_ABANDONED
        if abandoned and not self._alarmed:
            _log.warning("uploads_abandoned", abandonment_ratio=ratio)
        self._alarmed = abandoned


def abandonment_ratio(abandonment: Sequence[Abandonment]) -> float | None:
    """Return the share of all tenants' uploads that were given up, None if none ended."""
    abandoned = sum([one.abandoned for one in abandonment])
    ended = sum([one.finished + one.abandoned for one in abandonment])
    return abandoned / ended if ended else None


def _numbers(cleaned: RowsCleaned) -> dict[str, float | None]:
    return {name: getattr(cleaned, name) for name in ("expired", "freed", "forgotten", "left")}
