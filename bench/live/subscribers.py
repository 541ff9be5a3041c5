"""Subscribers, many in a process of its own: ``python -m bench.live.subscribers`` with a WatchPlan on stdin.

Of a page they read what tells whether anything was lost, and when it came: ids, versions and seqs.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Final

import msgspec

from bench.load.child_process import Lines, main, say
from bench.load.websocket_client import Socket, connect, reason_of

#: How many connections are being opened at once: each reads the database.
_OPENING: Final = 50
#: How long the first page may take that a subscription begins with.
_FIRST_PAGE_S: Final = 60.0
#: How long what was committed may take until it is there.
CATCH_UP_S: Final = 30.0
_LOOK_S: Final = 0.02
_TICK_S: Final = 0.01

_SUBSCRIBE: Final = b'{"type":"subscribe","id":"live","cursor":null,"domains":null}'
_HEARTBEAT: Final = b'{"type":"heartbeat","id":"beat","queue_depth":0,"battery":0.8,"network":"4g"}'


class WatchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Connection n goes to ``ports[n]`` with ``tokens[n]``, from ``sources[n]`` where there are any.

    With ``heartbeats`` each sends as many as the server asks for, spread evenly.
    """

    host: str
    ports: list[int]
    tokens: list[str]
    sources: list[str]
    heartbeats: bool


class Watching(msgspec.Struct, frozen=True):
    """How many are subscribed and have their first page, and why others are not. Written once."""

    subscribed: int
    refusals: dict[str, int]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What came after the beginning, written last.

    The lists of pages go together: whose it was, its lowest and highest seq, how many changes, and when it
    was there in microseconds on the clock that processes share. ``digests`` tell a connection's records with
    their versions, all that ever came. ``short`` did not reach the seq that they were told to wait for;
    ``backwards`` counts changes with a lower version than the last one of the record. ``lag_us`` is how late
    timers went off, ``cpus`` how many CPUs this process kept busy.
    """

    connection: list[int]
    first_seq: list[int]
    last_seq: list[int]
    changes: list[int]
    at_us: list[int]
    digests: list[str]
    short: list[int]
    backwards: int
    heartbeats: int
    heartbeats_answered: int
    lag_us: list[int]
    cpus: float
    errors: dict[str, int]


class _Change(msgspec.Struct, gc=False):
    id: str
    version: int
    seq: int


class _Message(msgspec.Struct, gc=False):
    type: str
    code: str = ""
    reason: str = ""
    heartbeat_s: int = 0
    changes: tuple[_Change, ...] = ()


_decode = msgspec.json.Decoder(_Message).decode


class Pages:
    """What all connections of a process saw since ``begun``; the arrays go together."""

    def __init__(self) -> None:
        self.begun = False
        self.connection = array("l")
        self.first_seq = array("q")
        self.last_seq = array("q")
        self.changes = array("l")
        self.at_us = array("q")
        self.backwards = 0
        self.heartbeats_answered = 0
        self.heartbeat_s = 0
        self.errors: Counter[str] = Counter()


class Subscriber:
    """One connection, with the records that it knows of by id."""

    __slots__ = ("_pages", "greeted", "index", "seq", "socket", "versions")

    def __init__(self, index: int, pages: Pages) -> None:
        self.index = index
        self._pages = pages
        self.versions: dict[str, int] = {}
        self.seq = 0
        self.socket: Socket | None = None
        #: Done with the welcome, and a new one with the first page.
        self.greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def received(self, text: bytes) -> None:
        """Process a message of the server."""
        now_s = perf_counter()
        message, pages = _decode(text), self._pages
        if message.type == "changes":
            self._took(message.changes, now_s)
        elif message.type == "heartbeat_ack":
            pages.heartbeats_answered += 1
        elif message.type == "welcome":
            pages.heartbeat_s = message.heartbeat_s
        else:
            pages.errors[message.code or message.reason or message.type] += 1
        if not self.greeted.done():
            self.greeted.set_result(None)

    def _took(self, changes: Sequence[_Change], now_s: float) -> None:
        if not changes:
            return
        pages, versions = self._pages, self.versions
        for change in changes:
            if change.version < versions.get(change.id, 0):
                pages.backwards += 1
            versions[change.id] = change.version
        self.seq = changes[-1].seq
        if pages.begun:
            pages.connection.append(self.index)
            pages.first_seq.append(changes[0].seq)
            pages.last_seq.append(self.seq)
            pages.changes.append(len(changes))
            pages.at_us.append(int(now_s * 1e6))

    def ended(self, code: int) -> None:
        """The connection is over."""
        self.socket = None
        self._pages.errors[f"closed_{code}"] += 1
        if not self.greeted.done():
            self.greeted.set_result(None)


def digest(versions: Mapping[str, int]) -> str:
    """Hash records' ids and versions, so that any difference shows."""
    lines = "\n".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


class Watch:
    """All connections of one process."""

    def __init__(self, plan: WatchPlan) -> None:
        self._plan = plan
        self._pages = Pages()
        self._subscribers = [Subscriber(index, self._pages) for index in range(len(plan.tokens))]
        self._heartbeats = 0
        self._lag_us = array("q")
        self._tasks: list[asyncio.Task[None]] = []
        self._began_s = self._cpu_s = 0.0

    async def subscribe(self) -> Watching:
        """Open the connections and wait until each has the first page."""
        refusals: Counter[str] = Counter()
        turns = asyncio.Semaphore(_OPENING)
        done = await asyncio.gather(*(self._subscribe(one, turns, refusals) for one in self._subscribers))
        return Watching(sum(done), dict(refusals))

    async def _subscribe(self, one: Subscriber, turns: asyncio.Semaphore, refusals: Counter[str]) -> bool:
        plan, index = self._plan, one.index
        async with turns:
            try:
                one.socket = socket = await connect(
                    *(plan.host, plan.ports[index], plan.tokens[index], one.received, one.ended),
                    source=plan.sources[index] if plan.sources else None,
                )
                async with asyncio.timeout(_FIRST_PAGE_S):
                    await one.greeted
                    one.greeted = asyncio.get_running_loop().create_future()
                    socket.send(_SUBSCRIBE)
                    await one.greeted
            except OSError as error:  # TimeoutError is one
                refusals[reason_of(error)] += 1
                return False
        return one.socket is not None

    def begin(self) -> None:
        """Note from now on what comes, and send heartbeats."""
        gc.collect()
        gc.freeze()
        gc.disable()
        self._pages.begun = True
        self._began_s, self._cpu_s = perf_counter(), time.process_time()
        self._tasks = [asyncio.create_task(self._tick())]
        if self._plan.heartbeats and self._pages.heartbeat_s:
            self._tasks.append(asyncio.create_task(self._beat(self._pages.heartbeat_s)))

    async def _tick(self) -> None:
        """Note how late the loop is: by so much may arrivals have been noted late."""
        at_s = self._began_s
        while True:
            at_s = max(at_s, perf_counter()) + _TICK_S
            await asyncio.sleep(at_s - perf_counter())
            self._lag_us.append(int(max(0.0, perf_counter() - at_s) * 1e6))

    async def _beat(self, every_s: int) -> None:
        per_s = len(self._subscribers) / every_s
        while True:
            due = int((perf_counter() - self._began_s) * per_s)
            for number in range(self._heartbeats, due):
                socket = self._subscribers[number % len(self._subscribers)].socket
                if socket is not None:
                    socket.send(_HEARTBEAT)
            self._heartbeats = max(self._heartbeats, due)
            await asyncio.sleep(_TICK_S)

    async def finish(self, seqs: Sequence[int]) -> Seen:
        """Wait until each connection is where it is to be, close all and say what they saw."""
        cpus = (time.process_time() - self._cpu_s) / (perf_counter() - self._began_s)
        for task in self._tasks:
            task.cancel()
        give_up_s, pages = perf_counter() + CATCH_UP_S, self._pages
        # An event would have to be looked after with every page.
        while perf_counter() < give_up_s and (  # noqa: ASYNC110
            any(map(_behind, self._subscribers, seqs)) or pages.heartbeats_answered < self._heartbeats
        ):
            await asyncio.sleep(_LOOK_S)
        short = [index for index, one in enumerate(self._subscribers) if _behind(one, seqs[index])]
        errors = dict(pages.errors)
        for one in self._subscribers:
            if one.socket is not None:
                one.socket.close()
        return Seen(
            connection=pages.connection.tolist(),
            first_seq=pages.first_seq.tolist(),
            last_seq=pages.last_seq.tolist(),
            changes=pages.changes.tolist(),
            at_us=pages.at_us.tolist(),
            digests=[digest(one.versions) for one in self._subscribers],
            short=short,
            backwards=pages.backwards,
            heartbeats=self._heartbeats,
            heartbeats_answered=pages.heartbeats_answered,
            lag_us=self._lag_us.tolist(),
            cpus=cpus,
            errors=errors,
        )


def _behind(one: Subscriber, seq: int) -> bool:
    return one.seq < seq


async def _run(plan: WatchPlan, lines: Lines) -> None:
    watch = Watch(plan)
    say(await watch.subscribe())
    if await lines.next():
        watch.begin()
        if line := await lines.next():
            say(await watch.finish(msgspec.json.decode(line, type=list[int])))


if __name__ == "__main__":
    main(WatchPlan, _run)
