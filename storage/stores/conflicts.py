"""Conflicts: a page of a device's, and all that a person sees of them at the command line."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Final

from engine.model.rows import Conflict, Record, RecordKey
from engine.operate.conflicts import ConflictPage, ConflictWithRecord
from engine.operate.rows import ConflictCase, ConflictSummary
from engine.wire.timestamps import to_text
from storage.postgres.driver import Row
from storage.postgres.pool import Database
from storage.stores.admin_reads import OF_TENANT, find_one, list_of_tenant
from storage.stores.audit import by_account
from storage.stores.record_rows import RECORD_COLUMNS, record_of
from storage.stores.sealed.sealing import Sealing
from storage.stores.stored_conflict import conflict_in_steps

_NEXT: Final = (
    "SELECT opened_at_us, conflict_id FROM conflict_resolution_log AS c"
    " WHERE c.tenant_id = %(tenant)s AND c.outcome = 'open'{device}{after}"
    " ORDER BY c.opened_at_us, c.conflict_id LIMIT 1"
)
#: The same, after the conflict before.
_BEHIND: Final = _NEXT.replace(
    "{after}", " AND (c.opened_at_us, c.conflict_id) > (one.opened_at_us, one.conflict_id)"
)
#: A conflict with its record, and the bytes of both as they are sent to this process.
_WHOLE: Final = (
    "SELECT w.*, octet_length(w.body) + coalesce(octet_length(w.data), 0)"
    " + coalesce(octet_length(w.last_data), 0) AS size_bytes FROM ("
    "SELECT k.opened_at_us, k.conflict_id, row_to_json(c)::text AS body, r.version, r.seq, r.at_us,"
    " r.device_id, r.chain_from, r.data::text AS data, r.last_data::text AS last_data"
    " FROM ({key}) AS k JOIN conflict_resolution_log AS c"
    " ON c.tenant_id = %(tenant)s AND c.conflict_id = k.conflict_id"
    " LEFT JOIN records AS r ON r.tenant_id = c.tenant_id AND r.domain = c.domain AND r.id = c.record_id"
    ") AS w"
)
#: One conflict after another by the index of the list, until the bytes are used up: the others are not read.
_OPEN: Final = (
    "WITH RECURSIVE one AS (("
    f"SELECT f.*, 1 AS place, f.size_bytes::bigint AS bytes FROM ({_WHOLE.replace('{key}', _NEXT)}) AS f)"
    " UNION ALL SELECT n.*, one.place + 1, one.bytes + n.size_bytes FROM one CROSS JOIN LATERAL ("
    f"{_WHOLE.replace('{key}', _BEHIND)}) AS n"
    " WHERE one.place < %(limit)s AND one.bytes <= %(bytes)s)"
    " SELECT body, version, seq, at_us, device_id, chain_from, data, last_data,"
    " CASE WHEN one.place = %(limit)s OR one.bytes > %(bytes)s"
    f" THEN EXISTS ({_BEHIND}) ELSE false END FROM one ORDER BY place"
)
_DEVICE: Final = " AND c.device_id = %(device)s"
#: A conflict that the device may not see marks no place: it would tell that there is one.
_AFTER: Final = (
    " AND (c.opened_at_us, c.conflict_id) > (SELECT opened_at_us, conflict_id FROM conflict_resolution_log"
    " WHERE tenant_id = %(tenant)s AND conflict_id = %(after)s"
    " AND (%(device)s::text IS NULL OR device_id = %(device)s))"
)

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
_OPEN_OF_TENANTS: Final = (
    f"{_SUMMARY} JOIN conflict_resolution_log AS c"
    f" ON c.tenant_id = t.tenant_id AND c.outcome = 'open' WHERE {OF_TENANT}"
    " ORDER BY t.name, c.opened_at_us, c.conflict_id"
)
_SETTLED: Final = (
    f"{_SUMMARY} CROSS JOIN LATERAL (SELECT * FROM conflict_resolution_log"
    " WHERE tenant_id = t.tenant_id AND outcome NOT IN ('open', 'held')"
    " ORDER BY coalesce(settled_at_us, opened_at_us) DESC, conflict_id DESC LIMIT %(limit)s) AS c"
    f" WHERE {OF_TENANT} ORDER BY t.name, coalesce(c.settled_at_us, c.opened_at_us) DESC, c.conflict_id DESC"
)
_CONFLICT: Final = (
    f"SELECT t.name, row_to_json(c)::text, {RECORD_COLUMNS} FROM tenants AS t"
    " JOIN conflict_resolution_log AS c ON c.tenant_id = t.tenant_id AND c.conflict_id >= %(id)s"
    " AND c.conflict_id <= %(last)s"
    " LEFT JOIN records AS r ON r.tenant_id = c.tenant_id AND r.domain = c.domain AND r.id = c.record_id"
    f" WHERE {OF_TENANT} ORDER BY t.name"
)


class PostgresConflicts:
    """``engine.operate.conflicts.ConflictStore``, and the reads of ``engine.operate.ports.ConflictAdmin``."""

    def __init__(self, database: Database, sealing: Sealing) -> None:
        self._database = database
        self._sealing = sealing

    async def open_conflicts(
        self, tenant_id: int, device_id: str | None, after: str | None, limit: int, max_bytes: int
    ) -> ConflictPage:
        """List open conflicts, oldest first; one that was settled in between still marks a place."""
        statement = _OPEN.format(
            device="" if device_id is None else _DEVICE, after="" if after is None else _AFTER
        )
        values = {
            "tenant": tenant_id,
            "device": device_id,
            "after": after,
            "limit": limit,
            "bytes": max_bytes,
        }
        rows = await self._database.query(statement, values, [tenant_id])
        found = await self._sealing.opened(rows, lambda row: self._with_record(row[0], row[1:-1]))
        return ConflictPage([ConflictWithRecord(*one) for one in found], bool(rows) and rows[-1][-1])

    async def conflict(self, tenant_id: int, conflict_id: str) -> Conflict | None:
        """Find one conflict, settled or not."""
        rows = await self._database.query(
            "SELECT row_to_json(c)::text FROM conflict_resolution_log AS c"
            " WHERE tenant_id = %(tenant)s AND conflict_id = %(conflict)s",
            {"tenant": tenant_id, "conflict": conflict_id},
            [tenant_id],
        )
        found = await self._sealing.opened(rows, lambda row: conflict_in_steps(row[0], self._sealing))
        return found[0] if found else None

    async def list_open(self, tenant: str | None) -> list[ConflictSummary]:
        """List open conflicts by tenant, oldest first."""
        rows = await list_of_tenant(self._database, _OPEN_OF_TENANTS, tenant)
        return [_summary(row) for row in rows]

    async def list_settled(self, tenant: str | None, limit: int) -> list[ConflictSummary]:
        """List settled conflicts by tenant, latest first."""
        rows = await list_of_tenant(self._database, _SETTLED, tenant, limit=limit)
        return [_summary(row) for row in rows]

    async def find(self, conflict_id: str, tenant: str | None) -> ConflictCase:
        """Find a conflict, settled or not, with its record as it stands now."""
        row = await find_one(self._database, _CONFLICT, conflict_id, tenant, "conflict")
        (found,) = await self._sealing.opened([row], lambda row: self._with_record(row[1], row[2:]))
        return ConflictCase(row[0], *found)

    def _with_record(
        self, text: str, columns: Sequence[Any]
    ) -> Generator[None, None, tuple[Conflict, Record | None]]:
        conflict = yield from conflict_in_steps(text, self._sealing)
        if self._sealing.slice_is_full():
            yield
        key = RecordKey(conflict.tenant_id, conflict.domain, conflict.record_id)
        return conflict, record_of(key, columns, self._sealing)

    async def note_shown(self, case: ConflictCase, *, revealed: bool) -> None:
        """Write the event of a conflict that is shown."""
        one = case.conflict
        details = {"domain": one.domain, "record_id": one.record_id, "revealed": revealed}
        async with self._database.transaction() as transaction:
            await transaction.note(
                by_account("data_shown", one.conflict_id, case.tenant, one.tenant_id, details)
            )


def _summary(row: Row) -> ConflictSummary:
    *named, opened_at_us, outcome, settled_by, settled_at_us = row
    settled_at = None if settled_at_us is None else to_text(settled_at_us)
    return ConflictSummary(*(*named, to_text(opened_at_us), outcome, settled_by, settled_at))
