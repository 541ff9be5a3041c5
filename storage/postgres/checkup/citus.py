"""What doctor asks of Citus: the settings of the nodes, which hold the rows, and of the coordinator."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from engine.operate.rows import CheckResult
from storage.postgres.readiness import DURABLE, undurable

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so

#: A transaction whose node goes away between the two phases of its commit keeps its tenants locked until
#: Citus ends it. Devices of these tenants are refused for so long.
_RECOVERED_WITHIN_MS: Final = 5000
_RECOVERY: Final = "SELECT setting::int FROM pg_settings WHERE name = 'citus.recover_2pc_interval'"
_NODES: Final = "SELECT nodename || ':' || nodeport, success, result FROM run_command_on_workers(%s)"
_SETTINGS: Final = "SELECT json_object_agg(name, setting) FROM pg_settings WHERE name IN ({})"


def citus_findings(connection: Connection) -> Iterator[CheckResult]:
    """Check the nodes, and how soon a transaction ends that a node was told of by half."""
    with connection.cursor() as cursor:
        cursor.execute(_RECOVERY)
        interval_ms = int(cursor.fetchall()[0][0])
        cursor.execute(_NODES, (_SETTINGS.format(", ".join(f"'{name}'" for name in DURABLE)),))
        nodes = cursor.fetchall()
    yield from judged(interval_ms, nodes)


def judged(interval_ms: int, nodes: Sequence[tuple[str, bool, str]]) -> Iterator[CheckResult]:
    """Judge what Citus said.

    Args:
        interval_ms: How often it ends transactions that a node was told of by half.
        nodes: The name of each node, whether it answered, and its settings as JSON, or why it did not answer.
    """
    late = list(_recovery(interval_ms))
    yield from late
    lossy = False
    for name, answered, said in nodes:
        found = undurable(json.loads(said)) if answered else [(said, "see that the node runs")]
        for fault, remedy in found:
            lossy = True
            yield CheckResult("fault", "citus", f"node {name}: {fault}", remedy)
    if not (late or lossy):
        yield CheckResult("ok", "citus", f"{len(nodes)} nodes, on which {', '.join(DURABLE)} are on")


def _recovery(interval_ms: int) -> Iterator[CheckResult]:
    """Judge how often Citus ends such transactions."""
    where = "where a node goes away in the midst of a commit"
    remedy = "on the coordinator: ALTER SYSTEM SET citus.recover_2pc_interval = '1s'; SELECT pg_reload_conf()"
    if interval_ms <= 0:
        yield CheckResult("fault", "citus", f"tenants stay locked {where}: Citus does not end it", remedy)
    elif interval_ms > _RECOVERED_WITHIN_MS:
        yield CheckResult("warning", "citus", f"tenants wait for {interval_ms / 1000:g} s {where}", remedy)
