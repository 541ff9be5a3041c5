"""One subscription: its position in the feed, and whether it is live, being caught up or blocked."""

from __future__ import annotations

from typing import Literal, Protocol

from engine.feed.cursor import Scope
from engine.feed.pages import page_suffix
from engine.runtime.read_limiter import Reader
from engine.wire.errors import SyncError
from engine.wire.messages import Subscribe


class Sink(Protocol):
    """Where a subscription's pages go."""

    def send(self, body: bytes, suffix: bytes) -> bool:
        """Send the frame ``body + suffix``.

        Returns:
            False if too much is unsent already; then nothing was taken, and the sink calls ``Feed.resume``
            once there is room again.
        """

    def fail(self, request_id: str, error: SyncError) -> None:
        """Report the error that ended the subscription."""


class Subscription:
    """One subscription of one device.

    ``position`` is the seq up to which the sink took everything. ``state``:

    - ``live``: gets pages from the tail.
    - ``reading``: is being caught up from the store.
    - ``blocked``: the sink refused a page; ``Feed.resume`` makes it live or reading.
    - ``ended``: gets nothing.
    """

    __slots__ = (
        "limit",
        "page_suffix",
        "position",
        "reader",
        "request_id",
        "scope",
        "session_id",
        "sink",
        "state",
        "tenant_id",
    )

    def __init__(self, sink: Sink, scope: Scope, request: Subscribe, session_id: str, reader: Reader) -> None:
        self.sink = sink
        self.scope = scope
        self.request_id = request.id
        self.page_suffix = page_suffix(request.id)
        self.limit = request.limit
        self.session_id = session_id
        self.reader = reader
        self.tenant_id = reader.tenant_id
        self.position = 0
        self.state: Literal["live", "reading", "blocked", "ended"] = "reading"

    def send(self, body: bytes, position: int) -> bool:
        """Hand a page to the sink; the position moves only if the sink took it."""
        if not self.sink.send(body, self.page_suffix):
            self.state = "blocked"
            return False
        self.position = position
        return True
