"""The intake of telemetry: batches with rests between them, bounded, and refused while there is no room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from engine.cache import telemetry
from engine.cache.ports import TelemetryOutcome
from engine.cache.telemetry import TelemetryIntake
from engine.model.telemetry import TelemetryRow
from engine.wire.errors import SyncError


class _World:
    """A store that takes as long as a test says, and the clock of it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.took_s = 0.25
        self.batches: list[int] = []
        self.outcome: TelemetryOutcome = "stored"
        self.go = asyncio.Event()
        self.go.set()
        self.full: str | None = None
        self.intake = TelemetryIntake(self, self, lambda: self.full)

    async def put(self, rows: Sequence[TelemetryRow]) -> list[TelemetryOutcome]:
        await self.go.wait()
        self.batches.append(len(rows))
        self.now_s += self.took_s
        return [self.outcome] * len(rows)

    def now_us(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return self.now_s

    def cpu_s(self) -> float:
        return 0.0

    async def add(self, number: int = 0, tenant_id: int = 1, pairs: int = 0) -> bool:
        some = (1,) * pairs
        return await self.intake.add(
            TelemetryRow(tenant_id, f"d{number}", 1, "0" * 32, (), (), (), some, some, some)
        )

    def counted(self, outcome: str) -> float:
        (messages, _) = self.intake.metrics()
        found: float = messages.values[outcome]  # type: ignore[union-attr,index]  # it has a label
        return found


@pytest.fixture
async def world() -> AsyncIterator[_World]:
    world = _World()
    running = asyncio.create_task(world.intake.run())
    yield world
    running.cancel()
    await asyncio.wait([running])


async def test_intake_answers_when_it_is_stored_in_batches_of_a_bounded_size(world: _World) -> None:
    world.took_s = 0.0
    assert await asyncio.gather(*(world.add(number) for number in range(120))) == [False] * 120
    assert (sum(world.batches), max(world.batches)) == (120, 50)
    assert (world.counted("stored"), world.intake.waiting) == (120, 0)
    world.outcome = "replayed"
    assert await world.add() is True


async def test_intake_rests_after_a_batch_for_thrice_its_time(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests_s: list[float] = []
    sleep = asyncio.sleep

    async def rest(delay_s: float) -> None:
        rests_s.append(delay_s)
        world.now_s += max(0.0, delay_s)
        await sleep(0)

    await world.add()
    monkeypatch.setattr(asyncio, "sleep", rest)
    await world.add()
    world.now_s += 5.0
    await world.add()
    assert rests_s[0] == pytest.approx(0.75)
    assert rests_s[1] < 0, "it has rested"


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        ("reused", "idempotency_key_reused"),
        ("parts", "too_large"),
        ("names", "too_large"),
        ("no_tenant", "forbidden"),
    ],
)
async def test_intake_message_that_is_not_stored_is_refused_for_good(
    world: _World, outcome: TelemetryOutcome, code: str
) -> None:
    world.outcome = outcome
    with pytest.raises(SyncError) as refused:
        await world.add()
    assert (refused.value.code, refused.value.kind.retryable) == (code, False)
    assert world.counted(outcome) == 1


async def test_intake_more_than_may_wait_and_a_full_disk_are_refused_until_later(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "_SHARED_FROM", 2)
    world.go.clear()
    waiting = [asyncio.create_task(world.add(number)) for number in range(2)]
    while world.intake.waiting < 2:  # noqa: ASYNC110  # a turn of the loop
        await asyncio.sleep(0)
    for code in ("overloaded", "insufficient_storage"):
        with pytest.raises(SyncError) as refused:
            await world.add(9)
        assert (refused.value.code, refused.value.kind.retryable) == (code, True)
        assert isinstance(refused.value.details["retry_after_ms"], int)
        assert world.counted(code) == 1
        world.full = "the disk is full"
    world.go.set()
    assert await asyncio.gather(*waiting) == [False, False]


async def test_intake_tenant_with_its_share_of_what_waits_is_refused_and_no_other(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "_SHARED_FROM", 4)
    monkeypatch.setattr(telemetry, "MOST_WAITING", 8)
    world.go.clear()
    waiting = [asyncio.create_task(world.add(number)) for number in range(4)]
    waiting += [asyncio.create_task(world.add(number, tenant_id=2)) for number in range(2)]
    while world.intake.waiting < 6:  # noqa: ASYNC110  # a turn of the loop
        await asyncio.sleep(0)
    for tenant_id in (1, 2):
        with pytest.raises(SyncError, match="too much telemetry"):
            await world.add(9, tenant_id)
    waiting += [asyncio.create_task(world.add(number, tenant_id=3 + number)) for number in range(2)]
    while world.intake.waiting < 8:  # noqa: ASYNC110  # a turn of the loop
        await asyncio.sleep(0)
    with pytest.raises(SyncError, match="too much telemetry"):
        await world.add(9, tenant_id=9)
    world.go.set()
    assert await asyncio.gather(*waiting) == [False] * 8
    assert await world.add(9) is False


async def test_intake_large_message_counts_as_several_ordinary_ones(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "_SHARED_FROM", 8)
    world.go.clear()
    large = asyncio.create_task(world.add(pairs=1000))
    while world.intake.waiting < 1:  # noqa: ASYNC110  # a turn of the loop
        await asyncio.sleep(0)
    with pytest.raises(SyncError, match="too much telemetry"):
        await world.add()
    world.go.set()
    assert await large is False
    assert await world.add() is False
