"""Percentiles, and the latencies of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bench.report.results import Latency


def percentile(values: Sequence[float], percent: float) -> float:
    """Take the smallest of ascending values that ``percent`` of them do not exceed; 0 of none."""
    return values[max(0, math.ceil(len(values) * percent / 100) - 1)] if values else 0.0


def latency_of(values_us: list[int]) -> Latency:
    """Sum up microseconds."""
    values_us.sort()
    return Latency(*(percentile(values_us, percent) / 1000 for percent in (50, 95, 99, 100)))
