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
        """Return the keys of a tenant to open values, without a wait. Raises KeysMissingError."""

    def sealing_keys_of(self, tenant_id: int) -> TenantKeys:
        """Return the keys of a tenant to seal values, without a wait.

        Raises:
            KeysMissingError: They are not in memory, or may seal too few values more: ``load_to_seal``.
        """

    async def load(self, tenant_ids: Collection[int]) -> None:
        """Read tenants' keys, again if they are in memory: another process may have made a new one.

        It writes nothing: values are opened also where nothing can be written. Afterwards ``keys_of`` knows
        each of these tenants that has a key. Raises StoreError.
        """

    async def load_to_seal(self, tenant_ids: Collection[int]) -> None:
        """Read tenants' keys, make first ones, and have them ready to seal.

        Afterwards ``sealing_keys_of`` knows each of these tenants that exists. Raises StoreError.
        """
