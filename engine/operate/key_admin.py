"""The keys of sealed data, as operators ask for them and rotate them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from engine.operate.rows import KeyStatus, MasterRotation, TenantKeyState, TenantVerification

Watch = Callable[[str], None]


def missing_keys(one: TenantKeyState) -> str:
    """Return the sentence on the keys of a tenant that are missing from the database."""
    named = ", ".join(map(str, one.missing_keys))
    return f"keys missing from tenant_keys, without which what they sealed cannot be read: {named}"


def unreadable_values(one: TenantKeyState | TenantVerification) -> str:
    """Return the sentence on the values of a tenant that cannot be opened."""
    named = ", ".join(f"{value.table} {value.domain or '-'} {value.id}" for value in one.unreadable)
    more = one.unreadable_values - len(one.unreadable)
    behind = f" and {more} more" if more > 0 else ""
    return f"sealed values that cannot be opened: {one.unreadable_values} ({named}{behind})"


class KeyAdmin(Protocol):
    """Keys of sealed data. Every method raises StoreError."""

    async def status(self) -> KeyStatus:
        """Return master keys, sealed domains, and the keys of tenants."""

    async def verify(self, tenant: str | None, watch: Watch) -> list[TenantVerification]:
        """Open every sealed value of a tenant, or of all for None. What cannot be opened is noted.

        Args:
            tenant: Its name.
            watch: Is told how far it is.

        Raises:
            RefusedError: There is no such tenant, or no master key can be read.
        """

    async def rotate_master(self, watch: Watch) -> MasterRotation:
        """Wrap the keys of all tenants by the first master key of the settings.

        The embedded default makes a new master key for it. It may be repeated, as after a kill.

        Args:
            watch: Is told how far it is.

        Raises:
            RefusedError: There is no new master key, one is missing, or a server does not have it.
        """

    async def rotate_tenant(self, tenant: str) -> int:
        """Make a new key that seals for a tenant; the job ``reseal`` then seals old values again.

        Returns:
            The number of the new key.

        Raises:
            RefusedError: There is no such tenant, or no master key.
        """

    async def seal_domain(self, domain: str) -> datetime | None:
        """Switch the sealing of a domain on; the job ``reseal`` then seals what is stored.

        Returns:
            Since when it was on already; None if it was not.

        Raises:
            RefusedError: The domain names no ``pii`` fields, there is no master key, or a server runs that
                is of an older version or does not have it.
        """
