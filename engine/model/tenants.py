"""A customer, and the policies that are set for it."""

from __future__ import annotations

import msgspec

from engine.model.domains import DomainPolicy


class Reused(msgspec.Struct, frozen=True):
    """When the tenant of a used name was made, and when the last tenant of the name was removed before that.

    Both in seconds since 1970, by the database's clock.
    """

    made_s: int
    removed_s: int


class Tenant(msgspec.Struct, frozen=True):
    """A customer: the wall that nothing crosses. ``reused`` is None for a name that no other tenant had."""

    tenant_id: int
    name: str
    reused: Reused | None = None


class TenantPolicies(msgspec.Struct, frozen=True):
    """A tenant and the policies set for it; domains that are missing follow the defaults."""

    tenant: Tenant
    own: dict[str, DomainPolicy]
