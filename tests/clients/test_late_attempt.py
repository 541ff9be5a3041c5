"""An attempt to connect that the device gave up reaches a worker late: the device keeps its connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from bench.client.device import Device, StoppedError
from bench.client.store import Store
from handlers.sync.frames import Upgrade
from storage.bus.redis_bus import RedisBus
from tests.harness.in_process_server import Running, Serve

_HEAD_END = b"\r\n\r\n"


class _Line:
    """Cuts the first attempt to connect off and holds it; passes all others on to ``to``."""

    def __init__(self, to: Running) -> None:
        self._to = to
        self._held = b""
        self._taken = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.url = ""

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection of the device."""
        self._writers.append(writer)
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(_HEAD_END)
        if not self._taken:
            self._taken, self._held = True, head
            writer.close()
            return
        from_server, to_server = await self._connect(self._to)
        to_server.write(head)
        with suppress(OSError):
            await asyncio.gather(_pass(reader, to_server), _pass(from_server, writer))

    async def _connect(self, to: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(to.url.rsplit(":", 1)[1]))
        self._writers.append(writer)
        return reader, writer

    async def release(self, to: Running) -> None:
        """Pass the held attempt on, and wait until it is answered."""
        reader, writer = await self._connect(to)
        writer.write(self._held)
        assert (await reader.readuntil(_HEAD_END)).startswith(b"HTTP/1.1 101 ")

    async def end(self) -> None:
        """Cut all."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
    writer.close()


@asynccontextmanager
async def _line(to: Running) -> AsyncIterator[_Line]:
    line = _Line(to)
    listener = await asyncio.start_server(line.accept, "127.0.0.1", 0)
    line.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        listener.close()
        await line.end()
        await listener.wait_closed()


@pytest.mark.parametrize("far", [True, False], ids=["another worker", "the same worker"])
async def test_device_own_late_attempt_leaves_its_connection_open(
    serve: Serve, tmp_path: Path, *, far: bool
) -> None:
    one, two = await serve(), await serve()
    store = Store(tmp_path / "phone.sqlite", "phone", durability="NORMAL")
    async with ClientSession() as session, _line(one) as line:
        phone = Device(store, line.url, lambda: one.token("phone"), session, unit=lambda: 0.0)
        running = asyncio.create_task(phone.run())
        async with asyncio.timeout(20):
            await phone.settled()
            older, newcomer = await one.device("tablet"), await two.device("tablet")
            await older.told("heartbeat_ack", "heartbeat")
            await line.release(two if far else one)
            await newcomer.told("heartbeat_ack", "heartbeat")
            assert await older.closed() == 4409, "the first worker has read all that the other one told"
            phone.edit("journal", "j1", "put", {"text": "at the gate"})
            settled = asyncio.create_task(phone.settled())
            await asyncio.wait({settled, running}, return_when=asyncio.FIRST_COMPLETED)
            assert not running.done()
        running.cancel()
        with suppress(asyncio.CancelledError, StoppedError):
            await running
    store.close()


async def test_device_connection_has_the_time_of_before_its_answer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is held up behind the answer would make an attempt newer than the next one elsewhere."""
    prepare = Upgrade.prepare
    answering_us: list[int] = []
    told_us: list[int] = []

    async def answer(socket: Upgrade, request: Any) -> Any:
        answering_us.append(time.time_ns() // 1000)
        return await prepare(socket, request)

    monkeypatch.setattr(Upgrade, "prepare", answer)
    monkeypatch.setattr(RedisBus, "device_connected", lambda _, *told: told_us.append(told[-1]))
    phone = await (await serve()).device("phone")
    assert told_us == [], "the device has sent nothing yet"
    await phone.told("heartbeat_ack", "heartbeat")
    ((answered_us, opened_us),) = zip(answering_us, told_us, strict=True)
    assert opened_us <= answered_us
