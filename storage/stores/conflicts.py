"""Reads of the conflict queue."""

from __future__ import annotations

from typing import Final

from engine.model.rows import Conflict, Record
from engine.operate.conflicts import HeldConflict, HeldConflicts
from storage.postgres.pool import Database
from storage.stores.stored_conflict import decode_conflict

_NEXT: Final = (
    "SELECT opened_at_us, conflict_id FROM conflict_resolution_log AS c"
    " WHERE c.tenant_id = %(tenant)s AND c.outcome = 'open'{device}{after}"
    " ORDER BY c.opened_at_us, c.conflict_id LIMIT 1"
)
#: The same, behind the one before.
_BEHIND: Final = _NEXT.replace(
    "{after}", " AND (c.opened_at_us, c.conflict_id) > (one.opened_at_us, one.conflict_id)"
)
#: A conflict with its record as they are sent here, and their bytes.
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
#: One after another by the index of the queue, until they passed the bytes: those left out are not read.
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
_AFTER: Final = (
    " AND (c.opened_at_us, c.conflict_id) > (SELECT opened_at_us, conflict_id FROM conflict_resolution_log"
    " WHERE tenant_id = %(tenant)s AND conflict_id = %(after)s)"
)


class PostgresConflicts:
    """``engine.operate.conflicts.ConflictStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open_conflicts(
        self, tenant_id: int, device_id: str | None, after: str | None, limit: int, max_bytes: int
    ) -> HeldConflicts:
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
        found: list[HeldConflict] = []
        rows = await self._database.query(statement, values)
        for text, version, seq, at_us, writer, chain_from, data, last_data, _ in rows:
            conflict = decode_conflict(text)
            record = None
            if version is not None:
                record = Record(
                    tenant_id,
                    conflict.domain,
                    conflict.record_id,
                    version,
                    seq,
                    at_us,
                    writer,
                    chain_from,
                    None if data is None else data.encode(),
                    last_data=None if last_data is None else last_data.encode(),
                )
            found.append(HeldConflict(conflict, record))
        return HeldConflicts(found, bool(rows) and rows[-1][-1])

    async def conflict(self, tenant_id: int, conflict_id: str) -> Conflict | None:
        """Find one conflict, settled or not."""
        rows = await self._database.query(
            "SELECT row_to_json(c)::text FROM conflict_resolution_log AS c"
            " WHERE tenant_id = %(tenant)s AND conflict_id = %(conflict)s",
            {"tenant": tenant_id, "conflict": conflict_id},
        )
        return decode_conflict(rows[0][0]) if rows else None
