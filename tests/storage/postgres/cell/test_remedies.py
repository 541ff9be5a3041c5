"""The remedies of a cell, pasted where no ``search_path`` leads to it, act on the cell."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from engine.operate.rows import CheckResult
from storage.postgres.cell.dsn import owner_prefix
from storage.postgres.checkup.days import partition_findings
from storage.postgres.checkup.shape import schema_findings
from storage.postgres.hosts import hosts_of
from storage.postgres.partitions.maintenance import maintain
from tests.harness.services import CELLS, execute


def _faults(dsn: str) -> list[CheckResult]:
    found = [*schema_findings(dsn), *partition_findings(dsn)]
    return [one for one in found if one.level == "fault"]


def test_remedies_of_a_cell_mend_it_from_a_connection_that_leads_elsewhere(cell_dsn: str) -> None:
    maintain(cell_dsn, 24)
    tomorrow = f"events_{datetime.now(UTC) + timedelta(days=1):%Y%m%d}"
    execute(
        cell_dsn,
        "DROP INDEX records_by_seq",
        "ALTER TABLE audit_log DROP CONSTRAINT audit_log_times_check",
        "DROP TRIGGER devices_are_counted ON devices",
        f"ALTER TABLE events DETACH PARTITION {tomorrow}",
    )
    faults = _faults(cell_dsn)
    assert {one.subject for one in faults} == {"indexes", "constraints", "triggers", "partitions"}
    [host] = hosts_of(cell_dsn)
    for one in faults:
        _, prefix, statements = one.remedy.partition(f"as the owner: SET search_path = {CELLS[0]}; ")
        assert prefix, one
        pasted = (prefix + statements).partition(": ")[2].partition("; then")[0]
        execute(host.dsn, *pasted.split("; "))
    assert _faults(cell_dsn) == []


def test_remedies_of_no_cell_choose_no_schema() -> None:
    assert owner_prefix("dbname=db") == "as the owner: "
