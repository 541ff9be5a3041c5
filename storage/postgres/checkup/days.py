"""Whether each day has a partition, for doctor and for verify."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import Final

from engine.operate.rows import CheckResult
from storage.postgres.blocking import connected
from storage.postgres.cell.dsn import owner_prefix
from storage.postgres.partitions.bounds import (
    EVENTS,
    IDEMPOTENCY,
    Partition,
    Series,
    is_detached,
    last_begin,
    partitions_of,
)

_LEAST_DAYS_AHEAD: Final = 2


def partition_findings(dsn: str) -> Iterator[CheckResult]:
    """Check that partitions follow each other without a gap, and that there are some ahead.

    Args:
        dsn: The database, as the owner.

    Yields:
        A fault for each gap, a warning if few days ahead have a partition, or a line if all is right.

    Raises:
        StoreError: The database is away.
    """
    with connected(dsn) as connection:
        found = [(series, partitions_of(connection, series)) for series in (EVENTS, IDEMPOTENCY)]
        with connection.cursor() as cursor:
            detached = is_detached(cursor)
    if detached:
        yield CheckResult(
            "warning",
            "partitions",
            "rows of events_later are being moved, or were when a server was killed",
            "run `run.py job cleanup`, which ends it, if no server runs",
        )
    gaps = [fault for series, partitions in found for fault in _gaps(series, partitions, owner_prefix(dsn))]
    yield from gaps
    if not gaps:
        yield ahead_finding([partitions for _, partitions in found], datetime.now(UTC).date())


def ahead_finding(found: Sequence[list[Partition]], today: date) -> CheckResult:
    """Say how many days from today on have partitions, in the table with the fewest."""
    days = max(0, (min(map(last_begin, found)) - today).days)
    said = f"{days} days from today on have partitions"
    if days < _LEAST_DAYS_AHEAD:
        remedy = "let a server run: it adds them at its start and hourly; its log says if it cannot"
        return CheckResult("warning", "partitions", said, remedy)
    return CheckResult("ok", "partitions", said)


def _gaps(series: Series, partitions: list[Partition], as_owner: str) -> Iterator[CheckResult]:
    spans = sorted((one.begins or date.min, one.ends or date.max) for one in partitions)
    for (_, begins), (ends, _) in pairwise([(date.min, date.min), *spans, (date.max, date.max)]):
        if begins < ends:
            low, high = None if begins == date.min else begins, None if ends == date.max else ends
            yield _gap(series, low, high, as_owner)


def _gap(series: Series, begins: date | None, ends: date | None, as_owner: str) -> CheckResult:
    low = "MINVALUE" if begins is None else series.bound(begins)
    high = "MAXVALUE" if ends is None else series.bound(ends)
    name = f"{series.table}_from_{begins:%Y%m%d}" if begins else f"{series.table}_from_the_first"
    return CheckResult(
        "fault",
        "partitions",
        f"no partition of {series.table} takes rows from {begins or 'the first day'} to before"
        f" {ends or 'the last one'}: what is of then is refused",
        f"attach the one that was detached; if there is none, {as_owner}CREATE TABLE"
        f" {name} PARTITION OF {series.table} FOR VALUES FROM ({low}) TO ({high}); then run `run.py migrate`,"
        " which secures it",
    )
