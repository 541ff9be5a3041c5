"""The changes that one conflict holds: their order, what drops out, what is merged where they are many."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.merge import decode_fields, encode_fields
from engine.model.rows import HeldChange
from engine.plan.held_changes import MAX_CHANGES, Changes, applied, compacted, compose, fold, op_of
from tests.harness.contract_model import (
    CHAIN,
    RejectedError,
    Waiting,
    World,
    again,
    canonical,
    chain_applied,
    merge_patch,
)

Json = dict[str, Any]

LIMIT_BYTES = 60

_scalars = st.sampled_from([1, 1.0, True, "x", "ä" * 9, [1]])
_names = st.sampled_from(["a", "b", "c"])
patches: st.SearchStrategy[Json] = st.recursive(
    st.dictionaries(_names, st.none() | _scalars, max_size=2),
    lambda inner: st.dictionaries(_names, st.none() | _scalars | inner | inner, max_size=2),
    max_leaves=6,
)
records = st.none() | st.recursive(
    st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), _scalars, max_size=4),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), _scalars | inner, max_size=4),
    max_leaves=8,
)


@st.composite
def _waiting(draw: st.DrawFn) -> Waiting:
    op = draw(st.sampled_from(["patch"] * 6 + ["put", "delete"]))
    base = draw(st.sampled_from([None, 1, 2]))
    sent_us = draw(st.integers(1, 4))
    return Waiting(op, base, sent_us + 10, sent_us, None if op == "delete" else draw(patches))


def change(op: Any, sent: int, data: Json | None, base: int | None = 1) -> HeldChange:
    return HeldChange(op, base, sent + 10, sent, None if data is None else encode_fields(data))


def _stored(record: Json | None) -> bytes | None:
    return None if record is None else encode_fields(record)


def _change(one: Waiting) -> HeldChange:
    return change(one.op, one.sent_us, one.data, one.base)


def _shown(one: HeldChange | Waiting) -> list[Any]:
    if isinstance(one, Waiting):
        return [one.op, one.base, one.at_us, one.sent_us, canonical(one.data)]
    data = None if one.data is None else json.loads(one.data)
    return [one.op, one.base, one.at_us, one.sent_at_us, canonical(data)]


@given(st.lists(_waiting(), min_size=1, max_size=9), records)
def test_fold_any_chain_is_as_in_the_model(sent: list[Waiting], record: Json | None) -> None:
    world = World({}, LIMIT_BYTES)
    expected: tuple[Waiting, ...] = (sent[0],)
    held: Changes = (_change(sent[0]),)
    for one in sent[1:]:
        folded = fold(held, _change(one), LIMIT_BYTES)
        if again(expected, one):
            assert folded is held
            continue
        try:
            expected = world.chained(expected, one)
        except RejectedError:
            assert folded is None
            continue
        assert folded is not None
        held = folded
        assert [_shown(one) for one in held] == [_shown(one) for one in expected]
        assert canonical(applied(held, _stored(record))) == canonical(chain_applied(expected, record))


@given(st.lists(_waiting(), min_size=1, max_size=6), records)
def test_fold_changes_in_order_leaves_what_each_leaves_after_the_other(
    sent: list[Waiting], record: Json | None
) -> None:
    sent.sort(key=lambda one: one.sent_us)
    held: Changes = (_change(sent[0]),)
    for one in sent[1:]:
        folded = fold(held, _change(one), 10_000)
        assert folded is not None
        held = folded
    assert canonical(applied(held, _stored(record))) == canonical(chain_applied(tuple(sent), record))
    merged = compacted(held)
    assert len(merged) <= len(held)
    assert canonical(applied(merged, _stored(record))) == canonical(applied(held, _stored(record)))
    assert (merged[0].base, merged[-1].at_us) == (held[0].base, held[-1].at_us)


@given(patches, patches, records)
def test_compose_does_to_every_record_what_both_patches_do(
    first: Json, second: Json, record: Json | None
) -> None:
    after = merge_patch(merge_patch(record, first), second)
    both = deepcopy(first)
    if compose(both, deepcopy(second)):
        assert canonical(merge_patch(record, both)) == canonical(after)
    else:
        assert canonical(both) == canonical(first)


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": 1}, {"a": 1}),
        ({"a": {"x": None}}, {"a": {"x": 2, "y": None}}, {"a": {"x": 2, "y": None}}),
        ({"a": None}, {"a": {"c": 2}}, None),
        ({"a": 1}, {"a": {"c": 2}}, None),
        ({"n": {"a": [1]}}, {"n": {"a": {}}}, None),
    ],
)
def test_compose_makes_one_patch_of_two_or_none(first: Json, second: Json, both: Json | None) -> None:
    before = deepcopy(first)
    assert compose(first, second) is (both is not None)
    assert first == (both or before)


def test_fold_late_change_goes_below_and_a_tie_behind() -> None:
    first, late, tie = (change("patch", at, {"a": name}) for at, name in ((2, "x"), (1, "y"), (2, "z")))
    held = fold((first,), late, LIMIT_BYTES)
    assert held == (late, first)
    assert fold(held, tie, LIMIT_BYTES) == (late, first, tie)


@pytest.mark.parametrize("op", ["put", "delete"])
def test_fold_whole_change_drops_what_stands_before_it(op: str) -> None:
    before, behind = change("patch", 1, {"a": 1}, 4), change("patch", 3, {"b": 1}, 5)
    whole = change(op, 2, {"c": 1} if op == "put" else None, 6)
    held = fold((before, behind), whole, LIMIT_BYTES)
    assert held == (whole, behind)
    assert fold(held, before, LIMIT_BYTES) == held
    assert op_of(held) == "put"
    assert applied(held, b'{"d":1}') == ({"c": 1, "b": 1} if op == "put" else {"b": 1})


def test_fold_the_very_same_change_adds_nothing() -> None:
    held = (change("patch", 0, {"a": 3}), change("patch", 1, {"a": 1, "b": 2}), change("patch", 2, {"a": 4}))
    repeated = HeldChange("patch", 1, 99, 1, b'{"b":2,"a":1}')
    assert fold(held, repeated, LIMIT_BYTES) is held
    for other in (
        change("patch", 1, {"a": 1, "b": 2}, None),
        change("patch", 1, {"a": 1.0, "b": 2}),
        change("patch", 3, {"a": 1, "b": 2}),
        change("put", 1, {"a": 1, "b": 2}),
    ):
        assert fold(held, other, LIMIT_BYTES) is not held


def test_fold_changes_of_one_instant_there_and_back_are_all_kept() -> None:
    on, off = change("patch", 1, {"done": True}), change("patch", 1, {"done": False})
    held = fold(fold((on,), off, LIMIT_BYTES) or (), on, LIMIT_BYTES)
    assert held == (on, off, on)


def test_fold_over_the_size_merges_and_then_refuses() -> None:
    long = change("patch", 1, {"a": "x" * 40})
    held = fold((long,), change("patch", 2, {"a": "y" * 40}), LIMIT_BYTES)
    assert held == (change("patch", 2, {"a": "y" * 40}),)
    assert fold(held, change("patch", 3, {"b": "y" * 40}), LIMIT_BYTES) is None


def test_fold_past_the_number_merges_where_it_can() -> None:
    held: Changes = (change("patch", 0, {"a": 0}),)
    for at in range(1, MAX_CHANGES + 1):
        assert len(held) == at
        held = fold(held, change("patch", at, {"a": at}), 1 << 20) or ()
    assert held == (change("patch", MAX_CHANGES, {"a": MAX_CHANGES}),)
    held = (change("patch", 0, {"a": None}),)
    for at in range(1, MAX_CHANGES):
        held = fold(held, change("patch", at, {"a": {"b": at}} if at % 2 else {"a": None}), 1 << 20) or ()
    assert len(held) == MAX_CHANGES == CHAIN
    held = fold(held, change("patch", MAX_CHANGES, {"a": None}), 1 << 20) or ()
    assert [decode_fields(one.data or b"") for one in held] == [{"a": None}]
