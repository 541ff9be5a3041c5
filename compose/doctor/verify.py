"""What verify looks at: whether the schema is as migrations make it, and whether it is used so."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from engine.operate.rows import CheckResult
from engine.runtime.ports import StoreError
from engine.runtime.settings import Settings
from storage.embedded.servers import Services
from storage.postgres.checkup.database import migration_findings, role_findings, unread_finding
from storage.postgres.checkup.days import partition_findings
from storage.postgres.checkup.shape import schema_findings
from storage.stores.plans.explained import plan_findings


def verify(settings: Settings, at: Services) -> list[CheckResult]:
    """Check migrations, tables, indexes, constraints, triggers, partitions, plans and policies.

    Raises:
        StoreError: The database is away.
    """
    findings = list(migration_findings(at.owner, migrates_itself=False))
    if len(findings) > 1:  # else there is nothing of this version to look at
        findings += shape_and_plans(settings, at)
        findings += asked(lambda: partition_findings(at.owner))
        findings += asked(lambda: role_findings(at.dsn, at.owner, at.jobs))
    return findings


def shape_and_plans(settings: Settings, at: Services) -> Iterator[CheckResult]:
    """Check indexes, constraints, triggers and plans of a schema that is up to date."""
    yield from asked(lambda: schema_findings(at.owner))
    yield from asked(lambda: plan_findings(at.dsn, settings.idempotency.lifetime_h))


def asked(look: Callable[[], Iterator[CheckResult]]) -> Iterator[CheckResult]:
    """Yield what a look at a database finds. What PostgreSQL refuses is a finding too, and hides no other."""
    try:
        yield from look()
    except StoreError as error:
        yield unread_finding(error)
