"""Passes frames from aiohttp's parser to the connection as calls, in the pass of the loop that received them.

``WebSocketResponse.receive`` would cost each message a future and a switch of tasks, and each idle
connection three coroutines. aiohttp's handshake and parser are used unchanged. A gate before the parser feeds
it one frame at a time, only while the connection has room for another message, and in turns that are bounded
in time. The rest of a read waits in the gate, with the transport paused, for a turn of the socket
(``engine.runtime.loop_scheduler``). This file and ``handlers/http/edge_protocol.py`` alone use names of
aiohttp that are not public.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final, Literal, Protocol, cast

from aiohttp import WebSocketError, web
from aiohttp._websocket.models import WSMessageTextBytes
from aiohttp._websocket.reader import WebSocketDataQueue
from aiohttp.http import WebSocketReader, WSMessage
from multidict import CIMultiDict

from engine.runtime.loop_scheduler import Slot
from engine.runtime.ports import Clock
from engine.wire.close_codes import CloseCode
from handlers.http.headers import combined, tokens

#: A frame of any type, as the parser returns it; texts are bytes.
Frame = WSMessage | WSMessageTextBytes

#: A turn ends with the first frame after this time: a sync of another device waits for it up to five times.
TURN_S: Final = 0.0005
#: Work is charged in portions of this size: charging each frame of 20 µs would cost a percent of its time.
_PORTION_S: Final = 0.001
#: The first byte of the last frame of a deflated message is at least this.
_DEFLATED: Final = 192
#: The bit of the first byte that marks a ping, a pong or a close, which may come between fragments.
_CONTROL: Final = 8
#: So many frames that end no message count as one message.
FRAGMENTS: Final = 16


class FrameSink(Protocol):
    """Receives the frames. None of this may raise."""

    def on_frame(self, message: Frame) -> None:
        """Handle a frame of any type."""

    def on_partial(self, before_bytes: int, after_bytes: int) -> bool:
        """Count the bytes of an incomplete message. Returns False if nothing more is to be read."""

    def on_protocol_error(self, error: WebSocketError) -> None:
        """Handle the end: the device sent something that is no WebSocket frame."""

    def on_end(self) -> None:
        """Handle the end: the other side is gone."""


class Pacer(Protocol):
    """Says how fast frames are read, and is charged for them. None of this may raise."""

    @property
    def has_room(self) -> bool:
        """True if more may be read now. Once it is true again, ``Frames.go_on`` has to be called."""

    @property
    def yields(self) -> bool:
        """True if others of its tenant wait for a turn: several frames, or deflated ones, queue behind."""

    def slot(self, work: Callable[[], None]) -> Slot:
        """Have ``work`` called in a turn of its own (``engine.runtime.loop_scheduler``)."""

    def charge(self, spent_s: float, now_s: float) -> float:
        """Charge work on frames. Returns more than 0 if the next read has to wait for a turn."""

    def count_fragments(self) -> None:
        """Count ``FRAGMENTS`` frames that ended no message."""


class Frames(WebSocketDataQueue):
    """Receives frames from the parser. The gate opens once there is a sink.

    Attributes:
        began_s: When work on the present frame began, its inflating included, on the monotonic clock.
    """

    __slots__ = ("_ended", "_error", "began_s", "gate", "pacer", "sink")

    def __init__(self, protocol: web.RequestHandler) -> None:
        super().__init__(protocol, 0, loop=asyncio.get_running_loop())
        self.sink: FrameSink | None = None
        self.pacer: Pacer | None = None
        self.gate: Gate | None = None
        self.began_s = 0.0
        self._error: WebSocketError | None = None
        self._ended = False

    def bind(self, sink: FrameSink, pacer: Pacer) -> None:
        """Pass on the frames that came so far, and those that come from now on."""
        self.sink, self.pacer = sink, pacer
        self.go_on()
        if self._error is not None:
            sink.on_protocol_error(self._error)
        elif self._ended:
            sink.on_end()

    def go_on(self) -> None:
        """Pass on the frames that wait, while there is room."""
        if self.gate is not None:
            self.gate.go_on()

    def release(self) -> None:
        """Drop the frames that wait and pass on nothing more: the connection is over.

        Gate, parser, sink and pacer refer to these frames, and these to them: this frees them without a
        collection.
        """
        if self.gate is not None:
            self.gate.end()
        self.sink = self.pacer = self.gate = None

    def feed_data(self, data: Frame, size: int) -> None:  # noqa: ARG002  # as the parser calls it
        """Receive a frame from the parser."""
        sink = self.sink
        assert sink is not None  # the gate is shut before
        sink.on_frame(data)

    def set_exception(self, exc: BaseException, *_: object) -> None:
        """Receive the parser's failure."""
        if not isinstance(exc, WebSocketError):
            exc = WebSocketError(CloseCode.PROTOCOL_ERROR, "not a WebSocket frame")
        self._error = exc
        if self.sink is not None:
            self.sink.on_protocol_error(exc)

    def feed_eof(self) -> None:
        """Receive the end of the stream."""
        self._ended = True
        if self.sink is not None:
            self.sink.on_end()


class Gate:
    """Feeds the parser frame by frame, in turns of ``TURN_S``.

    It closes with 1002 at the first frame without a mask, which the parser would accept: a client masks each
    frame (RFC 6455, 5.1), so that no proxy takes one for a request. The time of every frame is charged to its
    device, with its inflating and its handling by the connection.
    """

    __slots__ = (
        "_between",
        "_clock_s",
        "_feed",
        "_first",
        "_fragments",
        "_frames",
        "_left_bytes",
        "_next",
        "_over",
        "_parser",
        "_partial_bytes",
        "_protocol",
        "_rest",
        "_shut",
        "_spent_s",
    )

    def __init__(
        self,
        parser: WebSocketReader,
        frames: Frames,
        protocol: web.RequestHandler,
        clock: Clock,
    ) -> None:
        self._parser = parser
        self._feed = parser.feed_data
        self._frames = frames
        self._protocol = protocol
        self._clock_s = clock.monotonic_s
        self._rest = b""  # received and not fed: nothing, an incomplete header, or all waiting frames
        self._left_bytes = 0  # missing bytes of the present frame, whose beginning was fed
        self._first = 0  # byte of the present frame
        self._partial_bytes = 0  # of an incomplete message, as the sink has counted them
        self._shut = False  # whether reading is paused
        self._between = True  # whether the next byte begins a frame and may be fed: none of these is set
        self._next: Slot | None = None  # that the socket waits for
        self._over = False
        self._spent_s = 0.0
        self._fragments = 0
        frames.gate = self

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Receive bytes. Returns whether the connection is over, and the bytes that were not used: none."""
        # Nearly every read is one whole frame, and a whole message.
        if self._between and len(data) > 5 and data[0] > 127:
            length = data[1]
            if (
                len(data) == (8 + (data[2] << 8 | data[3]) if length == 254 else length - 122)
                and length != 255
                and (data[0] < _DEFLATED or not self._yields())
                and (pacer := self._frames.pacer) is not None
                and pacer.has_room
            ):
                clock_s = self._clock_s
                self._frames.began_s = began_s = clock_s()
                verdict = self._feed(data)
                now_s = clock_s()
                self._spent_s += now_s - began_s
                if self._spent_s > _PORTION_S:
                    self._charge(pacer, now_s)
                return verdict
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self._shut:
            self._rest = data
        elif data:
            self._turn(data, yields=self._yields())
            self._between = not (
                self._rest or self._left_bytes or self._partial_bytes or self._over or self._shut
            )
        return self._over, b""

    def go_on(self) -> None:
        """Request a turn, unless one is requested already."""
        pacer = self._frames.pacer
        if self._shut and self._next is None and not self._over and pacer is not None:
            self._next = pacer.slot(self._again)

    def feed_eof(self) -> None:
        """Receive the end of the stream. Waiting frames are dropped: no answer to them could be sent."""
        self.end()
        self._parser.feed_eof()

    def _again(self) -> None:
        self._next = None
        self._shut = False
        rest, self._rest = self._rest, b""
        if rest:
            self._turn(rest, yields=False)
        self._between = not (
            self._rest or self._left_bytes or self._partial_bytes or self._shut or self._over
        )
        if self._over:
            self._protocol.close()
        elif not self._shut:
            self._protocol.resume_reading()

    def _yields(self) -> bool:
        pacer = self._frames.pacer
        return pacer is not None and pacer.yields

    def _turn(self, data: bytes, *, yields: bool) -> None:
        """Feed frames until the turn is over or there is no room; keep the rest. Feed none if ``yields``."""
        pacer = self._frames.pacer
        if self._over:
            return
        feed, clock_s = self._feed, self._clock_s
        turn_began_s = now_s = clock_s()
        at, end, left_bytes = 0, len(data), self._left_bytes
        partial_bytes, first = self._partial_bytes, self._first
        waits = False
        while at < end:
            size_bytes = left_bytes
            if not size_bytes:
                if yields or pacer is None or not pacer.has_room or now_s - turn_began_s >= TURN_S:
                    waits = True
                    break
                size_bytes = _frame_bytes(data, at, end)
                if not size_bytes:
                    break
                if size_bytes < 0:
                    self.end()
                    self._frames.set_exception(
                        WebSocketError(CloseCode.PROTOCOL_ERROR, "a frame that is not masked")
                    )
                    return
                first = data[at]
                if first < 128:  # a fragment
                    self._fragment(pacer)
            stop = min(end, at + size_bytes)
            if self._partial_bytes and first > 127 and not first & _CONTROL and stop - at == size_bytes:
                partial_bytes = 0  # the message is complete
                self._count_partial(0)
            self._frames.began_s = now_s
            ended, _ = feed(data[at:stop])
            if ended or self._over:
                self.end()
                return
            left_bytes = size_bytes - (stop - at)
            if not first & _CONTROL:
                partial_bytes = 0 if first > 127 and not left_bytes else partial_bytes + stop - at
            at = stop
            now_s = clock_s()
        self._left_bytes = left_bytes
        self._first = first
        self._rest = data[at:]
        if partial_bytes != self._partial_bytes and not self._count_partial(partial_bytes):
            return
        self._spent_s += now_s - turn_began_s
        if self._spent_s > _PORTION_S and pacer is not None:
            self._charge(pacer, now_s)
        if waits and not self._shut:
            self._shut = True
            self._protocol.pause_reading()
            if pacer is not None and pacer.has_room:
                self._next = pacer.slot(self._again)

    def _count_partial(self, partial_bytes: int) -> bool:
        before_bytes, self._partial_bytes = self._partial_bytes, partial_bytes
        sink = self._frames.sink
        fits = sink is None or sink.on_partial(before_bytes, partial_bytes)
        if not fits:
            self.end()
        return fits

    def _charge(self, pacer: Pacer, now_s: float) -> None:
        """Charge the work so far. Past the share stop reading until a turn comes."""
        spent_s, self._spent_s = self._spent_s, 0.0
        if pacer.charge(spent_s, now_s) and not self._over:
            self._between, self._shut = False, True
            self._protocol.pause_reading()
            self._next = pacer.slot(self._again)

    def _fragment(self, pacer: Pacer) -> None:
        self._fragments += 1
        if self._fragments >= FRAGMENTS:
            self._fragments = 0
            pacer.count_fragments()

    def end(self) -> None:
        """Drop waiting bytes, and feed the parser nothing more."""
        self._over, self._between = True, False
        self._rest = b""
        if self._partial_bytes and self._frames.sink is not None:
            self._frames.sink.on_partial(self._partial_bytes, 0)
            self._partial_bytes = 0
        if self._next is not None:
            self._next.cancel()
            self._next = None


def _frame_bytes(data: bytes, at: int, end: int) -> int:
    """Return the size of the frame at ``at``: 0 if its header is incomplete, -1 without a mask."""
    if end - at < 2:
        return 0
    length = data[at + 1] - 128
    if length < 0:
        return -1
    if length < 126:
        return 6 + length
    after = at + (4 if length == 126 else 10)
    return 0 if after > end else after - at + 4 + int.from_bytes(data[at + 2 : after], "big")


class Upgrade(web.WebSocketResponse[Literal[False]]):
    """aiohttp's handshake. ``frames`` is read from; ``parser`` has to live as long as ``frames``."""

    frames: Frames
    parser: Gate

    def __init__(self, clock: Clock, **options: Any) -> None:
        super().__init__(**options)
        self._clock = clock

    def _handshake(self, request: web.BaseRequest) -> tuple[CIMultiDict[str], str | None, int, bool]:
        # aiohttp reads one line of each header, and Upgrade as one word. Both may be lists (RFC 9110, 7.8).
        # Its refusals name values, and an answer cannot have what stands for bytes that are no UTF-8.
        headers = {
            name: combined(request.headers, name).encode("ascii", "backslashreplace").decode()
            for name in request.headers
        }
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
        self.parser = Gate(parser, self.frames, request.protocol, self._clock)
        request.protocol.set_parser(cast(WebSocketReader, self.parser))
        request.protocol.keep_alive(False)

    async def write_eof(self, data: Any = b"") -> None:
        """Write nothing more: the connection closed itself."""
