"""One subscription of one connection: the sink that the feed hands pages to."""

from __future__ import annotations

from typing import Protocol

from engine.feed.feed import Feed
from engine.feed.subscription import Subscription
from engine.runtime.read_limiter import Reader
from engine.wire.errors import SyncError
from engine.wire.messages import Subscribe


class Listener(Protocol):
    """The connection that pages go to."""

    def say(self, body: bytes) -> None:
        """Send a message whatever waits already."""

    def offer(self, body: bytes) -> bool:
        """Send a message, or take nothing when too much waits."""

    def fail(self, error: SyncError, request_id: str | None) -> None:
        """Send an error."""

    def forget(self, live: Live) -> None:
        """Free the id of a subscription that is over."""


class Live:
    """A subscription from the request on; it can end before the feed has opened it."""

    __slots__ = ("_first", "_listener", "_request", "_subscription", "ended")

    def __init__(self, listener: Listener, request: Subscribe) -> None:
        self._listener = listener
        self._request = request
        self._subscription: Subscription | None = None
        self._first = True
        self.ended = False

    @property
    def request_id(self) -> str:
        """The id that every page carries."""
        return self._request.id

    async def open(self, feed: Feed, reader: Reader, session_id: str) -> None:
        """Begin; the first page comes before this returns. Raises SyncError, StoreError."""
        subscription = await feed.subscribe(self, self._request, reader, session_id)
        if self.ended:
            subscription.end()
        else:
            self._subscription = subscription

    def send(self, body: bytes, tail: bytes) -> bool:
        """Pass a page on. The first answers the request, so that it is always taken."""
        if self.ended:
            return True
        if self._first:
            self._first = False
            self._listener.say(body + tail)
            return True
        return self._listener.offer(body + tail)

    def fail(self, request_id: str, error: SyncError) -> None:
        """Pass on why the subscription ended."""
        if not self.ended:
            self.ended = True
            self._listener.forget(self)
            self._listener.fail(error, request_id)

    def resume(self) -> None:
        """There is room for pages again."""
        if self._subscription is not None:
            self._subscription.resume()

    def end(self) -> None:
        """Pass on no page any more."""
        self.ended = True
        if self._subscription is not None:
            self._subscription.end()
