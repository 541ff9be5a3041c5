"""What a tenant's committed syncs brought: counts that are written in the transaction that commits them.

Counts of one hour are one JSON text, which adds up over batches and rows. It is read and written with the
tenant's ``seq``, under its lock, so the counts are exact whatever is killed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import add
from typing import Final, Literal, get_args

import msgspec

from engine.wire.messages import Status

HOUR_US: Final = 3_600_000_000
#: The lengths of what figures are shown by.
Unit = Literal["hour", "day"]
UNITS_US: Final[Mapping[Unit, int]] = {"hour": HOUR_US, "day": 24 * HOUR_US}
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
#: The name for items of a domain that is not configured, or of none: devices could send any number of names.
OTHER_DOMAIN: Final = ""

#: The places of the statuses in the counts of a domain.
PLACES: Final[Mapping[str, int]] = {status: place for place, status in enumerate(STATUSES)}


class CommitCounts(msgspec.Struct, array_like=True):
    """Counts of committed syncs. Syncs whose stored answer was repeated are not counted again.

    The order of the fields is that of the stored array.

    Attributes:
        syncs: Syncs whose answers were stored, also if all of their items were rejected.
        sent_bytes: Bytes of their items, as sent.
        saved_bytes: What applied patches saved: the bytes of their records less those of the patches.
        items: Items by domain, in the order of ``STATUSES``.
    """

    syncs: int = 0
    sent_bytes: int = 0
    saved_bytes: int = 0
    items: dict[str, list[int]] = {}

    def items_of(self, domain: str) -> list[int]:
        """Return the counts of a domain, to count in."""
        counts = self.items.get(domain)
        if counts is None:
            counts = self.items[domain] = [0] * len(STATUSES)
        return counts

    def add(self, more: CommitCounts) -> None:
        """Add other counts."""
        self.syncs += more.syncs
        self.sent_bytes += more.sent_bytes
        self.saved_bytes += more.saved_bytes
        for domain, counts in more.items.items():
            mine = self.items.get(domain)
            self.items[domain] = list(counts) if mine is None else list(map(add, mine, counts))

    def of_status(self, *statuses: Status) -> int:
        """Return how many items have one of some statuses, over all domains."""
        places = [PLACES[status] for status in statuses]
        return sum(counts[place] for counts in self.items.values() for place in places)

    def by_domain(self) -> Mapping[str, Mapping[str, int]]:
        """Return the items by domain and status."""
        return {domain: dict(zip(STATUSES, counts, strict=True)) for domain, counts in self.items.items()}


def sums_by_status(many: Iterable[CommitCounts]) -> Mapping[str, int]:
    """Return the items of several counts by status."""
    rows = [by_status for counts in many for by_status in counts.items.values()]
    return dict(zip(STATUSES, map(sum, zip(*rows, strict=True)), strict=True)) if rows else {}


def whole_periods(since_us: int, until_us: int, by: Unit) -> tuple[int, int]:
    """Return the span of the hours or days, in UTC, that a span touches."""
    unit_us = UNITS_US[by]
    return since_us // unit_us * unit_us, -(-until_us // unit_us) * unit_us


_decode: Final = msgspec.json.Decoder(CommitCounts).decode
_encode: Final = msgspec.json.encode


def encode_counts(counts: CommitCounts) -> bytes:
    """Return counts as they are stored."""
    return _encode(counts)


def decode_counts(stored: str) -> CommitCounts:
    """Return stored counts."""
    return _decode(stored)
