"""Which run of a job should begin, and how one run goes: held, ended, or lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compose.server import SystemClock
from engine.cluster import jobs
from engine.cluster.jobs import (
    MOST_KILLED,
    Begun,
    Counts,
    DueRun,
    JobRun,
    JobsNow,
    LastRun,
    Outcome,
    RunLostError,
    due,
    in_sequence,
    in_thread,
    perform,
)
from engine.runtime.ports import StoreError, StoreUnavailableError
from engine.runtime.schedule import Schedule

HOUR_US = 3_600_000_000
#: Ten minutes past ten, of some day.
NOW_US = 1000 * 24 * HOUR_US + 10 * HOUR_US + HOUR_US // 6
TEN_US = NOW_US - HOUR_US // 6
HOURLY = Schedule("0 * * * *", "UTC")


def _last(outcome: Outcome, due_us: int = TEN_US, killed: int = 0, *, by_hand: bool = False) -> LastRun:
    return LastRun(due_us, 2, outcome, killed, by_hand)


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        pytest.param(None, DueRun(TEN_US, 1), id="never ran"),
        pytest.param(_last("succeeded"), None, id="ran"),
        pytest.param(_last("failed"), None, id="failed, waits for the next time"),
        pytest.param(_last("running"), None, id="runs"),
        pytest.param(_last("killed", killed=1), DueRun(TEN_US, 3), id="killed, begun again"),
        pytest.param(_last("killed", killed=MOST_KILLED), None, id="killed too often"),
        pytest.param(_last("stopped", killed=1), DueRun(TEN_US, 3), id="stopped, begun again"),
        pytest.param(_last("killed", killed=1, by_hand=True), None, id="a person's run, killed"),
        pytest.param(_last("stopped", by_hand=True), None, id="a person's run, stopped"),
        pytest.param(_last("succeeded", TEN_US + 1, by_hand=True), None, id="a person's run since"),
        pytest.param(_last("succeeded", TEN_US - HOUR_US), DueRun(TEN_US, 1), id="the next time"),
        pytest.param(_last("running", TEN_US - HOUR_US), None, id="the one before still runs"),
        pytest.param(
            _last("killed", TEN_US - HOUR_US, 1), DueRun(TEN_US, 1), id="killed, but the next is due"
        ),
        pytest.param(
            _last("failed", TEN_US - 500 * HOUR_US), DueRun(TEN_US, 1), id="500 times missed, one run"
        ),
    ],
)
def test_due_by_the_last_run(last: LastRun | None, expected: DueRun | None) -> None:
    assert due(HOURLY, NOW_US, last) == expected


@given(
    minutes=st.lists(st.integers(-180, 180), min_size=1, max_size=40),
    outcome=st.sampled_from(["succeeded", "failed"]),
)
def test_due_clock_goes_anywhere_no_due_time_twice(minutes: Sequence[int], outcome: Outcome) -> None:
    """The clock jumps back and forward; each look sees the rows of up to now, as the store does."""
    ran: list[int] = []
    now_us = NOW_US
    for jump in minutes:
        now_us += jump * 60_000_000
        seen = [row for row in ran if row <= now_us]
        found = due(HOURLY, now_us, _last(outcome, max(seen)) if seen else None)
        latest_us = now_us - now_us % HOUR_US
        assert (found is None) == (latest_us in ran)
        if found is not None:
            assert found == DueRun(latest_us, 1)
            ran.append(found.due_us)
    assert len(ran) == len(set(ran))


# -- one run ----------------------------------------------------------------------------------


class Store:
    """Notes what it is told of a run. ``held`` answers each time that the run says it goes on."""

    def __init__(self, *held: bool | StoreError) -> None:
        self.held = list(held)
        self.told: list[object] = []
        self.end_fails = False

    async def look(self, jobs: Sequence[str]) -> JobsNow:
        """Be asked nothing."""
        raise AssertionError(jobs)

    async def begin(self, job: str, due: DueRun | None) -> Begun | None:
        """Begin nothing."""
        raise AssertionError(job, due)

    async def hold(self, run: Begun, counts: Counts) -> bool:
        """Give the next answer."""
        self.told.append(("hold", run.job, dict(counts)))
        answer = self.held.pop(0)
        if isinstance(answer, StoreError):
            raise answer
        return answer

    async def end(self, run: Begun, outcome: Outcome, reason: str | None, counts: Counts) -> None:
        """Note it."""
        self.told.append((outcome, run.job, reason, dict(counts)))
        if self.end_fails:
            raise StoreUnavailableError("away")


BEGUN = Begun("job", TEN_US, 1, NOW_US)


async def test_perform_counts_are_watched_and_kept() -> None:
    store, watched = Store(), list[Counts]()

    async def body(run: JobRun) -> None:
        assert run.now_us == NOW_US
        run.count("rows", 2)
        run.count("rows", 3)
        assert watched == [{"rows": 5}]

    assert await perform(store, SystemClock(), BEGUN, body, watched.append) == {"rows": 5}
    assert store.told == [("succeeded", "job", None, {"rows": 5})]


async def test_perform_failure_is_kept_by_its_type_and_raised() -> None:
    store = Store()

    async def body(run: JobRun) -> None:
        run.count("rows", 1)
        raise StoreUnavailableError("a text that may hold data")

    with pytest.raises(StoreUnavailableError):
        await perform(store, SystemClock(), BEGUN, body)
    assert store.told == [("failed", "job", "StoreUnavailableError", {"rows": 1})]


async def test_perform_store_away_at_the_end_is_no_failure() -> None:
    store = Store()
    store.end_fails = True
    assert await perform(store, SystemClock(), BEGUN, in_sequence()) == {}


async def test_perform_cancelled_is_stopped_for_another_process() -> None:
    store = Store()
    begun = asyncio.Event()

    async def body(_: JobRun) -> None:
        begun.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(perform(store, SystemClock(), BEGUN, body))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert store.told == [("stopped", "job", None, {})]


async def test_perform_long_run_says_that_it_goes_on_until_it_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "_SAY_S", 0.01)
    store = Store(True, StoreUnavailableError("away"), True, False)
    ended = []

    async def body(run: JobRun) -> None:
        run.count("rows", 1)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(RunLostError):
        await perform(store, SystemClock(), BEGUN, body)
    assert store.told[:-1] == [("hold", "job", {"rows": 1})] * 4
    assert ended == [True], "the body has ended before the run is closed"


async def test_in_sequence_goes_on_after_a_failure_and_raises_the_first() -> None:
    did = []

    async def fails(_: JobRun) -> None:
        did.append("fails")
        raise StoreUnavailableError("first")

    async def fails_too(_: JobRun) -> None:
        did.append("fails too")
        raise ValueError("second")

    run = JobRun(BEGUN, SystemClock())
    with pytest.raises(StoreUnavailableError, match="first"):
        await in_sequence(fails, fails_too, in_thread(lambda: {"rows": 7}))(run)
    assert did == ["fails", "fails too"]
    assert run.counts == {"rows": 7}


async def test_job_run_pages_until_one_is_empty() -> None:
    class Clock(SystemClock):
        at_s = 0.0

        def monotonic_s(self) -> float:
            return self.at_s

    clock = Clock()
    run = JobRun(BEGUN, clock)
    pages = [500, 500, 3, 0]
    asked = []

    async def delete(limit: int) -> int:
        asked.append(limit)
        clock.at_s += 0.001
        return pages.pop(0)

    await run.pages("rows", delete)
    assert (run.counts, asked) == ({"rows": 1003}, [jobs.PAGE] * 4)
