"""The hub's states: what leads from one to the next, without a feed and without a store."""

from __future__ import annotations

from engine.feed.cursor import Scope
from engine.feed.hub import FeedLimits, Hub
from engine.feed.ports import Page
from engine.feed.subscription import Subscription
from engine.model.rows import Record
from engine.runtime.read_limiter import Reader
from engine.wire.messages import Subscribe
from tests.engine.feed.test_subscription import Sink

_LIMITS = FeedLimits(page_bytes=1 << 20, tail_changes=10, tail_bytes=1 << 20, page_interval_s=0.0)


def fresh_hub(*, is_subscribed: bool = True) -> Hub:
    """Make a hub of tenant 1."""
    hub = Hub(1, _LIMITS)
    if is_subscribed:
        hub.subscriptions.add(
            Subscription(Sink(), Scope("e1", 1, None), Subscribe("s"), "session", Reader(1, "phone"))
        )
    return hub


def hub_at(seq: int, *, is_subscribed: bool = True) -> Hub:
    """Make a hub whose first page was read up to ``seq``."""
    hub = fresh_hub(is_subscribed=is_subscribed)
    hub.start(seq)
    return hub


def record(seq: int) -> Record:
    """Make a change."""
    return Record(1, "task", f"r{seq}", 1, seq, 0, "phone", 1, b"{}")


def test_hub_fresh_needs_no_reread_and_is_complete_after_the_first_page() -> None:
    hub = fresh_hub()
    assert (hub.state, hub.needs_reread) == ("fresh", False)
    hub.start(4)
    assert (hub.state, hub.tail.head) == ("complete", 4)


def test_hub_later_first_pages_leave_the_tail_as_it_is() -> None:
    hub = hub_at(4)
    hub.tail.publish(record(5), "s")
    hub.start(9)
    assert (hub.state, hub.tail.head, [entry.seq for entry in hub.tail.after(4)]) == ("complete", 5, [5])


def test_hub_missed_change_while_fresh_makes_it_incomplete_at_the_first_page() -> None:
    missed, told = fresh_hub(), fresh_hub()
    missed.note_missed()
    assert told.note_remote_commit(1)
    for hub in (missed, told):
        assert (hub.state, hub.begin_reread()) == ("fresh", False)
        hub.start(0)
        assert hub.state == "incomplete"


def test_hub_gap_in_published_changes_makes_it_incomplete_until_it_closes() -> None:
    hub = hub_at(0)
    hub.tail.publish(record(2), "s")
    assert (hub.state, hub.needs_reread) == ("incomplete", True)
    hub.tail.publish(record(1), "s")
    assert (hub.state, hub.needs_reread, hub.tail.head) == ("complete", False, 2)


def test_hub_remote_commit_up_to_the_head_changes_nothing() -> None:
    hub = hub_at(4)
    assert not hub.note_remote_commit(4)
    assert (hub.state, hub.remote_commit.is_set()) == ("complete", False)
    assert hub.note_remote_commit(5)
    assert (hub.state, hub.remote_commit.is_set()) == ("incomplete", True)


def test_hub_without_subscriptions_stays_incomplete_and_is_not_reread() -> None:
    hub = hub_at(4, is_subscribed=False)
    hub.note_missed()
    assert (hub.state, hub.begin_reread(), hub.begin_read()) == ("incomplete", False, None)


def test_hub_reread_begins_once_and_ends_complete() -> None:
    hub = hub_at(4)
    hub.note_remote_commit(6)
    assert hub.begin_reread()
    assert not hub.begin_reread()
    assert hub.begin_read() == 4
    assert not hub.remote_commit.is_set(), "the next one is waited for again"
    hub.end_read(Page([record(5), record(6)], 6, more=False))
    assert (hub.state, hub.needs_reread) == ("rereading", False)
    assert hub.begin_read() is None
    hub.end_reread()
    assert (hub.state, hub.tail.head, [entry.seq for entry in hub.tail.after(4)]) == ("complete", 6, [5, 6])


def test_hub_change_missed_during_a_read_needs_another_read() -> None:
    hub = hub_at(4)
    hub.note_missed()
    assert hub.begin_reread()
    assert hub.begin_read() == 4
    hub.note_missed()
    hub.end_read(Page([record(5)], 5, more=False))
    assert hub.begin_read() == 5
    hub.end_read(Page([], 5, more=False))
    hub.end_reread()
    assert hub.state == "complete"


def test_hub_failed_read_leaves_it_incomplete_for_the_next_reread() -> None:
    hub = hub_at(4)
    hub.note_missed()
    assert hub.begin_reread()
    assert hub.begin_read() == 4
    hub.note_missed()
    hub.end_reread()
    assert hub.state == "incomplete"
    assert hub.begin_reread()


def test_hub_gap_wider_than_the_page_empties_the_tail() -> None:
    hub = hub_at(4)
    hub.tail.publish(record(5), "s")
    hub.tail.publish(record(9), "s")
    assert hub.begin_reread()
    assert hub.begin_read() == 5
    hub.end_read(Page([record(6)], 8, more=True))
    hub.end_reread()
    assert (hub.state, hub.tail.head, hub.tail.covers(7), hub.tail.covers(8)) == ("complete", 9, False, True)
