"""Frames from aiohttp's parser straight to the connection, in the turn of the loop that received them.

``WebSocketResponse.receive`` would cost each message a future and a switch of tasks, and each idle
connection three coroutines. Its handshake and its parser are used as they are; between them stands a
queue that hands on at once what there is room for, and otherwise waits as aiohttp's own does: bounded,
with the transport paused. The two names of aiohttp that are not public are used in this file alone.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Literal, Protocol

from aiohttp import WebSocketError, web
from aiohttp._websocket.models import WSMessageTextBytes
from aiohttp._websocket.reader import WebSocketDataQueue
from aiohttp.http import WebSocketReader, WSMessage

#: What the parser makes of a frame of any kind, texts as bytes.
Frame = WSMessage | WSMessageTextBytes

#: Bytes that wait before parsing stops; the transport is paused then.
_WAITING_BYTES: Final = 1 << 16


class Receiver(Protocol):
    """The connection that frames are for. None of this may raise."""

    @property
    def has_room(self) -> bool:
        """Whether it takes more now; ``Frames.go_on`` is due when it does again."""

    def take(self, message: Frame) -> None:
        """Take in a frame of any kind."""

    def broken(self, error: WebSocketError) -> None:
        """What came is no WebSocket; nothing comes any more."""

    def gone(self) -> None:
        """The other side is gone."""


class Frames(WebSocketDataQueue):
    """Where the parser puts frames. They wait until there is a receiver."""

    __slots__ = ("_ended", "_error", "_going_on", "_receiver")

    def __init__(self, protocol: web.RequestHandler) -> None:
        super().__init__(protocol, _WAITING_BYTES, loop=asyncio.get_running_loop())
        self._receiver: Receiver | None = None
        self._error: WebSocketError | None = None
        self._ended = False
        self._going_on = False

    def bind(self, receiver: Receiver) -> None:
        """Hand on what came so far and from now on."""
        self._receiver = receiver
        self.go_on()
        if self._error is not None:
            receiver.broken(self._error)
        elif self._ended:
            receiver.gone()

    def go_on(self) -> None:
        """Hand on what waits, as far as there is room."""
        receiver = self._receiver
        if receiver is None or self._going_on:
            return
        # Reading may make the parser go on; what it brings then comes after what was read.
        self._going_on = True
        while self._buffer and receiver.has_room:
            reading = self.read()
            try:
                reading.send(None)  # never suspends: something is there
            except StopIteration as read:
                receiver.take(read.value)
        self._going_on = False

    def feed_data(self, data: Frame, size: int) -> None:
        """Take a frame from the parser."""
        receiver = self._receiver
        if receiver is None or self._buffer or self._going_on or not receiver.has_room:
            super().feed_data(data, size)
        else:
            receiver.take(data)

    def set_exception(self, exc: BaseException, *_: object) -> None:
        """Take the parser's failure."""
        if not isinstance(exc, WebSocketError):
            exc = WebSocketError(1002, "not a WebSocket frame")
        self._error = exc
        if self._receiver is not None:
            self._receiver.broken(exc)

    def feed_eof(self) -> None:
        """Take the end of the stream."""
        self._ended = True
        if self._receiver is not None:
            self._receiver.gone()


class Upgrade(web.WebSocketResponse[Literal[False]]):
    """aiohttp's handshake, with ``frames`` to read from. ``parser`` has to live as long as they are read."""

    frames: Frames
    parser: WebSocketReader

    def _post_start(self, request: web.BaseRequest, *_: object) -> None:
        self.frames = Frames(request.protocol)
        self.parser = WebSocketReader(
            self.frames, self._max_msg_size, compress=bool(self.compress), decode_text=False
        )
        request.protocol.set_parser(self.parser)
        request.protocol.keep_alive(False)

    async def write_eof(self, data: Any = b"") -> None:
        """Write nothing more: the connection closed itself."""
