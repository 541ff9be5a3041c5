"""Changes of status: whom people hear of."""

from __future__ import annotations

import pytest

from engine.model.minutes import Minute
from engine.operate.monitor.judge import WindowCounts, judge_all
from engine.operate.monitor.report import Status
from engine.operate.monitor.statuses import HealthStatus, LastHealth, last_health, status_changes
from engine.wire.steps import run_steps
from tests.engine.operate.monitor.test_judge import MONITOR, WINDOW, minute

GOOD, BAD, NONE = minute(100), minute(refused=100), minute()


@pytest.mark.parametrize(
    ("before", "now", "heard"),
    [
        ("healthy", GOOD, False),
        ("healthy", BAD, True),
        ("healthy", NONE, False),
        ("unknown", GOOD, False),
        ("unknown", BAD, True),
        ("critical", GOOD, True),
        ("critical", BAD, False),
        ("critical", NONE, True),  # what looked like an end may be silence
        ("degraded", BAD, True),
    ],
)
def test_status_changes_of_a_tenant_leave_out_those_of_idle_ones(
    before: Status, now: Minute, heard: bool
) -> None:
    judged = run_steps(judge_all([WindowCounts("acme", now)], MONITOR, WINDOW))
    last = LastHealth(0, HealthStatus(judged.reports[0].status, None), {"acme": HealthStatus(before, None)})
    changes = status_changes(last, judged)
    assert [(one.report.tenant, one.before) for one in changes] == ([("acme", before)] if heard else [])


def test_status_changes_of_all_together_have_every_change() -> None:
    judged = run_steps(judge_all([WindowCounts("acme", NONE)], MONITOR, WINDOW))
    last = LastHealth(0, HealthStatus("healthy", 100), {})
    assert [one.report.tenant for one in status_changes(last, judged)] == [None]


def test_status_changes_of_the_first_judgement_are_from_unknown() -> None:
    judged = run_steps(judge_all([WindowCounts("acme", BAD), WindowCounts("globex", NONE)], MONITOR, WINDOW))
    changes = status_changes(None, judged)
    assert [(one.report.tenant, one.before) for one in changes] == [(None, "unknown"), ("acme", "unknown")]


def test_last_health_has_every_tenant() -> None:
    judged = run_steps(judge_all([WindowCounts("acme", BAD), WindowCounts(None, GOOD)], MONITOR, WINDOW))
    assert last_health(judged) == LastHealth(
        1_772_366_400_000_000, HealthStatus("critical", 27), {"acme": HealthStatus("critical", 0)}
    )
