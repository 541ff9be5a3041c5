"""What the committer needs of the store. The docstrings state the duty of whoever fulfils them."""

from __future__ import annotations

from typing import Protocol

from engine.model.rows import ReadSet, Snapshot, WriteSet


class Transaction(Protocol):
    """One open batch: its tenants are locked until ``commit`` or ``rollback`` returns."""

    snapshot: Snapshot

    async def commit(self, writes: WriteSet) -> None:
        """Write everything and commit, in one round trip, durably (synchronous_commit = on).

        Raises StoreRetryError, StoreUnknownError, StoreFullError or StorePoisonError. A caller that is
        cancelled meanwhile does not stop a COMMIT that was sent. Either way the transaction has ended on
        return.
        """

    async def rollback(self) -> None:
        """Give the locks back without writing; never raises."""


class Store(Protocol):
    """The one seam for writing."""

    async def begin(self, read_set: ReadSet) -> Transaction:
        """Open a transaction, lock its tenants and read what ``read_set`` names, in one round trip.

        Counters are locked in ascending order of ``read_set.tenants``; reads see a later snapshot than the
        lock's. A missing counter row is created. Keys past their lifetime are not found.
        Raises StoreRetryError, StoreUnavailableError, StoreFullError or StorePoisonError.
        """
