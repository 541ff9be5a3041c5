"""A bad line: a TCP proxy that now and then swallows an answer and cuts the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

_READ_BYTES: Final = 65536
_ANSWER: Final = b'"synced"'


class Line:
    """The way to one server. ``unit`` draws from [0, 1); ``loss`` is the share of answers to lose.

    An answer is lost after the server has committed what it answers. ``cuts`` counts.
    """

    def __init__(self, host: str, port: int, unit: Callable[[], float], loss: float) -> None:
        self._host = host
        self._port = port
        self._unit = unit
        self.loss = loss
        self.cuts = 0
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        ways = [
            asyncio.create_task(self._pass_on(reader, server_writer, lossy=False)),
            asyncio.create_task(self._pass_on(server_reader, writer, lossy=True)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in (writer, server_writer):
                end.close()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, lossy: bool
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(_READ_BYTES):
                if lossy and _ANSWER in chunk and self._unit() < self.loss:
                    self.cuts += 1
                    return
                writer.write(chunk)
                await writer.drain()


@asynccontextmanager
async def bad_line(host: str, port: int, unit: Callable[[], float], loss: float) -> AsyncIterator[Line]:
    """Listen on loopback and pass everything on to a server."""
    line = Line(host, port, unit, loss)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(line._serve(reader, writer))  # noqa: SLF001
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    line.url = "http://127.0.0.1:{1}".format(*server.sockets[0].getsockname())
    try:
        yield line
    finally:
        server.close()
        await server.wait_closed()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
