"""Scenario ``soak``: the same devices sync for an hour, and whether memory or latency drift.

The load comes in segments. After each the server's memory is read and what was acknowledged is audited; the
same devices then connect again. A line is fitted to memory and latency over the segments.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from itertools import accumulate
from statistics import fmean
from typing import Final

from bench.harness.environment import BenchError
from bench.harness.load_run import signed
from bench.harness.progress import progress
from bench.harness.stage import Options, staged
from bench.load.workload import MIX
from bench.report.results import Bar, Figure, Report, Row, connected_bar, lost_bar
from bench.report.statistics import drift_of, over
from bench.report.summary import audited

DURATION_S: Final = 3600.0
#: So many segments, each long enough for a p95 of thousands of syncs.
SEGMENTS: Final = 60
_LEAST_S: Final = 5.0
#: The part at the beginning, in which caches fill, that no line is fitted to.
_FILLING: Final = 0.2
_LEAST_FITTED: Final = 4
#: How much of its mean a value may grow in an hour, at the upper end of the slope's interval, in percent.
MEMORY_PERCENT_PER_H: Final = 5.0
P95_PERCENT_PER_H: Final = 10.0
#: A shorter run has no drift: its slope tells of caches that fill.
_LONG_S: Final = 1200.0


async def soak(options: Options) -> Report:
    """Run the scenario. Raises BenchError, EmbeddedError, StoreError."""
    duration_s = options.duration_s or DURATION_S
    segment_s = max(_LEAST_S, duration_s / SEGMENTS)
    count = round(duration_s / segment_s)
    if count * (1 - _FILLING) < _LEAST_FITTED:
        raise BenchError(f"a drift needs six segments of {_LEAST_S:g} s: give --duration 30 or more")
    report = Report(
        scenario="soak",
        work=f"{count} segments of {segment_s:g} s, {options.connections:,} connections over"
        f" {options.tenants} tenants, open loop of {options.rate_per_s:g} syncs/s; {MIX}",
    )
    prefix = secrets.token_hex(4)
    devices = [f"{prefix}-{index}" for index in range(options.connections)]
    async with staged(options, report.logged, options.workers or 1) as target:
        # A device has one token for hours. New ones would add 9 MiB until a server has kept 10,000.
        identities = signed(target, target.tenants, devices)
        for number in range(1, count + 1):
            progress(f"segment {number} of {count}, {(count - number + 1) * segment_s / 60:.1f} min left")
            _, row = await audited(
                *(f"segment {number}", target, "open", options.connections, segment_s),
                per_s=options.rate_per_s,
                identities=identities,
            )
            report.rows.append(row)
    judge(report, segment_s)
    return report


def judge(report: Report, segment_s: float) -> None:
    """Add figures and bars to a report that has a row for each segment."""
    rows = report.rows
    at_s = list(accumulate(segment_s for _ in rows))
    fitted = slice(int(_FILLING * len(rows)), None)
    report.bars += [connected_bar(rows), lost_bar(rows)]
    if at_s[-1] < _LONG_S:
        report.remarks.append("in less than 20 minutes a slope tells of caches that fill: no drift is judged")
    _drift(report, at_s[fitted], rows[fitted], "p95", "ms", P95_PERCENT_PER_H, lambda row: row.latency.p95_ms)
    if all(row.rss_end_mib for row in rows):
        limit = MEMORY_PERCENT_PER_H
        _drift(report, at_s[fitted], rows[fitted], "memory", "MiB", limit, lambda row: row.rss_end_mib or 0.0)


def _drift(
    report: Report,
    at_s: Sequence[float],
    rows: Sequence[Row],
    what: str,
    unit: str,
    limit: float,
    value: Callable[[Row], float],
) -> None:
    """Add the slope of a value, and after a long run the bar that it is surely not above the limit."""
    values = [value(row) for row in rows]
    drift, mean = drift_of(at_s, values), fmean(values)
    beside = f"mean {mean:.1f} {unit}; at most {drift.most_per_h:+.3g} {unit}"
    report.figures.append(Figure(f"drift of {what} in an hour", drift.per_h, unit, beside))
    percent = 100 * over(drift.most_per_h, mean) if at_s[-1] >= _LONG_S else None
    name = f"drift of {what} in an hour, upper bound"
    report.bars.append(Bar(name, percent, "at most", limit, "%", beside))
