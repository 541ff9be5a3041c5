"""Telemetry that a process acknowledged is stored, and stored once, whenever the process is killed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import ClientError, ClientSession

from storage.embedded.servers import Services
from tests.harness.admin import add_tenants
from tests.harness.server_process import ServerProcess
from tests.harness.services import rows
from tests.harness.ws_device import Closed, connected, token

DEVICES, HOURS, KILLS = 20, 60, 3


async def send_until_killed(url: str, name: str, left: list[str], acknowledged: set[str]) -> None:
    """Send hours one after the other; one without an answer stays, and is sent again under its key."""
    with suppress(ClientError, Closed, ConnectionError, TimeoutError):
        async with (
            ClientSession() as session,
            connected(url, session, signed=token("acme", name)) as device,
        ):
            while left:
                answer = await device.ask("telemetry", key="k", hour=left[-1], counters={"n": 1})
                if answer["type"] == "telemetry_ack":
                    acknowledged.add(f"{name} {left.pop()}")
                else:
                    await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_telemetry_that_was_acknowledged_is_stored_once_over_kills(
    services: Services, dsn: str, tmp_path: Path
) -> None:
    add_tenants(dsn, "acme")
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    hours = [(now - timedelta(hours=back)).strftime("%Y-%m-%dT%H:00:00Z") for back in range(HOURS)]
    left = {f"d{number}": list(hours) for number in range(DEVICES)}
    acknowledged: set[str] = set()
    stored = (
        "SELECT device_id || to_char(hour_start AT TIME ZONE 'UTC', ' YYYY-MM-DD\"T\"HH24:00:00Z')"
        " FROM device_telemetry"
    )
    server = ServerProcess(dsn, services.redis_url, tmp_path)
    try:
        for kill in range(1, KILLS + 2):
            await server.start()
            sending = asyncio.gather(
                *(send_until_killed(server.url, name, own, acknowledged) for name, own in left.items())
            )
            if kill <= KILLS:
                async with asyncio.timeout(60):
                    while len(acknowledged) < kill * DEVICES * HOURS // (KILLS + 1):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                await server.kill()
            await sending
            found = [str(one) for (one,) in rows(dsn, stored)]
            assert len(found) == len(set(found)), "stored twice"
            assert acknowledged <= set(found), "acknowledged and lost"
        assert len(acknowledged) == DEVICES * HOURS
        assert len(rows(dsn, stored)) == DEVICES * HOURS
    finally:
        await server.stop()
