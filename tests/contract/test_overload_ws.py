"""A server that more is sent to than it can store: who is refused, when, and what it loses of what it took.

A foreign session holds a tenant's counter, so that its batch stands still and what comes after waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import psycopg2
import pytest
from aiohttp import WSServerHandshakeError

from engine.commit import admission, overload
from engine.runtime import rate_limit
from engine.wire.close_codes import CloseCode
from tests.harness.in_process_server import Running, Serve
from tests.harness.ws_device import Device, Json, put

pytestmark = pytest.mark.asyncio(loop_scope="function")


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little is stored in a second that one waiting message is too much."""
    monkeypatch.setattr(overload, "_FIRST_BYTES_PER_S", 1000.0)


@asynccontextmanager
async def held(server: Running, tenant: str = "acme") -> AsyncIterator[None]:
    """Hold a tenant's counter until the end."""
    with closing(psycopg2.connect(server.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT FROM tenant_counters JOIN tenants USING (tenant_id) WHERE name = %s"
            " FOR UPDATE OF tenant_counters",
            (server.tenant(tenant),),
        )
        yield
        connection.rollback()


def sync(number: int, **fields: object) -> Json:
    item = put(f"a{number}", None)
    return {"type": "sync", "id": str(number), "key": f"k{number}", "items": [item], **fields}


async def pressed(phone: Device) -> None:
    """Have one sync stand still and another wait behind it."""
    await phone.send(sync(1))
    await asyncio.sleep(0)
    await phone.ask("heartbeat")  # answered at once: by then the first is in its batch
    await phone.send(sync(2))
    await phone.ask("heartbeat")


async def test_overload_refuses_pushes_undecoded_and_answers_accepted_ones(serve: Serve) -> None:
    server = await serve()
    phone = await server.device()
    async with held(server):
        await pressed(phone)
        for number, wrong in ((3, {}), (4, {"items": "nobody looks at that"})):
            await phone.send(sync(number, **wrong))
            error = await phone.receive()
            assert (error["code"], error["id"], error["retryable"]) == ("overloaded", str(number), True)
            assert error["retry_after_ms"] > 0
        refused = await phone.refused("resolve", conflict_id="c", choice="server", version=1)
        assert refused["code"] == "overloaded"
        reply = await server.post("/v1/sync", b"{nobody looks at that", device="tablet")
        assert reply.verdict == (503, "overloaded")
        assert reply.message["retry_after_ms"] > 0
    answers = [await phone.receive() for _ in range(2)]
    assert sorted(answer["id"] for answer in answers) == ["1", "2"]
    assert {answer["type"] for answer in answers} == {"synced"}
    stored = [change["id"] for change in (await phone.pull())["changes"]]
    assert stored == ["a1", "a2"]


async def test_overload_refuses_bodies_whose_headers_were_accepted(serve: Serve) -> None:
    server = await serve()
    phone = await server.device()
    go, sending = await server.half_sent_sync("tablet")
    async with held(server):
        await pressed(phone)
        go.set()
        async with await sending as response:
            assert (response.status, (await response.json())["code"]) == (503, "overloaded")
    for _ in range(2):
        assert (await phone.receive())["type"] == "synced"


async def test_overload_refuses_pushes_behind_a_refused_one_until_its_retry_after(
    serve: Serve,
) -> None:
    server = await serve()
    phone = await server.device()
    async with held(server):
        await pressed(phone)
        await phone.send(sync(3))
        wait_ms = (await phone.receive())["retry_after_ms"]
    for _ in range(2):
        assert (await phone.receive())["type"] == "synced"
    await phone.send(sync(4))
    behind = await phone.receive()
    assert behind["code"] == "overloaded", "it would overtake the third"
    assert behind["retry_after_ms"] <= wait_ms
    await asyncio.sleep(behind["retry_after_ms"] / 1000)
    for number in (3, 4):
        await phone.send(sync(number))
        assert (await phone.receive())["type"] == "synced"


async def test_rate_limit_refuses_pushes_behind_a_refused_one_until_its_retry_after(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve()
    phone = await server.device()
    waits_ms = iter([400])
    monkeypatch.setattr(rate_limit.TenantRates, "take", lambda *_: next(waits_ms, 0))
    await phone.send(sync(1))
    refused = await phone.receive()
    assert (refused["code"], refused["retry_after_ms"]) == ("rate_limited", 400)
    await phone.send(sync(2))
    behind = await phone.receive()
    assert behind["code"] == "rate_limited", "it would overtake the first"
    assert 0 < behind["retry_after_ms"] <= 400
    await phone.ask("heartbeat")
    await asyncio.sleep(behind["retry_after_ms"] / 1000)
    for number in (1, 2):
        await phone.send(sync(number))
        assert (await phone.receive())["type"] == "synced"


async def test_overload_full_queue_tells_the_retry_after_of_the_back_off(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overload, "_FIRST_BYTES_PER_S", 1e9)
    jitters = iter([0.5, 1.5])
    server = await serve(commit={"queue_messages": 1})
    phone = await server.device()
    async with held(server):
        await pressed(phone)
        monkeypatch.setattr("engine.commit.committer.random.uniform", lambda *_: next(jitters, 1.0))
        await phone.send(sync(3))
        told_ms = (await phone.receive())["retry_after_ms"]
        await phone.send(sync(4))
        assert (await phone.receive())["retry_after_ms"] <= told_ms, "the third would come too early"
        monkeypatch.undo()
    for _ in range(2):
        assert (await phone.receive())["type"] == "synced"


async def test_overload_of_one_tenant_leaves_a_quiet_one_served(serve: Serve) -> None:
    server = await serve()
    phone, other = await server.device(), await server.device(tenant="globex")
    async with held(server):
        await pressed(phone)
        await phone.send(sync(3))
        assert (await phone.receive())["code"] == "overloaded"
        await other.push(put("b1", None))
        await other.push(put("b2", None))


async def test_overload_reads_yield_and_do_not_starve(serve: Serve) -> None:
    server = await serve()
    phone, other = await server.device(), await server.device(tenant="globex")
    await other.push(put("b1", None))
    async with held(server):
        await pressed(phone)
        pulled = asyncio.create_task(other.pull())
        subscribed = await server.device("tablet", tenant="globex")
        await subscribed.send({"type": "subscribe", "id": "s"})
        assert [change["id"] for change in (await pulled)["changes"]] == ["b1"]
        assert [change["id"] for change in (await subscribed.receive())["changes"]] == ["b1"]
        assert len((await server.get("/v1/changes", tenant="globex")).message["changes"]) == 1


async def test_overload_limits_new_handshakes(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "NEWCOMERS_PER_MINUTE", 1)
    server = await serve()
    phone = await server.device()
    async with held(server):
        await pressed(phone)
        with pytest.raises(WSServerHandshakeError, match="401"):
            await server.http.ws_connect(server.url + "/v1/sync")
        async with server.http.ws_connect(
            server.url + "/v1/sync", headers=server.headers("tablet")
        ) as refused:
            error = await refused.receive_json()
            assert (error["code"], error["retryable"]) == ("overloaded", True)
            assert error["retry_after_ms"] > 0
            await refused.receive()
            assert refused.close_code == CloseCode.UNAVAILABLE
    for _ in range(2):
        assert (await phone.receive())["type"] == "synced"
    assert (await (await server.device("tablet")).pull())["type"] == "changes"
