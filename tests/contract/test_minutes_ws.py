"""Minutes as a server counts them: what devices did over sockets and HTTP, and what was refused to them."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp import WSMsgType

from engine.model.minutes import Minute
from storage.embedded.servers import Services
from storage.stores.monitoring.minutes import PostgresMinutes
from tests.harness.in_process_server import Running, Serve
from tests.harness.services import Serving, outage
from tests.harness.ws_device import item, put

_HOUR_US = 3_600_000_000


async def minutes(server: Running) -> dict[str | None, Minute]:
    """Read the sums of the last hour, by tenant."""
    database = Serving(server.dsn, 1)
    now_us = time.time_ns() // 1000
    try:
        found = await PostgresMinutes(database).windows(None, now_us - _HOUR_US, now_us + _HOUR_US)
    finally:
        await database.close()
    return {one.tenant: one.minutes for one in found}


async def test_minutes_of_syncs_are_written_at_the_drain_over_sockets_and_http(serve: Serve) -> None:
    server = await serve()
    phone = await server.device("phone")
    items = [put("a1", None, n=1), item("put", "task", "", base=None, data={})]
    await phone.sync("once", *items)
    await phone.sync("once", *items)
    await phone.refused("sync", key="once", items=[put("a2", None, n=1)])
    body = {"type": "sync", "key": "http", "items": [put("b1", None, n=1), put("b2", None, n=1)]}
    assert (await server.post("/v1/sync", body, "tablet")).status == 200
    assert (await server.post("/v1/sync", {**body, "items": []}, "tablet")).status == 409
    await server.drained()
    minute = (await minutes(server))["acme"]
    assert (minute.syncs, minute.failed, minute.refused, minute.succeeded) == (5, 2, 0, 3)
    assert (minute.items, minute.durations.count) == (4, 3)
    assert minute.bytes_in > 500
    assert minute.durations.percentile_ms(0.95) is not None


async def test_minutes_count_conflicts_and_those_that_wait_for_a_person(serve: Serve) -> None:
    server = await serve()
    phone, tablet = await server.device("phone"), await server.device("tablet")
    for domain in ("task", "journal"):
        await phone.push(item("put", domain, "a", base=None, data={"n": 1}))
    results = await tablet.push(
        *(item("put", domain, "a", base=None, data={"n": 2}) for domain in ("task", "journal"))
    )
    statuses = [one["status"] for one in results]
    await server.drained()
    minute = (await minutes(server))["acme"]
    assert statuses.count("resolved") + statuses.count("conflict") == 2
    assert (minute.conflicts, minute.conflicts_open) == (2, statuses.count("conflict"))
    assert minute.items == 4


async def test_minutes_count_what_an_outage_refuses_but_not_as_the_devices_failure(
    serve: Serve, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.commit.lane.RETRY_FOR_S", 0.1)
    server = await serve()
    phone = await server.device("phone")
    body = {"type": "sync", "key": "http", "items": [put("b1", None, n=1)]}
    with outage(services, server.dsn):
        assert (await phone.refused("sync", key="k", items=[put("a", None, n=1)]))["code"] == "unavailable"
        assert (await server.post("/v1/sync", body, "phone")).verdict == (503, "unavailable")
        assert await _refused_handshake(server, "elsewhere") == "unavailable", "its tenant cannot be read"
    heartbeat = await phone.ask("heartbeat")
    await server.drained()
    found = await minutes(server)
    assert {tenant: (one.syncs, one.failed, one.refused) for tenant, one in found.items()} == {
        None: (1, 0, 1),
        "acme": (2, 0, 2),
    }
    assert found["acme"].durations.count == 0
    assert heartbeat["health_score"] == 100


async def _refused_handshake(server: Running, tenant: str) -> str:
    async with server.http.ws_connect(
        f"{server.url}/v1/sync", headers=server.headers("tablet", tenant), protocols=("tidemark.v1.json",)
    ) as socket:
        first = await asyncio.wait_for(socket.receive(), 10)
        assert first.type is WSMsgType.TEXT
        code: str = first.json()["code"]
        return code
