"""Transactions that write sealed values, other than batches, and check first what seals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeVar

from storage.postgres.arrays import int_array
from storage.postgres.connection import Statement
from storage.postgres.driver import Row
from storage.postgres.pool import Database
from storage.postgres.transactions import Transaction
from storage.stores.sealed.followed import BEHIND_TRIES, SEALED_SQL, SealingChangedError
from storage.stores.sealed.sealing import Sealing

_Result = TypeVar("_Result")
#: Takes the rows of a statement that writes values, whose first column is ``ANY_SEALED_SQL``.
Look = Callable[[Sequence[Row]], None]

#: What a later statement reads is of after the transaction got its number. So the number of a transaction
#: that missed a domain is older than the domain, and the job ``reseal`` waits for its end. The number is
#: asked beside a table: on Citus it is then of the node with the tables, where its locks number a batch.
NUMBERED: Final = Statement("SELECT pg_current_xact_id() FROM cluster_state")
_STATE: Final = Statement(
    f"SELECT w.t, {SEALED_SQL}, k.key_id::text FROM unnest(%(tenants)s::int[]) AS w(t)"
    " LEFT JOIN tenant_keys AS k ON k.tenant_id = w.t AND k.retired_at IS NULL"
)


async def write_checked(
    database: Database,
    sealing: Sealing,
    tenants: Collection[int],
    write: Callable[[Transaction, Look], Awaitable[_Result]],
) -> _Result:
    """Run ``write`` as one transaction; while nothing is sealed, without a round trip to look.

    Args:
        database: The database.
        sealing: What ``write`` seals with.
        tenants: Whose values it writes.
        write: Makes its values before its first wait. Its statements that write them return
            ``ANY_SEALED_SQL``, come behind one that gives the transaction its number (``NUMBERED``), and it
            has the look see their rows. It runs again if something is sealed since.

    Raises:
        SealingChangedError: As ``checked_transaction``.
        StoreError: As ``Database.transaction``.
    """
    if not sealing.on:
        with suppress(SealingChangedError):
            async with database.transaction(tenants=tenants) as transaction:
                if not sealing.on:  # since it waited for a connection
                    return await write(transaction, _look_for_any)
        await sealing.follow_again(tenants)
    async with checked_transaction(database, sealing, tenants) as transaction:
        return await write(transaction, _looked_before)


def _look_for_any(rows: Sequence[Row]) -> None:
    if any(row[0] is not None for row in rows):
        raise SealingChangedError


def _looked_before(_: Sequence[Row]) -> None:
    pass


@asynccontextmanager
async def checked_transaction(
    database: Database, sealing: Sealing, tenants: Collection[int], settings: Statement | None = None
) -> AsyncIterator[Transaction]:
    """Run the block as one transaction, as ``Database.transaction``. The block seals before its first wait.

    Args:
        database: The database.
        sealing: What the block seals with.
        tenants: Whose values it writes.
        settings: As of ``Database.transaction``.

    Raises:
        SealingChangedError: Others change what is sealed faster than this process reads it.
        StoreError: As ``Database.transaction``.
    """
    async with await _begun(database, sealing, tenants, settings) as transaction:
        yield transaction


async def _begun(
    database: Database, sealing: Sealing, tenants: Collection[int], settings: Statement | None
) -> Transaction:
    behind = 0
    while True:
        await sealing.load_missing(tenants)
        transaction = await database.begin(settings, tenants)
        try:
            rows = await transaction.run((NUMBERED, _STATE), {"tenants": int_array(tenants)})
            sealing.check(rows[0][1], {tenant_id: key_id for tenant_id, _, key_id in rows})
        except BaseException as error:
            await transaction.rollback()
            behind += 1
            if not isinstance(error, SealingChangedError) or behind > BEHIND_TRIES:
                raise
        else:
            return transaction
        await sealing.follow_again(tenants)
