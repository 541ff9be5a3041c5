"""Reads of the conflict queue."""

from __future__ import annotations

from typing import Final

from engine.ports import HeldConflict
from engine.rows import Conflict, Record
from storage.commit import decode_conflict
from storage.pool import Database

_OPEN: Final = (
    "SELECT row_to_json(c)::text, r.version, r.seq, r.at_us, r.device_id, r.chain_from, r.data::text,"
    " r.last_data::text"
    " FROM conflict_resolution_log AS c LEFT JOIN records AS r"
    " ON r.tenant_id = c.tenant_id AND r.domain = c.domain AND r.id = c.record_id"
    " WHERE c.tenant_id = %(tenant)s AND c.outcome = 'open'{device}{after}"
    " ORDER BY c.opened_at_us, c.conflict_id LIMIT %(limit)s"
)
_DEVICE: Final = " AND c.device_id = %(device)s"
_AFTER: Final = (
    " AND (c.opened_at_us, c.conflict_id) > (SELECT opened_at_us, conflict_id FROM conflict_resolution_log"
    " WHERE tenant_id = %(tenant)s AND conflict_id = %(after)s)"
)


class PostgresConflicts:
    """``engine.ports.ConflictStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open_conflicts(
        self, tenant_id: int, device_id: str | None, after: str | None, limit: int
    ) -> list[HeldConflict]:
        """List open conflicts, oldest first; one that was settled meanwhile still marks a place."""
        statement = _OPEN.format(
            device="" if device_id is None else _DEVICE, after="" if after is None else _AFTER
        )
        values = {"tenant": tenant_id, "device": device_id, "after": after, "limit": limit}
        found: list[HeldConflict] = []
        for text, version, seq, at_us, writer, chain_from, data, last_data in await self._database.query(
            statement, values
        ):
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
        return found

    async def conflict(self, tenant_id: int, conflict_id: str) -> Conflict | None:
        """Find one conflict, settled or not."""
        rows = await self._database.query(
            "SELECT row_to_json(c)::text FROM conflict_resolution_log AS c"
            " WHERE tenant_id = %(tenant)s AND conflict_id = %(conflict)s",
            {"tenant": tenant_id, "conflict": conflict_id},
        )
        return decode_conflict(rows[0][0]) if rows else None
