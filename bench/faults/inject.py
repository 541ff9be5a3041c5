"""The faults of scenario ``faults``: each is done and over when its function returns."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Final

import msgspec

from bench.harness.clusters import Cluster
from bench.harness.server import Server
from bench.load.proxy import Proxy
from storage.embedded.servers import servers
from storage.postgres.blocking import connected

#: A worker that is stopped holds its transaction for up to 2 s; less and more than that.
_FROZEN_S: Final = (0.5, 4.0)
_AWAY_S: Final = (0.1, 1.5)
_CUTTING_S: Final = 1.5
_CUT: Final = 0.15


class Site(msgspec.Struct, frozen=True):
    """What there is to do harm to, and the seeded ``random`` that decides how."""

    home: Path
    postgres: Cluster
    dsn: str
    server: Server
    proxy: Proxy
    random: Random

    @asynccontextmanager
    async def without_redis(self) -> AsyncIterator[None]:
        """Kill Redis, and start it again in the end."""
        redis = servers(self.home).redis
        await asyncio.to_thread(redis.stop, signal.SIGKILL)
        try:
            yield
        finally:
            await asyncio.to_thread(redis.start)

    async def freeze(self, pid: int, for_s: float) -> None:
        """Stop a worker's process for a while, its connections being open."""
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(for_s)
        finally:
            os.kill(pid, signal.SIGCONT)


async def kill_worker(site: Site) -> None:
    """Kill a worker as the kernel does when memory is short."""
    os.kill(site.random.choice(site.server.pids()), signal.SIGKILL)


async def freeze_worker(site: Site) -> None:
    """Stop one of the workers for a while."""
    await site.freeze(site.random.choice(site.server.pids()), site.random.uniform(*_FROZEN_S))


async def restart_redis(site: Site) -> None:
    """Kill Redis and start it again."""
    async with site.without_redis():
        await asyncio.sleep(site.random.uniform(*_AWAY_S))


async def end_connections(site: Site) -> None:
    """End every connection to the database."""

    def end() -> None:
        with connected(site.dsn) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    await asyncio.to_thread(end)


async def crash_postgres(site: Site) -> None:
    """Stop PostgreSQL without a checkpoint, as ``pg_ctl -m immediate`` does, and start it again."""
    await asyncio.to_thread(site.postgres.stop, signal.SIGQUIT)
    await asyncio.sleep(site.random.uniform(*_AWAY_S))
    await asyncio.to_thread(site.postgres.start)


async def renew_workers(site: Site) -> None:
    """Have the supervisor replace each worker."""
    await site.server.renew()


async def cut_lines(site: Site) -> None:
    """Cut connections in the middle of frames, in both directions."""
    site.proxy.chances.cut = _CUT
    await asyncio.sleep(_CUTTING_S)
    site.proxy.chances.cut = 0.0


FAULTS: Final[Mapping[str, Callable[[Site], Awaitable[None]]]] = {
    "kill -9 of a worker": kill_worker,
    "SIGSTOP and SIGCONT of a worker": freeze_worker,
    "restart of Redis": restart_redis,
    "end of every database connection": end_connections,
    "immediate stop of PostgreSQL": crash_postgres,
    "rolling restart": renew_workers,
    "connections cut in mid-frame": cut_lines,
}
