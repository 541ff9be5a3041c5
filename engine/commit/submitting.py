"""How others have a job committed, and learn what became of it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from engine.commit.queue import Charge, Reply
from engine.plan.jobs import Job, Outcome
from engine.wire.errors import SyncError


class Jobs(Protocol):
    """Who takes jobs in (``engine.commit.committer.Committer``)."""

    def submit(self, job: Job, reply: Reply, charge: Charge | None = None, /) -> None:
        """Queue a job. Raises SyncError when nothing more is taken in."""


async def settled(jobs: Jobs, job: Job, charge: Charge | None = None) -> Outcome:
    """Have a job committed, and wait for what became of it; one that was not taken in is a SyncError."""
    future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def reply(outcome: Outcome) -> None:
        if not future.done():
            future.set_result(outcome)

    try:
        jobs.submit(job, reply, charge)
    except SyncError as error:
        return error
    return await future
