"""Tenants, their policies, and the number that grows when either changes."""

from __future__ import annotations

import msgspec

from engine.domains import DomainPolicy
from engine.ports import StoreError, Tenant
from storage.pool import Database


class PostgresTenants:
    """``engine.ports.TenantStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tenant(self, name: str) -> Tenant | None:
        """Find a tenant by name."""
        rows = await self._database.query(
            "SELECT tenant_id, name FROM tenants WHERE name = %(name)s", {"name": name}
        )
        return Tenant(*rows[0]) if rows else None

    async def policies(self, tenant_id: int) -> dict[str, DomainPolicy]:
        """Return the policies set for the tenant."""
        rows = await self._database.query(
            "SELECT domain, policy, fallback FROM tenant_conflict_policy WHERE tenant_id = %(tenant)s",
            {"tenant": tenant_id},
        )
        return {
            domain: msgspec.convert({"policy": policy, "fallback": fallback}, DomainPolicy)
            for domain, policy, fallback in rows
        }

    async def generation(self) -> tuple[int, str]:
        """Return the number that grows with every change, and the epoch."""
        rows = await self._database.query("SELECT generation, epoch FROM cluster_state")
        if not rows:
            raise StoreError("cluster_state has no row")
        generation, epoch = rows[0]
        return int(generation), str(epoch)
