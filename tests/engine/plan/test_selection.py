"""Which jobs of a batch are planned together, by what their rows weigh."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.rows import Record, RecordKey
from engine.plan import costs
from engine.plan.batch import read_set
from engine.plan.costs import Costs, content_us
from engine.plan.kinds import KINDS
from engine.plan.weighing import BATCH_US, Selection, select
from engine.plan.work import Work
from tests.engine.plan.test_batch import Desk, item

Json = dict[str, Any]

#: A record that alone takes more than a batch may, half of one, and an ordinary one.
LABORIOUS, HALF, ORDINARY = 200_000, 80_000, 100


def stored(desk: Desk, tenant: int, record_id: str, lists: int) -> None:
    """Store a record of so many empty lists."""
    data = b'{"x":[%b]}' % b",".join([b"[]"] * lists)
    key = RecordKey(tenant, "note", record_id)
    desk.rows.records[key] = Record(tenant, "note", record_id, 1, 1, 0, "other", 1, data)


def selected(desk: Desk, *batch: Work) -> Selection:
    """Select of a batch."""
    return select(list(batch), desk.rows.snapshot(read_set(list(batch), desk.context)))


def patch(desk: Desk, tenant: int, record_id: str, times: int = 1) -> Work:
    """Make a push that changes a record so many times."""
    return desk.push(*[item("note", record_id, 1, op="patch", n=1)] * times, tenant=tenant)


def test_select_ordinary_changes_are_all_taken() -> None:
    desk = Desk()
    for number in range(100):
        stored(desk, 1 + number % 3, f"r{number}", ORDINARY)
    batch = [patch(desk, 1 + number % 3, f"r{number}") for number in range(100)]
    assert selected(desk, *batch) == Selection(is_light=True, items_per_step=32)


def test_select_small_records_are_not_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    stored(desk, 1, "a", ORDINARY)

    def looked(*_: object) -> float:
        raise AssertionError("each look costs what it may save")

    monkeypatch.setattr(costs, "content_us", looked)
    selected(desk, *[patch(desk, 1, "a") for _ in range(100)])


def test_select_expensive_message_is_deferred_and_isolated() -> None:
    desk = Desk()
    stored(desk, 2, "big", LABORIOUS)
    stored(desk, 1, "a", ORDINARY)
    batch = [patch(desk, 1, "a"), patch(desk, 2, "a"), patch(desk, 2, "big"), patch(desk, 2, "a")]
    found = selected(desk, *batch, patch(desk, 1, "a"), patch(desk, 3, "a"))
    assert (list(found.deferred), set(found.isolated), found.items_per_step) == ([2, 3], {2}, 1)


def test_select_expensive_message_of_one_tenant_is_taken_alone() -> None:
    desk = Desk()
    stored(desk, 2, "big", LABORIOUS)
    found = selected(desk, patch(desk, 2, "big"), patch(desk, 2, "big"), patch(desk, 2, "a"))
    assert (list(found.deferred), set(found.isolated)) == ([1, 2], {2})
    assert selected(desk, patch(desk, 2, "big")) == Selection(deferred=[], isolated=frozenset({2}))


def test_select_expensive_messages_of_several_tenants_are_all_deferred() -> None:
    desk = Desk()
    for tenant in (1, 2):
        stored(desk, tenant, "big", LABORIOUS)
    found = selected(desk, patch(desk, 1, "big"), patch(desk, 2, "big"))
    assert (list(found.deferred), set(found.isolated)) == ([0, 1], {1, 2})


def test_select_batch_expensive_in_sum_is_cut() -> None:
    desk = Desk()
    stored(desk, 1, "half", HALF)
    stored(desk, 2, "half", HALF)
    batch = [patch(desk, 1, "half"), patch(desk, 2, "half"), patch(desk, 3, "a"), patch(desk, 2, "b")]
    found = selected(desk, *batch)
    assert (list(found.deferred), found.isolated) == ([1, 3], frozenset())


@pytest.mark.parametrize(
    "data",
    [
        {"x": [[]] * 87_000},
        {"x": [{}] * 87_000},
        {"x": [1.25] * 50_000},
        {f"{number:x}": 1 for number in range(29_000)},
    ],
    ids=["lists", "objects", "numbers", "fields"],
)
def test_content_us_many_small_values_cost_more_than_text(data: Json) -> None:
    text = json.dumps(data, separators=(",", ":")).encode()
    assert content_us(text) > 3 * content_us(b'{"x":"%b"}' % (b"x" * len(text)))


def test_costs_held_changes_and_files_count() -> None:
    desk = Desk(record_bytes=1 << 18)
    desk.results(desk.push(item("form", "a", x=1)))
    desk.results(desk.push(item("form", "a", x=2), device="tablet"))
    desk.results(desk.push(item("form", "a", 1, op="patch", x=[[]] * 80_000), device="tablet"))
    batch = [desk.push(item("form", "a", 1, op="patch", n=1), device="tablet")]
    costs = Costs(desk.rows.snapshot(read_set(list(batch), desk.context)))
    kind = KINDS[type(batch[0])]
    assert kind.cost_us(batch[0], costs) > BATCH_US / 3
    assert kind.touched_bytes(batch[0], costs) > 240_000


@given(
    drawn=st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from(["big", "half", "a", "b"])), min_size=1, max_size=12
    )
)
def test_select_keeps_the_order_of_each_tenant(drawn: list[tuple[int, str]]) -> None:
    desk = Desk()
    for tenant in (1, 2, 3):
        stored(desk, tenant, "big", LABORIOUS)
        stored(desk, tenant, "half", HALF)
        stored(desk, tenant, "a", ORDINARY)
    batch: list[Work] = [patch(desk, tenant, record_id) for tenant, record_id in drawn]
    found = selected(desk, *batch)
    taken = [index for index in range(len(batch)) if index not in found.deferred]
    for tenant in (1, 2, 3):
        mine = [index for index, (owner, _) in enumerate(drawn) if owner == tenant]
        assert [index for index in mine if index in taken] == mine[: sum(index in taken for index in mine)]
    laborious = {tenant for tenant, record_id in drawn if record_id == "big"}
    assert found.isolated == laborious
    if not taken:
        assert laborious == {tenant for tenant, _ in drawn}
        assert len(laborious) > 1
    if len(taken) > 1:
        assert sum(drawn[index][1] == "half" for index in taken) <= 1
        assert all(drawn[index][1] != "big" for index in taken)
