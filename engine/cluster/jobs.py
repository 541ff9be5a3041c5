"""Scheduled jobs: what is due, and how one run goes. Of all processes on all hosts, one runs a job at a time.

A run is a row (job, due time, attempt) that one process inserts. The times are the store's, so that a clock
that goes back or forward on a host changes nothing. If the store's own clock goes back, a due time that has
its row is not run again. If it goes forward, or no process ran for long, the latest due time is run and those
before it are passed over: one run catches up with all.

A job harms nothing when it runs twice, so no promise depends on a run: one that was killed is begun again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Literal, NamedTuple, Protocol

import anyio
import anyio.to_thread
import msgspec

from engine.runtime.batching import with_retries
from engine.runtime.ports import Clock, StoreError
from engine.runtime.schedule import Schedule

#: A run counts as killed if its process has not said for so long that it goes on.
HELD_S: Final = 60
_SAY_S: Final = 15.0
_LAST_WORDS_S: Final = 2.0
#: A due time is given up after so many runs that were killed: perhaps it is the job that kills its process.
MOST_KILLED: Final = 3
#: Rows in one statement, so that no statement holds locks for long.
PAGE: Final = 500
#: A run rests after each page twice as long as the page took: it has a third of a connection.
_REST_FACTOR: Final = 2
_SHORTEST_REST_S: Final = 0.01
_LONGEST_REST_S: Final = 1.0

#: The jobs, in the order in which commands show them. Each has a setting of its name in [jobs].
JOBS: Final[Mapping[str, str]] = {
    "uploads": "ends expired uploads, and frees the files of deleted records",
    "cleanup": "drops what is past its lifetime, adds partitions of days ahead, and counts usage again",
    "aggregate": "sums up each tenant's last hours in snapshots",
    "warm": "has every server read policies, and the devices that synced last",
    "monitor": "judges the health of every tenant, and alerts",
    "reseal": "seals again what is stored, after a key was rotated or a domain was sealed",
}

#: What a run counted, by name; a ratio may be None, without data.
Counts = dict[str, float | None]
Outcome = Literal["running", "succeeded", "failed", "stopped", "killed"]
#: The outcomes of a run that ended.
ENDS: Final[tuple[Outcome, ...]] = ("succeeded", "failed", "stopped", "killed")


class RunLostError(Exception):
    """The process stood still for so long that another one took the run for killed."""


class LastRun(msgspec.Struct, frozen=True):
    """The run of a job with the latest due time up to now.

    ``killed`` counts the runs of this due time that were killed. ``by_hand``: a person began it.
    """

    due_us: int
    attempt: int
    outcome: Outcome
    killed: int
    by_hand: bool


class LastSuccess(msgspec.Struct, frozen=True):
    """The last run of a job that succeeded: when it ended, and what it counted."""

    ended_us: int
    counts: Counts


class JobsNow(msgspec.Struct, frozen=True):
    """The store's time, and the last run and the last success of each job that has one."""

    now_us: int
    runs: Mapping[str, LastRun]
    successes: Mapping[str, LastSuccess]


class DueRun(NamedTuple):
    """A run that should begin: the due time, and its number for this due time, from 1."""

    due_us: int
    attempt: int


class Begun(msgspec.Struct, frozen=True):
    """A run that this process has begun, at ``now_us`` of the store.

    ``killed`` says that the run before it, of whatever due time, was found killed.
    """

    job: str
    due_us: int
    attempt: int
    now_us: int
    killed: bool = False


class JobStore(Protocol):
    """Runs of jobs. Every method raises StoreError."""

    async def look(self, jobs: Sequence[str]) -> JobsNow:
        """Read the state of jobs."""

    async def begin(self, job: str, due: DueRun | None) -> Begun | None:
        """Begin a run, unless the job runs now or this run has a row already.

        The run counts as running for ``HELD_S``. A run whose time is over is closed as killed.

        Args:
            job: The job's name.
            due: The run; None is one by hand, which is due now.

        Returns:
            The run; None if another process has it.
        """

    async def hold(self, run: Begun, counts: Counts) -> bool:
        """Say that a run goes on, for ``HELD_S`` from now. Returns False if it was closed as killed."""

    async def end(self, run: Begun, outcome: Outcome, reason: str | None, counts: Counts) -> None:
        """Close a run. One that was closed as killed stays so."""


class JobBody(Protocol):
    """The work of a job."""

    async def __call__(self, run: JobRun, /) -> None:
        """Do the work. What it raises, StoreError or any other, makes the run a failed one."""


class JobKind(NamedTuple):
    """A job: its name in ``JOBS``, when it is due, and its work."""

    name: str
    schedule: Schedule
    body: JobBody


class JobRun:
    """One run of a job, as its body sees it.

    ``now_us`` is the store's time at its beginning. ``counts`` is what it has done so far, by name; the
    body adds to it as it goes, so that a person sees how far it is.
    """

    def __init__(self, begun: Begun, clock: Clock) -> None:
        self.now_us = begun.now_us
        self.counts: Counts = {}
        self._clock = clock
        self._page_at_s = clock.monotonic_s()

    def count(self, name: str, more: int) -> None:
        """Add to a count."""
        self.counts[name] = (self.counts.get(name) or 0) + more

    async def pages(self, name: str, delete: Callable[[int], Awaitable[int]]) -> None:
        """Delete rows a page at a time, and count them.

        Args:
            name: The name of the count.
            delete: Deletes at most so many rows; returns how many it deleted.

        Raises:
            StoreError: The store failed for as long as ``with_retries`` tries.
        """
        while deleted := await with_retries(partial(delete, PAGE)):
            self.count(name, deleted)
            await self.rest()

    async def rest(self) -> None:
        """Leave the database to devices for a while; a body calls this after each page of rows."""
        took_s = self._clock.monotonic_s() - self._page_at_s
        await asyncio.sleep(min(max(took_s * _REST_FACTOR, _SHORTEST_REST_S), _LONGEST_REST_S))
        self._page_at_s = self._clock.monotonic_s()


def in_sequence(*bodies: JobBody) -> JobBody:
    """Return a body that does several things one after the other, each also if one before it failed."""

    async def body(run: JobRun) -> None:
        failure: Exception | None = None
        for one in bodies:
            try:
                await one(run)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    return body


def in_thread(work: Callable[[], Mapping[str, int]]) -> JobBody:
    """Return a body that does blocking work, and counts it at its end. It goes on if the run is stopped."""

    async def body(run: JobRun) -> None:
        for name, more in (await anyio.to_thread.run_sync(work, abandon_on_cancel=True)).items():
            run.count(name, more)

    return body


def due(schedule: Schedule, now_us: int, last: LastRun | None) -> DueRun | None:
    """Decide which run of a job should begin now, None if none should.

    Args:
        schedule: When the job is due.
        now_us: The store's time.
        last: The run with the latest due time up to now.
    """
    if last is not None and last.outcome == "running":
        return None
    latest_us = schedule.latest(now_us)
    if latest_us is not None and (last is None or latest_us > last.due_us):
        return DueRun(latest_us, 1)
    if last is None or last.by_hand or last.outcome not in ("killed", "stopped"):
        return None
    return None if last.killed >= MOST_KILLED else DueRun(last.due_us, last.attempt + 1)


async def perform(
    store: JobStore,
    clock: Clock,
    begun: Begun,
    body: JobBody,
    watch: Callable[[Counts], None] = lambda _: None,
) -> Counts:
    """Do the work of a run that was begun, and close it.

    Args:
        store: The store.
        clock: For rests.
        begun: The run.
        body: The work.
        watch: Is given the counts, which grow as the body goes on.

    Returns:
        What it counted.

    Raises:
        RunLostError: Another process took the run for killed.
        Exception: The body's own.
    """
    run = JobRun(begun, clock)
    watch(run.counts)
    outcome: Outcome = "stopped"
    reason: str | None = None
    try:
        await _held(store, begun, run, body(run))
        outcome = "succeeded"
    except Exception as error:
        outcome, reason = "failed", type(error).__name__
        raise
    finally:
        # If this fails, the run counts as killed when its time is over.
        with suppress(StoreError), anyio.move_on_after(_LAST_WORDS_S, shield=True):
            await store.end(begun, outcome, reason, run.counts)
    return run.counts


async def _held(store: JobStore, begun: Begun, run: JobRun, work: Awaitable[None]) -> None:
    """Wait for the work, and say every ``_SAY_S`` that the run goes on."""
    working = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([working], timeout=_SAY_S))[0]:
            with suppress(StoreError):  # what the work itself needs of the store fails there
                if not await store.hold(begun, run.counts):
                    raise RunLostError
    finally:
        working.cancel()
        await asyncio.wait([working])
    working.result()
