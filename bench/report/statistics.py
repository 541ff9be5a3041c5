"""Percentiles of what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import msgspec


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds from the intended time of sending to the answer; zeros where nothing was answered."""

    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0


def percentile(ascending: Sequence[float], percent: float) -> float:
    """Return the smallest of ascending values that ``percent`` of them do not exceed; 0 of none."""
    return ascending[max(0, math.ceil(len(ascending) * percent / 100) - 1)] if ascending else 0.0


def latency_of(values_us: Sequence[int]) -> Latency:
    """Sum up microseconds."""
    ascending = sorted(values_us)
    return Latency(*(percentile(ascending, percent) / 1000 for percent in (50, 95, 99, 100)))


def median_of(latencies: Sequence[Latency]) -> Latency:
    """Return the median of each percentile."""
    fields = Latency.__struct_fields__
    return Latency(*(median(getattr(latency, field) for latency in latencies) for field in fields))


def counts(found: Mapping[str, int]) -> str:
    """Write counts by name."""
    return ", ".join(f"{name} {count}" for name, count in sorted(found.items())) or "none"


def listed(values: Sequence[float], digits: int = 2) -> str:
    """Write the values of all rounds."""
    return f"by rounds: {', '.join(f'{value:.{digits}f}' for value in values)}"
