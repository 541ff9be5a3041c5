"""The bus over Redis pub/sub (``engine.cluster.bus.Bus``).

Two connections: one is subscribed, one publishes. What is to be told gathers while a message is under way
and then travels as one. Every message comes back to its sender, which proves that both connections and
the subscription still work: a connection whose other end is silently gone shows no other sign.

A process that hears no other tells of commits with its ping alone: a message costs it 0.3 ms, there and back,
and with one for each batch a tenth of its time. Nothing is kept from who comes: it is told at once.
"""

from __future__ import annotations

import asyncio
import math
import random
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
from engine.runtime.ports import StoreError
from storage.bus.bus_messages import (
    ALL_SIGN,
    IDENTITY,
    News,
    Opened,
    UnusableUrlError,
    Wanted,
    channel_of,
    decode,
    encode,
)
from storage.bus.nodes import Nodes, Way
from storage.bus.signing import BELIEVED_APART_S, signed, unsigned
from storage.postgres.pool import Database

#: How often a message is sent at least, for it to come back.
PING_S: Final = 1.0
#: How long a connection, an answer or one's own message is waited for.
PATIENCE_S: Final = 3.0
#: A process that heard no other for as long is alone: others are heard each ``PING_S``, or were away.
COMPANY_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
#: What may wait to be told or be told again: tenants whose feeds moved, and connections.
_MOVED_TENANTS: Final = 10_000
_OPENED: Final = 10_000

#: What a connection's end comes as: of the driver and the system, of uvloop for a transport that closed
#: meanwhile (RuntimeError), of a host's name or a certificate that is none (ValueError).
_BROKEN: Final = (RedisError, OSError, RuntimeError, ValueError)

#: Where no message without a signature came for as long, all processes sign.
QUIET_S: Final = 60.0
_BELIEVED_APART_US: Final = BELIEVED_APART_S * 1_000_000

_log = structlog.get_logger()


class _BrokenError(Exception):
    """The bus has to be opened again."""


class EpochChangedError(ConnectionError):
    """The channel has another name by now."""


class RedisBus:
    """One process's place on the bus. ``epoch`` gives that of the database by now.

    Raises UnusableUrlError.
    """

    def __init__(self, url: str, database: Database, epoch: Callable[[], str]) -> None:
        self.state = BusState()
        self._database = database
        self._epoch = epoch
        try:
            self._nodes = Nodes(url)
        except ValueError as error:
            raise UnusableUrlError(str(error)) from None
        self._name = ""
        self._key = b""
        #: Until when messages that are not signed are believed, and since when none came, monotonic.
        self._unsigned_until_s = 0.0
        self._all_signed_since_s = math.inf
        self._sender = uuid.uuid4().hex
        self._number = 0
        self._open = False
        #: Until when others are taken to listen, monotonic.
        self._company_until_s = 0.0
        self._complained = False
        self._lost = False
        self._moved: dict[int, int] = {}
        self._opened: dict[tuple[int, str], Opened] = {}
        #: The last ones that were told, for those who were away meanwhile.
        self._recent: dict[tuple[int, str], Opened] = {}
        #: Whoever waits for these does not wait for long: they are not told again.
        self._wanted: list[Wanted] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        #: Number and time of the messages that have not come back yet.
        self._under_way: deque[tuple[int, float]] = deque()

    # -- what this process has to tell --------------------------------------------------------

    def committed(self, changes: list[tuple[Record, str]]) -> None:
        """Tell that these changes are in the feeds of their tenants."""
        if not changes:
            return
        if not self._open:
            self._lost = True
            return
        moved = self._moved
        for record, _ in changes:
            if moved.get(record.tenant_id, 0) < record.seq:
                moved[record.tenant_id] = record.seq
        if len(moved) > _MOVED_TENANTS:
            moved.clear()
            self._lost = True
        if time.monotonic() < self._company_until_s:
            self._call()

    def opened(self, tenant_id: int, device_id: str, session_id: str, at_us: int) -> None:
        """Tell that a device is connected here."""
        latest = Opened(tenant_id, device_id, session_id, at_us)
        for kept in (self._opened, self._recent):
            kept.pop((tenant_id, device_id), None)
            if len(kept) >= _OPENED:
                del kept[next(iter(kept))]
            kept[tenant_id, device_id] = latest
        self._call()

    def wanted(self, tenant_id: int, upload_id: str, holder: str) -> None:
        """Ask the request that has an upload to give it back."""
        if self._open:
            self._wanted.append(Wanted(tenant_id, upload_id, holder))
            self._call()

    def _call(self) -> None:
        if self._open:
            self._idle.clear()
            self._wake.set()

    # -- its life -----------------------------------------------------------------------------

    async def run(self, listener: BusListener) -> None:
        """Stay on the bus until cancelled."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._stay(listener)
            except _BrokenError as error:
                self.state.connecting = False
                if self.state.up:
                    pause_s = _FIRST_PAUSE_S
                    self.state.up = False
                    self.state.losses += 1
                    listener.missed()
                if not self._complained:
                    _log.warning("bus_lost", reason=str(error))
                    self._complained = True
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def drain(self) -> None:
        """Wait until the others were told, unless the bus is away."""
        await self._idle.wait()

    async def _stay(self, listener: BusListener) -> None:
        """Be on the bus while it works. Raises _BrokenError."""
        broken: BaseExceptionGroup[Exception] | None = None
        try:
            if not self._name:
                ((self._name, _, key, unsigned_s),) = await self._database.query(IDENTITY)
                self._key = bytes(key)
                self._unsigned_until_s = time.monotonic() + unsigned_s
            epoch = self._epoch()
            channel = channel_of(self._name, epoch)
            greeting = self._encoded(News(self._sender, _now_us()), channel)
            way = await self._nodes.way(channel, greeting, PATIENCE_S)
            await self._use(way, channel, epoch, listener)
        except* (*_BROKEN, StoreError, TimeoutError) as errors:
            broken = errors
        if broken is not None:
            first = _first(broken)
            raise _BrokenError(": ".join(filter(None, (type(first).__name__, " ".join(str(first).split())))))

    async def _use(self, way: Way, channel: str, epoch: str, listener: BusListener) -> None:
        subscription = way.client.pubsub()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await way.subscribe(subscription, channel)
            self._open = True
            self._company_until_s = time.monotonic() + COMPANY_S
            self._under_way.clear()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(subscription, channel, listener))
                group.create_task(self._speak(way, channel, epoch))
        finally:
            self._open = False
            self._lost |= bool(self._moved)
            self._moved.clear()
            self._wanted.clear()
            self._idle.set()
            with anyio.CancelScope(shield=True), suppress(*_BROKEN):
                await subscription.aclose()  # type: ignore[no-untyped-call]
                await way.client.connection_pool.disconnect()

    async def _speak(self, way: Way, channel: str, epoch: str) -> None:
        back = bool(self._recent)
        while True:
            self._wake.clear()
            if self._epoch() != epoch:
                raise EpochChangedError
            await self._publish(way, channel, back=back)
            back = False
            await self._see_all_sign()
            if not self._wake.is_set():
                self._idle.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(PING_S):
                        await self._wake.wait()
            if self._under_way and time.monotonic() - self._under_way[0][1] > PATIENCE_S:
                raise TimeoutError

    async def _publish(self, way: Way, channel: str, *, back: bool) -> None:
        moved, opened, lost, wanted = self._moved, self._opened, self._lost, self._wanted
        self._moved, self._opened, self._lost, self._wanted = {}, {}, False, []
        self._number += 1
        self._under_way.append((self._number, time.monotonic()))
        news = News(
            self._sender,
            _now_us(),
            self._number,
            lost=lost,
            back=back,
            moved=moved,
            opened=list(opened.values()),
            wanted=wanted,
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                await way.publish(channel, self._encoded(news, channel))
        except BaseException:
            self._lost |= lost or bool(moved)
            self._opened = opened | self._opened
            raise
        self.state.published += 1

    def _encoded(self, news: News, channel: str) -> bytes:
        return signed(encode(news), self._key, channel)

    async def _see_all_sign(self) -> None:
        """End the time in which messages without a signature are believed, once none came for a minute.

        A process of before says something each second. Raises StoreError.
        """
        now_s = time.monotonic()
        if now_s < self._unsigned_until_s and now_s - self._all_signed_since_s >= QUIET_S:
            await self._database.query(ALL_SIGN)
            self._unsigned_until_s = now_s

    def _believed(self, message: object, channel: str) -> News | None:
        """Read a message; None for what is none, is of nobody who has the key, or of another time."""
        if not isinstance(message, bytes):
            self.state.garbled += 1
            return None
        body, signature = unsigned(message, self._key, channel)
        now_s, now_us = time.monotonic(), _now_us()
        may_be_unsigned = signature == "none" and now_s < self._unsigned_until_s
        if signature != "right" and not may_be_unsigned:
            self._doubted("its signature")
            return None
        news = decode(body)
        if news is None:
            self.state.garbled += 1
        elif may_be_unsigned:
            self._all_signed_since_s = now_s
        elif abs(now_us - news.at_us) > _BELIEVED_APART_US:
            self._doubted("its time")
            return None
        if news is not None and any(one.at_us > now_us + _BELIEVED_APART_US for one in news.opened):
            self._doubted("the time of a connection")
            return None
        return news

    def _doubted(self, what: str) -> None:
        self.state.doubted += 1
        if self.state.doubted == 1:
            _log.warning("bus_doubted", what=what)

    async def _listen(self, subscription: PubSub, channel: str, listener: BusListener) -> None:
        async for message in _heard(subscription):
            if message["type"] not in ("message", "smessage"):
                continue
            self.state.received += 1
            news = self._believed(message["data"], channel)
            if news is None:
                continue
            if news.sender == self._sender:
                self._came_back(news.number, listener)
            else:
                if news.sender:  # a command does not listen
                    self._have_company()
                if news.back:
                    self._opened = dict(self._recent)
                    self._call()
                _tell(news, listener)

    def _have_company(self) -> None:
        """Another process listens: what waited for the ping, as nobody was there, is told now."""
        now_s = time.monotonic()
        if now_s >= self._company_until_s and (self._moved or self._lost):
            self._call()
        self._company_until_s = now_s + COMPANY_S

    def _came_back(self, number: int, listener: BusListener) -> None:
        while self._under_way and self._under_way[0][0] <= number:
            _, sent_at_s = self._under_way.popleft()
            self.state.round_trip_s = time.monotonic() - sent_at_s
        if not self.state.up:
            self.state.up, self.state.connecting = True, False
            self._all_signed_since_s = time.monotonic()
            listener.missed()
            if self._complained:
                _log.info("bus_back")
                self._complained = False


async def _heard(subscription: PubSub) -> AsyncIterator[dict[str, Any]]:
    """Give what comes. The driver looks into answers unseen; what no Redis says breaks the bus alone."""
    try:
        async for message in subscription.listen():
            yield message
    except (LookupError, TypeError, ValueError) as error:
        raise InvalidResponse(str(error)) from None


def _now_us() -> int:
    return time.time_ns() // 1000


def _tell(news: News, listener: BusListener) -> None:
    if news.lost:
        listener.missed()
    if news.generation:
        listener.generation_moved()
    for tenant_id, seq in news.moved.items():
        listener.moved(tenant_id, seq)
    for opened in news.opened:
        listener.opened(*opened)
    for wanted in news.wanted:
        listener.wanted(*wanted)


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error
