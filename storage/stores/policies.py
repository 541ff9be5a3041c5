"""The policies of tenants as an operator sees and sets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from engine.model.domains import DomainPolicy
from engine.operate.ports import NoTenantError, RefusedError
from engine.operate.rows import PolicyInForce
from storage.postgres.pool import Database
from storage.postgres.roles.named_tenants import of_tenant
from storage.stores.audit import by_account
from storage.stores.tenant_rows import advance_generation, tenant_id_of

#: Keeps a tenant from being removed until the transaction ends.
_STAYS: Final = "FOR KEY SHARE"
_OWN: Final = "SELECT policy FROM tenant_conflict_policy WHERE tenant_id = %(tenant)s AND domain = %(domain)s"


class PostgresPolicies:
    """``engine.operate.ports.PolicyAdmin``. ``defaults`` has every record domain."""

    def __init__(self, database: Database, defaults: Mapping[str, DomainPolicy]) -> None:
        self._database = database
        self._defaults = defaults

    async def policies(self, tenant: str | None) -> list[PolicyInForce]:
        """List what is in force, of one tenant or of all."""
        read = await self._database.query(
            "SELECT t.name, p.domain, p.policy, p.fallback FROM tenants AS t"
            " LEFT JOIN tenant_conflict_policy AS p ON p.tenant_id = t.tenant_id"
            " WHERE %(tenant)s::text IS NULL OR t.name = %(tenant)s ORDER BY t.name",
            {"tenant": tenant},
            of_tenant(tenant),
        )
        if tenant is not None and not read:
            raise NoTenantError(tenant)
        own: dict[str, dict[str, DomainPolicy]] = {}
        for name, domain, policy, fallback in read:
            chosen = own.setdefault(name, {})
            if domain is not None:
                chosen[domain] = msgspec.convert({"policy": policy, "fallback": fallback}, DomainPolicy)
        return [
            _in_force(name, domain, one, own=domain in chosen)
            for name, chosen in own.items()
            for domain, one in sorted({**self._defaults, **chosen}.items())
        ]

    async def set(self, tenant: str, domain: str, policy: DomainPolicy) -> None:
        """Set a tenant's own policy, in one transaction that servers notice by the generation."""
        if domain not in self._defaults:
            raise self._unknown(domain)
        async with self._database.transaction(tenants=tenant) as transaction:
            tenant_id = await tenant_id_of(transaction, tenant, _STAYS)
            key = {"tenant": tenant_id, "domain": domain}
            before = await transaction.query(_OWN, key)
            await transaction.query(
                "INSERT INTO tenant_conflict_policy AS p (tenant_id, domain, policy, fallback)"
                " VALUES (%(tenant)s, %(domain)s, %(policy)s, %(fallback)s) ON CONFLICT (tenant_id, domain)"
                " DO UPDATE SET policy = excluded.policy, fallback = excluded.fallback,"
                " updated_at = excluded.updated_at, updated_by = NULL",
                {**key, "policy": policy.policy, "fallback": policy.fallback},
            )
            details = {
                "policy": policy.policy,
                "fallback": policy.fallback,
                "before": before[0][0] if before else None,
            }
            await transaction.note(by_account("policy_set", domain, tenant, tenant_id, details))
            await advance_generation(transaction)

    async def unset(self, tenant: str, domain: str) -> bool:
        """Take back a tenant's own policy, also of a domain that the settings know no longer."""
        async with self._database.transaction(tenants=tenant) as transaction:
            tenant_id = await tenant_id_of(transaction, tenant, _STAYS)
            removed = await transaction.query(
                "DELETE FROM tenant_conflict_policy WHERE tenant_id = %(tenant)s AND domain = %(domain)s"
                " RETURNING 1",
                {"tenant": tenant_id, "domain": domain},
            )
            if removed:
                await transaction.note(by_account("policy_unset", domain, tenant, tenant_id))
                await advance_generation(transaction)
        if not removed and domain not in self._defaults:
            raise self._unknown(domain)
        return bool(removed)

    def _unknown(self, domain: str) -> RefusedError:
        known = ", ".join(sorted(self._defaults))
        return RefusedError(f"there is no domain {domain} with conflicts: choose one of {known}")


def _in_force(tenant: str, domain: str, policy: DomainPolicy, *, own: bool) -> PolicyInForce:
    fallback = policy.fallback if policy.policy == "field_merge" else None
    return PolicyInForce(tenant, domain, policy.policy, fallback, own)
