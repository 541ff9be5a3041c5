"""Files that were stored before their records, of all tenants."""

from __future__ import annotations

from typing import Final

from engine.ports import WaitingFile
from engine.uploads import Upload
from storage.pool import Database, Statement
from storage.uploads import COLUMNS, decode_upload

_NOBODY: Final = "0" * 32
#: LATERAL with LIMIT is one probe a file; EXISTS was planned as one read of all records.
_WAITING: Final = Statement(
    f"SELECT {COLUMNS.format('u')}, coalesce(r.alive, false) FROM upload_session AS u"
    " LEFT JOIN LATERAL (SELECT data IS NOT NULL AS alive FROM records WHERE tenant_id = u.tenant_id"
    " AND domain = u.domain AND id = u.record_id LIMIT 1) AS r ON true"
    " WHERE u.state = 'stored' AND (u.tenant_id, u.domain, u.record_id, u.upload_id)"
    " > (%(tenant)s::int, %(domain)s::text, %(record)s::text, %(id)s::uuid)"
    " ORDER BY u.tenant_id, u.domain, u.record_id, u.upload_id LIMIT %(limit)s::int"
)


class PostgresWaiting:
    """``engine.ports.WaitingStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def waiting(self, after: Upload | None, limit: int) -> list[WaitingFile]:
        """List files that wait, by their records."""
        values = {
            "tenant": "0" if after is None else str(after.ref.tenant_id),
            "domain": "" if after is None else after.domain,
            "record": "" if after is None else after.record_id,
            "id": _NOBODY if after is None else after.ref.upload_id,
            "limit": str(limit),
        }
        return [
            WaitingFile(decode_upload(row), row[-1])
            for row in await self._database.query(_WAITING, values)
        ]
