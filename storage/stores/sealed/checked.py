"""Transactions that write sealed values, other than batches, and check first what seals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Final

from storage.postgres.arrays import int_array
from storage.postgres.connection import Statement
from storage.postgres.pool import Database
from storage.postgres.transactions import Transaction
from storage.stores.sealed.followed import BEHIND_TRIES, SEALED_SQL, SealingChangedError
from storage.stores.sealed.sealing import Sealing

#: What a later statement reads is of after the transaction got its number. So the number of a transaction
#: that missed a domain is older than the domain, and the job ``reseal`` waits for its end.
_NUMBERED: Final = Statement("SELECT pg_current_xact_id()")
_STATE: Final = Statement(
    f"SELECT w.t, {SEALED_SQL}, k.key_id::text FROM unnest(%(tenants)s::int[]) AS w(t)"
    " LEFT JOIN tenant_keys AS k ON k.tenant_id = w.t AND k.retired_at IS NULL"
)


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
    transaction = await _begun(database, sealing, tenants, settings)
    try:
        yield transaction
    except BaseException:
        await transaction.rollback()
        raise
    await transaction.commit()


async def _begun(
    database: Database, sealing: Sealing, tenants: Collection[int], settings: Statement | None
) -> Transaction:
    behind = 0
    while True:
        await sealing.load_missing(tenants)
        transaction = await database.begin(settings, tenants)
        try:
            rows = await transaction.run((_NUMBERED, _STATE), {"tenants": int_array(tenants)})
            sealing.check(rows[0][1], {tenant_id: key_id for tenant_id, _, key_id in rows})
        except BaseException as error:
            await transaction.rollback()
            behind += 1
            if not isinstance(error, SealingChangedError) or behind > BEHIND_TRIES:
                raise
        else:
            return transaction
        await sealing.follow_again(tenants)
