"""Tenants, their policies, and the number that grows when either changes."""

from __future__ import annotations

from typing import Final

import msgspec

from engine.model.domains import DomainPolicy
from engine.model.tenants import Reused, Tenant, TenantPolicies
from engine.runtime.ports import StoreError
from storage.postgres.arrays import numbers
from storage.postgres.pool import Database, Row

_TENANTS: Final = (
    "SELECT t.tenant_id, t.name, floor(extract(epoch FROM t.created_at))::bigint,"
    " floor(extract(epoch FROM r.removed_at))::bigint, p.domain, p.policy, p.fallback FROM tenants AS t"
    " LEFT JOIN removed_tenants AS r ON r.name = t.name"
    " LEFT JOIN tenant_conflict_policy AS p ON p.tenant_id = t.tenant_id"
)


class PostgresTenants:
    """``engine.cache.ports.TenantStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, name: str) -> TenantPolicies | None:
        """Find a tenant by name."""
        rows = await self._database.query(f"{_TENANTS} WHERE t.name = %(name)s", {"name": name})
        for found in _gathered(rows).values():
            return found
        return None

    async def reread(self, tenant_ids: list[int]) -> dict[int, TenantPolicies]:
        """Read tenants that are known."""
        wanted = {"tenants": numbers(tenant_ids)}
        return _gathered(
            await self._database.query(f"{_TENANTS} WHERE t.tenant_id = ANY(%(tenants)s::int[])", wanted)
        )

    async def generation(self) -> tuple[int, str]:
        """Return the number that grows with every change, and the epoch."""
        rows = await self._database.query("SELECT generation, epoch FROM cluster_state")
        if not rows:
            raise StoreError("cluster_state has no row")
        generation, epoch = rows[0]
        return int(generation), str(epoch)


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
