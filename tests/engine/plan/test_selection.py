"""Which messages of a batch are planned together, by what their rows weigh."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model.rows import Record, RecordKey
from engine.plan.batch import read_set
from engine.plan.bounds import costs
from engine.plan.bounds.costs import Costs, content_us
from engine.plan.kinds import KINDS
from engine.plan.weighing import BATCH_US, Selection, select
from engine.plan.work import Work
from tests.engine.plan.test_batch import Planner, item

Json = dict[str, Any]

#: A record that alone takes more than a batch may, half of one, and an ordinary one.
EXPENSIVE, HALF, ORDINARY = 200_000, 80_000, 100


def stored(planner: Planner, tenant: int, record_id: str, lists: int) -> None:
    """Store a record of so many empty lists."""
    data = b'{"x":[%b]}' % b",".join([b"[]"] * lists)
    key = RecordKey(tenant, "note", record_id)
    planner.rows.records[key] = Record(tenant, "note", record_id, 1, 1, 0, "other", 1, data)


def selected(planner: Planner, *batch: Work) -> Selection:
    """Select of a batch."""
    return select(list(batch), planner.rows.snapshot(read_set(list(batch), planner.context)))


def patch(planner: Planner, tenant: int, record_id: str, times: int = 1) -> Work:
    """Make a push that changes a record so many times."""
    return planner.push(*[item("note", record_id, 1, op="patch", n=1)] * times, tenant=tenant)


def test_select_ordinary_changes_are_all_taken() -> None:
    planner = Planner()
    for number in range(100):
        stored(planner, 1 + number % 3, f"r{number}", ORDINARY)
    batch = [patch(planner, 1 + number % 3, f"r{number}") for number in range(100)]
    assert selected(planner, *batch) == Selection(is_light=True, items_per_step=32)


def test_select_small_records_are_not_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = Planner()
    stored(planner, 1, "a", ORDINARY)

    def looked(*_: object) -> float:
        raise AssertionError("each look costs what it may save")

    monkeypatch.setattr(costs, "content_us", looked)
    selected(planner, *[patch(planner, 1, "a") for _ in range(100)])


def test_select_expensive_message_is_deferred_and_isolated() -> None:
    planner = Planner()
    stored(planner, 2, "big", EXPENSIVE)
    stored(planner, 1, "a", ORDINARY)
    batch = [patch(planner, 1, "a"), patch(planner, 2, "a"), patch(planner, 2, "big"), patch(planner, 2, "a")]
    found = selected(planner, *batch, patch(planner, 1, "a"), patch(planner, 3, "a"))
    assert (list(found.deferred), set(found.isolated), found.items_per_step) == ([2, 3], {2}, 1)


def test_select_expensive_message_of_one_tenant_is_taken_alone() -> None:
    planner = Planner()
    stored(planner, 2, "big", EXPENSIVE)
    found = selected(planner, patch(planner, 2, "big"), patch(planner, 2, "big"), patch(planner, 2, "a"))
    assert (list(found.deferred), set(found.isolated)) == ([1, 2], {2})
    assert selected(planner, patch(planner, 2, "big")) == Selection(deferred=[], isolated=frozenset({2}))


def test_select_expensive_messages_of_several_tenants_are_all_deferred() -> None:
    planner = Planner()
    for tenant in (1, 2):
        stored(planner, tenant, "big", EXPENSIVE)
    found = selected(planner, patch(planner, 1, "big"), patch(planner, 2, "big"))
    assert (list(found.deferred), set(found.isolated)) == ([0, 1], {1, 2})


def test_select_batch_expensive_in_sum_is_cut() -> None:
    planner = Planner()
    stored(planner, 1, "half", HALF)
    stored(planner, 2, "half", HALF)
    batch = [
        patch(planner, 1, "half"),
        patch(planner, 2, "half"),
        patch(planner, 3, "a"),
        patch(planner, 2, "b"),
    ]
    found = selected(planner, *batch)
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
    planner = Planner(record_bytes=1 << 18)
    planner.results(planner.push(item("form", "a", x=1)))
    planner.results(planner.push(item("form", "a", x=2), device="tablet"))
    planner.results(planner.push(item("form", "a", 1, op="patch", x=[[]] * 80_000), device="tablet"))
    batch = [planner.push(item("form", "a", 1, op="patch", n=1), device="tablet")]
    costs = Costs(planner.rows.snapshot(read_set(list(batch), planner.context)))
    kind = KINDS[type(batch[0])]
    assert kind.cost_us(batch[0], costs) > BATCH_US / 3
    assert kind.touched_bytes(batch[0], costs) > 240_000


@settings(deadline=None)  # its large records take 150 ms, on a busy machine 600
@given(
    drawn=st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from(["big", "half", "a", "b"])), min_size=1, max_size=12
    )
)
def test_select_keeps_the_order_of_each_tenant(drawn: list[tuple[int, str]]) -> None:
    planner = Planner()
    for tenant in (1, 2, 3):
        stored(planner, tenant, "big", EXPENSIVE)
        stored(planner, tenant, "half", HALF)
        stored(planner, tenant, "a", ORDINARY)
    batch: list[Work] = [patch(planner, tenant, record_id) for tenant, record_id in drawn]
    found = selected(planner, *batch)
    taken = [index for index in range(len(batch)) if index not in found.deferred]
    for tenant in (1, 2, 3):
        mine = [index for index, (owner, _) in enumerate(drawn) if owner == tenant]
        assert [index for index in mine if index in taken] == mine[: sum(index in taken for index in mine)]
    expensive = {tenant for tenant, record_id in drawn if record_id == "big"}
    assert found.isolated == expensive
    if not taken:
        assert expensive == {tenant for tenant, _ in drawn}
        assert len(expensive) > 1
    if len(taken) > 1:
        assert sum(drawn[index][1] == "half" for index in taken) <= 1
        assert all(drawn[index][1] != "big" for index in taken)
