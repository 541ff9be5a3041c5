"""Devices that are let in no more, in memory, so that nobody asks the store at a handshake."""

from __future__ import annotations

from engine.health import DeviceKey
from engine.ports import DeviceStore


class Revocations:
    """All revoked devices, as of the last ``refresh``; who follows the generation calls that."""

    def __init__(self, store: DeviceStore) -> None:
        self._store = store
        self._revoked: set[DeviceKey] = set()

    def __len__(self) -> int:
        """How many devices are revoked."""
        return len(self._revoked)

    def __contains__(self, key: tuple[int, str]) -> bool:
        """Whether a device was revoked."""
        return key in self._revoked

    async def refresh(self) -> set[DeviceKey]:
        """Read the list again and return those that are new on it. Raises StoreError."""
        revoked = await self._store.revoked()
        new = revoked - self._revoked
        self._revoked = revoked
        return new
