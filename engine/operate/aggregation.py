"""Sums each hour's minutes in a snapshot of each tenant, and deletes minutes when their time is over.

An hour is summed a few minutes after its end. A process that could not write its minutes until then marks
them as late, and the next run sums their hours again. To sum an hour again gives the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

from engine.cluster.jobs import JobRun
from engine.model.minutes import NO_TENANT, Minute
from engine.runtime.batching import with_retries

_HOUR_US: Final = 3_600_000_000
#: What the job did not sum for so long is left out.
_CAUGHT_UP_US: Final = 72 * _HOUR_US
_MINUTES_KEPT_US: Final = 48 * _HOUR_US
_DEVICE_HOURS_KEPT_US: Final = 7 * 24 * _HOUR_US
#: Snapshots of one transaction: to make them takes the event loop a millisecond.
_SNAPSHOTS: Final = 24


class LateHour(NamedTuple):
    """An hour of a tenant that has late minutes."""

    start_us: int
    tenant_id: int


class Due(NamedTuple):
    """What is to be summed.

    ``since_us`` is where the last run ended, ``until_us`` the end of the last hour whose minutes are all
    written or will be marked as late. ``late`` are hours before ``since_us``.
    """

    since_us: int
    until_us: int
    tenant_ids: Sequence[int]
    late: Sequence[LateHour]


class Snapshot(NamedTuple):
    """The figures of a tenant's hour that come from minutes, and the counts that they are made of.

    A figure without data is None. ``sync_requests`` are ``succeeded``, ``failed`` and ``refused`` together.
    Rates are of 1.
    """

    sync_requests: int
    succeeded: int
    failed: int
    refused: int
    avg_duration_ms: float | None
    p95_duration_ms: float | None
    items_per_sync: float | None
    conflicts_total: int
    conflicts_auto: int
    conflicts_manual: int
    conflict_rate: float | None
    bytes_synced: int
    items: int
    uploads_finished: int
    uploads_abandoned: int
    duration_us: int


class AggregationStore(Protocol):
    """Minutes and snapshots. Every method raises StoreError."""

    async def due(self) -> Due:
        """Read what is to be summed."""

    async def sum_hours(self, tenant_ids: Sequence[int], since_us: int, until_us: int) -> int:
        """Write the snapshots of some tenants' hours, and take the marks off their minutes: one transaction.

        Args:
            tenant_ids: The tenants.
            since_us: The first hour.
            until_us: The end of the last hour.

        Returns:
            The number of snapshots. An hour without minutes has none.
        """

    async def summed(self, until_us: int) -> None:
        """Store up to where all hours are summed."""

    async def delete_minutes(self, before_us: int, limit: int) -> int:
        """Delete minutes that began before an instant. Returns how many."""

    async def delete_device_hours(self, before_us: int, limit: int) -> int:
        """Delete devices' hours that began before an instant. Returns how many."""


class Aggregation:
    """The body of a job: sums hours, then deletes what is summed and past its time."""

    def __init__(self, store: AggregationStore) -> None:
        self._store = store

    async def __call__(self, run: JobRun) -> None:
        """Sum and delete; count ``snapshots``, ``minutes_deleted`` and ``device_hours_deleted``.

        Raises StoreError.
        """
        store = self._store
        due = await with_retries(store.due)
        for tenant_ids, since_us, until_us in parts(due):
            run.count(
                "snapshots", await with_retries(partial(store.sum_hours, tenant_ids, since_us, until_us))
            )
            await run.rest()
        await with_retries(partial(store.summed, max(due.since_us, due.until_us)))
        before_us = run.now_us - _MINUTES_KEPT_US
        await run.pages("minutes_deleted", partial(store.delete_minutes, before_us))
        before_us = run.now_us - _DEVICE_HOURS_KEPT_US
        await run.pages("device_hours_deleted", partial(store.delete_device_hours, before_us))


def parts(due: Due) -> Iterator[tuple[Sequence[int], int, int]]:
    """Split what is due into transactions: tenants, and the hours to sum of each.

    Yields:
        The late hours last, those of one hour together.
    """
    tenant_ids = [NO_TENANT, *due.tenant_ids]
    span_us = _SNAPSHOTS * _HOUR_US
    first_us = max(due.since_us, due.until_us - _CAUGHT_UP_US)
    for since_us in range(first_us, due.until_us, span_us):
        until_us = min(since_us + span_us, due.until_us)
        for some in _chunks(tenant_ids, _SNAPSHOTS // ((until_us - since_us) // _HOUR_US)):
            yield some, since_us, until_us
    by_hour: dict[int, list[int]] = {}
    for start_us, tenant_id in due.late:
        by_hour.setdefault(start_us, []).append(tenant_id)
    for start_us, late in sorted(by_hour.items()):
        for some in _chunks(late, _SNAPSHOTS):
            yield some, start_us, start_us + _HOUR_US


def _chunks(tenant_ids: list[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(tenant_ids), size):
        yield tenant_ids[first : first + size]


def snapshot(hour: Minute) -> Snapshot:
    """Return the figures of an hour, given as the sum of its minutes."""
    durations = hour.durations
    return Snapshot(
        sync_requests=hour.syncs,
        succeeded=hour.succeeded,
        failed=hour.failed,
        refused=hour.refused,
        avg_duration_ms=durations.mean_ms(),
        p95_duration_ms=durations.percentile_ms(0.95),
        items_per_sync=hour.items / hour.succeeded if hour.succeeded else None,
        conflicts_total=hour.conflicts,
        conflicts_auto=hour.conflicts - hour.conflicts_open,
        conflicts_manual=hour.conflicts_open,
        conflict_rate=hour.conflicts / hour.items if hour.items else None,
        bytes_synced=hour.bytes_in,
        items=hour.items,
        uploads_finished=hour.uploads_finished,
        uploads_abandoned=hour.uploads_abandoned,
        duration_us=durations.sum_us,
    )
