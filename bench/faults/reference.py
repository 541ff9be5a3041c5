"""The reference device in a run with faults, with everything that it sends and hears noted in the history."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from random import Random
from typing import Final

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout

from bench.client.device import Device, Observer
from bench.client.store import Store
from bench.faults.device import Changes, decode
from bench.faults.history import (
    Answered,
    Closed,
    Feed,
    History,
    Item,
    Joined,
    Paged,
    Refused,
    Rewound,
    Sent,
)
from bench.faults.workload import Worker
from bench.load.websocket_client import CUT_OFF

_IDLE_S: Final = 0.1
_PULL_S: Final = 10.0


class _Sent(msgspec.Struct):
    """Any message of the device, as far as it matters here."""

    type: str
    id: str = ""
    key: str = ""
    cursor: str | None = None
    items: list[Item] = []


_decode_sent = msgspec.json.Decoder(_Sent).decode


class ReferenceDevice(Observer):
    """One device of a tenant, with its store. ``per_s`` is how often it makes edits; 0 is never."""

    def __init__(
        self,
        name: str,
        tenant: str,
        token: str,
        url: str,
        history: History,
        changes: Changes,
        seed: str,
        home: Path,
        session: ClientSession,
    ) -> None:
        self.name = name
        self.tenant = tenant
        self.per_s = 1.0
        self.pulled = asyncio.Event()
        self._token = token
        self._url = url
        self._history = history
        self._changes = changes
        self._session = session
        self._random = Random(seed)
        self._worker = Worker(name, tenant, Random(f"{seed} work"))
        self._store = Store(home / f"{name}.sqlite", name, durability="NORMAL")
        self._device = Device(
            self._store,
            url,
            lambda: token,
            session,
            unit=self._random.random,
            on_settled=lambda _: self._count(),
            observer=self,
        )
        self._settled = 0
        self._attempts: Counter[str] = Counter()
        self._keys: dict[str, str] = {}
        self._feed = ""
        self._cursor: str | None = None
        self._pulling: asyncio.Task[None] | None = None
        #: The number of its newest edit.
        self.last = 0
        history.events.append(Joined(at_s=history.now_s(), device=name, tenant=tenant))

    def _count(self) -> None:
        self._settled += 1

    @property
    def versions(self) -> dict[tuple[str, str], int]:
        """The records that it holds, with their versions."""
        return {(domain, name): version for domain, name, version, _ in self._store.replica()}

    def waits(self, until: int) -> bool:
        """Whether an edit up to that number has no outcome; they get theirs in order."""
        return self._settled < until

    async def run(self) -> None:
        """Work and stay connected until cancelled."""
        running = asyncio.create_task(self._device.run())
        try:
            while not running.done():
                await asyncio.sleep(self._random.expovariate(self.per_s) if self.per_s else _IDLE_S)
                for item in self._worker.items({}) if self.per_s else ():
                    self._device.edit(item.domain, item.id, item.op, item.data)  # type: ignore[arg-type]
                    self.last += 1
            await running
        finally:
            running.cancel()
            await asyncio.wait([running])
            self._store.close()

    def pull_whole(self) -> None:
        """Pull everything from null over HTTP; ``pulled`` is set when it is there."""
        self._pulling = asyncio.create_task(self._pull())

    async def _pull(self) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        cursor, more = "", True
        while more:
            query = {"cursor": cursor, "limit": "1000"}
            address, timeout = f"{self._url}/v1/changes", ClientTimeout(_PULL_S)
            try:
                async with self._session.get(
                    address, params=query, headers=headers, timeout=timeout
                ) as response:
                    page = decode(b'{"type":"changes",' + (await response.read())[1:])
                    response.raise_for_status()
            except (ClientError, OSError, TimeoutError):
                await asyncio.sleep(_IDLE_S)
                continue
            self._page("whole", page.changes)
            cursor, more = page.cursor, page.more
        self.pulled.set()

    def _page(self, feed: Feed, texts: list[msgspec.Raw]) -> None:
        changes = [self._changes.read(text) for text in texts]
        self._history.events.append(
            Paged(at_s=self._history.now_s(), device=self.name, feed=feed, changes=changes)
        )

    def sent(self, text: bytes) -> None:
        """Note a sync under its key, and where the feed is read from."""
        message, now_s, events = _decode_sent(text), self._history.now_s(), self._history.events
        if message.type == "sync":
            self._keys[message.id] = message.key
            self._attempts[message.key] += 1
            attempt = self._attempts[message.key]
            items = message.items if attempt == 1 else []
            events.append(Sent(at_s=now_s, device=self.name, key=message.key, attempt=attempt, items=items))
        elif message.type in {"pull", "subscribe"}:
            self._feed = message.id
            if message.cursor != self._cursor:
                self._cursor = message.cursor
                events.append(Rewound(at_s=now_s, device=self.name))

    def heard(self, text: bytes | str) -> None:
        """Note answers, pages of the feed that it follows, and errors."""
        heard, now_s, events = decode(text), self._history.now_s(), self._history.events
        key = self._keys.get(heard.id or "")
        if heard.type == "synced" and key is not None:
            events.append(
                Answered(
                    at_s=now_s,
                    device=self.name,
                    key=key,
                    replayed=heard.replayed,
                    results=heard.results,
                )
            )
        elif heard.type == "changes" and heard.id == self._feed:
            self._cursor = heard.cursor
            self._page("live", heard.changes)
        elif heard.type == "error":
            events.append(
                Refused(at_s=now_s, device=self.name, key=key, code=heard.code, retryable=heard.retryable)
            )

    def closed(self, code: int | None) -> None:
        """Note the end of a connection, whose ids count no more."""
        self._keys.clear()
        self._feed = ""
        self._history.events.append(
            Closed(at_s=self._history.now_s(), device=self.name, code=CUT_OFF if code is None else code)
        )
