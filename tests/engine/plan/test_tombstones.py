"""What a patch meets on a deleted record: its last data, or a person."""

from __future__ import annotations

import json

import msgspec

from engine.model.rows import OpenConflictRef, RecordKey
from engine.plan.batch import plan, read_set
from engine.plan.work import Work
from tests.engine.plan.test_batch import Planner, item, statuses


def _deleted(planner: Planner, domain: str = "visit") -> RecordKey:
    """Have another device create a record and delete it."""
    created, deleted = item(domain, "v", place="hall", n=1), item(domain, "v", 1, "delete")
    assert statuses(planner.results(planner.push(created, deleted, device="planner"))[0]) == ["applied"] * 2
    return RecordKey(1, domain, "v")


def test_tombstone_made_and_deleted_in_one_batch_keeps_its_last_data() -> None:
    planner = Planner()
    key = _deleted(planner)
    assert (planner.rows.records[key].data, planner.rows.records[key].last_data) == (
        None,
        b'{"place":"hall","n":1}',
    )


def test_tombstone_brought_back_has_no_last_data() -> None:
    planner = Planner()
    key = _deleted(planner)
    ((result,),) = planner.results(planner.push(item("visit", "v", 1, "patch", n=2)))
    assert (result["status"], result["winner"], result["version"]) == ("resolved", "client", 3)
    assert result["data"] == {"place": "hall", "n": 2}
    assert planner.rows.records[key].last_data is None
    assert [row.server_data for row in planner.rows.conflicts.values()] == [None]


def test_tombstone_patch_on_its_version_applies_to_an_empty_object() -> None:
    planner = Planner()
    _deleted(planner)
    based = planner.push(item("visit", "v", 2, "patch", place="gate"))
    chained = planner.push(item("visit", "v", 1, "patch", place="yard"), device="planner")
    for push, place in ((based, "gate"), (chained, "yard")):
        one = Planner()
        key = _deleted(one)
        assert statuses(one.results(push)[0]) == ["applied"]
        assert json.loads(one.rows.records[key].data or b"") == {"place": place}


def test_tombstone_without_last_data_holds_a_patch_under_every_policy() -> None:
    planner = Planner()
    key = _deleted(planner)
    planner.rows.records[key] = msgspec.structs.replace(planner.rows.records[key], last_data=None)
    pushes = [planner.push(item("visit", "v", 1, "patch", n=2)), planner.push(item("task", "t", x=1))]
    batch: list[Work] = [*pushes]
    first = plan(batch, planner.rows.snapshot(read_set(batch, planner.context)), planner.context)
    holder = OpenConflictRef(1, "phone", "visit", "v")
    assert list(first.unread_conflicts) == [holder]
    assert holder not in read_set(batch, planner.context).open_conflicts
    assert holder in read_set(batch, planner.context, first.unread_conflicts).open_conflicts
    assert [statuses(results) for results in planner.results(*pushes)] == [["conflict"], ["applied"]]
    ((again,),) = planner.results(planner.push(item("visit", "v", 1, "patch", n=3)))
    (conflict,) = [row for row in planner.rows.conflicts.values() if row.outcome == "open"]
    assert (again["conflict_id"], again["data"]) == (conflict.conflict_id, None)
    assert (conflict.policy, conflict.client_count) == ("client_wins", 2)
    patch = item("visit", "v", 1, "patch", n=4)
    ((held, whole),) = planner.results(planner.push(patch, item("visit", "v", 1, place="gate")))
    assert (held["status"], whole["status"], whole["data"]) == ("conflict", "resolved", {"place": "gate"})


def test_tombstone_without_last_data_aborts_an_atomic_patch() -> None:
    planner = Planner()
    key = _deleted(planner)
    planner.rows.records[key] = msgspec.structs.replace(planner.rows.records[key], last_data=None)
    message = planner.push(item("task", "t", x=1), item("visit", "v", 1, "patch", n=2), atomic=True)
    planned = planner.plan(message)
    assert not planned.unread_conflicts
    assert not planner.rows.conflicts
    assert RecordKey(1, "task", "t") not in planner.rows.records


def test_tombstone_server_wins_keeps_its_last_data() -> None:
    planner = Planner()
    key = _deleted(planner, "task")
    before = planner.rows.records[key]
    ((result,),) = planner.results(planner.push(item("task", "v", 1, "patch", n=2)))
    assert (result["status"], result["winner"], result["data"]) == ("resolved", "server", None)
    assert planner.rows.records[key] == before
    assert before.last_data == b'{"place":"hall","n":1}'


def test_tombstone_without_retention_keeps_no_last_data() -> None:
    planner = Planner()
    planner.context = msgspec.structs.replace(planner.context, tombstone_data=False)
    key = _deleted(planner)
    assert planner.rows.records[key].last_data is None


def test_tombstone_person_chooses_the_patch_on_its_last_data() -> None:
    planner = Planner()
    key = _deleted(planner, "form")
    planner.results(planner.push(item("form", "v", 1, "patch", n=2)))
    (conflict,) = planner.rows.conflicts.values()
    again = planner.plan(planner.resolution(conflict, "server", 2)).writes.records
    assert [(row.version, row.data, row.last_data) for row in again] == [(3, None, b'{"place":"hall","n":1}')]
    planner.results(planner.push(item("form", "v", 1, "patch", n=3)))
    conflict = max(planner.rows.conflicts.values(), key=lambda one: one.outcome == "open")
    planner.plan(planner.resolution(conflict, "client", 3))
    assert json.loads(planner.rows.records[key].data or b"") == {"place": "hall", "n": 3}
