"""What a connection without a valid token may take: time, bytes and number."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from engine.wire.errors import SyncError
from handlers.http.client_address import networks
from handlers.http.tokens import MAX_TOKEN_CHARS
from handlers.http.unauthenticated import UnauthenticatedConnections, UnauthenticatedLimits
from tests.contract.test_frames_masked import HANDSHAKE, shaken
from tests.harness.in_process_server import Running, Serve
from tests.harness.postgres_stalls import counts
from tests.harness.raw_http import Wire, wired

pytestmark = pytest.mark.asyncio(loop_scope="function")

HEAD = b"POST /v1/sync HTTP/1.1\r\nHost: a\r\n"


def _limits(most: int) -> UnauthenticatedLimits:
    return UnauthenticatedLimits(
        head_s=1,
        head_bytes=1 << 16,
        address_connections=most,
        write_patience_s=1,
        trusted=networks(["10.0.0.1"]),
    )


async def test_unauthenticated_address_with_too_many_is_refused_until_one_is_gone() -> None:
    unauthenticated = UnauthenticatedConnections(_limits(2))
    first = unauthenticated.enter("192.0.2.1")
    assert first == unauthenticated.enter("::ffff:192.0.2.1")
    with pytest.raises(SyncError) as refused:
        unauthenticated.enter("192.0.2.1")
    assert (refused.value.code, refused.value.kind.retryable, unauthenticated.refused) == (
        "overloaded",
        True,
        1,
    )
    unauthenticated.enter("192.0.2.2")
    unauthenticated.leave(first or "")
    unauthenticated.enter("192.0.2.1")
    assert unauthenticated.count == 3


async def test_unauthenticated_proxy_is_not_counted() -> None:
    unauthenticated = UnauthenticatedConnections(_limits(1))
    assert [unauthenticated.enter("10.0.0.1") for _ in range(3)] == [None] * 3
    assert unauthenticated.count == 0


@asynccontextmanager
async def from_address(address: str, server: Running) -> AsyncIterator[Wire]:
    """Connect from an address of this machine."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), local_addr=(address, 0))
    try:
        yield Wire(reader, writer, host)
    finally:
        writer.transport.abort()


async def test_edge_counts_unauthenticated_connections_and_no_devices(serve: Serve) -> None:
    server = await serve(server={"port": 0, "address_connections": 2})
    async with (
        from_address("127.0.0.2", server) as known,
        from_address("127.0.0.2", server) as other,
        from_address("127.0.0.3", server) as elsewhere,
    ):
        assert (await shaken(known, HANDSHAKE | server.headers())).status == 101
        assert (await other.ask("GET", "/v1/domains", server.headers("tablet"))).status == 200
        async with from_address("127.0.0.2", server) as first, from_address("127.0.0.2", server) as second:
            # Answered, and so counted.
            assert (await first.ask("GET", "/healthz", {})).status == 200
            assert (await second.ask("GET", "/v1/domains", {})).status == 401
            async with from_address("127.0.0.2", server) as third:
                refused = await third.answer()
                assert refused.verdict == (503, "overloaded")
                assert int(refused.headers["Retry-After"]) >= 1
            assert (await elsewhere.ask("GET", "/healthz", {})).status == 200
            assert (await other.ask("GET", "/v1/domains", server.headers("tablet"))).status == 200


async def test_edge_refuses_headers_that_never_end(server: Running) -> None:
    async with wired(server.url) as wire:
        await wire.send(HEAD)
        for _ in range(3):
            await wire.send(b"X: " + b"a" * 30_000 + b"\r\n")
        assert (await wire.answer()).verdict == (413, "too_large")


async def test_edge_refuses_headers_that_never_end_behind_a_request_that_did(server: Running) -> None:
    async with wired(server.url) as wire:
        assert (await wire.ask("POST", "/v1/sync", {}, b"x" * 10)).status == 401
        await wire.send(HEAD)
        for _ in range(3):
            await wire.send(b"X: " + b"a" * 30_000 + b"\r\n")
        assert (await wire.answer()).verdict == (413, "too_large")


async def test_edge_takes_no_body_for_headers(server: Running) -> None:
    async with wired(server.url) as wire:
        said = {"Content-Type": "application/json", "Content-Length": "900000"} | server.headers()
        await wire.head("POST", "/v1/sync", said)
        for _ in range(9):
            await wire.send(b" " * 100_000)
        assert (await wire.answer()).verdict == (400, "malformed")


async def test_edge_takes_headers_up_to_its_bound(server: Running) -> None:
    async with wired(server.url) as wire:
        large = {f"X-{number}": "a" * 30_000 for number in range(2)}
        assert (await wire.ask("GET", "/v1/domains", server.headers() | large)).status == 200


@pytest.mark.parametrize("said", [b"", HEAD], ids=["nothing", "half a head"])
async def test_edge_ends_a_connection_whose_headers_are_late(said: bytes, serve: Serve) -> None:
    server = await serve(server={"port": 0, "head_s": 0.05})
    async with wired(server.url) as wire:
        if said:
            await wire.send(said)
            assert (await wire.answer()).verdict == (408, "unavailable")
        await wire.ended()
    await counts(server, "tidemark_heads_late_total", 1)


async def test_edge_keeps_a_connection_between_requests(serve: Serve) -> None:
    server = await serve(server={"port": 0, "head_s": 0.05})
    async with wired(server.url) as wire, wired(server.url) as idle:
        assert (await wire.ask("GET", "/v1/domains", server.headers())).status == 200
        await idle.ended()  # its time is over, which began later
        assert (await wire.ask("GET", "/v1/domains", server.headers())).status == 200


async def test_edge_keeps_a_socket_whose_upgrade_was_the_first_request(serve: Serve) -> None:
    server = await serve(server={"port": 0, "head_s": 0.05})
    phone = await server.device()
    async with wired(server.url) as idle:
        await idle.ended()  # its time is over, which began later
    assert (await phone.ask("heartbeat"))["type"] == "heartbeat_ack"


async def test_edge_gives_up_a_body_that_never_ends(serve: Serve) -> None:
    server = await serve(server={"port": 0, "body_s": 0.05})
    async with wired(server.url) as wire:
        said = {"Content-Type": "application/json", "Content-Length": "100"} | server.headers()
        await wire.head("POST", "/v1/sync", said)
        await wire.send(b"{")
        answer = await wire.answer()
        assert answer.verdict == (503, "unavailable")
        await wire.ended()


async def test_edge_cuts_an_answer_that_is_not_read(serve: Serve) -> None:
    server = await serve(server={"port": 0, "write_patience_s": 0.05})
    host, port = server.url.removeprefix("http://").split(":")
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.connect((host, int(port)))
    try:
        # Pipelined, so that more waits than the system's buffers take.
        line.setblocking(False)
        request = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
        loop = asyncio.get_running_loop()
        sending = asyncio.create_task(loop.sock_sendall(line, request * 20_000))
        await counts(server, "tidemark_answers_unread_total", 1)
        await asyncio.gather(sending, return_exceptions=True)
    finally:
        line.close()


async def test_edge_refuses_a_token_that_is_too_long_unread(server: Running) -> None:
    async with wired(server.url) as wire:
        signed = server.token()
        long = signed + "a" * (MAX_TOKEN_CHARS + 1 - len(signed))
        answer = await wire.ask("GET", "/v1/domains", {"Authorization": f"Bearer {long}"})
    assert answer.verdict == (401, "unauthenticated")
    assert str(MAX_TOKEN_CHARS) in answer.message["message"]
