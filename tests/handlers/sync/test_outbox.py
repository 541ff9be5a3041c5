"""The one writer of a connection, on loopback sockets: order, bounds, and readers that stop reading."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_writer import StreamWriter

from handlers.sync import outbox as outbox_module
from handlers.sync.outbox import COMPRESS_FROM_BYTES, Outbox

#: Several times of what a transport takes before it asks for a pause.
MAX_BYTES = 400_000
FRAME_BYTES = 10_000
#: Never used up: nothing in these tests takes this long.
LONG_S = 60.0
#: Used up where nothing is taken.
SHORT_S = 0.02


class Owner:
    """Runs the outbox's work and notes what it is told; ``rooms`` says how much waited each time."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.outbox: Outbox
        self.rooms = asyncio.Queue[int]()
        self.was_stuck = asyncio.Event()
        self.saved_bytes = 0

    def on_deflated(self, saved_bytes: int) -> None:
        """Count."""
        self.saved_bytes += saved_bytes

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run work."""
        self.tasks.append(asyncio.create_task(work()))

    def on_writable(self) -> None:
        """Note that there is room."""
        self.rooms.put_nowait(self.outbox.queued_bytes)

    def on_reader_cut(self) -> None:
        """Note that the reader was cut off."""
        assert not self.was_stuck.is_set()
        self.was_stuck.set()


@dataclass
class Frame:
    """One WebSocket frame as it was read."""

    opcode: int
    compressed: bool
    payload: bytes


class Reader:
    """A client that reads when it is told to."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream

    async def frame(self) -> Frame:
        """Read one frame. Raises IncompleteReadError or ConnectionError at the end."""
        first, length = await self._stream.readexactly(2)
        assert first & 0x80, "no fragments"
        assert length < 128, "a server does not mask"
        if length == 126:
            (length,) = struct.unpack("!H", await self._stream.readexactly(2))
            assert length >= 126, "as short as can be"
        elif length == 127:
            (length,) = struct.unpack("!Q", await self._stream.readexactly(8))
            assert length >= 65_536, "as short as can be"
        return Frame(first & 0x0F, bool(first & 0x40), await self._stream.readexactly(length))

    async def to_the_end(self) -> None:
        """Read frames until the connection ends with an exception."""
        while True:
            await self.frame()


@dataclass
class Pair:
    """Both ends of one connection."""

    outbox: Outbox
    transport: asyncio.Transport
    reader: Reader
    owner: Owner


@contextlib.asynccontextmanager
async def connected(
    *, binary: bool = False, deflate_bits: int = 0, patience_s: float = LONG_S
) -> AsyncIterator[Pair]:
    """Connect over loopback with small buffers in the kernel, so that a reader is soon behind."""
    loop = asyncio.get_running_loop()
    protocols = asyncio.Queue[BaseProtocol]()

    class Accepted(BaseProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            protocols.put_nowait(self)

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    server = await loop.create_server(lambda: Accepted(loop), sock=listener)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.setblocking(False)
    await loop.sock_connect(client, listener.getsockname())
    stream, writer = await asyncio.open_connection(sock=client, limit=4096)
    protocol = await protocols.get()
    transport = protocol.transport
    assert transport is not None
    owner = Owner()
    outbox = Outbox(
        transport,
        StreamWriter(protocol, loop),
        protocol,
        owner,
        binary=binary,
        deflate_bits=deflate_bits,
        max_bytes=MAX_BYTES,
        patience_s=patience_s,
    )
    owner.outbox = outbox
    try:
        yield Pair(outbox, transport, Reader(stream), owner)
    finally:
        writer.transport.abort()
        transport.abort()
        for task in owner.tasks:
            await task
        server.close()
        await server.wait_closed()


def payload(number: int, size_bytes: int = FRAME_BYTES) -> bytes:
    """Make a payload that tells its number and does not compress."""
    noise = zlib.crc32(b"%d" % number)
    return (b"%08d" % number + b"%08x" % noise * (size_bytes // 8))[:size_bytes]


def fill(outbox: Outbox) -> int:
    """Offer numbered payloads until one is refused, and say how many were taken."""
    taken = 0
    while outbox.offer(payload(taken)):
        taken += 1
        assert taken < 10_000
    return taken


@pytest.mark.parametrize("size_bytes", [0, 1, 125, 126, 65_535, 65_536, 300_000])
@pytest.mark.parametrize("binary", [False, True])
async def test_outbox_frames_of_every_length_arrive(size_bytes: int, binary: bool) -> None:
    async with connected(binary=binary) as ends:
        ends.outbox.put(payload(7, size_bytes))
        assert await ends.reader.frame() == Frame(2 if binary else 1, False, payload(7, size_bytes))


async def test_outbox_of_a_reader_that_keeps_up_runs_no_task() -> None:
    async with connected() as ends:
        for number in range(100):
            ends.outbox.put(payload(number, 50))
            assert (await ends.reader.frame()).payload == payload(number, 50)
        assert not ends.owner.tasks
        assert ends.outbox.queued_bytes == 0


async def test_outbox_each_message_is_compressed_on_its_own() -> None:
    text = b'{"status":"DONE"}' * 100
    async with (
        connected(deflate_bits=15) as one,
        connected(deflate_bits=15) as other,
        connected(deflate_bits=9) as small,
    ):
        for ends, window in ((one, 15), (other, 15), (one, 15), (small, 9), (other, 15)):
            ends.outbox.put(text)
            frame = await ends.reader.frame()
            assert frame.compressed
            assert len(frame.payload) < len(text) // 4
            fresh = zlib.decompressobj(-window)
            assert fresh.decompress(frame.payload + b"\x00\x00\xff\xff") == text


async def test_outbox_failed_compression_leaks_nothing_to_other_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing:
        """Takes a message in and fails on the way out."""

        def __init__(self) -> None:
            self._inner = zlib.compressobj(zlib.Z_BEST_SPEED, zlib.DEFLATED, -15)
            self._failed = False

        def compress(self, data: bytes) -> bytes:
            return self._inner.compress(data)

        def flush(self, mode: int) -> bytes:
            if not self._failed:
                self._failed = True
                raise MemoryError
            return self._inner.flush(mode)

    monkeypatch.setitem(outbox_module._compressors, 15, Failing())
    async with connected(deflate_bits=15) as one, connected(deflate_bits=15) as other:
        with pytest.raises(MemoryError):
            one.outbox.put(b"one tenant's" * 100)
        other.outbox.put(b"another's" * 200)
        frame = await other.reader.frame()
        told = zlib.decompressobj(-15).decompress(frame.payload + b"\x00\x00\xff\xff")
        assert told == b"another's" * 200


async def test_outbox_small_messages_and_clients_that_did_not_ask_get_plain_frames() -> None:
    async with connected(deflate_bits=15) as ends, connected() as plain:
        ends.outbox.put(b"x" * (COMPRESS_FROM_BYTES - 1))
        assert not (await ends.reader.frame()).compressed
        plain.outbox.put(b"x" * COMPRESS_FROM_BYTES)
        assert not (await plain.reader.frame()).compressed


async def test_outbox_of_a_reader_that_stops_is_bounded_and_then_cut_off() -> None:
    async with connected(patience_s=SHORT_S) as ends:
        fill(ends.outbox)
        high_water = ends.transport.get_write_buffer_limits()[1]
        owed = ends.outbox.queued_bytes + ends.transport.get_write_buffer_size()
        assert owed <= MAX_BYTES + high_water + FRAME_BYTES
        await ends.owner.was_stuck.wait()
        await ends.owner.rooms.get()
        assert ends.transport.is_closing()
        assert ends.outbox.queued_bytes == 0
        assert not ends.outbox.full
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await ends.reader.to_the_end()


async def test_outbox_reader_that_too_many_answers_wait_for_is_cut_off() -> None:
    async with connected() as ends:
        most_bytes = 0
        for number in range(1000):
            ends.outbox.put(payload(number))
            most_bytes = max(most_bytes, ends.outbox.queued_bytes)
        assert MAX_BYTES < most_bytes <= 8 * MAX_BYTES
        assert ends.owner.was_stuck.is_set()
        assert ends.transport.is_closing()
        assert ends.outbox.queued_bytes == 0
        await ends.owner.rooms.get()
        await ends.owner.tasks[0]


async def test_outbox_accepted_messages_arrive_in_order_after_a_pause() -> None:
    async with connected() as ends:
        taken = fill(ends.outbox)
        assert len(ends.owner.tasks) == 1
        ends.outbox.put(payload(taken))  # answers are sent whatever waits
        assert ends.outbox.full or not ends.outbox.offer(payload(0))
        for number in range(taken + 1):
            assert (await ends.reader.frame()).payload == payload(number)
        await ends.owner.rooms.get()
        await ends.owner.tasks[0]
        assert ends.outbox.queued_bytes == 0
        ends.outbox.put(b"again")
        assert (await ends.reader.frame()).payload == b"again"


async def test_outbox_refused_page_is_called_for_before_everything_is_out() -> None:
    async with connected() as ends:
        taken = fill(ends.outbox)
        read = 0
        while ends.owner.rooms.empty():
            assert (await ends.reader.frame()).payload == payload(read)
            read += 1
        assert 0 < ends.owner.rooms.get_nowait() * 2 < MAX_BYTES, "only when all was out"
        assert ends.outbox.offer(payload(taken))
        for number in range(read, taken + 1):
            assert (await ends.reader.frame()).payload == payload(number)


async def test_outbox_close_frame_comes_behind_what_waits_and_nothing_after_it() -> None:
    async with connected() as ends:
        taken = fill(ends.outbox)
        ends.outbox.close(4409, "replaced")
        ends.outbox.put(b"too late")
        ends.outbox.close(1012, "twice")
        for number in range(taken):
            assert (await ends.reader.frame()).payload == payload(number)
        assert await ends.reader.frame() == Frame(8, False, struct.pack("!H", 4409) + b"replaced")
        ends.transport.close()
        with pytest.raises(asyncio.IncompleteReadError):
            await ends.reader.frame()


async def test_outbox_sends_pings_and_pongs() -> None:
    async with connected() as ends:
        ends.outbox.ping()
        assert await ends.reader.frame() == Frame(9, False, b"")
        ends.outbox.pong(b"x" * 125)
        assert await ends.reader.frame() == Frame(10, False, b"x" * 125)
        taken = fill(ends.outbox)
        ends.outbox.ping()  # what waits says enough
        ends.outbox.pong(b"behind")
        for number in range(taken):
            assert (await ends.reader.frame()).payload == payload(number)
        assert await ends.reader.frame() == Frame(10, False, b"behind")


async def test_outbox_of_a_lost_connection_is_empty() -> None:
    async with connected() as ends:
        fill(ends.outbox)
        ends.outbox.end()
        assert ends.outbox.queued_bytes == 0
        ends.outbox.put(payload(0))
        assert ends.outbox.offer(payload(0))
        assert ends.outbox.queued_bytes == 0


async def test_outbox_lost_connection_ends_the_drainer() -> None:
    async with connected() as ends:
        fill(ends.outbox)
        ends.transport.abort()
        await ends.owner.rooms.get()
        await ends.owner.tasks[0]
        assert ends.outbox.queued_bytes == 0
        assert not ends.owner.was_stuck.is_set()


class SlowTransport(asyncio.Transport):
    """Never wants more; tells ``sizes`` one after the other as what is left, the last one for ever."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        """Say how much is left."""
        return self.sizes.pop(0) if len(self.sizes) > 1 else self.sizes[0]

    def abort(self) -> None:
        """Note the abort."""
        self.aborted = True


class SlowStream:
    """Is never drained."""

    async def drain(self) -> None:
        """Wait for ever."""
        await asyncio.get_running_loop().create_future()


class Paused:
    """Says that the transport wants no more."""

    writing_paused = True


async def test_outbox_slow_reader_that_takes_something_in_time_is_not_cut_off() -> None:
    transport, owner = SlowTransport([900, 800, 800, 700, 700, 1, 1, 1]), Owner()
    outbox = Outbox(
        transport,
        SlowStream(),  # type: ignore[arg-type]
        Paused(),
        owner,
        binary=False,
        deflate_bits=0,
        max_bytes=MAX_BYTES,
        patience_s=SHORT_S,
    )
    owner.outbox = outbox
    outbox.put(b"x")
    await owner.was_stuck.wait()
    assert transport.aborted
    assert transport.sizes == [1], "cut off while it still took something"
    await owner.tasks[0]
