"""Percentiles of what was measured, and the interval of a ratio of two versions, by resampling rounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from random import Random
from statistics import fmean, linear_regression, median
from typing import Final, Literal

import msgspec

from engine.model.minutes import Durations

#: The part of resampled ratios that lies in the interval.
CONFIDENCE: Final = 0.95
_RESAMPLES: Final = 4000
_HOUR_S: Final = 3600.0
#: Standard errors on each side of a slope that its interval of 95 % has, of 20 values or more.
_INTERVAL: Final = 2.0


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds from the intended time of sending to the answer; zeros where nothing was answered.

    ``median_of`` takes these zeros as infinite, so that a run without answers meets no bar.
    """

    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0


class Histogram(msgspec.Struct, frozen=True):
    """Durations by bucket, those of ``engine.model.minutes``: bucket n ends at about 100 x 1.02^n µs.

    Two of them are merged by adding counts of the same bucket.
    """

    buckets: Sequence[int] = ()
    counts: Sequence[int] = ()
    sum_us: int = 0

    def durations(self) -> Durations:
        """Return what has percentiles and adds up."""
        return Durations.of(self.buckets, self.counts, self.sum_us)


def histogram_of(values_us: Iterable[int]) -> Histogram:
    """Count microseconds by bucket."""
    durations = Durations()
    for value_us in values_us:
        durations.add(value_us)
    return Histogram(*durations.filled(), durations.sum_us)


def merged(histograms: Iterable[Histogram]) -> Durations:
    """Add up what several runs found."""
    return reduce(Durations.plus, (one.durations() for one in histograms), Durations())


class Drift(msgspec.Struct, frozen=True):
    """A slope by least squares: how much values grow in an hour.

    ``most_per_h`` is the upper end of the interval that the slope is in with a probability of 95 %.
    """

    per_h: float
    most_per_h: float


def drift_of(at_s: Sequence[float], values: Sequence[float]) -> Drift:
    """Fit a line to at least three values."""
    slope, intercept = linear_regression(at_s, values)
    residuals = [value - intercept - slope * at for at, value in zip(at_s, values, strict=True)]
    freedom, centre = len(at_s) - 2, fmean(at_s)
    error = math.sqrt(_squares(residuals) / freedom / _squares([at - centre for at in at_s]))
    return Drift(slope * _HOUR_S, (slope + _INTERVAL * error) * _HOUR_S)


def _squares(values: Iterable[float]) -> float:
    return sum(value * value for value in values)


def percentile(ascending: Sequence[float], percent: float) -> float:
    """Return the smallest of ascending values that ``percent`` of them do not exceed; 0 of none."""
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)] if ascending else 0.0


def latency_of(values_us: Sequence[int]) -> Latency:
    """Sum up microseconds."""
    ascending = sorted(values_us)
    return Latency(*(percentile(ascending, percent) / 1000 for percent in (50, 95, 99, 100)))


def median_of(latencies: Sequence[Latency]) -> Latency:
    """Return the median of each percentile."""
    known = [msgspec.structs.astuple(one) if one.max_ms else (math.inf,) * 4 for one in latencies]
    return Latency(*map(median, zip(*known, strict=True)))


def over(value: float, of: float) -> float:
    """Return a ratio; infinite if the value that it is of was not measured."""
    return value / of if of and math.isfinite(of) else math.inf


def counts(found: Mapping[str, int]) -> str:
    """Write counts by name."""
    return ", ".join(f"{name} {count}" for name, count in sorted(found.items())) or "none"


def number(value: float | None) -> str:
    """Write a value with three digits or more; a dash for one that was not measured."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def listed(values: Sequence[float], digits: int = 2) -> str:
    """Write the values of all rounds."""
    return f"by rounds: {', '.join(f'{value:.{digits}f}' for value in values)}"


class Ratio(msgspec.Struct, frozen=True):
    """What this version costs over the other one: below 1 is better. ``low`` to ``high`` is the interval."""

    value: float
    low: float
    high: float

    def verdict(self, margin: float) -> Literal["better", "worse", "no difference"]:
        """Judge: a difference past the margin whose interval is all on one side of 1."""
        if self.low > 1 and self.value > 1 + margin:
            return "worse"
        return "better" if self.high < 1 and self.value < 1 - margin else "no difference"

    def told(self, margin: float) -> str:
        """Write the ratio, and whether its interval is too wide for the margin."""
        wide = "" if self.high - self.low <= 2 * margin else ": wider than the margin, give more --rounds"
        return f"{CONFIDENCE:.0%} of resamples from {self.low:.3f} to {self.high:.3f}{wide}"


def ratio_of(before: Sequence[float], now: Sequence[float], *, rate: bool, paired: bool) -> Ratio:
    """Compare the values of two versions, one of each round.

    Args:
        before: Those of the other version.
        now: Those of this version, of the same rounds in the same order if ``paired``.
        rate: Whether more is better; the ratio is that of costs, so it is turned round.
        paired: Whether rounds went by turns, so that ratios are taken round by round.
    """
    draw = Random(1)
    old, new = (now, before) if rate else (before, now)

    def ratio(places: Sequence[int], others: Sequence[int]) -> float:
        if paired:
            return median(new[place] / old[place] for place in places)
        return median(new[place] for place in others) / median(old[place] for place in places)

    sizes = len(old), len(new)
    drawn = sorted(ratio(*(draw.choices(range(size), k=size) for size in sizes)) for _ in range(_RESAMPLES))
    edge = round(_RESAMPLES * (1 - CONFIDENCE) / 2)
    return Ratio(ratio(range(sizes[0]), range(sizes[1])), drawn[edge], drawn[-1 - edge])
