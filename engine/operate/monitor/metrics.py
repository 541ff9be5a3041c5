"""The table of metrics: the figure, its thresholds, and how much data it takes to judge it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from engine.operate.monitor.report import MetricName, Severity, Values
from engine.runtime.settings import Thresholds


class Limit(NamedTuple):
    """One threshold of a metric.

    Attributes:
        severity: That of a finding.
        name: The figure, for people.
        value: The figure; None without data.
        threshold: The threshold.
    """

    severity: Severity
    name: str
    value: Callable[[Values], float | None]
    threshold: Callable[[Thresholds], float]


class Rule(NamedTuple):
    """How one metric is judged.

    Attributes:
        metric: The metric.
        below: True if figures below the threshold are findings, False if those above it are.
        worst: The figure that takes off the most points, by the threshold.
        shown: Text of a figure with a number of decimals.
        evidence: What the figure was made of, for people.
        samples: How many syncs, or whatever the metric counts, there were. None: any number will do.
        bad: How many of them failed, or whatever the metric counts.
        limits: The thresholds, the most severe first.
    """

    metric: MetricName
    below: bool
    worst: Callable[[float], float]
    shown: Callable[[float, int], str]
    evidence: Callable[[Values], str]
    samples: Callable[[Values], int | None]
    bad: Callable[[Values], int]
    limits: tuple[Limit, ...]


def _percent(value: float, decimals: int) -> str:
    return f"{_number(100 * value, decimals)} %"


def _ms(value: float, decimals: int) -> str:
    return f"{_number(value, decimals)} ms"


def _number(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _failures(values: Values) -> str:
    refused = f", {values.refused} of them refused by the service" if values.refused else ""
    return f"{values.failed} of {values.syncs} syncs failed{refused}"


def _stalled(values: Values) -> str:
    more = values.stalled_devices - len(values.stalled)
    named = ", ".join(values.stalled) + (f" and {more} more" if values.stalled and more else "")
    return f"their syncs succeed, but their queues grow{': ' if named else ''}{named}"


def _ten_times(threshold: float) -> float:
    return 10 * threshold


RULES: Final = (
    Rule(
        "success_rate",
        below=True,
        worst=lambda _: 0,
        shown=_percent,
        evidence=_failures,
        samples=lambda values: values.syncs,
        bad=lambda values: values.failed,
        limits=(
            Limit("critical", "success rate", lambda v: v.success_rate, lambda t: t.success_rate_critical),
            Limit("info", "success rate", lambda v: v.success_rate, lambda t: t.success_rate_early),
        ),
    ),
    Rule(
        "conflict_rate",
        below=False,
        worst=lambda _: 1,
        shown=_percent,
        evidence=lambda values: f"{values.conflicts} conflicts of {values.items} items",
        samples=lambda values: values.syncs,
        bad=lambda values: values.conflicts,
        limits=(
            Limit("warning", "conflict rate", lambda v: v.conflict_rate, lambda t: t.conflict_rate_warning),
            Limit("info", "conflict rate", lambda v: v.conflict_rate, lambda t: t.conflict_rate_early),
        ),
    ),
    Rule(
        "sync_duration",
        below=False,
        worst=_ten_times,
        shown=_ms,
        evidence=lambda values: f"{values.syncs - values.failed} syncs",
        samples=lambda values: values.syncs - values.failed,
        bad=lambda _: 0,
        limits=(
            Limit(
                "warning",
                "mean sync duration",
                lambda v: v.sync_duration_ms,
                lambda t: t.sync_duration_warning_ms,
            ),
            Limit(
                "info",
                "95th percentile of sync durations",
                lambda v: v.sync_duration_p95_ms,
                lambda t: t.sync_duration_p95_early_ms,
            ),
        ),
    ),
    Rule(
        "failed_per_minute",
        below=False,
        worst=_ten_times,
        shown=_number,
        evidence=_failures,
        samples=lambda values: values.syncs,
        bad=lambda values: values.failed,
        limits=(
            Limit(
                "critical",
                "failed syncs a minute",
                lambda v: v.failed_per_minute,
                lambda t: t.failed_per_minute_critical,
            ),
            Limit(
                "info",
                "failed syncs a minute",
                lambda v: v.failed_per_minute,
                lambda t: t.failed_per_minute_early,
            ),
        ),
    ),
    Rule(
        "upload_abandonment",
        below=False,
        worst=lambda _: 1,
        shown=_percent,
        evidence=lambda values: (
            f"{values.uploads_abandoned} of {values.uploads_finished + values.uploads_abandoned} uploads"
            " expired within a day"
        ),
        samples=lambda values: values.uploads_finished + values.uploads_abandoned,
        bad=lambda values: values.uploads_abandoned,
        limits=(
            Limit(
                "warning",
                "abandoned uploads",
                lambda v: v.upload_abandonment,
                lambda t: t.upload_abandonment_warning,
            ),
            Limit(
                "info",
                "abandoned uploads",
                lambda v: v.upload_abandonment,
                lambda t: t.upload_abandonment_early,
            ),
        ),
    ),
    Rule(
        "device_health",
        below=True,
        worst=lambda _: 0,
        shown=_number,
        evidence=lambda values: f"the mean of {values.devices} devices seen within 7 days",
        samples=lambda values: values.device_syncs,
        bad=lambda values: values.device_failures,
        limits=(
            Limit("warning", "device health", lambda v: v.device_health, lambda t: t.device_health_warning),
            Limit("info", "device health", lambda v: v.device_health, lambda t: t.device_health_early),
        ),
    ),
    Rule(
        "stalled_devices",
        below=False,
        worst=lambda _: 0,
        shown=_number,
        evidence=_stalled,
        samples=lambda _: None,
        bad=lambda _: 0,
        limits=(Limit("info", "stalled devices", lambda v: v.stalled_devices, lambda _: 0),),
    ),
)
