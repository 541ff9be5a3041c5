"""Leases of scheduled jobs: of all processes on all hosts, one runs a job at a time.

A lease saves double work; no promise rests on it, since a job harms nothing when two processes run it at
once. So a lease that ran out, because its owner was killed or stalled, is simply taken by another process.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

import anyio

from engine.runtime.ports import Clock, StoreError

#: A lease runs out after this time unless its owner renews it.
LEASE_S: Final = 60
_RENEW_EVERY_S: Final = 15.0
_RELEASE_WITHIN_S: Final = 2.0


class LeaseLostError(Exception):
    """The lease ran out, and another process took it."""


class LeaseStore(Protocol):
    """Leases by the name of the job. Every method may be called again, and raises StoreError."""

    async def begin(self, job: str, owner: str, every_s: float) -> int | None:
        """Take a lease that is free, if the job last began at least ``every_s`` ago.

        Returns:
            The store's time in µs; None if another owner has the lease, or the job is not due.
        """

    async def renew(self, job: str, owner: str) -> bool:
        """Extend a lease by ``LEASE_S`` from now. Returns False if another owner has it."""

    async def end(self, job: str, owner: str, report: bytes | None) -> None:
        """Release a lease.

        Args:
            job: The job's name.
            owner: The process that has the lease; a release by any other changes nothing.
            report: The job's result as JSON, which replaces the last one; None keeps the last one.
        """

    async def report(self, job: str) -> bytes | None:
        """Read the last report of a job, None if there is none."""


class JobLease:
    """A lease that this process has.

    ``now_us`` is the store's time when the job began. ``report`` is the result to leave for all processes.
    """

    def __init__(self, store: LeaseStore, clock: Clock, job: str, owner: str, now_us: int) -> None:
        self.now_us = now_us
        self.report: bytes | None = None
        self._store = store
        self._clock = clock
        self._job = job
        self._owner = owner
        self._renew_at_s = clock.monotonic_s() + _RENEW_EVERY_S

    async def renew(self) -> None:
        """Renew the lease if it is time; a job calls this after each step.

        Raises:
            LeaseLostError: Another process has the lease.
            StoreError: The store failed.
        """
        if self._clock.monotonic_s() < self._renew_at_s:
            return
        if not await self._store.renew(self._job, self._owner):
            raise LeaseLostError
        self._renew_at_s = self._clock.monotonic_s() + _RENEW_EVERY_S


class JobLeases:
    """Acquires leases for this process."""

    def __init__(self, store: LeaseStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @asynccontextmanager
    async def acquire(self, job: str, every_s: float) -> AsyncIterator[JobLease | None]:
        """Hold a job's lease for the body of ``async with``.

        Args:
            job: The job's name.
            every_s: The least time between two beginnings of the job.

        Yields:
            The lease, or None if another process has it or the job is not due.

        Raises:
            StoreError: The store failed.
        """
        owner = uuid.uuid4().hex
        now_us = await self._store.begin(job, owner, every_s)
        if now_us is None:
            yield None
            return
        lease = JobLease(self._store, self._clock, job, owner, now_us)
        try:
            yield lease
        finally:
            # If the release fails, the lease runs out.
            with suppress(StoreError), anyio.move_on_after(_RELEASE_WITHIN_S, shield=True):
                await self._store.end(job, owner, lease.report)

    async def report(self, job: str) -> bytes | None:
        """Read the last report of a job, from any process. Raises StoreError."""
        return await self._store.report(job)
