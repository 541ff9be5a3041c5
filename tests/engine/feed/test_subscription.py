"""One subscription and its sink, which need not take a page."""

from __future__ import annotations

from engine.feed.cursor import Scope
from engine.feed.subscription import Subscription
from engine.runtime.read_limiter import Reader
from engine.wire.errors import SyncError
from engine.wire.messages import Subscribe


class Sink:
    """Takes as many pages as it has ``room`` for."""

    def __init__(self) -> None:
        self.room = 0
        self.taken: list[bytes] = []

    def send(self, body: bytes, suffix: bytes) -> bool:
        """Take a page, or nothing."""
        if len(self.taken) < self.room:
            self.taken.append(body + suffix)
            return True
        return False

    def fail(self, request_id: str, error: SyncError) -> None:
        """Take the error that ended it."""
        raise AssertionError(request_id, error)


def test_subscription_position_moves_only_when_the_sink_took_the_page() -> None:
    sink = Sink()
    subscription = Subscription(sink, Scope("e1", 1, None), Subscribe("s"), "session", Reader(1, "phone"))
    assert not subscription.send(b'{"page":1', 5)
    assert (subscription.position, subscription.state, sink.taken) == (0, "blocked", [])
    sink.room = 1
    assert subscription.send(b'{"page":1', 5)
    assert (subscription.position, sink.taken) == (5, [b'{"page":1,"id":"s"}'])
