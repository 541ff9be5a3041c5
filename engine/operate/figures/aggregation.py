"""Makes a snapshot of each tenant's hours, and deletes what it was made of when its time is over.

A commit counts what it stores in its own transaction (``engine.model.commit_counts``), so these counts are
exact. Durations, failures and refusals come from minutes, of which a killed process loses ten seconds.

An hour is summed a few minutes after its end. A process that could not write its minutes until then marks
them as late, and the next run sums their hours again. To sum an hour again gives the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol

import msgspec

from engine.cluster.jobs import JobRun
from engine.model.commit_counts import HOUR_US, STATUSES, UNITS_US, CommitCounts
from engine.model.minutes import NO_TENANT, Durations, Minute
from engine.operate.figures.voice import VoiceStore, fill
from engine.runtime.batching import with_retries

_encode: Final = msgspec.json.encode
#: What the job did not sum for so long is left out, and an hour that changes later stays as it is.
CAUGHT_UP_US: Final = 72 * HOUR_US
#: Minutes and counts of commits are deleted when no run can sum their hour again, also one that began before.
_KEPT_US: Final = CAUGHT_UP_US + 3 * HOUR_US
DEVICE_HOURS_KEPT_US: Final = 7 * 24 * HOUR_US
#: Tenants of one statement that looks for hours that are over.
_TENANTS: Final = 500
_DAY_US: Final = UNITS_US["day"]
#: Tenants of one statement that counts the devices of a day: 24 rows a device.
_TENANTS_OF_DAY: Final = 50
#: Snapshots of one transaction: to make them takes the event loop a millisecond.
_SNAPSHOTS: Final = 24


class LateHour(NamedTuple):
    """An hour of a tenant that changed after its sum."""

    start_us: int
    tenant_id: int


class HoursDue(NamedTuple):
    """What is to be summed.

    ``since_us`` is where the last run ended, ``until_us`` the end of the last hour whose minutes are all
    written or will be marked as late. ``late`` are hours before ``since_us``, and of the last 72.
    """

    since_us: int
    until_us: int
    tenant_ids: Sequence[int]
    late: Sequence[LateHour]


class Snapshot(NamedTuple):
    """The figures of a tenant's hour, and the counts that they are made of.

    A figure without data is None. ``sync_requests`` are ``succeeded``, ``replayed``, ``failed`` and
    ``refused`` together. Rates are of 1. ``domains`` are the items by domain and status, as JSON.
    """

    sync_requests: int
    succeeded: int
    failed: int
    refused: int
    replayed: int
    avg_duration_ms: float | None
    p95_duration_ms: float | None
    items_per_sync: float | None
    conflicts_total: int
    conflicts_auto: int
    conflicts_manual: int
    conflict_rate: float | None
    bytes_synced: int
    bytes_in: int
    bytes_saved_patch: int
    bytes_saved_compression: int
    items: int
    uploads_finished: int
    uploads_abandoned: int
    duration_us: int
    domains: str


class Hour(NamedTuple):
    """A tenant's hour, which began at ``start_us``."""

    tenant_id: int
    start_us: int
    figures: Snapshot
    durations: Durations


class AggregationStore(Protocol):
    """Minutes, counts of commits, and snapshots. Every method raises StoreError."""

    async def due(self) -> HoursDue:
        """Read what is to be summed."""

    async def end_hours(self, tenant_ids: Sequence[int]) -> None:
        """Set the counts of tenants' last commits aside, if their hour is over.

        The next commit would do the same; but a tenant may have none for long.
        """

    async def sum_hours(self, tenant_ids: Sequence[int], since_us: int, until_us: int) -> int:
        """Write the snapshots of some tenants' hours, and note that they are summed: one transaction.

        Args:
            tenant_ids: The tenants.
            since_us: The first hour.
            until_us: The end of the last hour.

        Returns:
            The number of snapshots. An hour of which nothing is counted has none.
        """

    async def sum_day(self, tenant_ids: Sequence[int], day_us: int) -> None:
        """Store how many devices and users of some tenants synced in a day, given by its beginning."""

    async def summed(self, until_us: int) -> None:
        """Store up to where all hours are summed."""

    async def delete_minutes(self, before_us: int, limit: int) -> int:
        """Delete minutes that began before an instant. Returns how many."""

    async def delete_counts(self, before_us: int, limit: int) -> int:
        """Delete counts of commits of hours before an instant. Returns how many rows."""

    async def delete_device_hours(self, before_us: int, limit: int) -> int:
        """Delete devices' hours that began before an instant. Returns how many."""


class Aggregation:
    """The body of a job: sums hours, then deletes what is summed and past its time."""

    def __init__(self, store: AggregationStore, voice: VoiceStore, events_d: int) -> None:
        """Make the body. ``events_d`` is how many days events are kept, and so their log; 0 is for ever."""
        self._store = store
        self._voice = voice
        self._events_d = events_d

    async def __call__(self, run: JobRun) -> None:
        """Sum, log voice verifications, and delete; count ``snapshots``, and rows by what happened to them.

        Raises StoreError.
        """
        store = self._store
        due = await with_retries(store.due)
        for some in _chunks(due.tenant_ids, _TENANTS):
            await with_retries(partial(store.end_hours, some))
            await run.rest()
        due = await with_retries(store.due)
        for tenant_ids, since_us, until_us in parts(due):
            # Before the hours count as summed: a kill in between repeats it, and adds nothing.
            await fill(self._voice, run, tenant_ids, since_us, until_us)
            run.count(
                "snapshots", await with_retries(partial(store.sum_hours, tenant_ids, since_us, until_us))
            )
            await run.rest()
        for some, day_us in days(due):
            await with_retries(partial(store.sum_day, some, day_us))
            await run.rest()
        await with_retries(partial(store.summed, max(due.since_us, due.until_us)))
        before_us = run.now_us - _KEPT_US
        await run.pages("minutes_deleted", partial(store.delete_minutes, before_us))
        await run.pages("counts_deleted", partial(store.delete_counts, before_us))
        if self._events_d:
            before_us = run.now_us - self._events_d * _DAY_US
            await run.pages("verifications_deleted", partial(self._voice.delete, before_us))
        before_us = run.now_us - DEVICE_HOURS_KEPT_US
        await run.pages("device_hours_deleted", partial(store.delete_device_hours, before_us))


def parts(due: HoursDue) -> Iterator[tuple[Sequence[int], int, int]]:
    """Split what is due into transactions: tenants, and the hours to sum of each.

    Yields:
        The late hours last, those of one hour together.
    """
    tenant_ids = [NO_TENANT, *due.tenant_ids]
    span_us = _SNAPSHOTS * HOUR_US
    first_us = max(due.since_us, due.until_us - CAUGHT_UP_US)
    for since_us in range(first_us, due.until_us, span_us):
        until_us = min(since_us + span_us, due.until_us)
        for some in _chunks(tenant_ids, _SNAPSHOTS // ((until_us - since_us) // HOUR_US)):
            yield some, since_us, until_us
    by_hour: dict[int, list[int]] = {}
    for start_us, tenant_id in due.late:
        by_hour.setdefault(start_us, []).append(tenant_id)
    for start_us, late in sorted(by_hour.items()):
        for some in _chunks(late, _SNAPSHOTS):
            yield some, start_us, start_us + HOUR_US


def days(due: HoursDue) -> Iterator[tuple[Sequence[int], int]]:
    """Yield the days that ended since the last run, and so the tenants of one statement."""
    first_us = max(due.since_us, due.until_us - CAUGHT_UP_US) // _DAY_US * _DAY_US
    for day_us in range(first_us, due.until_us // _DAY_US * _DAY_US, _DAY_US):
        for some in _chunks(due.tenant_ids, _TENANTS_OF_DAY):
            yield some, day_us


def _chunks(tenant_ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(tenant_ids), size):
        yield tenant_ids[first : first + size]


def snapshot(hour: Minute, commits: CommitCounts | None) -> Snapshot:
    """Return the figures of an hour.

    Args:
        hour: The sum of its minutes.
        commits: What was committed in it; None for an hour in which commits were not counted yet. Its figures
            come from minutes.
    """
    durations = hour.durations
    if commits is None:
        held, settled = hour.conflicts_open, hour.conflicts - hour.conflicts_open
        committed, items, sent_bytes = hour.succeeded - hour.replayed, hour.items, hour.bytes_in
        commits = CommitCounts()
    else:
        held, settled = commits.of_status("conflict"), commits.of_status("resolved")
        committed, items, sent_bytes = commits.syncs, commits.of_status(*STATUSES), commits.sent_bytes
    return Snapshot(
        sync_requests=committed + hour.replayed + hour.failed + hour.refused,
        succeeded=committed,
        failed=hour.failed,
        refused=hour.refused,
        replayed=hour.replayed,
        avg_duration_ms=durations.mean_ms(),
        p95_duration_ms=durations.percentile_ms(0.95),
        items_per_sync=items / committed if committed else None,
        conflicts_total=held + settled,
        conflicts_auto=settled,
        conflicts_manual=held,
        conflict_rate=(held + settled) / items if items else None,
        bytes_synced=sent_bytes,
        bytes_in=hour.bytes_in,
        bytes_saved_patch=commits.saved_bytes,
        bytes_saved_compression=hour.bytes_saved_compression,
        items=items,
        uploads_finished=hour.uploads_finished,
        uploads_abandoned=hour.uploads_abandoned,
        duration_us=durations.sum_us,
        domains=_encode(commits.by_domain()).decode(),
    )
