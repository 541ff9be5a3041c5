"""Personal data in what commands show."""

import json

import msgspec
import pytest

from engine.model.domains import Domain
from engine.model.rows import Conflict, HeldChange, Quarantined, Record
from engine.operate.conflict_view import conflict_view, retry_view
from engine.operate.masking import MASK, Mask
from engine.operate.rows import ConflictCase

DOMAINS = {
    "form": Domain(pii=("name", "score"), required=("name", "place"), server_owned=()),
    "task": Domain(),
}
SECRETS = ("Ada", "Bea", "Cleo", "Dora")


def _record(domain: str = "form") -> Record:
    return Record(1, domain, "r1", 4, 9, 5, "phone", 1, b'{"name":"Ada","score":7,"place":"gate"}')


def _case(domain: str) -> ConflictCase:
    return ConflictCase(
        "acme",
        Conflict(
            tenant_id=1,
            conflict_id="c1",
            domain=domain,
            record_id="r1",
            device_id="phone",
            policy="manual",
            outcome="open",
            server_version=3,
            server_data=b'{"name":"Bea"}',
            client_base=1,
            client_op="put",
            client_at_us=5,
            client_data=b'{"name":"Cleo","place":"hall"}',
            client_changes=(
                HeldChange("put", 1, 5, 5, b'{"name":"Cleo","place":"hall"}'),
                HeldChange("patch", 1, 6, 6, b'{"name":"Dora","more":1}'),
            ),
            opened_at_us=5,
        ),
        _record(domain),
    )


def _text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def test_mask_conflict_hides_each_side_and_keeps_the_rest() -> None:
    shown = conflict_view(_case("form"))
    assert all(secret in _text(shown) for secret in SECRETS)
    masked = Mask(DOMAINS, "form").conflict(shown)
    assert not any(secret in _text(masked) for secret in SECRETS)
    assert [one.field for one in masked.differences] == [one.field for one in shown.differences]
    by_name = {one.field: (one.server, one.client) for one in masked.differences}
    assert by_name["name"] == (MASK, MASK)
    assert by_name["score"] == (MASK, msgspec.UNSET), "what is missing is still seen"
    assert by_name["place"] == ("gate", "hall")
    assert masked.record is not None
    assert json.loads(bytes(masked.record.data or b"")) == {"name": MASK, "score": MASK, "place": "gate"}


def test_mask_conflict_of_a_domain_without_personal_fields_is_as_it_was() -> None:
    shown = conflict_view(_case("task"))
    assert _text(Mask(DOMAINS, "task").conflict(shown)) == _text(shown)


def test_mask_retry_hides_both_sides() -> None:
    row = Quarantined(
        tenant_id=1,
        quarantine_id="q1",
        device_id="phone",
        domain="form",
        record_id="r1",
        item=b'{"domain":"form","id":"r1","op":"put","data":{"name":"Cleo","Name":"Dora"}}',
        code="invalid_item",
        message="",
        at_us=5,
    )
    masked = _text(Mask(DOMAINS, "form").retry(retry_view(row, None, _record())))
    assert not any(secret in masked for secret in SECRETS)
    assert "gate" in masked


@pytest.mark.parametrize(
    ("domain", "item", "shown"),
    [
        (
            "form",
            {"id": 1, "data": {"name": "Ada", "place": "x"}},
            {"id": 1, "data": {"name": MASK, "place": "x"}},
        ),
        ("form", {"id": 1, "data": ["Ada"]}, {"id": 1, "data": MASK}),
        ("form", {"id": 1, "data": None}, {"id": 1, "data": None}),
        ("form", {"id": 1}, {"id": 1}),
        ("task", {"id": 1, "data": {"name": "Ada"}}, {"id": 1, "data": {"name": "Ada"}}),
        ("from", {"id": 1, "data": {"place": "Ada"}}, {"id": 1, "data": {"place": MASK}}),
        (None, {"data": {"place": "Ada"}}, {"data": {"place": MASK}}),
        (
            "form",
            {"op": "put", "dta": {"name": "Ada"}, "note": "Ada"},
            {"op": "put", "dta": MASK, "note": MASK},
        ),
        ("form", {"data": {"Name": "Ada", "place": "x"}}, {"data": {"Name": MASK, "place": "x"}}),
        ("form", {"id": {"name": "Ada"}, "op": ["Ada"], "at": 5}, {"id": MASK, "op": MASK, "at": 5}),
        ("form", {"changed": ["name"]}, {"changed": ["name"]}),
        ("form", {"changed": [{"name": "Ada"}]}, {"changed": MASK}),
        (None, {"id": 1, "dta": "Ada"}, {"id": 1, "dta": MASK}),
    ],
)
def test_mask_item(domain: str | None, item: object, shown: object) -> None:
    masked = Mask(DOMAINS, domain).item(msgspec.Raw(msgspec.json.encode(item)))
    assert isinstance(masked, msgspec.Raw)
    assert msgspec.json.decode(masked) == shown


@pytest.mark.parametrize("item", [["Ada"], "Ada", 7, None])
@pytest.mark.parametrize("domain", ["form", None])
def test_mask_item_that_is_no_object_is_hidden_as_a_whole(domain: str | None, item: object) -> None:
    assert Mask(DOMAINS, domain).item(msgspec.Raw(msgspec.json.encode(item))) == MASK


def test_mask_item_that_is_no_json_is_hidden_as_a_whole() -> None:
    assert Mask(DOMAINS, None).item("Ada") == MASK
    assert Mask(DOMAINS, "task").item("Ada") == "Ada"
    assert Mask({"task": Domain()}, None).item("Ada") == "Ada", "no domain has personal fields"
