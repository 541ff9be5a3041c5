"""Devices as a server serves them: health that outlives it, failures that count, tokens that are revoked."""

from __future__ import annotations

import asyncio
import json
import time

import msgspec
import pytest
from aiohttp import WSServerHandshakeError

from bench.harness.clusters import role_variables
from engine.cache.devices import DeviceCache
from storage.embedded.servers import Services
from tests.contract.test_close_codes import goodbye
from tests.handlers.commands.test_commands import Ended
from tests.harness.admin import restore_device, revoke_device
from tests.harness.in_process_server import Running, Serve
from tests.harness.services import execute, outage, rows
from tests.harness.ws_device import Device, Json, day, item, put
from tests.security.catalogue import against

QUICK = {"devices": {"flush_s": 1}}
STORED = "SELECT total_syncs::int, failed_syncs::int, conflicts::int FROM sync_device_health"


async def stored(server: Running, wanted: list[tuple[object, ...]]) -> None:
    """Wait until that is what the database holds."""
    async with asyncio.timeout(20):
        while rows(server.dsn, f"{STORED} ORDER BY device_id") != wanted:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.02)


async def test_device_drain_stores_health_which_is_found_again_after_a_restart(serve: Serve) -> None:
    server = await serve(devices={"flush_s": 3600})
    phone, tablet = await server.device("phone"), await server.device("tablet")
    await phone.send({"type": "hello", "app_version": "2.1", "os_version": "15"})
    await phone.push(put("a1", None, n=1))
    await tablet.push(put("a1", None, n=2))
    await tablet.ask("heartbeat", network="wifi")
    for number in range(2, 10):
        await phone.push(put(f"a{number}", None, n=1))
    await server.drained()
    assert rows(server.dsn, f"{STORED} ORDER BY device_id") == [(9, 0, 0), (1, 0, 1)]
    said = "SELECT device_id, app_version, os_version, network_type FROM sync_device_health ORDER BY 1"
    assert rows(server.dsn, said) == [("phone", "2.1", "15", None), ("tablet", None, None, "wifi")]
    later = await serve()
    assert (await (await later.device("tablet")).ask("heartbeat"))["health_score"] == 80
    assert (await (await later.device("phone")).ask("heartbeat"))["health_score"] == 100


async def test_device_two_servers_count_the_same_device_together(serve: Serve) -> None:
    servers = [await serve(**QUICK), await serve(**QUICK)]
    for number in range(6):
        phone = await servers[number % 2].device("phone")
        await phone.push(put(f"a{number}", None, n=1))
    await stored(servers[0], [(6, 0, 0)])


async def test_device_failures_count_equally_on_sockets_and_http(serve: Serve) -> None:
    server = await serve(**QUICK)
    phone = await server.device("phone")
    items = [put("a1", None, n=1)]
    other = [put("a1", None, n=2)]
    many = [put(f"m{number}", None, n=1) for number in range(501)]
    failures: list[tuple[Json, str]] = [
        ({"key": "k", "items": other}, "idempotency_key_reused"),
        ({"key": "k2", "items": many}, "too_large"),
        ({"key": "k3", "items": [1]}, "invalid_message"),
    ]
    await phone.told("synced", "sync", key="k", items=items)
    reply = await server.post("/v1/sync", {"type": "sync", "key": "k", "items": items}, "tablet")
    assert reply.status == 200
    for fields, code in failures:
        assert (await phone.refused("sync", **fields))["code"] == code
        reply = await server.post("/v1/sync", {"type": "sync", **fields}, "tablet")
        assert reply.message["code"] == code
    await stored(server, [(4, 3, 0), (4, 3, 0)])


async def test_device_sync_that_is_put_off_is_no_failure(
    serve: Serve, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.commit.lane.RETRY_FOR_S", 0.1)
    server = await serve(**QUICK)
    phone = await server.device("phone")
    items = [put("a1", None, n=1)]
    with outage(services, server.dsn):
        refusal = await phone.refused("sync", key="k", items=items)
        assert refusal["code"] == "unavailable"
        body: Json = {"type": "sync", "key": "k", "items": items}
        assert (await server.post("/v1/sync", body)).verdict == (503, "unavailable")
        assert (await phone.ask("heartbeat"))["health_score"] == 100
    await asyncio.sleep(refusal["retry_after_ms"] / 1000)
    await phone.told("synced", "sync", key="k", items=items)
    await stored(server, [(1, 0, 0)])


async def test_push_behind_one_refused_in_an_outage_does_not_overtake_it(
    serve: Serve, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.commit.lane.RETRY_FOR_S", 0.1)
    server = await serve(domains={"ticket": {"policy": "most_recent_wins"}})
    phone = await server.device("phone")
    await phone.push(item("put", "ticket", "t1", data={"n": 0}, at=day(1)))
    older, newer = (
        item("patch", "ticket", "t1", base=1, data={name: 1}, at=day(at)) for name, at in (("b", 2), ("c", 3))
    )
    with outage(services, server.dsn):
        wait_ms = (await phone.refused("sync", key="older", items=[older]))["retry_after_ms"]
    behind = await phone.refused("sync", key="newer", items=[newer])  # sent before it heard of the refusal
    assert behind["code"] == "unavailable"
    assert 0 < behind["retry_after_ms"] <= wait_ms
    await asyncio.sleep(behind["retry_after_ms"] / 1000)
    assert (await phone.refused("sync", key="newer", items=[newer]))["code"] == "unavailable", "not its turn"
    for key, sent in (("older", older), ("newer", newer)):
        assert [one["status"] for one in await phone.sync(key, sent)] == ["applied"]
    (change,) = (await phone.pull())["changes"]
    assert change["data"] == {"n": 0, "b": 1, "c": 1}


@against("API2:2023", "V7.4")
async def test_device_revoked_is_closed_and_its_tokens_are_refused(
    serve: Serve,
) -> None:
    server = await serve()
    phone, other = await server.device("phone"), await server.device("phone", "globex")
    tablet = await server.device("tablet")
    assert revoke_device(server.dsn, "acme", "phone")
    assert goodbye_of(await told(phone)) == ("revoked", 4403)
    await refused(server, "phone")
    for device in (other, tablet):
        await device.push(put("a1", None, n=1))
    await refused(await serve(), "phone")


@against("API2:2023", "V7.4")
async def test_device_restored_connects_with_tokens_signed_since(serve: Serve) -> None:
    server = await serve()
    now_s = int(time.time())
    revoke_device(server.dsn, "acme", "phone")
    await heard_of_it(server, "phone", "acme")
    restore_device(server.dsn, "acme", "phone")
    headers = server.headers("phone", iat=now_s + 60)
    async with asyncio.timeout(20):
        while (await server.get("/v1/changes", headers=headers)).status != 200:  # noqa: ASYNC110  # as below
            await asyncio.sleep(0.02)
    await refused(server, "phone")  # without an iat
    for iat, status in ((now_s - 60, 401), ("text", 401), (now_s + 60.5, 200)):
        headers = server.headers("phone", iat=iat)
        assert (await server.get("/v1/changes", headers=headers)).status == status
    newer = await server.device("phone", iat=now_s + 60)
    revoke_device(server.dsn, "acme", "other")  # a list that changes for others sends nobody away
    await heard_of_it(server, "other", "acme")
    await newer.push(put("a1", None, n=1))


@against("API2:2023", "V7.4")
async def test_device_revoked_and_restored_at_once_is_closed_with_its_older_token(
    serve: Serve,
) -> None:
    server = await serve()
    phone = await server.device("phone")
    execute(  # both come to the server as one change
        server.dsn,
        "INSERT INTO devices (tenant_id, device_id, tokens_from)"
        " SELECT tenant_id, 'phone', now() FROM tenants WHERE name = 'acme'"
        " ON CONFLICT (tenant_id, device_id) DO UPDATE SET tokens_from = excluded.tokens_from;"
        " UPDATE cluster_state SET generation = generation + 1",
    )
    assert goodbye_of(await told(phone)) == ("revoked", 4403)
    await refused(server, "phone")


async def told(device: Device) -> tuple[list[Json], int | None]:
    """Wait for the close."""
    code = await device.closed()
    return device.unasked, code


def goodbye_of(ended: tuple[list[Json], int | None]) -> tuple[str | None, int | None]:
    """Give the reason and the code."""
    return goodbye(ended[0]), ended[1]


async def refused(server: Running, name: str, tenant: str = "acme") -> None:
    """Expect that a device is refused on a socket and over HTTP."""
    with pytest.raises(WSServerHandshakeError) as handshake:
        await server.device(name, tenant)
    assert handshake.value.status == 401
    assert (await server.get("/v1/changes", name, tenant)).verdict == (401, "unauthenticated")
    body: Json = {"type": "sync", "key": "k", "items": []}
    assert (await server.post("/v1/sync", body, name, tenant)).verdict == (401, "unauthenticated")


async def heard_of_it(server: Running, name: str, tenant: str) -> None:
    """Wait until a server knows of a revocation."""
    async with asyncio.timeout(20):
        while (await server.get("/v1/changes", name, tenant)).status != 401:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.02)


@against("API2:2023", "V7.4")
async def test_device_that_was_never_seen_can_be_revoked(serve: Serve) -> None:
    server = await serve()
    revoke_device(server.dsn, "globex", "lost")
    await heard_of_it(server, "lost", "globex")
    await refused(server, "lost", "globex")
    await server.device("lost", "acme")


@against("API2:2023", "V7.4")
async def test_device_revoked_during_its_handshake_is_closed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve()
    looked: asyncio.Event = asyncio.Event()
    go: asyncio.Event = asyncio.Event()
    load = DeviceCache.load

    async def held(self: DeviceCache, tenant_id: int, device_id: str) -> None:
        await load(self, tenant_id, device_id)
        if not looked.is_set():
            looked.set()
            await go.wait()

    monkeypatch.setattr(DeviceCache, "load", held)
    connecting = asyncio.create_task(server.device("phone"))
    await looked.wait()
    revoke_device(server.dsn, "acme", "phone")
    await heard_of_it(server, "phone", "acme")
    go.set()
    assert goodbye_of(await told(await connecting)) == ("revoked", 4403)


@against("API2:2023", "V7.4")
async def test_device_revoked_during_a_slow_body_is_refused(serve: Serve) -> None:
    server = await serve()
    go, sending = await server.half_sent_sync("phone")
    revoke_device(server.dsn, "acme", "phone")
    await heard_of_it(server, "phone", "acme")
    go.set()
    async with await sending as response:
        assert (response.status, (await response.json())["code"]) == (401, "unauthenticated")


def run(server: Running, *arguments: str) -> Ended:
    """Run a command beside the server."""
    return Ended(*arguments, **role_variables(server.dsn))


async def test_device_commands_show_what_the_server_stored(serve: Serve) -> None:
    server = await serve(**QUICK)
    phone = await server.device("phone")
    await phone.send({"type": "hello", "app_version": "2.1"})
    await phone.push(put("a1", None, n=1), item("put", "nothing", "x", data={}))
    await (await server.device("phone", "globex")).push(put("a1", None, n=1))
    await stored(server, [(1, 0, 0), (1, 0, 0)])

    async def command(*arguments: str) -> Ended:
        return await asyncio.to_thread(run, server, "device", *arguments)

    listed = (await command("list", "--tenant", "acme")).out.splitlines()
    heading = "TENANT DEVICE LAST SYNC SYNCS FAILED CONFLICTS HEALTH APP REVOKED"
    assert " ".join(listed[0].split()) == heading
    assert listed[1].split()[:2] + listed[1].split()[4:] == ["acme", "phone", "1", "0", "0", "100", "2.1"]
    assert len((await command("list")).out.splitlines()) == 3
    (shown,) = json.loads((await command("list", "--tenant", "acme", "--json")).out)
    assert shown == json.loads((await command("show", "--tenant", "acme", "phone", "--json")).out)
    assert (shown["total_syncs"], shown["health_score"], shown["revoked_at"]) == (1, 100, None)
    assert shown["avg_sync_duration_ms"] > 0
    revoke = await command("revoke", "--tenant", "acme", "phone")
    assert (revoke.status, revoke.out) == (0, "revoked phone of acme\n")
    assert goodbye_of(await told(phone)) == ("revoked", 4403)
    again = await command("revoke", "--tenant", "acme", "phone")
    assert again.out == "phone of acme was revoked already\n"
    shown = (await command("show", "--tenant", "acme", "phone")).out
    assert "revoked_at" in shown
    restored = await command("restore", "--tenant", "acme", "phone")
    assert (restored.status, restored.out) == (0, "phone of acme restored, for tokens signed from now on\n")
    restored = await command("restore", "--tenant", "acme", "phone")
    assert restored.out == "phone of acme is not revoked: nothing to restore\n"
    unseen = await command("revoke", "--tenant", "acme", "phome")
    assert unseen.refusal() == "Error: not done: it takes a yes, on a terminal or by --yes"
    assert "No device phome of acme was ever seen" in unseen.err
    assert len((await command("list")).out.splitlines()) == 3
    unseen = await command("revoke", "--tenant", "acme", "phome", "--yes")
    assert unseen.out == "revoked phome of acme\n"
    assert [line.split()[0] for line in shown.splitlines()][:2] == ["FIELD", "tenant"]
    for arguments, sentence in (
        (("show", "--tenant", "acme", "nobody"), "tenant acme has no device nobody"),
        (("list", "--tenant", "nobody"), "there is no tenant nobody"),
        (("revoke", "--tenant", "nobody", "phone"), "there is no tenant nobody"),
        (("restore", "--tenant", "acme", "nobody"), "tenant acme has no device nobody"),
        (("revoke", "--tenant", "acme", "a/b"), "a device's id is 1 to 255 of"),
    ):
        assert sentence in (await command(*arguments)).refusal()


async def test_device_metrics_show_write_behind(serve: Serve) -> None:
    server = await serve(**QUICK)
    phone = await server.device("phone")
    for number in range(5):
        await phone.push(put(f"a{number}", None, n=1))
    await stored(server, [(5, 0, 0)])
    await server.get("/v1/conflicts", "phone")
    text = (await server.get("/metrics")).body.decode()
    found = {
        line.split()[0]: float(line.split()[1]) for line in text.splitlines() if not line.startswith("#")
    }
    assert found["tidemark_device_reads_total"] == 1
    assert found["tidemark_device_misses_total"] == 0
    assert found["tidemark_device_hits_total"] == 5
    assert found["tidemark_policy_misses_total"] == 0, "tenants are read before a device can connect"
    assert found["tidemark_policy_hits_total"] >= 8
    assert found["tidemark_health_flush_rows_total"] >= 1
    assert found["tidemark_health_flush_failures_total"] == 0
    assert 0 < found["tidemark_health_flush_seconds_total"] < 5
    assert found["tidemark_batch_duration_seconds_sum"] > 0
    assert found["tidemark_tenants_remembered"] == 2, "acme and globex"


async def test_push_refused_in_an_outage_that_never_returns_delays_others_for_seconds(
    serve: Serve, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.commit.lane.RETRY_FOR_S", 0.1)
    monkeypatch.setattr("handlers.sync.push_backoff.FIRST_FOR_S", 0.1)
    server = await serve()
    phone = await server.device("phone")
    with outage(services, server.dsn):
        refusal = await phone.refused("sync", key="given up", items=[put("a1", None, n=1)])
    await asyncio.sleep(refusal["retry_after_ms"] / 1000 + 0.1)
    await phone.push(put("a1", None, n=2))


async def test_heartbeat_facts_are_kept_for_the_device_and_its_hour(serve: Serve) -> None:
    server = await serve(devices={"flush_s": 3600})
    phone = await server.device("phone")
    facts = {"battery": 0.8123, "queue_depth": 10**15, "storage_free_mb": 900.25, "network": "4g"}
    await phone.told("heartbeat_ack", "heartbeat", **facts)
    unknown = {"battery": -1, "storage_free_mb": -1, "queue_depth": 2}
    assert (await server.post("/v1/heartbeat", unknown, "tablet")).status == 200
    body = msgspec.msgpack.encode({"battery": 1e-300, "storage_free_mb": float("inf")})
    msgpack = {"Content-Type": "application/msgpack"}
    assert (await server.post("/v1/heartbeat", body, "other", headers=msgpack)).status == 200
    await server.drained()
    told = "SELECT device_id, battery, queue_depth, storage_free_mb, network_type"
    assert rows(server.dsn, f"{told} FROM sync_device_health ORDER BY 1") == [
        ("other", 0.0, None, None, None),
        ("phone", 0.81, 2**31 - 1, 900.2, "4g"),
        ("tablet", None, 2, None, None),
    ]
    hours = "SELECT device_id, syncs, battery, queue_depth FROM sync_device_hours ORDER BY 1"
    assert rows(server.dsn, hours) == [
        ("other", 0, 0.0, None),
        ("phone", 0, 0.81, 2**31 - 1),
        ("tablet", 0, None, 2),
    ]
