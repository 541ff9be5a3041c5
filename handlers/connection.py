"""One open connection: messages in, answers out, until either side closes.

Frames come in as calls, the outbox writes. A ``sync`` goes from its frame to the committer without
a task or a future, and its answer comes back as a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Literal

import msgspec
from aiohttp import WebSocketError, WSMsgType

from engine.codec import MalformedError
from engine.errors import SyncError
from engine.instants import to_text, to_us
from engine.intake import Session
from engine.jobs import Answer, Outcome
from engine.messages import (
    Conflicts,
    Goodbye,
    Heartbeat,
    Hello,
    Pull,
    Request,
    Resolve,
    Subscribe,
    Sync,
    Unsubscribe,
    Unsubscribed,
    Welcome,
)
from engine.pages import with_id
from handlers.connections import Connections
from handlers.core import Core
from handlers.errors import as_sync_error, error_body
from handlers.frames import Frame, Frames
from handlers.live import Live
from handlers.outbox import Outbox
from handlers.requests import count_answer, heartbeat, list_conflicts, resolution

CLOSE_NORMAL: Final = 1000
CLOSE_NOT_UTF8: Final = 1007
CLOSE_TOO_LARGE: Final = 1009
CLOSE_BAD_FRAMES: Final = 4400
CLOSE_RATE_IGNORED: Final = 4429

#: Malformed messages in a row that end a connection.
MAX_MALFORMED: Final = 10
#: Messages in a row sent in spite of ``rate_limited`` that end a connection.
MAX_RATE_IGNORED: Final = 100
MAX_SUBSCRIPTIONS: Final = 32
#: Answers that one connection may wait for; beyond them it is not read from.
MAX_IN_FLIGHT: Final = 256
#: Reads of the store that one connection may wait for.
MAX_READS: Final = 4
#: What a close frame has room for.
MAX_REASON_BYTES: Final = 120
#: How long a client has to confirm a close.
CLOSING_S: Final = 2.0

Work = Callable[[], Coroutine[Any, Any, None]]
GoodbyeReason = Literal["drain", "restart", "replaced", "revoked", "expired", "idle"]

_encode = msgspec.json.encode


class Connection:
    """A device's connection.

    ``heard_at_s`` is when it last sent a message, ``pinged_at_s`` when it was last pinged, on the
    monotonic clock.
    """

    __slots__ = (
        "_closing",
        "_connections",
        "_core",
        "_deaf",
        "_decode",
        "_device",
        "_frames",
        "_gone",
        "_in_flight",
        "_live",
        "_loop",
        "_malformed",
        "_outbox",
        "_rate_ignored",
        "_reads",
        "_session",
        "_transport",
        "_wanted",
        "expires_at_s",
        "heard_at_s",
        "key",
        "pinged_at_s",
    )

    def __init__(
        self,
        core: Core,
        connections: Connections,
        session: Session,
        expires_at_s: int,
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
        self._decode = session.codec.decode
        self._wanted = WSMsgType.BINARY if session.codec.binary else WSMsgType.TEXT
        self._outbox: Outbox
        self._live: dict[str, Live] = {}
        self._in_flight = 0
        self._reads = 0
        self._malformed = 0
        self._rate_ignored = 0
        self._closing = False
        self._deaf = False
        self.key = (session.tenant.tenant_id, session.device_id)
        self.expires_at_s = expires_at_s
        self.heard_at_s = self.pinged_at_s = core.clock.monotonic_s()
        self._device = core.devices.seen(*self.key, self.heard_at_s)

    # -- its life -----------------------------------------------------------------------------

    def open(self, outbox: Outbox) -> asyncio.Future[None]:
        """Greet and take in messages from now on; ``end`` is due when what is given back is done."""
        self._outbox = outbox
        self._core.traffic.connections += 1
        self.say(self._welcome())
        self._connections.add(self)
        self._frames.bind(self)
        return self._gone

    def end(self) -> None:
        """Let everything go."""
        self._closing = self._deaf = True
        self._outbox.end()
        for live in self._live.values():
            live.end()
        self._connections.remove(self)
        if self._transport.get_write_buffer_size():
            self._loop.call_later(CLOSING_S, self._transport.abort)
        self._transport.close()

    # -- as the receiver of frames ------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether not too much of what was asked is unanswered or not taken yet."""
        return self._in_flight < MAX_IN_FLIGHT and self._reads < MAX_READS and not self._outbox.full

    def take(self, message: Frame) -> None:
        """Take in a frame."""
        kind = message.type
        if kind is WSMsgType.TEXT or kind is WSMsgType.BINARY:
            self.heard_at_s = now_s = self._core.clock.monotonic_s()
            if not self._deaf:
                self._take_data(kind, message.data, now_s)
        elif kind is WSMsgType.PING:
            self._outbox.pong(message.data)
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
            self._take(frame, now_s)

    def broken(self, error: WebSocketError) -> None:
        """Close: what came is no WebSocket frame, or too large a one."""
        self.close(error.code, str(error)[:MAX_REASON_BYTES])
        self.gone()

    def gone(self) -> None:
        """The connection is over."""
        if not self._gone.done():
            self._gone.set_result(None)

    def _look_for_room(self) -> None:
        self._frames.go_on()

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
        return self._outbox.offer(self._session.codec.encode(body))

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
        self._look_for_room()

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
        """Go on reading and let the subscriptions go on that had to wait."""
        self._look_for_room()
        for live in list(self._live.values()):
            live.resume()

    def stuck(self) -> None:
        """Count a reader that was cut off."""
        self._core.traffic.slow_readers_cut += 1

    # -- messages -----------------------------------------------------------------------------

    def _take(self, frame: bytes, now_s: float) -> None:
        core = self._core
        core.traffic.messages_in += 1
        core.traffic.bytes_in += len(frame)
        wait_ms = self._device.bucket.take(core.limits.messages_per_minute, now_s)
        request_id: str | None = None
        try:
            request = self._decode(frame)
            self._malformed = 0
            if not isinstance(request, Hello):
                request_id = request.id
            if wait_ms:
                self._limit(wait_ms, request_id)
                return
            self._rate_ignored = 0
            if isinstance(request, Sync):
                self._sync(request)
            else:
                self._other(request)
        except Exception as error:
            self._refuse(error, request_id, wait_ms)

    def _limit(self, wait_ms: int, request_id: str | None) -> None:
        self._rate_ignored += 1
        if self._rate_ignored > MAX_RATE_IGNORED:
            self.close(CLOSE_RATE_IGNORED, "the rate limit was ignored")
            return
        error = SyncError("rate_limited", "too many messages", retry_after_ms=wait_ms)
        self.fail(error, request_id)

    def _refuse(self, error: Exception, request_id: str | None, wait_ms: int) -> None:
        told = self._told(error)
        own_id = told.details.pop("id", request_id)
        request_id = own_id if isinstance(own_id, str) else None
        if isinstance(told, MalformedError):
            self.fail(told, None)
            self._malformed += 1
            if self._malformed >= MAX_MALFORMED:
                self.close(CLOSE_BAD_FRAMES, "too many malformed messages in a row")
            return
        self._malformed = 0
        if wait_ms:
            self._limit(wait_ms, request_id)
        else:
            self.fail(told, request_id)

    def _told(self, error: Exception) -> SyncError:
        tenant = self._session.tenant.name
        return as_sync_error(error, tenant=tenant, device_id=self._session.device_id)

    def _sync(self, request: Sync) -> None:
        if request.id is None:
            raise SyncError("invalid_message", "id: required on a socket")
        core = self._core
        now_us = core.clock.now_us()
        push = core.intake.push(request, self._session, now_us)
        core.committer.submit(push, partial(self._answer, request.id, now_us))
        self._in_flight += 1

    def _answer(self, request_id: str, started_us: int, outcome: Outcome) -> None:
        self._in_flight -= 1
        self._look_for_room()
        if isinstance(outcome, Answer):
            self.say(outcome.frame(request_id))
            count_answer(self._core, self._device, outcome, started_us)
        elif isinstance(outcome, SyncError):
            self._device.failed(self._core.clock.now_us() - started_us)
            self.fail(outcome, request_id)

    def _other(self, request: Request) -> None:
        match request:
            case Hello():
                self._hello(request)
            case Heartbeat():
                self.say(heartbeat(self._core, self._device, request, request.id))
            case Pull():
                self._begin(request.id, partial(self._pull, request))
            case Subscribe():
                self._subscribe(request)
            case Unsubscribe():
                self._unsubscribe(request)
            case Conflicts():
                self._begin(request.id, partial(self._conflicts, request))
            case Resolve():
                self._begin(request.id, partial(self._resolve, request))

    def _hello(self, request: Hello) -> None:
        self._device.introduce(
            network_type=None, app_version=request.app_version, os_version=request.os_version
        )
        if request.clock is not None:
            self._session.clock_offset_us = self._core.clock.now_us() - to_us(request.clock)

    def _begin(self, request_id: str, work: Work) -> None:
        """Start what asks the store; syncs are not held up by it."""
        self.start(partial(self._work, request_id, work))
        self._reads += 1

    async def _work(self, request_id: str, work: Work) -> None:
        try:
            await work()
        except Exception as error:
            self.fail(self._told(error), request_id)
        finally:
            self._reads -= 1
            self._look_for_room()

    async def _pull(self, request: Pull) -> None:
        body = await self._core.feed.pull(
            self.key[0], request.cursor, request.domains, request.limit
        )
        self.say(with_id(body, request.id))

    def _subscribe(self, request: Subscribe) -> None:
        if request.id in self._live:
            raise SyncError("invalid_message", "id: a subscription of this id is open")
        if len(self._live) >= MAX_SUBSCRIPTIONS:
            raise SyncError("too_large", f"subscriptions: the limit is {MAX_SUBSCRIPTIONS}")
        live = self._live[request.id] = Live(self, request)
        self._begin(request.id, partial(self._open, live))

    async def _open(self, live: Live) -> None:
        try:
            await live.open(self._core.feed, self.key[0], self._session.session_id)
        except Exception:
            self.forget(live)
            if not live.ended:
                raise
        if self._closing:
            live.end()

    def forget(self, live: Live) -> None:
        """Free the id of a subscription that is over."""
        if self._live.get(live.request_id) is live:
            del self._live[live.request_id]

    def _unsubscribe(self, request: Unsubscribe) -> None:
        live = self._live.pop(request.id, None)
        if live is None:
            raise SyncError("not_found", "there is no subscription of this id")
        live.end()
        self.say(_encode(Unsubscribed(request.id)))

    async def _conflicts(self, request: Conflicts) -> None:
        self.say(await list_conflicts(self._core, self._session, request, request.id))

    async def _resolve(self, request: Resolve) -> None:
        job = await resolution(self._core, self._session, request)
        self._core.committer.submit(job, partial(self._settled, request.id))
        self._in_flight += 1

    def _settled(self, request_id: str, outcome: Outcome) -> None:
        self._in_flight -= 1
        self._look_for_room()
        if isinstance(outcome, SyncError):
            self.fail(outcome, request_id)
        else:
            self.say(outcome.frame(request_id))


def _is_utf8(frame: bytes) -> bool:
    if frame.isascii():
        return True
    try:
        frame.decode()
    except UnicodeDecodeError:
        return False
    return True
