"""What probes and scrapes are told, and what devices are told while the database is away."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from storage.embedded.servers import Services
from tests.harness.in_process_server import Running
from tests.harness.postgres_stalls import until
from tests.harness.services import execute, outage, rows
from tests.harness.ws_device import Json, put


async def test_probes_healthz_and_readyz_are_200(server: Running) -> None:
    assert (await server.get("/healthz")).status == 200
    assert (await server.get("/readyz")).status == 200


async def test_probes_ask_for_no_token(server: Running) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        async with server.http.get(server.url + path) as response:
            assert response.status == 200


async def test_probes_readyz_names_the_faults_of_the_database(server: Running) -> None:
    faults: dict[str, str] = {
        "DELETE FROM _yoyo_migration WHERE migration_id IN (SELECT max(migration_id) FROM _yoyo_migration)": (
            "migrate"
        ),
        "UPDATE cluster_state SET system_identifier = 1": "epoch renew",
    }
    for number, (statement, remedy) in enumerate(faults.items(), start=1):
        execute(server.dsn, statement)
        reply = await server.get("/readyz")
        found = reply.message["faults"]
        assert (reply.status, len(found)) == (503, number)
        assert remedy in found[-1]
    assert (await server.get("/healthz")).status == 200


async def test_probes_readyz_is_503_while_the_database_is_away(server: Running, services: Services) -> None:
    with outage(services, server.dsn):
        reply = await server.get("/readyz")
        assert reply.status == 503
        assert len(reply.message["faults"]) == 1
        assert (await server.get("/healthz")).status == 200
    assert (await server.get("/readyz")).status == 200


async def test_probes_readyz_names_the_pool_while_the_role_of_jobs_is_away(server: Running) -> None:
    ((name,),) = rows(server.dsn, "SELECT current_database()::text")
    execute(
        server.dsn,
        f'GRANT CONNECT ON DATABASE "{name}" TO tidemark_serving',
        f'REVOKE CONNECT ON DATABASE "{name}" FROM PUBLIC, tidemark_jobs',
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'tidemark_jobs'",
    )
    execute(server.dsn, "UPDATE cluster_state SET generation = generation + 1")

    async def degraded() -> list[str]:
        return list((await server.get("/readyz")).message.get("degraded", ()))

    found = await until(degraded)
    assert any("the pool everyone cannot connect" in one and "permission denied" in one for one in found)
    assert (await server.get("/readyz")).status == 200
    execute(server.dsn, f'GRANT CONNECT ON DATABASE "{name}" TO tidemark_jobs')
    assert await degraded() == []


READS: dict[str, Json] = {
    "pull": {},
    "subscribe": {},
    "conflicts": {},
    "resolve": {"conflict_id": "c", "choice": "server", "version": 1},
}


async def test_outage_short_delays_syncs_and_fails_reads(server: Running, services: Services) -> None:
    phone = await server.device()
    tablet = await server.device("tablet")
    await tablet.ask("subscribe")
    with outage(services, server.dsn):
        for number in range(20):
            items = [put("a1", number or None, n=number)]
            await phone.send({"type": "sync", "id": f"s{number}", "key": f"k{number}", "items": items})
        for kind, fields in READS.items():
            unavailable(await tablet.refused(kind, **fields))
        assert (await server.get("/v1/changes")).verdict == (503, "unavailable")
        await tablet.told("heartbeat_ack", "heartbeat")
    answers = [await phone.receive() for _ in range(20)]
    assert [one["results"][0]["version"] for one in answers] == list(range(1, 21))
    version = 0
    while version < 20:
        version = (await tablet.changes())["changes"][-1]["version"]
    for kind in ("pull", "subscribe"):
        assert len((await tablet.told("changes", kind))["changes"]) == 1


async def test_outage_long_makes_syncs_unavailable(
    server: Running, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.commit.lane.RETRY_FOR_S", 0.2)
    phone = await server.device()
    items = [put("a1", None, n=1)]
    with outage(services, server.dsn):
        for _ in range(2):
            refused = await phone.refused("sync", key="k1", items=items)
            unavailable(refused)
        reply = await server.post("/v1/sync", {"type": "sync", "key": "k2", "items": items})
        assert reply.status == 503
        unavailable(reply.message)
    await asyncio.sleep(refused["retry_after_ms"] / 1000)  # as it was told; sooner it is refused again
    synced = await phone.told("synced", "sync", key="k1", items=items)
    assert (synced["replayed"], synced["results"][0]["status"]) == (False, "applied")
    reply = await server.post("/v1/sync", {"type": "sync", "key": "k2", "items": items})
    assert (reply.status, reply.message["replayed"]) == (200, False)


def unavailable(error: Json) -> None:
    assert (error["type"], error["code"], error["retryable"]) == ("error", "unavailable", True)
    assert error["retry_after_ms"] > 0


async def test_outage_makes_an_unknown_tenant_unavailable(server: Running, services: Services) -> None:
    await server.device("phone", "acme")
    with outage(services, server.dsn):
        await server.device("tablet", "acme")  # known already: devices need no database to connect
        async with server.http.ws_connect(
            f"{server.url}/v1/sync", headers=server.headers(tenant="elsewhere")
        ) as refused:
            unavailable(msgspec.json.decode(await refused.receive_str()))
            await refused.receive()
            assert refused.close_code == 4503
        reply = await server.get("/v1/changes", tenant="globex")
        assert reply.verdict == (503, "unavailable")
    await server.device("phone", "globex")


async def test_probes_metrics_parse_as_prometheus_text(server: Running) -> None:
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await phone.push(put("a1", None, n=1))
    await phone.refused("pull", limit=0)
    await server.get("/v1/changes", tenant="nobody")
    async with server.http.get(f"{server.url}/v1/sync", headers={"Upgrade": "websocket"}) as refused:
        assert refused.status == 401
    assert await tablet.socket.close()
    reply = await server.get("/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(reply.body.decode())}
    assert all(name.startswith("tidemark_") for name in families)
    assert all(family.documentation for family in families.values())

    def value(name: str, **labels: str) -> float:
        (found,) = [
            sample.value
            for sample in families[name].samples
            if sample.labels == labels and not sample.name.endswith("_created")
        ]
        return found

    assert value("tidemark_connections_opened") == 2
    assert value("tidemark_handshakes_refused", code="unauthenticated") == 1
    assert value("tidemark_errors", code="invalid_message") == 1
    assert value("tidemark_errors", code="forbidden") == 1
    buckets = {
        sample.labels["le"]: sample.value
        for sample in families["tidemark_sync_duration_seconds"].samples
        if sample.name.endswith("_bucket")
    }
    assert buckets["+Inf"] == 1
    assert sorted(buckets.values()) == list(buckets.values())
