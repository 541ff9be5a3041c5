"""What is expensive to plan: it runs alone, is charged to its device, and is refused past a second."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.commit import lane, planning
from engine.commit.queue import Charge
from engine.model.rows import ReadSet
from engine.plan import weighing
from engine.plan.work import PushAnswer
from engine.runtime.loop_share import Rest
from tests.engine.commit.test_committer import Bench, FaultyStore, HandClock, bench, put
from tests.harness.memory_store import MemoryTransaction

Json = dict[str, Any]


class Ticking(HandClock):
    """Goes on at each look."""

    def __init__(self, tick_s: float) -> None:
        super().__init__()
        self.tick_s = tick_s

    def monotonic_s(self) -> float:
        """Seconds since the start."""
        self.at_s += self.tick_s
        return self.at_s


class Locks(FaultyStore):
    """Keeps which tenants each batch locked."""

    def __init__(self) -> None:
        super().__init__()
        self.locked: list[list[int]] = []

    async def begin(self, read_set: ReadSet) -> MemoryTransaction:
        """Begin."""
        self.locked.append(read_set.tenants)
        return await super().begin(read_set)


@pytest.fixture
def expensive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two items be too much for a batch."""
    monkeypatch.setattr(weighing, "BATCH_US", 15.0)


def two(record_id: str) -> list[Json]:
    """Return the items of an expensive message."""
    return [put(record_id), put(record_id, 1, x=1)]


def told(charged: list[float]) -> Charge:
    """Return a charge that keeps what counts for the device's share of the loop."""

    def charge(spent_s: float, _message_s: float = 0.0) -> None:
        if spent_s:
            charged.append(spent_s)

    return charge


async def gathered(one: Bench) -> None:
    """Have what is submitted next wait for one batch."""
    one.store.gate.clear()
    one.submit("first", put("first"), tenant=9)
    await one.store.committing.get()


@pytest.mark.usefixtures("expensive")
@pytest.mark.parametrize("lanes", [1, 2])
async def test_committer_expensive_message_locks_its_own_tenant_only(lanes: int) -> None:
    store = Locks()
    async with bench(lanes=lanes, store=store) as one:
        await gathered(one)
        one.submit("expensive", *two("b"), tenant=2)
        one.submit("light", put("a"), tenant=1)
        one.submit("behind", put("b", 2, x=2), tenant=2)
        one.store.gate.set()
        await one.committer.drain()
        assert one.statuses("light") == ["applied"]
        assert one.statuses("expensive") == ["applied", "applied"]
        assert one.statuses("behind") == ["applied"]
        assert one.version("b", tenant=2) == 3
        order = [key for key, _ in one.replies]
        assert order.index("light") < order.index("expensive") < order.index("behind")
        # The first batch found out; from then on nobody else's counter is locked with the second tenant's.
        assert [tenants for tenants in store.locked if 2 in tenants][1:] == [[2], [2]]


@pytest.mark.usefixtures("expensive")
async def test_committer_expensive_messages_run_one_after_another() -> None:
    store = Locks()
    async with bench(lanes=1, store=store) as one:
        await gathered(one)
        for tenant in (1, 2, 3):
            one.submit(f"k{tenant}", *two("b"), tenant=tenant)
        one.store.gate.set()
        await one.committer.drain()
        assert [one.statuses(f"k{tenant}") for tenant in (1, 2, 3)] == [["applied"] * 2] * 3
        assert store.locked[:2] == [[9], [1, 2, 3]]
        assert sorted(store.locked[2:]) == [[1], [2], [3]]
        assert one.committer.counters.messages == 4


@pytest.mark.usefixtures("expensive")
async def test_committer_batch_expensive_in_sum_is_cut_in_order() -> None:
    async with bench() as one:
        await gathered(one)
        for number in range(4):
            one.submit(f"k{number}", put("a", number or None, x=number))
        one.store.gate.set()
        await one.committer.drain()
        assert [key for key, _ in one.replies] == ["first", "k0", "k1", "k2", "k3"]
        assert one.version("a") == 4
        assert one.committer.counters.batches == 5


@pytest.mark.usefixtures("expensive")
@pytest.mark.parametrize("wanted", [True, False])
async def test_committer_expensive_message_rests_if_the_loop_is_contended(
    monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    rests: list[bool] = []

    def spied(*args: Any, **told: Any) -> Any:
        rests.append(told["rests"])
        return planning.run_plan(*args, **told)

    monkeypatch.setattr(lane, "run_plan", spied)
    async with bench(is_contended=lambda _: wanted) as one:
        one.submit("light", put("a"))
        await one.committer.drain()
        one.submit("expensive", *two("b"))
        await one.committer.drain()
        assert rests == [False, wanted]


async def test_committer_planning_time_is_charged_to_its_device() -> None:
    clock = Ticking(0.0)
    async with bench(clock=clock) as one:
        await gathered(one)
        charged: dict[str, list[float]] = {"a": [], "b": []}
        for name, count in (("a", 1), ("b", 64)):
            items = [put(f"{name}{number}") for number in range(count)]
            one.committer.submit(one.push(name, *items), lambda _: None, told(charged[name]))
        clock.tick_s = 0.25
        one.store.gate.set()
        await one.committer.drain()
        # A look at the clock after each 32 items, where it is charged.
        assert charged == {"a": [0.25], "b": [0.25, 0.25]}


async def test_committer_time_of_a_message_charged_in_slices_is_told_as_a_whole_when_it_is_done() -> None:
    clock = Ticking(0.0)
    async with bench(clock=clock) as one:
        await gathered(one)
        calls: list[tuple[float, float]] = []

        def charge(spent_s: float, message_s: float = 0.0) -> None:
            calls.append((spent_s, message_s))

        items = [put(f"a{number}") for number in range(64)]
        one.committer.submit(one.push("a", *items), lambda _: None, charge)
        clock.tick_s = 0.25
        one.store.gate.set()
        await one.committer.drain()
        assert calls == [(0.25, 0.0), (0.25, 0.0), (0.0, 0.5)]


async def test_committer_time_of_large_rows_is_charged_to_its_device() -> None:
    clock = Ticking(0.0)
    async with bench(clock=clock) as one:
        await gathered(one)
        charged: dict[str, list[float]] = {"small": [], "large": []}
        clock.tick_s = 0.002
        for name, size in (("small", 10), ("large", 9000)):
            push = one.push(name, put(name, text="x" * size), device=name)
            one.committer.submit(push, lambda _: None, told(charged[name]))
        one.store.gate.set()
        await one.committer.drain()
        assert sum(charged["large"]) > sum(charged["small"]) + 0.002


async def test_committer_time_below_a_millisecond_is_not_charged() -> None:
    clock = Ticking(0.0005)
    async with bench(clock=clock) as one:
        charged: list[float] = []
        one.committer.submit(one.push("k", put("a")), lambda _: None, told(charged))
        await one.committer.drain()
        assert not charged


async def test_committer_time_below_a_millisecond_is_charged_by_device_in_a_large_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Ticking(0.0)
    async with bench(clock=clock) as one:
        await one.committer.commit(one.push("large", put("a", text="x" * 9000)))
        await gathered(one)
        monkeypatch.setattr(lane, "_share_out", lambda *_: None)
        charged: list[float] = []
        for number in range(8):
            push = one.push(f"k{number}", put("a", number + 1, x=number))
            one.committer.submit(push, lambda _: None, told(charged))
        clock.tick_s = 0.0005
        one.store.gate.set()
        await one.committer.drain()
        assert charged == [pytest.approx(8 * 0.0005)]


async def test_committer_message_over_a_second_is_too_large_and_its_key_unused() -> None:
    clock = Ticking(0.0)
    async with bench(clock=clock) as one:
        await gathered(one)
        charged: list[float] = []
        items = [put(f"r{number}") for number in range(500)]
        one.submit("before", put("a"))
        one.committer.submit(
            one.push("long", *items), lambda outcome: one.replies.append(("long", outcome)), told(charged)
        )
        one.submit("behind", put("b"))
        clock.tick_s = 0.1
        one.store.gate.set()
        await one.committer.drain()
        assert one.code("long") == "too_large"
        assert (one.statuses("before"), one.statuses("behind")) == (["applied"], ["applied"])
        assert sum(charged) > 1.0
        assert one.version("r0") == 0
        clock.tick_s = 0.0
        one.replies.clear()
        one.submit("long", *items)
        await one.committer.drain()
        assert one.statuses("long") == ["applied"] * 500


async def test_committer_device_over_its_share_rests_alone() -> None:
    clock = Ticking(0.005)
    async with bench(clock=clock) as one:
        await one.committer.commit(one.push("first", put("a")), lambda *_: Rest(3.0, 0.0))
        clock.tick_s = 0.0
        second = asyncio.create_task(one.committer.commit(one.push("second", put("a", 1, x=1))))
        await asyncio.sleep(0)
        sibling = await one.committer.commit(one.push("sibling", put("b"), device="tablet"))
        assert isinstance(sibling, PushAnswer)
        assert not second.done()
        clock.at_s += 3.0
        one.committer._on_rested()
        assert isinstance(await second, PushAnswer)


async def test_committer_rest_ends_and_accepted_work_is_drained() -> None:
    clock = Ticking(0.005)
    async with bench(clock=clock) as one:
        await one.committer.commit(one.push("first", put("a")), lambda *_: Rest(0.05, 0.05))
        one.submit("second", put("a", 1, x=1))
        await one.committer.drain()
        assert one.statuses("second") == ["applied"]
