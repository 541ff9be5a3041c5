"""What was acknowledged is never lost and nothing is applied twice, whoever is killed when."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession

from bench.harness.clusters import migrate_for_roles
from storage.embedded.servers import Services, embedded
from tests.harness.numbered_edits import audit, editors_of, progressed
from tests.harness.scratch import scratch
from tests.harness.server_process import ServerProcess
from tests.harness.services import execute

#: Kills in the normal run; ``TIDEMARK_KILLS=20`` is the long one.
KILLS = int(os.environ.get("TIDEMARK_KILLS", "3"))
DEVICES = 24
#: How many acknowledgements to wait for between two kills.
ACKS_BETWEEN = 400


class Home:
    """Services of this test alone, that may be killed."""

    def __init__(self, directory: Path, services: Services) -> None:
        self.directory = directory
        self.services = services

    def crash_postgresql(self) -> None:
        """Stop PostgreSQL as ``pg_ctl -m immediate`` does, and start it again."""
        pid_file = self.directory / "postgres" / "postmaster.pid"
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGQUIT)
        while pid_file.exists():
            os.sched_yield()
        with embedded(self.directory):
            pass


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    with scratch("tidemark-crash-") as directory, embedded(directory / "data") as services:
        migrate_for_roles(services.owner)
        execute(
            services.owner,
            "INSERT INTO tenants (name) VALUES ('acme'), ('globex'), ('initech')",
            "INSERT INTO tenant_counters SELECT tenant_id FROM tenants",
        )
        yield Home(directory / "data", services)


async def _under_fire(home: Home, kill: Callable[[ServerProcess], Awaitable[None]]) -> None:
    server = ServerProcess(home.services.owner, home.services.redis_url, home.directory)
    progress = asyncio.Condition()
    editors = editors_of(DEVICES, progress)
    await server.start()
    try:
        async with ClientSession() as session, asyncio.TaskGroup() as group:
            for editor in editors:
                group.create_task(editor.run(server, session))
            for _ in range(KILLS):
                await progressed(editors, progress, ACKS_BETWEEN + random.randrange(ACKS_BETWEEN))
                await kill(server)
            for editor in editors:
                editor.stopping = True
        assert [editor.wrong for editor in editors if editor.wrong] == []
        audit(home.services.owner, editors)
        assert await server.terminate() == 0
    finally:
        await server.stop()


async def test_server_killed_under_load_loses_and_repeats_nothing(home: Home) -> None:
    async def kill(server: ServerProcess) -> None:
        await server.kill()
        await server.start()

    await _under_fire(home, kill)


async def test_postgresql_crashed_under_load_loses_and_repeats_nothing(home: Home) -> None:
    async def crash(_: ServerProcess) -> None:
        await asyncio.to_thread(home.crash_postgresql)

    await _under_fire(home, crash)
