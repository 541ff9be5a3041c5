"""The scheduled judgement: one process judges all tenants, and every process knows the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, get_args

import structlog

from engine.cluster.jobs import JobRun
from engine.operate.monitor.report import Judgement, Report, Status
from engine.operate.monitor.statuses import HealthStatus, LastHealth, last_health, status_changes
from engine.operate.ports import HealthMonitor, HealthStore
from engine.runtime.metrics import Metric, Value, gauge
from engine.runtime.ports import Clock

#: A judgement that is older says nothing about the health of now.
_STALE_US: Final = 900_000_000

_log = structlog.get_logger()


class HealthJob:
    """Judges all tenants, logs changes of status, and keeps the last judgement for metrics.

    Args:
        monitor: Judges.
        store: The last judgement, for all processes.
        clock: Tells how old a judgement is.
        window_s: The length of the window.
        judged: Is told each judgement; may raise StoreError.
        by_tenant: Whether metrics tell tenants apart.
    """

    def __init__(
        self,
        monitor: HealthMonitor,
        store: HealthStore,
        clock: Clock,
        window_s: int,
        judged: Callable[[Judgement], Awaitable[None]],
        *,
        by_tenant: bool,
    ) -> None:
        self._monitor = monitor
        self._store = store
        self._clock = clock
        self._window_s = window_s
        self._judged = judged
        self._by_tenant = by_tenant
        self._last: LastHealth | None = None

    async def __call__(self, run: JobRun) -> None:
        """Judge once; the run counts the score, and the tenants by status.

        Raises:
            StoreError: The store failed; the last judgement stays.
        """
        judgement = await self._monitor.check(None, self._window_s)
        before = await self._store.last()
        self._last = last = last_health(judgement)
        await self._store.replace(last)
        for report, was in status_changes(before, judgement):
            _log_change(report, was)
        await self._judged(judgement)
        run.counts["score"] = last.overall.score
        run.counts.update(_tenants_by_status(last))

    async def follow(self) -> None:
        """Read the last judgement, of whatever process. Raises StoreError."""
        self._last = await self._store.last()

    def metrics(self) -> Iterator[Metric]:
        """Yield score and status of all tenants together, and the number of tenants by status.

        If metrics tell tenants apart, also the status of each, and its score unless the status is unknown.
        """
        last = self._last
        if last is None:
            return
        stale = self._clock.now_us() - last.judged_at_us > _STALE_US
        overall = HealthStatus("unknown", None) if stale else last.overall
        if overall.score is not None:
            yield gauge(
                "tidemark_health_score", "The health of all tenants together, 0 to 100", overall.score
            )
        status: dict[str, float] = {name: float(name == overall.status) for name in get_args(Status)}
        yield Value("gauge", "tidemark_health_status", "1 for the status of all together", status, "status")
        text = "Tenants by status, as of the last judgement"
        yield Value("gauge", "tidemark_health_tenants", text, _tenants_by_status(last), "status")
        text = "When health was last judged, by any process, as Unix time"
        yield gauge("tidemark_health_judged_timestamp_seconds", text, last.judged_at_us / 1e6)
        if self._by_tenant and not stale:
            scores = {name: one.score for name, one in last.tenants.items() if one.score is not None}
            yield Value("gauge", "tidemark_tenant_health_score", "As of the last judgement", scores, "tenant")
            statuses = {(name, str(one.status)): 1.0 for name, one in last.tenants.items()}
            text = "1 for the status of each tenant, as of the last judgement"
            yield Value("gauge", "tidemark_tenant_health_status", text, statuses, ("tenant", "status"))


def _log_change(report: Report, before: Status) -> None:
    said = {
        "tenant": report.tenant,
        "status": report.status,
        "before": before,
        "score": report.score,
        "reasons": report.reasons,
    }
    if report.status == "healthy":
        _log.info("health_changed", **said)
    else:
        _log.warning("health_changed", **said)


def _tenants_by_status(last: LastHealth) -> dict[str, float]:
    counted = Counter(health.status for health in last.tenants.values())
    return {status: float(counted[status]) for status in get_args(Status)}
