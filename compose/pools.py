"""The connections of one server process to PostgreSQL, by use: none of these waits for another."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from engine.runtime.ports import StoreError
from engine.runtime.settings import Settings
from storage.embedded.servers import Services
from storage.postgres.connection import PoolerDetection
from storage.postgres.pool import Database

#: The longest wait for a pool that could not connect. A full pool has its callers wait for 5 s, and a
#: balancer would take the process for hung.
_TRY_S: Final = 1.0
#: What a process does without a pool.
_SLOWER: Final = "devices get unavailable"
_WITHOUT: Final = {
    "jobs": "no job runs here",
    "everyone": "revocations are those of before",
    "reports": "health of all tenants is not answered, and room is not watched",
}


def connections(settings: Settings) -> Mapping[str, int]:
    """Return how many connections a process has at most, by pool.

    - ``commit``: one a lane, so that a batch never waits for a read, and reads never for a batch.
    - ``uploads``: one for claims and one for offsets.
    - ``jobs``: those that run at once take turns, a statement each.
    - ``everyone``: for revocations and for warming, so that no job and no report delays a revocation.
    - ``reports``: for what people ask over all tenants, and for what all tenants hold: it may take seconds.
    - ``readiness``: a balancer hears of the database's faults and not of what devices read.
    """
    return {
        "commit": settings.commit.lanes,
        "reads": settings.postgres.read_connections,
        "uploads": 2,
        "jobs": 1,
        "everyone": 1,
        "reports": 1,
        "readiness": 1,
    }


class Pools(NamedTuple):
    """The pools of one process."""

    commit: Database
    reads: Database
    uploads: Database
    jobs: Database
    everyone: Database
    reports: Database
    readiness: Database

    async def away(self) -> list[str]:
        """Return a sentence for each pool that PostgreSQL let in no more, and still does not.

        It takes a second at most.
        """
        failed = {name: pool for name, pool in self._asdict().items() if pool.usage.away}
        await asyncio.gather(*map(_try, failed.values()))
        return [
            f"the pool {name} cannot connect to PostgreSQL: {pool.usage.away}: {_WITHOUT.get(name, _SLOWER)}"
            for name, pool in failed.items()
            if pool.usage.away
        ]

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(pool.close() for pool in self))


async def _try(pool: Database) -> None:
    """Ask the pool for a connection. A success ends its fault, also on a connection that was open before."""
    with suppress(StoreError, TimeoutError):
        async with asyncio.timeout(_TRY_S):
            await pool.query("SELECT")
        pool.usage.away = ""


def pools(at: Services, settings: Settings) -> Pools:
    """Return the pools; nothing is opened yet. Raises StoreError if a DSN cannot be read."""
    pooler, most = PoolerDetection(), connections(settings)
    over_all = {name: Database(at.jobs, most[name], pooler) for name in ("jobs", "everyone", "reports")}
    serving = {
        name: Database(at.dsn, most[name], pooler, everyone=over_all["everyone"])
        for name in most
        if name not in over_all
    }
    return Pools(**over_all, **serving)
