"""What one tenant's devices experienced in one minute: counts, and durations in fixed buckets.

Minutes add up: over processes, over tenants, to an hour. Percentiles are read from summed buckets, never
averaged.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate, compress
from math import ceil, sqrt
from operator import add
from typing import Final

import msgspec

MINUTE_US: Final = 60_000_000
#: The tenant id of what no tenant is known for: handshakes that were refused before their token was read.
NO_TENANT: Final = 0
#: Upper bounds of the buckets, inclusive, in microseconds: each is 1.02 times the one before, from 0.1 ms to
#: 60.2 s. One more bucket has no bound. Stored minutes refer to them by index, so they never change.
DURATION_BOUNDS_US: Final = tuple(round(100 * 1.02**index) for index in range(673))
_BUCKETS: Final = len(DURATION_BOUNDS_US) + 1


class Durations(msgspec.Struct):
    """Durations counted by bucket, and their exact sum.

    ``counts`` has one number for each bucket, and is empty before the first duration: the minutes of an
    outage have none, and many of them may wait in memory.
    """

    counts: list[int] = []
    sum_us: int = 0

    @classmethod
    def of(cls, buckets: Iterable[int], counts: Iterable[int], sum_us: int) -> Durations:
        """Return the durations of some buckets, given by their indexes; the others are empty."""
        durations = cls([0] * _BUCKETS, sum_us)
        for bucket, count in zip(buckets, counts, strict=True):
            durations.counts[bucket] = count
        return durations

    def add(self, duration_us: int) -> None:
        """Count one duration. It costs 0.2 µs."""
        counts = self.counts
        if not counts:
            counts = self.counts = [0] * _BUCKETS
        counts[bisect_left(DURATION_BOUNDS_US, duration_us)] += 1
        self.sum_us += duration_us

    def filled(self) -> tuple[list[int], list[int]]:
        """Return the indexes of the buckets that are not empty, and their counts."""
        return list(compress(range(_BUCKETS), self.counts)), list(filter(None, self.counts))

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self.counts)

    def plus(self, other: Durations) -> Durations:
        """Return the sum of both."""
        if not (self.counts and other.counts):
            return Durations(list(self.counts or other.counts), self.sum_us + other.sum_us)
        return Durations(list(map(add, self.counts, other.counts)), self.sum_us + other.sum_us)

    def mean_ms(self) -> float | None:
        """Return the exact mean, None without durations."""
        count = self.count
        return self.sum_us / count / 1000 if count else None

    def percentile_ms(self, fraction: float) -> float | None:
        """Return a percentile to within 1 %, None without durations.

        A duration below 0.1 ms counts as 0.1 ms, one above 60.2 s as 60.2 s.

        Args:
            fraction: 0.95 for the 95th percentile: the least duration that 95 % of all do not exceed.
        """
        count = self.count
        if not count:
            return None
        rank = max(1, ceil(fraction * count))
        bucket = bisect_left(list(accumulate(self.counts)), rank)
        if bucket == 0:
            return DURATION_BOUNDS_US[0] / 1000
        if bucket == _BUCKETS - 1:
            return DURATION_BOUNDS_US[-1] / 1000
        return sqrt(DURATION_BOUNDS_US[bucket - 1] * DURATION_BOUNDS_US[bucket]) / 1000


class Minute(msgspec.Struct):
    """Counts of one tenant in one minute, or sums of several.

    Attributes:
        syncs: All that devices attempted, including ``failed`` and ``refused``.
        failed: Syncs that were answered with an error of the device's own.
        refused: What the service refused: syncs and handshakes answered with one of
            ``engine.wire.errors.SERVICE_ERRORS``.
        items: Items of answered syncs.
        conflicts: Conflicts of answered syncs, settled or not.
        conflicts_open: The conflicts that were held for a person.
        uploads_finished: Uploads that became files; one of several parts counts as its parts.
        uploads_abandoned: Uploads that expired before their last byte.
        bytes_in: Bytes of messages and of uploads that were received.
        replayed: Syncs that were answered with the stored answer of an earlier one.
        bytes_saved_compression: Bytes that compression saved, of messages to devices and of bodies from them.
        durations: From arrival to answer, of syncs that were answered with results.
    """

    syncs: int = 0
    failed: int = 0
    refused: int = 0
    items: int = 0
    conflicts: int = 0
    conflicts_open: int = 0
    uploads_finished: int = 0
    uploads_abandoned: int = 0
    bytes_in: int = 0
    replayed: int = 0
    bytes_saved_compression: int = 0
    durations: Durations = msgspec.field(default_factory=Durations)

    @property
    def events(self) -> int:
        """A number that grows with every count."""
        return self.syncs + self.items + self.uploads_finished + self.uploads_abandoned + self.bytes_in

    @property
    def succeeded(self) -> int:
        """Syncs that were answered with results, also with repeated ones."""
        return self.syncs - self.failed - self.refused

    def plus(self, other: Minute) -> Minute:
        """Return the sum of both."""
        return Minute(
            self.syncs + other.syncs,
            self.failed + other.failed,
            self.refused + other.refused,
            self.items + other.items,
            self.conflicts + other.conflicts,
            self.conflicts_open + other.conflicts_open,
            self.uploads_finished + other.uploads_finished,
            self.uploads_abandoned + other.uploads_abandoned,
            self.bytes_in + other.bytes_in,
            self.replayed + other.replayed,
            self.bytes_saved_compression + other.bytes_saved_compression,
            self.durations.plus(other.durations),
        )


class TenantMinutes(msgspec.Struct, frozen=True):
    """The sum of a tenant's minutes in a window. ``tenant`` is None for what no tenant is known for."""

    tenant: str | None
    minutes: Minute
