"""Group commit: order, retries, unknown outcomes, poison, bounds, and one reply to each message."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.commit import overload
from engine.commit.committer import Committer
from engine.commit.lane import RETRY_FOR_S, IsContended
from engine.commit.queue import CommitLimits
from engine.commit.validation import MessageValidator, Session
from engine.model.domains import Domain, DomainPolicy, Domains
from engine.model.rows import ConflictRef, ReadSet, Record, RecordKey, WriteSet
from engine.model.tenants import Tenant
from engine.plan.context import PlanContext
from engine.plan.held_changes import changes_of
from engine.plan.work import Outcome, Push, PushAnswer, Resolution, ResolveAnswer
from engine.runtime.ports import (
    StoreError,
    StoreFullError,
    StorePoisonError,
    StoreRetryError,
    StoreUnavailableError,
    StoreUnknownError,
)
from engine.wire.codec import JSON
from engine.wire.errors import SyncError
from engine.wire.messages import Resolve, Sync
from tests.harness.memory_store import MemoryStore, MemoryTransaction

Json = dict[str, Any]

DOMAINS = Domains({"task": Domain(policy="client_wins"), "form": Domain(policy="manual")})
LIMITS = CommitLimits(batch_items=100, batch_bytes=1 << 20, queue_messages=1000, queue_bytes=1 << 22)
NOW_US = 1_767_323_045_000_000
POISON = "poison"


class HandClock:
    """Stands still until it is set forward; no work was done in ``idle_s`` of it."""

    def __init__(self) -> None:
        self.at_s = 0.0
        self.idle_s = 0.0

    def now_us(self) -> int:
        """Microseconds since 1970."""
        return NOW_US + int(self.at_s * 1_000_000)

    def monotonic_s(self) -> float:
        """Seconds since the start."""
        return self.at_s

    def cpu_s(self) -> float:
        """Seconds of work since the start."""
        return self.at_s - self.idle_s


class Fault:
    """Goes wrong once. ``applied`` says that a COMMIT of unknown outcome took effect."""

    def __init__(self, error: Exception, *, at: str = "commit", applied: bool = False) -> None:
        self.error = error
        self.at = at
        self.applied = applied


class Transaction(MemoryTransaction):
    """Commits through the store's gate, past its faults."""

    store: FaultyStore

    async def commit(self, writes: WriteSet) -> None:
        """Commit, or do what the next fault says."""
        store = self.store
        store.committing.put_nowait(len(writes.keys))
        await store.gate.wait()
        if any(POISON.encode() in (row.data or b"") for row in writes.records):
            await self.rollback()
            raise StorePoisonError("refused")
        fault = store.fault("commit")
        if fault is None:
            await super().commit(writes)
            return
        if fault.applied:
            await super().commit(writes)
        else:
            await self.rollback()
        raise fault.error


class FaultyStore(MemoryStore):
    """Fails as told; ``gate`` holds commits, ``committing`` tells how many keys each wants to write."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__()
        self.faults = list(faults)
        self.gate = asyncio.Event()
        self.gate.set()
        self.committing = asyncio.Queue[int]()
        self.on_begin: Callable[[], None] = lambda: None

    def fault(self, at: str) -> Fault | None:
        """Take the next fault, if it is of this place."""
        return self.faults.pop(0) if self.faults and self.faults[0].at == at else None

    async def begin(self, read_set: ReadSet) -> MemoryTransaction:
        """Begin, or do what the next fault says."""
        self.on_begin()
        fault = self.fault("begin")
        if fault is not None:
            raise fault.error
        begun = await super().begin(read_set)
        begun.__class__ = Transaction
        assert isinstance(begun, Transaction)
        begun.store = self
        return begun


class Bench:
    """A committer with all that it is given, and what came of it."""

    def __init__(
        self,
        store: FaultyStore,
        limits: CommitLimits = LIMITS,
        lanes: int = 1,
        clock: HandClock | None = None,
        is_contended: IsContended = lambda _: False,
    ) -> None:
        self.ids = itertools.count()
        self.store = store
        self.clock = clock or HandClock()
        self.policies = dict.fromkeys(range(1, 10), DOMAINS.default_policies)
        self.published: list[tuple[Record, str]] = []
        self.unknown_outcomes: list[set[int]] = []
        self.replies: list[tuple[str, Outcome]] = []
        self.validator = MessageValidator(DOMAINS, 500)
        self.committer = Committer(
            store,
            PlanContext(DOMAINS, self.policies.__getitem__, lambda: f"id-{next(self.ids)}", 10_000, 1 << 20),
            self.clock,
            self.published.extend,
            self.unknown_outcomes.append,
            limits,
            lanes,
            is_contended,
        )

    def session(self, device: str, tenant: int) -> Session:
        """Make a session of its own for each device."""
        return Session(tenant=Tenant(tenant, f"t{tenant}"), device_id=device, session_id=f"s-{device}")

    def push(
        self, key: str, *items: Json, device: str = "phone", tenant: int = 1, atomic: bool = False
    ) -> Push:
        """Return the work of a sync."""
        frame = {"type": "sync", "id": key, "key": key, "atomic": atomic, "items": list(items)}
        request = JSON.decode(json.dumps(frame).encode())
        assert isinstance(request, Sync)
        return self.validator.push(request, self.session(device, tenant), self.clock.now_us())

    def submit(self, key: str, *items: Json, device: str = "phone", tenant: int = 1) -> None:
        """Queue a sync; its outcome comes to ``replies``."""
        self.submit_work(key, self.push(key, *items, device=device, tenant=tenant))

    def submit_work(self, key: str, work: Push | Resolution) -> None:
        """Queue work."""
        self.committer.submit(work, lambda outcome: self.replies.append((key, outcome)))

    def statuses(self, key: str) -> list[str]:
        """Give the statuses of the one answer to a sync."""
        ((_, outcome),) = [reply for reply in self.replies if reply[0] == key]
        assert isinstance(outcome, PushAnswer), outcome
        return [result["status"] for result in json.loads(outcome.results)]

    def code(self, key: str) -> str:
        """Give the code of the one error of a message."""
        ((_, outcome),) = [reply for reply in self.replies if reply[0] == key]
        assert isinstance(outcome, SyncError), outcome
        return outcome.code

    def version(self, record_id: str, *, domain: str = "task", tenant: int = 1) -> int:
        """Give a record's version, 0 where there is none."""
        row = self.store.rows.records.get(RecordKey(tenant, domain, record_id))
        return 0 if row is None else row.version


@asynccontextmanager
async def bench(
    *faults: Fault,
    limits: CommitLimits = LIMITS,
    lanes: int = 1,
    store: FaultyStore | None = None,
    clock: HandClock | None = None,
    is_contended: IsContended = lambda _: False,
) -> AsyncIterator[Bench]:
    """Run a committer."""
    one = Bench(store or FaultyStore(*faults), limits, lanes, clock, is_contended)
    task = asyncio.create_task(one.committer.run())
    try:
        yield one
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait({task})


def put(record_id: str, base: int | None = None, **data: Any) -> Json:
    """Make an item."""
    return {"domain": "task", "id": record_id, "op": "put", "base": base, "data": data}


# -- gathering ------------------------------------------------------------------------------------


async def test_committer_idle_lane_commits_one_message_at_once() -> None:
    async with bench() as one:
        one.submit("k1", put("a", x=1))
        await one.committer.drain()
        assert one.statuses("k1") == ["applied"]
        assert one.store.committing.get_nowait() == 1
        assert [record.id for record, _ in one.published] == ["a"]
        assert one.published[0][1] == "s-phone"
        assert one.committer.counters.batches == one.committer.counters.messages == 1


async def test_committer_messages_during_a_commit_are_one_batch() -> None:
    async with bench() as one:
        one.store.gate.clear()
        one.submit("first", put("a", x=1))
        assert await one.store.committing.get() == 1
        for number in range(50):
            one.submit(f"k{number}", put("a", number + 1, x=number + 2), device="tablet")
        assert one.committer.queued_messages == 50
        assert not one.replies
        one.store.gate.set()
        await one.committer.drain()
        assert await one.store.committing.get() == 50
        assert one.store.committing.empty()
        assert [key for key, _ in one.replies] == ["first", *(f"k{number}" for number in range(50))]
        assert one.version("a") == 51


async def test_committer_batches_are_bounded_in_messages_and_bytes() -> None:
    limits = CommitLimits(batch_items=4, batch_bytes=9000, queue_messages=100, queue_bytes=100_000)
    async with bench(limits=limits) as one:
        one.store.gate.clear()
        one.submit("first")
        await one.store.committing.get()
        for number in range(6):
            one.submit(f"small-{number}", put(f"s{number}"))
        for number in range(4):
            one.submit(f"large-{number}", put(f"l{number}", x="x" * 2000))
        one.submit("huge", put("h", x="x" * 9000))
        one.submit("last", put("z"))
        one.store.gate.set()
        await one.committer.drain()
        sizes = [one.store.committing.get_nowait() for _ in range(one.store.committing.qsize())]
        # 4 small ones; 2 with one large; 2 and then 1 large ones; one that is over the bound by itself.
        assert sizes == [4, 3, 2, 1, 1, 1]
        assert len(one.replies) == 13
        assert one.committer.queued_messages == 0


async def test_committer_change_is_announced_before_the_answer() -> None:
    async with bench() as one:
        seen: list[int] = []
        work = one.push("k1", put("a", x=1))
        one.committer.submit(work, lambda _: seen.append(len(one.published)))
        await one.committer.drain()
        assert seen == [1]


async def test_committer_more_than_one_batch_runs_beside_it_by_tenant() -> None:
    limits = CommitLimits(batch_items=12, batch_bytes=1 << 20, queue_messages=100, queue_bytes=1 << 20)
    async with bench(limits=limits, lanes=2) as one:
        one.store.gate.clear()
        for number in range(3):
            for tenant in range(1, 7):
                one.submit(f"{tenant}-{number}", put("a", number or None, x=number), tenant=tenant)
        for _ in range(2):  # both are at their COMMIT before either is through
            await one.store.committing.get()
        one.store.gate.set()
        await one.committer.drain()
        for tenant in range(1, 7):
            own = [key for key, _ in one.replies if key.startswith(f"{tenant}-")]
            assert own == [f"{tenant}-{number}" for number in range(3)]
            assert one.version("a", tenant=tenant) == 3


# -- overload -------------------------------------------------------------------------------------


async def test_committer_reads_yield_to_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload, "_FIRST_BYTES_PER_S", 1000.0)
    async with bench() as one:
        await one.committer.yield_to_writes(1, 60.0)
        one.store.gate.clear()
        one.submit("k1", put("a", x=1))
        await one.store.committing.get()
        one.submit("k2", put("b", x=1))
        assert one.committer.over_target(1)
        reading = asyncio.create_task(one.committer.yield_to_writes(1, 60.0))
        impatient = asyncio.create_task(one.committer.yield_to_writes(1, 0.0))
        await impatient
        assert not reading.done()
        one.store.gate.set()
        await reading
        assert one.statuses("k1") == ["applied"]


async def test_committer_reads_do_not_yield_to_one_other_tenant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(overload, "_FIRST_BYTES_PER_S", 1000.0)
    async with bench() as one:
        one.store.gate.clear()
        one.submit("k1", put("a", x=1))
        await one.store.committing.get()
        one.submit("k2", put("b", x=1))
        await one.committer.yield_to_writes(2, 60.0)
        assert not one.committer.over_target(2)
        one.submit("k3", put("c", x=1), tenant=3)
        assert one.committer.over_target(2)  # that is no longer one tenant's
        reading = asyncio.create_task(one.committer.yield_to_writes(2, 60.0))
        one.store.gate.set()
        await reading
        assert one.statuses("k1") == ["applied"]


async def test_committer_slow_batch_holds_up_no_other_tenant() -> None:
    async with bench(lanes=2) as one:
        one.store.gate.clear()
        one.submit("k1", put("a", x=1))
        await one.store.committing.get()
        one.submit("k2", put("b", x=1), tenant=2)
        await one.store.committing.get()
        one.submit("k3", put("c", x=1), tenant=3)
        one.store.gate.set()
        await one.committer.drain()
        assert one.statuses("k3") == ["applied"]


# -- bounds, drain ----------------------------------------------------------------------------------


async def test_committer_full_queue_refuses_and_loses_nothing() -> None:
    limits = CommitLimits(batch_items=2, batch_bytes=1 << 20, queue_messages=5, queue_bytes=1 << 20)
    async with bench(limits=limits) as one:
        one.store.gate.clear()
        one.submit("first", put("f"))
        await one.store.committing.get()
        for number in range(5):
            one.submit(f"k{number}", put(f"r{number}"))
        with pytest.raises(SyncError) as caught:
            one.submit("too-many", put("never"))
        assert caught.value.code == "overloaded"
        retry_after_ms = caught.value.details["retry_after_ms"]
        assert isinstance(retry_after_ms, int)
        assert retry_after_ms > 0
        one.store.gate.set()
        await one.committer.drain()
        one.submit("too-many", put("never"))
        await one.committer.drain()
        assert len(one.replies) == 7
        assert {one.version(f"r{number}") for number in range(5)} == {1}
        assert one.statuses("too-many") == ["applied"]


async def test_committer_queue_is_bounded_in_bytes() -> None:
    limits = CommitLimits(batch_items=10, batch_bytes=1 << 20, queue_messages=100, queue_bytes=13_000)
    async with bench(limits=limits) as one:
        for turn in range(3):  # what was taken out makes room again
            for number in range(3):
                one.submit(f"{turn}-{number}", put("a", x="x" * 2000))
            with pytest.raises(SyncError, match="too much"):
                one.submit(f"{turn}-3", put("a", x="x" * 2000))
            await one.committer.drain()
        assert len(one.replies) == 9


async def test_committer_batch_touching_too_many_bytes_is_split_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.plan.weighing.BATCH_TOUCHES_BYTES", 5000)
    async with bench() as one:
        one.submit("first", put("a", x="x" * 2000))
        await one.committer.drain()
        one.store.gate.clear()
        one.submit("held", put("other"))
        await one.store.committing.get()
        for number in range(1, 7):
            one.submit(f"k{number}", put("a", number, x="x" * 2000, n=number))
        one.store.gate.set()
        await one.committer.drain()
        assert [key for key, _ in one.replies] == ["first", "held", *(f"k{number}" for number in range(1, 7))]
        assert one.version("a") == 7
        assert one.committer.counters.batches > 4


async def test_committer_batch_with_an_unread_conflict_runs_again() -> None:
    async with bench() as one:
        one.submit("made", put("a", x=1), put("a", 1, x=2) | {"op": "delete"})
        await one.committer.drain()
        key = RecordKey(1, "task", "a")
        rows = one.store.rows
        rows.records[key] = msgspec.structs.replace(rows.records[key], last_data=None)
        begun: list[int] = []
        one.store.on_begin = lambda: begun.append(len(rows.conflicts))
        patch = put("a", 1, x=3) | {"op": "patch"}
        one.submit("k1", patch, device="tablet")
        one.submit("k2", put("b", x=1), device="tablet")
        one.submit("k3", patch | {"data": {"x": 4}}, device="tablet")
        await one.committer.drain()
        assert (one.statuses("k1"), one.statuses("k2"), one.statuses("k3")) == (
            ["conflict"],
            ["applied"],
            ["conflict"],
        )
        opened, joined = rows.conflicts.values()
        assert (opened.outcome, joined.held_in) == ("open", opened.conflict_id)
        assert [change.data for change in changes_of(opened)] == [b'{"x":3}', b'{"x":4}']
        assert begun in ([0, 0], [0, 0, 2, 2]), "twice a batch"
        assert one.committer.counters.retries == 0


async def test_committer_drain_waits_for_in_flight_and_queued_work() -> None:
    async with bench() as one:
        await asyncio.wait_for(one.committer.drain(), 10)
        one.store.gate.clear()
        one.submit("first", put("a"))
        await one.store.committing.get()
        one.submit("second", put("b"))
        drained = asyncio.create_task(one.committer.drain())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not drained.done()
        one.store.gate.set()
        await drained
        assert [key for key, _ in one.replies] == ["first", "second"]


async def test_committer_failing_reply_affects_no_other() -> None:
    def fails(_: Outcome) -> None:
        raise RuntimeError("the connection is gone")

    async with bench() as one:
        one.store.gate.clear()
        one.submit("k1", put("a"))
        one.committer.submit(one.push("k2", put("b")), fails)
        one.submit("k3", put("c"))
        one.store.gate.set()
        await one.committer.drain()
        assert [key for key, _ in one.replies] == ["k1", "k3"]
        assert one.version("b") == 1


async def test_committer_cancelled_answers_nobody() -> None:
    one = Bench(FaultyStore())
    task = asyncio.create_task(one.committer.run())
    one.store.gate.clear()
    one.submit("k1", put("a"))
    await one.store.committing.get()
    task.cancel()
    await asyncio.wait({task})
    assert not one.replies


# -- retries ------------------------------------------------------------------------------------------


async def test_committer_full_disk_refuses_batch_and_queue() -> None:
    async with bench(Fault(StoreFullError("no space left on device"))) as one:
        one.store.gate.clear()
        one.submit("k1", put("a", x=1))
        await one.store.committing.get()
        one.submit("k2", put("a", 1, x=2))
        one.store.gate.set()
        await one.committer.drain()
        for _, outcome in one.replies:
            assert isinstance(outcome, SyncError)
            assert outcome.code == "insufficient_storage"
            assert outcome.details["retry_after_ms"] in range(45_000, 90_001)
        assert len(one.replies) == 2
        assert not one.store.rows.keys


async def test_committer_nothing_overtakes_what_a_full_disk_refused() -> None:
    async with bench(Fault(StoreFullError("no space left on device"))) as one:
        for key, item in (
            ("k1", put("a", x=1)),
            ("k2", put("a", 1, x=2)),
            ("k3", put("b", x=3)),
            ("k1", put("a", x=1)),
            ("k2", put("a", 1, x=2)),
        ):
            one.submit(key, item)
            await one.committer.drain()
        outcomes = [getattr(outcome, "code", "stored") for _, outcome in one.replies]
        assert outcomes == ["insufficient_storage", "insufficient_storage", "stored", "stored", "stored"]
        assert one.version("a") == 2


@pytest.mark.parametrize("at", ["begin", "commit"])
@pytest.mark.parametrize("error", [StoreRetryError, StoreUnavailableError])
async def test_committer_batch_that_wrote_nothing_runs_again(at: str, error: type[StoreError]) -> None:
    async with bench(Fault(error("away"), at=at), Fault(error("away"), at=at)) as one:
        one.submit("k1", put("a", x=1))
        await one.committer.drain()
        assert one.statuses("k1") == ["applied"]
        assert one.version("a") == 1
        assert one.committer.counters.retries == 2
        assert not one.unknown_outcomes


@pytest.mark.parametrize("applied", [False, True])
async def test_committer_unknown_outcome_is_resolved_by_running_again(applied: bool) -> None:
    async with bench(Fault(StoreUnknownError("lost"), applied=applied)) as one:
        one.submit("k1", put("a", x=1), put("b", x=1))
        one.submit("k2", put("a", 1, x=2))
        await one.committer.drain()
        assert one.statuses("k1") == ["applied", "applied"]
        assert one.statuses("k2") == ["applied"]
        assert (one.version("a"), one.version("b")) == (2, 1)
        assert one.store.rows.seqs == {1: 3}
        assert one.committer.counters.unknown_outcomes == 1
        assert one.unknown_outcomes == [{1}], "nobody can say what to publish: the feed has to look"
        assert len(one.published) == (0 if applied else 3)


async def test_committer_resolve_of_unknown_outcome_repeats_its_answer() -> None:
    async with bench() as one:
        held = {"domain": "form", "id": "f", "op": "put", "base": 7}
        one.submit("k1", held | {"data": {"x": 1}}, device="desk")
        one.submit("k2", held | {"data": {"x": 2}})
        await one.committer.drain()
        assert one.statuses("k2") == ["conflict"]
        ((ref, row),) = one.store.rows.conflicts.items()
        work = one.validator.resolution(
            Resolve("1", ref.conflict_id, "client", 1), one.session("phone", 1), row, NOW_US
        )
        one.store.faults.append(Fault(StoreUnknownError("lost"), applied=True))
        one.submit_work("r1", work)
        await one.committer.drain()
        assert one.replies[-1] == ("r1", ResolveAnswer(ref.conflict_id, 2, 2))
        assert one.version("f", domain="form") == 2


async def test_committer_long_outage_refuses_everything_queued() -> None:
    limits = CommitLimits(batch_items=1, batch_bytes=1 << 20, queue_messages=100, queue_bytes=1 << 22)
    async with bench(limits=limits) as one:
        attempts = 0

        def away() -> None:
            nonlocal attempts
            attempts += 1
            one.clock.at_s += RETRY_FOR_S / 3
            one.store.faults.insert(0, Fault(StoreUnavailableError("away"), at="begin"))

        one.store.on_begin = away
        one.submit("k1", put("a", x=1))
        one.submit("k2", put("a", 1, x=2))
        await one.committer.drain()
        assert one.code("k1") == one.code("k2") == "unavailable"
        assert attempts == 3, "the second would build on the first: it was not tried"
        one.submit("k3", put("a", x=1))
        await one.committer.drain()
        assert one.code("k3") == "unavailable"
        assert attempts == 4, "while the outage lasts each batch tries once"
        one.store.on_begin = lambda: None
        one.submit("k4", put("a", x=1))
        await one.committer.drain()
        assert one.statuses("k4") == ["applied"]
        assert one.version("a") == 1
        for _, outcome in one.replies[:3]:
            assert isinstance(outcome, SyncError)
            assert outcome.details["retry_after_ms"]
        # The next outage is waited out again.
        one.store.faults.append(Fault(StoreUnavailableError("away"), at="begin"))
        one.submit("k5", put("a", 1, x=2))
        await one.committer.drain()
        assert one.statuses("k5") == ["applied"]


async def test_committer_outage_keeps_later_work_of_other_devices() -> None:
    """The database may have come back since: a device that asks anew is answered at its first try."""
    async with bench() as one:

        def away() -> None:
            one.clock.at_s += RETRY_FOR_S
            one.submit("k2", put("a", 1, x=2))
            one.submit("k3", put("b", x=3), device="tablet")
            one.submit("k4", put("c", x=4), tenant=2)
            one.store.on_begin = lambda: None
            one.store.faults.append(Fault(StoreUnavailableError("away"), at="begin"))

        one.store.on_begin = away
        one.submit("k1", put("a", x=1))
        await one.committer.drain()
        assert one.code("k1") == one.code("k2") == "unavailable"
        assert one.statuses("k3") == one.statuses("k4") == ["applied"]
        queue = one.committer._queue
        assert (queue.messages, queue.items, queue.size_bytes) == (0, 0, 0)


async def test_committer_lasting_unknown_outcome_is_found_under_its_key() -> None:
    async with bench(Fault(StoreUnknownError("lost"), applied=True)) as one:
        one.store.on_begin = lambda: setattr(one.clock, "at_s", one.clock.at_s + RETRY_FOR_S)
        one.submit("k1", put("a", x=1))
        await one.committer.drain()
        assert one.code("k1") == "unavailable"
        assert one.unknown_outcomes == [{1}]
        one.store.on_begin = lambda: None
        one.submit("k1", put("a", x=1))
        await one.committer.drain()
        again = one.replies[-1][1]
        assert isinstance(again, PushAnswer)
        assert again.replayed
        assert one.version("a") == 1


# -- poison -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("culprit", [0, 7, 15])
async def test_committer_refused_value_fails_its_message_alone(culprit: int) -> None:
    async with bench() as one:
        one.store.gate.clear()
        one.submit("first", put("f"))
        await one.store.committing.get()
        for number in range(16):
            bad = [put(f"r{number}", x=POISON)] if number == culprit else []
            one.submit(f"k{number}", put(f"r{number}", x=1), *bad)
        one.store.gate.set()
        await one.committer.drain()
        for number in range(16):
            expected = ["rejected", "rejected"] if number == culprit else ["applied"]
            assert one.statuses(f"k{number}") == expected
        assert [key for key, _ in one.replies] == ["first", *(f"k{number}" for number in range(16))]
        assert one.version(f"r{culprit}") == 0
        assert [row.record_id for row in one.store.rows.quarantine] == [f"r{culprit}"] * 2
        assert {row.code for row in one.store.rows.quarantine} == {"invalid_item"}
        assert one.committer.counters.poisoned == 1
        assert one.store.rows.seqs == {1: 16}


async def test_committer_poisoned_message_keeps_its_answer() -> None:
    async with bench() as one:
        for _ in range(2):
            one.submit("k1", put("a", x=POISON))
            await one.committer.drain()
        first, again = (outcome for _, outcome in one.replies)
        assert isinstance(first, PushAnswer)
        assert again == PushAnswer(first.results, replayed=True)
        assert len(one.store.rows.quarantine) == 1


async def test_committer_poisoned_atomic_message_is_aborted() -> None:
    async with bench() as one:
        one.submit_work("k1", one.push("k1", put("a", x=1), put("b", x=POISON), atomic=True))
        await one.committer.drain()
        assert one.statuses("k1") == ["rejected", "rejected"]
        assert not one.store.rows.quarantine


async def test_committer_poisoned_resolve_is_an_internal_error() -> None:
    async with bench() as one:
        held = {"domain": "form", "id": "f", "op": "put", "base": 7}
        one.submit("k1", held | {"data": {"x": 1}}, device="desk")
        one.submit("k2", held | {"data": {"x": 2}})
        await one.committer.drain()
        ((ref, row),) = one.store.rows.conflicts.items()
        request = Resolve("1", ref.conflict_id, "merged", 1, {"x": POISON})
        one.submit_work("r1", one.validator.resolution(request, one.session("phone", 1), row, NOW_US))
        one.submit("k3", put("a"))
        await one.committer.drain()
        assert one.code("r1") == "internal"
        assert one.statuses("k3") == ["applied"]
        assert one.store.rows.conflicts[ref].outcome == "open"


async def test_committer_unexpected_error_fails_its_message_alone() -> None:
    error = RuntimeError("a fault of ours")
    async with bench() as one:
        one.policies.pop(9)  # planning for this tenant raises
        one.store.gate.clear()
        one.submit("first")
        await one.store.committing.get()
        one.submit("k1", put("a"))
        one.submit_work("bad", _of_tenant_9(one.push("bad", put("a"))))
        one.submit("k2", put("b"))
        one.store.gate.set()
        await one.committer.drain()
        assert one.code("bad") == "internal"
        assert one.statuses("k1") == one.statuses("k2") == ["applied"]
        one.store.faults.append(Fault(error))
        one.submit("k4", put("c"))
        await one.committer.drain()
        assert one.code("k4") == "internal"
        errors = [outcome for _, outcome in one.replies if isinstance(outcome, SyncError)]
        ids = {outcome.details["error_id"] for outcome in errors}
        assert len(ids) == 2
        assert all(str(error) not in outcome.message for outcome in errors)


async def test_committer_failing_plan_releases_the_locks() -> None:
    async with bench() as one:
        one.ids = iter(())  # type: ignore[assignment]  # no id is left for what is to be quarantined
        one.submit("k1", put("a", x="x" * 10_001))
        await one.committer.drain()
        assert one.code("k1") == "internal"
        one.submit("k2", put("a", x=1))
        await asyncio.wait_for(one.committer.drain(), 10)
        assert one.statuses("k2") == ["applied"]


def _of_tenant_9(push: Push) -> Push:
    fields = {name: getattr(push, name) for name in push.__struct_fields__}
    return Push(**(fields | {"tenant_id": 9}))


# -- policies ---------------------------------------------------------------------------------------------


async def test_committer_batch_is_planned_by_the_policies_it_was_read_for() -> None:
    """A policy that begins to hold conflicts in between would not see the one that is open."""
    async with bench() as one:
        item = {"domain": "form", "id": "f", "op": "put", "base": 7}
        one.submit("k1", item | {"data": {"x": 1}}, device="desk")
        one.submit("k2", item | {"data": {"x": 2}})
        await one.committer.drain()
        holding = one.policies[1]
        one.policies[1] = {**holding, "form": DomainPolicy("server_wins")}

        def switched() -> None:
            one.policies[1] = holding

        one.store.on_begin = switched
        one.submit("k3", item | {"data": {"x": 3}})
        await one.committer.drain()
        one.store.on_begin = lambda: None
        assert one.statuses("k3") == ["resolved"]
        one.submit("k4", item | {"data": {"x": 4}})
        await one.committer.drain()
        assert one.statuses("k4") == ["conflict"]
        waiting = [row for row in one.store.rows.conflicts.values() if row.outcome == "open"]
        assert [[change.data for change in changes_of(row)] for row in waiting] == [[b'{"x":4}']]
        assert ConflictRef(1, waiting[0].conflict_id) in one.store.rows.conflicts


# -- everything at once -------------------------------------------------------------------------------------


_faults = st.lists(
    st.sampled_from(
        [
            ("begin", StoreRetryError, False),
            ("begin", StoreUnavailableError, False),
            ("commit", StoreRetryError, False),
            ("commit", StoreUnknownError, False),
            ("commit", StoreUnknownError, True),
        ]
    ),
    max_size=4,
)
_edits = st.lists(st.sampled_from(["put", "put", "put", "poison"]), max_size=8)
_devices = st.lists(st.tuples(st.sampled_from([1, 2, 3]), _edits), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    faults=_faults,
    devices=_devices,
    turns=st.lists(st.integers(0, 3), max_size=30),
    batch_items=st.integers(1, 6),
    batch_us=st.sampled_from([10_000.0, 25.0, 5.0]),
    lanes=st.integers(1, 3),
)
def test_committer_all_work_is_answered_once_in_order_under_faults(
    faults: list[tuple[str, type[StoreError], bool]],
    devices: list[tuple[int, list[str]]],
    turns: list[int],
    batch_items: int,
    batch_us: float,
    lanes: int,
) -> None:
    """By ``batch_us`` each message is light, or there is room for two in a batch, or each is expensive."""
    limits = CommitLimits(batch_items, 1 << 20, 1000, 1 << 22)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("engine.plan.weighing.BATCH_US", batch_us)
        asyncio.run(_storm(faults, devices, turns, limits, lanes))


async def _storm(
    faults: list[tuple[str, type[StoreError], bool]],
    devices: list[tuple[int, list[str]]],
    turns: list[int],
    limits: CommitLimits,
    lanes: int,
) -> None:
    """Each device edits a record of its own, every edit on the one before; turns mix the devices."""
    scripted = [Fault(error("fault"), at=at, applied=applied) for at, error, applied in faults]
    async with bench(*scripted, limits=limits, lanes=lanes) as one:
        sent = [0] * len(devices)
        expected: list[list[str]] = [[] for _ in devices]
        while any(done < len(edits) for done, (_, edits) in zip(sent, devices, strict=True)):
            turn = turns.pop(0) if turns else 0
            ready = [number for number, (_, edits) in enumerate(devices) if sent[number] < len(edits)]
            number = ready[turn % len(ready)]
            tenant, edits = devices[number]
            edit = edits[sent[number]]
            sent[number] += 1
            bad = edit == "poison"
            item = put(f"bad-{number}", x=POISON) if bad else put(f"own-{number}", x=sent[number])
            one.submit(f"{number}/{sent[number]}", item, device=f"d{number}", tenant=tenant)
            expected[number].append("rejected" if bad else "applied")
            if turn == 3:
                await asyncio.sleep(0)
        await asyncio.wait_for(one.committer.drain(), 30)

        assert max(Counter(key for key, _ in one.replies).values(), default=1) == 1
        for number, (tenant, edits) in enumerate(devices):
            own = [key for key, _ in one.replies if key.startswith(f"{number}/")]
            assert own == [f"{number}/{place + 1}" for place in range(len(edits))], "in the order sent"
            assert [one.statuses(key)[0] for key in own] == expected[number]
            assert one.version(f"own-{number}", tenant=tenant) == expected[number].count("applied")
        rows = one.store.rows
        assert len(rows.keys) == sum(sent)
        assert len(rows.quarantine) == sum(statuses.count("rejected") for statuses in expected)
        unknown_outcomes = set().union(*one.unknown_outcomes)
        for tenant, seq in rows.seqs.items():
            told = [record.seq for record, _ in one.published if record.tenant_id == tenant]
            assert told == sorted(set(told)), "in order, none twice"
            assert len(told) == seq or tenant in unknown_outcomes, "nothing is kept from the feed"
        assert one.committer.queued_messages == 0
