"""Where a file's bytes are."""

from __future__ import annotations

from typing import Final

from engine.model.uploads import Upload
from storage.postgres.pool import Database, Statement
from storage.stores.uploads import COLUMNS, decode_upload

_FILE: Final = Statement(
    f"SELECT {COLUMNS.format('u')} FROM upload_session AS u WHERE u.tenant_id = %(tenant)s::int"
    " AND u.upload_id = %(id)s::uuid AND u.state IN ('stored', 'attached', 'lent')"
    f" UNION ALL SELECT {COLUMNS.format('o')} FROM upload_session AS u JOIN upload_session AS o"
    " ON o.tenant_id = u.tenant_id AND o.domain = u.domain AND o.record_id = u.record_id"
    " AND o.sha256 = u.sha256 AND o.file_name = u.file_name AND o.state IN ('attached', 'lent')"
    " WHERE u.tenant_id = %(tenant)s::int AND u.upload_id = %(id)s::uuid AND u.state = 'duplicate' LIMIT 1"
)


class PostgresFiles:
    """``engine.uploads.blobs.FileStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def file(self, tenant_id: int, file_id: str) -> Upload | None:
        """Find a file, or what its record has in its stead."""
        rows = await self._database.query(_FILE, {"tenant": str(tenant_id), "id": file_id})
        return decode_upload(rows[0]) if rows else None
