"""The connections of one server process to PostgreSQL, by use: none of these waits for another."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from engine.runtime.settings import Settings
from storage.embedded.servers import Services
from storage.postgres.connection import PoolerDetection
from storage.postgres.pool import Database


def connections(settings: Settings) -> Mapping[str, int]:
    """Return how many connections a process has at most, by pool.

    - ``commit``: one a lane, so that a batch never waits for a read, and reads never for a batch.
    - ``uploads``: one for claims and one for offsets.
    - ``jobs``: those that run at once take turns, a statement each.
    - ``everyone``: for what the process itself reads over all tenants, so that no job delays a revocation.
    - ``readiness``: a balancer hears of the database's faults and not of what devices read.
    """
    return {
        "commit": settings.commit.lanes,
        "reads": settings.postgres.read_connections,
        "uploads": 2,
        "jobs": 1,
        "everyone": 1,
        "readiness": 1,
    }


class Pools(NamedTuple):
    """The pools of one process."""

    commit: Database
    reads: Database
    uploads: Database
    jobs: Database
    everyone: Database
    readiness: Database

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(pool.close() for pool in self))


def pools(at: Services, settings: Settings) -> Pools:
    """Return the pools; nothing is opened yet. Raises StoreError if a DSN cannot be read."""
    pooler, most = PoolerDetection(), connections(settings)
    over_all = {name: Database(at.jobs, most[name], pooler) for name in ("jobs", "everyone")}
    serving = {
        name: Database(at.dsn, most[name], pooler, everyone=over_all["everyone"])
        for name in most
        if name not in over_all
    }
    return Pools(**over_all, **serving)
