"""Events of a minute: no event is lost, and a flood makes a bounded number of rows."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from engine.model.audit import Actor, AuditRow, EventName
from engine.operate.event_tally import WINDOW_S, EventTally, TallyLimits

LIMITS = TallyLimits(each=2, rows=5, kinds=3)
NAMES: tuple[EventName, ...] = ("token_refused", "access_forbidden")


def event(name: EventName, address: str, target: str = "") -> AuditRow:
    """An event of an address."""
    return AuditRow(name, Actor("address", address), target)


_notes = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.sampled_from("abcde"),
        st.sampled_from(["expired", "wrong"]),
        st.integers(0, 25),
    ),
    max_size=60,
)


@given(_notes, st.sets(st.integers(0, 60)))
def test_event_tally_counts_every_event_once_and_keeps_the_bounds(
    notes: list[tuple[EventName, str, str, int]], takes: set[int]
) -> None:
    tally, now_s, written = EventTally(LIMITS), 100.0, list[AuditRow]()
    minutes: list[list[tuple[EventName, str, str]]] = []
    ends_s = 0.0
    for number, (name, address, cause, pause_s) in enumerate(notes):
        now_s += pause_s
        if now_s >= ends_s:
            minutes.append([])
            ends_s = now_s + WINDOW_S
        minutes[-1].append((name, address, cause))
        tally.note(event(name, address, str(number)), cause, now_s)
        if number in takes:
            written += tally.take(now_s)
    assert tally.open is bool(notes)
    tally.end()
    written += tally.take(now_s)
    assert not tally.open
    told: Counter[tuple[str, str]] = Counter()
    for row in written:
        told[row.event, row.actor.name] += row.times
    assert told == _expected(minutes)
    most = LIMITS.rows + LIMITS.kinds + len(NAMES)
    assert len(written) <= most * len(minutes)
    whole = [row.target for row in written if row.times == 1 and row.target]
    assert len(whole) == len(set(whole))


def _expected(minutes: list[list[tuple[EventName, str, str]]]) -> Counter[tuple[str, str]]:
    """How often each event is told of each address; of the kinds past the bound without address."""
    told: Counter[tuple[str, str]] = Counter()
    for minute in minutes:
        first: dict[tuple[EventName, str, str], None] = dict.fromkeys(minute)
        known = set(list(first)[: LIMITS.kinds])
        for name, address, cause in minute:
            told[name, address if (name, address, cause) in known else ""] += 1
    return told


def test_event_tally_first_events_are_ready_at_once_and_the_rest_at_the_minutes_end() -> None:
    tally = EventTally(LIMITS)
    for number in range(5):
        tally.note(event("token_refused", "a", str(number)), "expired", 10.0)
    assert [(row.target, row.times) for row in tally.take(69.9)] == [("0", 1), ("1", 1)]
    assert [(row.target, row.times) for row in tally.take(70.0)] == [("4", 3)]
    assert tally.take(200.0) == []


def test_event_tally_flood_of_addresses_makes_few_rows() -> None:
    tally = EventTally(TallyLimits())
    for number in range(10_000):
        tally.note(event("token_refused", str(number)), "expired", 0.0)
    rows = tally.take(WINDOW_S)
    assert len(rows) == 61
    assert sum(row.times for row in rows) == 10_000
    by_kind: Counter[str] = Counter()
    for row in rows:
        by_kind[row.actor.name] += row.times
    assert by_kind[""] == 10_000 - 60
