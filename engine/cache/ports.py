"""The store, as the caches use it. The docstrings state the duties of an implementation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

from engine.cache.device_health import DeviceKey, Health
from engine.model.minutes import Minute
from engine.model.telemetry import TelemetryRow
from engine.model.tenants import TenantPolicies
from engine.runtime.ports import StoreUnknownError
from engine.seal.master_keys import WrappedKey

#: The tenant_id of a revoked token that stands for every tenant.
ANY_TENANT: Final = 0


class TenantStore(Protocol):
    """Tenants and their policies."""

    async def find(self, name: str) -> TenantPolicies | None:
        """Find a tenant by name, in one round trip. Returns None if there is none. Raises StoreError."""

    async def reread(self, tenant_ids: list[int]) -> dict[int, TenantPolicies]:
        """Read tenants in one round trip; removed ones are left out. Raises StoreError."""

    async def newest(self, limit: int) -> list[int]:
        """Return the ids of the tenants added last, in one round trip. Raises StoreError."""

    async def generation(self) -> tuple[int, str]:
        """Return the number of the generation, and the epoch. Raises StoreError.

        The number grows with every change of policies or revocations. A restore may bring an old number back,
        but with another epoch.
        """


class StoredKeys(NamedTuple):
    """The data keys of a tenant by number; one of them is not retired. ``tenant_uuid`` is 16 bytes.

    ``newest`` is the highest number that the tenant ever had, 0 if it never had a key: without that key keys
    are lost.
    """

    tenant_id: int
    tenant_uuid: bytes
    keys: list[WrappedKey]
    newest: int


class KeyStore(Protocol):
    """Wrapped data keys of tenants. Every method raises StoreError."""

    async def read(self, tenant_ids: list[int]) -> dict[int, StoredKeys]:
        """Read the keys of tenants in one round trip; removed tenants are left out."""

    async def replace(
        self,
        tenant_id: int,
        before: WrappedKey | None,
        key: WrappedKey,
        given: Collection[str],
        *,
        reseal: bool = False,
    ) -> bool:
        """Store a new key that seals, and retire the one that did. Servers notice within a second.

        Args:
            tenant_id: The tenant.
            before: The key that seals until now; None for the first key.
            key: The new key.
            given: The ids of all master keys that the process has.
            reseal: Whether the job is to seal again what the tenant has stored.

        Returns:
            False, and nothing is stored, if another key seals by now or the tenant was removed.

        Raises:
            MasterKeyError: The master key of ``key`` is not in use yet, and one that is in use is not given.
        """

    async def lease(self, keys: Mapping[int, str], seals: int) -> set[int]:
        """Take a block of seals of each key, in one round trip; on return it is durable.

        Args:
            keys: The ids of the keys, by tenant.
            seals: How many of each.

        Returns:
            The tenants that got one. Any other key is retired, or has not so many left of ``MOST_SEALS``.
        """


class HealthUnknownError(StoreUnknownError):
    """The outcome of a COMMIT of health is unknown. ``DeviceStore.stored`` tells it by the receipt."""

    def __init__(self, receipt: str) -> None:
        super().__init__("the commit of health was not confirmed")
        self.receipt = receipt


class Revoked(msgspec.Struct, frozen=True):
    """The revoked devices and tokens.

    - ``devices``: None if all tokens of the device are refused, or the Unix time in seconds before which a
      token must have been signed to be refused.
    - ``tokens``: pairs of tenant_id, or ``ANY_TENANT``, and ``jti``.
    """

    devices: dict[DeviceKey, int | None]
    tokens: set[tuple[int, str]]


class DeviceStore(Protocol):
    """Health of devices, summed over all processes, and revocations."""

    async def health(self, keys: list[DeviceKey]) -> list[Health]:
        """Read several devices at once; devices without a row are left out. Raises StoreError."""

    async def latest(self, limit: int) -> list[Health]:
        """Read the devices that synced last, the latest first. Raises StoreError."""

    async def introduce(self, keys: list[DeviceKey], most: int) -> set[DeviceKey]:
        """Make a row for each device that has none, while its tenant has fewer than ``most`` devices.

        Exact over all processes. A call may be repeated. It writes and locks nothing if all have a row, or
        there is no room for the others.

        Args:
            keys: Each device once, in ascending order.
            most: The most devices of a tenant.

        Returns:
            Those for which there was no room.

        Raises:
            StoreError: Rows may have been made, or not.
        """

    async def add(self, changes: list[Health]) -> None:
        """Add to the stored counts, all or nothing.

        A device that is ``seen`` gets a row if it has none. A device of a removed tenant is skipped.

        Args:
            changes: Each device once, in ascending order of keys.

        Raises:
            HealthUnknownError: All of it may have been stored.
            StoreError: Nothing was stored.
        """

    async def stored(self, receipt: str) -> bool | None:
        """Return whether an ``add`` was stored, by its receipt; None while it is open. Raises StoreError."""

    async def revoked(self) -> Revoked:
        """Read all revocations, in one round trip. Raises StoreError."""


class MinuteRow(NamedTuple):
    """A minute of a tenant as one process counted it so far. ``process`` is 32 hex digits."""

    tenant_id: int
    start_us: int
    process: str
    minute: Minute


class MinuteStore(Protocol):
    """Minutes of all processes."""

    async def put(self, rows: list[MinuteRow]) -> None:
        """Store minutes; each replaces what was stored of it, so that a call may be repeated.

        A minute of a removed tenant is skipped. The values are read before the first wait, so that counting
        may go on meanwhile. Raises StoreError.
        """


#: ``stored`` now, or ``replayed``: stored before. Else refused: the key was ``reused`` for other contents,
#: the device has all ``parts`` of the hour, there is no room for its ``names``, or the tenant was removed.
TelemetryOutcome = Literal["stored", "replayed", "reused", "parts", "names", "no_tenant"]


class TelemetryStore(Protocol):
    """Telemetry of devices, of all processes."""

    async def put(self, rows: Sequence[TelemetryRow]) -> list[TelemetryOutcome]:
        """Store messages, each once: by hour, device and key, over all processes.

        What is ``stored`` or ``replayed`` is durable on return. A call may be repeated. Processes may store
        messages of the same device at the same time. Raises StoreError; then each may be stored, or not.
        """
