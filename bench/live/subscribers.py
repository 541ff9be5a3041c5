"""Subscribers, many in a process of its own: ``python -m bench.live.subscribers`` with a WatchPlan on stdin.

Of a page they read what tells whether anything was lost, and when it came: ids, versions and seqs.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Final

import msgspec

from bench.load.child_process import Lines, main, say
from bench.load.simple_device import SimpleDevice
from bench.load.websocket_client import Socket, reason_of

#: How many connections are being opened at once: each reads the database.
_OPENING: Final = 50
#: How long the first page may take that a subscription begins with.
_FIRST_PAGE_S: Final = 60.0
#: How long what was committed may take until it is there.
CATCH_UP_S: Final = 30.0
_LOOK_S: Final = 0.02
_TICK_S: Final = 0.01

_HEARTBEAT: Final = b'{"type":"heartbeat","id":"beat","queue_depth":0,"battery":0.8,"network":"4g"}'


class WatchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Connection n goes to ``ports[n]`` with ``tokens[n]``, from ``sources[n]`` where there are any.

    With ``heartbeats`` each sends as many as the server asks for, spread evenly. ``deflate`` offers
    compression.
    """

    host: str
    ports: list[int]
    tokens: list[str]
    sources: list[str]
    heartbeats: bool
    deflate: bool = False


#: Whose it was, its lowest and highest seq, how many changes, and when it was there in microseconds on the
#: clock that processes share.
Page = tuple[int, int, int, int, int]


class Seen(msgspec.Struct, kw_only=True):
    """What came after the beginning, written last.

    ``digests`` tell a connection's records with their versions, all that ever came. ``short`` did not reach
    the seq that they were told to wait for; ``backwards`` counts changes with a lower version than the last
    one of the record. ``lag_us`` is how late timers went off, ``cpus`` how many CPUs this process kept busy.
    """

    pages: list[Page] = []
    digests: list[str] = []
    short: list[int] = []
    backwards: int = 0
    heartbeats: int = 0
    heartbeats_answered: int = 0
    lag_us: list[int] = []
    cpus: float = 0.0
    errors: dict[str, int] = {}

    def count(self, error: str) -> None:
        """Count something that should not have come."""
        self.errors[error] = self.errors.get(error, 0) + 1


class _Change(msgspec.Struct, gc=False):
    id: str
    version: int
    seq: int


class _Message(msgspec.Struct, gc=False):
    type: str
    code: str = ""
    reason: str = ""
    changes: tuple[_Change, ...] = ()


_decode = msgspec.json.Decoder(_Message).decode


class Subscriber:
    """One connection, with the records that it knows of by id."""

    __slots__ = ("_seen", "index", "seq", "socket", "versions")

    def __init__(self, index: int, seen: Seen) -> None:
        self.index = index
        self._seen = seen
        self.versions: dict[str, int] = {}
        self.seq = 0
        self.socket: Socket | None = None

    def received(self, text: bytes) -> None:
        """Process a message of the server."""
        now_s = perf_counter()
        message, seen = _decode(text), self._seen
        if message.type == "changes":
            self._took(message.changes, now_s)
        elif message.type == "heartbeat_ack":
            seen.heartbeats_answered += 1
        else:
            seen.count(message.code or message.reason or message.type)

    def _took(self, changes: Sequence[_Change], now_s: float) -> None:
        if not changes:
            return
        seen, versions = self._seen, self.versions
        for change in changes:
            if change.version < versions.get(change.id, 0):
                seen.backwards += 1
            versions[change.id] = change.version
        self.seq = changes[-1].seq
        seen.pages.append((self.index, changes[0].seq, self.seq, len(changes), int(now_s * 1e6)))

    def ended(self, code: int) -> None:
        """Note that the connection is over."""
        self.socket = None
        self._seen.count(f"closed_{code}")


def digest(versions: Mapping[str, int]) -> str:
    """Hash records' ids and versions, so that any difference shows."""
    lines = "\n".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


class Watch:
    """All connections of one process."""

    def __init__(self, plan: WatchPlan) -> None:
        self._plan = plan
        self._seen = Seen()
        self._subscribers = [Subscriber(index, self._seen) for index in range(len(plan.tokens))]
        self._heartbeat_s = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._began_s = self._cpu_s = 0.0

    async def subscribe(self) -> None:
        """Open the connections and wait until each has the first page. Raises OSError."""
        turns = asyncio.Semaphore(_OPENING)
        await asyncio.gather(*(self._subscribe(one, turns) for one in self._subscribers))

    async def _subscribe(self, one: Subscriber, turns: asyncio.Semaphore) -> None:
        plan, index, device = self._plan, one.index, SimpleDevice(answer_s=_FIRST_PAGE_S)
        source = plan.sources[index] if plan.sources else None
        async with turns:
            welcome = await device.open(
                *(plan.host, plan.ports[index], plan.tokens[index]), source=source, deflate=plan.deflate
            )
            page = await device.ask("subscribe", id="live", cursor=None, domains=None)
        if page["type"] == "error" or device.socket is None:
            raise ConnectionError(page.get("code", "closed"))
        self._heartbeat_s = welcome["heartbeat_s"]
        one.socket = device.socket
        one.socket.on_text, one.socket.on_end = one.received, one.ended
        one.received(msgspec.json.encode(page))

    def begin(self) -> None:
        """Note from now on what comes, and send heartbeats."""
        self._seen.pages.clear()
        gc.collect()
        gc.freeze()
        gc.disable()
        self._began_s, self._cpu_s = perf_counter(), time.process_time()
        self._tasks = [asyncio.create_task(self._tick())]
        if self._plan.heartbeats and self._heartbeat_s:
            self._tasks.append(asyncio.create_task(self._beat(self._heartbeat_s)))

    async def _tick(self) -> None:
        """Note how late the loop is: by so much may arrivals have been noted late."""
        at_s = self._began_s
        while True:
            at_s = max(at_s, perf_counter()) + _TICK_S
            await asyncio.sleep(at_s - perf_counter())
            self._seen.lag_us.append(int(max(0.0, perf_counter() - at_s) * 1e6))

    async def _beat(self, every_s: int) -> None:
        seen, per_s = self._seen, len(self._subscribers) / every_s
        while True:
            due = int((perf_counter() - self._began_s) * per_s)
            for number in range(seen.heartbeats, due):
                socket = self._subscribers[number % len(self._subscribers)].socket
                if socket is not None:
                    socket.send(_HEARTBEAT)
            seen.heartbeats = max(seen.heartbeats, due)
            await asyncio.sleep(_TICK_S)

    async def finish(self, seqs: Sequence[int]) -> Seen:
        """Wait until each connection is where it is to be, close all and say what they saw."""
        seen = self._seen
        seen.cpus = (time.process_time() - self._cpu_s) / (perf_counter() - self._began_s)
        for task in self._tasks:
            task.cancel()

        def behind() -> list[int]:
            return [one.index for one, seq in zip(self._subscribers, seqs, strict=True) if one.seq < seq]

        give_up_s = perf_counter() + CATCH_UP_S
        # An event would have to be looked after with every page.
        while perf_counter() < give_up_s and (  # noqa: ASYNC110
            behind() or seen.heartbeats_answered < seen.heartbeats
        ):
            await asyncio.sleep(_LOOK_S)
        seen.short = behind()
        seen.digests = [digest(one.versions) for one in self._subscribers]
        for one in self._subscribers:
            if one.socket is not None:
                one.socket.close()  # its end is noted only after this has returned
        return seen


async def _run(plan: WatchPlan, lines: Lines) -> None:
    watch = Watch(plan)
    try:
        await watch.subscribe()
    except OSError as error:  # TimeoutError is one
        sys.exit(f"a subscriber did not come up: {reason_of(error)}")
    say("subscribed")
    if await lines.next():
        watch.begin()
        if line := await lines.next():
            say(await watch.finish(msgspec.json.decode(line, type=list[int])))


if __name__ == "__main__":
    main(WatchPlan, _run)
