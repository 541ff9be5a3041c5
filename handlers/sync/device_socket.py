"""The line to one device: frames in as calls, frames out through its outbox, until either side closes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, Literal

import msgspec
from aiohttp import WebSocketError, WSMsgType

from engine.commit.validation import Session
from engine.runtime.loop_turns import LARGE_BYTES, Turn
from engine.runtime.rate_limit import retry_soon_ms
from engine.wire.errors import SyncError
from engine.wire.messages import Goodbye, Welcome
from engine.wire.timestamps import to_text
from handlers.http.context import Core
from handlers.http.errors import error_body
from handlers.sync.connections import Connections
from handlers.sync.frames import Frame, Frames
from handlers.sync.outbox import Outbox

CLOSE_NORMAL: Final = 1000
CLOSE_NOT_UTF8: Final = 1007
CLOSE_TOO_LARGE: Final = 1009
CLOSE_BAD_FRAMES: Final = 4400
CLOSE_UNAVAILABLE: Final = 4503

#: What a close frame has room for.
MAX_REASON_BYTES: Final = 120
#: How long a client has to confirm a close.
CLOSING_S: Final = 2.0

Work = Callable[[], Coroutine[Any, Any, None]]
GoodbyeReason = Literal["drain", "restart", "replaced", "revoked", "expired", "idle"]

_encode = msgspec.json.encode


class Line:
    """What ``Connection`` talks through, and is dismissed through by ``Connections``.

    ``heard_at_s`` is when it last sent a message, ``pinged_at_s`` when it was last pinged, on the
    monotonic clock, ``opened_at_us`` on the other one.
    """

    __slots__ = (
        "_closing",
        "_connections",
        "_core",
        "_deaf",
        "_frames",
        "_gone",
        "_loop",
        "_outbox",
        "_session",
        "_transport",
        "_wanted",
        "expires_at_s",
        "heard_at_s",
        "key",
        "opened_at_us",
        "pinged_at_s",
    )

    def __init__(
        self,
        core: Core,
        connections: Connections,
        session: Session,
        frames: Frames,
        transport: asyncio.Transport,
    ) -> None:
        self._core = core
        self._connections = connections
        self._session = session
        self._frames = frames
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._wanted = WSMsgType.BINARY if session.codec.binary else WSMsgType.TEXT
        self._outbox: Outbox
        self._closing = False
        self._deaf = False
        self.key = (session.tenant.tenant_id, session.device_id)
        self.opened_at_us = core.clock.now_us()
        self.expires_at_s = session.expires_at_s
        self.heard_at_s = self.pinged_at_s = core.clock.monotonic_s()

    # -- its life -----------------------------------------------------------------------------

    @property
    def issued_at_s(self) -> int | None:
        """When its token was signed; None if that is not known."""
        return self._session.issued_at_s

    @property
    def token_id(self) -> str:
        """The ``jti`` of its token."""
        return self._session.token_id

    def open(self, outbox: Outbox) -> asyncio.Future[None]:
        """Greet and take in messages from now on; ``end`` is due when what is given back is done."""
        self._outbox = outbox
        self._core.traffic.connections += 1
        self.say(self._welcome())
        self._connections.add(self)
        self._core.bus.opened(*self.key, self.session_id, self.opened_at_us)
        self._frames.bind(self)
        return self._gone

    def end(self) -> None:
        """Let everything go."""
        self._closing = self._deaf = True
        self._outbox.end()
        self._connections.remove(self)
        if self._transport.get_write_buffer_size():
            self._loop.call_later(CLOSING_S, self._transport.abort)
        self._transport.close()

    @property
    def session_id(self) -> str:
        """What its welcome named."""
        return self._session.session_id

    # -- as the receiver of frames ------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether the device has taken most of what it was told; at the end all that it sent is taken."""
        return self._closing or not self._outbox.full

    def take(self, message: Frame) -> None:
        """Take in a frame."""
        kind = message.type
        now_s = self._frames.began_s
        if kind is WSMsgType.TEXT or kind is WSMsgType.BINARY:
            self.heard_at_s = now_s
            if not self._deaf:
                self._take_data(kind, message.data, now_s)
        elif kind is WSMsgType.PING:
            self.pinged(message.data, now_s)
        elif kind is WSMsgType.PONG:
            self.counted(now_s)
        elif kind is WSMsgType.CLOSE:
            if not self._closing:
                self._outbox.close(message.data or CLOSE_NORMAL, "")
            self.gone()

    def _take_data(self, kind: WSMsgType, frame: bytes, now_s: float) -> None:
        if kind is not self._wanted:
            self.close(CLOSE_BAD_FRAMES, "a frame of the wrong kind")
        elif len(frame) > self._core.limits.frame_bytes:
            self.close(CLOSE_TOO_LARGE, "the message is too large")
        elif kind is WSMsgType.TEXT and not _is_utf8(frame):
            self.close(CLOSE_NOT_UTF8, "not UTF-8")
        else:
            self.hear(frame, now_s)

    def hear(self, frame: bytes, now_s: float) -> None:
        """Take in a message of the right kind and size, whose frame was begun to be read at ``now_s``."""
        raise NotImplementedError

    def pinged(self, payload: bytes, now_s: float) -> None:
        """Answer a ping that came at ``now_s``."""
        raise NotImplementedError

    def counted(self, now_s: float) -> bool:
        """Count something that came for a message; False if it is past the rate."""
        raise NotImplementedError

    @property
    def yields(self) -> bool:
        """Whether others of its tenant wait for a turn of the loop."""
        return self._core.turns.waits(self.key[0])

    def turn(self, work: Callable[[], None]) -> Turn:
        """Have ``work`` called in a turn of its own."""
        raise NotImplementedError

    def worked(self, spent_s: float, now_s: float) -> float:
        """Charge work on what came; more than 0 if nothing more is to be read but in a turn."""
        raise NotImplementedError

    def fragmented(self) -> None:
        """Count frames that ended no message."""
        self.counted(self._frames.began_s)

    def held(self, before_bytes: int, after_bytes: int) -> bool:
        """Count what there is of a message whose rest is to come; close where its tenant has too much."""
        if self._core.partial_messages.change(self.key[0], before_bytes, after_bytes):
            return True
        if not self._closing:
            sentence = "too many bytes of messages that are not whole wait here"
            self.fail(SyncError("overloaded", sentence, retry_after_ms=retry_soon_ms()), None)
            self.close(CLOSE_UNAVAILABLE, "overloaded")
        return False

    def broken(self, error: WebSocketError) -> None:
        """Close: what came is no WebSocket frame, or too large a one."""
        self.close(error.code, str(error)[:MAX_REASON_BYTES])
        self.gone()

    def gone(self) -> None:
        """The connection is over."""
        if not self._gone.done():
            self._gone.set_result(None)

    def _welcome(self) -> bytes:
        core = self._core
        return _encode(
            Welcome(
                self._session.session_id,
                to_text(core.clock.now_us()),
                core.feed.epoch,
                core.limits.heartbeat_s,
                core.limits.welcome(),
                self.policy_names(),
                core.domains.events,
            )
        )

    def policy_names(self) -> dict[str, str]:
        """Map each domain to the policy of this connection's tenant."""
        return self._core.policy_names(self.key[0])

    # -- saying -------------------------------------------------------------------------------

    def say(self, body: bytes) -> None:
        """Send a message, given as JSON."""
        self._outbox.put(self._session.codec.encode(body))

    def offer(self, body: bytes) -> bool:
        """Send a message, given as JSON, or take nothing when too much waits."""
        if len(body) < LARGE_BYTES:
            return self._outbox.offer(self._session.codec.encode(body))
        begun_s = self._core.clock.monotonic_s()
        taken = self._outbox.offer(self._session.codec.encode(body))
        now_s = self._core.clock.monotonic_s()
        self.took(now_s - begun_s, now_s)
        return taken

    def took(self, spent_s: float, now_s: float) -> None:
        """Charge work on what is said."""
        raise NotImplementedError

    def fail(self, error: SyncError, request_id: str | None) -> None:
        """Send an error."""
        self._core.traffic.error(error.code)
        self.say(error_body(error, request_id))

    def announce(self, reason: GoodbyeReason, retry_after_ms: int) -> None:
        """Say goodbye and take in nothing more; what was accepted is still answered."""
        if not self._closing:
            self._deaf = True
            self.say(_encode(Goodbye(reason, retry_after_ms)))

    def dismiss(
        self, reason: GoodbyeReason, code: int, retry_after_ms: int, *, listening: bool = False
    ) -> None:
        """Say goodbye and close; ``listening`` still takes in what the device sent before it knew."""
        if not self._closing:
            self.say(_encode(Goodbye(reason, retry_after_ms)))
            self.close(code, reason, listening=listening)

    def close(self, code: int, reason: str, *, listening: bool = False) -> None:
        """Send the close frame behind what waits, and give the client a while to confirm it."""
        if self._closing:
            return
        self._closing = True
        self._deaf = not listening
        self._core.traffic.closed(code)
        self._outbox.close(code, reason)
        self._loop.call_later(CLOSING_S, self._transport.abort)
        self._frames.go_on()

    def ping(self, now_s: float) -> None:
        """Send something, so that whoever is between does not take the connection for dead."""
        self.pinged_at_s = now_s
        self._outbox.ping()

    def abort(self) -> None:
        """Cut the connection off."""
        self._transport.abort()

    # -- as the owner of its outbox -----------------------------------------------------------

    def start(self, work: Work) -> None:
        """Run work beside reading."""
        self._connections.start(work)

    def room(self) -> None:
        """Go on reading."""
        self._frames.go_on()

    def stuck(self) -> None:
        """Count a reader that was cut off."""
        self._core.traffic.slow_readers_cut += 1


def _is_utf8(frame: bytes) -> bool:
    if frame.isascii():
        return True
    try:
        frame.decode()
    except UnicodeDecodeError:
        return False
    return True
