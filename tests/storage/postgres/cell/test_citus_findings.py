"""What doctor says of the nodes of Citus."""

from __future__ import annotations

import json

import pytest

from storage.postgres.checkup.citus import judged
from storage.postgres.readiness import DURABLE

SAFE = json.dumps(dict.fromkeys(DURABLE, "on"))
LOSSY = json.dumps(dict.fromkeys(DURABLE, "on") | {"fsync": "off"})


@pytest.mark.parametrize(
    ("interval_ms", "nodes", "level", "said"),
    [
        (1000, [("a:1", True, SAFE), ("b:2", True, SAFE)], "ok", "2 nodes"),
        (60_000, [("a:1", True, SAFE)], "warning", "60 s"),
        (1000, [("a:1", True, LOSSY), ("b:2", True, SAFE)], "fault", "node a:1: PostgreSQL runs with fsync"),
        (1000, [("a:1", False, "connection refused")], "fault", "node a:1: connection refused"),
    ],
)
def test_judged_nodes_and_interval_one_finding(
    interval_ms: int, nodes: list[tuple[str, bool, str]], level: str, said: str
) -> None:
    (found,) = judged(interval_ms, nodes)
    assert (found.level, said in found.found) == (level, True), found
