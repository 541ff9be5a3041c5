"""Several servers on one database: what one does the devices of the others notice, with Redis and without."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.harness.clusters import role_variables
from storage.embedded.servers import Services
from tests.harness.in_process_server import Reply, Running, Serve
from tests.harness.servers.own_redis import OwnRedis
from tests.harness.services import execute
from tests.harness.ws_device import Device, Json, put

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def told_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody look by himself: what is noticed was told."""
    monkeypatch.setattr("engine.cluster.listener.POLL_WITH_BUS_S", 3600.0)
    monkeypatch.setattr("engine.cache.tenants.POLL_S", 3600.0)


async def _answered(server: Running, status: str) -> Reply:
    async with asyncio.timeout(20):
        while True:
            reply = await server.get("/readyz")
            if reply.message["status"] == status:
                return reply
            await asyncio.sleep(0.02)


async def ready(*servers: Running) -> None:
    """Wait until the servers hear each other."""
    for server in servers:
        assert (await _answered(server, "ready")).message == {"status": "ready"}


async def degraded(*servers: Running) -> None:
    """Wait until the servers say that they do not hear each other, and that devices may come."""
    for server in servers:
        reply = await _answered(server, "degraded")
        assert reply.status == 200
        (sentence,) = reply.message["degraded"]
        assert sentence.startswith("redis is away: ")


async def test_readyz_while_redis_connects_says_so(
    serve: Serve, own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.bus.redis_bus.TIMEOUT_S", 60.0)
    own_redis.freeze()
    try:
        server = await serve(own_redis.url)
        reply = await server.get("/readyz")
        assert (reply.status, reply.message["status"]) == (200, "degraded")
        (sentence,) = reply.message["degraded"]
        assert sentence.startswith("redis is being connected to: ")
        await asyncio.to_thread(own_redis.kill)
        async with asyncio.timeout(20):
            while not sentence.startswith("redis is away: "):
                (sentence,) = (await server.get("/readyz")).message["degraded"]
    finally:
        await asyncio.to_thread(own_redis.start)
    await ready(server)


async def command(dsn: str, redis_url: str, *arguments: str) -> None:
    """Run a command as an operator does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "run.py",
        *arguments,
        cwd=_ROOT,
        env={**os.environ, **role_variables(dsn), "TIDEMARK__REDIS__URL": redis_url},
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await process.wait() == 0


async def live(device: Device, record_id: str) -> None:
    """Wait for a change of a record."""
    while (await device.changes())["changes"][-1]["id"] != record_id:
        pass


@pytest.mark.usefixtures("told_only")
async def test_cluster_change_reaches_the_subscribers_of_another_server(serve: Serve) -> None:
    one, two = await serve(), await serve()
    await ready(one, two)
    writer = await one.device("writer")
    readers = [await two.device(f"reader{number}") for number in range(3)]
    stranger = await two.device("reader0", "globex")
    for reader in (*readers, stranger):
        await reader.ask("subscribe")
    for number in range(20):
        await writer.push(put(f"a{number}", None, n=number))
    for reader in readers:
        await live(reader, "a19")
    await stranger.ask("heartbeat")
    assert stranger.unasked == []


@pytest.mark.usefixtures("told_only")
async def test_cluster_policy_set_by_a_command_is_announced(serve: Serve, services: Services) -> None:
    servers = [await serve(), await serve()]
    await ready(*servers)
    devices = [await server.device(f"phone{number}") for number, server in enumerate(servers)]
    arguments = ("policy", "set", "--tenant", "acme", "--domain", "task", "--policy", "manual")
    await command(servers[0].dsn, services.redis_url, *arguments)
    for device in devices:
        told = await device.waited("policies")
        assert told["policies"] == device.welcome["policies"] | {"task": "manual"}


@pytest.mark.usefixtures("told_only")
async def test_cluster_device_has_one_socket_over_all_servers(serve: Serve) -> None:
    one, two = await serve(), await serve()
    await ready(one, two)
    other, namesake = await one.device("tablet"), await one.device("phone", "globex")
    for first, second in ((one, two), (two, one)):
        older = await first.device("phone")
        await older.told("heartbeat_ack", "heartbeat")
        newer = await second.device("phone")
        await newer.told("heartbeat_ack", "heartbeat")
        assert await older.closed() == 4409
        goodbye = older.unasked[-1]
        assert (goodbye["type"], goodbye["reason"]) == ("goodbye", "replaced")
        await newer.told("heartbeat_ack", "heartbeat")
    for device in (other, namesake):
        await device.told("heartbeat_ack", "heartbeat")
        assert device.unasked == []


async def test_cluster_without_redis_changes_are_still_found(
    serve: Serve, own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.cluster.listener.POLL_WITH_BUS_S", 3600.0)
    one, two = await serve(own_redis.url), await serve(own_redis.url)
    await ready(one, two)
    writer, reader = await one.device("writer"), await two.device("reader")
    await reader.ask("subscribe")
    own_redis.kill()
    await degraded(one, two)
    await writer.push(put("away", None, n=1))
    await live(reader, "away")
    arguments = ("policy", "set", "--tenant", "acme", "--domain", "task", "--policy", "manual")
    await command(one.dsn, own_redis.url, *arguments)
    for device in (writer, reader):
        assert (await device.waited("policies"))["policies"]["task"] == "manual"
    own_redis.start()
    await ready(one, two)
    await writer.push(put("back", None, n=1))
    await live(reader, "back")


@pytest.mark.usefixtures("told_only")
async def test_cluster_missed_changes_are_read_when_redis_is_back(
    serve: Serve, own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.cluster.listener.POLL_WITHOUT_BUS_S", 3600.0)
    one, two = await serve(own_redis.url), await serve(own_redis.url)
    await ready(one, two)
    writer, reader = await one.device("writer"), await two.device("reader")
    older = await one.device("phone")
    await reader.ask("subscribe")
    own_redis.kill()
    await degraded(one, two)
    await reader.ask("heartbeat")
    await writer.push(put("away", None, n=1))
    execute(
        one.dsn,
        "INSERT INTO tenant_conflict_policy (tenant_id, domain, policy)"
        " SELECT tenant_id, 'task', 'manual' FROM tenants WHERE name = 'acme'",
        "UPDATE cluster_state SET generation = generation + 1",
    )
    newer = await two.device("phone")
    await newer.told("heartbeat_ack", "heartbeat")
    await reader.ask("heartbeat")
    assert reader.unasked == []
    own_redis.start()
    await live(reader, "away")
    assert (await reader.waited("policies"))["policies"]["task"] == "manual"
    assert await older.closed() == 4409
    await newer.told("heartbeat_ack", "heartbeat")


async def test_cluster_server_that_never_reached_redis_serves(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.cluster.listener.POLL_WITH_BUS_S", 3600.0)
    one, two = await serve("redis://127.0.0.1:1"), await serve("redis://127.0.0.1:1")
    await degraded(one, two)
    writer, reader = await one.device("writer"), await two.device("reader")
    await reader.ask("subscribe")
    await writer.push(put("a1", None, n=1))
    await live(reader, "a1")


async def test_cluster_changes_of_a_killed_server_are_found(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.cluster.listener.POLL_WITH_BUS_S", 0.1)
    monkeypatch.setattr("storage.bus.redis_bus.RedisBus.committed", lambda *_: None)
    one, two = await serve(), await serve()
    await ready(one, two)
    writer, reader = await one.device("writer"), await two.device("reader")
    await reader.ask("subscribe")
    await writer.push(put("a1", None, n=1))
    await live(reader, "a1")


async def test_metrics_show_the_state_of_the_bus(serve: Serve, own_redis: OwnRedis) -> None:
    server = await serve(own_redis.url)

    async def metrics() -> Json:
        text = (await server.get("/metrics")).body.decode()
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    await ready(server)
    up = await metrics()
    assert up["tidemark_bus_up"] == 1
    assert up["tidemark_bus_published_total"] >= up["tidemark_bus_received_total"] >= 1
    assert up["tidemark_bus_malformed_total"] == up["tidemark_bus_losses_total"] == 0
    assert 0 < up["tidemark_bus_round_trip_seconds"] < 10
    own_redis.kill()
    await degraded(server)
    down = await metrics()
    assert (down["tidemark_bus_up"], down["tidemark_bus_losses_total"]) == (0, 1)


async def test_readyz_depends_on_the_database_first(serve: Serve) -> None:
    server = await serve("redis://127.0.0.1:1")
    execute(server.dsn, "UPDATE cluster_state SET system_identifier = 1")
    reply = await server.get("/readyz")
    assert reply.status == 503
    assert msgspec.json.decode(reply.body)["status"] == "not ready"
