"""A bad line: a TCP proxy that delays, swallows or cuts what passes, by chance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Final

import msgspec

_READ_BYTES: Final = 65536
_ANSWER: Final = b'"synced"'
_DELAY_S: Final = (0.05, 0.5)


class Chances(msgspec.Struct):
    """The share of chunks that each thing happens to; all may be changed while the proxy runs.

    ``lost`` is the share of answers to ``sync`` that are swallowed with their connection, after the server
    has committed. ``cut`` chunks pass by half, in the middle of a frame, and end their connection.
    """

    delayed: float = 0.0
    swallowed: float = 0.0
    cut: float = 0.0
    lost: float = 0.0


class Proxy:
    """The way to one server. ``cuts`` counts the connections that ``cut`` or ``lost`` ended."""

    def __init__(self, host: str, port: int, random: Random, chances: Chances) -> None:
        self._server = (host, port)
        self._random = random
        self.tasks: set[asyncio.Task[None]] = set()
        self.chances = chances
        self.cuts = 0
        self.port = 0

    @property
    def url(self) -> str:
        """Where devices go."""
        return f"http://127.0.0.1:{self.port}"

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one device."""
        task = asyncio.create_task(self._serve(reader, writer))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._server)
        except OSError:
            writer.transport.abort()
            return
        passing = [
            asyncio.create_task(self._pass_on(reader, server_writer, answers=False)),
            asyncio.create_task(self._pass_on(server_reader, writer, answers=True)),
        ]
        try:
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in (writer, server_writer):
                end.close()  # what was written before still goes out
            await _cancelled(passing)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        draw, chances = self._random.random, self.chances
        cut = False
        with suppress(OSError):
            while not cut and (chunk := await reader.read(_READ_BYTES)):
                if answers and chances.lost and _ANSWER in chunk and draw() < chances.lost:
                    self.cuts += 1
                    return
                if draw() < chances.delayed:
                    await asyncio.sleep(self._random.uniform(*_DELAY_S))
                if draw() < chances.swallowed:
                    return
                cut = draw() < chances.cut
                self.cuts += cut
                writer.write(chunk[: len(chunk) // 2] if cut else chunk)
                await writer.drain()


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def proxied(host: str, port: int, random: Random, chances: Chances) -> AsyncIterator[Proxy]:
    """Listen on loopback and pass everything on to a server."""
    proxy = Proxy(host, port, random, chances)
    listener = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listener.close()
        await _cancelled(list(proxy.tasks))
        await listener.wait_closed()
