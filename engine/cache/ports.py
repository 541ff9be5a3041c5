"""What the caches need of the store. The docstrings state the duty of whoever fulfils them."""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from engine.cache.device_health import DeviceKey, Health
from engine.model.tenants import TenantPolicies
from engine.runtime.ports import StoreUnknownError

#: Of revoked tokens: stands for every tenant.
ANY_TENANT: Final = 0


class TenantStore(Protocol):
    """Tenants and their policies."""

    async def find(self, name: str) -> TenantPolicies | None:
        """Find a tenant by name, in one round trip."""

    async def reread(self, tenant_ids: list[int]) -> dict[int, TenantPolicies]:
        """Read tenants in one round trip; those that are no more are missing."""

    async def generation(self) -> tuple[int, str]:
        """Return the number that grows with every change of policies or revocations, and the epoch.

        A restore may bring an old number back; the epoch then tells the two apart.
        """


class HealthUnknownError(StoreUnknownError):
    """COMMIT of health was sent and its outcome is not known; ``DeviceStore.stored`` tells by the receipt."""

    def __init__(self, receipt: str) -> None:
        super().__init__("the commit of health was not confirmed")
        self.receipt = receipt


class Revoked(msgspec.Struct, frozen=True):
    """What is refused, each with its tenant_id: devices, and tokens by their ``jti``.

    Of a device None refuses all tokens, a second those that were signed before it.
    """

    devices: dict[DeviceKey, int | None]
    tokens: set[tuple[int, str]]


class DeviceStore(Protocol):
    """Devices as all processes together know them."""

    async def health(self, keys: list[DeviceKey]) -> list[Health]:
        """Read several devices at once; those without a row are left out. Raises StoreError."""

    async def latest(self, limit: int) -> list[Health]:
        """Read those that synced last, the latest first. Raises StoreError."""

    async def add(self, changes: list[Health]) -> None:
        """Add to the stored counts, all or nothing, each device once and in ascending order of keys.

        A device is written down when it was ``seen``, also one that is new; one of a tenant that is no
        more is skipped. Raises HealthUnknownError when all of it may have been written; with any other
        StoreError nothing was.
        """

    async def stored(self, receipt: str) -> bool | None:
        """Say whether an ``add`` of unknown outcome was written, None while it is open. Raises StoreError."""

    async def revoked(self) -> Revoked:
        """List what is refused, in one round trip. Raises StoreError."""
