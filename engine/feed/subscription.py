"""One subscription: where it stands and whether it is live, being read for, or waits for room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from engine.feed.cursor import Scope
from engine.feed.pages import tail
from engine.runtime.read_limiter import Reader
from engine.wire.errors import SyncError
from engine.wire.messages import Subscribe

if TYPE_CHECKING:
    from engine.feed.hub import Hub


class Sink(Protocol):
    """Where a subscription's pages go."""

    def send(self, body: bytes, tail: bytes) -> bool:
        """Take the frame ``body + tail``, or give False and take nothing when too much is unsent.

        Whoever gave False calls ``Subscription.resume`` once there is room again.
        """

    def fail(self, request_id: str, error: SyncError) -> None:
        """Take the error that ended a subscription."""


class Subscription:
    """``position`` is the seq up to which the sink was told everything.

    ``state``: ``live`` gets pages from the tail; ``reading`` is being caught up from the store;
    ``blocked`` waits for ``resume``; ``ended`` gets nothing any more.
    """

    __slots__ = (
        "_hub",
        "closing",
        "limit",
        "position",
        "reader",
        "request_id",
        "scope",
        "session_id",
        "sink",
        "state",
    )

    def __init__(
        self, hub: Hub, sink: Sink, scope: Scope, request: Subscribe, session_id: str, reader: Reader
    ) -> None:
        self.reader = reader
        self._hub = hub
        self.closing = tail(request.id)
        self.sink = sink
        self.scope = scope
        self.request_id = request.id
        self.limit = request.limit
        self.session_id = session_id
        self.position = 0
        self.state: Literal["live", "reading", "blocked", "ended"] = "reading"

    def send(self, body: bytes, position: int) -> bool:
        """Hand a page to the sink; the position moves only when it was taken."""
        if not self.sink.send(body, self.closing):
            self.state = "blocked"
            return False
        self.position = position
        return True

    def resume(self) -> None:
        """Go on after the sink refused a page."""
        if self.state == "blocked":
            self._hub.go_on(self)

    def end(self) -> None:
        """Stop: no page is sent after this returns."""
        self.state = "ended"
        self._hub.leave(self)
