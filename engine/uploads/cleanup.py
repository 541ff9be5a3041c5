"""What is left of uploads and nobody wants: given up, freed of records that are gone, forgotten, orphaned.

Rows come first and bytes after: a crash between the two leaves bytes that no row wants, never a row without
its bytes. Those are found among the orphans. Instants are arguments, by the store's time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from engine.commit.ports import WorkQueue
from engine.model.rows import RecordKey
from engine.model.uploads import State, UploadRef
from engine.plan.work import Attach, AttachAnswer
from engine.runtime.batching import with_retries
from engine.uploads.blobs import Blobs, StoredBlob
from engine.uploads.finish import delete_draft, delete_file

#: Looked at in one statement: what more there is waits for the next, and so does nobody else.
PAGE: Final = 500
#: At once, so that devices' uploads find threads and lanes that are free.
_AT_ONCE: Final = 8
_DAY_US: Final = 86_400_000_000
#: How long it is told what became of an upload that came to nothing.
_REMEMBERED_US: Final = 7 * _DAY_US
#: Of bytes that no row wants: whoever is about to write a row for his has done so by then.
_ORPHANED_US: Final = _DAY_US

_T = TypeVar("_T")
Keep = Callable[[], Awaitable[None]]


class OpenUpload(msgspec.Struct, frozen=True):
    """An upload that is open; ``due`` says that it has expired and that no request has it."""

    ref: UploadRef
    due: bool


class GoneFile(msgspec.Struct, frozen=True):
    """A file whose record was found deleted, or did not come; ``alive`` says that it is there by now.

    ``since_us`` is when the record was missed first.
    """

    ref: UploadRef
    device_id: str
    domain: str
    record_id: str
    alive: bool
    since_us: int


class Abandonment(msgspec.Struct, frozen=True):
    """Of a tenant's uploads that ended of late, how many became files, and how many were given up."""

    tenant: str
    finished: int
    abandoned: int

    @property
    def ratio(self) -> float:
        """The part that was given up."""
        return self.abandoned / (self.finished + self.abandoned)


class RowsCleaned(msgspec.Struct):
    """What came of a run: uploads that expired, files that were freed, and rows that were forgotten.

    ``emptied`` are tombstones whose last data were dropped, ``conflicts`` rows of the log of conflicts and
    ``quarantined`` rejected items that are kept no longer, ``left`` files that could not be freed now.
    """

    expired: int = 0
    freed: int = 0
    forgotten: int = 0
    emptied: int = 0
    conflicts: int = 0
    quarantined: int = 0
    left: int = 0
    abandonment: list[Abandonment] = []


class OrphansRemoved(msgspec.Struct):
    """What came of a look at all bytes that are kept; ``left`` is what could not be removed now."""

    orphans: int = 0
    orphan_bytes: int = 0
    left: int = 0


class CleanupStore(Protocol):
    """Uploads of all tenants. Every method is one transaction, durable on return. All raise StoreError."""

    async def opened(self, after: UploadRef | None, limit: int, now_us: int) -> list[OpenUpload]:
        """List open uploads in some order that stays, behind ``after``."""

    async def expire(self, tenant_id: int, upload_ids: Sequence[str], now_us: int) -> list[UploadRef]:
        """End those of a tenant's uploads that are due still, and free what they reserved.

        The parts of one that was joined share its fate, and are given with the others that ended.
        """

    async def mark(self, after: RecordKey | None, limit: int, now_us: int) -> RecordKey | None:
        """Note of files in deleted records' entries since when these are deleted, where that is new.

        Gives the last record that was looked at, None behind all of them.
        """

    async def gone(
        self, state: Literal["attached", "stored"], after: GoneFile | None, limit: int
    ) -> list[GoneFile]:
        """List files that were marked, duplicates as well, or that wait for their records."""

    async def revive(self, refs: Sequence[UploadRef]) -> None:
        """Take marks away."""

    async def forget(self, before_us: int, limit: int) -> int:
        """Delete rows of uploads of which no bytes are left since then, and count them."""

    async def empty(self, before_us: int, limit: int) -> int:
        """Drop the last data of records that were deleted before an instant, and count them.

        No version and no ``seq`` changes: nobody is told.
        """

    async def forget_conflicts(self, before_us: int, limit: int) -> int:
        """Delete what was settled of conflicts before an instant, and count it.

        Those that are open stay, and so do the changes that they hold.
        """

    async def forget_quarantined(self, before_us: int, limit: int) -> int:
        """Delete items that were rejected before an instant, and count them."""

    async def states(self, refs: Sequence[UploadRef]) -> dict[UploadRef, State]:
        """Read the states of uploads; those that are not there are missing."""

    async def abandonment(self, since_us: int) -> list[Abandonment]:
        """Count by tenant, by name, what became of uploads that ended since then.

        An upload that was put together counts as its parts.
        """


class KeptFor(NamedTuple):
    """How long rows are kept that nobody needs but people who look back; 0 keeps them for ever."""

    conflicts_s: float = 0
    quarantine_s: float = 0


_FOR_EVER: Final = KeptFor()


class UploadCleanup:
    """``grace_s`` is how long files of records that are gone are kept, ``last_data_s`` their data."""

    def __init__(
        self,
        store: CleanupStore,
        blobs: Blobs,
        work_queue: WorkQueue,
        grace_s: float,
        last_data_s: float,
        kept_for: KeptFor = _FOR_EVER,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._work_queue = work_queue
        self._grace_us = int(grace_s * 1_000_000)
        self._last_data_us = int(last_data_s * 1_000_000)
        self._kept_for = kept_for

    async def expire_and_free(self, now_us: int, keep: Keep) -> RowsCleaned:
        """Go over the rows; ``keep`` is called now and then. Raises StoreError, and what ``keep`` does."""
        tidied = RowsCleaned()
        await self._expire(now_us, keep, tidied)
        await self._mark(now_us, keep)
        await self._free("attached", now_us, keep, tidied)
        await self._free("stored", now_us, keep, tidied)
        tidied.forgotten = await _page_by_page(self._store.forget, now_us - _REMEMBERED_US, keep)
        tidied.emptied = await _page_by_page(self._store.empty, now_us - self._last_data_us, keep)
        conflicts_s, quarantine_s = self._kept_for
        if conflicts_s:
            before_us = now_us - int(conflicts_s * 1_000_000)
            tidied.conflicts = await _page_by_page(self._store.forget_conflicts, before_us, keep)
        if quarantine_s:
            before_us = now_us - int(quarantine_s * 1_000_000)
            tidied.quarantined = await _page_by_page(self._store.forget_quarantined, before_us, keep)
        tidied.abandonment = await with_retries(partial(self._store.abandonment, now_us - _DAY_US))
        return tidied

    async def remove_orphans(self, now_us: int, keep: Keep) -> OrphansRemoved:
        """Go over the bytes. Raises BlobsError, StoreError, and what ``keep`` does."""
        swept = OrphansRemoved()
        async for some in self._blobs.list_stored(now_us - _ORPHANED_US):
            states = await with_retries(partial(self._store.states, [kept.ref for kept in some]))
            orphans = [kept for kept in some if _orphaned(kept, states.get(kept.ref))]
            await _few(orphans, partial(self._sweep, swept))
            await keep()
        return swept

    async def _expire(self, now_us: int, keep: Keep, tidied: RowsCleaned) -> None:
        after: UploadRef | None = None
        while True:
            page = await with_retries(partial(self._store.opened, after, PAGE, now_us))
            due: dict[int, list[str]] = {}
            for one in page:
                if one.due:
                    due.setdefault(one.ref.tenant_id, []).append(one.ref.upload_id)
            for tenant_id, ids in due.items():
                ended = await with_retries(partial(self._store.expire, tenant_id, ids, now_us))
                tidied.expired += len(ended)
                await _few(ended, partial(delete_draft, self._blobs))
            await keep()
            if len(page) < PAGE:
                return
            after = page[-1].ref

    async def _mark(self, now_us: int, keep: Keep) -> None:
        after: RecordKey | None = None
        while (after := await with_retries(partial(self._store.mark, after, PAGE, now_us))) is not None:
            await keep()

    async def _free(
        self, state: Literal["attached", "stored"], now_us: int, keep: Keep, tidied: RowsCleaned
    ) -> None:
        after: GoneFile | None = None
        while True:
            page = await with_retries(partial(self._store.gone, state, after, PAGE))
            alive = [one.ref for one in page if one.alive]
            if alive and state == "attached":
                await with_retries(partial(self._store.revive, alive))
            due = [one for one in page if not one.alive and one.since_us <= now_us - self._grace_us]
            await _few(due, partial(self._free_one, now_us, tidied))
            await keep()
            if len(page) < PAGE:
                return
            after = page[-1]

    async def _free_one(self, now_us: int, tidied: RowsCleaned, file: GoneFile) -> None:
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
            tidied.left += 1
        elif outcome.state == "freed":
            tidied.freed += 1
            if outcome.deletable is not None:
                await delete_file(self._blobs, UploadRef(ref.tenant_id, outcome.deletable))

    async def _sweep(self, swept: OrphansRemoved, kept: StoredBlob) -> None:
        dropped = await (delete_file if kept.is_file else delete_draft)(self._blobs, kept.ref)
        if dropped:
            swept.orphans += 1
            swept.orphan_bytes += kept.size_bytes
        else:
            swept.left += 1


async def _page_by_page(forget: Callable[[int, int], Awaitable[int]], before_us: int, keep: Keep) -> int:
    """Have what is older forgotten, a page at a time, and count it."""
    forgotten = 0
    while some := await with_retries(partial(forget, before_us, PAGE)):
        forgotten += some
        await keep()
    return forgotten


def _orphaned(kept: StoredBlob, state: State | None) -> bool:
    """Whether no row wants these bytes. An open upload may have a file: its last step is still to come."""
    if kept.is_file:
        return state not in ("open", "stored", "attached", "lent")
    return state != "open"


async def _few(items: Iterable[_T], work: Callable[[_T], Awaitable[object]]) -> None:
    """Do something with each, a few at a time."""
    left = iter(items)

    async def some() -> None:
        for item in left:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(some())
