"""A device in a run with faults: it keeps what it sent until that is answered, and always comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from random import Random
from typing import Any, Final, Literal

import msgspec

from bench.faults.account import wrote
from bench.faults.history import (
    Answered,
    Change,
    Closed,
    History,
    Item,
    Joined,
    Paged,
    Refused,
    Result,
    Sent,
)
from bench.faults.workload import Worker
from bench.load.websocket_client import CUT_OFF, HandshakeError, Socket, connect

_CONNECT_S: Final = 5.0
_TICK_S: Final = 0.05
#: A sync that is not answered by then is sent again; a server silent for so long is left.
_PATIENCE_S: Final = 4.0
_SILENT_S: Final = 8.0
#: Syncs that wait for an answer at most: a person stops working, too.
_MOST_WAITING: Final = 20
#: What happens to a message before it leaves.
_DELAYED, _DELAY_S = 0.05, (0.05, 0.5)
_TWICE: Final = 0.01
_DROPPED: Final = 0.001
_GARBLED: Final = 0.001

#: Gives host and port to connect to, perhaps another one each time.
Way = Callable[[], tuple[str, int]]


class Heard(msgspec.Struct):
    """Any message of the server, as far as it matters here."""

    type: str
    id: str | None = None
    code: str = ""
    retryable: bool = True
    retry_after_ms: int = 0
    replayed: bool = False
    results: list[Result] = []
    cursor: str = ""
    more: bool = False
    conflict_id: str = ""
    version: int = 0
    seq: int = 0
    changes: list[msgspec.Raw] = []


decode = msgspec.json.Decoder(Heard).decode
_decode_change = msgspec.json.Decoder(Change).decode
_encode = msgspec.json.encode


class _Waiting(msgspec.Struct):
    """A sync without an answer. ``items_text`` is what every attempt repeats."""

    key: str
    items: list[Item]
    items_text: bytes
    due_s: float
    attempts: int = 0


class Changes:
    """Changes by their text: most of a tenant's devices get the same ones."""

    def __init__(self) -> None:
        self._known: dict[bytes, Change] = {}

    def read(self, text: msgspec.Raw) -> Change:
        """Decode a change, or give the one that it was decoded to before."""
        raw = bytes(text)
        change = self._known.get(raw)
        if change is None:
            change = self._known[raw] = _decode_change(raw)
        return change


class Device:
    """One device of a tenant. ``versions`` is what it holds, ``per_s`` how often it syncs; 0 is never."""

    def __init__(
        self, name: str, tenant: str, token: str, way: Way, history: History, changes: Changes, seed: str
    ) -> None:
        self.name = name
        self.tenant = tenant
        self.versions: dict[tuple[str, str], int] = {}
        self.per_s = 1.0
        self.pulled = asyncio.Event()
        self._token = token
        self._way = way
        self._history = history
        self._changes = changes
        self._random = Random(seed)
        self._worker = Worker(name, tenant, Random(f"{seed} work"))
        self._waiting: dict[int, _Waiting] = {}
        self._number = 0
        self._next_s = time.monotonic()
        self._cursor: str | None = None
        self._socket: Socket | None = None
        self._greeted = False
        self._subscribed_s: float | None = None
        self._heard_s = 0.0
        self._pulling: Literal["no", "wanted", "asked"] = "no"
        self._whole: str | None = None
        self._sessions = 0
        history.events.append(Joined(at_s=history.now_s(), device=name, tenant=tenant))

    @property
    def last(self) -> int:
        """The number of the newest sync."""
        return self._number

    def waits(self, until: int) -> bool:
        """Whether a sync up to that number has no answer."""
        return any(number <= until for number in self._waiting)

    @property
    def _asks(self) -> bool:
        """Whether it expects to hear something."""
        return bool(self._waiting) or self._pulling == "asked" or not self._greeted

    def pull_whole(self) -> None:
        """Pull everything from null; ``pulled`` is set when it is there."""
        self._pulling = "wanted"

    async def run(self) -> None:
        """Stay connected until cancelled."""
        while True:
            code = await self._connected()
            self._history.events.append(Closed(at_s=self._history.now_s(), device=self.name, code=code))
            await asyncio.sleep(self._random.uniform(0.05, 0.5))

    async def _connected(self) -> int:
        """Connect and stay until the connection ends. Returns the close code."""
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def over(code: int) -> None:
            if not ended.done():
                ended.set_result(code)

        self._greeted = False
        self._subscribed_s = None
        self._sessions += 1
        if self._pulling == "asked":
            self._pulling = "wanted"
        try:
            async with asyncio.timeout(_CONNECT_S):
                deflate = self._sessions % 2 == 0
                socket = await connect(*self._way(), self._token, self._received, over, deflate=deflate)
        except (HandshakeError, OSError, TimeoutError):
            return CUT_OFF
        self._socket = socket
        self._heard_s = now_s = time.monotonic()
        for waiting in self._waiting.values():
            waiting.due_s = now_s
        try:
            while not ended.done():
                self._tick(socket, time.monotonic())
                await asyncio.wait([ended], timeout=_TICK_S)
                if self._asks and time.monotonic() - self._heard_s > _SILENT_S:
                    return CUT_OFF
            return ended.result()
        finally:
            self._socket = None
            socket.close()

    def _tick(self, socket: Socket, now_s: float) -> None:
        if self.per_s and now_s >= self._next_s:
            self._next_s = now_s + self._random.expovariate(self.per_s)
            if len(self._waiting) < _MOST_WAITING:
                self._make(now_s)
        if not self._greeted:
            return
        if self._subscribed_s is None or 0 < self._subscribed_s <= now_s:
            self._subscribed_s = 0.0
            ask = {"type": "subscribe", "id": f"live{self._sessions}", "cursor": self._cursor}
            socket.send(_encode(ask))
        if self._pulling == "wanted":
            self._pulling = "asked"
            self._whole = None
            self._pull(socket)
        for number, waiting in self._waiting.items():
            if waiting.due_s <= now_s:
                waiting.due_s = now_s + _PATIENCE_S
                self._push(socket, number, waiting)

    def _make(self, now_s: float) -> None:
        items = self._worker.items(self.versions)
        self._number += 1
        items_text = _encode([_sent(one) for one in items])
        waiting = _Waiting(f"{self.name}-{self._number}", items, items_text, now_s)
        if self._random.random() < _DELAYED:
            waiting.due_s += self._random.uniform(*_DELAY_S)
        self._waiting[self._number] = waiting

    def _push(self, socket: Socket, number: int, waiting: _Waiting) -> None:
        waiting.attempts += 1
        attempt = waiting.attempts
        items = waiting.items if attempt == 1 else []
        self._history.events.append(
            Sent(at_s=self._history.now_s(), device=self.name, key=waiting.key, attempt=attempt, items=items)
        )
        text = b'{"type":"sync","id":"%d.%d","key":%b,"items":%b}' % (
            *(number, attempt),
            *(_encode(waiting.key), waiting.items_text),
        )
        luck = self._random.random()
        if luck < _DROPPED:
            return
        if luck < _DROPPED + _GARBLED:
            socket.send(text[: len(text) // 2])
            return
        socket.send(text)
        if luck > 1 - _TWICE:
            socket.send(text)

    def _pull(self, socket: Socket) -> None:
        socket.send(_encode({"type": "pull", "id": "whole", "cursor": self._whole, "limit": 50}))

    def _received(self, text: bytes) -> None:
        heard = decode(text)
        self._heard_s = time.monotonic()
        match heard.type:
            case "welcome":
                self._greeted = True
            case "synced":
                self._synced(heard)
            case "changes":
                self._paged(heard)
            case "error":
                self._refused(heard)
            case _:
                pass

    def _synced(self, heard: Heard) -> None:
        number = int((heard.id or "0").partition(".")[0])
        key, results = f"{self.name}-{number}", heard.results
        if self._random.random() < _DROPPED:
            return  # lost on the way
        self._history.events.append(
            Answered(
                at_s=self._history.now_s(),
                device=self.name,
                key=key,
                replayed=heard.replayed,
                results=results,
            )
        )
        waiting = self._waiting.pop(number, None)
        if waiting is None or len(waiting.items) != len(results):
            return
        for item, result in zip(waiting.items, results, strict=True):
            if wrote(item, result) and result.version is not None:
                self._keep_version(item.domain, item.id, result.version)

    def _keep_version(self, domain: str, record_id: str, version: int) -> None:
        self.versions[domain, record_id] = max(version, self.versions.get((domain, record_id), 0))

    def _paged(self, heard: Heard) -> None:
        changes = [self._changes.read(text) for text in heard.changes]
        whole = heard.id == "whole"
        self._history.events.append(
            Paged(
                at_s=self._history.now_s(),
                device=self.name,
                feed="whole" if whole else "live",
                changes=changes,
            )
        )
        if not whole:
            self._cursor = heard.cursor
            for change in changes:
                self._keep_version(change.domain, change.id, change.version)
            return
        self._whole = heard.cursor
        if not heard.more:
            self._pulling = "no"
            self.pulled.set()
        elif self._socket is not None:
            self._pull(self._socket)

    def _refused(self, heard: Heard) -> None:
        now_s = time.monotonic()
        again_s = now_s + max(heard.retry_after_ms / 1000, _TICK_S)
        number = (heard.id or "").partition(".")[0]
        waiting = self._waiting.get(int(number)) if number.isdecimal() else None
        if waiting is not None:
            waiting.due_s = again_s
        elif heard.id == "whole":
            self._pulling = "wanted"
        elif heard.id is not None:
            self._cursor = None if heard.code == "cursor_expired" else self._cursor
            self._subscribed_s = again_s
        self._history.events.append(
            Refused(
                at_s=self._history.now_s(),
                device=self.name,
                key=waiting.key if waiting is not None else None,
                code=heard.code,
                retryable=heard.retryable,
            )
        )


def _sent(item: Item) -> dict[str, Any]:
    """Write an item as the contract has it."""
    fields: dict[str, Any] = {"domain": item.domain, "id": item.id, "op": item.op, "at": item.at}
    if item.op != "append":
        fields["base"] = item.base
    return fields if item.op == "delete" else {**fields, "data": item.data}
