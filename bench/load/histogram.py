"""Latencies as a histogram."""

from __future__ import annotations

from array import array
from collections import Counter

from hdrh.histogram import HdrHistogram


def histogram(values_us: array[int]) -> HdrHistogram:
    """Count microseconds, up to ten minutes, with three significant digits."""
    counts = HdrHistogram(1, 600_000_000, 3)
    for value_us, count in Counter(values_us).items():
        counts.record_value(max(value_us, 1), count)
    return counts
