"""A tenant, and the policies that are set for it."""

from __future__ import annotations

import msgspec

from engine.model.domains import DomainPolicy


class Reused(msgspec.Struct, frozen=True):
    """For a name that was used before: when its tenant was made, and when the one before was removed.

    Both are seconds since 1970 by the database's clock.
    """

    made_s: int
    removed_s: int


class Tenant(msgspec.Struct, frozen=True):
    """A customer. No tenant sees another's data. ``reused`` is None if the name had no tenant before."""

    tenant_id: int
    name: str
    reused: Reused | None = None


class TenantPolicies(msgspec.Struct, frozen=True):
    """A tenant and the policies that are set for it. All other domains have the default policy."""

    tenant: Tenant
    own: dict[str, DomainPolicy]
