"""What devices counted themselves, summed over a tenant's devices by hour or day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from engine.model.commit_counts import Unit, whole_periods
from engine.model.minutes import Durations
from engine.wire.timestamps import to_text


class Summed(NamedTuple):
    """The sum of a counter, or of a histogram if it has ``durations``; ``start_us`` of 0 is all periods."""

    start_us: int
    name: str
    devices: int
    total: int
    durations: Durations | None


class TelemetryReads(Protocol):
    """Telemetry of a tenant. Raises RefusedError if there is no such tenant, StoreError."""

    async def telemetry(self, tenant: str, since_us: int, until_us: int, by: Unit) -> Sequence[Summed]:
        """Sum the hours that began in a span, by period and name, and over all periods by name."""


class TelemetryFigures(msgspec.Struct, frozen=True):
    """A counter or a histogram in a period.

    Attributes:
        start: The beginning of the period; None for all periods together.
        name: Its name.
        kind: What it is.
        devices: Devices that told it.
        total: The sum of a counter, or the number of values of a histogram.
        p50_ms: Of a histogram, to 1 %; None of a counter, or without values.
        p95_ms: As above.
        p99_ms: As above.
        buckets: The bucket and the count of each that is not empty; None of a counter.
    """

    start: str | None
    name: str
    kind: Literal["counter", "histogram"]
    devices: int
    total: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    buckets: Sequence[tuple[int, int]] | None


class TelemetryAnalytics(msgspec.Struct, frozen=True):
    """The telemetry of a tenant: rows by time and name, and over all periods by name."""

    tenant: str
    since: str
    until: str
    by: Unit
    rows: Sequence[TelemetryFigures]
    total: Sequence[TelemetryFigures]


async def telemetry_analytics(
    store: TelemetryReads, tenant: str, since_us: int, until_us: int, by: Unit
) -> TelemetryAnalytics:
    """Read what a tenant's devices counted.

    Args:
        store: Where it is read.
        tenant: The name of the tenant.
        since_us: The first period is the one that this instant is in.
        until_us: The last period is the one that begins before this instant.
        by: The unit of the periods, in UTC.

    Raises:
        RefusedError: There is no such tenant.
        StoreError: The database is away.
    """
    since_us, until_us = whole_periods(since_us, until_us, by)
    summed = sorted(await store.telemetry(tenant, since_us, until_us, by), key=_order)
    rows = [_figures(one) for one in summed if one.start_us]
    total = [_figures(one) for one in summed if not one.start_us]
    return TelemetryAnalytics(tenant, to_text(since_us), to_text(until_us), by, rows, total)


def _order(one: Summed) -> tuple[int, bool, str]:
    return one.start_us, one.durations is not None, one.name


def _figures(one: Summed) -> TelemetryFigures:
    start = to_text(one.start_us) if one.start_us else None
    durations = one.durations
    if durations is None:
        return TelemetryFigures(start, one.name, "counter", one.devices, one.total, None, None, None, None)
    p50_ms, p95_ms, p99_ms = (durations.percentile_ms(part) for part in (0.5, 0.95, 0.99))
    buckets = list(zip(*durations.filled(), strict=True))
    return TelemetryFigures(
        start, one.name, "histogram", one.devices, one.total, p50_ms, p95_ms, p99_ms, buckets
    )
