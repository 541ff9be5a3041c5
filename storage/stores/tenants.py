"""Tenants: read by servers, listed, added and removed by commands."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec

from engine.cache.ports import ANY_TENANT
from engine.model.domains import DomainPolicy
from engine.model.tenants import Reused, Tenant, TenantPolicies
from engine.operate.ports import RefusedError
from engine.operate.rows import SignedToken, TenantSummary
from engine.runtime.ports import StoreError
from storage.postgres.arrays import int_array
from storage.postgres.driver import Row
from storage.postgres.pool import Database
from storage.postgres.roles.named_tenants import EVERYONE
from storage.stores.audit import by_account, signed_event
from storage.stores.tenant_rows import Reader, advance_generation, tenant_id_of

#: Rows erased in one transaction. A long one would keep the counters of all tenants from being vacuumed.
_ERASED_ROWS: Final = 10_000
#: Tables with rows of a tenant that are not its data.
_OWN: Final = (
    "tenants",
    "tenant_counters",
    "tenant_conflict_policy",
    "tenant_storage",
    "tenant_keys",
    "reseal_passes",
    "revoked_tokens",
    "sync_minutes",
)
#: Every table with a column ``tenant_id``, so that later tables are included.
_TABLES: Final = (
    "SELECT c.relname::text FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid"
    " WHERE c.relnamespace = current_schema()::regnamespace"
    " AND a.attname = 'tenant_id' AND NOT a.attisdropped AND c.relname <> ALL(%(own)s)"
    " AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1"
)
_TENANTS: Final = (
    "SELECT t.tenant_id, t.name, floor(extract(epoch FROM t.created_at))::bigint,"
    " floor(extract(epoch FROM r.removed_at))::bigint, p.domain, p.policy, p.fallback FROM tenants AS t"
    " LEFT JOIN removed_tenants AS r ON r.name = t.name"
    " LEFT JOIN tenant_conflict_policy AS p ON p.tenant_id = t.tenant_id"
)


class PostgresTenants:
    """``engine.cache.ports.TenantStore`` and ``engine.operate.ports.TenantAdmin``.

    Each change is one transaction that advances the generation, by which servers notice it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, name: str) -> TenantPolicies | None:
        """Find a tenant by name."""
        rows = await self._database.query(f"{_TENANTS} WHERE t.name = %(name)s", {"name": name}, name)
        for found in _gathered(rows).values():
            return found
        return None

    async def reread(self, tenant_ids: list[int]) -> dict[int, TenantPolicies]:
        """Read tenants that are known."""
        wanted = {"tenants": int_array(tenant_ids)}
        return _gathered(
            await self._database.query(
                f"{_TENANTS} WHERE t.tenant_id = ANY(%(tenants)s::int[])", wanted, tenant_ids
            )
        )

    async def newest(self, limit: int) -> list[int]:
        """Return the ids of the tenants added last."""
        newest = "SELECT tenant_id FROM tenants ORDER BY tenant_id DESC LIMIT %(limit)s"
        return [int(tenant_id) for (tenant_id,) in await self._database.query(newest, {"limit": limit})]

    async def generation(self) -> tuple[int, str]:
        """Return the number that grows with every change, and the epoch."""
        rows = await self._database.query("SELECT generation, epoch FROM cluster_state")
        if not rows:
            raise StoreError("cluster_state has no row")
        generation, epoch = rows[0]
        return int(generation), str(epoch)

    async def have_read_again(self) -> None:
        """Make every server read tenants, policies and revocations again. Raises StoreError."""
        async with self._database.transaction() as transaction:
            await advance_generation(transaction)

    async def add(self, name: str) -> None:
        """Create a tenant and its counter."""
        if not await self.ensure(name):
            raise RefusedError(f"there is a tenant {name} already")

    async def ensure(self, name: str) -> bool:
        """Create a tenant unless there is one of that name; return whether it was created."""
        async with self._database.transaction() as transaction:
            created = await transaction.query(
                "INSERT INTO tenants (name) VALUES (%(name)s) ON CONFLICT (name) DO NOTHING"
                " RETURNING tenant_id",
                {"name": name},
            )
            if created:
                counter = "INSERT INTO tenant_counters (tenant_id) VALUES (%(tenant)s)"
                await transaction.query(counter, {"tenant": created[0][0]}, [created[0][0]])
                await transaction.note(by_account("tenant_added", name, name, created[0][0]))
                await advance_generation(transaction)
        return bool(created)

    async def number(self, name: str) -> int | None:
        """Return the number of a tenant, None if there is none of that name."""
        found = await self._database.query(
            "SELECT tenant_id FROM tenants WHERE name = %(name)s", {"name": name}
        )
        return int(found[0][0]) if found else None

    async def removed_at(self, name: str) -> datetime | None:
        """Return when the last tenant of a name was removed, None if none ever was."""
        found: list[tuple[datetime]] = await self._database.query(
            "SELECT removed_at FROM removed_tenants WHERE name = %(name)s", {"name": name}
        )
        return found[0][0] if found else None

    async def note_signed(self, token: SignedToken) -> None:
        """Write the event of a token that was signed."""
        async with self._database.transaction() as transaction:
            await transaction.note(signed_event(token))

    async def revoke_token(self, token_id: str, tenant: str | None) -> bool:
        """Refuse tokens with a ``jti`` from now on, of one tenant or of all."""
        whose = [ANY_TENANT] if tenant is None else tenant
        async with self._database.transaction(tenants=whose) as transaction:
            tenant_id = ANY_TENANT if tenant is None else await tenant_id_of(transaction, tenant)
            revoked = await transaction.query(
                "INSERT INTO revoked_tokens (tenant_id, token_id) VALUES (%(tenant)s, %(token)s)"
                " ON CONFLICT DO NOTHING RETURNING 1",
                {"tenant": tenant_id, "token": token_id},
            )
            if revoked:
                number = None if tenant is None else tenant_id
                await transaction.note(by_account("token_revoked", token_id, tenant, number))
            await advance_generation(transaction)
        return bool(revoked)

    async def tenants(self) -> list[TenantSummary]:
        """List tenants by name."""
        rows = await self._database.query(
            "SELECT name, tenant_id, created_at, coalesce(seq, 0) FROM tenants"
            " LEFT JOIN tenant_counters USING (tenant_id) ORDER BY name",
            tenants=EVERYONE,
        )
        return [TenantSummary(*row) for row in rows]

    async def remove(self, name: str, *, erase: bool, watch: Callable[[int], None] = lambda _: None) -> None:
        """Remove a tenant. Its data go in small transactions first, so that no other tenant waits."""
        if erase:
            await self._erase(await tenant_id_of(self._database, name), watch)
        async with self._database.transaction(tenants=name) as transaction:
            # Looked up again: since the first look another command may have removed it and added a new one.
            # Batches lock the counter before any other row, and so does this.
            tenant_id = await tenant_id_of(transaction, name)
            tenant = {"tenant": tenant_id}
            for table in ("tenant_counters", "tenants"):
                await transaction.query(
                    f"SELECT FROM {table} WHERE tenant_id = %(tenant)s FOR UPDATE", tenant, [tenant_id]
                )
            holding = [
                table
                for table in await _tables(transaction)
                if await transaction.query(
                    f"SELECT 1 FROM {table} WHERE tenant_id = %(tenant)s LIMIT 1", tenant
                )
            ]
            if holding and not erase:
                raise RefusedError(
                    f"tenant {name} has data in {', '.join(holding)}: add --erase to erase all of it"
                )
            for table in (*holding, *_OWN[::-1]):
                await transaction.query(f"DELETE FROM {table} WHERE tenant_id = %(tenant)s", tenant)
            # The time of the clock, not of the transaction: a token signed until now may be of this tenant.
            await transaction.query(
                "INSERT INTO removed_tenants (name, removed_at) VALUES (%(name)s, clock_timestamp())"
                " ON CONFLICT (name) DO UPDATE SET removed_at = excluded.removed_at",
                {"name": name},
            )
            # Not whether rows are left here: most went before, and all of them if an earlier try was killed.
            await transaction.note(by_account("tenant_removed", name, name, tenant_id, {"erased": erase}))
            await advance_generation(transaction)

    async def _erase(self, tenant_id: int, watch: Callable[[int], None]) -> None:
        # A ctid belongs to a partition, and another partition may have the same: a row of the tenant, too.
        done = 0
        for table in await _tables(self._database):
            erase = (
                f"WITH erased AS (DELETE FROM {table} WHERE tenant_id = %(tenant)s AND ctid = ANY (ARRAY("
                f"SELECT ctid FROM {table} WHERE tenant_id = %(tenant)s LIMIT {_ERASED_ROWS})) RETURNING 1)"
                " SELECT count(*) FROM erased"
            )
            erased = _ERASED_ROWS
            while erased >= _ERASED_ROWS:
                ((erased,),) = await self._database.execute(erase, {"tenant": tenant_id}, tenants=[tenant_id])
                done += erased
                watch(done)


async def _tables(reader: Reader) -> list[str]:
    return [str(name) for (name,) in await reader.query(_TABLES, {"own": list(_OWN)})]


def _gathered(rows: list[Row]) -> dict[int, TenantPolicies]:
    gathered: dict[int, TenantPolicies] = {}
    for tenant_id, name, made_s, removed_s, domain, policy, fallback in rows:
        found = gathered.get(tenant_id)
        if found is None:
            reused = None if removed_s is None else Reused(made_s, removed_s)
            found = gathered[tenant_id] = TenantPolicies(Tenant(tenant_id, name, reused), {})
        if domain is not None:
            chosen = {"policy": policy, "fallback": fallback}
            found.own[domain] = msgspec.convert(chosen, DomainPolicy)
    return gathered
