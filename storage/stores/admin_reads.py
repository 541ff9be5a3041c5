"""Reads that commands make of one tenant or of all, with the sentence where nothing is found."""

from __future__ import annotations

import re
from typing import Final

from engine.operate.ports import RefusedError
from storage.postgres.driver import Row
from storage.postgres.pool import Database
from storage.postgres.roles.named_tenants import of_tenant
from storage.stores.tenant_rows import check_tenant

#: Of ``tenants AS t``: the tenant of a command, or all. One probe of the key for each tenant.
OF_TENANT: Final = "(%(tenant)s::text IS NULL OR t.name = %(tenant)s)"

#: The beginning of an id that a server made. A shorter one would soon be that of several.
_BEGINNING: Final = re.compile(r"[0-9a-f]{4,31}\Z")


async def list_of_tenant(database: Database, statement: str, tenant: str | None, **values: int) -> list[Row]:
    """Run a statement with ``OF_TENANT`` and return its rows. Raises NoTenantError."""
    found = await database.query(statement, {"tenant": tenant, **values}, of_tenant(tenant))
    if not found:
        await check_tenant(database, tenant)
    return found


async def find_one(database: Database, statement: str, wanted: str, tenant: str | None, what: str) -> Row:
    """Find the row of an id.

    Args:
        database: Where it is looked for.
        statement: A statement with ``OF_TENANT`` and the range of ids ``id`` to ``last``; its first column is
            the name of the tenant.
        wanted: The id, or the beginning of one, if no other begins so.
        tenant: The name of its tenant; None is any.
        what: A noun for the sentence of the error.

    Raises:
        RefusedError: There is no row, or several tenants have one, or several ids begin so.
    """
    values = {"tenant": tenant, "id": wanted}
    found = await database.query(statement, values | {"last": wanted}, of_tenant(tenant))
    if not found and _BEGINNING.match(wanted):
        # After each id that begins so; they are hex digits. The limit is for beginnings of many ids.
        found = await database.query(
            f"{statement} LIMIT 2", values | {"last": wanted + "g"}, of_tenant(tenant)
        )
        if len(found) > 1:
            raise RefusedError(f"several ids begin with {wanted}: give more of it")
    if not found:
        await check_tenant(database, tenant)
        raise RefusedError(f"there is no {what} {wanted}{'' if tenant is None else f' of {tenant}'}")
    if len(found) > 1:
        names = ", ".join(str(row[0]) for row in found)
        raise RefusedError(f"several tenants have {wanted}: choose one with --tenant: {names}")
    return found[0]
