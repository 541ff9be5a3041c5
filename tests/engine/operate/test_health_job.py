"""The scheduled judgement: what it stores, logs and counts, and what every process shows."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from engine.cluster.jobs import Begun, JobRun
from engine.model.minutes import Minute
from engine.operate.health_job import HealthJob
from engine.operate.monitor.judge import WindowCounts, judge_all
from engine.operate.monitor.report import Judgement
from engine.operate.monitor.statuses import HealthStatus, LastHealth
from engine.runtime.metrics import Value
from engine.runtime.ports import StoreUnavailableError
from engine.wire.steps import run_steps
from tests.engine.operate.monitor.test_judge import MONITOR, WINDOW, minute

JUDGED_US = 1_772_366_400_000_000


class World:
    """Counts that the test sets, one row for all processes, and a clock."""

    def __init__(self) -> None:
        self.tenants: dict[str, Minute] = {}
        self.last_health: LastHealth | None = None
        self.away = False
        self.time_us = JUDGED_US
        self.alerted: list[Judgement] = []

    async def check(self, tenant: str | None, window_s: int) -> Judgement:
        """Judge all tenants."""
        assert (tenant, window_s) == (None, 900)
        return run_steps(
            judge_all([WindowCounts(name, one) for name, one in self.tenants.items()], MONITOR, WINDOW)
        )

    async def last(self) -> LastHealth | None:
        """Read the row."""
        if self.away:
            raise StoreUnavailableError("away")
        return self.last_health

    async def replace(self, health: LastHealth) -> None:
        """Write the row."""
        self.last_health = health

    def now_us(self) -> int:
        """Return the time."""
        return self.time_us

    def monotonic_s(self) -> float:
        """Return 0."""
        return 0.0

    def process(self, *, by_tenant: bool = False) -> HealthJob:
        """Return the job of one more process."""
        return HealthJob(self, self, self, 900, self.judged, by_tenant=by_tenant)

    async def judged(self, judgement: Judgement) -> None:
        """Keep the judgement that alerts are made of."""
        self.alerted.append(judgement)


async def run(job: HealthJob, world: World) -> dict[str, float | None]:
    """Have a process judge; return what its run counted."""
    one = JobRun(Begun("monitor", 0, 1, 0), world)
    await job(one)
    return one.counts


def shown(job: HealthJob) -> dict[str, Any]:
    """Return the metrics of a process by name."""
    return {metric.name: metric.values for metric in job.metrics() if isinstance(metric, Value)}


async def test_health_job_counts_score_and_tenants_by_status() -> None:
    world = World()
    world.tenants = {"acme": minute(100), "globex": minute(refused=100), "idle": minute()}
    counts = await run(world.process(), world)
    assert counts == {"score": 27, "healthy": 1, "degraded": 0, "critical": 1, "unknown": 1}


async def test_health_job_has_alerts_made_of_each_judgement() -> None:
    world = World()
    world.tenants = {"acme": minute(refused=100)}
    await run(world.process(), world)
    (judgement,) = world.alerted
    assert judgement.status == "critical"


async def test_health_job_logs_a_change_of_status_once_by_whatever_process() -> None:
    world = World()
    first, second = world.process(), world.process()
    world.tenants = {"acme": minute(100)}
    await run(first, world)
    logs = []
    for job, window in ((second, minute(refused=100)), (first, minute(refused=100)), (second, minute(100))):
        world.tenants = {"acme": window}
        with capture_logs() as logged:
            await run(job, world)
        logs.append([(one["log_level"], one["tenant"], one["before"], one["status"]) for one in logged])
    assert logs == [
        [("warning", None, "healthy", "critical"), ("warning", "acme", "healthy", "critical")],
        [],
        [("info", None, "critical", "healthy"), ("info", "acme", "critical", "healthy")],
    ]


async def test_health_job_log_has_score_and_reasons() -> None:
    world = World()
    world.tenants = {"acme": minute(refused=100)}
    with capture_logs() as logged:
        await run(world.process(), world)
    assert [one["event"] for one in logged] == ["health_changed"] * 2
    assert logged[1]["score"] == 0
    assert logged[1]["reasons"][0].startswith("success rate 0 %")


async def test_health_job_metrics_of_every_process_show_the_last_judgement() -> None:
    world = World()
    judge, other = world.process(), world.process()
    assert shown(other) == {}
    world.tenants = {"acme": minute(100), "globex": minute(15, failed=5)}
    await run(judge, world)
    await other.follow()
    assert shown(judge) == shown(other)
    assert shown(other) == {
        "tidemark_health_score": 95,
        "tidemark_health_status": {"healthy": 1, "degraded": 0, "critical": 0, "unknown": 0},
        "tidemark_health_tenants": {"healthy": 1, "degraded": 0, "critical": 1, "unknown": 0},
        "tidemark_health_judged_timestamp_seconds": JUDGED_US / 1e6,
    }


async def test_health_job_metrics_by_tenant_have_each_score_and_status() -> None:
    world = World()
    job = world.process(by_tenant=True)
    world.tenants = {"acme": minute(100), "globex": minute(15, failed=5), "idle": minute()}
    await run(job, world)
    assert shown(job)["tidemark_tenant_health_score"] == {"acme": 100, "globex": 47}
    assert shown(job)["tidemark_tenant_health_status"] == {
        ("acme", "healthy"): 1,
        ("globex", "critical"): 1,
        ("idle", "unknown"): 1,
    }
    world.time_us += 900_000_001
    assert "tidemark_tenant_health_score" not in shown(job)


async def test_health_job_metrics_of_an_old_judgement_are_unknown() -> None:
    world = World()
    job = world.process()
    world.tenants = {"acme": minute(100)}
    await run(job, world)
    world.time_us += 900_000_000
    assert shown(job)["tidemark_health_score"] == 100
    world.time_us += 1
    assert "tidemark_health_score" not in shown(job)
    assert shown(job)["tidemark_health_status"]["unknown"] == 1
    assert shown(job)["tidemark_health_status"]["healthy"] == 0


async def test_health_job_store_away_fails_the_run_and_keeps_the_last_judgement() -> None:
    world = World()
    job = world.process()
    world.tenants = {"acme": minute(100)}
    await run(job, world)
    world.away = True
    world.tenants = {"acme": minute(refused=100)}
    with capture_logs() as logged, pytest.raises(StoreUnavailableError):
        await run(job, world)
    assert logged == []
    assert shown(job)["tidemark_health_score"] == 100
    assert world.last_health is not None
    assert world.last_health.overall == HealthStatus("healthy", 100)
