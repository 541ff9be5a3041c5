"""How a batch is planned in steps: whose time it was, and when others get the loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Generator

import pytest

from engine.commit.planning import MESSAGE_S, TIME_SLICE_S, TooLongError, run_plan
from engine.model.rows import WriteSet
from engine.plan.batch import Plan, plan, read_set, steps
from engine.plan.work import PushAnswer, Work
from tests.engine.commit.test_committer import HandClock
from tests.engine.plan.test_batch import Planner, item

PLAN = Plan([], WriteSet({}, [], [], [], [], []), [], [])


def stepping(clock: HandClock, *took: tuple[int, float]) -> Generator[int, None, Plan]:
    """Take so many seconds for a step of each message."""
    for index, took_s in took:
        clock.at_s += took_s
        yield index
    return PLAN


class Others:
    """Other work of the loop: counts its turns."""

    def __init__(self) -> None:
        self.turns = 0
        self._task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0)

    def stop(self) -> int:
        """Stop counting."""
        self._task.cancel()
        return self.turns


async def test_run_plan_times_each_message() -> None:
    clock = HandClock()
    took = [(0, 0.25), (1, 0.5), (1, 0.25), (2, 0.0), (2, 0.125)]
    done, spent_s = await run_plan(stepping(clock, *took), 3, clock)
    assert done is PLAN
    assert spent_s == [0.25, 0.75, 0.125]


async def test_run_plan_shared_step_is_divided_equally() -> None:
    clock = HandClock()
    took = [(2, 0.75), (3, 0.5), (3, 0.25), (5, 0.25)]
    _, spent_s = await run_plan(stepping(clock, *took), 6, clock)
    assert spent_s == [0.25, 0.25, 0.25, 0.75, 0.125, 0.125]


async def test_run_plan_within_a_time_slice_does_not_pause() -> None:
    clock, others = HandClock(), Others()
    await asyncio.sleep(0)
    before = others.turns
    await run_plan(stepping(clock, *[(0, TIME_SLICE_S * 0.3)] * 3), 1, clock)
    assert others.stop() == before


async def test_run_plan_pauses_after_each_time_slice() -> None:
    clock, others = HandClock(), Others()
    await asyncio.sleep(0)
    before = others.turns
    await run_plan(stepping(clock, *[(0, TIME_SLICE_S * 0.3)] * 12), 1, clock)
    assert others.stop() - before == 3


async def test_run_plan_rests_if_the_loop_is_contended(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HandClock()
    rested: list[float] = []

    async def sleep(seconds: float) -> None:
        rested.append(seconds)
        clock.at_s += seconds

    monkeypatch.setattr("engine.commit.planning.asyncio.sleep", sleep)
    await run_plan(stepping(clock, *[(0, 0.03)] * 5), 1, clock, rests=True)
    assert rested == [pytest.approx(0.07)] * 5
    rested.clear()
    _, spent_s = await run_plan(stepping(clock, *[(0, 0.03)] * 20), 1, clock, rests=True)
    assert sum(rested) == pytest.approx(0.7), "its locks are held"
    assert spent_s == [pytest.approx(0.6)]
    rested.clear()
    await run_plan(stepping(clock, *[(0, 0.03)] * 5), 1, clock)
    assert rested == [0.0] * 5


async def test_run_plan_time_of_others_is_not_charged() -> None:
    clock = HandClock()

    async def other() -> None:
        await asyncio.sleep(0)
        clock.at_s += 100.0

    working = asyncio.create_task(other())
    await asyncio.sleep(0)
    _, spent_s = await run_plan(stepping(clock, (0, 0.25), (0, 0.25)), 1, clock)
    await working
    assert spent_s == [0.5]


async def test_run_plan_message_over_a_second_is_named() -> None:
    clock = HandClock()
    deciding = stepping(clock, (0, 0.0625), *[(1, 0.0625)] * 100)
    with pytest.raises(TooLongError) as raised:
        await run_plan(deciding, 3, clock)
    assert raised.value.index == 1
    assert MESSAGE_S < raised.value.spent_s[1] < MESSAGE_S + 0.25
    assert raised.value.spent_s[::2] == [0.0625, 0.0]
    with pytest.raises(StopIteration):
        next(deciding)


async def test_run_plan_seconds_of_several_messages_refuse_none() -> None:
    clock = HandClock()
    await run_plan(stepping(clock, *[(index // 9, 0.1) for index in range(90)]), 10, clock)


async def test_run_plan_stopped_host_refuses_none() -> None:
    clock = HandClock()

    def slowly() -> Generator[int, None, Plan]:
        for _ in range(30):
            clock.at_s += 0.25
            clock.idle_s += 0.25
            yield 0
        return PLAN

    _, spent_s = await run_plan(slowly(), 1, clock)
    assert spent_s == [7.5]


async def test_run_plan_work_of_others_refuses_none() -> None:
    clock = HandClock()

    async def other() -> None:
        while True:
            await asyncio.sleep(0)
            clock.at_s += 5.0

    working = asyncio.create_task(other())
    await run_plan(stepping(clock, *[(0, 0.125)] * 8), 1, clock)
    working.cancel()


def _batch(planner: Planner) -> list[Work]:
    return [
        planner.push(*[item("note", f"a{number}", x=number) for number in range(7)]),
        planner.push(*[item("note", f"b{number}", x=number) for number in range(3)], atomic=True),
        planner.push(item("note", "a1", 1, x=2)),
    ]


@pytest.mark.parametrize("items_per_step", [1, 3, 32])
def test_steps_pauses_between_items_change_nothing(items_per_step: int) -> None:
    planner, whole = Planner(), Planner()
    batch = _batch(planner)
    state = planner.rows.snapshot(read_set(batch, planner.context))
    deciding = steps(batch, state, planner.context, (), {}, items_per_step)
    seen: list[int] = []
    while True:
        try:
            seen.append(next(deciding))
        except StopIteration as done:
            decided: Plan = done.value
            break
    assert seen == [0] * math.ceil(7 / items_per_step) + [1] * math.ceil(3 / items_per_step) + [2]
    again = plan(_batch(whole), whole.rows.snapshot(read_set(batch, whole.context)), whole.context)
    results = [outcome.results for outcome in decided.outcomes if isinstance(outcome, PushAnswer)]
    assert results == [outcome.results for outcome in again.outcomes if isinstance(outcome, PushAnswer)]
    assert decided.writes == again.writes


@pytest.mark.parametrize(
    ("items_per_step", "paused"),
    [
        (1, [0, 1, 2, 3, 3, 3, 4, 5, 6]),
        (2, [1, 2, 3, 3, 5, 6]),
        (3, [2, 3, 6]),
        (32, [2, 3, 6]),
    ],
)
def test_steps_messages_of_one_item_share_a_pause(items_per_step: int, paused: list[int]) -> None:
    planner = Planner()
    few, many = [item("note", "a", x=1)], [item("note", f"b{number}", x=1) for number in range(3)]
    batch: list[Work] = [planner.push(*items) for items in (few, few, few, many, few, few, few)]
    deciding = steps(
        batch,
        planner.rows.snapshot(read_set(batch, planner.context)),
        planner.context,
        (),
        {},
        items_per_step,
    )
    assert list(deciding) == paused
