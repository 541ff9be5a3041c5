"""Figures of a tenant over hours and days. Sums are exact; percentiles are read from summed buckets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from engine.model.commit_counts import OTHER_DOMAIN, UNITS_US, Unit, whole_periods
from engine.model.minutes import Durations
from engine.operate.figures.aggregation import Snapshot
from engine.wire.timestamps import to_text

_decode_domains: Final = msgspec.json.Decoder(dict[str, dict[str, int]]).decode


class Uniques(NamedTuple):
    """How many devices synced, and how many users of their tokens."""

    devices: int
    users: int


class HourFigures(NamedTuple):
    """A tenant's hour, or any part of one, that began at ``start_us``."""

    start_us: int
    figures: Snapshot
    durations: Durations


class Figures(msgspec.Struct, frozen=True):
    """The figures of a period. None is a figure without data; rates are of 1.

    Attributes:
        start: Its beginning; None for the sum of all periods.
        sync_requests: ``succeeded``, ``replayed``, ``failed`` and ``refused`` together.
        succeeded: Syncs that were committed: exact.
        replayed: Syncs that were answered with the stored answer of an earlier one.
        failed: Syncs that were answered with an error of the device's own.
        refused: Syncs and handshakes that the service refused.
        without_duration: Committed syncs whose duration is not known: their process was killed, or a command
            sent them, such as the retry of a rejected item.
        bytes_synced: Bytes of the items of committed syncs.
        unique_devices: Devices that synced in the hour or day; None for the sum of several.
        unique_users: The users of their tokens; None as above.
        domains: Items by domain and status.
    """

    start: str | None
    sync_requests: int
    succeeded: int
    replayed: int
    failed: int
    refused: int
    without_duration: int
    avg_duration_ms: float | None
    p50_duration_ms: float | None
    p95_duration_ms: float | None
    p99_duration_ms: float | None
    items: int
    items_per_sync: float | None
    conflicts_total: int
    conflicts_auto: int
    conflicts_manual: int
    conflict_rate: float | None
    bytes_synced: int
    bytes_saved_patch: int
    bytes_saved_compression: int
    unique_devices: int | None
    unique_users: int | None
    uploads_finished: int
    uploads_abandoned: int
    domains: Mapping[str, Mapping[str, int]]


class Analytics(msgspec.Struct, frozen=True):
    """The figures of a tenant: periods by time, those without data left out, and all."""

    tenant: str
    since: str
    until: str
    by: Unit
    periods: Sequence[Figures]
    total: Figures


class AnalyticsReads(Protocol):
    """Snapshots, and hours that have none yet. Raises RefusedError if there is no such tenant, StoreError."""

    async def hours(self, tenant: str, since_us: int, until_us: int) -> list[HourFigures]:
        """Return a tenant's hours that began in a span, by time, those without data left out."""

    async def uniques(self, tenant: str, since_us: int, until_us: int, by: Unit) -> Mapping[int, Uniques]:
        """Count devices and users that synced in each hour or day of a span, by its beginning.

        Days of which nothing is stored, and whose devices' hours are deleted, are left out.
        """


async def analytics(store: AnalyticsReads, tenant: str, since_us: int, until_us: int, by: Unit) -> Analytics:
    """Read and sum the figures of a tenant.

    Args:
        store: Where they are read.
        tenant: The name of the tenant.
        since_us: The first period is the one that this instant is in.
        until_us: The last period is the one that begins before this instant.
        by: The unit of the periods, in UTC.

    Raises:
        RefusedError: There is no such tenant.
        StoreError: The database is away.
    """
    unit_us = UNITS_US[by]
    since_us, until_us = whole_periods(since_us, until_us, by)
    periods: dict[int, list[HourFigures]] = {}
    hours = await store.hours(tenant, since_us, until_us)
    for hour in hours:
        periods.setdefault(hour.start_us // unit_us * unit_us, []).append(hour)
    uniques = await store.uniques(tenant, since_us, until_us, by)
    return Analytics(
        tenant,
        to_text(since_us),
        to_text(until_us),
        by,
        [summed(some, to_text(start_us), uniques.get(start_us)) for start_us, some in periods.items()],
        summed(hours),
    )


def summed(hours: Sequence[HourFigures], start: str | None = None, uniques: Uniques | None = None) -> Figures:
    """Return the figures of some hours together."""
    durations = Durations()
    for hour in hours:
        durations = durations.plus(hour.durations)
    rows = [hour.figures for hour in hours]
    succeeded, items = sum(row.succeeded for row in rows), sum(row.items for row in rows)
    replayed, conflicts = sum(row.replayed for row in rows), sum(row.conflicts_total for row in rows)
    return Figures(
        start=start,
        sync_requests=sum(row.sync_requests for row in rows),
        succeeded=succeeded,
        replayed=replayed,
        failed=sum(row.failed for row in rows),
        refused=sum(row.refused for row in rows),
        # An answer in the hour after its commit may be one more than the hour's commits.
        without_duration=max(0, succeeded + replayed - durations.count),
        avg_duration_ms=durations.mean_ms(),
        p50_duration_ms=durations.percentile_ms(0.5),
        p95_duration_ms=durations.percentile_ms(0.95),
        p99_duration_ms=durations.percentile_ms(0.99),
        items=items,
        items_per_sync=items / succeeded if succeeded else None,
        conflicts_total=conflicts,
        conflicts_auto=sum(row.conflicts_auto for row in rows),
        conflicts_manual=sum(row.conflicts_manual for row in rows),
        conflict_rate=conflicts / items if items else None,
        bytes_synced=sum(row.bytes_synced for row in rows),
        bytes_saved_patch=sum(row.bytes_saved_patch for row in rows),
        bytes_saved_compression=sum(row.bytes_saved_compression for row in rows),
        unique_devices=None if uniques is None else uniques.devices,
        unique_users=None if uniques is None else uniques.users,
        uploads_finished=sum(row.uploads_finished for row in rows),
        uploads_abandoned=sum(row.uploads_abandoned for row in rows),
        domains=_domains(row.domains for row in rows),
    )


def _domains(texts: Iterable[str]) -> dict[str, dict[str, int]]:
    """Add up items by domain and status. Items of no known domain are under ``other``."""
    sums: dict[str, Counter[str]] = {}
    for text in texts:
        for domain, counts in _decode_domains(text).items():
            sums.setdefault("other" if domain == OTHER_DOMAIN else domain, Counter()).update(counts)
    return {domain: dict(counts) for domain, counts in sorted(sums.items())}
