"""Metrics with a label ``tenant``, where the settings switch them on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import add
from typing import Final, NamedTuple

from engine.model.minutes import Minute
from engine.runtime.metrics import Metric, Value

#: Tenants that are counted before other work gets its turn on the loop: 0.3 ms.
_SLICE: Final = 250
#: Minutes that may wait to be added up at the next scrape. Beyond them nobody scrapes.
_MOST_ENDED: Final = 3


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


#: The metrics with one value a tenant.
_PLAIN: Final[tuple[tuple[str, str, Callable[[_Counts], float]], ...]] = (
    ("tidemark_tenant_items", "Items of a tenant's syncs", lambda counts: counts.items),
    (
        "tidemark_tenant_sync_seconds",
        "The durations of a tenant's answered syncs, added up",
        lambda counts: counts.duration_us / 1_000_000,
    ),
    (
        "tidemark_tenant_received_bytes",
        "Bytes of a tenant's messages and files",
        lambda counts: counts.received_bytes,
    ),
)
#: The metrics by outcome, each with its place in the counts.
_BY_OUTCOME: Final = (
    ("tidemark_tenant_syncs", "Syncs of a tenant, by outcome", {"succeeded": 0, "failed": 1, "refused": 2}),
    (
        "tidemark_tenant_conflicts",
        "Items of a tenant that met a conflict, by outcome",
        {"settled": 4, "held": 5},
    ),
    ("tidemark_tenant_uploads", "Uploads of a tenant, by outcome", {"finished": 6, "abandoned": 7}),
)


def _plus(before: _Counts | None, minute: Minute | None) -> _Counts:
    if minute is None:
        return before or _NOTHING
    counts = _Counts(
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
    return counts if before is None else _Counts(*map(add, before, counts))


_NOTHING: Final = _Counts(*[0] * len(_Counts._fields))


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
        self._ended: deque[dict[int, Minute]] = deque()

    def begin(self, present: Mapping[int, Minute]) -> None:
        """Begin a minute. The one before is added up by the next scrape.

        Args:
            present: The minutes in which is counted from now on.
        """
        self._ended.append(dict(self._present))
        self._present = present
        while len(self._ended) > _MOST_ENDED:
            self._add_up()

    def _add_up(self) -> None:
        """Move some tenants of an ended minute to the past."""
        past, ended = self._past, self._ended[0]
        for _ in range(min(_SLICE, len(ended))):
            tenant_id, minute = ended.popitem()
            past[tenant_id] = _plus(past.get(tenant_id), minute)
        if not ended:
            self._ended.popleft()

    def _total(self, tenant_id: int) -> _Counts:
        """Add up a tenant. A minute may have ended since the page was begun: no count may go back."""
        total = _plus(self._past.get(tenant_id), self._present.get(tenant_id))
        for ended in self._ended:
            total = _plus(total, ended.get(tenant_id))
        return total

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts of each tenant: each metric in slices, so that other work has its turn."""
        totals: dict[str, _Counts] = {}
        connections = partial(Value, "gauge", "tidemark_tenant_connections", "WebSockets of a tenant")
        while self._ended:
            self._add_up()
            yield connections({}, "tenant")
        tenants = list({*self._past, *self._present})
        for first in range(0, len(tenants), _SLICE):
            found: dict[str, float] = {}
            for tenant_id in tenants[first : first + _SLICE]:
                name = self._name_of(tenant_id)
                if name is not None:
                    totals[name] = self._total(tenant_id)
                    found[name] = self._connections_of(tenant_id)
            yield connections(found, "tenant")
        for name, text, read in _PLAIN:
            for some in _slices(totals):
                yield Value(
                    "counter", name, text, {tenant: read(counts) for tenant, counts in some}, "tenant"
                )
        for name, text, outcomes in _BY_OUTCOME:
            for some in _slices(totals):
                values = {
                    (tenant, outcome): counts[index]
                    for tenant, counts in some
                    for outcome, index in outcomes.items()
                }
                yield Value("counter", name, text, values, ("tenant", "outcome"))


def _slices(totals: dict[str, _Counts]) -> Iterator[list[tuple[str, _Counts]]]:
    items = list(totals.items())
    return (items[first : first + _SLICE] for first in range(0, len(items), _SLICE))
