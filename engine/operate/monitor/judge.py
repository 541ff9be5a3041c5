"""From counts of a window to reports: findings, score and status. Pure."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Final, NamedTuple

import msgspec

from engine.model.minutes import Minute
from engine.operate.monitor.metrics import RULES, Limit, Rule
from engine.operate.monitor.report import (
    SEVERITIES,
    Finding,
    Judgement,
    MetricName,
    Report,
    Severity,
    Status,
    Values,
)
from engine.runtime.settings import Monitor, Thresholds

#: The points that a finding takes off the score: the first at its threshold, the second at the worst figure.
_POINTS: Final[dict[Severity, tuple[int, int]]] = {"info": (5, 5), "warning": (20, 50), "critical": (40, 100)}
_STATUS: Final[dict[Severity, Status]] = {"warning": "degraded", "critical": "critical"}
_SAID: Final[dict[Severity, str]] = {
    "info": "an early warning",
    "warning": "a warning",
    "critical": "critical",
}
#: Most decimals of a figure, where fewer would show it equal to its threshold.
_MOST_DECIMALS: Final = 6


class DevicesSeen(msgspec.Struct, frozen=True):
    """The devices of a tenant that were seen within 7 days.

    Attributes:
        devices: How many.
        score_sum: Their health scores as of now, added up.
        syncs: All their syncs.
        failed: Those that failed.
        stalled_devices: How many of them are stalled (``engine.operate.monitor.stalled``).
        stalled: The ids of some of these.
    """

    devices: int = 0
    score_sum: float = 0
    syncs: int = 0
    failed: int = 0
    stalled_devices: int = 0
    stalled: tuple[str, ...] = ()

    def plus(self, other: DevicesSeen) -> DevicesSeen:
        """Return the sums, without ids: they say nothing without their tenants."""
        return DevicesSeen(
            self.devices + other.devices,
            self.score_sum + other.score_sum,
            self.syncs + other.syncs,
            self.failed + other.failed,
            self.stalled_devices + other.stalled_devices,
        )


class WindowCounts(msgspec.Struct, frozen=True):
    """All that is known of one tenant; ``tenant`` None is what no tenant is known for, or all together.

    Attributes:
        tenant: Its name.
        minutes: The sum of the window.
        uploads_finished: Uploads that became files within a day.
        uploads_abandoned: Uploads that expired within a day.
        devices: The devices that were seen within 7 days.
    """

    tenant: str | None
    minutes: Minute = msgspec.field(default_factory=Minute)
    uploads_finished: int = 0
    uploads_abandoned: int = 0
    devices: DevicesSeen = DevicesSeen()

    def plus(self, other: WindowCounts) -> WindowCounts:
        """Return the sums, of no tenant."""
        return WindowCounts(
            None,
            self.minutes.plus(other.minutes),
            self.uploads_finished + other.uploads_finished,
            self.uploads_abandoned + other.uploads_abandoned,
            self.devices.plus(other.devices),
        )


class Window(NamedTuple):
    """The time that is judged.

    Attributes:
        ends_at: Its end, the time of the judgement.
        length_s: Its length, as it was asked for.
        covered_s: The length that the minutes cover: the first of them begins up to a minute earlier.
    """

    ends_at: datetime
    length_s: int
    covered_s: float


def judge_all(
    counts: Iterable[WindowCounts], monitor: Monitor, window: Window
) -> Generator[None, None, Judgement]:
    """Judge all tenants together, and each by itself, in steps of 0.3 ms at most.

    Args:
        counts: Those of each tenant, and of no tenant.
        monitor: The thresholds.
        window: The window.
    """
    together = WindowCounts(None)
    tenants = []
    for one in counts:
        together = together.plus(one)
        if one.tenant is not None:
            tenants.append((one.tenant, one))
        yield
    reports = [judge(together, monitor.thresholds(None), window)]
    for name, one in sorted(tenants, key=itemgetter(0)):
        reports.append(judge(one, monitor.thresholds(name), window))
        yield
    return judgement(reports)


def judgement(reports: list[Report]) -> Judgement:
    """Put reports together; the first decides between healthy and unknown."""
    statuses = {report.status for report in reports}
    worst = next((one for one in ("critical", "degraded") if one in statuses), reports[0].status)
    return Judgement(status=worst, reports=reports)


def judge(counts: WindowCounts, thresholds: Thresholds, window: Window) -> Report:
    """Judge one tenant, or all together."""
    values = values_of(counts, window)
    findings: list[Finding] = []
    unjudged: list[MetricName] = []
    reasons: list[str] = []
    doubts: list[str] = [] if values.syncs else [f"no syncs within {_span(window.length_s)}"]
    lost = 0
    for rule in RULES:
        limit = _passed(rule, values, thresholds)
        if limit is None:
            if rule.limits[0].value(values) is None:
                unjudged.append(rule.metric)
            continue
        finding = _finding(rule, limit, values, thresholds, counts.tenant)
        if not _enough(rule, values, thresholds):
            unjudged.append(rule.metric)
            if limit.severity != "info":
                least = f"min_syncs is {thresholds.min_syncs}, min_failures {thresholds.min_failures}"
                doubts.append(f"{finding.message}; too few to judge: {least}")
            continue
        points = _points(rule, finding)
        lost += points
        findings.append(finding)
        reasons.append(f"{finding.message} (-{points})")
    findings.sort(key=lambda one: -SEVERITIES.index(one.severity))
    status: Status = "unknown" if doubts else "healthy"
    if findings:
        status = _STATUS.get(findings[0].severity, status)
    unknown = status == "unknown"
    return Report(
        tenant=counts.tenant,
        judged_at=window.ends_at,
        window_s=window.length_s,
        status=status,
        score=None if unknown else max(0, 100 - lost),
        reasons=doubts + reasons if unknown else reasons,
        findings=findings,
        unjudged=unjudged,
        values=values,
    )


def values_of(counts: WindowCounts, window: Window) -> Values:
    """Return the figures of a window."""
    minutes, devices = counts.minutes, counts.devices
    failed = minutes.failed + minutes.refused
    ended = counts.uploads_finished + counts.uploads_abandoned
    return Values(
        syncs=minutes.syncs,
        failed=failed,
        refused=minutes.refused,
        items=minutes.items,
        conflicts=minutes.conflicts,
        uploads_finished=counts.uploads_finished,
        uploads_abandoned=counts.uploads_abandoned,
        devices=devices.devices,
        device_syncs=devices.syncs,
        device_failures=devices.failed,
        stalled_devices=devices.stalled_devices,
        stalled=devices.stalled,
        success_rate=_ratio(minutes.syncs - failed, minutes.syncs),
        conflict_rate=_ratio(minutes.conflicts, minutes.items),
        sync_duration_ms=minutes.durations.mean_ms(),
        sync_duration_p95_ms=minutes.durations.percentile_ms(0.95),
        failed_per_minute=60 * failed / window.covered_s if minutes.syncs else None,
        upload_abandonment=_ratio(counts.uploads_abandoned, ended),
        device_health=_ratio(devices.score_sum, devices.devices),
    )


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _passed(rule: Rule, values: Values, thresholds: Thresholds) -> Limit | None:
    """Return the most severe threshold that the metric is beyond."""
    for limit in rule.limits:
        value, threshold = limit.value(values), limit.threshold(thresholds)
        if value is not None and (value < threshold if rule.below else value > threshold):
            return limit
    return None


def _enough(rule: Rule, values: Values, thresholds: Thresholds) -> bool:
    samples = rule.samples(values)
    if samples is None:
        return True
    return samples >= thresholds.min_syncs or rule.bad(values) >= thresholds.min_failures


def _finding(rule: Rule, limit: Limit, values: Values, thresholds: Thresholds, tenant: str | None) -> Finding:
    value, threshold = limit.value(values), limit.threshold(thresholds)
    assert value is not None
    shown, of = _shown(rule, value, threshold)
    side = "below" if rule.below else "above"
    message = f"{limit.name} {shown} ({rule.evidence(values)}): {_SAID[limit.severity]} {side} {of}"
    return Finding(rule.metric, tenant, limit.severity, value, threshold, message)


def _shown(rule: Rule, value: float, threshold: float) -> Sequence[str]:
    """Return both as texts that differ."""
    for decimals in range(1, _MOST_DECIMALS):
        texts = rule.shown(value, decimals), rule.shown(threshold, decimals)
        if texts[0] != texts[1]:
            break
    return texts


def _points(rule: Rule, finding: Finding) -> int:
    least, most = _POINTS[finding.severity]
    span = abs(rule.worst(finding.threshold) - finding.threshold)
    part = min(1, abs(finding.current_value - finding.threshold) / span) if span else 1
    return least + round((most - least) * part)


def _span(window_s: int) -> str:
    """Return the length of a window for people."""
    hours, rest_s = divmod(window_s, 3600)
    if rest_s:
        return "a minute" if window_s < 120 else f"{window_s // 60} minutes"
    return "an hour" if hours == 1 else f"{hours} hours"
