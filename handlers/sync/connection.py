"""One device's connection: what its messages mean, and their answers.

A ``sync`` goes from its frame to the committer without a task or a future, and its answer comes back as a
call.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from engine.commit.lane import unavailable
from engine.commit.overload import overloaded
from engine.commit.validation import Session
from engine.feed.pages import with_id
from engine.plan.work import Outcome, Push, PushAnswer, ResolveAnswer
from engine.runtime.loop_turns import LARGE_BYTES, Steps, Turn
from engine.runtime.rate_limit import COUNTED_BYTES, LABORIOUS_S
from engine.runtime.read_limiter import Reader
from engine.wire.codec import MalformedError
from engine.wire.errors import SyncError
from engine.wire.messages import (
    Conflicts,
    Heartbeat,
    Hello,
    Pull,
    Request,
    Resolve,
    Subscribe,
    Sync,
    Unsubscribe,
    Unsubscribed,
)
from engine.wire.timestamps import to_us
from handlers.http.context import Core
from handlers.http.errors import as_sync_error, error_body
from handlers.sync.connections import Connections
from handlers.sync.device_socket import CLOSE_BAD_FRAMES, Line, Work
from handlers.sync.frames import Frames
from handlers.sync.operations import (
    READS_YIELD_S,
    charge_planning,
    count_answer,
    count_error,
    heartbeat,
    list_conflicts,
    resolution,
    take_share,
    tell_clock,
)
from handlers.sync.subscription_sink import Live

CLOSE_RATE_IGNORED: Final = 4429

#: Malformed messages in a row that end a connection.
MAX_MALFORMED: Final = 10
#: Messages in a row sent in spite of ``rate_limited`` that end a connection.
MAX_RATE_IGNORED: Final = 100
#: Of what comes in spite of ``rate_limited``, what is longer and hides its id is refused without it.
MAX_SECOND_LOOK_BYTES: Final = 1024
MAX_SUBSCRIPTIONS: Final = 32
#: How long a push that found the database away, and may come again, goes before all others.
_TURN_S: Final = 2.0
#: Answers that one connection may wait for; beyond them it is not read from.
MAX_IN_FLIGHT: Final = 256
#: Reads of the store that one connection may wait for.
MAX_READS: Final = 4
#: How often it is told that the tenant speaks; whether others want the loop is asked for a second.
NOTED_S: Final = 0.1

_encode = msgspec.json.encode


class Connection(Line):
    """A device's connection."""

    __slots__ = (
        "_asked_at_s",
        "_behind_key",
        "_decode",
        "_device",
        "_held_off_by",
        "_held_off_until_s",
        "_in_flight",
        "_kind",
        "_large",
        "_live",
        "_malformed",
        "_noted_until_s",
        "_rate_ignored",
        "_reads",
        "_spent_s",
    )

    def __init__(
        self,
        core: Core,
        connections: Connections,
        session: Session,
        frames: Frames,
        transport: asyncio.Transport,
        asked_at_s: float,
    ) -> None:
        super().__init__(core, connections, session, frames, transport)
        #: When the handshake came, on the monotonic clock: nothing on this connection was sent before.
        self._asked_at_s = asked_at_s
        self._decode = session.codec.decode
        self._device = core.devices.seen(*self.key, self.heard_at_s)
        self._live: dict[str, Live] = {}
        self._in_flight = 0
        self._reads = 0
        self._malformed = 0
        self._rate_ignored = 0
        #: Of the latest message, None if it is no message.
        self._kind: type[msgspec.Struct] | None = None
        #: Until when it need not be told that the tenant speaks, on the monotonic clock.
        self._noted_until_s = 0.0
        #: Whether a large message is being handled, and the seconds that it took so far.
        self._large = False
        self._spent_s = 0.0
        self._held_off_by = "overloaded"
        #: Of the first push that found the database away and has not come again.
        self._behind_key: str | None = None
        self._held_off_until_s = 0.0

    @property
    def has_room(self) -> bool:
        """Whether not too much of what was asked is unanswered or not taken yet."""
        return not self._large and (
            self._closing
            or (self._in_flight < MAX_IN_FLIGHT and self._reads < MAX_READS and not self._outbox.full)
        )

    def room(self) -> None:
        """Go on reading and let the subscriptions go on that had to wait."""
        super().room()
        for live in list(self._live.values()):
            live.resume()

    def end(self) -> None:
        """Let everything go."""
        super().end()
        for live in self._live.values():
            live.end()

    def hear(self, frame: bytes, now_s: float) -> None:
        """Take in a message and answer it, now or when it is done."""
        core = self._core
        size_bytes = len(frame)
        core.traffic.messages_in += 1
        core.traffic.bytes_in += size_bytes
        if now_s >= self._noted_until_s:
            self._noted_until_s = now_s + NOTED_S
            core.shares.heard(self.key[0], now_s)
        wait_ms = self._wait_ms(now_s)
        if size_bytes >= COUNTED_BYTES:
            self._device.bucket.weigh(size_bytes)
        if (
            wait_ms or now_s < self._held_off_until_s or core.committer.sheds(self.key[0])
        ) and self._turned_away(frame, now_s, wait_ms):
            return
        if size_bytes >= LARGE_BYTES:
            self._large = True
            core.turns.handle(self.key[0], self._handled(frame, wait_ms), self._step_done)
            return
        request_id: str | None = None
        self._kind = None
        try:
            request = self._decode(frame)
            self._kind = type(request)
            self._malformed = 0
            if type(request) is Sync and not wait_ms:
                self._rate_ignored = 0
                request_id = request.id
                self._sync(request)
                return
            if not isinstance(request, Hello):
                request_id = request.id
            if wait_ms:
                self._limit(wait_ms, request_id)
                return
            self._rate_ignored = 0
            self._other(request)
        except Exception as error:
            self._refuse(error, request_id, wait_ms)

    def _handled(self, frame: bytes, wait_ms: int) -> Steps:
        """Handle a large message in steps; nothing behind it is read until it is done."""
        request_id: str | None = None
        try:
            if self._deaf:
                return
            self._kind = None
            request = yield from self._session.codec.decoding(frame)
            self._malformed = 0
            if not isinstance(request, Hello):
                request_id = request.id
            if wait_ms:
                self._limit(wait_ms, request_id)
                return
            self._rate_ignored = 0
            yield
            self._kind = type(request)
            if isinstance(request, Sync):
                yield from self._sync_in_steps(request)
            else:
                self._other(request)
        except Exception as error:
            self._refuse(error, request_id, wait_ms)
        finally:
            self._large = False

    def _step_done(self, spent_s: float, now_s: float) -> None:
        self._spent_s += spent_s
        take_share(self._core, self._device, _kind_of(self._kind), spent_s, now_s)
        if not self._large:
            self._device.bucket.charge(self._spent_s)
            self._spent_s = 0.0
            self._frames.go_on()

    def _wait_ms(self, now_s: float) -> int:
        """Return 0, or how long the device or its tenant is to wait before it sends more."""
        core = self._core
        wait_ms = self._device.bucket.take(core.limits.messages_per_minute, now_s)
        return wait_ms or core.tenant_rates.take(self.key[0], self._device.bucket, now_s)

    def pinged(self, payload: bytes, now_s: float) -> None:
        """Answer a ping, within the rate at which the device may send messages."""
        if self.counted(now_s):
            self._outbox.pong(payload)

    def counted(self, now_s: float) -> bool:
        """Count what is no message for one; False if it is past the rate, which ends the connection soon."""
        if self._closing or not self._wait_ms(now_s):
            return True
        self._rate_is_ignored()
        return False

    def turn(self, work: Callable[[], None]) -> Turn:
        """Have ``work`` called in a turn of its own."""
        return self._core.turns.take(self.key[0], self._device, work)

    def worked(self, spent_s: float, now_s: float) -> float:
        """Charge work; more than 0 if the socket is not to be read from but in a turn."""
        if spent_s > LABORIOUS_S:  # of several frames the last: all before it took less than a turn
            self._device.bucket.charge(now_s - self._frames.began_s)
        return take_share(self._core, self._device, _kind_of(self._kind), spent_s, now_s)

    def _turned_away(self, frame: bytes, now_s: float, wait_ms: int) -> bool:
        """Refuse what is too much without decoding it.

        After a refused push those behind it are refused, too, until the device was to come back: the later
        changes of a device build on its earlier ones.
        """
        head = self._session.codec.glance(frame)
        if head is None:
            if not wait_ms or len(frame) <= MAX_SECOND_LOOK_BYTES:
                return False
            self._limit(wait_ms, None)
            return True
        kind, request_id = head
        pushes = kind in ("sync", "resolve")
        if wait_ms:
            self._limit(self._hold_off(now_s, wait_ms, "rate_limited") if pushes else wait_ms, request_id)
            return True
        if not pushes:
            return False
        wait_ms = self._hold_off(now_s)
        error = _REFUSALS[self._held_off_by](wait_ms)
        self._core.traffic.error(error.code)
        self._connections.refuse_soon(self, error_body(error, request_id))
        return True

    def _hold_off(self, now_s: float, wait_ms: int = 0, code: str = "overloaded") -> int:
        """Take no more pushes for a while, ``wait_ms`` where that is given; return its milliseconds."""
        if now_s >= self._held_off_until_s:
            self._held_off_by = code
            self._held_off_until_s = now_s + (wait_ms or self._core.committer.retry_after_ms()) / 1000
        elif wait_ms:
            self._held_off_until_s = max(self._held_off_until_s, now_s + wait_ms / 1000)
        return math.ceil((self._held_off_until_s - now_s) * 1000)

    def _limit(self, wait_ms: int, request_id: str | None) -> None:
        if not self._rate_is_ignored():
            self.fail(_rate_limited(wait_ms), request_id)

    def _rate_is_ignored(self) -> bool:
        """Count it, and close on who sends on and on."""
        self._rate_ignored += 1
        if self._rate_ignored <= MAX_RATE_IGNORED:
            return False
        self.close(CLOSE_RATE_IGNORED, "the rate limit was ignored")
        return True

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
        core = self._core
        request_id = self._sync_id(request)
        now_us = core.clock.now_us()
        try:
            push = core.intake.push(request, self._session, now_us)
        except SyncError as error:
            count_error(core, self._device, error, now_us)
            raise
        self._submit(push, request_id, request.key, now_us)

    def _sync_in_steps(self, request: Sync) -> Steps:
        core = self._core
        request_id = self._sync_id(request)
        now_us = core.clock.now_us()
        try:
            push = yield from core.intake.pushing(request, self._session, now_us)
        except SyncError as error:
            count_error(core, self._device, error, now_us)
            raise
        self._submit(push, request_id, request.key, now_us)

    def _sync_id(self, request: Sync) -> str:
        if request.id is None:
            raise SyncError("invalid_message", "id: required on a socket")
        if self._behind_key is not None:
            self._see_whose_turn_it_is(request.key)
        return request.id

    def _submit(self, push: Push, request_id: str, key: str, now_us: int) -> None:
        core = self._core
        try:
            core.committer.submit(push, partial(self._answer, request_id, key, now_us), self._charge)
        except SyncError:
            raise overloaded(self._hold_off(core.clock.monotonic_s())) from None
        self._in_flight += 1

    def _charge(self, spent_s: float) -> None:
        charge_planning(self._core, self._device, spent_s)

    def _see_whose_turn_it_is(self, key: str) -> None:
        """Let what was refused come first, for a while. Raises SyncError ``unavailable``."""
        left_s = self._held_off_until_s + _TURN_S - self._core.clock.monotonic_s()
        if key != self._behind_key and left_s > 0:
            raise unavailable(math.ceil(left_s * 1000))
        self._behind_key = None

    def _answer(self, request_id: str, key: str, started_us: int, outcome: Outcome) -> None:
        self._in_flight -= 1
        self._frames.go_on()
        if isinstance(outcome, PushAnswer):
            self.say(outcome.frame(request_id))
            if not outcome.replayed:
                self._session.retries_over = True
            count_answer(self._core, self._device, outcome, started_us)
        elif isinstance(outcome, SyncError):
            count_error(self._core, self._device, outcome, started_us)
            if outcome.code == "unavailable" and self._behind_key is None:
                self._behind_key = key
            self._put_off(outcome, request_id)

    def _other(self, request: Request) -> None:
        match request:
            case Hello():
                self._hello(request)
            case Heartbeat():
                self._hear_clock(request)
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
        self._hear_clock(request)

    def _hear_clock(self, request: Hello | Heartbeat) -> None:
        """Learn from a ``clock``: it was read after the upgrade, and after the ``server_time`` beside it."""
        if request.clock is None:
            return
        clock = self._core.clock
        now_us = clock.now_us()
        way_us = math.ceil((clock.monotonic_s() - self._asked_at_s) * 1_000_000)
        if request.server_time is not None:
            told_us = to_us(request.server_time)
            if told_us <= now_us:
                way_us = min(way_us, now_us - told_us)
        tell_clock(self._device, self._session, request.clock, now_us, way_us)

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
            self._frames.go_on()

    async def _pull(self, request: Pull) -> None:
        await self._core.committer.lull(self.key[0], READS_YIELD_S)
        body = await self._core.feed.pull(Reader(*self.key), request.cursor, request.domains, request.limit)
        await self._answered(with_id(body, request.id))

    async def _answered(self, body: bytes) -> None:
        """Send what was read; what is large is encoded in steps, where it has to be."""
        codec = self._session.codec
        if not codec.binary or len(body) < LARGE_BYTES:
            self.say(body)
            return
        encoded = await self._core.turns.handled(self.key[0], codec.encoding(body), self.took)
        self._outbox.put(encoded)

    def took(self, spent_s: float, now_s: float) -> None:
        """Charge work on what is said."""
        take_share(self._core, self._device, "answer", spent_s, now_s)

    def _subscribe(self, request: Subscribe) -> None:
        if request.id in self._live:
            raise SyncError("invalid_message", "id: a subscription of this id is open")
        if len(self._live) >= MAX_SUBSCRIPTIONS:
            raise SyncError("too_large", f"subscriptions: the limit is {MAX_SUBSCRIPTIONS}")
        live = self._live[request.id] = Live(self, request)
        self._begin(request.id, partial(self._open, live))

    async def _open(self, live: Live) -> None:
        try:
            await self._core.committer.lull(self.key[0], READS_YIELD_S)
            await live.open(self._core.feed, Reader(*self.key), self._session.session_id)
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
        await self._core.committer.lull(self.key[0], READS_YIELD_S)
        await self._answered(await list_conflicts(self._core, self._session, request, request.id))

    async def _resolve(self, request: Resolve) -> None:
        job = await resolution(self._core, self._session, self._device, request)
        self._core.committer.submit(job, partial(self._settled, request.id), self._charge)
        self._in_flight += 1

    def _settled(self, request_id: str, outcome: Outcome) -> None:
        self._in_flight -= 1
        self._frames.go_on()
        if isinstance(outcome, ResolveAnswer):
            self.say(outcome.frame(request_id))
        elif isinstance(outcome, SyncError):
            self._put_off(outcome, request_id)

    def _put_off(self, error: SyncError, request_id: str) -> None:
        """Refuse a push that was taken in; what the device sent behind it must not overtake it."""
        wait_ms = error.details.get("retry_after_ms")
        now_s = self._core.clock.monotonic_s()
        if error.code == "unavailable" and isinstance(wait_ms, int) and now_s >= self._held_off_until_s:
            self._hold_off(now_s, wait_ms, "unavailable")
        self.fail(error, request_id)


def _kind_of(kind: type[msgspec.Struct] | None) -> str:
    return "malformed" if kind is None else str(kind.__struct_config__.tag)


def _rate_limited(wait_ms: int) -> SyncError:
    return SyncError("rate_limited", "too many messages", retry_after_ms=wait_ms)


#: What a push was refused with, and what is behind it, too.
_REFUSALS: Final = {"overloaded": overloaded, "rate_limited": _rate_limited, "unavailable": unavailable}
