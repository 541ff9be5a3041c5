"""Turns of people's requests: a token that asks for much leaves the others theirs."""

from __future__ import annotations

import asyncio

import pytest

from engine.wire.errors import SyncError
from handlers.operate.turns import MOST_REQUESTS, Turns


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now_us(self) -> int:
        """The wall clock."""
        return int(self.now_s * 1e6)

    def monotonic_s(self) -> float:
        """The monotonic clock."""
        return self.now_s


async def test_turns_request_of_another_token_waits_for_one_at_most() -> None:
    turns = Turns(Clock())
    order: list[str] = []

    async def ask(token: str) -> None:
        async with turns.turn_of(token):
            order.append(token)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for token in [*["flood"] * MOST_REQUESTS, "other"]:
            group.create_task(ask(token))
    assert order.index("other") <= 1
    assert len(order) == MOST_REQUESTS + 1


async def test_turns_more_requests_of_a_token_are_refused_until_one_is_over() -> None:
    turns, over = Turns(Clock()), asyncio.Event()

    async def ask() -> None:
        async with turns.turn_of("flood"):
            await over.wait()

    asking = [asyncio.create_task(ask()) for _ in range(MOST_REQUESTS)]
    await asyncio.sleep(0)
    with pytest.raises(SyncError) as refused:
        await ask()
    assert refused.value.code == "rate_limited"
    over.set()
    await asyncio.gather(*asking)
    await ask()


async def test_turns_token_rests_for_as_long_as_its_last_turn_took(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rests = Clock(), list[float]()
    turns = Turns(clock)

    async def sleep(seconds: float) -> None:
        rests.append(max(0, seconds))

    monkeypatch.setattr(asyncio, "sleep", sleep)
    for token, took_s in (("flood", 5.0), ("other", 1.0), ("flood", 60.0), ("flood", 0.0)):
        async with turns.turn_of(token):
            clock.now_s += took_s
    assert rests == [0, 0, 4, 30]
