"""What receivers are told: the table, and a receiver's view of any history of checks and failures."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import count, product
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.operate.monitor.alerts import (
    MOST_TENANTS,
    Alert,
    AlertKey,
    AlertState,
    AlertThreshold,
    checked,
    kind_of,
    sent,
)
from engine.operate.monitor.report import Finding, Judgement, MetricName, Report, Severity, Values

AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
RANK: Final[dict[Severity | None, int]] = {None: 0, "info": 1, "warning": 2, "critical": 3}
LEAST: Final[dict[AlertThreshold, int]] = {"any": 1, "warning": 2, "critical": 3}
METRICS: Final[tuple[MetricName, ...]] = ("success_rate", "conflict_rate")


def _finding(tenant: str | None, metric: MetricName, severity: Severity) -> Finding:
    return Finding(metric, tenant, severity, 0.5, 0.9, f"{metric} is {severity}")


def _report(tenant: str | None, findings: list[Finding], unjudged: list[MetricName]) -> Report:
    return Report(
        tenant=tenant,
        judged_at=AT,
        window_s=900,
        status="healthy",
        score=100,
        reasons=[],
        findings=findings,
        unjudged=unjudged,
        values=Values(),
    )


def _judgement(*reports: Report) -> Judgement:
    return Judgement(status="healthy", reports=list(reports))


@pytest.mark.parametrize(("told", "found", "threshold"), list(product(RANK, RANK, LEAST)))
def test_kind_of_each_row_of_the_table_is_as_it_says(
    told: Severity | None, found: Severity | None, threshold: AlertThreshold
) -> None:
    now = RANK[found] if RANK[found] >= LEAST[threshold] else 0
    if told is None:
        expected = "fired" if now else None
    elif not now:
        expected = "cleared"
    else:
        expected = "worsened" if now > RANK[told] else None
    assert kind_of(told, found, threshold) == expected


class Receiver:
    """Knows only what arrived; the same message may arrive twice."""

    def __init__(self) -> None:
        self.open: dict[tuple[str | None, str], Severity] = {}
        self.seen: dict[str, Alert] = {}

    def take(self, alert: Alert) -> None:
        """Take a message, and check that it follows from those before."""
        if alert.id in self.seen:
            assert self.seen[alert.id] == alert
            return
        self.seen[alert.id] = alert
        key = alert.tenant, alert.metric
        if alert.kind == "fired":
            assert key not in self.open
            self.open[key] = alert.severity
        elif alert.kind == "worsened":
            assert RANK[alert.severity] > RANK[self.open[key]]
            self.open[key] = alert.severity
        else:
            assert self.open.pop(key) == alert.severity


_SEVERITY = st.sampled_from(["none", "unjudged", "info", "warning", "critical"])
_CHECK = st.dictionaries(
    st.tuples(st.sampled_from([None, "acme", "globex"]), st.sampled_from(METRICS)), _SEVERITY
)
#: A check, or an attempt to send: refused, taken, or taken while the sender was killed before it noted so.
_STEP = st.one_of(_CHECK, st.sampled_from(["refused", "taken", "killed"]))


@given(st.lists(_STEP, max_size=30), st.sampled_from(list(LEAST)))
def test_alerts_of_any_history_tell_each_beginning_and_each_end_once(
    steps: list[dict[tuple[str | None, MetricName], str] | str], threshold: AlertThreshold
) -> None:
    states: dict[AlertKey, AlertState] = {}
    last: dict[AlertKey, str] = {}
    receiver, ids = Receiver(), count()

    def new_id() -> str:
        return str(next(ids))

    def attempt(outcome: str) -> None:
        for key, state in list(states.items()):
            if state.pending is None or outcome == "refused":
                continue
            receiver.take(state.pending)
            if outcome == "taken":
                states[key] = sent(state, key, threshold, new_id, AT)

    for step in steps:
        if isinstance(step, str):
            attempt(step)
            continue
        reports = []
        for tenant in (None, "acme", "globex"):
            mine = {metric: step.get((tenant, metric), "none") for metric in METRICS}
            findings = [
                _finding(tenant, metric, severity)  # type: ignore[arg-type]
                for metric, severity in mine.items()
                if severity not in ("none", "unjudged")
            ]
            reports.append(_report(tenant, findings, [m for m, one in mine.items() if one == "unjudged"]))
            last |= {AlertKey(tenant, m): one for m, one in mine.items() if one != "unjudged"}
        states |= checked(states, _judgement(*reports), threshold, new_id, everything=True)
    attempt("taken")
    attempt("taken")
    assert all(state.pending is None for state in states.values())
    bad = {key for key, one in last.items() if one != "none" and RANK[one] >= LEAST[threshold]}  # type: ignore[index]
    assert set(receiver.open) == bad


def test_checked_a_tenant_alone_leaves_the_others() -> None:
    states = {AlertKey("globex", "success_rate"): AlertState(told="critical")}
    alone = _judgement(_report("acme", [_finding("acme", "success_rate", "critical")], []))
    changed = checked(states, alone, "any", lambda: "id", everything=False)
    assert list(changed) == [AlertKey("acme", "success_rate")]


def test_checked_a_tenant_that_is_gone_is_cleared() -> None:
    states = {AlertKey("globex", "success_rate"): AlertState(told="critical")}
    changed = checked(states, _judgement(_report(None, [], [])), "any", lambda: "id", everything=True)
    pending = changed[AlertKey("globex", "success_rate")].pending
    assert pending is not None
    assert pending.kind == "cleared"


def _of_tenants(overall: Severity | None, *severities: Severity | None) -> Judgement:
    """A check that found one metric of so many tenants, and of all together, as bad as that."""
    named = [(None, overall), *((f"t{number}", one) for number, one in enumerate(severities))]
    return _judgement(
        *(_report(name, [_finding(name, "success_rate", one)] if one else [], []) for name, one in named)
    )


def _all(count: int, severity: Severity | None) -> list[Severity | None]:
    return [severity] * count


def _told(judgement: Judgement, threshold: AlertThreshold = "any") -> dict[str | None, Alert]:
    """What a receiver that knows nothing is told, by tenant."""
    changed = checked({}, judgement, threshold, lambda: "id", everything=True)
    return {key.tenant: state.pending for key, state in changed.items() if state.pending is not None}


@pytest.mark.parametrize("overall", [None, "info", "critical"])
def test_checked_one_fault_of_many_tenants_is_told_once(overall: Severity | None) -> None:
    told = _told(_of_tenants(overall, *_all(MOST_TENANTS + 1, "critical")))
    ((tenant, alert),) = told.items()
    assert (tenant, alert.severity) == (None, "critical")
    if overall != "critical":
        said = (
            f"success rate is critical for {MOST_TENANTS + 1} tenants by themselves: t0, t1, t10 and 18 more"
        )
        assert (alert.message, alert.current_value, alert.threshold) == (said, MOST_TENANTS + 1, MOST_TENANTS)


def test_checked_fault_of_few_tenants_is_told_of_each() -> None:
    assert len(_told(_of_tenants(None, *_all(MOST_TENANTS, "critical")))) == MOST_TENANTS


def test_checked_worse_tenant_than_many_is_told_besides() -> None:
    told = _told(_of_tenants(None, "critical", *_all(MOST_TENANTS, "warning"), "info"))
    assert {tenant: alert.severity for tenant, alert in told.items()} == {None: "warning", "t0": "critical"}


def test_checked_tenants_that_are_milder_than_the_threshold_hide_no_other() -> None:
    told = _told(_of_tenants("info", "critical", *_all(MOST_TENANTS, "info")), "critical")
    assert list(told) == ["t0"]


def test_checked_fault_of_many_tenants_that_become_few_is_over_and_these_are_told() -> None:
    states: dict[AlertKey, AlertState] = {}
    for bad in (MOST_TENANTS + 1, 2):
        judgement = _of_tenants(None, *_all(bad, "critical"), *_all(MOST_TENANTS + 1 - bad, None))
        changed = checked(states, judgement, "any", lambda: "id", everything=True)
        told = {key.tenant: state.pending.kind for key, state in changed.items() if state.pending is not None}
        states |= {
            key: sent(one, key, "any", lambda: "id", AT) for key, one in changed.items() if one.pending
        }
    assert told == {None: "cleared", "t0": "fired", "t1": "fired"}


def test_checked_many_tenants_that_were_mildly_bad_before_are_told_once() -> None:
    mild = _of_tenants(None, *_all(MOST_TENANTS + 1, "info"))
    states = checked({}, mild, "critical", lambda: "id", everything=True)
    assert [state.pending for state in states.values() if state.pending is not None] == []
    bad = _of_tenants(None, *_all(MOST_TENANTS + 1, "critical"))
    changed = checked(states, bad, "critical", lambda: "id", everything=True)
    assert [key.tenant for key, state in changed.items() if state.pending is not None] == [None]


@given(
    st.sampled_from([*RANK]),
    st.lists(st.sampled_from([*RANK]), min_size=MOST_TENANTS, max_size=2 * MOST_TENANTS + 5),
    st.sampled_from([*LEAST]),
)
def test_checked_tells_few_alerts_that_say_all(
    overall: Severity | None, severities: list[Severity | None], threshold: AlertThreshold
) -> None:
    told = _told(_of_tenants(overall, *severities), threshold)
    assert len(told) <= MOST_TENANTS + 1
    together = RANK[told[None].severity] if None in told else 0
    for number, one in enumerate(severities):
        own = told.get(f"t{number}")
        if own is not None:
            assert own.severity == one
        elif RANK[one] >= LEAST[threshold]:
            assert RANK[one] <= together
    assert together >= (RANK[overall] if RANK[overall] >= LEAST[threshold] else 0)
