"""The reference device under faults: what it sends and hears is noted, and some of it goes wrong."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, Final

import msgspec
from aiohttp import ClientWebSocketResponse

from bench.client.device import Device
from bench.client.protocol import DeviceProtocol
from bench.client.store import Store
from bench.faults.history import (
    Answered,
    Closed,
    Event,
    History,
    Item,
    Joined,
    Paged,
    Refused,
    Result,
    Rewound,
    Sent,
    SettledByHand,
)
from bench.load.websocket_client import CUT_OFF

#: What happens to a sync before it leaves, and to an answer: shares of all.
_DELAYED, _DELAY_S = 0.05, (0.05, 0.5)
_TWICE: Final = 0.01
_DROPPED: Final = 0.001
_GARBLED: Final = 0.001


class _Sent(msgspec.Struct):
    """Any message of the device, as far as it matters here."""

    type: str
    id: str = ""
    key: str = ""
    cursor: str | None = None
    items: list[Item] = []


class _Heard(msgspec.Struct):
    """Any message of the server, as far as it matters here."""

    type: str
    id: str | None = None
    code: str = ""
    retryable: bool = True
    replayed: bool = False
    results: list[Result] = []
    cursor: str = ""
    conflict_id: str = ""
    version: int = 0
    seq: int = 0
    changes: list[msgspec.Raw] = []


_decode_sent = msgspec.json.Decoder(_Sent).decode
_decode = msgspec.json.Decoder(_Heard).decode


class FaultsDevice(Device):
    """A device of a tenant. ``harmed``: some of its syncs are delayed, doubled, lost or begun with a half.

    Some answers are lost too. What is lost costs the connection, and is sent again on the next one.
    """

    def __init__(
        self, history: History, tenant: str, harmed: str | None, store: Store, *more: Any, **options: Any
    ) -> None:
        super().__init__(store, *more, **options)
        self.name = store.device_id
        self._history = history
        self._attempts: Counter[str] = Counter()
        self._keys: dict[str, str] = {}
        self._feed = ""
        self._cursor: str | None = None
        self._harm = None if harmed is None else Random(f"{harmed} {self.name}")
        if self._harm is not None:
            self.compress = self._harm.choice((0, 15))
        self._note(Joined, tenant=tenant)

    def _note(self, kind: Callable[..., Event], **fields: Any) -> None:
        self._history.note(kind, device=self.name, **fields)

    async def _send(self, socket: ClientWebSocketResponse, text: bytes) -> None:
        """Note a sync under its key, and where the feed is read from."""
        message = _decode_sent(text)
        if message.type == "sync":
            self._keys[message.id] = key = message.key
            self._attempts[key] += 1
            attempt = self._attempts[key]
            self._note(Sent, key=key, attempt=attempt, items=message.items if attempt == 1 else [])
            if self._harm is not None:
                await self._do_harm(self._harm, socket, text)
        elif message.type in {"pull", "subscribe"}:
            self._feed = message.id
            if message.cursor != self._cursor:
                self._cursor = message.cursor
                self._note(Rewound)
        await super()._send(socket, text)

    async def _do_harm(self, draw: Random, socket: ClientWebSocketResponse, text: bytes) -> None:
        if draw.random() < _DELAYED:
            await asyncio.sleep(draw.uniform(*_DELAY_S))
        luck = draw.random()
        if luck < _GARBLED:
            await super()._send(socket, text[: len(text) // 2])
        elif luck < _GARBLED + _DROPPED:
            raise ConnectionError("a sync was lost")
        elif luck > 1 - _TWICE:
            await super()._send(socket, text)

    def _hear(self, protocol: DeviceProtocol, text: bytes | str) -> list[bytes]:
        """Note answers, pages of the feed that it follows, and errors."""
        heard = _decode(text)
        key = self._keys.get(heard.id or "")
        match heard.type:
            case "synced" if key is not None:
                if self._harm is not None and self._harm.random() < _DROPPED:
                    return self._lose_answer()
                self._note(Answered, key=key, replayed=heard.replayed, results=heard.results)
            case "changes" if heard.id == self._feed:
                self._cursor = heard.cursor
                self._note(Paged, feed="live", changes=[self._history.change(one) for one in heard.changes])
            case "resolved":
                found = {"conflict_id": heard.conflict_id, "version": heard.version, "seq": heard.seq}
                self._note(SettledByHand, **found)
            case "error":
                self._note(Refused, key=key, code=heard.code, retryable=heard.retryable)
                if heard.code == "malformed" and self._harm is not None:
                    return []  # the half of a sync: the device, which sent all of it, would take it back
            case _:
                pass
        return super()._hear(protocol, text)

    def _lose_answer(self) -> list[bytes]:
        raise ConnectionError("an answer was lost")

    def _closed(self, code: int | None) -> None:
        """Note the end of a connection, whose ids count no more."""
        self._keys.clear()
        self._feed = ""
        self._note(Closed, code=CUT_OFF if code is None else code)
