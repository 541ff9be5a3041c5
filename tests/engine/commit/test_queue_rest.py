"""Devices that owe time of the event loop rest: what of them waits, what goes on, and in which order."""

from __future__ import annotations

from collections import defaultdict

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.commit.queue import Batch, CommitLimits, CommitQueue, QueuedWork
from engine.plan.work import Push
from engine.runtime.loop_share import Rest
from tests.engine.commit.test_queue_overload import push_of

GREEDY, OTHER = 1, 2


def _queue(apart_at_once: int = 1) -> CommitQueue:
    return CommitQueue(CommitLimits(100, 1 << 24, 10_000, 1 << 30), apart_at_once)


def _add(queue: CommitQueue, tenant_id: int, device_id: str, key: str, now_s: float = 0.0) -> None:
    work = msgspec.structs.replace(push_of(tenant_id), device_id=device_id, key_hash=key)
    assert queue.add(work, lambda _: None, now_s)


def _keys(batch: Batch) -> list[str]:
    return [_key(waiting) for waiting in batch.queued]


def _key(waiting: QueuedWork) -> str:
    assert type(waiting.work) is Push
    return waiting.work.key_hash


def test_queue_resting_device_is_skipped_and_its_tenant_is_not() -> None:
    queue = _queue()
    for number in range(3):
        _add(queue, GREEDY, "greedy", f"g{number}")
        _add(queue, GREEDY, "modest", f"m{number}")
    queue.rest(GREEDY, "greedy", Rest(5.0, 0.0), 0.0)
    batch = queue.take(1.0)
    assert _keys(batch) == ["m0", "m1", "m2"]
    queue.release_tenants(batch)
    assert _keys(queue.take(1.0)) == []
    assert (queue.ready, queue.messages, queue.wake(1.0)) == (False, 3, 5.0)
    assert queue.wake(5.0) is None
    assert _keys(queue.take(5.0)) == ["g0", "g1", "g2"]


def test_queue_new_work_of_a_resting_tenants_other_device_is_taken_at_once() -> None:
    queue = _queue()
    _add(queue, GREEDY, "greedy", "g0")
    queue.rest(GREEDY, "greedy", Rest(5.0, 0.0), 0.0)
    assert _keys(queue.take(1.0)) == []
    _add(queue, GREEDY, "modest", "m0", 2.0)
    assert _keys(queue.take(2.0)) == ["m0"]


def test_queue_tenant_that_rested_is_isolated() -> None:
    queue = _queue()
    queue.rest(GREEDY, "greedy", Rest(5.0, 0.0), 0.0)
    _add(queue, GREEDY, "greedy", "g0", 5.5)
    _add(queue, OTHER, "modest", "m0", 5.5)
    batches = [queue.take(5.5), queue.take(5.5)]
    assert sorted(map(_keys, batches)) == [["g0"], ["m0"]]


def test_queue_resting_work_is_not_over_target() -> None:
    queue = _queue()
    for tenant_id in (GREEDY, 3, 4):
        for number in range(100):
            _add(queue, tenant_id, "greedy", f"{tenant_id}-{number}")
        queue.rest(tenant_id, "greedy", Rest(5.0, 0.0), 0.0)
    assert queue.over_target(OTHER)
    assert _keys(queue.take(1.0)) == []
    assert not queue.over_target(OTHER)


def test_queue_drained_work_rests_no_more() -> None:
    queue = _queue()
    _add(queue, GREEDY, "greedy", "g0")
    queue.rest(GREEDY, "greedy", Rest(5.0, 0.0), 0.0)
    assert _keys(queue.take(1.0)) == []
    assert len(queue.drain_older([], 2.0)) == 1
    assert (queue.messages, queue.wake(5.0), _keys(queue.take(5.0))) == (0, None, [])


def test_queue_tenant_over_its_share_rests_as_a_whole() -> None:
    queue = _queue()
    _add(queue, GREEDY, "greedy", "g0")
    queue.rest(GREEDY, "greedy", Rest(0.0, 5.0), 0.0)
    _add(queue, GREEDY, "modest", "m0", 1.0)
    _add(queue, OTHER, "modest", "o0", 1.0)
    assert _keys(queue.take(1.0)) == ["o0"]
    _add(queue, GREEDY, "modest", "m1", 2.0)
    assert (queue.ready, queue.wake(2.0)) == (False, 5.0)
    assert queue.wake(5.0) is None
    assert _keys(queue.take(5.0)) == ["m0", "m1", "g0"]


def test_queue_tenant_that_rested_serves_its_devices_in_turns() -> None:
    queue = CommitQueue(CommitLimits(1, 1 << 24, 10_000, 1 << 30))
    for device_id in "abc":
        for number in range(3):
            _add(queue, GREEDY, device_id, f"{device_id}{number}")
    taken: list[str] = []
    for now_s in range(9):
        queue.wake(float(now_s))
        batch = queue.take(float(now_s))
        taken += _keys(batch)
        queue.rest(GREEDY, batch.queued[0].work.device_id, Rest(0.0, 1.0), float(now_s))
        queue.release_tenants(batch)
    assert taken == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 3), st.sampled_from("abc")),
        st.tuples(st.just("rest"), st.integers(1, 3), st.sampled_from("abc")),
        st.tuples(st.just("rest all"), st.integers(1, 3), st.sampled_from("abc")),
        st.tuples(st.just("take"), st.just(0), st.just("")),
        st.tuples(st.just("settle"), st.just(0), st.just("")),
    ),
    max_size=60,
)


@given(_STEPS, st.integers(1, 2))
def test_queue_work_of_each_device_is_taken_once_in_order(
    did: list[tuple[str, int, str]], at_once: int
) -> None:
    queue = _queue(at_once)
    sent: dict[tuple[int, str], int] = defaultdict(int)
    taken: dict[tuple[int, str], list[int]] = defaultdict(list)
    under_way: list[Batch] = []
    now_s = 0.0

    def take() -> None:
        queue.wake(now_s)
        batch = queue.take(now_s)
        for waiting in batch.queued:
            device = waiting.work.tenant_id, waiting.work.device_id
            assert max(rests.get(device, 0.0), all_rest.get(device[0], 0.0)) <= now_s
            taken[waiting.work.tenant_id, waiting.work.device_id].append(int(_key(waiting)))
        held = [waiting.work.tenant_id for one in under_way for waiting in one.queued]
        assert not {waiting.work.tenant_id for waiting in batch.queued} & set(held)
        if batch.queued:
            under_way.append(batch)

    rests: dict[tuple[int, str], float] = {}
    all_rest: dict[int, float] = {}
    for what, tenant_id, device_id in did:
        now_s += 0.25
        if what == "add":
            _add(queue, tenant_id, device_id, str(sent[tenant_id, device_id]), now_s)
            sent[tenant_id, device_id] += 1
        elif what == "rest":
            queue.rest(tenant_id, device_id, Rest(1.0, 0.0), now_s)
            rests[tenant_id, device_id] = now_s + 1.0
        elif what == "rest all":
            queue.rest(tenant_id, device_id, Rest(0.0, 0.5), now_s)
            all_rest[tenant_id] = now_s + 0.5
        elif what == "take":
            if queue.ready:
                take()
        elif under_way:
            queue.release_tenants(under_way.pop(0))
    now_s += 10.0
    while queue.messages or under_way:
        for batch in under_way:
            queue.release_tenants(batch)
        under_way.clear()
        take()
    assert {device: list(range(count)) for device, count in sent.items()} == dict(taken)
