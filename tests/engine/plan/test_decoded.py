"""Large records of a batch are decoded once, and encoded as they always are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.merge import apply_patch, decode_fields, encode_fields
from engine.model.rows import RecordKey
from engine.plan import decoded
from engine.plan.decoded import LARGE_BYTES, DecodedRecords
from tests.engine.plan.test_batch import Planner

_KEYS = [RecordKey(1, "task", name) for name in "ab"]
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(0, 9), st.text("ab é", max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("xy"), inner, max_size=2)
    ),
    max_leaves=5,
)
_PATCHES = st.dictionaries(st.sampled_from("klm"), _VALUES, max_size=3)


@given(st.lists(st.tuples(st.sampled_from([0, 1]), _PATCHES, st.booleans()), max_size=12))
def test_decoded_records_are_those_that_are_decoded_and_encoded_anew(
    did: list[tuple[int, dict[str, Any], bool]],
) -> None:
    records = DecodedRecords()
    pad = {"text": "x" * LARGE_BYTES}
    stands = [encode_fields(pad), encode_fields({**pad, "k": 1})]
    for which, patch, is_written in did:
        key = _KEYS[which]
        fields = records.decode(key, stands[which])
        assert repr(fields) == repr(decode_fields(stands[which]))
        outcome = apply_patch(fields, patch)
        data = records.encode(key, outcome)
        assert data == encode_fields(outcome) == records.encode(key, dict(outcome))
        if is_written:
            stands[which] = records.encode(key, outcome)


def test_plan_many_patches_of_a_large_record_decodes_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decodes: list[int] = []

    def counted(data: bytes) -> Any:
        decodes.append(len(data))
        return decode_fields(data)

    planner = Planner(record_bytes=1 << 18)
    item = {"domain": "visit", "id": "r", "op": "put", "base": None}
    planner.plan(planner.push({**item, "data": {"place": "a", "n": [1e308] * 1000}}, device="tablet"))
    planner.plan(planner.push({**item, "op": "patch", "base": 1, "data": {"k": -1}}, device="tablet"))
    monkeypatch.setattr(decoded, "decode_fields", counted)
    patches = [{**item, "op": "patch", "base": 1, "data": {"k": number}} for number in range(30)]
    planner.plan(planner.push(*patches))
    assert len(decodes) == 1


def test_decoded_records_keep_a_bounded_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "_KEPT_BYTES", 3 * LARGE_BYTES)
    records = DecodedRecords()
    data = encode_fields({"text": "x" * LARGE_BYTES})
    first = records.decode(_KEYS[0], data)
    assert records.decode(_KEYS[0], data) is first
    for number in range(3):
        records.decode(RecordKey(1, "task", str(number)), data)
    assert records.decode(_KEYS[0], data) is not first
