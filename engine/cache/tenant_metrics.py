"""Metrics with a label ``tenant``, where the settings switch them on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import add
from typing import NamedTuple

from engine.model.minutes import Minute
from engine.runtime.metrics import Metric, Value


class _Counts(NamedTuple):
    """The counts of a tenant since the start."""

    succeeded: int
    failed: int
    refused: int
    items: int
    settled: int
    held: int
    finished: int
    abandoned: int
    received_bytes: int
    duration_us: int


def _counts(minute: Minute) -> _Counts:
    return _Counts(
        minute.succeeded,
        minute.failed,
        minute.refused,
        minute.items,
        minute.conflicts - minute.conflicts_open,
        minute.conflicts_open,
        minute.uploads_finished,
        minute.uploads_abandoned,
        minute.bytes_in,
        minute.durations.sum_us,
    )


class TenantMetrics:
    """The minutes of each tenant, added up since the start. Nothing is counted twice on the way of a sync.

    Args:
        name_of: Returns the name of a tenant; None if it is not known.
        connections_of: Returns how many connections a tenant has.
    """

    def __init__(self, name_of: Callable[[int], str | None], connections_of: Callable[[int], int]) -> None:
        self._name_of = name_of
        self._connections_of = connections_of
        self._past: dict[int, _Counts] = {}
        self._present: Mapping[int, Minute] = {}

    def begin(self, present: Mapping[int, Minute]) -> None:
        """Begin a minute: add up the one before, in 1 µs a tenant.

        Args:
            present: The minutes in which is counted from now on.
        """
        past = self._past
        past.update(self._totals())
        self._present = present

    def _totals(self) -> dict[int, _Counts]:
        """Return the totals of the tenants that have a present minute."""
        past = self._past
        totals: dict[int, _Counts] = {}
        for tenant_id, minute in self._present.items():
            counts = _counts(minute)
            before = past.get(tenant_id)
            totals[tenant_id] = counts if before is None else _Counts(*map(add, before, counts))
        return totals

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts of each tenant."""
        totals = self._past | self._totals()
        named = {name: counts for one, counts in totals.items() if (name := self._name_of(one)) is not None}
        connections = {name: self._connections_of(one) for one in totals if (name := self._name_of(one))}
        yield Value("gauge", "tidemark_tenant_connections", "WebSockets of a tenant", connections, "tenant")
        syncs = {
            (name, outcome): count
            for name, counts in named.items()
            for outcome, count in (
                ("succeeded", counts.succeeded),
                ("failed", counts.failed),
                ("refused", counts.refused),
            )
        }
        text = "Syncs of a tenant, by outcome"
        yield Value("counter", "tidemark_tenant_syncs", text, syncs, ("tenant", "outcome"))
        seconds = {name: counts.duration_us / 1_000_000 for name, counts in named.items()}
        text = "The durations of a tenant's answered syncs, added up"
        yield Value("counter", "tidemark_tenant_sync_seconds", text, seconds, "tenant")
        items = {name: counts.items for name, counts in named.items()}
        yield Value("counter", "tidemark_tenant_items", "Items of a tenant's syncs", items, "tenant")
        conflicts = {
            (name, outcome): count
            for name, counts in named.items()
            for outcome, count in (("settled", counts.settled), ("held", counts.held))
        }
        text = "Items of a tenant that met a conflict, by outcome"
        yield Value("counter", "tidemark_tenant_conflicts", text, conflicts, ("tenant", "outcome"))
        uploads = {
            (name, outcome): count
            for name, counts in named.items()
            for outcome, count in (("finished", counts.finished), ("abandoned", counts.abandoned))
        }
        text = "Uploads of a tenant, by outcome"
        yield Value("counter", "tidemark_tenant_uploads", text, uploads, ("tenant", "outcome"))
        sizes = {name: counts.received_bytes for name, counts in named.items()}
        text = "Bytes of a tenant's messages and files"
        yield Value("counter", "tidemark_tenant_received_bytes", text, sizes, "tenant")
