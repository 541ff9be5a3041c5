"""The pools of a process say which of them cannot connect, and for no longer than that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from compose import pools as of_process
from compose.pools import Pools, pools
from engine.runtime.ports import StoreUnavailableError
from storage.embedded.servers import Services
from tests.harness.in_process_server import settings_with
from tests.harness.services import deployed, execute, rows


@pytest.fixture
async def found(dsn: str, services: Services) -> AsyncIterator[Pools]:
    made = pools(deployed(dsn, services.redis_url), settings_with(postgres={"read_connections": 2}))
    yield made
    await made.close()


def _shut_out(dsn: str) -> None:
    """Let nobody in anew."""
    ((name,),) = rows(dsn, "SELECT current_database()::text")
    execute(dsn, f'REVOKE CONNECT ON DATABASE "{name}" FROM PUBLIC, tidemark_serving')


async def test_pools_away_ends_with_a_connection_that_was_open_before(found: Pools, dsn: str) -> None:
    async with found.reads.connection():
        _shut_out(dsn)
        with pytest.raises(StoreUnavailableError, match="permission denied"):
            await found.reads.acquire()
        (fault,) = await found.away()
        assert "the pool reads cannot connect to PostgreSQL" in fault
    assert await found.away() == []
    assert found.reads.usage.away == ""


async def test_pools_away_full_pool_does_not_hold_up_the_answer(
    found: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.postgres.pool._WAIT_S", 3600)
    monkeypatch.setattr(of_process, "_TRY_S", 0.1)
    async with found.jobs.connection(), asyncio.timeout(10):
        found.jobs.usage.away = "too many clients"
        (fault,) = await found.away()
    assert "the pool jobs cannot connect to PostgreSQL: too many clients: no job runs here" in fault
    assert await found.away() == []
