"""The monitor's judgement: against a second implementation, and case by case."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.minutes import Durations, Minute
from engine.operate.monitor.judge import DevicesSeen, Window, WindowCounts, judge, judge_all
from engine.operate.monitor.report import Judgement, Report
from engine.runtime.settings import TenantThresholds, Thresholds
from engine.wire.steps import run_steps
from tests.engine.runtime.test_settings import load

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MONITOR = load().monitor
WINDOW = Window(NOW, 900, 930)


def minute(
    succeeded: int = 0, failed: int = 0, refused: int = 0, ms: float = 20, items: int = 0, conflicts: int = 0
) -> Minute:
    """Return a window with syncs of one duration."""
    durations = Durations()
    for _ in range(succeeded):
        durations.add(round(ms * 1000))
    return Minute(
        syncs=succeeded + failed + refused,
        failed=failed,
        refused=refused,
        items=items,
        conflicts=conflicts,
        durations=durations,
    )


def report_of(facts: WindowCounts, **changes: float) -> Report:
    """Judge by the defaults with some changes."""
    return judge(facts, msgspec.structs.replace(MONITOR, **changes), WINDOW)


# -- the model: every sentence of the specification as one line of a table, in exact numbers ------------


def model(facts: WindowCounts, of: Thresholds) -> dict[str, Any]:
    """Judge a second time, from counts alone, as plainly as possible."""
    m, seen = facts.minutes, facts.devices
    failed, good = m.failed + m.refused, m.syncs - m.failed - m.refused
    ended = facts.uploads_finished + facts.uploads_abandoned

    def share(part: float | Fraction, whole: int) -> Fraction | None:
        return Fraction(part) / whole if whole else None

    # A threshold of 0.15 is 15 of 100, though the nearest float is a little below.
    def over(value: Fraction | float | None, limit: float) -> bool | None:
        return None if value is None else value > Fraction(str(limit))

    def under(value: Fraction | float | None, limit: float) -> bool | None:
        return None if value is None else value < Fraction(str(limit))

    success = share(good, m.syncs)
    conflicts = share(m.conflicts, m.items)
    mean_ms = share(Fraction(m.durations.sum_us) / 1000, m.durations.count)
    p95_ms = m.durations.percentile_ms(0.95)
    a_minute = Fraction(failed * 60, 930) if m.syncs else None
    abandoned = share(facts.uploads_abandoned, ended)
    health = share(seen.score_sum, seen.devices)
    several_syncs = m.syncs >= of.min_syncs or failed >= of.min_failures
    rows: list[tuple[str, str, bool | None, bool | None, bool]] = [
        (
            "success_rate",
            "critical",
            under(success, of.success_rate_critical),
            under(success, of.success_rate_early),
            several_syncs,
        ),
        (
            "conflict_rate",
            "warning",
            over(conflicts, of.conflict_rate_warning),
            over(conflicts, of.conflict_rate_early),
            m.syncs >= of.min_syncs or m.conflicts >= of.min_failures,
        ),
        (
            "sync_duration",
            "warning",
            over(mean_ms, of.sync_duration_warning_ms),
            over(p95_ms, of.sync_duration_p95_early_ms),
            good >= of.min_syncs,
        ),
        (
            "failed_per_minute",
            "critical",
            over(a_minute, of.failed_per_minute_critical),
            over(a_minute, of.failed_per_minute_early),
            several_syncs,
        ),
        (
            "upload_abandonment",
            "warning",
            over(abandoned, of.upload_abandonment_warning),
            over(abandoned, of.upload_abandonment_early),
            ended >= of.min_syncs or facts.uploads_abandoned >= of.min_failures,
        ),
        (
            "device_health",
            "warning",
            under(health, of.device_health_warning),
            under(health, of.device_health_early),
            seen.syncs >= of.min_syncs or seen.failed >= of.min_failures,
        ),
        ("stalled_devices", "info", seen.stalled_devices > 0, None, True),
    ]
    found: dict[str, str] = {}
    unjudged: set[str] = set()
    doubt = m.syncs == 0
    for metric, severity, passed, early, enough in rows:
        if not enough and (passed or early):
            unjudged.add(metric)
            doubt = doubt or bool(passed)
        elif passed or early:
            found[metric] = severity if passed else "info"
        elif passed is None:
            unjudged.add(metric)
    if "critical" in found.values():
        status = "critical"
    elif "warning" in found.values():
        status = "degraded"
    else:
        status = "unknown" if doubt else "healthy"
    return {"found": found, "unjudged": unjudged, "status": status}


counts = st.integers(0, 40) | st.integers(0, 4000)
#: Near the thresholds, so that each side of each is drawn often.
durations_ms = st.sampled_from([1, 299, 301, 499, 500, 501, 5000]) | st.integers(1, 20_000)


@st.composite
def windows(draw: st.DrawFn) -> Minute:
    good = draw(counts)
    durations = Durations()
    slow = draw(st.integers(0, good))
    for count, ms in ((slow, draw(durations_ms)), (good - slow, draw(durations_ms))):
        for _ in range(min(count, 60)):
            durations.add(ms * 1000)
    failed, refused = draw(counts), draw(counts)
    items = draw(st.integers(0, 2000))
    conflicts = draw(st.integers(0, items))
    good = durations.count
    return Minute(
        syncs=good + failed + refused,
        failed=failed,
        refused=refused,
        items=items,
        conflicts=conflicts,
        durations=durations,
    )


@st.composite
def devices_seen(draw: st.DrawFn) -> DevicesSeen:
    devices = draw(st.integers(0, 30))
    score = draw(st.integers(0, 100))
    syncs = draw(counts)
    stalled = draw(st.integers(0, devices))
    return DevicesSeen(devices, devices * score, syncs, draw(st.integers(0, syncs)), stalled)


def facts_of(tenant: str | None) -> st.SearchStrategy[WindowCounts]:
    return st.builds(
        WindowCounts, st.just(tenant), windows(), st.integers(0, 40), st.integers(0, 40), devices_seen()
    )


thresholds = st.just(MONITOR) | st.builds(
    lambda **some: msgspec.structs.replace(MONITOR, **some),
    success_rate_critical=st.sampled_from([0, 0.5, 0.95, 1]),
    conflict_rate_warning=st.sampled_from([0, 0.05, 1]),
    failed_per_minute_critical=st.sampled_from([0, 1, 10, 1000]),
    device_health_warning=st.sampled_from([0, 70, 100]),
    min_syncs=st.integers(1, 50),
    min_failures=st.integers(1, 50),
)


@given(facts_of("acme"), thresholds)
def test_judge_any_window_as_the_model(facts: WindowCounts, of: Thresholds) -> None:
    report = judge(facts, of, WINDOW)
    expected = model(facts, of)
    assert {one.metric: one.severity for one in report.findings} == expected["found"]
    assert set(report.unjudged) == expected["unjudged"]
    assert report.status == expected["status"]
    assert (report.score is None) == (report.status == "unknown")
    assert report.score is None or 0 <= report.score <= 100
    order = ["critical", "warning", "info"]
    assert [one.severity for one in report.findings] == sorted(
        (one.severity for one in report.findings), key=order.index
    )
    if report.status == "healthy":
        assert all(one.severity == "info" for one in report.findings)
    if report.score == 100:
        assert not report.findings


@given(st.integers(20, 3000), st.data())
def test_judge_more_failures_never_raise_the_score(syncs: int, data: st.DataObject) -> None:
    fewer = data.draw(st.integers(0, syncs))
    more = data.draw(st.integers(fewer, syncs))
    before, after = (report_of(WindowCounts("acme", minute(syncs - n, failed=n))) for n in (fewer, more))
    assert before.score is not None
    assert after.score is not None
    assert after.score <= before.score


@given(st.lists(st.sampled_from(["acme", "globex", "umbrella"]), unique=True), st.data())
def test_judge_all_together_is_the_sum_and_each_tenant_itself(names: list[str], data: st.DataObject) -> None:
    each = [data.draw(facts_of(name)) for name in [*names, None]]
    found = run_steps(judge_all(each, MONITOR, WINDOW))
    together, *own = found.reports
    assert together.tenant is None
    assert together.values.syncs == sum(one.minutes.syncs for one in each)
    assert together.values.devices == sum(one.devices.devices for one in each)
    assert together.values.stalled == ()
    assert own == [judge(one, MONITOR, WINDOW) for one in sorted(each[:-1], key=lambda f: f.tenant or "")]
    statuses = {report.status for report in found.reports}
    if "critical" in statuses:
        assert found.status == "critical"
    elif "degraded" in statuses:
        assert found.status == "degraded"
    else:
        assert found.status == together.status


# -- cases -----------------------------------------------------------------------------------------------


def test_judge_good_window_is_healthy_with_full_score() -> None:
    report = report_of(WindowCounts("acme", minute(100, items=100), 10, 0, DevicesSeen(3, 290, 100, 0)))
    assert (report.status, report.score, report.reasons, report.findings, report.unjudged) == (
        ("healthy", 100, [], [], [])
    )
    assert report.values.success_rate == 1
    assert report.values.sync_duration_ms == 20
    assert report.values.device_health == pytest.approx(96.67, abs=0.01)


def test_judge_no_data_is_unknown_with_its_reason() -> None:
    report = report_of(WindowCounts("acme"))
    assert (report.status, report.score) == ("unknown", None)
    assert report.reasons == ["no syncs within 15 minutes"]
    assert len(report.unjudged) == 6


def test_judge_total_outage_is_critical_with_score_0() -> None:
    """The service refused everything: no device failed at anything."""
    report = report_of(WindowCounts("acme", minute(refused=5)))
    assert (report.status, report.score) == ("critical", 0)
    assert report.findings[0].message == (
        "success rate 0 % (5 of 5 syncs failed, 5 of them refused by the service): critical below 95 %"
    )
    assert report.reasons == [report.findings[0].message + " (-100)"]


def test_judge_failures_of_too_few_syncs_are_unknown() -> None:
    report = report_of(WindowCounts("acme", minute(15, failed=4, items=15)))
    assert (report.status, report.score, report.findings) == ("unknown", None, [])
    assert report.reasons == [
        (
            "success rate 78.9 % (4 of 19 syncs failed): critical below 95 %; too few to judge: "
            "min_syncs is 20, min_failures 5"
        )
    ]
    assert report.unjudged == ["success_rate", "upload_abandonment", "device_health"]


@pytest.mark.parametrize(("good", "failed"), [(16, 4), (15, 5)])
def test_judge_enough_syncs_or_failures_are_critical(good: int, failed: int) -> None:
    assert report_of(WindowCounts("acme", minute(good, failed=failed))).status == "critical"


def test_judge_slow_tail_is_an_early_warning_and_healthy() -> None:
    window = minute(95, ms=20)
    for _ in range(6):
        window.durations.add(400_000)
    window.syncs += 6
    report = report_of(WindowCounts("acme", window))
    assert (report.status, report.score) == ("healthy", 95)
    (finding,) = report.findings
    assert (finding.metric, finding.severity, finding.threshold) == ("sync_duration", "info", 300)
    assert finding.message.startswith("95th percentile of sync durations 39")
    assert finding.message.endswith(" ms (101 syncs): an early warning above 300 ms")


def test_judge_stalled_devices_are_named() -> None:
    seen = DevicesSeen(9, 900, 100, 0, 3, ("phone-1", "phone-2"))
    report = report_of(WindowCounts("acme", minute(100), devices=seen))
    (finding,) = report.findings
    assert (finding.severity, finding.current_value) == ("info", 3)
    assert "their queues grow: phone-1, phone-2 and 1 more" in finding.message


def test_judge_figure_near_its_threshold_is_shown_apart_from_it() -> None:
    report = report_of(WindowCounts("acme", minute(94_999, failed=5001)), failed_per_minute_critical=1000)
    assert report.findings[0].message.startswith("success rate 94.999 %")


def test_judge_all_thresholds_of_a_tenant_are_its_own() -> None:
    own = msgspec.structs.replace(
        MONITOR, tenants={"acme": TenantThresholds(success_rate_critical=0.5, success_rate_early=0.6)}
    )
    each = [WindowCounts(name, minute(90, failed=10)) for name in ("globex", "acme")]
    found: Judgement = run_steps(judge_all(each, own, WINDOW))
    assert [(one.tenant, one.status) for one in found.reports] == [
        (None, "critical"),
        ("acme", "healthy"),
        ("globex", "critical"),
    ]
    assert found.status == "critical"


def test_judge_all_idle_tenants_do_not_make_all_unknown() -> None:
    found = run_steps(judge_all([WindowCounts("acme", minute(30)), WindowCounts("globex")], MONITOR, WINDOW))
    assert [one.status for one in found.reports] == ["healthy", "healthy", "unknown"]
    assert found.status == "healthy"


def test_judge_early_warning_of_too_few_syncs_is_no_doubt() -> None:
    report = report_of(WindowCounts("acme", minute(10, items=100, conflicts=4)))
    assert (report.status, report.score, report.findings) == ("healthy", 100, [])
    assert "conflict_rate" in report.unjudged


def test_judge_all_critical_tenant_outweighs_degraded_ones() -> None:
    slow, failing = WindowCounts("acme", minute(100, ms=600)), WindowCounts("globex", minute(90, failed=10))
    found = run_steps(judge_all([slow, failing], MONITOR, WINDOW))
    assert [one.status for one in found.reports[1:]] == ["degraded", "critical"]
    assert found.status == "critical"
