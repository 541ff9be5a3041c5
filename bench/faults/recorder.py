"""Notes in the history what a reference device sends and hears."""

from __future__ import annotations

from collections import Counter

import msgspec

from bench.client.device import Observer
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
    SettledByHand,
)
from bench.load.websocket_client import CUT_OFF


class _Sent(msgspec.Struct):
    """Any message of the device, as far as it matters here."""

    type: str
    id: str = ""
    key: str = ""
    cursor: str | None = None
    items: list[Item] = []


_decode_sent = msgspec.json.Decoder(_Sent).decode


class Recorder(Observer):
    """The observer of one device of a tenant."""

    def __init__(self, device: str, tenant: str, history: History, changes: Changes) -> None:
        self._name = device
        self._history = history
        self._changes = changes
        self._attempts: Counter[str] = Counter()
        self._keys: dict[str, str] = {}
        self._feed = ""
        self._cursor: str | None = None
        history.events.append(Joined(at_s=history.now_s(), device=device, tenant=tenant))

    def page(self, feed: Feed, texts: list[msgspec.Raw]) -> None:
        """Note a page."""
        changes = [self._changes.read(text) for text in texts]
        self._history.events.append(
            Paged(at_s=self._history.now_s(), device=self._name, feed=feed, changes=changes)
        )

    def sent(self, text: bytes) -> None:
        """Note a sync under its key, and where the feed is read from."""
        message, now_s, events = _decode_sent(text), self._history.now_s(), self._history.events
        if message.type == "sync":
            self._keys[message.id] = message.key
            self._attempts[message.key] += 1
            attempt = self._attempts[message.key]
            items = message.items if attempt == 1 else []
            events.append(Sent(at_s=now_s, device=self._name, key=message.key, attempt=attempt, items=items))
        elif message.type in {"pull", "subscribe"}:
            self._feed = message.id
            if message.cursor != self._cursor:
                self._cursor = message.cursor
                events.append(Rewound(at_s=now_s, device=self._name))

    def heard(self, text: bytes | str) -> None:
        """Note answers, pages of the feed that it follows, and errors."""
        heard, now_s, events = decode(text), self._history.now_s(), self._history.events
        key = self._keys.get(heard.id or "")
        if heard.type == "synced" and key is not None:
            events.append(
                Answered(
                    at_s=now_s,
                    device=self._name,
                    key=key,
                    replayed=heard.replayed,
                    results=heard.results,
                )
            )
        elif heard.type == "changes" and heard.id == self._feed:
            self._cursor = heard.cursor
            self.page("live", heard.changes)
        elif heard.type == "resolved":
            settled = SettledByHand(
                at_s=now_s,
                device=self._name,
                conflict_id=heard.conflict_id,
                version=heard.version,
                seq=heard.seq,
            )
            events.append(settled)
        elif heard.type == "error":
            events.append(
                Refused(at_s=now_s, device=self._name, key=key, code=heard.code, retryable=heard.retryable)
            )

    def closed(self, code: int | None) -> None:
        """Note the end of a connection, whose ids count no more."""
        self._keys.clear()
        self._feed = ""
        self._history.events.append(
            Closed(at_s=self._history.now_s(), device=self._name, code=CUT_OFF if code is None else code)
        )
