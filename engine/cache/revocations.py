"""Revoked devices and tokens in memory, so that no handshake asks the store."""

from __future__ import annotations

from collections.abc import Iterator

from engine.cache.device_health import DeviceKey
from engine.cache.ports import ANY_TENANT, DeviceStore, Revoked
from engine.runtime.metrics import Metric, gauge


class Revocations:
    """All revocations as of the last ``refresh``, which is called whenever the generation changed."""

    def __init__(self, store: DeviceStore) -> None:
        self._store = store
        self._revoked = Revoked({}, set())

    @property
    def devices(self) -> int:
        """The number of revoked devices."""
        return sum(from_s is None for from_s in self._revoked.devices.values())

    @property
    def tokens(self) -> int:
        """The number of revoked tokens."""
        return len(self._revoked.tokens)

    def metrics(self) -> Iterator[Metric]:
        """Yield the numbers of revoked devices and tokens."""
        yield gauge("tidemark_devices_revoked", "Devices that are refused", self.devices)
        yield gauge("tidemark_tokens_revoked", "Tokens that are refused", self.tokens)

    def refuses(self, key: tuple[int, str], token_id: str, issued_at_s: int | None) -> bool:
        """Return True if a device's token is refused: the token or the device is revoked.

        Args:
            key: The device.
            token_id: The token's ``jti``.
            issued_at_s: When the token was signed, as Unix time; None if unknown.
        """
        devices = self._revoked.devices
        if key in devices:
            from_s = devices[DeviceKey(*key)]
            if from_s is None or issued_at_s is None or issued_at_s < from_s:
                return True
        return self.refuses_token(key[0], token_id)

    def refuses_token(self, tenant_id: int, token_id: str) -> bool:
        """Return True if a token is revoked by its ``jti``, whatever device it is of."""
        tokens = self._revoked.tokens
        return (tenant_id, token_id) in tokens or (ANY_TENANT, token_id) in tokens

    async def refresh(self) -> bool:
        """Read the revocations again. Returns True if they changed. Raises StoreError."""
        before, self._revoked = self._revoked, await self._store.revoked()
        return self._revoked != before
