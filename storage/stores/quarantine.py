"""Rejected items: read, retried and dropped by a person."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from engine.model.rows import Quarantined, QuarantineRef, Record, RecordKey
from engine.operate.ports import RefusedError
from engine.operate.rows import QuarantineCase, QuarantineSummary
from engine.wire.messages import ItemError
from engine.wire.timestamps import to_text
from storage.postgres.plain_bytes import plain_bytes
from storage.postgres.pool import Database
from storage.stores.admin_reads import OF_TENANT, find_one, list_of_tenant
from storage.stores.audit import by_account
from storage.stores.record_rows import RECORD_COLUMNS, record_of
from storage.stores.sealed.sealing import QUARANTINED, Sealing

_ITEMS: Final = (
    "SELECT t.name, q.quarantine_id, q.device_id, q.domain, q.record_id, q.code, q.message, q.at_us"
    f" FROM tenants AS t JOIN quarantine AS q ON q.tenant_id = t.tenant_id WHERE {OF_TENANT}"
    " ORDER BY t.name, q.at_us, q.place"
)
_ITEM_FIELDS: Final = Quarantined.__struct_fields__
_ITEM: Final = (
    f"SELECT t.name, {', '.join(f'q.{name}' for name in _ITEM_FIELDS)}, q.retried_at"
    " FROM tenants AS t JOIN quarantine AS q"
    " ON q.tenant_id = t.tenant_id AND q.quarantine_id >= %(id)s AND q.quarantine_id <= %(last)s"
    f" WHERE {OF_TENANT} ORDER BY t.name"
)
#: Those that were rejected because an earlier item of the device on the record was.
_BEHIND: Final = (
    f"SELECT {', '.join(_ITEM_FIELDS)} FROM quarantine AS q WHERE q.tenant_id = %(tenant)s"
    " AND q.device_id = %(device)s AND q.domain = %(domain)s AND q.record_id = %(record)s"
    " AND q.code = 'creation_rejected' AND q.place >"
    " (SELECT place FROM quarantine WHERE tenant_id = %(tenant)s AND quarantine_id = %(id)s)"
    " ORDER BY q.place"
)
_RETRIED: Final = (
    "UPDATE quarantine SET retried_at = now(),"
    " code = CASE WHEN %(corrected)s AND code = 'creation_rejected' THEN code ELSE %(code)s END,"
    " message = CASE WHEN %(corrected)s AND code = 'creation_rejected' THEN message ELSE %(message)s END"
    " WHERE tenant_id = %(tenant)s AND quarantine_id = %(id)s"
)
_DROP: Final = (
    "DELETE FROM quarantine WHERE tenant_id = %(tenant)s AND quarantine_id = %(id)s"
    f" RETURNING {plain_bytes('item')}"
)
_RECORD: Final = (
    f"SELECT {RECORD_COLUMNS} FROM records AS r"
    " WHERE r.tenant_id = %(tenant)s AND r.domain = %(domain)s AND r.id = %(id)s"
)


class PostgresQuarantine:
    """What ``engine.operate.ports.QuarantineAdmin`` reads and writes, but for retries."""

    def __init__(self, database: Database, sealing: Sealing) -> None:
        self._database = database
        self._sealing = sealing

    async def items(self, tenant: str | None) -> list[QuarantineSummary]:
        """List items by tenant, oldest first."""
        rows = await list_of_tenant(self._database, _ITEMS, tenant)
        return [QuarantineSummary(*(*row, to_text(at_us))) for *row, at_us in rows]

    async def find(self, quarantine_id: str, tenant: str | None) -> QuarantineCase:
        """Find an item."""
        what = "item in the quarantine"
        name, *columns, retried_at = await find_one(self._database, _ITEM, quarantine_id, tenant, what)
        (row,) = await self._sealing.opened([columns], self._quarantined)
        return QuarantineCase(name, row, retried_at)

    async def behind(self, row: Quarantined) -> list[Quarantined]:
        """List the items that were rejected because this one was, in the order in which they came."""
        if row.code == "creation_rejected":
            return []
        values = {
            "tenant": row.tenant_id,
            "device": row.device_id,
            "domain": row.domain,
            "record": row.record_id,
            "id": row.quarantine_id,
        }
        return await self._sealing.opened(
            await self._database.query(_BEHIND, values, [row.tenant_id]), self._quarantined
        )

    async def record(self, row: Quarantined) -> Record | None:
        """Find the record of an item as it stands now."""
        if row.domain is None or row.record_id is None:
            return None
        key = RecordKey(row.tenant_id, row.domain, row.record_id)
        values = {"tenant": key.tenant_id, "domain": key.domain, "id": key.id}
        found = await self._database.query(_RECORD, values, [key.tenant_id])
        rows = await self._sealing.opened(found, lambda columns: record_of(key, columns, self._sealing))
        return rows[0] if rows else None

    async def note_retry(self, item: QuarantineRef, error: ItemError, *, corrected: bool) -> None:
        """Note that a retry was rejected just now, and why.

        An item that waits for the retry of another one (``creation_rejected``) keeps that code if
        ``corrected`` data was at fault, since that data is not kept.
        """
        values = {
            "corrected": corrected,
            "code": error.code,
            "message": error.message,
            "tenant": item.tenant_id,
            "id": item.quarantine_id,
        }
        await self._database.execute(_RETRIED, values, tenants=[item.tenant_id])

    async def note_shown(self, case: QuarantineCase, *, revealed: bool) -> None:
        """Write the event of an item that is shown."""
        row = case.row
        details = {"domain": row.domain, "record_id": row.record_id, "revealed": revealed}
        async with self._database.transaction() as transaction:
            await transaction.note(
                by_account("data_shown", row.quarantine_id, case.tenant, row.tenant_id, details)
            )

    async def drop(self, case: QuarantineCase) -> None:
        """Delete an item. Batches lock the counter first, and so does this: a retry is before or after."""
        row = case.row
        item = {"tenant": row.tenant_id, "id": row.quarantine_id}
        async with self._database.transaction(tenants=[row.tenant_id]) as transaction:
            await transaction.query(
                "SELECT FROM tenant_counters WHERE tenant_id = %(tenant)s FOR UPDATE", item
            )
            gone = await transaction.query(_DROP, item)
            if not gone:
                raise RefusedError(
                    f"the item {row.quarantine_id} left the quarantine just now: nothing was dropped"
                )
            await transaction.query(
                "UPDATE tenant_counters SET quarantine_rows = quarantine_rows - 1,"
                " quarantine_bytes = quarantine_bytes - %(bytes)s WHERE tenant_id = %(tenant)s",
                item | {"bytes": gone[0][0]},
            )
            details = {"device_id": row.device_id, "domain": row.domain, "record_id": row.record_id}
            await transaction.note(
                by_account("quarantine_dropped", row.quarantine_id, case.tenant, row.tenant_id, details)
            )

    def _quarantined(self, columns: Iterable[Any]) -> Quarantined:
        named = dict(zip(_ITEM_FIELDS, columns, strict=True))
        item = self._sealing.open_text(
            QUARANTINED, named["tenant_id"], named["domain"], named["quarantine_id"], 0, named["item"]
        )
        assert item is not None
        return Quarantined(**(named | {"item": item.encode()}))
