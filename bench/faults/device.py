"""The reference device under faults: what it sends and hears is noted, and some of it goes wrong."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
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

#: What happens to so many of a thousand syncs before they leave, by the field's load.
HARMS: Final[Mapping[str, int]] = {"delayed": 50, "doubled": 10, "dropped": 1, "garbled": 1}
_THOUSAND: Final = 1000
_DELAY_S: Final = (0.05, 0.5)
#: The share of answers that are lost.
_ANSWERS_LOST: Final = 0.001


def harms(seed: int, device: int, devices: int) -> Iterator[str]:
    """Yield what happens to each sync of a device, empty for nothing; all devices share each thousand."""
    deck = [harm for harm, count in HARMS.items() for _ in range(count)]
    deck += [""] * (_THOUSAND - len(deck))
    for thousand in itertools.count():
        Random(f"{seed} {thousand}").shuffle(deck)
        yield from deck[(device - thousand * _THOUSAND) % devices :: devices]


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
    """A device of a tenant. ``harmed`` is what ``harms`` is given, None of a device that is left alone.

    Some answers are lost too. What is lost costs the connection, and is sent again on the next one.
    """

    def __init__(
        self,
        history: History,
        tenant: str,
        harmed: tuple[int, int, int] | None,
        store: Store,
        *more: Any,
        **options: Any,
    ) -> None:
        super().__init__(store, *more, **options)
        self.name = store.device_id
        self._history = history
        self._attempts: Counter[str] = Counter()
        self._keys: dict[str, str] = {}
        self._feed = ""
        self._cursor: str | None = None
        self._harms = iter(()) if harmed is None else harms(*harmed)
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
                await self._do_harm(next(self._harms), self._harm, socket, text)
        elif message.type in {"pull", "subscribe"}:
            self._feed = message.id
            if message.cursor != self._cursor:
                self._cursor = message.cursor
                self._note(Rewound)
        await super()._send(socket, text)

    async def _do_harm(self, harm: str, draw: Random, socket: ClientWebSocketResponse, text: bytes) -> None:
        self._history.harms[harm] += 1
        if harm == "delayed":
            await asyncio.sleep(draw.uniform(*_DELAY_S))
        elif harm == "garbled":
            await super()._send(socket, text[: len(text) // 2])
        elif harm == "dropped":
            raise ConnectionError("a sync was lost")
        elif harm == "doubled":
            await super()._send(socket, text)

    def _hear(self, protocol: DeviceProtocol, text: bytes | str) -> list[bytes]:
        """Note answers, pages of the feed that it follows, and errors."""
        heard = _decode(text)
        key = self._keys.get(heard.id or "")
        match heard.type:
            case "synced" if key is not None:
                if self._harm is not None and self._harm.random() < _ANSWERS_LOST:
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
