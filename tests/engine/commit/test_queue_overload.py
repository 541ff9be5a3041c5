"""Overload in a simulated store, rates of tenants, and reading the head of a message without decoding it."""

from __future__ import annotations

import json
import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.commit.overload import Overload
from engine.commit.queue import Batch, CommitLimits, CommitQueue
from engine.plan.work import Outcome, Push
from engine.runtime.rate_limit import TenantRates, TokenBucket
from engine.wire.codec import JSON, MSGPACK, Codec
from engine.wire.errors import SyncError

LIMITS = CommitLimits(batch_items=50, batch_bytes=1 << 22, queue_messages=100_000, queue_bytes=1 << 30)
BATCH_S = 0.05
#: What the simulated store can do.
CAPACITY_PER_S = LIMITS.batch_items / BATCH_S


def push_of(tenant_id: int) -> Push:
    """A sync of some size; what is in it does not matter here."""
    return Push(tenant_id, "phone", "session", "key", "sha", False, [], b"x" * 20_000, "json", 0)


class Simulation:
    """One store that takes ``BATCH_S`` for every batch, and tenants who send at random at a mean rate."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.queue = CommitQueue(LIMITS)
        self.now_s = 0.0
        self.stored: Counter[int] = Counter()
        self.refused: Counter[int] = Counter()
        self.waits_s: list[float] = []
        self.most_waiting = 0
        self._in_flight: Batch | None = None
        self._done_s = 0.0

    def reply(self, _: Outcome) -> None:
        """Nobody waits here."""

    def run(self, seconds: float, per_s: dict[int, float]) -> None:
        """Let so many messages of each tenant come in a second."""
        self.stored.clear()
        self.refused.clear()
        self.waits_s.clear()
        self.most_waiting = 0
        end_s = self.now_s + seconds
        arrivals = sorted(
            (self.now_s + self.random.random() * seconds, tenant_id)
            for tenant_id, rate in per_s.items()
            for _ in range(int(rate * seconds))
        )
        for at_s, tenant_id in arrivals:
            self._work_until(at_s)
            if self.queue.should_shed(tenant_id):
                self.refused[tenant_id] += 1
            else:
                assert self.queue.add(push_of(tenant_id), self.reply, at_s)
            self._begin(at_s)
            self.most_waiting = max(self.most_waiting, self.queue.messages)
        self._work_until(end_s)
        self.now_s = end_s

    def _begin(self, now_s: float) -> None:
        if self._in_flight is None and self.queue.ready:
            self._in_flight = self.queue.take(now_s)
            self._done_s = now_s + BATCH_S
            self.waits_s += [now_s - waiting.since_s for waiting in self._in_flight.queued]

    def _work_until(self, now_s: float) -> None:
        while self._in_flight is not None and self._done_s <= now_s:
            batch = self._in_flight
            self.queue.release_tenants(batch)
            self.stored.update(waiting.work.tenant_id for waiting in batch.queued)
            if batch.reached_limit:
                self.queue.overload.record_batch(batch.size_bytes, BATCH_S, BATCH_S)
            self._in_flight = None
            self._begin(self._done_s)


@pytest.mark.parametrize("times", [2, 4, 10])
def test_queue_overload_stores_at_capacity_with_bounded_waits(times: int) -> None:
    simulation = Simulation(times)
    for _ in range(2):
        simulation.run(5, dict.fromkeys(range(1, 6), CAPACITY_PER_S * times / 5))
    assert simulation.stored.total() >= 0.95 * CAPACITY_PER_S * 5
    assert simulation.queue.overload.shedding
    assert max(simulation.waits_s) <= 6 * BATCH_S, "the target is twice what a batch takes"


def test_queue_below_capacity_refuses_nothing() -> None:
    simulation = Simulation(3)
    simulation.run(10, dict.fromkeys(range(1, 6), CAPACITY_PER_S * 0.16))
    assert not simulation.refused
    assert not simulation.queue.overload.shedding


def test_queue_burst_is_accepted_and_lasting_load_is_not() -> None:
    simulation = Simulation(4)
    simulation.run(5, {1: CAPACITY_PER_S * 0.5})
    simulation.run(0.03, {1: CAPACITY_PER_S * 4})
    assert not simulation.refused
    simulation.run(10, {1: CAPACITY_PER_S * 4})
    assert simulation.refused[1] > 0.6 * simulation.stored[1]


def test_queue_overload_quiet_tenant_is_not_refused() -> None:
    simulation = Simulation(5)
    simulation.run(10, {1: CAPACITY_PER_S * 5, 2: CAPACITY_PER_S * 0.05})
    assert simulation.refused[1]
    assert not simulation.refused[2]
    assert simulation.stored[2] >= 0.95 * CAPACITY_PER_S * 0.05 * 10


def test_queue_after_overload_refuses_nothing() -> None:
    simulation = Simulation(6)
    simulation.run(5, {1: CAPACITY_PER_S * 10})
    simulation.run(2, {1: CAPACITY_PER_S * 0.5})
    simulation.run(2, {1: CAPACITY_PER_S * 0.5})
    assert not simulation.refused
    assert not simulation.queue.overload.shedding
    assert max(simulation.waits_s) <= 2 * BATCH_S


def test_overload_pause_of_the_store_is_forgotten() -> None:
    simulation = Simulation(7)
    load = dict.fromkeys(range(1, 6), CAPACITY_PER_S * 2 / 5)
    simulation.run(5, load)
    full_bytes = LIMITS.batch_items * 20_512
    simulation.queue.overload.record_batch(full_bytes, 10.0, 10.0)  # one that was tried again and again
    simulation.run(5, load)
    simulation.run(5, load)
    assert simulation.stored.total() >= 0.95 * CAPACITY_PER_S * 5


def test_overload_slow_store_is_measured() -> None:
    overload = Overload()
    assert overload.wait_s(10_000) < 0.001
    for _ in range(20):
        overload.record_batch(10_000, 0.2, 0.2)
    assert overload.wait_s(10_000) == pytest.approx(0.2, rel=0.7)
    assert overload.target_s == pytest.approx(0.4, rel=0.05)


def test_queue_batch_dominated_by_one_tenant_is_marked() -> None:
    queue = CommitQueue(LIMITS)
    reply = Simulation(0).reply
    for tenant_id in (1, 1, 1, 2):
        queue.add(push_of(tenant_id), reply, 0.0)
    assert not queue.take(0.0).dominated_by_one_tenant, "small ones are over soon"
    for _ in range(60):
        queue.add(push_of(3), reply, 5.0)
    batch = queue.take(9.0)
    assert (batch.dominated_by_one_tenant, batch.reached_limit, len(batch.queued)) == (True, True, 50)
    for _ in range(60):
        queue.add(push_of(7), reply, 9.0)
    batch = queue.take(9.1)
    assert (batch.dominated_by_one_tenant, batch.reached_limit, len(batch.queued)) == (True, False, 25), (
        "others are about"
    )
    for tenant_id in (4, 5, 6):
        for _ in range(20):
            queue.add(push_of(tenant_id), reply, 9.2)
    assert not queue.take(9.2).dominated_by_one_tenant


def bucket() -> TokenBucket:
    """Make a device's own bucket."""
    return TokenBucket(1000.0, 0.0)


def test_tenant_rates_tenants_have_rates_of_their_own() -> None:
    rates, phone, other = TenantRates(2), bucket(), bucket()
    assert [rates.take(1, phone, 0.0), rates.take(1, phone, 0.0), rates.take(2, other, 0.0)] == [0, 0, 0]
    assert rates.take(1, phone, 0.0) == 30_000
    assert rates.take(1, phone, 30.0) == 0


def test_tenant_rates_device_gets_its_equal_share() -> None:
    rates, phone, tablet = TenantRates(10), bucket(), bucket()
    assert [rates.take(1, phone, 0.0) > 0 for _ in range(12)] == [False] * 10 + [True] * 2
    assert [rates.take(1, tablet, 0.0) > 0 for _ in range(8)] == [False] * 5 + [True] * 3
    late = bucket()
    assert [rates.take(1, late, 0.0) > 0 for _ in range(5)] == [False] * 3 + [True] * 2


def test_tenant_rates_share_counts_recent_devices() -> None:
    rates, devices = TenantRates(10), [bucket() for _ in range(5)]
    for device in devices:
        assert rates.take(1, device, 0.0) == 0
    assert [rates.take(1, devices[0], 61.0) > 0 for _ in range(11)] == [False] * 10 + [True]
    assert [rates.take(1, devices[1], 61.0) > 0 for _ in range(3)] == [False, False, True]
    # A minute later the others are gone.
    assert [rates.take(1, devices[0], 122.0) > 0 for _ in range(10)] == [False] * 10
    assert [rates.take(1, devices[1], 122.0) > 0 for _ in range(6)] == [False] * 5 + [True]


@given(
    sent=st.lists(st.tuples(st.integers(0, 4), st.floats(0.0, 3.0)), max_size=200),
    per_minute=st.integers(1, 20),
)
def test_tenant_rates_are_exceeded_by_equal_shares_only(
    sent: list[tuple[int, float]], per_minute: int
) -> None:
    rates, devices = TenantRates(per_minute), [bucket() for _ in range(5)]
    at_s, begun_s, let_in = 0.0, 0.0, 0
    for number, pause_s in sent:
        at_s += pause_s
        if at_s - begun_s >= 60.0:
            begun_s, let_in = at_s, 0
        let_in += rates.take(1, devices[number], at_s) == 0
        # A full bucket, what flows into it, and one equal part for each.
        assert let_in <= per_minute * (2 + (at_s - begun_s) / 60.0) + len(devices)


# -- isolated tenants ------------------------------------------------------------------------------


def filled(queue: CommitQueue, *tenants: int) -> None:
    """Queue work for each."""
    for tenant_id in tenants:
        assert queue.add(push_of(tenant_id), lambda _: None, 0.0)


def taken(batch: Batch) -> list[int]:
    """Give the tenants of a batch."""
    return [waiting.work.tenant_id for waiting in batch.queued]


def test_queue_isolated_tenant_is_taken_alone_in_its_turn() -> None:
    queue = CommitQueue(LIMITS)
    filled(queue, 1, 2, 2, 3)
    queue.isolate(2, 0.0)
    first = queue.take(0.0)
    assert (taken(first), first.isolated) == ([1, 3], False)
    second = queue.take(0.0)
    assert (taken(second), second.isolated, second.dominated_by_one_tenant) == ([2, 2], True, True)
    queue.release_tenants(first)
    queue.release_tenants(second)
    filled(queue, 2, 1)
    queue.isolate(2, 0.5)
    assert taken(queue.take(0.5)) == [2]


def test_queue_tenant_in_flight_is_not_taken_again() -> None:
    queue = CommitQueue(LIMITS)
    filled(queue, 1)
    first = queue.take(0.0)
    filled(queue, 1, 2)
    second = queue.take(0.0)
    assert taken(second) == [2], "the messages of one tenant apply in the order sent"
    queue.release_tenants(first)
    assert taken(queue.take(0.0)) == [1]


def test_queue_tenant_is_isolated_for_a_second() -> None:
    queue = CommitQueue(LIMITS)
    queue.isolate(2, 0.0)
    filled(queue, 1, 2, 3)
    assert taken(queue.take(1.0)) == [1, 2, 3]


@pytest.mark.parametrize("at_once", [1, 2])
def test_queue_isolated_tenants_leave_lanes_for_others(at_once: int) -> None:
    queue = CommitQueue(LIMITS, at_once)
    for tenant_id in (1, 2, 3):
        queue.isolate(tenant_id, 0.0)
    filled(queue, 1, 2, 3)
    apart = [queue.take(0.0) for _ in range(at_once)]
    assert [taken(batch) for batch in apart] == [[1], [2], [3]][:at_once]
    assert not queue.ready
    filled(queue, 4)
    assert queue.ready
    assert taken(queue.take(0.0)) == [4]
    assert not queue.ready
    queue.release_tenants(apart[0])
    assert queue.ready
    assert taken(queue.take(0.0)) == [at_once + 1]


_TEXTS = st.text(max_size=70) | st.sampled_from(["7", "a" * 64, "a" * 65, 'a"b', "a\\b", ""])


@given(
    kind=st.sampled_from(["sync", "pull", "heartbeat", "hello", "nonsense"]),
    request_id=_TEXTS | st.none() | st.integers(-9, 9),
    order=st.permutations(["type", "id", "key", "items"]),
    spaced=st.booleans(),
    codec=st.sampled_from([JSON, MSGPACK]),
)
def test_codec_peek_equals_decode(
    kind: str, request_id: object, order: list[str], spaced: bool, codec: Codec
) -> None:
    whole = {"type": kind, "id": request_id, "key": "k", "items": []}
    message = {name: whole[name] for name in order}
    if codec.binary:
        frame = msgspec.msgpack.encode(message)
    else:
        frame = json.dumps(message, separators=(", ", ": ") if spaced else (",", ":")).encode()
    seen = codec.peek(frame)
    refused_id, request = None, None
    try:
        request = codec.decode(frame)
    except SyncError as error:
        refused_id = error.details.get("id")
    own_id = getattr(request, "id", None)
    if own_id is not None:
        assert seen == (kind, own_id)
    elif request is None and seen is not None:
        assert seen[1] == refused_id, "only what is wrong with type or id keeps it from being seen"


def test_codec_peek_at_nonsense_returns_none() -> None:
    for frame in (b"", b"[1]", b"\xff", b'{"type":"sync"', b"[" * 1000, b'{"id":"1"}'):
        assert JSON.peek(frame) is None
        assert MSGPACK.peek(frame) is None
