"""No message takes a tenant past its bounds. One that would do so is as if it had never come."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model.rows import DeviceRecordKey, TenantUsage
from engine.plan.batch import plan, read_set
from engine.plan.bounds.capacity import MAX_BLOCKED_RECORDS, Blocked, BlockedRecords
from engine.plan.bounds.tenant_usage import NAMES, near_limit, usage_above
from engine.plan.work import Push, PushAnswer
from engine.wire.errors import SyncError
from tests.engine.plan.test_batch import Planner, item

Json = dict[str, Any]

_names = st.sampled_from(["a", "b", "c"])
_domains = st.sampled_from(["task", "form", "note", "visit"])
_values = st.sampled_from([1, "x" * 40, None])
_data = st.dictionaries(st.sampled_from(["place", "n", "m"]), _values, max_size=3)
_items = st.one_of(
    st.builds(
        lambda domain, name, base, op, data: item(domain, name, base, op, **data),
        _domains,
        _names,
        st.sampled_from([None, 1, 2, 9]),
        st.sampled_from(["put", "patch", "delete"]),
        _data,
    ),
    st.builds(lambda name, data: item("voice", name, None, "append", **data), _names, _data),
    st.just(item("nothing", "a")),
)
_messages = st.tuples(
    st.sampled_from(["phone", "tablet"]), st.booleans(), st.lists(_items, min_size=1, max_size=3)
)


def _bound(rows: int, size_bytes: int) -> TenantUsage:
    return TenantUsage(*([rows, size_bytes] * len(NAMES))[: len(NAMES)])


_bounds = st.builds(_bound, st.integers(0, 12), st.integers(0, 1500))


_half_or_so = st.sampled_from([0, 0.25, 0.5, 0.75, 1, 1.25])


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    messages=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    bounds=st.builds(_bound, st.integers(0, 40), st.integers(0, 160 << 20)),
)
def test_near_limit_no_tenant_below_what_is_read(
    data: st.DataObject, messages: list[int], bounds: TenantUsage
) -> None:
    planner = Planner()
    batch = [planner.push(*[item("task", f"{index}")] * count) for index, count in enumerate(messages)]
    of_bound = st.lists(_half_or_so, min_size=len(NAMES), max_size=len(NAMES))
    off = st.lists(st.integers(-1, 1), min_size=len(NAMES), max_size=len(NAMES))
    usage = {
        tenant: TenantUsage(
            *[
                int(bound * part) + one
                for bound, part, one in zip(
                    bounds.numbers(), data.draw(of_bound), data.draw(off), strict=True
                )
            ]
        )
        for tenant in (1, 2, 3)
    }
    above = usage_above(batch, bounds)
    told = {
        tenant: held
        for tenant, held in usage.items()
        if not above or any(number > most for number, most in zip(held.numbers(), above, strict=True))
    }
    assert near_limit(batch, told, bounds) == near_limit(batch, usage, bounds)


def _planned(
    planner: Planner, bounds: TenantUsage, batch: list[Push], blocked: Blocked
) -> tuple[list[Any], Blocked]:
    context = msgspec.structs.replace(planner.context, bounds=bounds)
    planned = plan(list(batch), planner.rows.snapshot(read_set(list(batch), context)), context, (), blocked)
    if planned.unread_conflicts:
        state = planner.rows.snapshot(read_set(list(batch), context, planned.unread_conflicts))
        planned = plan(list(batch), state, context, planned.unread_conflicts, blocked)
    planner.rows.apply(planned.writes, {1})
    return planned.outcomes, planned.blocked


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(_messages, min_size=1, max_size=4), max_size=6), _bounds)
def test_capacity_is_never_exceeded_and_refusals_leave_nothing(
    batches: list[list[tuple[str, bool, list[Json]]]], bounds: TenantUsage
) -> None:
    planner = Planner()
    planner.rows.usage[1] = TenantUsage()
    blocked: Blocked = {}
    deleted_bytes = 0
    for messages in batches:
        batch = [planner.push(*items, device=device, atomic=atomic) for device, atomic, items in messages]
        before = copy.deepcopy(vars(planner.rows))
        outcomes, blocked = _planned(planner, bounds, batch, blocked)
        deleted_bytes += 200 * sum(one["op"] == "delete" for _, _, items in messages for one in items)
        usage = planner.rows.usage[1]
        for name, held, bound in zip(NAMES, usage.numbers(), bounds.numbers(), strict=True):
            assert held <= bound + (deleted_bytes if name == "record_bytes" else 0), name
        if not any(isinstance(outcome, PushAnswer) for outcome in outcomes):
            assert vars(planner.rows) == before
        for work, outcome in zip(batch, outcomes, strict=True):
            refused = isinstance(outcome, SyncError)
            assert refused is (not any(key.key_hash == work.key_hash for key in planner.rows.keys))
            assert not refused or outcome.code == "insufficient_storage"


@settings(max_examples=200, deadline=None)
@given(st.lists(_messages, min_size=1, max_size=8))
def test_capacity_without_limits_changes_nothing(messages: list[tuple[str, bool, list[Json]]]) -> None:
    free, bounded = Planner(), Planner()
    exact = TenantUsage(*[10**12] * 11)
    near_limit = TenantUsage(*[10**6] * 11)  # each message is planned as one that may have to be undone
    for device, atomic, items in messages:
        answers = []
        for planner, bounds in ((free, exact), (bounded, near_limit)):
            (outcome,), _ = _planned(
                planner, bounds, [planner.push(*items, device=device, atomic=atomic)], {}
            )
            assert isinstance(outcome, PushAnswer)
            answers.append(outcome.results)
        assert answers[0] == answers[1]
    assert vars(free.rows) == vars(bounded.rows)


def test_capacity_too_many_blocked_records_block_the_device() -> None:
    planner = Planner()
    blocked: Blocked = {
        DeviceRecordKey(1, "other", "task", str(number)): "their key" for number in range(MAX_BLOCKED_RECORDS)
    }
    refused = planner.push(item("task", "a", n=1))
    (outcome,), blocked = _planned(planner, TenantUsage(), [refused], blocked)
    assert isinstance(outcome, SyncError)
    room = TenantUsage(*[10**9] * 11)
    (later,), blocked = _planned(planner, room, [planner.push(item("task", "b", n=1))], blocked)
    (others,), blocked = _planned(
        planner, room, [planner.push(item("task", "b", n=1), device="tablet")], blocked
    )
    (again,), blocked = _planned(planner, room, [refused], blocked)
    assert [type(one) for one in (later, others, again)] == [SyncError, PushAnswer, PushAnswer]
    assert len(blocked) == MAX_BLOCKED_RECORDS


def test_blocked_records_end_after_their_time() -> None:
    blocked_records = BlockedRecords()
    one, two = DeviceRecordKey(1, "phone", "task", "a"), DeviceRecordKey(1, "phone", "task", "b")
    blocked_records.update([1, 2], {}, {one: "k1"}, ["k1"], 0.0)
    blocked_records.update([1], {one: "k1"}, {one: "k1", two: "k2"}, ["k2"], 50.0)
    assert blocked_records.of([1], 89.0) == {one: "k1", two: "k2"}
    assert blocked_records.of([1], 91.0) == {two: "k2"}
    assert blocked_records.of([2], 0.0) == {}
    blocked_records.update([1], {two: "k2"}, {two: "k2"}, ["k2"], 92.0)
    assert blocked_records.of([1], 150.0) == {two: "k2"}, "refused again, its time begins anew"
    blocked_records.update([1], {two: "k2"}, {}, [], 151.0)
    assert blocked_records.of([1], 151.0) == {}


def test_blocked_records_of_a_full_disk_outlast_a_batch_of_another_lane() -> None:
    blocked_records, planner = BlockedRecords(), Planner()
    freed = DeviceRecordKey(1, "tablet", "task", "b")
    blocked_records.update([1], {}, {freed: "k1"}, ["k1"], 0.0)
    found = blocked_records.of([1], 1.0)
    push = planner.push(item("task", "a", n=1))
    blocked_records.block([push], 2.0)
    blocked_records.update([1], found, {}, [], 3.0)
    left = blocked_records.of([1], 3.0)
    assert set(left.values()) == {push.key_hash}
    assert DeviceRecordKey(1, "phone", "task", "a") in left
    assert freed not in left


class _Key(str):
    """The key of a message, which counts how often it is compared with another."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        _Key.compared += 1
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        _Key.compared += 1
        return str.__ne__(self, other)

    __hash__ = str.__hash__


def test_capacity_messages_of_others_do_not_walk_the_blocked_records() -> None:
    planner = Planner()
    blocked: Blocked = {
        DeviceRecordKey(2, "other", "task", str(number)): _Key("theirs") for number in range(100)
    }
    batch = [planner.push(item("task", f"{number}", n=1)) for number in range(50)]
    _Key.compared = 0
    outcomes, blocked = _planned(planner, TenantUsage(*[10**9] * 11), batch, blocked)
    assert {type(outcome) for outcome in outcomes} == {PushAnswer}
    assert len(blocked) == 100
    assert _Key.compared <= 300, "once a batch, not once a message"


def test_capacity_records_of_one_tenant_do_not_block_another() -> None:
    planner = Planner()
    blocked: Blocked = {
        DeviceRecordKey(2, "other", "task", str(number)): "theirs" for number in range(MAX_BLOCKED_RECORDS)
    }
    (outcome,), blocked = _planned(planner, TenantUsage(), [planner.push(item("task", "a", n=1))], blocked)
    assert isinstance(outcome, SyncError)
    (later,), _ = _planned(
        planner, TenantUsage(*[10**9] * 11), [planner.push(item("task", "b", n=1))], blocked
    )
    assert isinstance(later, PushAnswer)
