"""Frames from aiohttp's parser straight to the connection, in the turn of the loop that received them.

``WebSocketResponse.receive`` would cost each message a future and a switch of tasks, and each idle
connection three coroutines. Its handshake and its parser are used as they are; between them stands a
queue that hands on at once what there is room for, and otherwise waits as aiohttp's own does: bounded,
with the transport paused. The names of aiohttp that are not public are used in this file alone.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, Final, Literal, Protocol, cast

from aiohttp import WebSocketError, web
from aiohttp._websocket.models import WSMessageTextBytes
from aiohttp._websocket.reader import WebSocketDataQueue
from aiohttp.http import WebSocketReader, WSMessage
from multidict import CIMultiDict

from handlers.header_fields import combined, tokens

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


class Masked:
    """Stands before the parser, which takes frames without a mask too, and ends with 1002 at the first one.

    A client masks each frame (RFC 6455, 5.1), so that no proxy takes one for a request. It costs a frame less
    than a microsecond.
    """

    __slots__ = ("_failed", "_feed", "_frames", "_head", "_left_bytes", "_parser", "_within")

    def __init__(self, parser: WebSocketReader, frames: Frames) -> None:
        self._parser = parser
        self._feed = parser.feed_data
        self._frames = frames
        self._within = False  # whether the stream stands inside of a frame: one of the next two is set
        self._head = b""  # of a frame whose length has not come in full
        self._left_bytes = 0  # of the frame under way, its header apart
        self._failed = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take what came from the client; gives whether it was the last, and what of it nobody took."""
        # Nearly always a read is one whole frame.
        if not self._within and len(data) > 5:
            length = data[1]
            if length == 254:
                if len(data) == 8 + (data[2] << 8 | data[3]):
                    return self._feed(data)
            elif length < 254 and len(data) == length - 122:
                return self._feed(data)
        return self._looked_at(data)

    def _looked_at(self, data: bytes) -> tuple[bool, bytes]:
        if self._failed:
            return True, b""
        seen, at = self._head + data if self._head else data, self._left_bytes
        end = len(seen)
        while end - at > 1:
            length = seen[at + 1] - 128
            if length < 0:
                return self._fail(data[: max(0, at - end + len(data))])
            if length < 126:
                at += 6 + length
                continue
            after = at + (4 if length == 126 else 10)
            if after > end:
                break
            at = after + 4 + int.from_bytes(seen[at + 2 : after], "big")
        self._head = seen[at:]
        self._left_bytes = max(0, at - end)
        self._within = at != end
        return self._feed(data)

    def _fail(self, before: bytes) -> tuple[bool, bytes]:
        """Hand on the frames that were masked, and take nothing more."""
        self._failed = self._within = True
        ended, _ = self._feed(before)
        if not ended:
            self._frames.set_exception(WebSocketError(1002, "a frame that is not masked"))
        return True, b""

    def feed_eof(self) -> None:
        """Take the end of the stream."""
        self._parser.feed_eof()


class Upgrade(web.WebSocketResponse[Literal[False]]):
    """aiohttp's handshake, with ``frames`` to read from. ``parser`` has to live as long as they are read."""

    frames: Frames
    parser: Masked

    def _handshake(self, request: web.BaseRequest) -> tuple[CIMultiDict[str], str | None, int, bool]:
        # It reads one line of each header, and Upgrade as a whole. Both may be lists (RFC 9110, 7.8).
        headers = {name: combined(request.headers, name) for name in request.headers}
        if "websocket" in tokens(request.headers, "Upgrade"):
            headers["Upgrade"] = "websocket"
        message = request._message  # noqa: SLF001 - it says whether the connection can be switched
        read = SimpleNamespace(headers=CIMultiDict(headers), _message=message, remote=request.remote)
        return super()._handshake(cast(web.BaseRequest, read))

    def _post_start(self, request: web.BaseRequest, *_: object) -> None:
        self.frames = Frames(request.protocol)
        parser = WebSocketReader(
            self.frames, self._max_msg_size, compress=bool(self.compress), decode_text=False
        )
        self.parser = Masked(parser, self.frames)
        request.protocol.set_parser(cast(WebSocketReader, self.parser))
        request.protocol.keep_alive(False)

    async def write_eof(self, data: Any = b"") -> None:
        """Write nothing more: the connection closed itself."""
