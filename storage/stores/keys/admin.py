"""Keys of all tenants, as commands and the start of a server need them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

import msgspec

from engine.operate.ports import RefusedError
from engine.operate.rows import SealedDomain, TenantKeyState, UnreadableValue
from engine.seal.master_keys import WrappedKey
from storage.postgres.arrays import hex_array, int_array
from storage.postgres.driver import Row
from storage.postgres.pool import Database
from storage.postgres.roles.hidden import hidden, hidden_error
from storage.postgres.roles.named_tenants import EVERYONE
from storage.postgres.server_processes import GONE_S, SAID_S, SEALING
from storage.postgres.transactions import Transaction
from storage.stores.audit import by_account
from storage.stores.keys.sealed_columns import SEALED_TABLES
from storage.stores.keys.wrapped import lock_masters, use_master
from storage.stores.tenant_rows import advance_generation, tenant_id_of

#: Tenants whose keys are wrapped anew in one transaction.
_REWRAPPED_TENANTS: Final = 200

_STATUS: Final = (
    "SELECT t.name, k.key_number, k.created_at, k.master_key_id, k.seals_leased,"
    " (SELECT count(*)::int FROM tenant_keys AS o WHERE o.tenant_id = t.tenant_id"
    " AND o.retired_at IS NOT NULL), p.resealed, p.place, p.done_at,"
    " greatest(p.wanted_at, d.since) > coalesce(p.done_at, '-infinity')"
    ", coalesce(k.key_number, 0) < greatest(t.newest_key, h.newest),"
    " ARRAY(SELECT generate_series(1, greatest(t.newest_key, h.newest))"
    " EXCEPT SELECT key_number FROM tenant_keys AS o WHERE o.tenant_id = t.tenant_id ORDER BY 1),"
    " coalesce(p.unreadable_values, 0), p.unreadable::text"
    " FROM tenants AS t LEFT JOIN tenant_keys AS k ON k.tenant_id = t.tenant_id AND k.retired_at IS NULL"
    " LEFT JOIN LATERAL (SELECT max(key_number) AS newest FROM tenant_keys AS o"
    " WHERE o.tenant_id = t.tenant_id) AS h ON true"
    " LEFT JOIN reseal_passes AS p ON p.tenant_id = t.tenant_id"
    " LEFT JOIN LATERAL (SELECT max(since) AS since FROM sealed_domains WHERE since > t.created_at) AS d"
    " ON true ORDER BY t.name"
)
_OTHERS: Final = (
    "SELECT k.tenant_id, replace(t.tenant_uuid::text, '-', ''), k.key_number, k.master_key_id,"
    " encode(k.wrapped, 'hex'), k.retired_at IS NOT NULL, k.key_id::text"
    " FROM tenant_keys AS k JOIN tenants AS t ON t.tenant_id = k.tenant_id"
    " WHERE k.tenant_id IN (SELECT tenant_id FROM tenant_keys WHERE master_key_id <> %(master)s"
    " GROUP BY tenant_id ORDER BY tenant_id LIMIT %(limit)s::int) AND k.master_key_id <> %(master)s"
)
#: Locked in the order of ``_LEASE`` (storage/stores/keys/wrapped.py): else a server and this could wait
#: for each other in a circle.
_REWRAP: Final = (
    "WITH held AS MATERIALIZED (SELECT k.tenant_id AS t, k.key_number AS n, w.b, w.k FROM tenant_keys AS k"
    " JOIN unnest(%(tenants)s::int[], %(ids)s::uuid[], %(before)s::text[], %(wrapped)s::text[])"
    " AS w(t, i, b, k) ON k.tenant_id = w.t AND k.key_id = w.i AND k.master_key_id = w.b"
    " ORDER BY k.tenant_id, k.key_number FOR UPDATE OF k)"
    " UPDATE tenant_keys AS k SET wrapped = decode(held.k, 'hex'), master_key_id = %(master)s FROM held"
    " WHERE k.tenant_id = held.t AND k.key_number = held.n AND k.master_key_id = held.b RETURNING 1"
)
_TENANT_KEYS: Final = "'tenant_keys'::regclass"
#: What wraps keys of tenants is in use, whatever ``master_keys`` tells, which a restore may have left behind.
_IN_USE: Final = (
    f"SELECT w.hidden, u.master_key_id FROM (SELECT {hidden(_TENANT_KEYS)} AS hidden) AS w LEFT JOIN"
    " (SELECT master_key_id FROM tenant_keys"
    " UNION SELECT master_key_id FROM master_keys WHERE retired_at IS NULL) AS u ON true"
    " LEFT JOIN master_keys AS m USING (master_key_id) ORDER BY m.since DESC NULLS LAST, u.master_key_id"
)
#: A master key that wraps hidden keys of tenants would look as if it wrapped none.
_RETIRE: Final = (
    "WITH gone AS (UPDATE master_keys AS m SET retired_at = now()"
    " WHERE m.master_key_id <> ALL(%(keep)s::text[])"
    " AND m.retired_at IS NULL AND NOT EXISTS (SELECT FROM tenant_keys AS k"
    " WHERE k.master_key_id = m.master_key_id) RETURNING m.master_key_id)"
    f" SELECT master_key_id, {hidden(_TENANT_KEYS)} FROM gone"
)
_PROCESSES: Final = (
    "SELECT place, sealing, array_to_string(master_keys, ',') FROM server_processes"
    f" WHERE seen_at > now() - interval '{GONE_S:g} seconds' ORDER BY place"
)
_STORED: Final = "SELECT " + " OR ".join(f"EXISTS (SELECT FROM {table.name})" for table in SEALED_TABLES)
_SET_SINCE: Final = "UPDATE sealed_domains SET since = now() WHERE domain = %(domain)s"
_DOMAINS: Final = "SELECT domain, since FROM sealed_domains ORDER BY domain"
_decode_unreadable: Final = msgspec.json.Decoder(list[UnreadableValue]).decode


class RunningProcess(NamedTuple):
    """A server process that uses the database: what it can do with sealed values, and its master keys."""

    place: str
    sealing: int
    master_keys: frozenset[str]


def refuse_without_key(processes: Collection[RunningProcess], master_key_id: str) -> None:
    """See that server processes have a master key. Raises RefusedError."""
    if left := [one.place for one in processes if master_key_id not in one.master_keys]:
        raise RefusedError(
            f"{len(left)} server processes do not have the master key {master_key_id} yet, such as {left[0]}:"
            " give it to them (SIGHUP has servers read their settings again, and they tell which keys they"
            f" have within {SAID_S:.0f} s), and run this again"
        )


class TenantKey(NamedTuple):
    """A wrapped key of a tenant; the uuid is 16 bytes."""

    tenant_id: int
    tenant_uuid: bytes
    key: WrappedKey


class PostgresKeyAdmin:
    """Keys of all tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def master_keys_in_use(self) -> list[str]:
        """List the ids of the master keys that wrap keys of tenants or may, the newest first.

        Raises:
            StoreError: The database is away, or the role may not see the keys of all tenants.
        """
        rows = await self._database.query(_IN_USE, tenants=EVERYONE)
        if rows[0][0]:
            raise hidden_error("tenant_keys")
        return [str(one) for _, one in rows if one is not None]

    async def tenants(self) -> list[TenantKeyState]:
        """List the keys of tenants by name. Raises StoreError."""
        return [_key_state(row) for row in await self._database.query(_STATUS, tenants=EVERYONE)]

    async def sealed_domains(self) -> list[SealedDomain]:
        """List the domains that are sealed. Raises StoreError."""
        return [SealedDomain(*row) for row in await self._database.query(_DOMAINS)]

    async def nothing_is_stored(self) -> bool:
        """Return whether no device of any tenant ever stored anything. Raises StoreError."""
        ((stored,),) = await self._database.query(_STORED, tenants=EVERYONE)
        return not stored

    async def processes(self) -> list[RunningProcess]:
        """List the server processes that use the database. Raises StoreError."""
        return [_process(row) for row in await self._database.query(_PROCESSES)]

    async def wrapped_by_others(self, master_key_id: str) -> list[TenantKey]:
        """List keys that other master keys wrap, of some tenants; empty if none are. Raises StoreError."""
        values = {"master": master_key_id, "limit": _REWRAPPED_TENANTS}
        return [
            TenantKey(
                row[0], bytes.fromhex(row[1]), WrappedKey(row[2], row[3], bytes.fromhex(row[4]), *row[5:])
            )
            for row in await self._database.query(_OTHERS, values, EVERYONE)
        ]

    async def rewrap(self, given: Sequence[str], keys: Collection[tuple[TenantKey, bytes]]) -> int:
        """Store keys as another master key wraps them, all or none; return how many were changed.

        A key that another command changed is left alone.

        Args:
            given: The ids of all master keys of the process, the one that wraps them first.
            keys: The keys, and how they are wrapped anew.

        Raises:
            MasterKeyError: A master key in use is not given.
            StoreError: The database is away.
        """
        values = {
            "master": given[0],
            "tenants": int_array(one.tenant_id for one, _ in keys),
            "ids": hex_array(one.key.key_id for one, _ in keys),
            "before": hex_array(one.key.master_key_id for one, _ in keys),
            "wrapped": hex_array(wrapped.hex() for _, wrapped in keys),
        }
        tenants = {one.tenant_id for one, _ in keys}
        async with self._database.transaction(tenants=tenants) as transaction:
            await use_master(transaction, given[0], given)
            return len(await transaction.query(_REWRAP, values))

    async def retire_unused(self, given: Sequence[str]) -> list[str]:
        """Retire master keys that wrap nothing and are not given; return their ids.

        A server needs every master key in use, so one that was lost before it wrapped anything would keep
        servers from starting.

        Args:
            given: The ids of all master keys of the process, the one that wraps first.

        Raises:
            StoreError: The database is away, or the role may not see the keys of all tenants.
        """
        async with self._database.transaction(tenants=EVERYONE) as transaction:
            await lock_masters(transaction)
            retired = await _retired(transaction, given)
            if retired:
                await _note_rotation(transaction, given[0], retired, 0)
        return retired

    async def end_rotation(self, given: Sequence[str], keys: int) -> list[str]:
        """Retire master keys that wrap nothing now; return their ids.

        Args:
            given: The ids of all master keys of the process, the one that wraps first, which stays.
            keys: How many keys it wrapped anew.

        Raises:
            MasterKeyError: A master key in use is not given.
            StoreError: The database is away, or the role may not see the keys of all tenants.
        """
        async with self._database.transaction(tenants=EVERYONE) as transaction:
            await lock_masters(transaction)
            await use_master(transaction, given[0], given)
            before = await _retired(transaction, given[:1])
            await _note_rotation(transaction, given[0], before, keys)
        return before

    async def tenant_id(self, name: str) -> int:
        """Find a tenant by its name. Raises NoTenantError, StoreError."""
        return await tenant_id_of(self._database, name)

    async def seal_domain(self, domain: str, given: Sequence[str]) -> datetime | None:
        """Switch the sealing of a domain on; return since when it was on already, None if it was not.

        No process of an older version, and none without the master key, can start afterwards.

        Args:
            domain: The domain.
            given: The ids of all master keys of the process, the one that wraps first.

        Raises:
            MasterKeyError: A master key in use is not given.
            RefusedError: A process of an older version, or without the master key, uses the database.
            StoreError: The database is away.
        """
        # As the role of jobs: that of serving may not change which domains are sealed.
        async with self._database.transaction(tenants=EVERYONE) as transaction:
            # A process that starts now waits, and then meets the trigger of the table.
            await transaction.query("LOCK TABLE server_processes IN SHARE ROW EXCLUSIVE MODE")
            processes = [_process(row) for row in await transaction.query(_PROCESSES)]
            for one in processes:
                if one.sealing < SEALING:
                    raise RefusedError(
                        f"a server of an older version uses this database ({one.place}), which cannot read"
                        " sealed data: update or stop it first (one that was killed counts for"
                        f" {GONE_S:.0f} s)"
                    )
            # It would refuse all that is to be sealed, or seal what the others cannot open.
            refuse_without_key(processes, given[0])
            values = {"domain": domain}
            found = await transaction.query(
                "SELECT since FROM sealed_domains WHERE domain = %(domain)s", values
            )
            if found:
                return found[0][0]  # type: ignore[no-any-return]  # a timestamptz
            await use_master(transaction, given[0], given)  # before any tenant has a key that it wraps
            await transaction.query("INSERT INTO sealed_domains (domain) VALUES (%(domain)s)", values)
            await transaction.note(by_account("domain_sealed", domain))
            await advance_generation(transaction)
        # The time of the first moment at which everybody sees it: a commit may wait for a standby.
        await self._database.execute(_SET_SINCE, values, tenants=EVERYONE)
        return None


async def _retired(transaction: Transaction, keep: Collection[str]) -> list[str]:
    """Retire master keys that wrap nothing, but some."""
    rows = await transaction.query(_RETIRE, {"keep": hex_array(keep)})
    if any(is_hidden for _, is_hidden in rows):
        raise hidden_error("tenant_keys")
    return sorted(str(one) for one, _ in rows)


async def _note_rotation(
    transaction: Transaction, master_key_id: str, before: Sequence[str], keys: int
) -> None:
    details: Mapping[str, object] = {"before": before, "keys": keys}
    await transaction.note(by_account("master_key_rotated", master_key_id, details=details))
    await advance_generation(transaction)


def _process(row: Row) -> RunningProcess:
    place, sealing, keys = row
    return RunningProcess(place, sealing, frozenset(filter(None, keys.split(","))))


def _key_state(row: Row) -> TenantKeyState:
    *columns, unreadable = row
    state = TenantKeyState(*columns)
    if unreadable is None:
        return state
    return msgspec.structs.replace(state, unreadable=_decode_unreadable(unreadable))
