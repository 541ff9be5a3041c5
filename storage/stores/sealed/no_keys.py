"""The keys of a process that has no master key."""

from __future__ import annotations

from collections.abc import Collection

from engine.runtime.ports import StoreUnreadableError
from engine.seal.ports import KeysMissingError
from engine.seal.sealer import TenantKeys


class NoKeys:
    """``engine.seal.ports.KeyRing`` of a process without a master key."""

    def keys_of(self, tenant_id: int) -> TenantKeys:
        """Raise KeysMissingError."""
        raise KeysMissingError(tenant_id)

    sealing_keys_of = keys_of

    async def load(self, _: Collection[int]) -> None:
        """Raise StoreUnreadableError, with the remedy."""
        raise StoreUnreadableError(
            "the database has sealed data, and there is no master key: set sealing.master_key_file"
        )

    load_to_seal = load
