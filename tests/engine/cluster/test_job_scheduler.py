"""Several processes with the same jobs: one runs each, all know of it, and one that dies is replaced."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from compose.server import SystemClock
from engine.cluster import job_scheduler
from engine.cluster.job_scheduler import JobScheduler
from engine.cluster.jobs import JobBody, JobKind, JobRun, JobsNow
from engine.runtime.metrics import Value
from engine.runtime.ports import StoreUnavailableError
from engine.runtime.schedule import Schedule
from storage.stores.jobs.runs import PostgresJobs
from tests.harness.postgres_stalls import until
from tests.harness.services import Serving, execute, rows

DAILY = Schedule("0 2 * * *", "UTC")
OUTCOMES = "SELECT attempt, coalesce(outcome, 'open') FROM job_runs ORDER BY due_at, attempt"
LAPSE = "UPDATE job_runs SET held_until = now() - interval '1 s' WHERE outcome IS NULL"


#: A process that is killed in the job ``warm``.
KILLED = """
import asyncio, os, signal, sys
from compose.server import SystemClock
from engine.cluster import job_scheduler
from engine.cluster.jobs import JobKind
from engine.runtime.schedule import Schedule
from storage.postgres.pool import Database
from storage.stores.jobs.runs import PostgresJobs

async def killed(run):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    kinds = [JobKind("warm", Schedule("0 2 * * *", "UTC"), killed)]
    store = PostgresJobs(Database(sys.argv[1], 1))
    await job_scheduler.JobScheduler(store, SystemClock(), kinds, {}).run()

job_scheduler.LOOK_S = 0.01
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_scheduler, "LOOK_S", 0.02)


Start = Callable[..., Awaitable["Process"]]


class Process:
    """A process with jobs, and a body for the job ``warm`` that notes its runs."""

    def __init__(self, dsn: str, body: JobBody | None, follow: Callable[[], Awaitable[None]]) -> None:
        self.database = Serving(dsn, 3)
        self.store = PostgresJobs(self.database)
        self.runs: list[JobRun] = []
        kind = JobKind("warm", DAILY, body or self._note)
        self.scheduler = JobScheduler(self.store, SystemClock(), [kind], {"warm": follow})

    def begin(self) -> None:
        """Begin to look for due jobs."""
        self.task = asyncio.create_task(self.scheduler.run())

    async def _note(self, run: JobRun) -> None:
        self.runs.append(run)
        run.count("rows", 7)

    def counted(self, outcome: str) -> float:
        """Runs of ``warm`` as the metrics have them."""
        values = {one.name: one.values for one in self.scheduler.metrics() if isinstance(one, Value)}
        counts = values["tidemark_job_runs"]
        assert isinstance(counts, dict)
        return float(counts["warm", outcome])

    def knows_success(self) -> bool:
        """Whether the metrics tell when the job last succeeded."""
        return any(one.name.startswith("tidemark_job_last_success") for one in self.scheduler.metrics())

    async def stop(self) -> None:
        """End it in an orderly way."""
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.database.close()


async def _nothing() -> None:
    """Follow nothing."""


@pytest.fixture
async def start(dsn: str) -> AsyncIterator[Start]:
    """Start processes; they end with the test."""

    @asynccontextmanager
    async def running(
        body: JobBody | None = None, follow: Callable[[], Awaitable[None]] = _nothing
    ) -> AsyncIterator[Process]:
        process = Process(dsn, body, follow)
        await process.scheduler.preload()
        process.begin()
        yield process
        await process.stop()

    async with AsyncExitStack() as stack:

        async def started(
            body: JobBody | None = None, follow: Callable[[], Awaitable[None]] = _nothing
        ) -> Process:
            return await stack.enter_async_context(running(body, follow))

        yield started


async def test_scheduler_several_processes_one_runs_all_know(start: Start, dsn: str) -> None:
    processes = [await start() for _ in range(3)]

    async def known() -> bool:
        return all(process.knows_success() for process in processes)

    await until(known)
    assert sum(len(process.runs) for process in processes) == 1
    assert sum(process.counted("succeeded") for process in processes) == 1
    assert [process.scheduler.last_counts("warm") for process in processes] == [{"rows": 7}] * 3
    assert rows(dsn, OUTCOMES) == [(1, "succeeded")]
    assert rows(dsn, "SELECT due_at = date_trunc('day', due_at) + interval '2 h' FROM job_runs") == [(True,)]


async def test_scheduler_follower_runs_in_every_process_after_a_success(start: Start) -> None:
    followed: list[str] = []

    def follower(name: str) -> Callable[[], Awaitable[None]]:
        async def follow() -> None:
            followed.append(name)
            if name == "a":
                raise StoreUnavailableError("away")

        return follow

    with capture_logs() as logs:
        processes = [await start(None, follower(name)) for name in "ab"]

        async def all_followed() -> bool:
            return sorted(followed) == ["a", "b"]

        await until(all_followed)
        late = await start(None, follower("late"))
        await until(_known(late))
    assert sorted(followed) == ["a", "b"], "a process that started after the run has read all of it"
    assert sum(len(process.runs) for process in (*processes, late)) == 1
    assert [line["job"] for line in logs if line["event"] == "job_not_followed"] == ["warm"]


def _known(process: Process) -> Callable[[], Awaitable[bool]]:
    async def known() -> bool:
        return process.knows_success()

    return known


async def test_scheduler_run_that_ends_before_the_first_look_is_followed(start: Start, dsn: str) -> None:
    followed = asyncio.Event()

    async def follow() -> None:
        followed.set()

    process = Process(dsn, None, follow)
    await process.scheduler.preload()
    other = await start()
    await until(_known(other))
    process.begin()
    async with asyncio.timeout(10):
        await followed.wait()
    await process.stop()


async def test_scheduler_failed_run_waits_for_its_next_time(start: Start, dsn: str) -> None:
    async def fails(_: JobRun) -> None:
        raise ValueError("a fault")

    with capture_logs() as logs:
        process = await start(fails)

        async def failed() -> bool:
            return process.counted("failed") == 1

        await until(failed)
        other = await start()
        looked = await other.store.look(["warm"])
    assert looked.runs["warm"].outcome == "failed"
    assert [(line["event"], line["reason"]) for line in logs] == [("job_failed", "ValueError")]
    assert rows(dsn, "SELECT outcome, reason FROM job_runs") == [("failed", "ValueError")]
    assert not process.knows_success()


async def test_scheduler_stopped_process_leaves_its_run_to_another(start: Start, dsn: str) -> None:
    begun = asyncio.Event()

    async def endless(_: JobRun) -> None:
        begun.set()
        await asyncio.Event().wait()

    first = await start(endless)
    await begun.wait()
    second = await start()
    first.task.cancel()
    await asyncio.wait([first.task])
    assert first.counted("stopped") == 1
    await until(_known(second))
    assert rows(dsn, OUTCOMES) == [(1, "stopped"), (2, "succeeded")]


async def test_scheduler_killed_process_is_seen_and_its_run_begun_again(start: Start, dsn: str) -> None:
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, dsn, cwd=Path(__file__).parents[3]
    )
    assert await killed.wait() == -signal.SIGKILL
    assert rows(dsn, OUTCOMES) == [(1, "open")]
    with capture_logs() as logs:
        process = await start()
        now = await process.store.look(["warm"])
        assert now.runs["warm"].outcome == "running", "it may be alive"
        execute(dsn, LAPSE)
        await until(_known(process))
    assert rows(dsn, OUTCOMES) == [(1, "killed"), (2, "succeeded")]
    assert process.counted("killed") == 1
    assert [line["event"] for line in logs] == ["job_killed", "job_succeeded"]


async def test_scheduler_database_away_logged_once_and_due_run_caught_up(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[StoreUnavailableError] = []
    look = PostgresJobs.look

    async def failing(self: PostgresJobs, jobs: Sequence[str]) -> JobsNow:
        if failures:
            raise failures.pop()
        return await look(self, jobs)

    monkeypatch.setattr(PostgresJobs, "look", failing)
    with capture_logs() as logs:
        process = await start()
        failures += [StoreUnavailableError("away")] * 3
        await until(_known(process))
    assert [line["event"] for line in logs] == ["jobs_unread", "job_succeeded"]


async def test_scheduler_long_run_holds_up_no_other_job(dsn: str) -> None:
    database = Serving(dsn, 3)
    done = asyncio.Event()

    async def waits(_: JobRun) -> None:
        await done.wait()

    async def ends(_: JobRun) -> None:
        done.set()

    kinds = [JobKind("cleanup", DAILY, waits), JobKind("warm", DAILY, ends)]
    scheduler = JobScheduler(PostgresJobs(database), SystemClock(), kinds, {})
    running = asyncio.create_task(scheduler.run())
    try:
        await asyncio.wait_for(done.wait(), 30)
    finally:
        running.cancel()
        await asyncio.wait([running])
        await database.close()
