"""One device's connection: handles its messages and answers them, and says how fast it is read.

A ``sync`` goes from its frame to the committer without a task or a future, and its answer comes back as a
call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec

from engine.cache.device_health import Device
from engine.commit.admission import ACCEPT, Admission, Overloaded, RateLimited, Verdict
from engine.runtime.loop_scheduler import LARGE_BYTES, Slot, Steps
from engine.runtime.rate_limit import COUNTED_BYTES, EXPENSIVE_S
from engine.wire.close_codes import CloseCode
from engine.wire.codec import MalformedError
from engine.wire.messages import (
    Conflicts,
    Heartbeat,
    Hello,
    Pull,
    Request,
    Resolve,
    Subscribe,
    Sync,
    Telemetry,
    Unsubscribe,
)
from engine.wire.timestamps import to_us
from handlers.http.errors import as_sync_error
from handlers.http.loop.charges import LoopCharges
from handlers.sync.connections import Connections
from handlers.sync.device_socket import DeviceSocket
from handlers.sync.operations import Operations, set_device_clock
from handlers.sync.pushes import Pushes
from handlers.sync.reads import Reads

#: Malformed messages in a row that end a connection.
MAX_MALFORMED: Final = 10
#: Messages in a row sent in spite of ``rate_limited`` that end a connection.
MAX_RATE_IGNORED: Final = 100
#: A message past the rate that is longer, and hides its id, is refused without the id.
MAX_SECOND_LOOK_BYTES: Final = 1024
#: A connection is not read while so many of its pushes and resolutions are not answered.
MAX_IN_FLIGHT: Final = 256
#: A connection is not read while so many of its reads are not answered.
MAX_READS: Final = 4
#: The loop's shares are told at most this often that a tenant is active: they look at a whole second.
NOTED_S: Final = 0.1


class Connection:
    """Handles the messages of one device.

    Args:
        socket: The device's socket.
        device: The device.
        pushes: Its pushes.
        reads: Its reads and subscriptions.
        connections: All connections of the process; they send refusals in groups.
        admission: Decides whether a message is accepted.
        loop: Is charged for the time that messages take.
        operations: Answers heartbeats.
        asked_at_s: When the handshake came, on the monotonic clock: nothing on this connection was sent
            before.
    """

    __slots__ = (
        "_admission",
        "_asked_at_s",
        "_backoff",
        "_connections",
        "_decode",
        "_device",
        "_kind",
        "_large",
        "_large_bytes",
        "_loop",
        "_malformed",
        "_noted_until_s",
        "_operations",
        "_pushes",
        "_rate_ignored",
        "_reads",
        "_session",
        "_socket",
        "_spent_s",
        "_tenant_id",
    )

    def __init__(
        self,
        socket: DeviceSocket,
        device: Device,
        pushes: Pushes,
        reads: Reads,
        *,
        connections: Connections,
        admission: Admission,
        loop: LoopCharges,
        operations: Operations,
        asked_at_s: float,
    ) -> None:
        session = socket.session
        self._socket = socket
        self._session = session
        self._device = device
        self._pushes = pushes
        self._backoff = pushes.backoff
        self._reads = reads
        self._connections = connections
        self._admission = admission
        self._loop = loop
        self._operations = operations
        self._asked_at_s = asked_at_s
        self._decode = session.codec.decode
        self._tenant_id = session.tenant.tenant_id
        self._malformed = 0
        self._rate_ignored = 0
        #: The type of the latest message; None if it could not be decoded.
        self._kind: type[msgspec.Struct] | None = None
        #: The loop's shares know until then that the tenant is active, on the monotonic clock.
        self._noted_until_s = 0.0
        #: The handling of a large message, None between two, and the seconds that it took so far.
        self._large: Steps | None = None
        self._large_bytes = 0
        self._spent_s = 0.0

    def end(self) -> None:
        """Release everything."""
        self._socket.end()
        self._reads.end()
        if self._large is not None:
            self._large.close()  # it waits for turns, and would keep the message until they come
            self._large_is_over()  # without a turn its own end never runs

    # -- as the pacer of frames ---------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """True if few enough requests are unanswered, and the device reads its answers.

        At the end everything is read that the device sent.
        """
        socket = self._socket
        return self._large is None and (
            socket.closing
            or (
                self._pushes.in_flight < MAX_IN_FLIGHT
                and self._reads.count < MAX_READS
                and not socket.outbox.full
            )
        )

    @property
    def yields(self) -> bool:
        """True if others of its tenant wait for a turn of the loop."""
        return self._loop.scheduler.waits(self._tenant_id)

    def slot(self, work: Callable[[], None]) -> Slot:
        """Schedule ``work`` for a turn of its own."""
        return self._loop.scheduler.take(self._tenant_id, self._device, work)

    def charge(self, spent_s: float, now_s: float) -> float:
        """Charge work on frames. Returns more than 0 if the next read has to wait for a turn."""
        if spent_s > EXPENSIVE_S:  # the last of several frames: all others together took less than a turn
            self._device.bucket.charge(now_s - self._socket.frames.began_s)
        return self._loop.charge(self._device, _kind_of(self._kind), spent_s, now_s)

    def count_fragments(self) -> None:
        """Count frames that ended no message as one message."""
        self._count(self._socket.frames.began_s)

    # -- as the owner of the socket -----------------------------------------------------------

    def on_message(self, frame: bytes, now_s: float) -> None:
        """Handle a message; its answer follows at once or when it is done."""
        size_bytes = len(frame)
        if now_s >= self._noted_until_s:
            self._noted_until_s = now_s + NOTED_S
            self._loop.shares.note_active(self._tenant_id, now_s)
        verdict = self._admission.admit("message", self._tenant_id, self._device, now_s)
        if size_bytes >= COUNTED_BYTES:
            self._device.bucket.weigh(size_bytes)
        limited: RateLimited | None = None
        if verdict is not ACCEPT or now_s < self._backoff.until_s:
            if self._refused_undecoded(frame, now_s, verdict):
                return
            limited = verdict if isinstance(verdict, RateLimited) else None
        if size_bytes >= LARGE_BYTES:
            if self._socket.on_partial(0, size_bytes):
                self._large, self._large_bytes = self._handle_in_steps(frame, limited), size_bytes
                self._loop.scheduler.handle(self._tenant_id, self._large, self._step_done)
            else:
                self._socket.on_partial(size_bytes, 0)
            return
        request_id: str | None = None
        self._kind = None
        try:
            request = self._decode(frame)
            self._kind = type(request)
            self._malformed = 0
            if type(request) is Sync and limited is None:
                self._rate_ignored = 0
                request_id = request.id
                self._pushes.push(request)
                return
            if not isinstance(request, Hello):
                request_id = request.id
            if limited is not None:
                self._limit(limited, request_id)
                return
            self._rate_ignored = 0
            self._other(request)
        except Exception as error:
            self._refuse(error, request_id, limited)

    def on_ping(self, payload: bytes, now_s: float) -> None:
        """Answer a ping, within the rate at which the device may send messages."""
        if self._count(now_s):
            self._socket.pong(payload)

    def on_pong(self, now_s: float) -> None:
        """Count a pong as a message."""
        self._count(now_s)

    def on_writable(self) -> None:
        """Let subscriptions go on that waited for room."""
        self._reads.resume()

    def charge_answer(self, spent_s: float, now_s: float) -> None:
        """Charge work on a large answer."""
        self._loop.charge(self._device, "answer", spent_s, now_s)

    # -- large messages -----------------------------------------------------------------------

    def _handle_in_steps(self, frame: bytes, limited: RateLimited | None) -> Steps:
        """Handle a large message in steps; nothing after it is read until it is done."""
        request_id: str | None = None
        try:
            if self._socket.ignoring:
                return
            self._kind = None
            request = yield from self._session.codec.decode_steps(frame)
            self._malformed = 0
            if not isinstance(request, Hello):
                request_id = request.id
            if limited is not None:
                self._limit(limited, request_id)
                return
            self._rate_ignored = 0
            yield
            self._kind = type(request)
            if isinstance(request, Sync):
                yield from self._pushes.push_in_steps(request)
            else:
                self._other(request)
        except Exception as error:
            self._refuse(error, request_id, limited)
        finally:
            self._large_is_over()

    def _large_is_over(self) -> None:
        """Read on, and stop counting the message."""
        self._large = None
        size_bytes, self._large_bytes = self._large_bytes, 0
        self._socket.on_partial(size_bytes, 0)

    def _step_done(self, spent_s: float, now_s: float) -> None:
        self._spent_s += spent_s
        self._loop.charge(self._device, _kind_of(self._kind), spent_s, now_s)
        if self._large is None:
            self._device.bucket.charge(self._spent_s)
            self._spent_s = 0.0
            self._socket.frames.go_on()

    # -- rates and refusals -------------------------------------------------------------------

    def _count(self, now_s: float) -> bool:
        """Count something as a message. Returns False past the rate, which soon ends the connection."""
        if (
            self._socket.closing
            or self._admission.admit("control", self._tenant_id, self._device, now_s) is ACCEPT
        ):
            return True
        self._rate_is_ignored()
        return False

    def _refused_undecoded(self, frame: bytes, now_s: float, verdict: Verdict) -> bool:
        """Refuse a message without decoding it. Returns False if it has to be decoded."""
        limited = verdict if isinstance(verdict, RateLimited) else None
        head = self._session.codec.peek(frame)
        if head is None:
            if limited is None or len(frame) <= MAX_SECOND_LOOK_BYTES:
                return False
            self._limit(limited, None)
            return True
        kind, request_id = head
        is_push = kind in ("sync", "resolve")
        if limited is not None:
            if is_push:
                limited = RateLimited(self._backoff.extend(now_s, limited.wait_ms, "rate_limited"))
            self._limit(limited, request_id)
            return True
        if not is_push:
            return False
        if isinstance(verdict, Overloaded):
            self._backoff.begin(now_s, verdict.wait_ms, "overloaded")
        self._admission.count_refusal("queue" if isinstance(verdict, Overloaded) else "behind_refused")
        refusal = self._backoff.refusal(now_s)
        if kind == "sync":
            self._pushes.count_refused(refusal.code)
        self._connections.refuse_soon(self._socket, refusal, request_id)
        return True

    def _limit(self, limited: RateLimited, request_id: str | None) -> None:
        if not self._rate_is_ignored():
            self._socket.fail(limited.error(), request_id)

    def _rate_is_ignored(self) -> bool:
        """Count an ignored refusal; close the connection after too many. Returns True if it is closed."""
        if self._rate_ignored == 0:
            self._connections.note_limited(self._session)
        self._rate_ignored += 1
        if self._rate_ignored <= MAX_RATE_IGNORED:
            return False
        self._socket.close(CloseCode.RATE_IGNORED, "the rate limit was ignored")
        return True

    def _refuse(self, error: Exception, request_id: str | None, limited: RateLimited | None) -> None:
        session = self._session
        told = as_sync_error(error, tenant=session.tenant.name, device_id=session.device_id)
        own_id = told.details.pop("id", request_id)
        request_id = own_id if isinstance(own_id, str) else None
        if isinstance(told, MalformedError):
            self._socket.fail(told, None)
            self._malformed += 1
            if self._malformed >= MAX_MALFORMED:
                self._socket.close(CloseCode.BAD_FRAMES, "too many malformed messages in a row")
            return
        self._malformed = 0
        if limited is not None:
            self._limit(limited, request_id)
            return
        if self._kind is Sync:
            self._pushes.count_refused(told.code)
        self._socket.fail(told, request_id)

    # -- other messages -----------------------------------------------------------------------

    def _other(self, request: Request) -> None:
        match request:
            case Hello():
                self._hello(request)
            case Heartbeat():
                self._set_clock(request)
                self._socket.say(self._operations.heartbeat(self._device, request, request.id))
            case Pull():
                self._reads.pull(request)
            case Subscribe():
                self._reads.subscribe(request)
            case Unsubscribe():
                self._reads.unsubscribe(request)
            case Conflicts():
                self._reads.conflicts(request)
            case Resolve():
                self._reads.resolve(request)
            case Telemetry():
                self._reads.telemetry(request)

    def _hello(self, request: Hello) -> None:
        self._device.introduce(
            network_type=None, app_version=request.app_version, os_version=request.os_version
        )
        self._set_clock(request)

    def _set_clock(self, request: Hello | Heartbeat) -> None:
        """Learn the device's clock, read after the upgrade and after the ``server_time`` beside it."""
        if request.clock is None:
            return
        clock = self._loop.clock
        now_us = clock.now_us()
        delay_us = math.ceil((clock.monotonic_s() - self._asked_at_s) * 1_000_000)
        if request.server_time is not None:
            told_us = to_us(request.server_time)
            if told_us <= now_us:
                delay_us = min(delay_us, now_us - told_us)
        set_device_clock(self._device, self._session, request.clock, now_us, delay_us)


def _kind_of(kind: type[msgspec.Struct] | None) -> str:
    return "malformed" if kind is None else str(kind.__struct_config__.tag)
