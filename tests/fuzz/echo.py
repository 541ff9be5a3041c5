"""A server that echoes messages on our own edge, as the Autobahn cases want it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Final, cast

from aiohttp import WSMsgType, web

from compose.server import SystemClock
from engine.runtime.loop_scheduler import Slot
from engine.runtime.partial_messages import PartialMessages
from engine.wire.codec import JSON
from handlers.http.counters import Traffic
from handlers.sync.device_socket import DeviceSocket, SocketOwner, TaskBody
from handlers.sync.frames import Upgrade
from handlers.sync.outbox import Outbox
from handlers.sync.websocket import without_context_takeover

#: The largest message of the cases has 16 MiB.
MESSAGE_BYTES: Final = 1 << 24
_ROOM_BYTES: Final = MESSAGE_BYTES * 8


class _Echo:
    """The owner of a socket: sends each message back, and has room for the next one while that is read."""

    yields = False
    has_room = True

    def __init__(self) -> None:
        self.socket: DeviceSocket

    def on_message(self, frame: bytes, now_s: float) -> None:  # noqa: ARG002  # as a socket calls it
        self.socket.say_encoded(frame)

    def on_ping(self, payload: bytes, now_s: float) -> None:  # noqa: ARG002  # as a socket calls it
        self.socket.pong(payload)

    def on_pong(self, now_s: float) -> None:
        """Do nothing."""

    def on_writable(self) -> None:
        """Do nothing: all was sent to the outbox already."""

    def charge_answer(self, spent_s: float, now_s: float) -> None:
        """Charge nobody."""

    def slot(self, work: Callable[[], None]) -> Slot:
        return cast(Slot, asyncio.get_running_loop().call_soon(work))

    def charge(self, *_: float) -> float:
        return 0.0

    def count_fragments(self) -> None:
        """Charge nobody."""


class _EchoSocket(DeviceSocket):
    """A socket that takes texts and bytes on one connection, and answers in kind."""

    __slots__ = ()

    def _on_data(self, owner: SocketOwner, kind: WSMsgType, frame: bytes, now_s: float) -> None:
        self._data_type = kind
        self.outbox._opcode = 0x82 if kind is WSMsgType.BINARY else 0x81
        super()._on_data(owner, kind, frame, now_s)


async def _handle(request: web.Request) -> web.StreamResponse:
    clock = SystemClock()
    upgrade = Upgrade(clock, compress=True, max_msg_size=MESSAGE_BYTES + 1)
    stream = await upgrade.prepare(request)
    transport = request.transport
    assert transport is not None
    tasks: set[asyncio.Task[None]] = set()

    def start(work: TaskBody) -> None:
        tasks.add(asyncio.create_task(work()))

    owner = _Echo()
    nobody = SimpleNamespace(tenant=SimpleNamespace(tenant_id=1), device_id="d", codec=JSON)
    minutes = SimpleNamespace(of=lambda _: SimpleNamespace(bytes_in=0, bytes_saved_compression=0))
    socket = _EchoSocket(
        cast(Any, nobody),
        upgrade.frames,
        transport,
        clock=clock,
        traffic=Traffic(),
        minutes=cast(Any, minutes),
        partial_messages=PartialMessages(_ROOM_BYTES, _ROOM_BYTES),
        frame_bytes=MESSAGE_BYTES,
        start=start,
    )
    owner.socket = socket
    outbox = Outbox(
        transport,
        stream,
        request.protocol,
        socket,
        binary=False,
        deflate_bits=int(upgrade.compress),
        max_bytes=_ROOM_BYTES,
        patience_s=60,
    )
    socket.open(outbox, cast(Any, owner), 0, lambda _: None)
    try:
        socket.read()
        await socket.over
    finally:
        socket.end()
    return upgrade


@asynccontextmanager
async def echoing() -> AsyncIterator[int]:
    """Serve on loopback. Yields the port."""
    app = web.Application()
    app.on_response_prepare.append(without_context_takeover)
    app.router.add_get("/", _handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
