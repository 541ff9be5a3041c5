"""What the committer needs of the store, and what it offers to the rest of the engine.

The docstrings state the duties of every class that implements one of these.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from engine.commit.queue import Charge, OnOutcome
from engine.model.rows import ReadSet, Snapshot, WriteSet
from engine.plan.work import Outcome, Work
from engine.wire.errors import SyncError


class Transaction(Protocol):
    """One open batch. Its tenants are locked until ``commit`` or ``rollback`` returns."""

    snapshot: Snapshot

    async def commit(self, writes: WriteSet) -> None:
        """Write everything and commit durably (synchronous_commit = on), in one round trip.

        The transaction has ended on return, whatever the outcome. Cancelling the caller does not stop a
        COMMIT that was sent.

        Raises:
            StoreRetryError: Nothing was written. Running the batch again may succeed.
            StoreUnknownError: COMMIT was sent and its outcome is unknown.
            StoreFullError: The disk is full. Nothing was written.
            StorePoisonError: PostgreSQL refused a value. Nothing was written.
        """

    async def rollback(self) -> None:
        """Release the locks without writing. Never raises."""


class Store(Protocol):
    """The only way to write what devices send."""

    async def begin(self, read_set: ReadSet) -> Transaction:
        """Open a transaction, lock its tenants and read what ``read_set`` names, in one round trip.

        Counters are locked in ascending order of ``read_set.tenants``. Rows are read in a later snapshot
        than the lock's. A missing counter row is created. Keys past their lifetime are not found.

        Raises:
            StoreRetryError: Running the batch again may succeed.
            StoreUnavailableError: No writable database can be reached.
            StoreFullError: The disk is full.
            StorePoisonError: PostgreSQL refused a value.
        """


class WorkQueue(Protocol):
    """Takes work to be committed (``engine.commit.committer.Committer``)."""

    def submit(self, work: Work, reply: OnOutcome, charge: Charge | None = None, /) -> None:
        """Queue work; ``reply`` is called once with its outcome.

        Raises:
            SyncError: ``overloaded``: nothing more is taken in, and ``reply`` is not called.
        """

    async def commit(self, work: Work, charge: Charge | None = None) -> Outcome:
        """Queue work and wait for its outcome.

        Returns:
            The outcome. It is the SyncError if the work was not taken in.
        """
        result: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def reply(outcome: Outcome) -> None:
            if not result.done():
                result.set_result(outcome)

        try:
            self.submit(work, reply, charge)
        except SyncError as error:
            return error
        return await result
