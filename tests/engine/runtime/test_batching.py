"""Many questions as one: in their order, again after a lost connection, and never waiting for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from engine.runtime.batching import Batcher
from engine.runtime.ports import (
    StoreError,
    StoreFullError,
    StorePoisonError,
    StoreRetryError,
    StoreUnavailableError,
)


class Oracle:
    """Doubles numbers; refuses negative ones by ``refusal``, and fails as often as it is told to."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.refusal = refusal or StorePoisonError("negative")
        self.rounds: list[list[int]] = []
        self.failures = 0
        self.asked = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, asked: Sequence[int]) -> list[int]:
        """Answer a round."""
        self.rounds.append(list(asked))
        self.asked.set()
        await self.open.wait()
        if self.failures:
            self.failures -= 1
            raise StoreRetryError("again")
        if any(one < 0 for one in asked):
            raise self.refusal
        return [2 * one for one in asked]


@asynccontextmanager
async def batching(oracle: Oracle, most: int = 200) -> AsyncIterator[Batcher[int, int]]:
    batcher = Batcher(oracle, most)
    running = asyncio.create_task(batcher.run())
    yield batcher
    running.cancel()
    await asyncio.wait([running])


async def test_batcher_requests_during_a_call_go_together() -> None:
    oracle = Oracle()
    oracle.open.clear()
    async with batching(oracle, 3) as batcher:
        first = asyncio.create_task(batcher.submit(1))
        await oracle.asked.wait()
        others = [asyncio.create_task(batcher.submit(number)) for number in range(2, 7)]
        await asyncio.sleep(0)
        oracle.open.set()
        assert await asyncio.gather(first, *others) == [2, 4, 6, 8, 10, 12]
    assert oracle.rounds == [[1], [2, 3, 4], [5, 6]]


async def test_batcher_unknown_outcome_repeated() -> None:
    oracle = Oracle()
    oracle.failures = 2
    async with batching(oracle) as batcher:
        assert await batcher.submit(4) == 8
    assert oracle.rounds == [[4]] * 3


@pytest.mark.parametrize(
    "refusal",
    [StorePoisonError("negative"), StoreError("the keys of a tenant are lost"), RuntimeError("a fault")],
)
async def test_batcher_refused_request_fails_alone(refusal: Exception) -> None:
    async with batching(Oracle(refusal)) as batcher:
        asked = [batcher.submit(number) for number in (1, -1, 2)]
        assert await asyncio.gather(*asked, return_exceptions=True) == [2, refusal, 4]


async def test_batcher_one_refused_request_of_many_is_found_in_few_rounds() -> None:
    oracle = Oracle()
    async with batching(oracle) as batcher:
        asked = [batcher.submit(-1 if number == 77 else number) for number in range(128)]
        await asyncio.gather(*asked, return_exceptions=True)
    assert len(oracle.rounds) == 15


async def test_batcher_store_that_fails_for_all_is_not_asked_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.runtime.batching.RETRY_FOR_S", 0.0)
    for failure in (StoreFullError("full"), StoreUnavailableError("away")):
        oracle = Oracle(failure)
        async with batching(oracle) as batcher:
            asked = [batcher.submit(number) for number in (1, -1, 2)]
            assert await asyncio.gather(*asked, return_exceptions=True) == [failure] * 3
        assert oracle.rounds == [[1, -1, 2]]


async def test_batcher_end_fails_waiting_requests() -> None:
    oracle = Oracle()
    oracle.open.clear()
    async with batching(oracle, 1) as batcher:
        waiting = [asyncio.create_task(batcher.submit(number)) for number in range(3)]
        await oracle.asked.wait()
    for failed in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(failed, StoreUnavailableError)
    with pytest.raises(StoreUnavailableError):
        await batcher.submit(9)
