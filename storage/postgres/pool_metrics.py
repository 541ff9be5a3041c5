"""The use of the pools of a process, as metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal

from engine.runtime.metrics import Metric, Value
from storage.postgres.connection import PoolUsage
from storage.postgres.pool import Database

#: Kind, name, text and value of each metric of a pool.
_METRICS: Final[tuple[tuple[Literal["counter", "gauge"], str, str, Callable[[PoolUsage], float]], ...]] = (
    (
        "gauge",
        "tidemark_database_connections",
        "Open connections to PostgreSQL",
        lambda usage: usage.busy + usage.idle,
    ),
    (
        "gauge",
        "tidemark_database_connections_busy",
        "Connections to PostgreSQL in use",
        lambda usage: usage.busy,
    ),
    (
        "gauge",
        "tidemark_database_connections_limit",
        "The most connections to PostgreSQL",
        lambda usage: usage.limit,
    ),
    (
        "counter",
        "tidemark_database_connections_opened",
        "Connections to PostgreSQL opened",
        lambda usage: usage.opened,
    ),
    (
        "counter",
        "tidemark_database_connection_failures",
        "Attempts at which no host let this process in",
        lambda usage: usage.failures,
    ),
    (
        "counter",
        "tidemark_database_waits",
        "Waits for a free connection to PostgreSQL",
        lambda usage: usage.waits,
    ),
    (
        "counter",
        "tidemark_database_wait_seconds",
        "Time of waits for a connection, added up",
        lambda usage: usage.wait_s,
    ),
    (
        "counter",
        "tidemark_database_round_trips",
        "Requests to PostgreSQL, of one or several statements",
        lambda usage: usage.round_trips,
    ),
    (
        "counter",
        "tidemark_database_statements",
        "Statements in requests to PostgreSQL",
        lambda usage: usage.statements,
    ),
)


class PoolMetrics:
    """The pools of a process by their names."""

    def __init__(self, pools: Mapping[str, Database]) -> None:
        self._pools = pools

    def metrics(self) -> Iterator[Metric]:
        """Yield the use of each pool."""
        usages = {name: pool.usage for name, pool in self._pools.items()}
        for kind, name, text, read in _METRICS:
            values = {pool: read(usage) for pool, usage in usages.items()}
            yield Value(kind, name, text, values, "pool")
