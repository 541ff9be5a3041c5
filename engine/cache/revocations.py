"""Devices and tokens that are let in no more, in memory, so that nobody asks the store at a handshake."""

from __future__ import annotations

from collections.abc import Iterator

from engine.cache.device_health import DeviceKey
from engine.cache.ports import ANY_TENANT, DeviceStore, Revoked
from engine.runtime.metrics import Metric, gauge


class Revocations:
    """All devices some of whose tokens are refused, and all refused tokens, as of the last ``refresh``.

    Who follows the generation calls that.
    """

    def __init__(self, store: DeviceStore) -> None:
        self._store = store
        self._revoked = Revoked({}, set())

    @property
    def devices(self) -> int:
        """How many devices are revoked."""
        return sum(from_s is None for from_s in self._revoked.devices.values())

    @property
    def tokens(self) -> int:
        """How many tokens are revoked."""
        return len(self._revoked.tokens)

    def metrics(self) -> Iterator[Metric]:
        """Yield how much is refused."""
        yield gauge("tidemark_devices_revoked", "Devices that are refused", self.devices)
        yield gauge("tidemark_tokens_revoked", "Tokens that are refused", self.tokens)

    def refuses(self, key: tuple[int, str], token_id: str, issued_at_s: int | None) -> bool:
        """Tell whether a token is refused that a device shows.

        Args:
            key: The device, which is revoked, or was when the token was signed.
            token_id: The token's ``jti``.
            issued_at_s: When the token was signed; None if that is not known.
        """
        devices = self._revoked.devices
        if key in devices:
            from_s = devices[DeviceKey(*key)]
            if from_s is None or issued_at_s is None or issued_at_s < from_s:
                return True
        return self.refuses_token(key[0], token_id)

    def refuses_token(self, tenant_id: int, token_id: str) -> bool:
        """Tell whether a token is revoked by its ``jti``, whoever shows it."""
        tokens = self._revoked.tokens
        return (tenant_id, token_id) in tokens or (ANY_TENANT, token_id) in tokens

    async def refresh(self) -> bool:
        """Read the lists again and tell whether they say something else. Raises StoreError."""
        before, self._revoked = self._revoked, await self._store.revoked()
        return self._revoked != before
