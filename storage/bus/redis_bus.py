"""The bus over Redis pub/sub (``engine.cluster.bus.Bus``).

Two connections: one is subscribed, one publishes. While a message is being sent, news is collected; it
travels in one message afterwards. Every message also comes back to its sender. This echo proves that both
connections and the subscription work: a connection whose other end vanished shows no other sign.

A process that hears no other process tells of commits only with its next ping. A message costs 0.3 ms, there
and back; one for each batch would take a tenth of the process's time. A process that comes is told at once.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final

import anyio
import structlog
from redis.asyncio.client import PubSub
from redis.exceptions import InvalidResponse, RedisError

from engine.cluster.bus import BusListener, BusState
from engine.model.rows import Record
from engine.runtime.backoff import Backoff
from engine.runtime.ports import StoreError
from storage.bus.bus_messages import (
    IDENTITY,
    REQUIRE_SIGNATURES,
    BusMessage,
    Connected,
    RequestedUpload,
    UnusableUrlError,
    channel_of,
    decode,
    encode,
)
from storage.bus.nodes import Nodes, Route
from storage.bus.signing import MAX_CLOCK_SKEW_S, signed, unsigned
from storage.postgres.pool import Database

#: A message is sent at least this often, so that its echo proves that the bus works.
PING_S: Final = 1.0
#: The longest wait for a connection, for an answer and for the echo of a message.
TIMEOUT_S: Final = 3.0
#: A process that heard no other process for this long is alone: each sends a message every ``PING_S``.
OTHERS_HEARD_WITHIN_S: Final = 5.0
#: Pauses between tries to join the bus.
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
#: Bounds of what waits to be told: tenants whose feeds advanced, and connections of devices.
_MAX_TENANTS: Final = 10_000
_MAX_CONNECTIONS: Final = 10_000

#: Errors that mean that a connection broke: of the driver and the system, of uvloop if the transport is
#: closed already (RuntimeError), and of a host's name or a certificate that is invalid (ValueError).
_BROKEN: Final = (RedisError, OSError, RuntimeError, ValueError)

#: All processes sign once no message without a signature came for this long: each sends one every ``PING_S``.
ALL_SIGNED_FOR_S: Final = 60.0
_MAX_CLOCK_SKEW_US: Final = MAX_CLOCK_SKEW_S * 1_000_000

_log = structlog.get_logger()


class _BrokenError(Exception):
    """The bus failed and has to be joined again."""


class EpochChangedError(ConnectionError):
    """The database has another epoch, so its channel has another name."""


class RedisBus:
    """One process's end of the bus.

    Args:
        url: The URL of a Redis or of a cluster.
        database: The database that the processes share.
        epoch: Returns the database's current epoch.
        on_rejected: Is told why a message was not believed.

    Raises:
        UnusableUrlError: The URL has another form.
    """

    def __init__(
        self,
        url: str,
        database: Database,
        epoch: Callable[[], str],
        on_rejected: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.state = BusState()
        self._on_rejected = on_rejected
        self._database = database
        self._epoch = epoch
        try:
            self._nodes = Nodes(url)
        except ValueError as error:
            raise UnusableUrlError(str(error)) from None
        self._name = ""
        self._key = b""
        #: Monotonic times: messages without a signature are accepted until the first, and none came since
        #: the second.
        self._unsigned_until_s = 0.0
        self._all_signed_since_s = math.inf
        self._sender = uuid.uuid4().hex
        self._number = 0
        self._open = False
        #: The monotonic time until which other processes are assumed to listen.
        self._others_until_s = 0.0
        self._loss_logged = False
        self._lost = False
        self._feed_seqs: dict[int, int] = {}
        self._connected: dict[tuple[int, str], Connected] = {}
        #: The latest connections, which are told again to a process that rejoined.
        self._recent_connections: dict[tuple[int, str], Connected] = {}
        #: Not told again after a loss: the request that waits steals the lock after a short while.
        self._requested_uploads: list[RequestedUpload] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        #: Number and monotonic time of each message whose echo has not come yet.
        self._in_flight: deque[tuple[int, float]] = deque()

    # -- what this process tells --------------------------------------------------------------

    def committed(self, changes: list[tuple[Record, str]]) -> None:
        """Tell that changes are in the feeds of their tenants."""
        if not changes:
            return
        if not self._open:
            self._lost = True
            return
        feed_seqs = self._feed_seqs
        for record, _ in changes:
            if feed_seqs.get(record.tenant_id, 0) < record.seq:
                feed_seqs[record.tenant_id] = record.seq
        if len(feed_seqs) > _MAX_TENANTS:
            feed_seqs.clear()
            self._lost = True
        if time.monotonic() < self._others_until_s:
            self._publish_soon()

    def device_connected(self, tenant_id: int, device_id: str, session_id: str, at_us: int) -> None:
        """Tell that a device uses a connection to this process."""
        latest = Connected(tenant_id, device_id, session_id, at_us)
        for kept in (self._connected, self._recent_connections):
            kept.pop((tenant_id, device_id), None)
            if len(kept) >= _MAX_CONNECTIONS:
                del kept[next(iter(kept))]
            kept[tenant_id, device_id] = latest
        self._publish_soon()

    def upload_requested(self, tenant_id: int, upload_id: str, lock_owner: str) -> None:
        """Ask the request that has an upload's lock to release it."""
        if self._open:
            self._requested_uploads.append(RequestedUpload(tenant_id, upload_id, lock_owner))
            self._publish_soon()

    def _publish_soon(self) -> None:
        if self._open:
            self._idle.clear()
            self._wake.set()

    # -- the connections ----------------------------------------------------------------------

    async def run(self, listener: BusListener) -> None:
        """Stay on the bus until cancelled."""
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            try:
                await self._connect_and_run(listener)
            except _BrokenError as error:
                self.state.connecting = False
                if self.state.up:
                    backoff.reset()
                    self.state.up = False
                    self.state.losses += 1
                    listener.resync()
                if not self._loss_logged:
                    _log.warning("bus_lost", reason=str(error))
                    self._loss_logged = True
            await backoff.pause()

    async def drain(self) -> None:
        """Wait until everything was told, unless the bus is away."""
        await self._idle.wait()

    async def _connect_and_run(self, listener: BusListener) -> None:
        """Join the bus and stay on it while it works. Raises _BrokenError."""
        broken: BaseExceptionGroup[Exception] | None = None
        try:
            if not self._name:
                ((self._name, _, key, unsigned_s),) = await self._database.query(IDENTITY)
                self._key = bytes(key)
                self._unsigned_until_s = time.monotonic() + unsigned_s
            epoch = self._epoch()
            channel = channel_of(self._name, epoch, self._database.schema)
            ping = self._encoded(BusMessage(self._sender, _now_us()), channel)
            route = await self._nodes.route(channel, ping, TIMEOUT_S)
            await self._run_route(route, channel, epoch, listener)
        except* (*_BROKEN, StoreError, TimeoutError) as errors:
            broken = errors
        if broken is not None:
            first = _first(broken)
            raise _BrokenError(": ".join(filter(None, (type(first).__name__, " ".join(str(first).split())))))

    async def _run_route(self, route: Route, channel: str, epoch: str, listener: BusListener) -> None:
        subscription = route.client.pubsub()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await route.subscribe(subscription, channel)
            self._open = True
            self._others_until_s = time.monotonic() + OTHERS_HEARD_WITHIN_S
            self._in_flight.clear()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(subscription, channel, listener))
                group.create_task(self._publish_until_broken(route, channel, epoch))
        finally:
            self._open = False
            self._lost |= bool(self._feed_seqs)
            self._feed_seqs.clear()
            self._requested_uploads.clear()
            self._idle.set()
            with anyio.CancelScope(shield=True), suppress(*_BROKEN):
                await subscription.aclose()  # type: ignore[no-untyped-call]
                await route.client.connection_pool.disconnect()

    async def _publish_until_broken(self, route: Route, channel: str, epoch: str) -> None:
        rejoined = bool(self._recent_connections)
        while True:
            self._wake.clear()
            if self._epoch() != epoch:
                raise EpochChangedError
            await self._publish(route, channel, rejoined=rejoined)
            rejoined = False
            await self._require_signatures_if_all_sign()
            if not self._wake.is_set():
                self._idle.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(PING_S):
                        await self._wake.wait()
            if self._in_flight and time.monotonic() - self._in_flight[0][1] > TIMEOUT_S:
                raise TimeoutError

    async def _publish(self, route: Route, channel: str, *, rejoined: bool) -> None:
        feed_seqs, connected, lost = self._feed_seqs, self._connected, self._lost
        requested_uploads = self._requested_uploads
        self._feed_seqs, self._connected, self._lost, self._requested_uploads = {}, {}, False, []
        self._number += 1
        self._in_flight.append((self._number, time.monotonic()))
        message = BusMessage(
            self._sender,
            _now_us(),
            self._number,
            lost=lost,
            rejoined=rejoined,
            feed_seqs=feed_seqs,
            connected=list(connected.values()),
            requested_uploads=requested_uploads,
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await route.publish(channel, self._encoded(message, channel))
        except BaseException:
            self._lost |= lost or bool(feed_seqs)
            self._connected = connected | self._connected
            raise
        self.state.published += 1

    def _encoded(self, message: BusMessage, channel: str) -> bytes:
        return signed(encode(message), self._key, channel)

    async def _require_signatures_if_all_sign(self) -> None:
        """Accept no messages without a signature once none came for ``ALL_SIGNED_FOR_S``. Raises StoreError.

        A process of a version that does not sign sends a message every second.
        """
        now_s = time.monotonic()
        if now_s < self._unsigned_until_s and now_s - self._all_signed_since_s >= ALL_SIGNED_FOR_S:
            await self._database.query(REQUIRE_SIGNATURES)
            self._unsigned_until_s = now_s

    def _verified(self, signed_body: object, channel: str) -> BusMessage | None:
        """Read a message. Returns None if it is malformed, or its signature or time is wrong."""
        if not isinstance(signed_body, bytes):
            self.state.malformed += 1
            return None
        body, signature = unsigned(signed_body, self._key, channel)
        now_s, now_us = time.monotonic(), _now_us()
        may_be_unsigned = signature == "none" and now_s < self._unsigned_until_s
        if signature != "right" and not may_be_unsigned:
            self._reject("signature")
            return None
        message = decode(body)
        if message is None:
            self.state.malformed += 1
        elif may_be_unsigned:
            self._all_signed_since_s = now_s
        elif abs(now_us - message.at_us) > _MAX_CLOCK_SKEW_US:
            self._reject("time")
            return None
        if message is not None and any(one.at_us > now_us + _MAX_CLOCK_SKEW_US for one in message.connected):
            self._reject("time of a connection")
            return None
        return message

    def _reject(self, reason: str) -> None:
        self.state.rejected += 1
        self._on_rejected(reason)
        if self.state.rejected == 1:
            _log.warning("bus_message_rejected", reason=reason)

    async def _listen(self, subscription: PubSub, channel: str, listener: BusListener) -> None:
        async for received in _messages(subscription):
            if received["type"] not in ("message", "smessage"):
                continue
            self.state.received += 1
            message = self._verified(received["data"], channel)
            if message is None:
                continue
            if message.sender == self._sender:
                self._note_echo(message.number, listener)
            else:
                if message.sender:  # a command does not listen
                    self._note_other_process()
                if message.rejoined:
                    self._connected = dict(self._recent_connections)
                    self._publish_soon()
                _dispatch(message, listener)

    def _note_other_process(self) -> None:
        """Note that another process listens, and tell at once what waited for the ping."""
        now_s = time.monotonic()
        if now_s >= self._others_until_s and (self._feed_seqs or self._lost):
            self._publish_soon()
        self._others_until_s = now_s + OTHERS_HEARD_WITHIN_S

    def _note_echo(self, number: int, listener: BusListener) -> None:
        """Note that the message ``number`` of this process came back."""
        while self._in_flight and self._in_flight[0][0] <= number:
            _, sent_at_s = self._in_flight.popleft()
            self.state.round_trip_s = time.monotonic() - sent_at_s
        if not self.state.up:
            self.state.up, self.state.connecting = True, False
            self._all_signed_since_s = time.monotonic()
            listener.resync()
            if self._loss_logged:
                _log.info("bus_back")
                self._loss_logged = False


async def _messages(subscription: PubSub) -> AsyncIterator[dict[str, Any]]:
    """Yield messages. The driver trusts the form of answers; its errors are raised as InvalidResponse."""
    try:
        async for message in subscription.listen():
            yield message
    except (LookupError, TypeError, ValueError) as error:
        raise InvalidResponse(str(error)) from None


def _now_us() -> int:
    return time.time_ns() // 1000


def _dispatch(message: BusMessage, listener: BusListener) -> None:
    if message.lost:
        listener.resync()
    if message.generation:
        listener.generation_moved()
    for tenant_id, seq in message.feed_seqs.items():
        listener.feed_advanced(tenant_id, seq)
    for connected in message.connected:
        listener.device_connected(*connected)
    for upload in message.requested_uploads:
        listener.upload_requested(*upload)


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error
