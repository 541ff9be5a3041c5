"""How many bytes connections keep in memory before it is known whose they are."""

from __future__ import annotations

import asyncio
import gc
import socket
from contextlib import AsyncExitStack
from typing import Final

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol

from handlers.http.read_buffers import (
    SMALL_READ_BYTES,
    BoundedReads,
    Buffers,
    default_read_ahead,
    discard,
    limit_read_ahead,
)
from handlers.http.unauthenticated import SMALL_HEAD_BYTES, UnauthenticatedConnections, UnauthenticatedLimits
from tests.contract.test_frames_masked import HANDSHAKE
from tests.handlers.http.test_edge_protocol import HEAD, from_address
from tests.harness.in_process_server import Running, Serve
from tests.harness.raw_http import wired

pytestmark = pytest.mark.asyncio(loop_scope="function")

_LARGE: Final = HEAD + b"X: " + b"a" * 30_000 + b"\r\nY: " + b"a" * 30_000
_SMALL: Final = HEAD + b"X: " + b"a" * (SMALL_HEAD_BYTES - len(HEAD) - 100)


def _unauthenticated(of_all: int, of_address: int) -> UnauthenticatedConnections:
    return UnauthenticatedConnections(
        UnauthenticatedLimits(
            head_s=1,
            head_bytes=1 << 16,
            address_connections=10,
            write_patience_s=1,
            trusted=(),
            heads_bytes=of_all,
            address_heads_bytes=of_address,
        )
    )


async def test_unauthenticated_bytes_of_one_address_are_bounded() -> None:
    unauthenticated = _unauthenticated(100, 50)
    assert unauthenticated.wait("a", 50)
    assert not unauthenticated.wait("a", 1)
    assert unauthenticated.wait("b", 49)
    assert unauthenticated.wait("a", -51)
    assert unauthenticated.heads_bytes == 49
    assert unauthenticated.wait("a", 50)


async def test_unauthenticated_bytes_of_all_connections_are_bounded_with_proxies() -> None:
    unauthenticated = _unauthenticated(100, 50)
    assert unauthenticated.wait(None, 100)
    assert not unauthenticated.wait("a", 1)
    assert not unauthenticated.wait(None, 1)
    assert unauthenticated.wait(None, -2)


async def test_edge_heads_of_an_address_that_never_end_leave_room_for_small_ones(serve: Serve) -> None:
    server = await serve()
    most = UnauthenticatedLimits.__struct_defaults__[-1] // len(_LARGE)
    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(from_address("127.0.0.2", server)) for _ in range(most + 1)]
        for wire in wires:
            await wire.send(_LARGE)
        answers = [asyncio.create_task(wire.answer()) for wire in wires]
        refused, _ = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        assert [answer.result().verdict for answer in refused] == [(503, "overloaded")]
        assert int(refused.pop().result().headers["Retry-After"]) >= 1
        # A phone of the same address whose head is as large as those of phones, even if it comes in pieces.
        small = await stack.enter_async_context(from_address("127.0.0.2", server))
        for piece in (_SMALL[:100], _SMALL[100:], b"\r\nContent-Length: 0\r\n\r\n"):
            await small.send(piece)
        assert (await small.answer()).verdict == (401, "unauthenticated")
        other = await stack.enter_async_context(from_address("127.0.0.3", server))
        await other.send(_LARGE + b"\r\nContent-Length: 0\r\n\r\n")
        assert (await other.answer()).verdict == (401, "unauthenticated")
        assert "tidemark_heads_refused_total 1" in (await server.get("/metrics")).body.decode()
        for answer in answers:
            answer.cancel()
        await asyncio.gather(*answers, return_exceptions=True)


async def test_edge_closes_a_connection_with_a_large_head_and_keeps_one_with_a_small(server: Running) -> None:
    async with wired(server.url) as wire:
        small = {"X": "a" * 1000}
        for _ in range(2):
            answer = await wire.ask("POST", "/v1/sync", small, b"a" * 10_000)
            assert (answer.status, answer.headers.get("Connection")) == (401, None)
        answer = await wire.ask("GET", "/v1/domains", server.headers() | {"X": "a" * SMALL_HEAD_BYTES})
        assert (answer.status, answer.headers.get("Connection")) == (200, "close")
        await wire.ended()


async def test_edge_keeps_so_many_connections_of_a_device_between_requests(serve: Serve) -> None:
    server = await serve(limits={"open_requests": 2})
    async with AsyncExitStack() as stack:
        for kept in (None, None, "close"):
            wire = await stack.enter_async_context(wired(server.url))
            for _ in range(1 if kept else 2):
                answer = await wire.ask("GET", "/v1/domains", server.headers())
                assert (answer.status, answer.headers.get("Connection")) == (200, kept)
        other = await stack.enter_async_context(wired(server.url))
        assert (await other.ask("GET", "/v1/domains", server.headers("tablet"))).status == 200


async def test_edge_drops_the_rest_of_a_refused_body_and_reads_the_next_request(server: Running) -> None:
    async with wired(server.url) as wire:
        await wire.head("POST", "/v1/sync", {"Content-Length": "900000"})
        assert (await wire.answer()).verdict == (401, "unauthenticated")
        await wire.send(b"a" * 900_000)
        assert (await wire.ask("GET", "/v1/domains", server.headers())).status == 200


class _Sizes(asyncio.Protocol):
    def __init__(self, buffers: Buffers, sizes: asyncio.Queue[int]) -> None:
        self.reads = BoundedReads(self, buffers)
        self._sizes = sizes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.set_protocol(self.reads)

    def data_received(self, data: bytes) -> None:
        self._sizes.put_nowait(len(data))


async def test_reads_are_small_until_they_may_be_large() -> None:
    loop, sizes, buffers = asyncio.get_running_loop(), asyncio.Queue[int](), Buffers()
    reads = _Sizes(buffers, sizes).reads
    server = await loop.create_server(lambda: _Sizes(buffers, sizes), "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        await asyncio.to_thread(client.sendall, b"a" * 200_000)
        read = [await sizes.get()]
        while sum(read) < 200_000:
            read.append(await sizes.get())
        assert max(read) <= SMALL_READ_BYTES
    server.close()
    assert len(reads.get_buffer(-1)) == SMALL_READ_BYTES
    reads.grow()
    assert len(reads.get_buffer(-1)) > SMALL_READ_BYTES
    reads.shrink()
    assert len(reads.get_buffer(-1)) == SMALL_READ_BYTES


class _Paused(BaseProtocol):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.pauses: list[int] = []

    def pause_reading(self) -> None:
        self.pauses.append(1)


async def test_body_of_a_request_that_is_not_admitted_pauses_after_one_small_read() -> None:
    protocol = _Paused(asyncio.get_running_loop())
    body = StreamReader(protocol, 1 << 16, loop=asyncio.get_running_loop())
    limit_read_ahead(body)
    body.feed_data(b"a" * SMALL_READ_BYTES)
    assert protocol.pauses == []
    body.feed_data(b"a")
    assert protocol.pauses == [1]
    default_read_ahead(body)
    body.feed_data(b"a" * SMALL_READ_BYTES)
    assert protocol.pauses == [1]
    discard(body)
    body.feed_data(b"a" * (1 << 20))
    assert (protocol.pauses, body.read_nowait(-1)) == ([1], b"")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/sync"), ("GET", "/v1/domains"), ("GET", "/v1/nothing"), ("PUT", "/v1/sync")],
)
async def test_edge_refused_request_is_freed_without_a_collection(
    method: str, path: str, server: Running
) -> None:
    async with wired(server.url) as wire:
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                assert (await wire.ask(method, path, HANDSHAKE)).status in {401, 404, 405}
            left = [one for one in gc.get_objects() if isinstance(one, web.Request)]
        finally:
            gc.enable()
    assert len(left) <= 2
