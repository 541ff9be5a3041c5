"""Cleans up uploads: expires open ones, frees files of deleted records, deletes old rows and orphaned bytes.

Rows are changed first and bytes deleted after. A crash between the two leaves bytes without a row, which are
found as orphans, and never a row without its bytes. Instants are arguments, in the store's time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final, Literal, Protocol, TypeVar

import msgspec

from engine.cache.minutes import Minutes
from engine.cluster.jobs import PAGE
from engine.commit.ports import WorkQueue
from engine.model.rows import RecordKey
from engine.model.uploads import STATES, State, UploadRef
from engine.plan.work import Attach, AttachAnswer
from engine.runtime.batching import with_retries
from engine.uploads.blobs import Blobs, StoredBlob
from engine.uploads.finish import delete_or_log

#: Uploads at once, so that threads and lanes stay free for devices.
_AT_ONCE: Final = 8
_DAY_US: Final = 86_400_000_000
#: So long a device can still learn why its upload ended.
ENDED_ROWS_DAYS: Final = 7
#: Bytes without a row are deleted after a day: by then every request has written its row.
_ORPHANED_AFTER_US: Final = _DAY_US

_T = TypeVar("_T")
#: Is called after each page with the result so far.
AfterPage = Callable[[_T], Awaitable[None]]


class OpenUpload(msgspec.Struct, frozen=True):
    """An open upload. ``due`` says that it has expired and that no request has its lock."""

    ref: UploadRef
    due: bool


class GoneFile(msgspec.Struct, frozen=True):
    """A file whose record is deleted, or never came.

    ``alive`` says that the record exists again. ``since_us`` is when the record was first missed.
    """

    ref: UploadRef
    device_id: str
    domain: str
    record_id: str
    alive: bool
    since_us: int


class Abandonment(msgspec.Struct, frozen=True):
    """Uploads of a tenant that ended lately: how many became files, and how many expired."""

    tenant: str
    finished: int
    abandoned: int

    @property
    def ratio(self) -> float:
        """The share that expired."""
        return self.abandoned / (self.finished + self.abandoned)


class RowsCleaned(msgspec.Struct):
    """The result of ``UploadCleanup.expire_and_free``.

    Fields:
        expired: Uploads that expired.
        freed: Files that were freed.
        forgotten: Rows of ended uploads that were deleted.
        left: Files that could not be freed now.
        abandonment: By tenant, for uploads that ended in the last day.
    """

    expired: int = 0
    freed: int = 0
    forgotten: int = 0
    left: int = 0
    abandonment: list[Abandonment] = []


class OrphansRemoved(msgspec.Struct):
    """The result of ``UploadCleanup.remove_orphans``; ``left`` counts what could not be deleted now."""

    orphans: int = 0
    orphan_bytes: int = 0
    left: int = 0


class CleanupStore(Protocol):
    """Rows of all tenants. Every method is one transaction, durable on return. All raise StoreError."""

    async def list_open(self, after: UploadRef | None, limit: int, now_us: int) -> list[OpenUpload]:
        """List open uploads after one, in an order that does not change."""

    async def expire(self, tenant_id: int, upload_ids: Sequence[str], now_us: int) -> list[UploadRef]:
        """Expire those of a tenant's uploads that are still due, and return what they reserved.

        Parts of a final upload expire with it.

        Returns:
            The uploads that expired, parts included.
        """

    async def mark_gone(self, after: RecordKey | None, limit: int, now_us: int) -> RecordKey | None:
        """Mark the files of deleted records that are not marked yet.

        Args:
            after: The last record of the page before, None for the first page.
            limit: The most records of a page.
            now_us: The time of the mark.

        Returns:
            The last record of this page, None if there are no more.
        """

    async def list_gone(
        self, state: Literal["attached", "stored"], after: GoneFile | None, limit: int
    ) -> list[GoneFile]:
        """List files without a record.

        Args:
            state: ``attached`` lists marked files, duplicates included; ``stored`` those whose records have
                not come.
            after: The last file of the page before, None for the first page.
            limit: The most files of a page.
        """

    async def unmark(self, refs: Sequence[UploadRef]) -> None:
        """Remove the marks of files whose records exist again."""

    async def delete_ended(self, before_us: int, limit: int) -> int:
        """Delete rows of uploads that ended before an instant. Returns how many."""

    async def states(self, refs: Sequence[UploadRef]) -> dict[UploadRef, State]:
        """Read the states of uploads; those that do not exist are missing from the result."""

    async def abandonment(self, since_us: int) -> list[Abandonment]:
        """Count by tenant, ordered by name, how uploads ended since an instant.

        A final upload counts as its parts.
        """


class UploadCleanup:
    """Does one run of the clean-up.

    Args:
        store: Rows of uploads and records.
        blobs: Bytes of uploads.
        work_queue: Commits what changes a record's entry.
        grace_s: How long files of deleted records are kept.
        minutes: Counts the uploads that expire.
    """

    def __init__(
        self,
        store: CleanupStore,
        blobs: Blobs,
        work_queue: WorkQueue,
        grace_s: float,
        minutes: Minutes,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._work_queue = work_queue
        self._grace_us = int(grace_s * 1_000_000)
        self._minutes = minutes

    async def expire_and_free(self, now_us: int, after_page: AfterPage[RowsCleaned]) -> RowsCleaned:
        """Clean all rows.

        Args:
            now_us: The store's time.
            after_page: Called after each page; what it raises ends the run.

        Raises:
            StoreError: The store failed.
        """
        cleaned = RowsCleaned()
        await self._expire(now_us, after_page, cleaned)
        await self._mark_gone(now_us, after_page, cleaned)
        await self._free("attached", now_us, after_page, cleaned)
        await self._free("stored", now_us, after_page, cleaned)
        before_us = now_us - ENDED_ROWS_DAYS * _DAY_US
        while deleted := await with_retries(partial(self._store.delete_ended, before_us, PAGE)):
            cleaned.forgotten += deleted
            await after_page(cleaned)
        cleaned.abandonment = await with_retries(partial(self._store.abandonment, now_us - _DAY_US))
        return cleaned

    async def remove_orphans(self, now_us: int, after_page: AfterPage[OrphansRemoved]) -> OrphansRemoved:
        """List all bytes and delete those that no row needs.

        Args:
            now_us: The store's time.
            after_page: Called after each page; what it raises ends the run.

        Raises:
            BlobsError: The bytes could not be listed.
            StoreError: The store failed.
        """
        removed = OrphansRemoved()
        async for page in self._blobs.list_stored(now_us - _ORPHANED_AFTER_US):
            states = await with_retries(partial(self._store.states, [blob.ref for blob in page]))
            orphans = [blob for blob in page if is_orphan(blob, states.get(blob.ref))]
            await for_each(orphans, partial(self._remove, removed))
            await after_page(removed)
        return removed

    async def _expire(self, now_us: int, after_page: AfterPage[RowsCleaned], cleaned: RowsCleaned) -> None:
        after: UploadRef | None = None
        while True:
            page = await with_retries(partial(self._store.list_open, after, PAGE, now_us))
            due: dict[int, list[str]] = {}
            for one in page:
                if one.due:
                    due.setdefault(one.ref.tenant_id, []).append(one.ref.upload_id)
            for tenant_id, ids in due.items():
                ended = await with_retries(partial(self._store.expire, tenant_id, ids, now_us))
                cleaned.expired += len(ended)
                self._minutes.of(tenant_id).uploads_abandoned += len(ended)
                await for_each(ended, partial(delete_or_log, self._blobs, is_file=False))
            await after_page(cleaned)
            if len(page) < PAGE:
                return
            after = page[-1].ref

    async def _mark_gone(self, now_us: int, after_page: AfterPage[RowsCleaned], cleaned: RowsCleaned) -> None:
        after: RecordKey | None = None
        while (after := await with_retries(partial(self._store.mark_gone, after, PAGE, now_us))) is not None:
            await after_page(cleaned)

    async def _free(
        self,
        state: Literal["attached", "stored"],
        now_us: int,
        after_page: AfterPage[RowsCleaned],
        cleaned: RowsCleaned,
    ) -> None:
        after: GoneFile | None = None
        while True:
            page = await with_retries(partial(self._store.list_gone, state, after, PAGE))
            alive = [one.ref for one in page if one.alive]
            if alive and state == "attached":
                await with_retries(partial(self._store.unmark, alive))
            due = [one for one in page if not one.alive and one.since_us <= now_us - self._grace_us]
            await for_each(due, partial(self._free_one, now_us, cleaned))
            await after_page(cleaned)
            if len(page) < PAGE:
                return
            after = page[-1]

    async def _free_one(self, now_us: int, cleaned: RowsCleaned, file: GoneFile) -> None:
        ref = file.ref
        work = Attach(
            ref.tenant_id,
            file.device_id,
            file.domain,
            file.record_id,
            ref.upload_id,
            None,
            now_us,
            only_if_deleted=True,
        )
        outcome = await self._work_queue.commit(work)
        if not isinstance(outcome, AttachAnswer):
            cleaned.left += 1
        elif outcome.state == "freed":
            cleaned.freed += 1
            if outcome.deletable is not None:
                await delete_or_log(self._blobs, UploadRef(ref.tenant_id, outcome.deletable), is_file=True)

    async def _remove(self, removed: OrphansRemoved, blob: StoredBlob) -> None:
        if await delete_or_log(self._blobs, blob.ref, is_file=blob.is_file):
            removed.orphans += 1
            removed.orphan_bytes += blob.size_bytes
        else:
            removed.left += 1


def is_orphan(blob: StoredBlob, state: State | None) -> bool:
    """Return True if no row needs these bytes. An open upload may have a file: its row is changed next."""
    if state is None:
        return True
    return not STATES[state].has_bytes if blob.is_file else state != "open"


async def for_each(items: Iterable[_T], work: Callable[[_T], Awaitable[object]]) -> None:
    """Do something with each item, ``_AT_ONCE`` at a time."""
    left = iter(items)

    async def worker() -> None:
        for item in left:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(worker())
