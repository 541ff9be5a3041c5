"""Deletes what people may look at later, and the last data of deleted records, when their time is over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, NamedTuple, Protocol

from engine.cluster.jobs import JobRun
from engine.runtime.batching import with_retries

#: Rows of one statement. A tenant is locked for 4 ms by it, and batches wait for so long.
_PAGE: Final = 200
#: So many pages in a row may be locked as a whole. A batch locks its tenants for some milliseconds.
_MOST_LOCKED: Final = 20


class Position(NamedTuple):
    """Where a page of rows begins or ends: the tenant, and the time of the last of its rows."""

    tenant_id: int
    at_us: int


class Page(NamedTuple):
    """Rows that one statement found past their time, up to ``last``.

    Those that it did not delete were locked.
    """

    found: int
    deleted: int
    last: Position


class RetentionStore(Protocol):
    """Rows of all tenants. Every method is one transaction, which a crash may undo. All raise StoreError.

    Each deletes one page of the rows that are older than an instant, from where the page before
    ended. Rows of a tenant that a batch has locked stay.
    """

    async def drop_last_data(self, before_us: int, after: Position, limit: int) -> Page:
        """Drop the last data of records that were deleted before an instant.

        No version and no ``seq`` changes, so that no device is told.
        """

    async def delete_conflicts(self, before_us: int, after: Position, limit: int) -> Page:
        """Delete conflicts that were settled before an instant.

        Open conflicts stay, and so do the changes that they hold.
        """

    async def delete_quarantined(self, before_us: int, after: Position, limit: int) -> Page:
        """Delete items that were rejected before an instant."""


class KeptFor(NamedTuple):
    """How long rows are kept. ``last_data_s`` of 0 keeps none; 0 keeps the others for ever."""

    last_data_s: float
    conflicts_s: float
    quarantine_s: float


class Retention:
    """The body of a job: deletes all that is past its time."""

    def __init__(self, store: RetentionStore, kept_for: KeptFor) -> None:
        self._store = store
        self._kept_for = kept_for

    async def __call__(self, run: JobRun) -> None:
        """Delete; count ``emptied`` records, ``conflicts`` and ``quarantined`` items. Raises StoreError."""

        def before_us(kept_s: float) -> int:
            return run.now_us - int(kept_s * 1_000_000)

        store, kept_for = self._store, self._kept_for
        await _pages(run, "emptied", partial(store.drop_last_data, before_us(kept_for.last_data_s)))
        if kept_for.conflicts_s:
            await _pages(run, "conflicts", partial(store.delete_conflicts, before_us(kept_for.conflicts_s)))
        if kept_for.quarantine_s:
            await _pages(
                run, "quarantined", partial(store.delete_quarantined, before_us(kept_for.quarantine_s))
            )


async def _pages(run: JobRun, name: str, delete: Callable[[Position, int], Awaitable[Page]]) -> None:
    """Delete rows a page at a time. Rows that batches keep locked are left for the next run."""
    after, locked = Position(0, 0), 0
    while locked < _MOST_LOCKED:
        page = await with_retries(partial(delete, after, _PAGE))
        if not page.found:
            return
        if page.deleted:
            run.count(name, page.deleted)
        if page.deleted == page.found:
            after = page.last
        locked = 0 if page.deleted else locked + 1
        await run.rest()
