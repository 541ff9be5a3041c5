"""Runs of jobs as rows: one process begins a run, and one that was killed is seen and begun again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from engine.cluster.jobs import MOST_KILLED, Begun, DueRun
from engine.runtime.schedule import Schedule
from storage.stores.jobs.runs import PostgresJobs
from tests.harness.services import Serving, execute, rows

#: A due time of the past, with a fraction, as that of a run by hand.
DUE = DueRun(1_790_000_000_123_457, 1)
LAPSE = "UPDATE job_runs SET held_until = now() - interval '1 s' WHERE outcome IS NULL"


@pytest.fixture
async def store(dsn: str) -> AsyncIterator[PostgresJobs]:
    database = Serving(dsn, 4)
    yield PostgresJobs(database)
    await database.close()


async def _begun(store: PostgresJobs, due: DueRun | None = DUE) -> Begun:
    begun = await store.begin("job", due)
    assert begun is not None
    return begun


async def test_jobs_begin_due_time_only_once(store: PostgresJobs) -> None:
    await store.end(await _begun(store), "succeeded", None, {})
    assert await store.begin("job", DUE) is None


async def test_jobs_begin_by_several_hosts_at_once_one_gets_it(dsn: str) -> None:
    databases = [Serving(dsn, 1) for _ in range(6)]
    try:
        asked = [PostgresJobs(one).begin("job", DUE) for one in databases]
        assert sum(one is not None for one in await asyncio.gather(*asked)) == 1
    finally:
        for one in databases:
            await one.close()


async def test_jobs_begin_refused_while_another_run_of_the_job_goes_on(store: PostgresJobs) -> None:
    begun = await _begun(store)
    assert begun.due_us == DUE.due_us
    assert await store.begin("job", DueRun(DUE.due_us + 1, 1)) is None
    assert await store.begin("job", None) is None
    assert await store.begin("other", None), "each job has runs of its own"
    await store.end(begun, "failed", "StoreError", {"rows": 3})
    by_hand = await _begun(store, None)
    assert by_hand.due_us == by_hand.now_us
    assert not by_hand.killed


async def test_jobs_look_tells_the_last_run_and_the_last_success(store: PostgresJobs, dsn: str) -> None:
    now = await store.look(["job", "other"])
    assert (now.runs, now.successes) == ({}, {})
    begun = await _begun(store)
    now = await store.look(["job", "other"])
    assert list(now.runs) == ["job"]
    last = now.runs["job"]
    assert (last.due_us, last.attempt, last.outcome, last.killed, last.by_hand) == (*DUE, "running", 0, False)
    await store.end(begun, "succeeded", None, {"rows": 3, "ratio": None})
    later = await _begun(store, None)
    await store.end(later, "failed", "ValueError", {})
    now = await store.look(["job"])
    assert (now.runs["job"].outcome, now.runs["job"].by_hand) == ("failed", True)
    assert now.successes["job"].counts == {"rows": 3, "ratio": None}
    ended = (
        "SELECT (extract(epoch FROM ended_at) * 1000000)::bigint FROM job_runs WHERE outcome = 'succeeded'"
    )
    assert rows(dsn, ended) == [(now.successes["job"].ended_us,)]
    assert abs(now.now_us - now.successes["job"].ended_us) < 60_000_000


async def test_jobs_look_does_not_see_due_times_ahead_of_the_clock(store: PostgresJobs, dsn: str) -> None:
    """The clock of the database was ahead, and went back."""
    await store.end(await _begun(store), "succeeded", None, {})
    execute(
        dsn,
        "INSERT INTO job_runs (job, due_at, attempt, by_hand, place, held_until, outcome)"
        " VALUES ('job', now() + interval '3 h', 1, false, '', now(), 'succeeded')",
    )
    assert (await store.look(["job"])).runs["job"].due_us == DUE.due_us


async def test_jobs_killed_run_is_seen_and_begun_again(store: PostgresJobs, dsn: str) -> None:
    for attempt in range(1, MOST_KILLED + 1):
        begun = await _begun(store, DueRun(DUE.due_us, attempt))
        assert begun.killed is (attempt > 1)
        assert await store.hold(begun, {"rows": attempt})
        execute(dsn, LAPSE)
        last = (await store.look(["job"])).runs["job"]
        assert (last.outcome, last.attempt, last.killed) == ("killed", attempt, attempt)
    again = await _begun(store, None)
    assert again.killed
    assert not await store.hold(begun, {}), "another one closed it"
    await store.end(begun, "succeeded", None, {"rows": 99})
    outcomes = rows(
        dsn, "SELECT attempt, outcome, counts->>'rows' FROM job_runs WHERE NOT by_hand ORDER BY 1"
    )
    assert outcomes == [(attempt, "killed", str(attempt)) for attempt in range(1, MOST_KILLED + 1)]


async def test_jobs_held_run_is_not_taken_for_killed(store: PostgresJobs, dsn: str) -> None:
    begun = await _begun(store)
    execute(dsn, LAPSE)
    assert await store.hold(begun, {})
    assert (await store.look(["job"])).runs["job"].outcome == "running"
    assert await store.begin("job", None) is None


async def test_jobs_last_runs_tell_how_long_they_took(store: PostgresJobs, dsn: str) -> None:
    begun = await _begun(store)
    execute(dsn, "UPDATE job_runs SET began_at = now() - interval '90 s'")
    await store.hold(begun, {"rows": 1})
    now, last = await store.last_runs(["job", "other"])
    assert list(last) == ["job"]
    running = last["job"]
    assert (running.outcome, running.attempt, running.by_hand, running.counts) == (
        "running",
        1,
        False,
        {"rows": 1},
    )
    assert 90 <= running.duration_s < 120
    assert now - running.began_at >= timedelta(seconds=90)
    execute(dsn, "UPDATE job_runs SET held_until = began_at + interval '80 s'")
    killed = (await store.last_runs(["job"]))[1]["job"]
    assert (killed.outcome, killed.duration_s) == ("killed", 20.0), (
        "what is known is when it last said something"
    )
    await store.end(begun, "failed", "ValueError", {})
    ended = (await store.last_runs(["job"]))[1]["job"]
    assert (ended.outcome, ended.reason) == ("failed", "ValueError")
    assert 90 <= ended.duration_s < 120


async def test_jobs_forget_keeps_the_last_run_of_each_job(store: PostgresJobs, dsn: str) -> None:
    for job, days_ago in (("often", 31), ("often", 32), ("often", 29), ("once", 400)):
        execute(
            dsn,
            "INSERT INTO job_runs (job, due_at, attempt, by_hand, place, began_at, held_until, outcome)"
            f" SELECT '{job}', at, 1, false, '', at, at, 'succeeded'"
            f" FROM (SELECT now() - interval '{days_ago} d' AS at) AS a",
        )
    assert await store.forget() == 2
    assert rows(dsn, "SELECT job FROM job_runs ORDER BY 1") == [("often",), ("once",)]


async def test_jobs_daily_time_of_the_database_is_the_schedules(store: PostgresJobs, dsn: str) -> None:
    """What PostgreSQL and the schedule make of a time is the same instant."""
    at_us = Schedule("0 2 * * *", "Europe/Berlin").latest((await store.look(["job"])).now_us)
    assert at_us is not None
    await store.end(await _begun(store, DueRun(at_us, 1)), "succeeded", None, {})
    shown = rows(dsn, "SELECT to_char(due_at AT TIME ZONE 'Europe/Berlin', 'HH24:MI:SS.US') FROM job_runs")
    assert shown == [("02:00:00.000000",)]
