"""Rows that several subjects need: a tenant by its name, and the generation that servers watch."""

from __future__ import annotations

from typing import Protocol

from engine.operate.ports import NoTenantError
from storage.postgres.driver import Row, Values
from storage.postgres.roles.named_tenants import NOBODY, Tenants
from storage.postgres.transactions import Transaction


class Reader(Protocol):
    """Runs a read: a ``Database`` in a transaction of its own, a ``Transaction`` in itself."""

    async def query(
        self, statement: str, values: Values | None = None, tenants: Tenants = NOBODY, /
    ) -> list[Row]:
        """Return the rows of a statement. Raises StoreError."""


async def tenant_id_of(reader: Reader, name: str, lock: str = "") -> int:
    """Find a tenant by its name.

    Args:
        reader: Where it is looked for.
        name: The name.
        lock: A lock on its row until the transaction ends, such as ``FOR KEY SHARE``.

    Raises:
        NoTenantError: There is none.
    """
    found = await reader.query(f"SELECT tenant_id FROM tenants WHERE name = %(name)s {lock}", {"name": name})
    if not found:
        raise NoTenantError(name)
    return int(found[0][0])


async def check_tenant(reader: Reader, name: str | None) -> None:
    """See that there is a tenant of that name; None is any. Raises NoTenantError."""
    if name is not None:
        await tenant_id_of(reader, name)


async def advance_generation(transaction: Transaction) -> None:
    """Make every server read tenants, policies and revocations again, within a second."""
    await transaction.query("UPDATE cluster_state SET generation = generation + 1")
