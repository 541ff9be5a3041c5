"""A killed process loses ten seconds of minutes at most, and none is counted twice."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession

from engine.cache.minutes import FLUSH_S
from storage.embedded.servers import Services
from tests.harness.admin import add_tenants
from tests.harness.server_process import ServerProcess
from tests.harness.services import rows
from tests.harness.ws_device import Closed, connected, put

#: A flush takes a moment itself, and this machine may be busy.
ALLOWED_S = FLUSH_S + 2
STORED = "SELECT coalesce(sum(syncs), 0)::int FROM sync_minutes"


def stored(dsn: str) -> int:
    """Return the syncs of all minutes."""
    ((syncs,),) = rows(dsn, STORED)
    assert isinstance(syncs, int)
    return syncs


async def sync_until_killed(server: ServerProcess, answered_at_s: list[float]) -> None:
    """Send syncs one after the other, and note when each was answered."""
    with suppress(ClientError, Closed, ConnectionError):
        async with ClientSession() as session, connected(server.url, session) as phone:
            while True:
                await phone.push(put("a", None, n=len(answered_at_s)))
                answered_at_s.append(time.monotonic())
                await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_minutes_of_a_killed_process_lack_ten_seconds_at_most(
    services: Services, dsn: str, tmp_path: Path
) -> None:
    add_tenants(dsn, "acme")
    server = ServerProcess(dsn, services.redis_url, tmp_path)
    answered_at_s: list[float] = []
    counted = 0
    try:
        for _ in range(2):
            await server.start()
            already = len(answered_at_s)
            syncing = asyncio.create_task(sync_until_killed(server, answered_at_s))
            async with asyncio.timeout(4 * FLUSH_S):
                while stored(dsn) == counted:  # noqa: ASYNC110  # the database tells nobody
                    await asyncio.sleep(0.05)
            await asyncio.sleep(FLUSH_S / 2)  # more is counted, which the kill may take
            killed_at_s = time.monotonic()
            await server.kill()
            await syncing
            here = stored(dsn) - counted
            own = answered_at_s[already:]
            assert here >= len([at_s for at_s in own if at_s < killed_at_s - ALLOWED_S])
            assert 0 < here <= len(own) + 1, "an answer may have been on its way"
            counted += here
        await server.start()
        async with ClientSession() as session, connected(server.url, session) as phone:
            for number in range(5):
                await phone.push(put("b", None, n=number))
        assert await server.terminate() == 0
        assert stored(dsn) == counted + 5, "a drain writes all of it"
    finally:
        await server.stop()
