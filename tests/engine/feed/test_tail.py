"""The tail of a tenant: what is published in any order comes out in order, and a gap is noticed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.feed.tail import Tail
from engine.model.rows import Record


def change(seq: int, record_id: str = "a", *, size: int = 0) -> Record:
    """Make a committed change; its version is its seq, which ascends as well."""
    return Record(1, "task", record_id, seq, seq, 0, "phone", 1, b'{"x":"%s"}' % (b"x" * size))


def seqs(tail: Tail, position: int) -> list[int]:
    """Give the seqs behind a position."""
    return [entry.seq for entry in tail.after(position)]


def begun(seq: int = 0, max_changes: int = 100, max_bytes: int = 100_000) -> Tail:
    """Make a tail that was begun."""
    tail = Tail(max_changes, max_bytes)
    tail.reset(seq)
    return tail


def test_tail_changes_in_order_are_appended() -> None:
    tail = begun(4)
    for seq in (5, 6, 7):
        tail.publish(change(seq), "s1")
    assert (tail.head, tail.gap) == (7, False)
    assert seqs(tail, 4) == [5, 6, 7]
    assert seqs(tail, 6) == [7]
    assert seqs(tail, 7) == []
    assert tail.covers(4)
    assert not tail.covers(3)
    entry = tail.after(6)[0]
    assert (entry.domain, entry.session_id) == ("task", "s1")
    assert msgspec.json.decode(entry.body)["seq"] == 7


def test_tail_change_ahead_of_a_gap_waits() -> None:
    tail = begun(0)
    for seq in (3, 2):
        tail.publish(change(seq), "s1")
        assert (tail.head, tail.gap) == (0, True)
    tail.publish(change(1), "s1")
    assert (tail.head, tail.gap) == (3, False)
    assert seqs(tail, 0) == [1, 2, 3]


def test_tail_change_published_twice_or_late_is_ignored() -> None:
    tail = begun(5)
    for seq in (6, 6, 5, 1, 8, 8, 7, 6, 8):
        tail.publish(change(seq), "s1")
    assert seqs(tail, 5) == [6, 7, 8]
    assert not tail.gap


def test_tail_before_its_first_reset_only_collects() -> None:
    tail = Tail(100, 100_000)
    for seq in (9, 11, 12, 8):
        tail.publish(change(seq), "s1")
    assert (tail.head, tail.gap) == (None, False)
    assert not tail.covers(100)
    tail.reset(10)
    assert tail.head == 12
    assert seqs(tail, 10) == [11, 12]
    assert not tail.gap


def test_tail_fill_closes_the_gap() -> None:
    tail = begun(0)
    for seq in (1, 4, 5, 7):
        tail.publish(change(seq), "s1")
    # 2 and 3 were lost; the record of 2 has moved on to 4, so that the store holds 3, 4 and 5.
    tail.fill([change(3, "b"), change(4), change(5, "c")], 5)
    assert (tail.head, tail.gap) == (5, True)
    found = [(entry.seq, entry.session_id) for entry in tail.after(0)]
    assert found == [(1, "s1"), (3, ""), (4, ""), (5, "")]
    tail.publish(change(6), "s1")
    assert seqs(tail, 5) == [6, 7]
    assert not tail.gap


def test_tail_fill_that_comes_too_late_changes_nothing() -> None:
    tail = begun(0)
    tail.publish(change(2), "s1")
    tail.publish(change(1), "s1")
    tail.publish(change(3), "s1")
    tail.fill([change(1), change(2)], 2)
    assert tail.head == 3
    assert seqs(tail, 0) == [1, 2, 3]


def test_tail_reset_never_moves_the_head_back() -> None:
    tail = begun(0)
    for seq in (2, 1, 3):
        tail.publish(change(seq), "s1")
    tail.reset(2)
    assert tail.head == 3
    assert not tail.covers(2), "3 would be missing, and nothing would tell"
    assert tail.covers(3)
    tail.publish(change(4), "s1")
    assert seqs(tail, 3) == [4]


def test_tail_over_max_changes_drops_the_oldest() -> None:
    tail = begun(0, max_changes=3)
    for seq in range(1, 11):
        tail.publish(change(seq), "s1")
    assert seqs(tail, 7) == [8, 9, 10]
    assert tail.covers(7)
    assert not tail.covers(6)


def test_tail_over_max_bytes_drops_the_oldest() -> None:
    tail = begun(0, max_bytes=1000)
    for seq in range(1, 11):
        tail.publish(change(seq, size=300), "s1")
    assert seqs(tail, 8) == [9, 10]
    assert not tail.covers(7)
    tail.publish(change(11, size=5000), "s1")
    assert tail.head == 11
    assert tail.covers(11)
    assert not tail.covers(10)


@pytest.mark.parametrize("waiting", ["to be begun", "for a gap"])
def test_tail_too_many_changes_out_of_order_are_dropped_and_stay_a_gap(waiting: str) -> None:
    tail = Tail(3, 100_000) if waiting == "to be begun" else begun(1, max_changes=3)
    for seq in range(3, 10):
        tail.publish(change(seq), "s1")
    if tail.head is None:
        tail.reset(2)
    else:
        tail.publish(change(2), "s1")
    assert (tail.head, tail.gap) == (2, True)
    tail.fill([change(seq) for seq in range(3, 9)], 8)
    assert (tail.head, tail.gap) == (9, False)
    assert seqs(tail, 6) == [7, 8, 9]


@pytest.mark.parametrize("max_changes", [2, 5, 100])
@given(data=st.data())
def test_tail_any_order_holds_the_latest_version_of_every_record(
    max_changes: int, data: st.DataObject
) -> None:
    """A history of commits; publishes late, twice, in any order or never; fills and new starts in between."""
    tail = Tail(max_changes, 100_000)
    history: list[Record] = []
    pending: list[Record] = []
    head = 0
    for _ in range(data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(["commit", "commit", "publish", "publish", "lose", "heal", "begin"])):
            case "commit":
                record = change(len(history) + 1, data.draw(st.sampled_from("abc")))
                history.append(record)
                pending.append(record)
            case "publish" if pending:
                index = data.draw(st.integers(0, len(pending) - 1))
                tail.publish(pending[index], "s1")
                if data.draw(st.booleans()):
                    del pending[index]
            case "lose" if pending:
                del pending[data.draw(st.integers(0, len(pending) - 1))]
            case "heal" if tail.gap:
                _heal(tail, history, data)
            case "begin" if tail.head is None or data.draw(st.integers(0, 5)) == 5:
                tail.reset(data.draw(st.integers(0, len(history))))
        _holds_the_latest(tail, history, max_changes)
        assert (tail.head or 0) >= head, "the head went back"
        head = tail.head or 0
    while tail.gap:
        _heal(tail, history, data)
        _holds_the_latest(tail, history, max_changes)


def _heal(tail: Tail, history: list[Record], data: st.DataObject) -> None:
    """Read the store as of now or a little earlier, but not before what was published."""
    assert tail.head is not None
    high_seq = len(history)
    page = [record for record in _latest(history, high_seq).values() if record.seq > tail.head]
    if data.draw(st.booleans()):
        tail.fill(sorted(page, key=lambda record: record.seq), high_seq)
    else:
        tail.reset(high_seq)


def _latest(history: list[Record], up_to_seq: int) -> dict[str, Record]:
    return {record.id: record for record in history[:up_to_seq]}


def _holds_the_latest(tail: Tail, history: list[Record], max_changes: int) -> None:
    head = tail.head
    if head is None:
        return
    assert head <= len(history)
    for position in range(head + 1):
        if not tail.covers(position):
            continue
        found = seqs(tail, position)
        assert found == sorted(set(found))
        assert all(position < seq <= head for seq in found)
        assert len(found) <= max_changes
        wanted = {record.seq for record in _latest(history, head).values() if record.seq > position}
        assert wanted <= set(found), "a record's latest version is missing"
    assert tail.covers(head)
