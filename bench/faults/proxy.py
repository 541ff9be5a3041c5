"""A bad line: a TCP proxy that holds chunks back, swallows some and, when told to, cuts in mid-frame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Final

_READ_BYTES: Final = 65536
#: What happens to a chunk on its way.
_DELAYED, _DELAY_S = 0.05, (0.05, 0.5)
_SWALLOWED: Final = 0.001


class Line:
    """The way to one server. ``cutting`` is the share of chunks that are cut in the middle."""

    def __init__(self, host: str, port: int, random: Random) -> None:
        self._server = (host, port)
        self._random = random
        self._tasks: set[asyncio.Task[None]] = set()
        self.cutting = 0.0
        self.cuts = 0
        self.port = 0

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one device."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._server)
        except OSError:
            writer.transport.abort()
            return
        ways = [
            asyncio.create_task(self._pass_on(reader, server_writer)),
            asyncio.create_task(self._pass_on(server_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, server_writer):
                end.close()  # what was written before still goes out
                with suppress(OSError):
                    await end.wait_closed()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        draw = self._random
        with suppress(OSError):
            while chunk := await reader.read(_READ_BYTES):
                if draw.random() < _DELAYED:
                    await asyncio.sleep(draw.uniform(*_DELAY_S))
                if draw.random() < _SWALLOWED:
                    return
                if draw.random() < self.cutting:
                    self.cuts += 1
                    writer.write(chunk[: len(chunk) // 2])
                    await writer.drain()
                    return
                writer.write(chunk)
                await writer.drain()

    async def close(self) -> None:
        """End all connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def bad_line(host: str, port: int, random: Random) -> AsyncIterator[Line]:
    """Listen on loopback and pass everything on to a server."""
    line = Line(host, port, random)
    listener = await asyncio.start_server(line.accept, "127.0.0.1", 0)
    line.port = listener.sockets[0].getsockname()[1]
    try:
        yield line
    finally:
        listener.close()
        await line.close()
        await listener.wait_closed()
