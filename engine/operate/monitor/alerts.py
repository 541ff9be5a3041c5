"""Alerts: what is told of a finding, and when. Pure.

A finding is told once: when it begins, when it gets worse than the receiver knows, and when it is over. An
alert that is being sent is finished first, so that a receiver never reads of an end before its beginning.

If a metric of very many tenants is bad, then it is one fault: the receivers are told once, of all tenants
together, and besides of those tenants alone that are worse than the many.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Literal, NamedTuple

import msgspec

from engine.operate.monitor.report import SEVERITIES, Finding, Judgement, MetricName, Severity

AlertKind = Literal["fired", "worsened", "cleared"]
#: The mildest severity that is sent; ``any`` includes early warnings.
AlertThreshold = Literal["any", "warning", "critical"]

_MILDEST: Final[Mapping[AlertThreshold, int]] = {
    "any": SEVERITIES.index("info"),
    "warning": SEVERITIES.index("warning"),
    "critical": SEVERITIES.index("critical"),
}
#: Nothing was told, or nothing was found.
_NOTHING: Final = -1
#: Of more tenants with the same bad metric one alert is sent: an outage would wake people a thousand times.
MOST_TENANTS: Final = 20
#: Of these the alert names so many.
_NAMED: Final = 3
_SAID: Final[Mapping[Severity, str]] = {
    "info": "near its threshold",
    "warning": "beyond its threshold",
    "critical": "critical",
}


class AlertKey(NamedTuple):
    """What an alert is about: a metric of a tenant. ``tenant`` None is all tenants together."""

    tenant: str | None
    metric: MetricName


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One message to a receiver.

    Attributes:
        id: The same each time that this message is sent, so that a receiver can leave out repetitions.
        kind: Whether it begins, got worse or is over.
        metric: The metric; ``database`` and ``test`` are no metrics of a tenant.
        tenant: The name of the tenant, None for all tenants together.
        severity: That of the finding; of a ``cleared`` alert the one that was told before.
        current_value: As in the finding; None where there is no data any more.
        threshold: As in the finding.
        message: One sentence for a person.
        timestamp: When the check was made.
    """

    id: str
    kind: AlertKind
    metric: str
    tenant: str | None
    severity: Severity
    current_value: float | None
    threshold: float | None
    message: str
    timestamp: datetime


class AlertState(msgspec.Struct, frozen=True):
    """One metric of a tenant, as one receiver knows it.

    Attributes:
        found: The last finding, None if there was none.
        told: The severity that the receiver was told last, None if nothing or an end.
        pending: The alert that is to be sent, None if the receiver knows all.
    """

    found: Finding | None = None
    told: Severity | None = None
    pending: Alert | None = None


def kind_of(told: Severity | None, found: Severity | None, threshold: AlertThreshold) -> AlertKind | None:
    """Decide what a receiver is to be told.

    | told | found | alert |
    |---|---|---|
    | nothing | nothing, or milder than the threshold | none |
    | nothing | anything else | fired |
    | a severity | a more severe one | worsened |
    | a severity | the same, or a milder one | none |
    | a severity | nothing, or milder than the threshold | cleared |

    Args:
        told: The severity that the receiver was told last.
        found: The severity that was found now.
        threshold: The mildest severity that it wants to know.
    """
    was = _rank(told)
    now = _rank(found)
    if now < _MILDEST[threshold]:
        now = _NOTHING
    if now == _NOTHING:
        return None if was == _NOTHING else "cleared"
    if was == _NOTHING:
        return "fired"
    return "worsened" if now > was else None


def _rank(severity: Severity | None) -> int:
    return _NOTHING if severity is None else SEVERITIES.index(severity)


def checked(
    states: Mapping[AlertKey, AlertState],
    judgement: Judgement,
    threshold: AlertThreshold,
    new_id: Callable[[], str],
    *,
    everything: bool,
) -> dict[AlertKey, AlertState]:
    """Return the states that a check changes.

    Args:
        states: The states of one receiver.
        judgement: The check.
        threshold: The mildest severity that the receiver wants to know.
        new_id: Makes the id of an alert.
        everything: Whether all tenants were judged: those without a report are gone then.
    """
    judged_at = judgement.reports[0].judged_at
    found = {AlertKey(one.tenant, one.metric): one for report in judgement.reports for one in report.findings}
    unjudged = {report.tenant: report.unjudged for report in judgement.reports}
    common = _common(found, _MILDEST[threshold])
    for metric, severity in common.items():
        together = found.get(AlertKey(None, metric))
        if together is None or _rank(together.severity) < _rank(severity):
            found[AlertKey(None, metric)] = _of_many(found, metric, severity)
    changed = {}
    for key in {*states, *found}:
        state = states.get(key, AlertState())
        if key.metric in unjudged.get(key.tenant, ()) and not (key.tenant is None and key.metric in common):
            continue
        if key.tenant not in unjudged and not everything:
            continue
        if _is_told_together(key, state, found, common):
            continue
        now = next_state(
            msgspec.structs.replace(state, found=found.get(key)), key, threshold, new_id, judged_at
        )
        if now != state:
            changed[key] = now
    return changed


def _is_told_together(
    key: AlertKey,
    state: AlertState,
    found: Mapping[AlertKey, Finding],
    common: Mapping[MetricName, Severity],
) -> bool:
    """Return whether a tenant, of which the receiver knows nothing, is one of the many and no worse."""
    if key.tenant is None or key not in found or state.told is not None or state.pending is not None:
        return False
    return _rank(found[key].severity) <= _rank(common.get(key.metric))


def _common(found: Mapping[AlertKey, Finding], mildest: int) -> dict[MetricName, Severity]:
    """Return the metrics that are bad for many tenants, with the severity that so many have at least."""
    ranks: defaultdict[MetricName, list[int]] = defaultdict(list)
    for key, one in found.items():
        if key.tenant is not None:
            ranks[key.metric].append(_rank(one.severity))
    common = {}
    for metric, of_tenants in ranks.items():
        of_tenants.sort(reverse=True)
        if len(of_tenants) > MOST_TENANTS and of_tenants[MOST_TENANTS] >= mildest:
            common[metric] = SEVERITIES[of_tenants[MOST_TENANTS]]
    return common


def _of_many(found: Mapping[AlertKey, Finding], metric: MetricName, severity: Severity) -> Finding:
    """Return a finding of all tenants together, of how many have the metric as bad as that."""
    bad = sorted(
        key.tenant
        for key, one in found.items()
        if key.metric == metric and key.tenant is not None and _rank(one.severity) >= _rank(severity)
    )
    named, more = ", ".join(bad[:_NAMED]), len(bad) - _NAMED
    message = (
        f"{_title(metric)} is {_SAID[severity]} for {len(bad)} tenants by themselves: {named} and {more} more"
    )
    return Finding(metric, None, severity, len(bad), MOST_TENANTS, message)


def _title(metric: MetricName) -> str:
    return metric.replace("_", " ")


def next_state(
    state: AlertState,
    key: AlertKey,
    threshold: AlertThreshold,
    new_id: Callable[[], str],
    at: datetime,
) -> AlertState:
    """Return a state with the alert that is due, if none is being sent."""
    if state.pending is not None:
        return state
    kind = kind_of(state.told, None if state.found is None else state.found.severity, threshold)
    if kind is None:
        return state
    return msgspec.structs.replace(state, pending=_alert(kind, state, key, new_id(), at))


def sent(
    state: AlertState, key: AlertKey, threshold: AlertThreshold, new_id: Callable[[], str], at: datetime
) -> AlertState:
    """Return a state whose pending alert was taken by the receiver, with the next one if one is due."""
    assert state.pending is not None
    told = None if state.pending.kind == "cleared" else state.pending.severity
    return next_state(AlertState(state.found, told), key, threshold, new_id, at)


def _alert(kind: AlertKind, state: AlertState, key: AlertKey, alert_id: str, at: datetime) -> Alert:
    found = state.found
    if kind == "cleared":
        assert state.told is not None
        of = "all tenants together" if key.tenant is None else f"tenant {key.tenant}"
        message = f"{_title(key.metric)} of {of} is back within its threshold"
        severity = state.told
    else:
        assert found is not None
        message, severity = found.message, found.severity
    return Alert(
        id=alert_id,
        kind=kind,
        metric=key.metric,
        tenant=key.tenant,
        severity=severity,
        current_value=None if found is None else found.current_value,
        threshold=None if found is None else found.threshold,
        message=message,
        timestamp=at,
    )
