"""The status of every tenant as the last judgement left it, and what the next one changed. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from engine.operate.monitor.report import Judgement, Report, Status
from engine.wire.timestamps import to_us


class HealthStatus(msgspec.Struct, frozen=True):
    """The status and the score of a tenant; the score is None while the status is ``unknown``."""

    status: Status
    score: int | None


class LastHealth(msgspec.Struct, frozen=True):
    """A judgement without its figures: of all tenants together, and of each by name."""

    judged_at_us: int
    overall: HealthStatus
    tenants: dict[str, HealthStatus]


class StatusChange(NamedTuple):
    """A report whose status is another one than before; ``before`` is ``unknown`` for a new tenant."""

    report: Report
    before: Status


def last_health(judgement: Judgement) -> LastHealth:
    """Return what is kept of a judgement of all tenants."""
    overall, *tenants = judgement.reports
    return LastHealth(
        to_us(overall.judged_at),
        HealthStatus(overall.status, overall.score),
        {one.tenant: HealthStatus(one.status, one.score) for one in tenants if one.tenant is not None},
    )


def status_changes(before: LastHealth | None, judgement: Judgement) -> list[StatusChange]:
    """List the reports that people should hear of; an idle tenant that gets busy, or the reverse, is none.

    Args:
        before: The judgement before, None for the first one.
        judgement: A judgement of all tenants.
    """
    changes = []
    for report in judgement.reports:
        if before is None:
            was: Status = "unknown"
        elif report.tenant is None:
            was = before.overall.status
        else:
            known = before.tenants.get(report.tenant)
            was = "unknown" if known is None else known.status
        idle = report.tenant is not None and {was, report.status} <= {"unknown", "healthy"}
        if was != report.status and not idle:
            changes.append(StatusChange(report, was))
    return changes
