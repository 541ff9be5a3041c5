"""Turns to read: fair between tenants and between devices, one at a time of each, none lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.runtime import read_limiter
from engine.runtime.ports import StoreUnavailableError
from engine.runtime.read_limiter import MAX_WAITING, Reader, ReadLimiter
from engine.wire.errors import SyncError

PHONE, TABLET = Reader(1, "phone"), Reader(1, "tablet")
OTHER = Reader(2, "phone")


class Hall:
    """Readers of turns; each keeps its turn until it is told to go."""

    def __init__(self, at_once: int) -> None:
        self.turns = ReadLimiter(at_once)
        self.reading: list[Reader] = []
        self.began: list[Reader] = []
        self._go: dict[Reader, asyncio.Event] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def read(self, reader: Reader) -> asyncio.Task[None]:
        """Have a reader ask for a turn."""
        task = asyncio.create_task(self._read(reader))
        self.tasks.append(task)
        return task

    async def _read(self, reader: Reader) -> None:
        async with self.turns.slot(reader):
            self.reading.append(reader)
            self.began.append(reader)
            go = self._go[reader] = asyncio.Event()
            try:
                await go.wait()
            finally:
                self.reading.remove(reader)

    async def end(self, reader: Reader) -> None:
        """End what a reader reads, and let the next begin."""
        self._go[reader].set()
        await settled()

    async def drain(self) -> None:
        """End everything, and look that every turn is free again."""
        while self.reading:
            await self.end(self.reading[0])
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert not self.turns._next
        assert not self.turns._waiting
        assert not self.turns._reading


async def settled() -> None:
    """Let every task come as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def hall(at_once: int) -> AsyncIterator[Hall]:
    """Give turns, all of which are free again at the end."""
    one = Hall(at_once)
    yield one
    await one.drain()
    assert one.turns._free == at_once


async def test_turn_one_device_never_has_two_at_once() -> None:
    async with hall(3) as one:
        for _ in range(10):
            one.read(PHONE)
        await settled()
        assert one.reading == [PHONE]
        one.read(OTHER)
        await settled()
        assert one.reading == [PHONE, OTHER]


async def test_turn_another_tenant_is_next_however_much_waits_before_it() -> None:
    async with hall(1) as one:
        for number in range(50):
            one.read(Reader(1, f"phone-{number}"))
        for _ in range(50):
            one.read(Reader(1, "phone-0"))
        await settled()
        one.read(OTHER)
        await settled()
        await one.end(one.reading[0])
        await one.end(one.reading[0])
        assert OTHER in one.began[:3]


async def test_turn_devices_of_a_tenant_take_turns() -> None:
    async with hall(1) as one:
        for _ in range(5):
            one.read(PHONE)
        await settled()
        one.read(TABLET)
        await settled()
        while one.reading:
            await one.end(one.reading[0])
        assert one.began[:3] == [PHONE, TABLET, PHONE]


async def test_turn_between_the_pieces_of_a_long_read_others_have_theirs() -> None:
    order: list[str] = []
    turns = ReadLimiter(1)

    async def long() -> None:
        for _ in range(4):
            async with turns.slot(PHONE):
                order.append("piece")
                await asyncio.sleep(0)

    async def short() -> None:
        async with turns.slot(OTHER):
            order.append("short")

    async with asyncio.TaskGroup() as group:
        group.create_task(long())
        group.create_task(short())
    assert order.index("short") <= 2


async def test_turn_past_the_bound_of_a_device_is_overloaded_for_it_alone() -> None:
    async with hall(1) as one:
        for _ in range(1 + MAX_WAITING):
            one.read(PHONE)
        await settled()
        with pytest.raises(SyncError) as caught:
            await one.read(PHONE)
        assert (caught.value.code, caught.value.details["retry_after_ms"]) == ("overloaded", 1000)
        one.read(TABLET)
        await one.end(PHONE)
        assert one.reading == [TABLET]


async def test_turn_that_does_not_come_in_time_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hall(1) as one:
        one.read(PHONE)
        await settled()
        monkeypatch.setattr(read_limiter, "_WAIT_S", 0.0)
        with pytest.raises(StoreUnavailableError):
            await one.read(OTHER)
        assert one.reading == [PHONE]


async def test_turn_that_comes_together_with_a_cancellation_is_given_back() -> None:
    async with hall(1) as one:
        one.read(PHONE)
        late = one.read(OTHER)
        one.read(TABLET)
        await settled()
        one._go[PHONE].set()
        await asyncio.sleep(0)  # PHONE ends, and OTHER is told of its turn
        late.cancel()
        await settled()
        assert late.cancelled()
        assert one.reading == [TABLET]


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["read", "end", "cancel"]), st.integers(0, 5), st.integers(0, 20)),
        max_size=60,
    ),
    at_once=st.integers(1, 3),
)
def test_turns_are_never_more_than_there_are_and_none_is_lost(
    steps: list[tuple[str, int, int]], at_once: int
) -> None:
    readers = [Reader(tenant, device) for tenant in (1, 2, 3) for device in ("a", "b")]

    async def run() -> None:
        async with hall(at_once) as one:
            for what, who, which in steps:
                if what == "read":
                    one.read(readers[who])
                elif what == "end" and one.reading:
                    await one.end(one.reading[which % len(one.reading)])
                elif what == "cancel" and one.tasks:
                    one.tasks[which % len(one.tasks)].cancel()
                if which % 2:
                    await settled()
                assert len(one.reading) <= at_once
                assert len(set(one.reading)) == len(one.reading)
            await settled()
            wanting = {*one.turns._waiting} - {*one.reading}
            assert len(one.reading) == at_once or not wanting, "nobody waits while there is a turn for them"

    asyncio.run(run())


@pytest.mark.parametrize("more", [0, 1])
async def test_turn_given_while_who_waits_is_cancelled_goes_to_the_next(more: int) -> None:
    turns = ReadLimiter(1)
    go = asyncio.Event()

    async def read(reader: Reader) -> None:
        async with turns.slot(reader):
            await go.wait()

    async def started(*readers: Reader) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(read(reader)) for reader in readers]
        await asyncio.sleep(0)
        return tasks

    reading, cancelled, *others = await started(PHONE, OTHER, *[OTHER] * more, TABLET)
    go.set()  # the turn ends in the pass of the loop in which the next one is cancelled
    cancelled.cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(reading, *others)
        await read(TABLET)
    assert cancelled.cancelled()
