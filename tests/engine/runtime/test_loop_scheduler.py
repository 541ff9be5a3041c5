"""Turns of the loop for what would hold it: who has the next one and when, with a clock in hand."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Generator
from functools import partial
from itertools import pairwise

import msgspec
import pytest

from engine.runtime.loop_scheduler import LONG_S, REST, LoopScheduler, Steps
from engine.runtime.loop_share import (
    DEVICE_BURST_S,
    DEVICE_PART,
    TENANT_BURST_S,
    TENANT_PART,
    LoopShare,
    LoopShares,
)

NOBODY, GREEDY, OTHER = 2, 1, 3


class _Device(msgspec.Struct):
    share: LoopShare | None = None


class _Call:
    def __init__(self, at_s: float, call: Callable[[], None]) -> None:
        self.at_s = at_s
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class _World:
    """Clock and loop of turns that several tenants want, unless ``alone``; ``log`` says what ran when."""

    def __init__(self, *, alone: bool = False) -> None:
        self.now_s = 0.0
        self.alone = alone
        self.shares = LoopShares()
        self.calls: list[_Call] = []
        self.log: list[tuple[str, float]] = []
        self.turns = LoopScheduler(self.shares, self, self)
        self._heard()

    def _heard(self) -> None:
        for tenant_id in (GREEDY,) if self.alone else (NOBODY, GREEDY):
            self.shares.note_active(tenant_id, self.now_s)

    def now_us(self) -> int:
        return int(self.now_s * 1_000_000)

    def monotonic_s(self) -> float:
        return self.now_s

    def call_soon(self, call: Callable[[], None]) -> _Call:
        return self.call_later(0.0, call)

    def call_later(self, wait_s: float, call: Callable[[], None]) -> _Call:
        due = _Call(self.now_s + wait_s, call)
        self.calls.append(due)
        return due

    def step(self) -> bool:
        """Run the call that is due first; False if there is none."""
        self.calls = [due for due in self.calls if due.call is not None]
        if not self.calls:
            return False
        due = min(self.calls, key=lambda one: one.at_s)
        self.calls.remove(due)
        self.now_s = max(self.now_s, due.at_s)
        self._heard()
        assert due.call is not None
        due.call()
        return True

    def run(self, until_s: float = 60.0) -> None:
        while self.now_s < until_s and self.step():
            pass

    def work(self, name: str, spent_s: float) -> None:
        self.log.append((name, self.now_s))
        self.now_s += spent_s

    def socket(self, tenant_id: int, device: _Device, name: str, spent_s: float = 0.0) -> None:
        """Wait for a turn, and charge it, as a gate does."""

        def turn() -> None:
            self.work(name, spent_s)
            self.shares.spend(tenant_id, device, spent_s, self.now_s)

        self.turns.take(tenant_id, device, turn)

    def message(self, tenant_id: int, device: _Device, name: str, *steps_s: float) -> None:
        def charge(spent_s: float, now_s: float) -> None:
            self.shares.spend(tenant_id, device, spent_s, now_s)

        self.turns.handle(tenant_id, self._steps(name, steps_s), charge)

    def _steps(self, name: str, steps_s: tuple[float, ...]) -> Steps:
        for at, spent_s in enumerate(steps_s):
            if at:
                yield
            self.work(name, spent_s)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.log]


def test_loop_turns_of_many_sockets_run_one_in_each_pass() -> None:
    world = _World()
    for number in range(1000):
        world.socket(GREEDY, _Device(), f"{number}", 0.0005)
    passes = 0
    while len(world.log) < 20:
        before = len(world.log)
        assert world.step()
        passes += 1
        assert len(world.log) <= before + 1, "the loop is given back after each"
    assert world.names == [f"{number}" for number in range(20)]


def test_loop_turns_of_sockets_go_round_the_tenants() -> None:
    world = _World()
    for number in range(3):
        world.socket(GREEDY, _Device(), f"greedy {number}")
    world.socket(OTHER, _Device(), "other")
    world.run()
    assert world.names == ["greedy 0", "other", "greedy 1", "greedy 2"]


def test_loop_turns_of_sockets_that_wait_again_and_again_go_round_the_tenants() -> None:
    world = _World()

    def wait(tenant_id: int, name: str) -> None:
        def turn() -> None:
            world.work(name, 0.0)
            wait(tenant_id, name)

        world.turns.take(tenant_id, _Device(), turn)

    for tenant_id, name in ((1, "one"), (2, "two"), (3, "three a"), (3, "three b")):
        wait(tenant_id, name)
    while len(world.log) < 12:
        assert world.step()
    assert world.names == ["one", "two", "three a", "one", "two", "three b"] * 2


def test_loop_turns_look_at_few_tenants_each_however_many_wait() -> None:
    world = _World()
    looks = Counter[str]()
    ready_s = world.shares.tenant_ready_s

    def counted(tenant_id: int) -> float:
        looks["tenants"] += 1
        return ready_s(tenant_id)

    world.shares.tenant_ready_s = counted  # type: ignore[method-assign]  # to count
    for tenant_id in range(1000):
        world.socket(tenant_id, _Device(), "socket")
        world.socket(tenant_id, _Device(), "socket")
    world.run()
    assert len(world.log) == 2000
    assert looks["tenants"] <= 3 * 2000


def test_loop_turns_of_a_device_over_its_share_come_when_it_is_paid_and_others_before_it() -> None:
    world = _World()
    greedy, small = _Device(), _Device()
    world.shares.spend(GREEDY, greedy, DEVICE_BURST_S + 0.05, 0.0)
    world.socket(GREEDY, greedy, "greedy")
    world.socket(GREEDY, small, "small")
    world.run()
    assert world.log == [("small", 0.0), ("greedy", pytest.approx(0.05 / DEVICE_PART))]


def test_loop_turns_of_a_tenant_over_its_share_come_one_after_the_other() -> None:
    """Ten devices that are due together would hold the loop for ten turns in one pass."""
    world = _World()
    devices = [_Device() for _ in range(10)]
    for device in devices:
        world.shares.spend(GREEDY, device, TENANT_BURST_S / 10, 0.0)
    for device in devices:
        world.socket(GREEDY, device, "greedy", 0.03)
    world.run()
    times_s = [at_s for _, at_s in world.log]
    assert len(times_s) == 10
    between_s = [later - sooner for sooner, later in pairwise(times_s[1:])]
    assert between_s == pytest.approx([0.03 / TENANT_PART] * 8)


def test_loop_turns_of_whom_nobody_waits_beside_wait_for_no_share() -> None:
    world = _World(alone=True)
    greedy = _Device()
    world.shares.spend(GREEDY, greedy, 10.0, 0.0)
    world.socket(GREEDY, greedy, "greedy")
    world.run()
    assert world.log == [("greedy", 0.0)]


def test_loop_turns_that_are_cancelled_do_not_come() -> None:
    world = _World()
    turn = world.turns.take(GREEDY, _Device(), partial(world.work, "gone", 0.0))
    world.socket(GREEDY, _Device(), "here")
    turn.cancel()
    world.run()
    assert world.names == ["here"]
    assert not world.turns.waits(GREEDY)


def test_loop_turns_of_large_messages_of_a_tenant_are_one_after_the_other_and_one_step_a_pass() -> None:
    world = _World()
    world.message(GREEDY, _Device(), "first", 0.001, 0.001, 0.001)
    world.message(GREEDY, _Device(), "second", 0.001, 0.001)
    world.message(OTHER, _Device(), "other", 0.001)
    lengths = []
    while world.step():
        lengths.append(len(world.log))
    assert world.names == ["first", "other", "first", "first", "second", "second"]
    assert lengths == [1, 2, 3, 4, 5, 6]


def test_loop_turns_rest_after_a_long_step_where_others_want_the_loop() -> None:
    world = _World()
    world.message(GREEDY, _Device(), "long", 0.03, 0.03, LONG_S / 2, 0.01)
    world.run()
    times_s = [at_s for _, at_s in world.log]
    rest_s = 0.03 * (1 + REST)
    assert times_s == pytest.approx([0.0, rest_s, 2 * rest_s, 2 * rest_s + LONG_S / 2])


def test_loop_turns_of_large_messages_do_not_wait_for_another_tenants_rest() -> None:
    world = _World()
    world.message(GREEDY, _Device(), "long", 0.03, 0.03)
    assert world.step()
    world.message(OTHER, _Device(), "other", 0.03)
    world.run()
    assert world.names == ["long", "other", "long"]
    assert world.log[1][1] == pytest.approx(0.03)


def test_loop_turns_rest_behind_the_last_step_of_a_message_before_the_next() -> None:
    world = _World()
    world.message(GREEDY, _Device(), "first", 0.03)
    assert world.step()
    world.message(GREEDY, _Device(), "second", 0.03)
    world.run()
    assert world.log[1][1] == pytest.approx(0.03 * (1 + REST))


def test_loop_turns_of_sockets_do_not_wait_for_messages() -> None:
    world = _World()
    world.message(GREEDY, _Device(), "long", 0.03, 0.03)
    assert world.step()
    world.socket(OTHER, _Device(), "other")
    world.run()
    assert world.log[1][0] == "other"
    assert world.log[1][1] == pytest.approx(0.03)


def test_loop_turns_of_messages_take_three_tenths_of_the_loop() -> None:
    world = _World()
    for number in range(100):
        world.message(GREEDY, _Device(), f"{number}", 0.02, 0.02, 0.02)
    world.run(until_s=20.0)
    assert 0.9 * TENANT_PART < len(world.log) * 0.02 / world.now_s <= TENANT_PART + 0.01


@pytest.mark.parametrize("of", ["sockets", "messages"])
def test_loop_turns_know_whose_wait(of: str) -> None:
    world = _World()
    if of == "sockets":
        world.socket(GREEDY, _Device(), "x")
    else:
        world.message(GREEDY, _Device(), "x", 0.0)
    assert (world.turns.waits(GREEDY), world.turns.waits(OTHER)) == (True, False)
    world.run()
    assert not world.turns.waits(GREEDY)


@pytest.mark.asyncio
async def test_loop_turns_return_and_raise_what_the_steps_do() -> None:
    turns = LoopScheduler(LoopShares(), _World())
    charged: list[float] = []

    def steps(fault: Exception | None) -> Generator[None, None, int]:
        yield
        if fault is not None:
            raise fault
        return 7

    def charge(spent_s: float, _: float) -> None:
        charged.append(spent_s)

    assert await turns.handled(1, steps(None), charge) == 7
    with pytest.raises(ValueError, match="no"):
        await turns.handled(1, steps(ValueError("no")), charge)
    await asyncio.sleep(0)
    assert len(charged) == 4


async def test_request_of_a_device_over_its_share_waits_until_that_is_paid() -> None:
    world = _World()
    device = _Device()
    world.shares.spend(GREEDY, device, DEVICE_BURST_S + 0.05, 0.0)
    waiting = asyncio.create_task(world.turns.within_share(GREEDY, device))
    await asyncio.sleep(0)
    assert not waiting.done()
    await world.turns.within_share(OTHER, _Device())
    world.run()
    await waiting
    assert world.now_s == pytest.approx(0.05 / DEVICE_PART)


async def test_request_that_is_given_up_takes_no_turn() -> None:
    world = _World()
    device = _Device()
    world.shares.spend(GREEDY, device, DEVICE_BURST_S + 0.05, 0.0)
    waiting = asyncio.create_task(world.turns.within_share(GREEDY, device))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    world.run()
    assert not world.turns.waits(GREEDY)


async def test_nobody_waits_for_a_share_that_no_other_tenant_wants() -> None:
    world = _World(alone=True)
    device = _Device()
    world.shares.spend(GREEDY, device, 10.0, 0.0)
    await world.turns.within_share(GREEDY, device)
    assert world.calls == []
