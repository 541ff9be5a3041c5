"""The connections of one server process to PostgreSQL, by use: none of these waits for another."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from engine.runtime.settings import Settings
from storage.postgres.connection import PoolerDetection
from storage.postgres.pool import Database


def connections(settings: Settings) -> Mapping[str, int]:
    """Return how many connections a process has at most, by pool.

    - ``commit``: one a lane, so that a batch never waits for a read, and reads never for a batch.
    - ``uploads``: one for claims and one for offsets.
    - ``jobs``: those that run at once take turns, a statement each.
    - ``readiness``: a balancer hears of the database's faults and not of what devices read.
    """
    return {
        "commit": settings.commit.lanes,
        "reads": settings.postgres.read_connections,
        "uploads": 2,
        "jobs": 1,
        "readiness": 1,
    }


class Pools(NamedTuple):
    """The pools of one process."""

    commit: Database
    reads: Database
    uploads: Database
    jobs: Database
    readiness: Database

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(pool.close() for pool in self))


def pools(dsn: str, settings: Settings) -> Pools:
    """Return the pools; nothing is opened yet. Raises StoreError if the DSN cannot be read."""
    pooler = PoolerDetection()
    return Pools(**{name: Database(dsn, most, pooler) for name, most in connections(settings).items()})
