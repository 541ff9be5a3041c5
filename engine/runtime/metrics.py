"""Metrics as plain values: each component yields its own, and the probes only write them out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

#: Upper bounds of a histogram's buckets, in milliseconds; one more bucket has no bound.
DURATION_BOUNDS_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
#: The same in seconds, as metrics are told.
DURATION_BOUNDS_S: Final = tuple(bound_ms / 1000 for bound_ms in DURATION_BOUNDS_MS)
#: For what is mostly answered from memory: from a microsecond on.
LOOKUP_BOUNDS_S: Final = (1e-6, 1e-5, 1e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
#: For numbers of items.
SIZE_BOUNDS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Value(NamedTuple):
    """A counter or a gauge.

    Attributes:
        kind: A counter only grows while the process runs.
        name: The name without the suffix ``_total``, which counters get.
        text: One line of help.
        values: The value; with a ``label`` one value for each of its values. With several labels the keys are
            tuples.
        label: The name of the label, or the names of several; empty without one.
    """

    kind: Literal["counter", "gauge"]
    name: str
    text: str
    values: (
        float | Mapping[str, float] | Mapping[tuple[str, str], float] | Mapping[tuple[str, str, str], float]
    )
    label: str | tuple[str, ...] = ""


class Histogram(NamedTuple):
    """A distribution.

    Attributes:
        name: The name.
        text: One line of help.
        counts: The number of values in each bucket: those up to each bound, then those above the last one.
        sum: The sum of all values.
        bounds: The upper bounds of the buckets, inclusive.
    """

    name: str
    text: str
    counts: Sequence[int]
    sum: float
    bounds: Sequence[float] = DURATION_BOUNDS_S


Metric = Value | Histogram


class MetricSource(Protocol):
    """A component that counts."""

    def metrics(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""


class Distribution(msgspec.Struct):
    """Counts values in buckets.

    Attributes:
        bounds: The upper bounds of the buckets, inclusive; one more bucket has no bound.
        counts: The number of values in each bucket.
        sum: The sum of all values.
    """

    bounds: Sequence[float] = DURATION_BOUNDS_S
    counts: list[int] = []
    sum: float = 0.0

    def __post_init__(self) -> None:
        """Make the buckets."""
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float, times: int = 1) -> None:
        """Count a value as often as ``times`` says. It costs 0.2 µs."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def metric(self, name: str, text: str) -> Histogram:
        """Return the distribution as it is now."""
        return Histogram(name, text, list(self.counts), self.sum, self.bounds)


def counter(name: str, text: str, value: float) -> Value:
    """Return a counter without labels."""
    return Value("counter", name, text, value)


def gauge(name: str, text: str, value: float) -> Value:
    """Return a gauge without labels."""
    return Value("gauge", name, text, value)
