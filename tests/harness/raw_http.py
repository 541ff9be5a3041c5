"""HTTP/1.1 by hand: for requests that no client library writes, and for answers before the answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
from multidict import CIMultiDict

from tests.harness.ws_device import PATIENCE_S, Json

_NO_LINGER = struct.pack("ii", 1, 0)


class Interim(NamedTuple):
    """An answer before the answer, such as 100 or 104."""

    status: int
    headers: CIMultiDict[str]


class Answer(NamedTuple):
    """What a request was answered, and what came before it."""

    status: int
    headers: CIMultiDict[str]
    body: bytes
    interim: list[Interim]

    @property
    def message(self) -> Json:
        """The body as a JSON object."""
        return msgspec.json.decode(self.body, type=Json)

    @property
    def verdict(self) -> tuple[int, str]:
        """The status and, for an error, its code."""
        return self.status, self.message["code"]


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a host that has forgotten it: the other side is told with RST."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()


class Wire:
    """One connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host
        self._method = ""

    async def begin(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Send the head of a request. Lone surrogates stand for bytes that are no UTF-8."""
        await self.head(method, path, headers)

    async def head(self, method: str, path: str, headers: Mapping[str, str], *lines: str) -> None:
        """Send the head of a request, with more lines behind its headers, names that are there among them."""
        self._method = method
        named = [f"{name}: {value}" for name, value in {"Host": self._host, **headers}.items()]
        head = [f"{method} {path} HTTP/1.1", *named, *lines, "", ""]
        await self.send("\r\n".join(head).encode(errors="surrogateescape"))

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """Send a request whose body has a known length, and wait for its answer."""
        await self.begin(method, path, {**headers, "Content-Length": str(len(body))})
        await self.send(body)
        return await self.answer()

    async def exactly(self, count_bytes: int) -> bytes:
        """Wait for so many bytes."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._reader.readexactly(count_bytes)

    async def interim(self) -> Interim:
        """Wait for an answer before the answer."""
        async with asyncio.timeout(PATIENCE_S):
            answer = await self._head()
        assert answer.status < 200, answer
        return answer

    async def answer(self) -> Answer:
        """Wait for the answer. Raises IncompleteReadError if the connection ends before it."""
        interim: list[Interim] = []
        async with asyncio.timeout(PATIENCE_S):
            while (head := await self._head()).status < 200:
                interim.append(head)
            return Answer(*head, await self._body(head), interim)

    async def _head(self) -> Interim:
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers: CIMultiDict[str] = CIMultiDict()
        for line in filter(None, lines):
            name, _, value = line.partition(":")
            headers.add(name, value.strip())
        return Interim(int(first.split()[1]), headers)

    async def _body(self, head: Interim) -> bytes:
        if self._method == "HEAD" or head.status in (204, 304):
            return b""
        if head.headers.get("Transfer-Encoding") != "chunked":
            return await self._reader.readexactly(int(head.headers["Content-Length"]))
        body = b""
        while size := int(await self._reader.readline(), 16):
            body += await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        return body

    async def ended(self) -> None:
        """Wait until the server has closed the connection, whatever it says until then."""
        await self.rest()

    async def rest(self) -> bytes:
        """Wait until the server has closed the connection, and give what it sent until then."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self._reader.read()
            except ConnectionError:
                return b""

    def finish(self) -> None:
        """Close the connection properly."""
        self._writer.close()

    def reset(self) -> None:
        """Break the connection off."""
        reset(self._writer)


@asynccontextmanager
async def wired(url: str, tls: ssl.SSLContext | None = None, local: str = "127.0.0.1") -> AsyncIterator[Wire]:
    """Connect to a server, from an address of this machine."""
    where = urlsplit(url)
    assert where.hostname is not None
    reader, writer = await asyncio.open_connection(
        where.hostname, where.port, ssl=tls, local_addr=None if local == "127.0.0.1" else (local, 0)
    )
    try:
        yield Wire(reader, writer, where.netloc)
    finally:
        writer.close()


def frame(opcode: int, payload: bytes, *, masked: bool = True, final: bool = True) -> bytes:
    """Write one frame of a WebSocket; the mask is zero. One that is not ``final`` ends no message."""
    bit = 128 if masked else 0
    if len(payload) < 126:
        length = bytes([bit | len(payload)])
    elif len(payload) < 1 << 16:
        length = bytes([bit | 126]) + struct.pack("!H", len(payload))
    else:
        length = bytes([bit | 127]) + struct.pack("!Q", len(payload))
    return bytes([(128 if final else 0) | opcode]) + length + (bytes(4) if masked else b"") + payload
