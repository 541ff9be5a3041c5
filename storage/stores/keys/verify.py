"""Opens what tenants have stored, and names what cannot be opened: the command ``keys verify``."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Final, NamedTuple

import msgspec

from engine.model.rows import IdempotencyKey
from engine.operate.ports import NoTenantError
from engine.operate.rows import UnreadableValue
from storage.postgres.driver import Row
from storage.postgres.pool import Database
from storage.stores.held_changes import StoredChange, changes_in_steps
from storage.stores.keys.reseal_statements import (
    LISTED,
    PAGE_SETTINGS,
    SealedPages,
    flags_of,
    key_of,
    own_of,
    sealed_pages_of,
    stored_of,
    unreadable_value,
)
from storage.stores.keys.sealed_columns import SEALED_TABLES, SealedColumn, SealedTable
from storage.stores.sealed.answers import open_answer
from storage.stores.sealed.sealing import Sealing, UnreadableValueError

#: Rows of one read.
PAGE_ROWS: Final = 200
_TENANTS: Final = (
    "SELECT tenant_id, name FROM tenants WHERE %(name)s::text IS NULL OR name = %(name)s ORDER BY name"
)
#: A pass that is under way counts for itself, and its figures stay.
_NOTE_NONE: Final = (
    "UPDATE reseal_passes SET unreadable_values = 0, unreadable = '[]'"
    " WHERE tenant_id = %(tenant)s::int AND began_at IS NULL"
)
_NOTE: Final = (
    "INSERT INTO reseal_passes AS p (tenant_id, unreadable_values, unreadable)"
    " VALUES (%(tenant)s::int, %(count)s::bigint, %(listed)s::jsonb) ON CONFLICT (tenant_id) DO UPDATE"
    " SET unreadable_values = excluded.unreadable_values, unreadable = excluded.unreadable"
    " WHERE p.began_at IS NULL"
)
_PAGES: Final[tuple[tuple[SealedTable, SealedPages], ...]] = tuple(
    (table, sealed_pages_of(table)) for table in SEALED_TABLES
)
_decode_changes: Final = msgspec.json.Decoder(list[StoredChange]).decode
_encode: Final = msgspec.json.encode


class Verified(NamedTuple):
    """Rows with sealed values that were opened or tried, rows that cannot be opened, the first hundred."""

    rows: int
    unreadable_values: int
    unreadable: list[UnreadableValue]


class PostgresVerify:
    """Opens every sealed value of a tenant; nothing but the figures of ``reseal_passes`` is written.

    Args:
        database: The database.
        sealing: Opens.
        page_rows: Rows of one read.
    """

    def __init__(self, database: Database, sealing: Sealing, page_rows: int = PAGE_ROWS) -> None:
        self._database = database
        self._sealing = sealing
        self._page_rows = page_rows

    async def tenants(self, name: str | None) -> list[tuple[int, str]]:
        """List the number and name of one tenant, or of all. Raises NoTenantError, StoreError."""
        found = await self._database.query(_TENANTS, {"name": name})
        if name is not None and not found:
            raise NoTenantError(name)
        return [(int(number), str(one)) for number, one in found]

    async def verify(self, tenant_id: int, watch: Callable[[int], None]) -> Verified:
        """Open all sealed values of a tenant, and note which cannot be opened for ``status`` and doctor.

        Args:
            tenant_id: The tenant.
            watch: Is told how many rows were looked at.

        Raises:
            StoreError: The database is away, or the tenant's keys cannot be read.
        """
        looked = opened = count = 0
        listed: list[UnreadableValue] = []
        for table, pages in _PAGES:
            statement, after = pages.first_page, dict[str, object]()
            while True:
                values = {"tenant": tenant_id, "limit": self._page_rows, **after}
                rows = await self._database.execute(statement, values, PAGE_SETTINGS, [tenant_id])
                if not rows:
                    break
                last = key_of(table, rows[-1])
                statement, after = pages.page, {f"a{at}": text for at, text in enumerate(last)}
                unreadable: list[Row] = []
                due = [row for row in rows if any(flags_of(table, row))]
                await self._sealing.opened(
                    due, partial(_opened, self._sealing, table, tenant_id), unreadable.append
                )
                looked, opened, count = looked + rows[0][0], opened + len(due), count + len(unreadable)
                room = max(0, LISTED - len(listed))
                listed += [unreadable_value(table, row) for row in unreadable[:room]]
                watch(looked)
        noted = {"tenant": tenant_id, "count": count, "listed": _encode(listed).decode()}
        await self._database.execute(_NOTE if count else _NOTE_NONE, noted, tenants=[tenant_id])
        return Verified(opened, count, listed)


def _opened(sealing: Sealing, table: SealedTable, tenant_id: int, row: Row) -> Generator[None, None, None]:
    """Open the sealed values of a row; yield where the loop is to be given back. Raises as ``open``."""
    domain, value_id, version = own_of(table, row)
    own = tenant_id, domain, value_id, version
    flags, values = flags_of(table, row), stored_of(table, row)
    for column, is_sealed, stored in zip(table.columns, flags, values, strict=True):
        if is_sealed and stored is not None:
            try:
                yield from _open_value(sealing, column, own, stored)
            except msgspec.DecodeError as error:
                sentence = f"{column.place} of {domain} {value_id}: {error}"
                raise UnreadableValueError(tenant_id, sentence) from None
            if sealing.slice_is_full():
                yield


def _open_value(
    sealing: Sealing, column: SealedColumn, own: tuple[int, str | None, str, int], stored: str
) -> Generator[None, None, None]:
    tenant_id, domain, value_id, version = own
    if column.form == "text":
        sealing.open_text(column.place, *own, stored)
        return
    assert domain is not None
    if column.form == "answer":
        open_answer(sealing, IdempotencyKey(tenant_id, value_id), stored)
    elif column.form == "changes":
        yield from changes_in_steps(_decode_changes(stored), sealing, (tenant_id, domain, value_id))
    else:
        sealing.open(column.place, tenant_id, domain, value_id, version, stored)
