"""One tenant's tail and subscriptions, and how pages are cut of what the tail has."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from engine.feed.pages import ENVELOPE_BYTES, page_body, unknown_domains
from engine.feed.subscription import Subscription
from engine.feed.tail import Entry, Tail

if TYPE_CHECKING:
    from engine.feed.feed import Feed


class FeedLimits(msgspec.Struct, frozen=True):
    """Bounds of a page and of a tenant's tail in memory, and the pause between busy pages."""

    page_bytes: int
    tail_changes: int
    tail_bytes: int
    page_interval_s: float


class Hub:
    """One tenant's tail and subscriptions."""

    def __init__(self, feed: Feed, tenant_id: int, limits: FeedLimits) -> None:
        self._feed = feed
        self.tenant_id = tenant_id
        self.tail = Tail(limits.tail_changes, limits.tail_bytes)
        self.subscriptions: set[Subscription] = set()
        self.scheduled = False
        self.doubtful = False
        self.told = asyncio.Event()
        self.healing = False
        self.sent_at_s = 0.0

    @property
    def ailing(self) -> bool:
        """Whether changes that somebody waits for are missing, or may be: the store has to be asked."""
        missing = self.tail.head is not None and (self.tail.gap or self.doubtful)
        return missing and bool(self.subscriptions)

    def go_on(self, subscription: Subscription) -> None:
        """Bring a subscription back to the tail, through the store if need be."""
        self._feed.go_on(self, subscription)

    def leave(self, subscription: Subscription) -> None:
        """Forget a subscription."""
        self.subscriptions.discard(subscription)
        if not self.subscriptions:
            self._feed.close(self)


def live_pages(
    subscription: Subscription, head: int, entries: Iterable[Entry], max_bytes: int
) -> list[tuple[bytes, int]]:
    """Make page bodies of what a subscription wants of the tail; each with the seq of its cursor."""
    scope, own = subscription.scope, subscription.session_id
    chunk: list[bytes] = []
    pages: list[tuple[bytes, int]] = []
    envelope_bytes = ENVELOPE_BYTES + len(unknown_domains(scope))
    size_bytes, last = envelope_bytes, 0
    for entry in entries:
        if entry.session_id == own:
            continue
        if scope.domains is not None and entry.domain not in scope.domains:
            continue
        over = size_bytes + len(entry.body) + 1 > max_bytes
        if chunk and (over or len(chunk) == subscription.limit):
            pages.append((page_body(scope, last, chunk, more=True), last))
            chunk, size_bytes = [], envelope_bytes
        chunk.append(entry.body)
        size_bytes += len(entry.body) + 1
        last = entry.seq
    if chunk:
        pages.append((page_body(scope, head, chunk, more=False), head))
    return pages
