"""Metrics as plain values: each component yields its own, and the probes only write them out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

#: Upper bounds of a histogram's buckets, in milliseconds; one more bucket has no bound.
DURATION_BOUNDS_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class Value(NamedTuple):
    """A counter or a gauge.

    Attributes:
        kind: A counter only grows while the process runs.
        name: The name without the suffix ``_total``, which counters get.
        text: One line of help.
        values: The value; with a ``label`` one value for each of its values.
        label: The name of the label, empty without one.
    """

    kind: Literal["counter", "gauge"]
    name: str
    text: str
    values: float | Mapping[str, float]
    label: str = ""


class Histogram(NamedTuple):
    """Durations: ``counts`` of each bucket of ``DURATION_BOUNDS_MS`` and of the open one, and their sum."""

    name: str
    text: str
    counts: Sequence[int]
    sum_s: float


Metric = Value | Histogram


class MetricSource(Protocol):
    """A component that counts."""

    def metrics(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""


def counter(name: str, text: str, value: float) -> Value:
    """Return a counter without labels."""
    return Value("counter", name, text, value)


def gauge(name: str, text: str, value: float) -> Value:
    """Return a gauge without labels."""
    return Value("gauge", name, text, value)
