"""Edits behind a creation that was rejected: each would make half a record."""

from __future__ import annotations

import msgspec

from engine.model.rows import DeviceRecordKey
from engine.plan.batch import read_set
from engine.plan.work import Work
from tests.engine.plan.test_batch import Desk, Json, item

_CREATION = item("visit", "v", n=1)
_EDIT = item("visit", "v", op="patch", place="gate")


def _codes(results: list[Json]) -> list[str]:
    return [
        result["error"]["code"] if result["status"] == "rejected" else result["status"] for result in results
    ]


def test_push_edit_after_a_rejected_creation_is_rejected() -> None:
    for messages in ([[_CREATION, _EDIT]], [[_CREATION], [_EDIT]]):
        desk = Desk()
        answered = desk.results(*[desk.push(*items) for items in messages])
        assert [code for results in answered for code in _codes(results)] == [
            "invalid_item",
            "creation_rejected",
        ]
        assert not desk.rows.records
        ((late,),) = desk.results(desk.push(_EDIT))
        assert "send the whole record as a put" in late["error"]["message"]
        assert [row.code for row in desk.rows.quarantine] == [
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
        (results,) = Desk().results(Desk().push(rejected, _EDIT))
        assert _codes(results)[1] == "creation_rejected", rejected


def test_push_other_records_and_devices_are_not_rejected() -> None:
    desk = Desk()
    desk.results(desk.push(_CREATION))
    beside = [
        desk.push(_EDIT, device="tablet"),
        desk.push(item("visit", "w", op="patch", place="gate")),
        desk.push(item("task", "v", op="patch", place="gate")),
    ]
    for push in beside:
        one = Desk()
        one.rows.quarantine = list(desk.rows.quarantine)
        assert _codes(one.results(push)[0]) == ["applied"]
    other = Desk()
    other.rows.quarantine = [msgspec.structs.replace(row, tenant_id=2) for row in desk.rows.quarantine]
    assert _codes(other.results(desk.push(_EDIT))[0]) == ["applied"]


def test_push_put_after_a_rejected_creation_applies() -> None:
    desk = Desk()
    whole = item("visit", "v", place="hall")
    (results,) = desk.results(desk.push(_CREATION, _EDIT, whole, _EDIT))
    assert _codes(results) == ["invalid_item", "creation_rejected", "applied", "applied"]


def test_push_edit_after_an_aborted_message_applies() -> None:
    desk = Desk()
    aborted, edits = desk.results(desk.push(_CREATION, atomic=True), desk.push(_EDIT))
    assert (_codes(aborted), _codes(edits)) == (["invalid_item"], ["applied"])


def test_push_atomic_after_a_rejected_creation_is_aborted() -> None:
    desk = Desk()
    desk.results(desk.push(_CREATION))
    ((first, second),) = desk.results(desk.push(item("task", "t", x=1), _EDIT, atomic=True))
    assert _codes([first, second]) == ["batch_aborted", "creation_rejected"]
    assert [row.code for row in desk.rows.quarantine] == ["invalid_item"]


def test_push_id_of_any_script_is_found_in_the_quarantine() -> None:
    desk = Desk()
    named = "v\u00a0\u2028ä"
    desk.results(desk.push(item("visit", named, n=1)))
    ((edit,),) = desk.results(desk.push(item("visit", named, op="patch", place="gate")))
    assert _codes([edit]) == ["creation_rejected"]


def test_read_set_quarantine_only_for_patches_without_a_base() -> None:
    desk = Desk()
    batch: list[Work] = [
        desk.push(_CREATION, item("visit", "v", 1, "patch", n=1), item("visit", "v", op="delete"), _EDIT)
    ]
    assert read_set(batch, desk.context).rejected_before == [DeviceRecordKey(1, "phone", "visit", "v")]
