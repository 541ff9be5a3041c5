"""Where the keys of tenants come from. The docstrings state the duties of an implementation."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from engine.seal.sealer import SealError, TenantKeys


class KeysMissingError(SealError):
    """The keys of a tenant are not in memory: ``load`` them."""

    def __init__(self, tenant_id: int) -> None:
        super().__init__(f"the keys of tenant {tenant_id} are not in memory")
        self.tenant_id = tenant_id


class KeyRing(Protocol):
    """The keys of tenants, in memory."""

    def keys_of(self, tenant_id: int) -> TenantKeys:
        """Return the keys of a tenant, without a wait. Raises KeysMissingError."""

    async def load(self, tenant_ids: Collection[int]) -> None:
        """Read tenants' keys, again if they are in memory: another process may have made a new one.

        Afterwards ``keys_of`` knows each of these tenants that exists; one without a key has got its first.
        Raises StoreError.
        """
