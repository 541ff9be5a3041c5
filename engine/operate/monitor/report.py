"""What a judgement says: findings, and the score and the status that are made of them."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

import msgspec

#: The six metrics that are judged, and the count of stalled devices, which is only an early warning.
MetricName = Literal[
    "success_rate",
    "conflict_rate",
    "sync_duration",
    "failed_per_minute",
    "upload_abandonment",
    "device_health",
    "stalled_devices",
]
#: From the mildest on; ``info`` is an early warning.
Severity = Literal["info", "warning", "critical"]
SEVERITIES: Final[tuple[Severity, ...]] = ("info", "warning", "critical")
Status = Literal["healthy", "degraded", "critical", "unknown"]


class Finding(msgspec.Struct, frozen=True):
    """A metric beyond one of its thresholds; of each metric there is one finding at most, the worst.

    Attributes:
        metric: The metric.
        tenant: The name of the tenant, None for all tenants together.
        severity: That of the threshold.
        current_value: In the unit of the metric: rates from 0 to 1, durations in milliseconds, health from 0
            to 100.
        threshold: In the same unit.
        message: One sentence for a person.
    """

    metric: MetricName
    tenant: str | None
    severity: Severity
    current_value: float
    threshold: float
    message: str


class Values(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a window. A figure without data is None.

    ``failed`` includes ``refused``, which the service refused. Uploads are those that ended within a day,
    devices those that were seen within a week. ``stalled`` names at most 20 of ``stalled_devices``.
    """

    syncs: int = 0
    failed: int = 0
    refused: int = 0
    items: int = 0
    conflicts: int = 0
    uploads_finished: int = 0
    uploads_abandoned: int = 0
    devices: int = 0
    device_syncs: int = 0
    device_failures: int = 0
    stalled_devices: int = 0
    stalled: tuple[str, ...] = ()
    success_rate: float | None = None
    conflict_rate: float | None = None
    sync_duration_ms: float | None = None
    sync_duration_p95_ms: float | None = None
    failed_per_minute: float | None = None
    upload_abandonment: float | None = None
    device_health: float | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The health of one tenant, or of all together, in a window.

    Attributes:
        tenant: The name of the tenant, None for all together.
        judged_at: The end of the window.
        window_s: The length of the window.
        status: ``critical`` or ``degraded`` by the worst finding. Else ``unknown`` without data, or if a
            metric is beyond a threshold with too few syncs to judge it.
        score: 0 to 100, None while the status is ``unknown``.
        reasons: A sentence for all that takes points off the score, or keeps the status unknown.
        findings: At most one of each metric, the worst first.
        unjudged: The metrics with too little data: their alerts neither begin nor clear now.
        values: The figures.
    """

    tenant: str | None
    judged_at: datetime
    window_s: int
    status: Status
    score: int | None
    reasons: list[str]
    findings: list[Finding]
    unjudged: list[MetricName]
    values: Values


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """All reports of one check.

    Attributes:
        status: The worst of all reports. A tenant that is ``unknown`` counts only if it is the first report.
        reports: All tenants together first, then each by name; or one tenant alone.
    """

    status: Status
    reports: list[Report]
