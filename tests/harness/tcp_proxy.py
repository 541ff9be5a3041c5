"""A line that breaks as told: a TCP proxy between a client and a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from tests.harness.raw_http import reset

_BLOCK_BYTES = 16_384


class Cut(NamedTuple):
    """A connection ends once so many bytes went from the client to the server.

    ``fin`` closes it to both, ``rst`` resets it to both. ``dead`` resets it to the client alone: the server
    waits for more, as it does for a client that has lost its network. ``deaf`` lets the rest of a request
    through and resets the line when the server begins to answer: the answer is lost. ``flip`` does not end
    it: the byte that comes then arrives as another one.
    """

    after_bytes: int
    how: Literal["fin", "rst", "dead", "deaf", "flip"]


class CuttingProxy:
    """Each connection takes the next cut; for None, and after the last one, it passes everything."""

    def __init__(self, url: str, cuts: Iterable[Cut | None]) -> None:
        where = urlsplit(url)
        self._server = where.hostname, where.port
        self._cuts = iter(cuts)
        self._alive: list[asyncio.StreamWriter] = []
        self.made: list[Cut] = []
        self.url = ""

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until it is cut or either side ends it."""
        there, out = await asyncio.open_connection(*self._server)
        self._alive += [writer, out]
        connection = _Connection(next(self._cuts, None), reader, writer, there, out)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(connection.forth())
                group.create_task(connection.back())
        except* ConnectionError:
            pass  # either side broke off, or the cut came: the line is done with
        if connection.was_cut is not None:
            self.made.append(connection.was_cut)

    async def end(self) -> None:
        """Close what is left of all connections."""
        for writer in self._alive:
            writer.close()


class _Ended(ConnectionError):
    """The connection is over."""


class _Connection:
    def __init__(
        self,
        cut: Cut | None,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self._cut = cut
        self._client, self._to_client = client, to_client
        self._server, self._to_server = server, to_server
        self._left_bytes = 0 if cut is None else cut.after_bytes
        self.was_cut: Cut | None = None

    async def forth(self) -> None:
        while block := await self._client.read(_BLOCK_BYTES):
            cut = self._cut if 0 <= self._left_bytes < len(block) else None
            if cut is not None and cut.how == "flip":
                block = _flipped(block, self._left_bytes)
                self.was_cut = cut
            elif cut is not None and cut.how != "deaf":
                self._to_server.write(block[: self._left_bytes])
                await self._to_server.drain()
                self._break_off(cut)
            self._left_bytes -= len(block)
            self._to_server.write(block)
            await self._to_server.drain()
        self._to_server.close()

    async def back(self) -> None:
        while block := await self._server.read(_BLOCK_BYTES):
            if self._cut is not None and self._cut.how == "deaf" and self._left_bytes < 0:
                self._break_off(self._cut)
            self._to_client.write(block)
            await self._to_client.drain()
        self._to_client.close()

    def _break_off(self, cut: Cut) -> None:
        self.was_cut = cut
        if cut.how == "fin":
            self._to_client.close()
            self._to_server.close()
        else:
            reset(self._to_client)
            if cut.how != "dead":
                reset(self._to_server)
        raise _Ended


def _flipped(block: bytes, at: int) -> bytes:
    return block[:at] + bytes([block[at] ^ 0xFF]) + block[at + 1 :]


@asynccontextmanager
async def breaking(url: str, cuts: Iterable[Cut | None]) -> AsyncIterator[CuttingProxy]:
    """Give a line to a server whose connections are cut, one after the other."""
    line = CuttingProxy(url, cuts)
    async with AsyncExitStack() as stack:
        server = await asyncio.start_server(line.connected, "127.0.0.1", 0)
        stack.push_async_callback(line.end)
        await stack.enter_async_context(server)
        line.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield line
