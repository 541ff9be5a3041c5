"""``run.py job``: lists the jobs that servers run on schedule, and runs them once, now."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Final

import click
import msgspec

from engine.cluster.jobs import JOBS, Counts
from engine.operate.rows import CleanedUp, JobSummary
from handlers.commands.deployment import Command, Deployment, as_json, opened, with_deployment
from handlers.commands.terminal.progress import progress
from handlers.commands.terminal.tables import table
from handlers.operate.printing import say

#: How often a run says how far it is.
_PROGRESS_S: Final = 1.0


#: What sealing again does not reach.
_STAYS: Final = (
    "what these values were before stays in dead rows until VACUUM FULL of the tables, in archives of the WAL"
    " and in backups until they expire"
)


class JobDone(msgspec.Struct, frozen=True):
    """A run that a command did."""

    job: str
    duration_s: float
    counts: Counts


@click.group("job", short_help="List scheduled jobs, and run them now.")
def job() -> None:
    """List the jobs that one of the servers runs on schedule, or run one now. A run tells how far it is."""


@job.command("list", epilog="Example: run.py job list --json")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment()
async def list_(deployment: Deployment, *, json_: bool) -> None:
    """List the jobs, their last runs and their next times, in UTC."""
    async with opened("reading", deployment.jobs(files=False)) as jobs:
        found = await jobs.jobs()
    if json_:
        as_json(found)
    else:
        heading = ("JOB", "SCHEDULE", "LAST RUN", "DURATION", "OUTCOME", "NEXT")
        table([_row(one) for one in found], heading)


@job.command("cleanup", epilog="Example: run.py job cleanup --json")
@click.option("--json", "json_", is_flag=True, help="Print JSON.")
@with_deployment(changes=True)
async def cleanup(deployment: Deployment, *, json_: bool) -> None:
    """Clean up after uploads and past [retention]. Print how many uploads were given up.

    It ends expired uploads, frees files of records that were deleted more than uploads.grace_h ago, drops the
    last data of records that were deleted more than records.tombstone_data_h ago, and removes files that
    belong to no upload and no record. It drops answers that are older than idempotency.lifetime_h, and adds
    the partitions of days ahead.
    """
    async with _progress("cleanup") as watch, deployment.jobs(files=True) as jobs:
        done = await jobs.clean_up(watch)
    if json_:
        as_json(done)
        return
    for line in _said(done):
        say(line)
    if done.abandonment:
        say()
        table(
            [
                (one.tenant, str(one.finished), str(one.abandoned), f"{one.ratio:.1%}")
                for one in done.abandonment
            ],
            ("TENANT", "FINISHED", "ABANDONED", "RATE"),
        )


def _command(name: str, does: str) -> Command:
    async def run(deployment: Deployment, *, json_: bool) -> None:
        began_s = time.monotonic()
        async with _progress(name) as watch, deployment.jobs(files=name == "uploads") as jobs:
            counts = await jobs.run(name, watch)
        done = JobDone(name, time.monotonic() - began_s, counts)
        if json_:
            as_json(done)
        else:
            say(f"{name}: succeeded in {_duration(done.duration_s)}{_counted(counts)}")
        if counts and name == "reseal":
            say(_STAYS, err=True)

    run.__doc__ = f"Run the job {name} now: it {does}."
    return run


for _name, _does in JOBS.items():
    if _name != "cleanup":
        _run = with_deployment(changes=True)(_command(_name, _does))
        _run = click.option("--json", "json_", is_flag=True, help="Print JSON.")(_run)
        _short = _does.capitalize() + "."
        job.command(_name, short_help=_short, epilog=f"Example: run.py job {_name}")(_run)


@asynccontextmanager
async def _progress(job: str) -> AsyncIterator[Callable[[Counts], None]]:
    """Tell on stderr what the watched run has counted.

    On a terminal that is one line for as long as it takes, elsewhere a line each second in which it grew.
    """
    watched: list[Counts] = []

    async def keep_telling(tell: Callable[[str], None]) -> None:
        told = ""
        while True:
            await asyncio.sleep(_PROGRESS_S)
            now = _counted(watched[-1]).removeprefix(": ") if watched else ""
            if now != told:
                tell(now)
            told = now

    with progress(f"running {job}") as far:
        tell = far if sys.stderr.isatty() else partial(say, err=True)
        telling = asyncio.create_task(keep_telling(tell))
        try:
            yield watched.append
        finally:
            telling.cancel()
            await asyncio.wait([telling])


def _row(one: JobSummary) -> tuple[str, ...]:
    last = one.last
    if last is None:
        return one.job, one.schedule, "", "", "never ran", _minute(one.next_at)
    notes = [last.outcome]
    if last.reason:
        notes.append(last.reason)
    if last.attempt > 1:
        notes.append(f"attempt {last.attempt}")
    if last.by_hand:
        notes.append("by hand")
    outcome = ", ".join(notes)
    return (
        one.job,
        one.schedule,
        _minute(last.began_at),
        _duration(last.duration_s),
        outcome,
        _minute(one.next_at),
    )


def _minute(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"


def _duration(duration_s: float) -> str:
    minutes, seconds = divmod(duration_s, 60)
    return f"{minutes:.0f} min {seconds:.0f} s" if minutes else f"{seconds:.1f} s"


def _counted(counts: Counts) -> str:
    told = ", ".join(f"{name} {number:.15g}" for name, number in counts.items() if number)
    return f": {told}" if told else ""


def _said(done: CleanedUp) -> list[str]:
    lines = [
        f"uploads expired: {done.expired}",
        f"files freed: {done.freed}",
        f"ended uploads forgotten: {done.forgotten}",
        f"last data of deleted records dropped: {done.emptied}",
        f"conflicts forgotten: {done.conflicts}",
        f"rejected items forgotten: {done.quarantined}",
        f"days of events dropped: {done.event_days}",
        f"days of kept answers dropped: {done.answer_days}",
        f"orphans removed: {done.orphans} ({done.orphan_bytes} bytes)",
    ]
    if done.left:
        lines.append(f"left for the next run: {done.left}")
    if done.abandonment_ratio is not None:
        lines.append(f"given up of the last day's uploads: {done.abandonment_ratio:.1%}")
    return lines
