"""Fixtures of attacks: one server and its tenants for all of them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from psycopg2.extensions import connection as Connection  # noqa: N812  # a class that the driver spells so

from storage.embedded.servers import Services
from tests.harness.in_process_server import SHARED, Running, new_tenants, start_server
from tests.harness.services import deployed, run
from tests.security.arena import Arena
from tests.security.pond import NARROW, Pond


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def arena(_shared: Running, _shared_database: Connection) -> AsyncIterator[Arena]:
    """The shared server, with tenants of the test's file alone: its tests say ``pytestmark = ON_SHARED``."""
    suffix = f"-{uuid.uuid4().hex}"
    run(_shared_database, new_tenants(*(f"{name}{suffix}" for name in ("acme", "globex", "initech"))))
    async with AsyncExitStack() as stack:
        running = Running(_shared.dsn, _shared.url, _shared.task, stack, suffix)
        arena = Arena(running, _shared_database, await running.device("witness", "initech"))
        for tenant in ("acme", "globex"):
            await arena.seed(tenant)
        yield arena


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pond(
    arena: Arena, services: Services, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pond]:
    """A second server beside the arena's, for the arena's tenants."""
    home = tmp_path_factory.mktemp("floods")
    async with AsyncExitStack() as stack:
        sections = SHARED | NARROW | {"data": {"dir": str(home)}}
        at = deployed(arena.running.dsn, services.redis_url)
        one = await start_server(at, stack, sections)
        yield Pond(arena, Running(one.dsn, one.url, one.task, stack, arena.running.suffix), home)
