"""Edits behind a creation that was rejected: each would make half a record."""

from __future__ import annotations

import msgspec

from engine.model.rows import DeviceRecordKey
from engine.plan.batch import read_set
from engine.plan.work import Work
from tests.engine.plan.test_batch import Json, Planner, item

_CREATION = item("visit", "v", n=1)
_EDIT = item("visit", "v", op="patch", place="gate")


def _codes(results: list[Json]) -> list[str]:
    return [
        result["error"]["code"] if result["status"] == "rejected" else result["status"] for result in results
    ]


def test_push_edit_after_a_rejected_creation_is_rejected() -> None:
    for messages in ([[_CREATION, _EDIT]], [[_CREATION], [_EDIT]]):
        planner = Planner()
        answered = planner.results(*[planner.push(*items) for items in messages])
        assert [code for results in answered for code in _codes(results)] == [
            "invalid_item",
            "creation_rejected",
        ]
        assert not planner.rows.records
        ((late,),) = planner.results(planner.push(_EDIT))
        assert "send the whole record as a put" in late["error"]["message"]
        assert [row.code for row in planner.rows.quarantine] == [
            "invalid_item",
            "creation_rejected",
            "creation_rejected",
        ]


def test_push_edit_after_any_rejected_item_of_its_record_is_rejected() -> None:
    before = [
        {"domain": "visit", "id": "v", "op": "put", "data": [1]},
        item("visit", "v", op="append", place="gate"),
        item("visit", "v", 3, "patch", place="gate"),
    ]
    for rejected in before:
        (results,) = Planner().results(Planner().push(rejected, _EDIT))
        assert _codes(results)[1] == "creation_rejected", rejected


def test_push_other_records_and_devices_are_not_rejected() -> None:
    planner = Planner()
    planner.results(planner.push(_CREATION))
    beside = [
        planner.push(_EDIT, device="tablet"),
        planner.push(item("visit", "w", op="patch", place="gate")),
        planner.push(item("task", "v", op="patch", place="gate")),
    ]
    for push in beside:
        one = Planner()
        one.rows.quarantine = list(planner.rows.quarantine)
        assert _codes(one.results(push)[0]) == ["applied"]
    other = Planner()
    other.rows.quarantine = [msgspec.structs.replace(row, tenant_id=2) for row in planner.rows.quarantine]
    assert _codes(other.results(planner.push(_EDIT))[0]) == ["applied"]


def test_push_put_after_a_rejected_creation_applies() -> None:
    planner = Planner()
    whole = item("visit", "v", place="hall")
    (results,) = planner.results(planner.push(_CREATION, _EDIT, whole, _EDIT))
    assert _codes(results) == ["invalid_item", "creation_rejected", "applied", "applied"]


def test_push_edit_after_an_aborted_message_applies() -> None:
    planner = Planner()
    aborted, edits = planner.results(planner.push(_CREATION, atomic=True), planner.push(_EDIT))
    assert (_codes(aborted), _codes(edits)) == (["invalid_item"], ["applied"])


def test_push_atomic_after_a_rejected_creation_is_aborted() -> None:
    planner = Planner()
    planner.results(planner.push(_CREATION))
    ((first, second),) = planner.results(planner.push(item("task", "t", x=1), _EDIT, atomic=True))
    assert _codes([first, second]) == ["batch_aborted", "creation_rejected"]
    assert [row.code for row in planner.rows.quarantine] == ["invalid_item"]


def test_push_id_of_any_script_is_found_in_the_quarantine() -> None:
    planner = Planner()
    named = "v\u00a0\u2028ä"
    planner.results(planner.push(item("visit", named, n=1)))
    ((edit,),) = planner.results(planner.push(item("visit", named, op="patch", place="gate")))
    assert _codes([edit]) == ["creation_rejected"]


def test_read_set_quarantine_only_for_patches_without_a_base() -> None:
    planner = Planner()
    batch: list[Work] = [
        planner.push(_CREATION, item("visit", "v", 1, "patch", n=1), item("visit", "v", op="delete"), _EDIT)
    ]
    assert read_set(batch, planner.context).rejected_before == [DeviceRecordKey(1, "phone", "visit", "v")]
