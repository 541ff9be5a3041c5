"""A WebSocket client that costs next to nothing: frames in, frames out, no task and no future a message.

The load generator shares its machine with the server that it measures, so it is written straight on
asyncio's protocols. It knows what this server sends: text in whole frames.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import ssl
import zlib
from collections.abc import Callable
from typing import Final, cast

from engine.wire.messages import JSON_SUBPROTOCOL

_ACCEPT_SALT: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_DEFLATE: Final = (
    "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n"
)
_HANDSHAKE_S: Final = 30.0

_TEXT, _TEXT_DEFLATED, _CLOSE, _PING, _PONG = 0x81, 0xC1, 0x88, 0x89, 0x8A
#: Why a connection ended, where it was not by a close frame.
CUT_OFF: Final = 1006

OnText = Callable[[bytes], None]
OnEnd = Callable[[int], None]


def framed(head: int, payload: bytes) -> bytes:
    """Wrap a frame that begins with ``head``. The mask is zero: legal, and nothing needs to be masked."""
    size = len(payload)
    if size < 126:
        return bytes((head, 0x80 | size, 0, 0, 0, 0)) + payload
    if size < 65536:
        return bytes((head, 0xFE, size >> 8, size & 255, 0, 0, 0, 0)) + payload
    return bytes((head, 0xFF)) + size.to_bytes(8) + bytes(4) + payload


class Socket(asyncio.Protocol):
    """One connection.

    ``on_text`` is called with every message, ``on_end`` once with the close code when an open connection
    is over, whoever ended it. ``opened`` is done once the handshake is.
    """

    def __init__(self, request: str, on_text: OnText, on_end: OnEnd) -> None:
        key = base64.b64encode(os.urandom(16))
        salted = hashlib.sha1(key + _ACCEPT_SALT, usedforsecurity=False)
        self._accept = base64.b64encode(salted.digest()).decode()
        self._request = request.replace("{key}", key.decode())
        self._rest = b""
        self._transport: asyncio.Transport
        self.on_text = on_text
        self.on_end = on_end
        self.code = CUT_OFF
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request.encode())

    def send(self, text: bytes) -> None:
        """Send a text message."""
        self._transport.write(framed(_TEXT, text))

    def data_received(self, data: bytes) -> None:
        """Parse frames as they arrive."""
        if self._rest:
            data = self._rest + data
        if not self.opened.done():
            answer, complete, data = data.partition(b"\r\n\r\n")
            if not complete:
                self._rest = answer
                return
            if fault := self._fault(answer.decode("latin-1")):
                self.opened.set_exception(ConnectionError(fault))
                self._transport.abort()
                return
            self.opened.set_result(None)
        position, size = 0, len(data)
        while size - position >= 2:
            head, length = data[position], data[position + 1]
            start = position + 2
            if length >= 126:
                start += 2 if length == 126 else 8
                length = int.from_bytes(data[position + 2 : start])
            end = start + length
            if end > size or start > size:
                break
            position = end
            if head == _TEXT:
                self.on_text(data[start:end])
            else:
                self._rare(head, data[start:end])
        self._rest = data[position:]

    def _fault(self, answer: str) -> str:
        """Return what is wrong with the answer to the handshake, nothing if it is right."""
        first, *lines = answer.split("\r\n")
        parts = [line.partition(":") for line in lines]
        headers = {name.lower(): value.strip() for name, _, value in parts}
        if " 101 " not in first:
            return first
        if headers.get("sec-websocket-accept") != self._accept:
            return "Sec-WebSocket-Accept does not fit the key"
        spoken = headers.get("sec-websocket-protocol")
        return "" if spoken == JSON_SUBPROTOCOL else f"the server does not speak {JSON_SUBPROTOCOL}"

    def _rare(self, head: int, payload: bytes) -> None:
        if head == _TEXT_DEFLATED:
            self.on_text(zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff"))
        elif head == _PING:
            self._transport.write(framed(_PONG, payload))
        elif head == _CLOSE:
            self.code = int.from_bytes(payload[:2]) if payload else 1005
            self._transport.write(framed(_CLOSE, payload[:2]))
            self._transport.close()
        elif head != _PONG:
            self._transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        """Report the end."""
        if not self.opened.done():
            self.opened.set_exception(
                ConnectionError("the server closed the connection during the handshake")
            )
        elif not self.opened.cancelled() and self.opened.exception() is None:
            self.on_end(self.code)

    def close(self) -> None:
        """Close without waiting for the server's confirmation."""
        if not self._transport.is_closing():
            self._transport.write(framed(_CLOSE, (1000).to_bytes(2)))
            self._transport.close()


async def connect(
    host: str,
    port: int,
    token: str,
    on_text: OnText,
    on_end: OnEnd,
    *,
    deflate: bool = False,
    source: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> Socket:
    """Open a connection to ``/v1/sync``, from an address of this machine if ``source`` names one.

    With ``tls`` it is encrypted. Raises OSError, with one sentence where the server did not upgrade it.
    """
    request = (
        f"GET /v1/sync HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {JSON_SUBPROTOCOL}\r\n"
        f"Authorization: Bearer {token}\r\n{_DEFLATE if deflate else ''}Sec-WebSocket-Key: {{key}}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_HANDSHAKE_S):
        transport, socket = await loop.create_connection(
            lambda: Socket(request, on_text, on_end),
            *(host, port),
            ssl=tls,
            local_addr=(source, 0) if source else None,
        )
        try:
            await socket.opened
        except BaseException:
            transport.abort()
            raise
    return socket


def reason_of(error: OSError) -> str:
    """Say why there is no connection, in the same words for all that have the same reason."""
    return error.strerror or str(error) or type(error).__name__
