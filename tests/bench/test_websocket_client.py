"""The load generator's WebSocket client, against aiohttp's server and against single bytes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import WSMsgType, web
from aiohttp.typedefs import Handler

from bench.load.websocket_client import CUT_OFF, Socket, connect, framed
from engine.wire.messages import JSON_SUBPROTOCOL
from handlers.server import listening
from tests.harness.in_process_server import unbounded


class Heard:
    """What a client's callbacks were told."""

    def __init__(self) -> None:
        self.texts: asyncio.Queue[bytes] = asyncio.Queue()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def text(self) -> bytes:
        """Wait for the next message."""
        return await asyncio.wait_for(self.texts.get(), 10)

    async def end(self) -> int:
        """Wait for the end."""
        return await asyncio.wait_for(self.ended, 10)


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_get("/v1/sync", handler)
    async with listening(app, "127.0.0.1", 0, unauthenticated=unbounded()) as (port, _):
        yield port


async def opened(port: int, heard: Heard, *, deflate: bool = False) -> Socket:
    return await connect(
        "127.0.0.1", port, "a.b.c", heard.texts.put_nowait, heard.ended.set_result, deflate=deflate
    )


async def echo(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse(protocols=(JSON_SUBPROTOCOL,), max_msg_size=1 << 20)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
    return socket


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 300_000])
async def test_websocket_client_messages_of_every_length_come_back(size: int) -> None:
    heard = Heard()
    async with serving(echo) as port:
        socket = await opened(port, heard)
        socket.send(b"x" * size)
        socket.send(b"behind")
        assert await heard.text() == b"x" * size
        assert await heard.text() == b"behind"
        socket.close()
        assert await heard.end() == CUT_OFF


async def test_websocket_client_reads_a_compressed_message() -> None:
    heard = Heard()
    async with serving(echo) as port:
        socket = await opened(port, heard, deflate=True)
        socket.send(b"again and " * 500)
        assert await heard.text() == b"again and " * 500
        socket.close()


async def test_websocket_client_sends_the_token_as_bearer() -> None:
    seen: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers["Authorization"])
        return await echo(request)

    async with serving(handler) as port:
        (await opened(port, Heard())).close()
    assert seen == ["Bearer a.b.c"]


async def test_websocket_client_tells_the_close_code() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=(JSON_SUBPROTOCOL,))
        await socket.prepare(request)
        await socket.close(code=4409)
        return socket

    heard = Heard()
    async with serving(handler) as port:
        await opened(port, heard)
        assert await heard.end() == 4409


async def test_websocket_client_answers_a_ping() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=(JSON_SUBPROTOCOL,), autoping=False)
        await socket.prepare(request)
        await socket.ping(b"there?")
        message = await socket.receive(timeout=10)
        await socket.send_str(f"{message.type.name} {message.data.decode()}")
        return socket

    heard = Heard()
    async with serving(handler) as port:
        await opened(port, heard)
        assert await heard.text() == b"PONG there?"


async def test_websocket_client_refused_handshake_names_the_status() -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=401)

    async with serving(handler) as port:
        with pytest.raises(ConnectionError, match="401 Unauthorized"):
            await opened(port, Heard())


async def test_another_subprotocol_is_refused() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        return socket

    async with serving(handler) as port:
        with pytest.raises(ConnectionError, match=JSON_SUBPROTOCOL):
            await opened(port, Heard())


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.written += bytes(data)

    def close(self) -> None:
        """Count as cut off."""
        self.aborted = True

    def abort(self) -> None:
        """Note it."""
        self.aborted = True


def _shaken(texts: list[bytes], *, accept: str | None = None) -> tuple[Socket, Wire, bytes]:
    """Give a socket that has sent its handshake, and the server's answer to it."""
    socket, wire = Socket("Sec-WebSocket-Key: {key}\r\n\r\n", texts.append, lambda _: None), Wire()
    socket.connection_made(wire)
    found = re.search(rb"Sec-WebSocket-Key: (\S+)", wire.written)
    assert found is not None
    salted = found[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    right = base64.b64encode(hashlib.sha1(salted, usedforsecurity=False).digest()).decode()
    answer = (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Accept: {accept or right}\r\nSec-WebSocket-Protocol: {JSON_SUBPROTOCOL}\r\n\r\n"
    )
    return socket, wire, answer.encode()


async def test_bytes_may_come_one_by_one() -> None:
    texts: list[bytes] = []
    socket, _, answer = _shaken(texts)
    compressor = zlib.compressobj(wbits=-15)
    packed = (compressor.compress(b"zipped") + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
    long = b"y" * 200
    stream = (
        answer
        + b"\x81\x02hi"
        + b"\x81\x7e\x00\xc8" + long
        + b"\x81\x7f" + len(long).to_bytes(8) + long
        + bytes((0xC1, len(packed))) + packed
    )  # fmt: skip
    for byte in stream:
        socket.data_received(bytes((byte,)))
    assert texts == [b"hi", long, long, b"zipped"]


async def test_bytes_may_come_all_at_once() -> None:
    texts: list[bytes] = []
    socket, _, answer = _shaken(texts)
    socket.data_received(answer + b"\x81\x01a\x81\x01b\x81\x05unf")
    assert texts == [b"a", b"b"]
    socket.data_received(b"in")
    assert texts == [b"a", b"b", b"unfin"]


async def test_websocket_client_refuses_a_wrong_accept() -> None:
    socket, wire, answer = _shaken([], accept="c29tZXRoaW5nIGVsc2U=")
    socket.data_received(answer)
    assert wire.aborted
    with pytest.raises(ConnectionError, match="Sec-WebSocket-Accept"):
        await socket.opened


@pytest.mark.parametrize("size", [5, 200, 70_000])
def test_frames_are_masked_with_zero(size: int) -> None:
    masked = framed(0x81, b"z" * size)
    assert masked[1] & 0x80
    assert masked[-size - 4 :] == bytes(4) + b"z" * size


async def test_websocket_client_connection_lost_in_the_handshake_is_an_error() -> None:
    socket, _, _ = _shaken([])
    socket.connection_lost(None)
    with pytest.raises(ConnectionError, match="during the handshake"):
        await socket.opened
    assert socket.code == CUT_OFF
