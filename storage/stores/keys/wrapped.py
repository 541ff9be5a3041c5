"""Wrapped data keys of tenants. Each change is one transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from engine.cache.ports import StoredKeys
from engine.model.audit import AuditRow
from engine.seal.master_keys import MasterKeyError, WrappedKey, missing_sentence
from engine.seal.sealer import MOST_SEALS
from storage.postgres.arrays import hex_array, int_array
from storage.postgres.pool import Database
from storage.postgres.transactions import Transaction
from storage.stores.audit import process_account
from storage.stores.tenant_rows import advance_generation

_READ: Final = (
    "SELECT t.tenant_id, t.tenant_uuid::text, k.key_number, k.master_key_id, encode(k.wrapped, 'hex'),"
    " k.retired_at IS NOT NULL, t.newest_key, k.key_id::text"
    " FROM tenants AS t LEFT JOIN tenant_keys AS k ON k.tenant_id = t.tenant_id"
    " WHERE t.tenant_id = ANY(%(tenants)s::int[]) ORDER BY t.tenant_id, k.key_number"
)
#: Locked in the order of tenants, so that no two processes wait for each other in a circle.
_LEASE: Final = (
    "WITH held AS MATERIALIZED (SELECT k.tenant_id AS t, k.key_number AS n FROM tenant_keys AS k"
    " JOIN unnest(%(tenants)s::int[], %(ids)s::uuid[]) AS w(t, i)"
    " ON k.tenant_id = w.t AND k.key_id = w.i ORDER BY k.tenant_id FOR UPDATE OF k)"
    " UPDATE tenant_keys AS k SET seals_leased = k.seals_leased + %(seals)s::bigint FROM held"
    " WHERE k.tenant_id = held.t AND k.key_number = held.n AND k.retired_at IS NULL"
    f" AND k.seals_leased + %(seals)s::bigint <= {MOST_SEALS} RETURNING k.tenant_id"
)
_RETIRE: Final = (
    "UPDATE tenant_keys SET retired_at = now() WHERE tenant_id = %(tenant)s::int"
    " AND key_id = %(before)s::uuid AND retired_at IS NULL RETURNING 1"
)
#: Many processes may hold it at once.
_HOLD_MASTER: Final = (
    "SELECT 1 FROM master_keys WHERE master_key_id = %(master)s AND retired_at IS NULL FOR SHARE"
)
#: An advisory lock: which master keys are in use changes in one transaction at a time.
_CHANGING: Final = 0x74696B6D
_LOCK_CHANGE: Final = f"SELECT pg_advisory_xact_lock({_CHANGING})"
_MISSING: Final = (
    "SELECT master_key_id FROM master_keys WHERE retired_at IS NULL"
    " AND master_key_id <> ALL(%(given)s::text[])"
)
_LOCK_MASTERS: Final = "SELECT 1 FROM master_keys ORDER BY master_key_id FOR UPDATE"
_USE_MASTER: Final = (
    "INSERT INTO master_keys AS m (master_key_id) VALUES (%(master)s) ON CONFLICT (master_key_id)"
    " DO UPDATE SET retired_at = NULL, since = excluded.since WHERE m.retired_at IS NOT NULL"
)
#: As batches and the removal of a tenant do, before any other row of the tenant. A trigger changes it.
_LOCK_COUNTER: Final = "SELECT FROM tenant_counters WHERE tenant_id = %(tenant)s::int FOR UPDATE"
#: The row of the tenant stays until the transaction ends. One that is removed has no keys. Of two processes
#: with keys of the same number the second one finds it taken.
_TAKE_NUMBER: Final = (
    "UPDATE tenants SET newest_key = %(number)s::int WHERE tenant_id = %(tenant)s::int"
    " AND newest_key < %(number)s::int RETURNING 1"
)
_ADD: Final = (
    "INSERT INTO tenant_keys (tenant_id, key_number, wrapped, master_key_id)"
    " VALUES (%(tenant)s::int, %(number)s::int, decode(%(wrapped)s, 'hex'), %(master)s)"
    " ON CONFLICT DO NOTHING RETURNING 1"
)
#: The job has to seal again what the tenant has stored.
_WANT: Final = (
    "INSERT INTO reseal_passes AS p (tenant_id, wanted_at) VALUES (%(tenant)s::int, clock_timestamp())"
    " ON CONFLICT (tenant_id) DO UPDATE SET wanted_at = excluded.wanted_at"
)


class PostgresTenantKeys:
    """``engine.cache.ports.KeyStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, tenant_ids: list[int]) -> dict[int, StoredKeys]:
        """Read keys."""
        found: dict[int, StoredKeys] = {}
        rows = await self._database.query(_READ, {"tenants": int_array(tenant_ids)}, tenant_ids)
        for tenant_id, tenant_uuid, number, master_key_id, wrapped, retired, newest, key_id in rows:
            if tenant_id not in found:
                uuid = bytes.fromhex(tenant_uuid.replace("-", ""))
                found[tenant_id] = StoredKeys(tenant_id, uuid, [], newest)
            if number is not None:
                key = WrappedKey(number, master_key_id, bytes.fromhex(wrapped), retired, key_id)
                found[tenant_id].keys.append(key)
        return found

    async def replace(
        self,
        tenant_id: int,
        before: WrappedKey | None,
        key: WrappedKey,
        given: Collection[str],
        *,
        reseal: bool = False,
    ) -> bool:
        """Store a new key that seals."""
        transaction = await self._database.begin(tenants=[tenant_id])
        try:
            if not await _replaced(transaction, tenant_id, before, key, given):
                return False
            if reseal:
                await transaction.query(_WANT, {"tenant": tenant_id})
            await transaction.commit()
        finally:
            await transaction.rollback()
        return True

    async def lease(self, keys: Mapping[int, str], seals: int) -> set[int]:
        """Take a block of seals of each key."""
        values = {"tenants": int_array(keys), "ids": hex_array(keys.values()), "seals": seals}
        rows = await self._database.execute(_LEASE, values, tenants=keys.keys())
        return {int(tenant_id) for (tenant_id,) in rows}


async def use_master(transaction: Transaction, master_key_id: str, given: Collection[str]) -> None:
    """Have a master key in use, and keep it from being retired until the transaction ends.

    It comes before any other row of the transaction, so that no two wait for each other in a circle.

    Args:
        transaction: The transaction that wraps a key.
        master_key_id: The master key that wraps it.
        given: The ids of all master keys that the process has.

    Raises:
        MasterKeyError: The master key is not in use yet, and one that is in use is not given: with a wrong
            key beside the right one in use no server could start.
        StoreError: The database is away.
    """
    values = {"master": master_key_id, "given": hex_array(given)}
    if await transaction.query(_HOLD_MASTER, values):
        return
    await transaction.query(_LOCK_CHANGE)
    if missing := await transaction.query(_MISSING, values):
        raise MasterKeyError(missing_sentence((str(one) for (one,) in missing), given))
    await transaction.query(_USE_MASTER, values)


async def lock_masters(transaction: Transaction) -> None:
    """Wait for all who wrap a key, and have others wait, until the transaction ends.

    A process that wraps a key holds its master key (``use_master``): its key of a tenant is seen once it has
    ended, by a later statement, whose snapshot is newer.
    """
    await transaction.query(_LOCK_CHANGE)
    await transaction.query(_LOCK_MASTERS)


async def _replaced(
    transaction: Transaction,
    tenant_id: int,
    before: WrappedKey | None,
    key: WrappedKey,
    given: Collection[str],
) -> bool:
    values = {
        "tenant": tenant_id,
        "before": None if before is None else before.key_id,
        "number": key.number,
        "wrapped": key.wrapped.hex(),
        "master": key.master_key_id,
    }
    await use_master(transaction, key.master_key_id, given)
    await transaction.query(_LOCK_COUNTER, values)
    if not await transaction.query(_TAKE_NUMBER, values):
        return False
    if before is not None and not await transaction.query(_RETIRE, values):
        return False
    if not await transaction.query(_ADD, values):
        return False
    if before is not None:
        details = {"before": before.number}
        event = AuditRow("tenant_key_rotated", process_account(), str(key.number), None, tenant_id, details)
        await transaction.note(event)
        await advance_generation(transaction)
    return True
