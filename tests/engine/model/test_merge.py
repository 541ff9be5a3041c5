"""Merge patches, equality of contents, and versions by field that stay small."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.merge import (
    MAX_REMOVED_FIELDS,
    FieldVersions,
    Sent,
    advance,
    apply_patch,
    created,
    decode_fields,
    encode_fields,
    same_content,
    same_value,
    versions_of,
)
from tests.harness.contract_model import canonical, merge_patch

Json = dict[str, Any]

_scalars = st.sampled_from([None, True, False, 0, 1, -1, 1.0, 0.0, -0.0, 1e16, 10**16, "", "a", "ä", "1"])
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
_objects = st.dictionaries(st.sampled_from("abcd"), _values, max_size=4)


# -- merge patches ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "patch", "outcome"),
    [
        # The examples of RFC 7396, appendix A, whose target and patch are objects.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_apply_patch_examples_of_the_rfc(target: Json, patch: Json, outcome: Json) -> None:
    assert apply_patch(target, patch) == outcome


@given(target=_objects, patch=_objects)
def test_apply_patch_agrees_with_the_rfc(target: Json, patch: Json) -> None:
    before = canonical([target, patch])
    assert canonical(apply_patch(target, patch)) == canonical(merge_patch(target, patch))
    assert canonical([target, patch]) == before, "neither argument is changed"


# -- equality ---------------------------------------------------------------------------------


@given(left=_values, right=_values)
def test_same_value_of_other_types_differs(left: Any, right: Any) -> None:
    assert same_value(left, right) is (canonical(left) == canonical(right))
    assert same_value(left, json.loads(json.dumps(left)))


@given(left=_objects, right=_objects)
def test_same_content_in_any_order_of_members(left: Json, right: Json) -> None:
    same = canonical(left) == canonical(right)
    assert same_content(encode_fields(left), encode_fields(right)) is same
    turned = dict(reversed(left.items()))
    assert same_content(encode_fields(left), encode_fields(turned))


@pytest.mark.parametrize("others", [(1, 1.0, True), (0, 0.0, False, -0.0, None, ""), ("1", 1)])
def test_same_value_equal_in_python_may_differ(others: tuple[Any, ...]) -> None:
    for index, left in enumerate(others):
        for right in others[:index]:
            assert not same_value(left, right)
            assert not same_value([left], [right])
            assert not same_content(encode_fields({"a": left}), encode_fields({"a": right}))


@given(fields=_objects)
def test_encode_fields_is_decoded_unchanged(fields: Json) -> None:
    assert canonical(decode_fields(encode_fields(fields))) == canonical(fields)


# -- versions by field --------------------------------------------------------------------------


def versions(stored: bytes) -> FieldVersions:
    """Read field versions."""
    return versions_of(stored, -1, -1)


def test_field_versions_new_record_has_every_field() -> None:
    known = versions(created({"a": 1, "b": 2}, 10))
    assert known.changed_after("a", 0)
    assert not known.changed_after("a", 1)
    assert not known.changed_after("never", 0)
    assert known.changed_at_us("a") == 10


def test_field_versions_change_is_noted_by_field() -> None:
    stored = created({"a": 1, "b": 2, "c": 3}, 10)
    stored = advance(versions(stored), {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3}, 2, 20)
    known = versions(stored)
    assert [known.changed_after(name, 1) for name in "abc"] == [False, True, True]
    assert [known.changed_after(name, 2) for name in "abc"] == [False, False, False]
    assert [known.changed_at_us(name) for name in "abc"] == [10, 20, 20]


def test_field_versions_value_of_another_type_is_a_change() -> None:
    known = versions(advance(versions(created({"a": 1}, 10)), {"a": 1}, {"a": True}, 2, 20))
    assert known.changed_after("a", 1)


def test_field_versions_record_without_them_starts_at_its_version() -> None:
    known = versions_of(None, 7, 70)
    assert known.changed_after("a", 6)
    assert not known.changed_after("a", 7)
    assert known.changed_at_us("a") == 70
    known = versions(advance(known, {"a": 1, "b": 1}, {"a": 2, "b": 1}, 8, 80))
    assert known.changed_after("a", 7)
    assert not known.changed_after("b", 7)
    assert known.changed_after("b", 6)


def test_field_versions_removed_fields_are_bounded() -> None:
    stored = created({"keep": 1}, 0)
    count = MAX_REMOVED_FIELDS + 10
    for number in range(count):
        added = {"keep": 1, f"f{number}": 1}
        stored = advance(versions(stored), {"keep": 1}, added, 2 * number + 2, number)
        stored = advance(versions(stored), added, {"keep": 1}, 2 * number + 3, number)
    known = versions(stored)
    assert len(known.changed) <= 1 + MAX_REMOVED_FIELDS
    # What is folded counts as changed for whoever does not know the last that was folded ...
    assert known.changed_after("f0", known.since - 1)
    assert not known.changed_after("f0", known.since)
    # ... while a field that kept its entry is still judged by that.
    assert not known.changed_after("keep", 1)
    assert known.changed_after("keep", 0)
    assert known.changed_after(f"f{count - 1}", 2 * count)
    assert not known.changed_after(f"f{count - 1}", 2 * count + 1)


def test_field_versions_long_names_of_removed_fields_are_bounded() -> None:
    stored = created({"keep": 1}, 0)
    for number in range(10):
        added = {"keep": 1, f"{number}" * 50_000: 1}
        stored = advance(versions(stored), {"keep": 1}, added, 2 * number + 2, number)
        stored = advance(versions(stored), added, {"keep": 1}, 2 * number + 3, number)
    known = versions(stored)
    assert len(stored) < 120_000
    assert known.changed_after("0" * 50_000, known.since - 1)
    assert not known.changed_after("keep", 1)
    assert known.changed_after("keep", 0)


@pytest.mark.parametrize("changes", [1, 2, 30])
def test_field_versions_only_the_last_writer_is_kept(changes: int) -> None:
    fields: Json = {}
    stored = created(fields, 0)
    for number in range(10):
        before, fields = fields, {**fields, f"f{number}": number}
        stored = advance(versions(stored), before, fields, number + 2, number, Sent(f"d{number}", number))
    after = {**fields, **{f"f{number}": -1 for number in range(changes)}}
    known = versions(advance(versions(stored), fields, after, 20, 20, Sent("d0", 20)))
    for number in range(10):
        owners = [device for device, own in known.writers.items() if f"f{number}" in own]
        assert owners == ["d0" if number < changes else f"d{number}"]


_records = st.dictionaries(
    st.sampled_from([f"f{number}" for number in range(60)]), st.sampled_from([0, 1]), max_size=6
)


@given(history=st.lists(_records, min_size=1, max_size=60), base=st.integers(0, 60))
def test_field_versions_every_change_is_noted(history: list[Json], base: int) -> None:
    """Against the whole history: never less than it changed, and exactly that where entries are kept."""
    stored = created(history[0], 1)
    for number, (before, after) in enumerate(itertools.pairwise(history), start=2):
        stored = advance(versions(stored), before, after, number, number)
    known = versions(stored)
    for name in (f"f{number}" for number in range(60)):
        states = [None, *(record.get(name) for record in history)]
        last = max((n for n in range(1, len(states)) if states[n] != states[n - 1]), default=0)
        if last > base:
            assert known.changed_after(name, base)
            assert known.changed_at_us(name) >= last
        elif name in known.changed or base >= known.since:
            assert not known.changed_after(name, base)
        if name in known.changed:
            assert known.changed[name] == (last, last)
    assert len(known.changed) <= len(history[-1]) + MAX_REMOVED_FIELDS
    assert msgspec.json.decode(stored)["since"] <= len(history)
