"""Begins the runs of jobs in this process when they are due and no other process has them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final

import structlog

from engine.cluster.jobs import (
    ENDS,
    Begun,
    Counts,
    DueRun,
    JobBody,
    JobKind,
    JobsNow,
    JobStore,
    LastSuccess,
    Outcome,
    due,
    perform,
)
from engine.runtime.metrics import Metric, Value
from engine.runtime.ports import Clock

#: The longest time between two looks. A look is one read; without it nothing would be noticed of other hosts.
LOOK_S: Final = 30.0
#: A job begins so much after its due time at the earliest, so that the look after it sees the time as past.
_AFTER_DUE_S: Final = 0.05

_log = structlog.get_logger()


class JobScheduler:
    """Runs jobs, several of them at once, each in one process at a time.

    Args:
        store: The runs.
        clock: For rests.
        kinds: The jobs.
        followers: By job, what every process does soon after a run of it succeeded in any of them.
    """

    def __init__(
        self,
        store: JobStore,
        clock: Clock,
        kinds: Sequence[JobKind],
        followers: Mapping[str, Callable[[], Awaitable[None]]],
    ) -> None:
        self._store = store
        self._clock = clock
        self._kinds = kinds
        self._followers = followers
        self._successes: Mapping[str, LastSuccess] = {}
        self._runs: Counter[tuple[str, Outcome]] = Counter()
        self._running: set[str] = set()

    def last_counts(self, job: str) -> Counts:
        """Return what the last successful run of a job counted, in any process; empty if there is none."""
        found = self._successes.get(job)
        return {} if found is None else found.counts

    def last_success_us(self, job: str) -> int:
        """Return when a run of a job last succeeded, in any process, by the store's time; 0 if none did."""
        found = self._successes.get(job)
        return 0 if found is None else found.ended_us

    def metrics(self) -> Iterator[Metric]:
        """Yield the runs of this process by outcome, and when a run of each job last succeeded anywhere."""
        runs: dict[tuple[str, str], float] = {
            (one.name, outcome): self._runs[one.name, outcome] for one in self._kinds for outcome in ENDS
        }
        text = "Runs of jobs that this process ended, or found killed, by outcome"
        yield Value("counter", "tidemark_job_runs", text, runs, ("job", "outcome"))
        if self._successes:
            at_s = {job: success.ended_us / 1e6 for job, success in self._successes.items()}
            text = "When a run of the job last succeeded, in any process, as Unix time"
            yield Value("gauge", "tidemark_job_last_success_timestamp_seconds", text, at_s, "job")

    async def preload(self) -> None:
        """Read which runs succeeded before: followers are called for later ones. Raises StoreError."""
        self._successes = (await self._look_up()).successes

    async def _look_up(self) -> JobsNow:
        return await self._store.look([kind.name for kind in self._kinds])

    async def run(self) -> None:
        """Look for due jobs until cancelled. Runs are stopped then, and another process begins them again."""
        logged: str | None = None
        pause_s = LOOK_S
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(pause_s)
                pause_s = LOOK_S
                try:
                    pause_s = await self._look(group)
                    logged = None
                except Exception as error:
                    reason = type(error).__name__
                    if reason != logged:
                        _log.warning("jobs_unread", reason=reason)
                    logged = reason

    async def _look(self, group: asyncio.TaskGroup) -> float:
        """Begin what is due; return the time until the next look."""
        now = await self._look_up()
        self._follow(now, group)
        next_us = now.now_us + int(LOOK_S * 1e6)
        for kind in self._kinds:
            next_us = min(next_us, kind.schedule.next(now.now_us))
            found = due(kind.schedule, now.now_us, now.runs.get(kind.name))
            if found is not None and kind.name not in self._running:
                await self._begin(kind, found, group)
        return (next_us - now.now_us) / 1e6 + _AFTER_DUE_S

    def _follow(self, now: JobsNow, group: asyncio.TaskGroup) -> None:
        before, self._successes = self._successes, now.successes
        for job, follow in self._followers.items():
            success = now.successes.get(job)
            if success is not None and success != before.get(job):
                group.create_task(_followed(job, follow))

    async def _begin(self, kind: JobKind, found: DueRun, group: asyncio.TaskGroup) -> None:
        begun = await self._store.begin(kind.name, found)
        if begun is None:
            return
        if begun.killed:
            self._runs[kind.name, "killed"] += 1
            _log.warning("job_killed", job=kind.name)
        self._running.add(kind.name)
        group.create_task(self._perform(begun, kind.body))

    async def _perform(self, begun: Begun, body: JobBody) -> None:
        began_s = self._clock.monotonic_s()
        outcome: Outcome = "stopped"
        try:
            counts = await perform(self._store, self._clock, begun, body)
            outcome = "succeeded"
            took_s = self._clock.monotonic_s() - began_s
            _log.info("job_succeeded", job=begun.job, attempt=begun.attempt, duration_s=took_s, counts=counts)
        except Exception as error:
            outcome = "failed"
            _log.warning("job_failed", job=begun.job, attempt=begun.attempt, reason=type(error).__name__)
        finally:
            self._runs[begun.job, outcome] += 1
            self._running.discard(begun.job)


async def _followed(job: str, follow: Callable[[], Awaitable[None]]) -> None:
    try:
        await follow()
    except Exception as error:
        _log.warning("job_not_followed", job=job, reason=type(error).__name__)
