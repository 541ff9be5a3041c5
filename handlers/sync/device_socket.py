"""The WebSocket of one device: frames come in as calls, messages go out through an outbox.

It knows the wire's framing and how a connection ends, not the meaning of a message: that is the business of
its owner, the ``Connection``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

import msgspec
from aiohttp import WebSocketError, WSMsgType

from engine.cache.minutes import Minutes
from engine.commit.validation import Session
from engine.runtime.loop_scheduler import LARGE_BYTES
from engine.runtime.partial_messages import PartialMessages
from engine.runtime.ports import Clock
from engine.runtime.rate_limit import retry_soon_ms
from engine.wire.close_codes import GOODBYES, CloseCode, GoodbyeReason, confirming
from engine.wire.errors import SyncError
from engine.wire.messages import Goodbye
from handlers.http.counters import Traffic
from handlers.http.errors import error_body
from handlers.sync.frames import Frame, Frames, Pacer
from handlers.sync.outbox import Outbox

#: A close frame has room for 123 bytes of reason (RFC 6455, 5.5).
MAX_REASON_BYTES: Final = 120
#: A client has this long to confirm a close.
CLOSING_S: Final = 2.0

TaskBody = Callable[[], Coroutine[Any, Any, None]]

_encode = msgspec.json.encode


class SocketOwner(Pacer, Protocol):
    """Handles the messages of a socket, and says how fast it is read. None of this may raise."""

    def on_message(self, frame: bytes, now_s: float) -> None:
        """Handle a message of the right type and size; work on its frame began at ``now_s``."""

    def on_ping(self, payload: bytes, now_s: float) -> None:
        """Handle a ping that came at ``now_s``."""

    def on_pong(self, now_s: float) -> None:
        """Handle a pong that came at ``now_s``."""

    def on_writable(self) -> None:
        """Go on: the outbox has room again."""

    def charge_answer(self, spent_s: float, now_s: float) -> None:
        """Charge the device for the encoding of a large message to it."""


class DeviceSocket:
    """Sends messages to one device, and is dismissed by ``Connections``.

    Attributes:
        session: The session that the handshake made.
        key: (tenant_id, device_id).
        opened_at_us: When its handshake was about to be answered, on the wall clock: a connection that the
            device opened after it had got that answer has a later time.
        last_message_s: When the device sent its last message, on the monotonic clock.
        pinged_at_s: When the device was last pinged, on the monotonic clock.
        close_code: The code of the close frame that was sent first by this side; 0 without one.
        closing: True once the close frame was sent, or the connection is gone.
        ignoring: True if messages that still come are dropped.
        over: Done when the connection has ended.
    """

    __slots__ = (
        "_clock",
        "_codec",
        "_confirm",
        "_data_type",
        "_frame_bytes",
        "_loop",
        "_minutes",
        "_owner",
        "_partial_messages",
        "_start",
        "_traffic",
        "_transport",
        "close_code",
        "closing",
        "frames",
        "ignoring",
        "key",
        "last_message_s",
        "opened_at_us",
        "outbox",
        "over",
        "pinged_at_s",
        "session",
    )

    def __init__(
        self,
        session: Session,
        frames: Frames,
        transport: asyncio.Transport,
        *,
        clock: Clock,
        traffic: Traffic,
        minutes: Minutes,
        partial_messages: PartialMessages,
        frame_bytes: int,
        start: Callable[[TaskBody], None],
    ) -> None:
        self.session = session
        self.key = (session.tenant.tenant_id, session.device_id)
        self.frames = frames
        self.outbox: Outbox
        self.opened_at_us = 0
        #: Is told of the first frame, which shows that the device got the answer to its handshake; then None.
        self._confirm: Callable[[DeviceSocket], None] | None = None
        self.last_message_s = self.pinged_at_s = clock.monotonic_s()
        self.close_code = 0
        self.closing = False
        self.ignoring = False
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self._loop.create_future()
        self._owner: SocketOwner | None = None
        self._codec = session.codec
        self._data_type = WSMsgType.BINARY if session.codec.binary else WSMsgType.TEXT
        self._transport = transport
        self._clock = clock
        self._traffic = traffic
        self._minutes = minutes
        self._partial_messages = partial_messages
        self._frame_bytes = frame_bytes
        self._start = start

    # -- its life -----------------------------------------------------------------------------

    def open(
        self, outbox: Outbox, owner: SocketOwner, at_us: int, confirm: Callable[[DeviceSocket], None]
    ) -> None:
        """Begin to send; nothing is received before ``read``.

        Args:
            outbox: What is sent.
            owner: What handles messages.
            at_us: When the handshake was about to be answered.
            confirm: Is called before the first frame is handled.
        """
        self.outbox = outbox
        self._owner = owner
        self.opened_at_us = at_us
        self._confirm = confirm
        self._traffic.connections += 1

    def read(self) -> None:
        """Begin to receive, until ``over`` is done."""
        assert self._owner is not None  # it was opened
        self.frames.bind(self, self._owner)

    def end(self) -> None:
        """Release everything; called once ``over`` is done or the handler was cancelled.

        A connection has 6 KiB in objects that refer to each other. Here they let go of each other, and are
        freed at once. A collection comes after 5,000 connections only, and a full one, which frees those that
        were open at the last, after 100,000.
        """
        self.closing = self.ignoring = True
        self.frames.release()
        self.outbox.release()
        self._owner = self._confirm = None
        if self._transport.get_write_buffer_size():
            self._loop.call_later(CLOSING_S, self._transport.abort)
        self._transport.close()

    # -- as the receiver of frames ------------------------------------------------------------

    def on_frame(self, message: Frame) -> None:
        """Handle a frame of any type."""
        owner = self._owner
        assert owner is not None  # ``end`` releases the frames as well
        kind = message.type
        now_s = self.frames.began_s
        if self._confirm is not None and kind is not WSMsgType.CLOSE and not self.closing:
            confirm, self._confirm = self._confirm, None
            confirm(self)
        if kind is WSMsgType.TEXT or kind is WSMsgType.BINARY:
            self.last_message_s = now_s
            if not self.ignoring:
                self._on_data(owner, kind, message.data, now_s)
        elif kind is WSMsgType.PING:
            owner.on_ping(message.data, now_s)
        elif kind is WSMsgType.PONG:
            owner.on_pong(now_s)
        elif kind is WSMsgType.CLOSE:
            if not self.closing:
                self.outbox.close(confirming(message.data), "")
            self.on_end()

    def _on_data(self, owner: SocketOwner, kind: WSMsgType, frame: bytes, now_s: float) -> None:
        if kind is not self._data_type:
            self.close(CloseCode.BAD_FRAMES, "a frame of the wrong kind")
        elif len(frame) > self._frame_bytes:
            self.close(CloseCode.TOO_LARGE, "the message is too large")
        elif kind is WSMsgType.TEXT and not _is_utf8(frame):
            self.close(CloseCode.NOT_UTF8, "not UTF-8")
        else:
            self._traffic.messages_in += 1
            self._traffic.bytes_in += len(frame)
            self._minutes.of(self.key[0]).bytes_in += len(frame)
            owner.on_message(frame, now_s)

    def on_partial(self, before_bytes: int, after_bytes: int) -> bool:
        """Count the bytes of a message that is incomplete or waits; close if the tenant has too many of them.

        Returns:
            False if nothing more is to be read.
        """
        if self._partial_messages.change(self.key[0], before_bytes, after_bytes):
            return True
        if not self.closing:
            sentence = "too many bytes of messages wait here: send smaller ones, and without pauses"
            self.fail(SyncError("overloaded", sentence, retry_after_ms=retry_soon_ms()), None)
            self.close(CloseCode.UNAVAILABLE, "overloaded")
        return False

    def on_deflated(self, saved_bytes: int) -> None:
        """Count the bytes that compressing a message saved."""
        self._minutes.of(self.key[0]).bytes_saved_compression += saved_bytes

    def on_protocol_error(self, error: WebSocketError) -> None:
        """Close: the device sent something that is no WebSocket frame, or too large a one."""
        self.close(error.code, str(error)[:MAX_REASON_BYTES])
        self.on_end()

    def on_end(self) -> None:
        """Note that the connection is over."""
        if not self.over.done():
            self.over.set_result(None)

    # -- sending ------------------------------------------------------------------------------

    def say(self, body: bytes) -> None:
        """Send a message, given as JSON."""
        self.outbox.put(self._codec.encode(body))

    def say_encoded(self, message: bytes) -> None:
        """Send a message that is in the encoding of the device already."""
        self.outbox.put(message)

    def offer(self, body: bytes) -> bool:
        """Send a message, given as JSON, or return False if too much waits in the outbox."""
        if len(body) < LARGE_BYTES:
            return self.outbox.offer(self._codec.encode(body))
        begun_s = self._clock.monotonic_s()
        taken = self.outbox.offer(self._codec.encode(body))
        if self._owner is not None:
            now_s = self._clock.monotonic_s()
            self._owner.charge_answer(now_s - begun_s, now_s)
        return taken

    def pong(self, payload: bytes) -> None:
        """Answer a ping."""
        self.outbox.pong(payload)

    def fail(self, error: SyncError, request_id: str | None) -> None:
        """Send an error; without an ``id`` if ``request_id`` is None."""
        self._traffic.error(error.code)
        self.say(error_body(error, request_id))

    def announce(self, reason: GoodbyeReason, retry_after_ms: int) -> None:
        """Send a goodbye and drop messages that come later; accepted ones are still answered."""
        if not self.closing:
            self.ignoring = True
            self.say(_encode(Goodbye(reason, retry_after_ms)))

    def dismiss(self, reason: GoodbyeReason, retry_after_ms: int, *, listening: bool = False) -> None:
        """Send a goodbye and close.

        Args:
            reason: It decides the close code.
            retry_after_ms: When the device may come back, if the reason lets it.
            listening: Whether messages are still handled that the device sent before it read the goodbye.
        """
        if not self.closing:
            self.say(_encode(Goodbye(reason, retry_after_ms)))
            self.close(GOODBYES[reason], reason, listening=listening)

    def close(self, code: int, reason: str, *, listening: bool = False) -> None:
        """Send the close frame after everything that waits, and give the client ``CLOSING_S`` to confirm."""
        if self.closing:
            return
        self.closing = True
        self.ignoring = not listening
        self.close_code = code
        self._traffic.closed(code)
        self.outbox.close(code, reason)
        self._loop.call_later(CLOSING_S, self._transport.abort)
        self.frames.go_on()

    def ping(self, now_s: float) -> None:
        """Send a ping, so that no proxy takes a quiet connection for dead."""
        self.pinged_at_s = now_s
        self.outbox.ping()

    def abort(self) -> None:
        """Cut the connection off."""
        self._transport.abort()

    # -- as the owner of its outbox -----------------------------------------------------------

    def start(self, work: TaskBody) -> None:
        """Run work in a task beside reading."""
        self._start(work)

    def on_writable(self) -> None:
        """Go on reading, and let the owner go on sending."""
        self.frames.go_on()
        if self._owner is not None:
            self._owner.on_writable()

    def on_reader_cut(self) -> None:
        """Count a client that was cut off because it did not read."""
        self._traffic.slow_readers_cut += 1


def _is_utf8(frame: bytes) -> bool:
    if frame.isascii():
        return True
    try:
        frame.decode()
    except UnicodeDecodeError:
        return False
    return True
