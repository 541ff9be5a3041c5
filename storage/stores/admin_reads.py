"""What waits for a person, read for commands: conflicts and rejected items, of one tenant or of all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from engine.model.rows import Quarantined, QuarantineRef, Record, RecordKey
from engine.operate.ports import (
    ConflictCase,
    ConflictSummary,
    NoTenantError,
    QuarantineCase,
    QuarantineSummary,
    RefusedError,
)
from engine.wire.messages import ItemError
from engine.wire.timestamps import to_text
from storage.postgres.blocking import connected
from storage.stores.stored_conflict import decode_conflict

if TYPE_CHECKING:
    from psycopg2.extensions import cursor as Cursor  # noqa: N812  # a class that the driver spells so

#: One probe of the key for each tenant.
_OF_TENANT: Final = "(%(tenant)s::text IS NULL OR t.name = %(tenant)s)"
_SUMMARY: Final = (
    "SELECT t.name, c.conflict_id, c.domain, c.record_id, c.device_id, c.policy,"
    " CASE WHEN c.client_changes IS NULL THEN c.client_op"
    " WHEN c.client_changes->0->>'op' = 'delete' AND json_array_length(c.client_changes) > 1 THEN 'put'"
    " ELSE c.client_changes->0->>'op' END,"
    " CASE WHEN c.client_changes IS NULL THEN c.client_base"
    " ELSE (c.client_changes->0->>'base')::bigint END,"
    " c.server_version, c.client_count, c.opened_at_us, c.outcome, c.settled_by,"
    " CASE WHEN c.outcome <> 'open' THEN coalesce(c.settled_at_us, c.opened_at_us) END FROM tenants AS t"
)
_CONFLICTS: Final = (
    f"{_SUMMARY} JOIN conflict_resolution_log AS c"
    f" ON c.tenant_id = t.tenant_id AND c.outcome = 'open' WHERE {_OF_TENANT}"
    " ORDER BY t.name, c.opened_at_us, c.conflict_id"
)
_SETTLED: Final = (
    f"{_SUMMARY} CROSS JOIN LATERAL (SELECT * FROM conflict_resolution_log"
    " WHERE tenant_id = t.tenant_id AND outcome NOT IN ('open', 'held')"
    " ORDER BY opened_at_us DESC, conflict_id DESC LIMIT %(limit)s) AS c"
    f" WHERE {_OF_TENANT} ORDER BY t.name, c.opened_at_us DESC, c.conflict_id DESC"
)
_CONFLICT: Final = (
    "SELECT t.name, row_to_json(c)::text, r.version, r.seq, r.at_us, r.device_id, r.chain_from, r.data::text,"
    " r.last_data::text FROM tenants AS t JOIN conflict_resolution_log AS c"
    " ON c.tenant_id = t.tenant_id AND c.conflict_id = %(id)s LEFT JOIN records AS r"
    " ON r.tenant_id = c.tenant_id AND r.domain = c.domain AND r.id = c.record_id"
    f" WHERE {_OF_TENANT} ORDER BY t.name"
)
_ITEMS: Final = (
    "SELECT t.name, q.quarantine_id, q.device_id, q.domain, q.record_id, q.code, q.message, q.at_us"
    f" FROM tenants AS t JOIN quarantine AS q ON q.tenant_id = t.tenant_id WHERE {_OF_TENANT}"
    " ORDER BY t.name, q.at_us, q.place"
)
_ITEM_FIELDS: Final = Quarantined.__struct_fields__
_ITEM: Final = (
    f"SELECT t.name, {', '.join(f'q.{name}' for name in _ITEM_FIELDS)}, q.retried_at"
    " FROM tenants AS t JOIN quarantine AS q"
    f" ON q.tenant_id = t.tenant_id AND q.quarantine_id = %(id)s WHERE {_OF_TENANT} ORDER BY t.name"
)


#: Those that were rejected because an earlier item of the device on the record was.
_BEHIND: Final = (
    f"SELECT {', '.join(_ITEM_FIELDS)} FROM quarantine AS q WHERE q.tenant_id = %s"
    " AND q.device_id = %s AND q.domain = %s AND q.record_id = %s AND q.code = 'creation_rejected'"
    " AND q.place > (SELECT place FROM quarantine WHERE tenant_id = %s AND quarantine_id = %s)"
    " ORDER BY q.place"
)
_RETRIED: Final = (
    "UPDATE quarantine SET retried_at = now(),"
    " code = CASE WHEN %s AND code = 'creation_rejected' THEN code ELSE %s END,"
    " message = CASE WHEN %s AND code = 'creation_rejected' THEN message ELSE %s END"
    " WHERE tenant_id = %s AND quarantine_id = %s"
)
_RECORD: Final = (
    "SELECT version, seq, at_us, device_id, chain_from, data::text, last_data::text FROM records"
    " WHERE tenant_id = %s AND domain = %s AND id = %s"
)


class ConflictReads:
    """The reads of ``engine.operate.ports.ConflictAdmin``."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def conflicts(self, tenant: str | None) -> list[ConflictSummary]:
        """List open conflicts by tenant, oldest first."""
        return [_summary(row) for row in _listed(self._dsn, _CONFLICTS, tenant)]

    def settled(self, tenant: str | None, limit: int) -> list[ConflictSummary]:
        """List settled conflicts by tenant, latest first."""
        return [_summary(row) for row in _listed(self._dsn, _SETTLED, tenant, limit=limit)]

    def conflict(self, conflict_id: str, tenant: str | None) -> ConflictCase:
        """Find a conflict, settled or not, with its record as it stands now."""
        name, text, *found = _found(self._dsn, _CONFLICT, conflict_id, tenant, "conflict")
        conflict = decode_conflict(text)
        key = RecordKey(conflict.tenant_id, conflict.domain, conflict.record_id)
        return ConflictCase(name, conflict, None if found[0] is None else _record(key, *found))


class QuarantineReads:
    """The reads of ``engine.operate.ports.QuarantineAdmin``."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def items(self, tenant: str | None) -> list[QuarantineSummary]:
        """List items by tenant, oldest first."""
        return [
            QuarantineSummary(*(*row, to_text(at_us))) for *row, at_us in _listed(self._dsn, _ITEMS, tenant)
        ]

    def item(self, quarantine_id: str, tenant: str | None) -> QuarantineCase:
        """Find an item."""
        name, *columns, retried_at = _found(self._dsn, _ITEM, quarantine_id, tenant, "item in the quarantine")
        return QuarantineCase(name, _quarantined(columns), retried_at)

    def behind(self, row: Quarantined) -> list[Quarantined]:
        """List the items that were rejected because this one was, in the order in which they came."""
        if row.code == "creation_rejected":
            return []
        values = (row.tenant_id, row.device_id, row.domain, row.record_id, row.tenant_id, row.quarantine_id)
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            cursor.execute(_BEHIND, values)
            return [_quarantined(columns) for columns in cursor.fetchall()]

    def record(self, row: Quarantined) -> Record | None:
        """Find the record of an item as it stands now."""
        if row.domain is None or row.record_id is None:
            return None
        key = RecordKey(row.tenant_id, row.domain, row.record_id)
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            cursor.execute(_RECORD, key)
            return next((_record(key, *found) for found in cursor.fetchall()), None)

    def note_retry(self, item: QuarantineRef, error: ItemError, *, corrected: bool) -> None:
        """Note that a retry was rejected just now, and why.

        That an item waits for another one's retry (``creation_rejected``) stays where ``corrected`` data was
        at fault, which is not kept.
        """
        values = (corrected, error.code, corrected, error.message, *item)
        with connected(self._dsn) as connection, connection.cursor() as cursor:
            cursor.execute(_RETRIED, values)

    def drop(self, case: QuarantineCase) -> None:
        """Delete an item. Batches lock the counter first, and so does this: a retry is before or after."""
        item = (case.row.tenant_id, case.row.quarantine_id)
        with connected(self._dsn) as connection, connection, connection.cursor() as cursor:
            cursor.execute("SELECT FROM tenant_counters WHERE tenant_id = %s FOR UPDATE", item[:1])
            cursor.execute(
                "DELETE FROM quarantine WHERE tenant_id = %s AND quarantine_id = %s"
                " RETURNING octet_length(item)",
                item,
            )
            gone = cursor.fetchall()
            if not gone:
                raise RefusedError(f"the item {item[1]} left the quarantine just now: nothing was dropped")
            cursor.execute(
                "UPDATE tenant_counters SET quarantine_rows = quarantine_rows - 1,"
                " quarantine_bytes = quarantine_bytes - %s WHERE tenant_id = %s",
                (gone[0][0], item[0]),
            )


def _summary(row: tuple[Any, ...]) -> ConflictSummary:
    *named, opened_at_us, outcome, settled_by, settled_at_us = row
    settled_at = None if settled_at_us is None else to_text(settled_at_us)
    return ConflictSummary(*(*named, to_text(opened_at_us), outcome, settled_by, settled_at))


def _quarantined(columns: Iterable[Any]) -> Quarantined:
    named = dict(zip(_ITEM_FIELDS, columns, strict=True))
    return Quarantined(**(named | {"item": named["item"].encode()}))


def _record(
    key: RecordKey,
    version: int,
    seq: int,
    at_us: int,
    writer: str | None,
    chain_from: int,
    data: str | None,
    last_data: str | None,
) -> Record:
    return Record(
        *key,
        version,
        seq,
        at_us,
        writer,
        chain_from,
        None if data is None else data.encode(),
        last_data=None if last_data is None else last_data.encode(),
    )


def _listed(dsn: str, statement: str, tenant: str | None, **values: int) -> list[tuple[Any, ...]]:
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(statement, {"tenant": tenant, **values})
        found = cursor.fetchall()
        if not found:
            _check_tenant(cursor, tenant)
        return found


def _found(dsn: str, statement: str, wanted: str, tenant: str | None, what: str) -> tuple[Any, ...]:
    with connected(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(statement, {"tenant": tenant, "id": wanted})
        found = cursor.fetchall()
        if not found:
            _check_tenant(cursor, tenant)
            raise RefusedError(f"there is no {what} {wanted}{'' if tenant is None else f' of {tenant}'}")
    if len(found) > 1:
        names = ", ".join(str(row[0]) for row in found)
        raise RefusedError(f"several tenants have {wanted}: choose one with --tenant: {names}")
    return found[0]


def _check_tenant(cursor: Cursor, tenant: str | None) -> None:
    if tenant is not None:
        cursor.execute("SELECT FROM tenants WHERE name = %s", (tenant,))
        if not cursor.fetchall():
            raise NoTenantError(tenant)
