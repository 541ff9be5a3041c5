"""The policies of tenants as an operator sees and sets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from engine.model.domains import DomainPolicy
from engine.operate.ports import NoTenantError, PolicyInForce, RefusedError
from storage.postgres.blocking import connected

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so


class PostgresPolicies:
    """``engine.operate.ports.Policies``. ``defaults`` has every record domain."""

    def __init__(self, dsn: str, defaults: Mapping[str, DomainPolicy]) -> None:
        self._dsn = dsn
        self._defaults = defaults

    def policies(self, tenant: str | None) -> list[PolicyInForce]:
        """List what is in force, of one tenant or of all."""
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT t.name, p.domain, p.policy, p.fallback FROM tenants AS t"
                " LEFT JOIN tenant_conflict_policy AS p ON p.tenant_id = t.tenant_id"
                " WHERE %(tenant)s::text IS NULL OR t.name = %(tenant)s ORDER BY t.name",
                {"tenant": tenant},
            )
            read = cursor.fetchall()
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

    def set(self, tenant: str, domain: str, policy: DomainPolicy) -> None:
        """Set a tenant's own policy, in one transaction that servers notice by the generation."""
        if domain not in self._defaults:
            raise self._unknown(domain)
        with connected(self._dsn) as connection, connection, connection.cursor() as cursor:
            tenant_id = _tenant_id(cursor, tenant)
            cursor.execute(
                "INSERT INTO tenant_conflict_policy AS p (tenant_id, domain, policy, fallback)"
                " VALUES (%s, %s, %s, %s) ON CONFLICT (tenant_id, domain) DO UPDATE SET policy ="
                " excluded.policy, fallback = excluded.fallback, updated_at = now(), updated_by = NULL",
                (tenant_id, domain, policy.policy, policy.fallback),
            )
            cursor.execute("UPDATE cluster_state SET generation = generation + 1")

    def unset(self, tenant: str, domain: str) -> bool:
        """Take back a tenant's own policy, also of a domain that the settings know no more."""
        with connected(self._dsn) as connection, connection, connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM tenant_conflict_policy WHERE tenant_id = %s AND domain = %s",
                (_tenant_id(cursor, tenant), domain),
            )
            if cursor.rowcount:
                cursor.execute("UPDATE cluster_state SET generation = generation + 1")
                return True
        if domain not in self._defaults:
            raise self._unknown(domain)
        return False

    def _unknown(self, domain: str) -> RefusedError:
        known = ", ".join(sorted(self._defaults))
        return RefusedError(f"there is no domain {domain} with conflicts: choose one of {known}")


def _tenant_id(cursor: Cursor, name: str) -> int:
    """Find a tenant and keep it from being removed for as long. Raises RefusedError."""
    cursor.execute("SELECT tenant_id FROM tenants WHERE name = %s FOR KEY SHARE", (name,))
    found = cursor.fetchall()
    if not found:
        raise NoTenantError(name)
    return int(found[0][0])


def _in_force(tenant: str, domain: str, policy: DomainPolicy, *, own: bool) -> PolicyInForce:
    fallback = policy.fallback if policy.policy == "field_merge" else None
    return PolicyInForce(tenant, domain, policy.policy, fallback, own)
