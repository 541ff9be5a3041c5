"""Deletes what people may look at later, and the last data of deleted records, when their time is over."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, Protocol

from engine.cluster.jobs import JobRun


class RetentionStore(Protocol):
    """Rows of all tenants. Every method is one transaction, durable on return. All raise StoreError."""

    async def drop_last_data(self, before_us: int, limit: int) -> int:
        """Drop the last data of records that were deleted before an instant. Returns how many.

        No version and no ``seq`` changes, so that no device is told.
        """

    async def delete_conflicts(self, before_us: int, limit: int) -> int:
        """Delete conflicts that were settled before an instant. Returns how many.

        Open conflicts stay, and so do the changes that they hold.
        """

    async def delete_quarantined(self, before_us: int, limit: int) -> int:
        """Delete items that were rejected before an instant. Returns how many."""


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
        await run.pages("emptied", partial(store.drop_last_data, before_us(kept_for.last_data_s)))
        if kept_for.conflicts_s:
            await run.pages("conflicts", partial(store.delete_conflicts, before_us(kept_for.conflicts_s)))
        if kept_for.quarantine_s:
            await run.pages(
                "quarantined", partial(store.delete_quarantined, before_us(kept_for.quarantine_s))
            )
