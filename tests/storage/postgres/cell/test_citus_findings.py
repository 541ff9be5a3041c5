"""What doctor says of the nodes of Citus."""

from __future__ import annotations

import json

import pytest

from storage.postgres.checkup.citus import judged
from storage.postgres.checkup.database import database_findings
from storage.postgres.readiness import DURABLE
from storage.stores.plans.explained import plan_findings
from tests.harness.services import execute, without_cells

SAFE = json.dumps(dict.fromkeys(DURABLE, "on"))
LOSSY = json.dumps(dict.fromkeys(DURABLE, "on") | {"fsync": "off"})


@pytest.mark.parametrize(
    ("interval_ms", "nodes", "level", "said"),
    [
        (1000, [("a:1", True, SAFE), ("b:2", True, SAFE)], "ok", "2 nodes"),
        (60_000, [("a:1", True, SAFE)], "warning", "60 s"),
        (0, [("a:1", True, SAFE)], "fault", "tenants stay locked"),
        (-1, [("a:1", True, SAFE)], "fault", "tenants stay locked"),
        (1000, [("a:1", True, LOSSY), ("b:2", True, SAFE)], "fault", "node a:1: PostgreSQL runs with fsync"),
        (1000, [("a:1", False, "connection refused")], "fault", "node a:1: connection refused"),
    ],
)
def test_judged_nodes_and_interval_one_finding(
    interval_ms: int, nodes: list[tuple[str, bool, str]], level: str, said: str
) -> None:
    (found,) = judged(interval_ms, nodes)
    assert (found.level, said in found.found) == (level, True), found


@without_cells("a database without a cell")
def test_citus_beside_a_deployment_without_a_cell_is_not_asked_and_plans_are(dsn: str) -> None:
    execute(
        dsn,
        "SET allow_system_table_mods = on",
        "INSERT INTO pg_extension VALUES (99999, 'citus', 10, 'public'::regnamespace, false, '13.0')",
    )
    found = database_findings(dsn, dsn, dsn, 1, {}, migrates_itself=False)
    assert "citus" not in {one.subject for one in found}
    assert {one.level for one in plan_findings(dsn, 720)} == {"ok"}
