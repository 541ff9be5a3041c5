"""The audit log only grows, and its rows are written with the change that they tell of."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from engine.model.audit import Actor, AuditRow
from engine.runtime.ports import StoreError
from storage.postgres.commands import command_database
from storage.postgres.pool import Database
from storage.stores.audit import PostgresAudit
from storage.stores.tenants import PostgresTenants
from tests.harness.commands import Run, command
from tests.harness.services import execute, rows

__all__ = ["command"]

_ROW = "INSERT INTO audit_log (at, event, actor_kind, actor, target) VALUES (now() - interval '{}', {})"
_REST = "'tenant_added', 'account', 'a@h', '{}'"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET actor = 'nobody'",
        "DELETE FROM audit_log",
        "TRUNCATE audit_log",
        "SET session_replication_role = replica; DELETE FROM audit_log",
    ],
)
def test_audit_log_rows_are_never_changed_or_deleted(dsn: str, statement: str) -> None:
    execute(dsn, _ROW.format("29 days", _REST.format("young")))
    with pytest.raises(Exception, match="audit_log only grows"):
        execute(dsn, statement)
    assert rows(dsn, "SELECT actor FROM audit_log") == [("a@h",)]


def test_audit_log_old_rows_can_be_deleted_and_not_changed(dsn: str) -> None:
    execute(dsn, _ROW.format("31 days", _REST.format("old")), _ROW.format("1 day", _REST.format("young")))
    with pytest.raises(Exception, match="audit_log only grows"):
        execute(dsn, "UPDATE audit_log SET actor = 'nobody' WHERE target = 'old'")
    execute(dsn, "DELETE FROM audit_log WHERE target = 'old'")
    assert rows(dsn, "SELECT target FROM audit_log") == [("young",)]


async def test_audit_log_forgets_what_is_older_page_by_page(dsn: str) -> None:
    execute(dsn, *(_ROW.format(f"{days} days", _REST.format(days)) for days in (90, 80, 70, 31, 2)))
    before_us = round((time.time() - 60 * 86_400) * 1_000_000)
    async with command_database(dsn) as database:
        audit = PostgresAudit(database)
        assert [await audit.forget(before_us, 2) for _ in range(3)] == [2, 1, 0]
    assert rows(dsn, "SELECT target FROM audit_log ORDER BY at") == [("31",), ("2",)]


async def test_job_cleanup_deletes_security_events_after_their_retention(
    command: Run, dsn: str, tmp_path: Path
) -> None:
    execute(dsn, *(_ROW.format(f"{days} days", _REST.format(days)) for days in (401, 399)))
    await command("job", "cleanup", "--data-dir", str(tmp_path), TIDEMARK__RETENTION__AUDIT_D="0")
    assert len(rows(dsn, "SELECT FROM audit_log WHERE event <> 'job_run'")) == 2
    await command("job", "cleanup", "--data-dir", str(tmp_path))
    assert rows(dsn, "SELECT target FROM audit_log WHERE event <> 'job_run'") == [("399",)]


async def test_audit_event_of_a_change_that_fails_is_not_written(dsn: str) -> None:
    async def fail(database: Database) -> None:
        async with database.transaction() as transaction:
            await transaction.note(AuditRow("tenant_added", Actor("account", "a@h"), "acme"))
            await transaction.query("SELECT 1 / 0")

    async with command_database(dsn) as database:
        with pytest.raises(StoreError):
            await fail(database)
    assert rows(dsn, "SELECT FROM audit_log") == []


async def test_audit_event_that_cannot_be_written_undoes_its_change(dsn: str) -> None:
    execute(dsn, "ALTER TABLE audit_log ADD CHECK (event <> 'tenant_added')")
    async with command_database(dsn) as database:
        with pytest.raises(StoreError):
            await PostgresTenants(database).add("acme")
    assert rows(dsn, "SELECT FROM tenants") == []
