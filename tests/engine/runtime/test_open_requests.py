"""What one device and one tenant may have open over HTTP, and how often they may shake hands."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import WSServerHandshakeError

from engine.commit import admission
from engine.runtime.open_requests import OpenRequests, RequestLimits, Ticket
from engine.wire.errors import SyncError
from tests.harness.in_process_server import Serve
from tests.harness.postgres_stalls import counts
from tests.harness.raw_http import wired


def _open() -> OpenRequests:
    limits = RequestLimits(device_requests=2, device_bytes=100, tenant_requests=3, tenant_bytes=150)
    return OpenRequests(limits)


def _refused(requests: OpenRequests, ticket: Ticket) -> str:
    with pytest.raises(SyncError) as refused:
        requests.enter(ticket)
    assert refused.value.code == "rate_limited"
    return refused.value.message


def test_open_requests_of_a_device_and_of_a_tenant_are_bounded_apart() -> None:
    requests = _open()
    phone, tablet, other = Ticket(1, "phone", 0), Ticket(1, "tablet", 0), Ticket(2, "phone", 0)
    requests.enter(phone)
    requests.enter(phone)
    assert "device" in _refused(requests, phone)
    requests.enter(tablet)
    assert "tenant" in _refused(requests, tablet)
    requests.enter(other)
    for ticket in (phone, phone, tablet, other):
        requests.leave(ticket)
    assert len(requests) == 0, "nothing is kept of who is gone"


def test_open_requests_bound_the_bytes_that_wait() -> None:
    requests = _open()
    large = Ticket(1, "phone", 1000)
    requests.enter(large)
    assert "device" in _refused(requests, Ticket(1, "phone", 1))
    assert "tenant" in _refused(requests, Ticket(1, "tablet", 1))
    requests.enter(Ticket(1, "tablet", 0))
    requests.leave(large)
    requests.enter(Ticket(1, "phone", 100))


@pytest.mark.asyncio(loop_scope="function")
async def test_a_device_with_too_many_open_requests_is_refused_and_others_are_not(serve: Serve) -> None:
    server = await serve(limits={"open_requests": 1})
    said = {"Content-Type": "application/json", "Content-Length": "100"} | server.headers()
    async with wired(server.url) as wire:
        await wire.head("POST", "/v1/sync", said)
        await counts(server, "tidemark_messages_received_total", 1)
        assert (await server.get("/v1/domains")).verdict == (429, "rate_limited")
        assert (await server.get("/v1/domains", device="tablet")).status == 200
    async with asyncio.timeout(10):
        while (await server.get("/v1/domains")).status != 200:  # noqa: ASYNC110  # nobody tells of the end
            await asyncio.sleep(0.01)


@pytest.mark.asyncio(loop_scope="function")
async def test_handshakes_of_a_device_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "HANDSHAKES_PER_MINUTE", 3)
    server = await serve()
    for _ in range(3):
        await server.device()
    with pytest.raises(WSServerHandshakeError) as refused:
        await server.device()
    assert refused.value.status == 429
    await server.device("tablet")


@pytest.mark.asyncio(loop_scope="function")
async def test_sockets_of_a_tenant_are_bounded_and_a_device_may_come_back(serve: Serve) -> None:
    server = await serve(limits={"tenant_connections": 1})
    phone = await server.device()
    with pytest.raises(WSServerHandshakeError) as refused:
        await server.device("watch")
    assert refused.value.status == 429
    await server.device("watch", tenant="globex")
    await phone.told("heartbeat_ack", "heartbeat")
    await (await server.device()).told("heartbeat_ack", "heartbeat")
    assert await phone.closed() == 4409
