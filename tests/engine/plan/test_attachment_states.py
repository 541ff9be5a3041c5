"""States to which planning moves uploads: every move is a transition of the table, and all are reached."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import msgspec

from engine.model.rows import Record, RecordKey, Snapshot
from engine.model.uploads import STATES, State, UploadRef
from engine.plan.attachments import attach, attaching, freeing
from engine.plan.unit_of_work import UnitOfWork
from tests.harness.uploads.stored_files import upload

NOW_US = 1_000_000
LISTED = {(state, after) for state, rule in STATES.items() if state != "open" for after in rule.successors}
#: States of uploads of one content and name on one record: of these the planning reads each other's.
FILES: list[State] = [state for state, rule in STATES.items() if rule.is_file or rule.is_finished]


def situations() -> Iterator[tuple[State, ...]]:
    """States of up to three uploads of one content: one file stands in the entry, and for each duplicate."""
    for count in range(1, 4):
        for states in product(FILES, repeat=count):
            shown = sum(STATES[state].in_entry for state in states)
            if shown == 1 or (shown == 0 and set(states) == {"stored"}):
                yield states


def planned(states: tuple[State, ...], *, frees: bool, is_alive: bool | None) -> list[tuple[State, State]]:
    """Plan the work for the first of some uploads. ``is_alive`` is None for a record that never came."""
    files = [upload(number, file_name="a.jpg", sha256="f" * 64) for number in range(1, len(states) + 1)]
    first = files[0]
    refs = [one.ref for one in files]
    records: dict[RecordKey, Record] = {}
    shown = [
        msgspec.Raw(attaching(one, NOW_US).entry or b"")
        for one, state in zip(files, states, strict=True)
        if STATES[state].in_entry
    ]
    if is_alive is not None:
        records[RecordKey(1, "task", "a")] = Record(
            1,
            "task",
            "a",
            1,
            1,
            0,
            None,
            1,
            b"{}" if is_alive else None,
            attachments=msgspec.json.encode(shown),
        )
    before: dict[UploadRef, State] = dict(zip(refs, states, strict=True))
    snapshot = Snapshot({1: 1}, {}, records, {}, {}, {}, dict(before), {first.ref: refs[1:]})
    unit = UnitOfWork(snapshot)
    attach((freeing if frees else attaching)(first, NOW_US), unit)
    return [(before[ref], after) for ref, after in unit.writes().uploads]


def test_attachment_states_every_planned_move_is_a_listed_transition() -> None:
    found = set()
    for states in situations():
        is_shown = any(STATES[state].in_entry for state in states)
        for frees, is_alive in product((False, True), (True, False) if is_shown else (True, False, None)):
            moves = planned(states, frees=frees, is_alive=is_alive)
            assert set(moves) <= LISTED, (states, frees, is_alive)
            found |= set(moves)
    assert found == LISTED
