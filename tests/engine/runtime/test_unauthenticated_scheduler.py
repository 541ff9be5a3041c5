"""Turns of connections without a valid token: what a pass of the loop serves, with a clock in hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from engine.runtime.loop_share import DEVICE_BURST_S, DEVICE_PART
from engine.runtime.unauthenticated_scheduler import PASS_S, UnauthenticatedScheduler

FLOOD, HONEST = "192.0.2.1", "192.0.2.2"


class _Call:
    def __init__(self, at_s: float, call: Callable[[], None]) -> None:
        self.at_s = at_s
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class _World:
    """Clock and loop; ``log`` says what ran in which pass of the loop, and when."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.number = 0
        self.calls: list[_Call] = []
        self.log: list[tuple[str, int, float]] = []
        self.turns = UnauthenticatedScheduler(lambda: self.now_s, self)

    def call_soon(self, call: Callable[[], None]) -> _Call:
        return self.call_later(0.0, call)

    def call_later(self, wait_s: float, call: Callable[[], None]) -> _Call:
        due = _Call(self.now_s + wait_s, call)
        self.calls.append(due)
        return due

    def run(self, until_s: float = 60.0) -> None:
        """Run pass after pass: in each what was due when it began."""
        while self.now_s < until_s:
            self.calls = [due for due in self.calls if due.call is not None]
            if not self.calls:
                return
            self.now_s = max(self.now_s, min(due.at_s for due in self.calls))
            now = [due for due in self.calls if due.at_s <= self.now_s]
            self.number += 1
            for due in now:
                if due.call is not None:
                    call, due.call = due.call, None
                    call()

    def work(self, address: str, spent_s: float, *, is_device: bool = False) -> None:
        self.log.append((address, self.number, self.now_s))
        self.now_s += spent_s
        self.turns.worked(spent_s)
        if not is_device:
            self.turns.charge(address, spent_s)

    def come(self, address: str, spent_s: float, *, is_device: bool = False) -> None:
        """Do something for a connection, in a turn where it has to wait."""
        work = partial(self.work, address, spent_s, is_device=is_device)
        if self.turns.waits(address):
            self.turns.take(address, work)
        else:
            work()


def test_pass_of_the_loop_serves_a_bounded_part_of_strangers() -> None:
    world = _World()
    for _ in range(50):
        world.come(FLOOD, 0.001)
    world.run()
    passes = [number for _, number, _ in world.log]
    assert len(passes) == 50
    assert max(passes.count(number) for number in passes) <= PASS_S / 0.001 + 1


def test_address_whose_heads_come_to_nothing_gets_its_part_of_the_loop() -> None:
    world = _World()
    for _ in range(3000):
        world.come(FLOOD, 0.001)
    world.run(until_s=10.0)
    spent_s = 0.001 * sum(now_s < 10.0 for _, _, now_s in world.log)
    assert spent_s == pytest.approx(10.0 * DEVICE_PART + DEVICE_BURST_S, rel=0.02)


def test_others_do_not_wait_behind_an_address_over_its_share() -> None:
    world = _World()
    for _ in range(1000):
        world.come(FLOOD, 0.001)
    world.run(until_s=1.0)
    came_s = world.now_s
    world.come(HONEST, 0.001)
    world.run(until_s=2.0)
    (served_s,) = [now_s for address, _, now_s in world.log if address == HONEST]
    assert served_s - came_s < 2 * PASS_S


def test_phones_of_one_address_come_back_at_the_rate_of_handshakes() -> None:
    world = _World()
    for _ in range(10_000):
        world.come(FLOOD, 0.001, is_device=True)
    world.run()
    assert len(world.log) == 10_000
    assert world.now_s == pytest.approx(10.0, rel=0.01)


def test_connection_that_is_gone_takes_no_turn() -> None:
    world = _World()
    world.work(FLOOD, 0.5)
    waiting = world.turns.take(FLOOD, partial(world.work, FLOOD, 0.001))
    assert not waiting.cancelled
    waiting.cancel()
    assert waiting.cancelled
    world.run()
    assert len(world.log) == 1


def test_addresses_that_have_paid_are_forgotten() -> None:
    world = _World()
    for number in range(5000):
        world.now_s += 1.0
        world.turns.charge(f"2001:db8::{number:x}", 0.001)
    assert len(world.turns._shares) <= 1025


def test_stranger_turns_look_at_few_addresses_each_however_many_wait() -> None:
    looks = 0

    class Counted(UnauthenticatedScheduler):
        def _due_s(self, address: str) -> float:
            nonlocal looks
            looks += 1
            return super()._due_s(address)

    world = _World()
    world.turns = Counted(lambda: world.now_s, world)
    for number in range(1000):
        world.turns.take(f"{number}", partial(world.work, f"{number}", PASS_S / 8))
    world.run()
    assert [address for address, _, _ in world.log] == [f"{number}" for number in range(1000)]
    assert looks <= 2 * 1000
