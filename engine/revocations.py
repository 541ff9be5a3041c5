"""Devices that are let in no more, or with newer tokens alone: in memory, so that no handshake reads."""

from __future__ import annotations

from engine.health import DeviceKey
from engine.ports import DeviceStore


class Revocations:
    """All devices some of whose tokens are refused, as of the last ``refresh``.

    Who follows the generation calls that.
    """

    def __init__(self, store: DeviceStore) -> None:
        self._store = store
        self._tokens_from_s: dict[DeviceKey, int | None] = {}

    def __len__(self) -> int:
        """How many devices are revoked."""
        return sum(from_s is None for from_s in self._tokens_from_s.values())

    def refuses(self, key: tuple[int, str], issued_at_s: int | None) -> bool:
        """Tell whether a device is revoked, or was when the token was signed; None is not known when."""
        if key not in self._tokens_from_s:
            return False
        from_s = self._tokens_from_s[DeviceKey(*key)]
        return from_s is None or issued_at_s is None or issued_at_s < from_s

    async def refresh(self) -> set[DeviceKey]:
        """Read the list again and return those of whom it says something else. Raises StoreError."""
        before, self._tokens_from_s = self._tokens_from_s, await self._store.revoked()
        return {key for key, from_s in self._tokens_from_s.items() if before.get(key, 0) != from_s}
