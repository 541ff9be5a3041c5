"""One subscription of one connection: the sink that the feed hands pages to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from engine.feed.feed import Feed
from engine.feed.subscription import Subscription
from engine.runtime.read_limiter import Reader
from engine.wire.errors import SyncError
from engine.wire.messages import Subscribe


class Sender(Protocol):
    """The socket that pages are sent to."""

    def say(self, body: bytes) -> None:
        """Send a message, even if too much waits already."""

    def offer(self, body: bytes) -> bool:
        """Send a message, or return False if too much waits."""

    def fail(self, error: SyncError, request_id: str | None) -> None:
        """Send an error."""


class SubscriptionSink:
    """A subscription from its request on; it can end before the feed has opened it.

    Args:
        feed: What is subscribed to.
        socket: Where pages are sent.
        request: The request; every page carries its id.
        forget: Is called when the feed ends the subscription, so that its id is free again.
    """

    __slots__ = ("_feed", "_first", "_forget", "_request", "_socket", "_subscription", "ended")

    def __init__(
        self, feed: Feed, socket: Sender, request: Subscribe, forget: Callable[[SubscriptionSink], None]
    ) -> None:
        self._feed = feed
        self._socket = socket
        self._request = request
        self._forget = forget
        self._subscription: Subscription | None = None
        self._first = True
        self.ended = False

    @property
    def request_id(self) -> str:
        """The id that every page carries."""
        return self._request.id

    async def open(self, reader: Reader, session_id: str) -> None:
        """Open the subscription; the first page is sent before this returns. Raises SyncError, StoreError."""
        subscription = await self._feed.subscribe(self, self._request, reader, session_id)
        if self.ended:
            self._feed.end(subscription)
        else:
            self._subscription = subscription

    def send(self, body: bytes, suffix: bytes) -> bool:
        """Pass a page on. The first page answers the request, so it is always accepted."""
        if self.ended:
            return True
        if self._first:
            self._first = False
            self._socket.say(body + suffix)
            return True
        return self._socket.offer(body + suffix)

    def fail(self, request_id: str, error: SyncError) -> None:
        """Pass on why the subscription ended."""
        if not self.ended:
            self.ended = True
            self._subscription = None
            self._forget(self)
            self._socket.fail(error, request_id)

    def resume(self) -> None:
        """Go on sending pages: the socket has room again."""
        if self._subscription is not None:
            self._feed.resume(self._subscription)

    def end(self) -> None:
        """Send no more pages."""
        self.ended = True
        subscription, self._subscription = self._subscription, None  # which knows this sink
        if subscription is not None:
            self._feed.end(subscription)
