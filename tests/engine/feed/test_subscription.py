"""One subscription and its sink, which need not take a page."""

from __future__ import annotations

from engine.feed.cursor import Scope
from engine.feed.feed import Feed
from engine.feed.hub import FeedLimits, Hub
from engine.feed.subscription import Subscription
from engine.runtime.read_limiter import Reader, ReadLimiter
from engine.wire.errors import SyncError
from engine.wire.messages import Subscribe
from tests.engine.commit.test_committer import HandClock
from tests.harness.memory_store import MemoryStore


class Sink:
    """Takes as many pages as it has ``room`` for."""

    def __init__(self) -> None:
        self.room = 0
        self.taken: list[bytes] = []

    def send(self, body: bytes, tail: bytes) -> bool:
        """Take a page, or nothing."""
        if len(self.taken) < self.room:
            self.taken.append(body + tail)
            return True
        return False

    def fail(self, request_id: str, error: SyncError) -> None:
        """Take the error that ended it."""
        raise AssertionError(request_id, error)


def test_it_stands_where_it_stood_until_its_page_is_taken() -> None:
    limits = FeedLimits(page_bytes=1 << 20, tail_changes=10, tail_bytes=1 << 20, page_interval_s=0.0)
    hub = Hub(Feed(MemoryStore(), HandClock(), limits, (), ReadLimiter(2)), 1, limits)
    sink = Sink()
    scope, reader = Scope("e1", 1, None), Reader(1, "phone")
    subscription = Subscription(hub, sink, scope, Subscribe("s"), "session", reader)
    assert not subscription.send(b'{"page":1', 5)
    assert (subscription.position, subscription.state, sink.taken) == (0, "blocked", [])
    sink.room = 1
    assert subscription.send(b'{"page":1', 5)
    assert (subscription.position, sink.taken) == (5, [b'{"page":1,"id":"s"}'])
