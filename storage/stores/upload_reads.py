"""Reads of files: those stored before their records, those that devices download, and all of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from engine.model.uploads import Upload, UploadRef
from engine.uploads.blobs import PendingFile
from engine.uploads.verify import ListedFile
from storage.postgres.arrays import hex_array, int_array, text_array
from storage.postgres.connection import Statement
from storage.postgres.pool import Database
from storage.postgres.roles.named_tenants import EVERYONE, of_tenant
from storage.stores.admin_reads import OF_TENANT
from storage.stores.sealed.same_file import may_be_same
from storage.stores.sealed.sealing import Sealing
from storage.stores.tenant_rows import check_tenant
from storage.stores.upload_rows import COLUMNS, decode_upload
from storage.stores.upload_states import DUPLICATE, IN_ENTRY, IS_FILE, STORED

_NOBODY: Final = "0" * 32
#: Steps from one tenant to the next by the index, so that the cost does not grow with files.
_TENANTS: Final = Statement(
    f"WITH RECURSIVE w AS ((SELECT tenant_id AS t FROM upload_session WHERE state = {STORED}"
    " AND tenant_id > %(after)s::int ORDER BY tenant_id, domain, record_id LIMIT 1) UNION ALL"
    f" SELECT (SELECT tenant_id FROM upload_session WHERE state = {STORED} AND tenant_id > w.t"
    " ORDER BY tenant_id, domain, record_id LIMIT 1) FROM w WHERE w.t IS NOT NULL)"
    " SELECT t FROM w WHERE t IS NOT NULL LIMIT %(limit)s::int"
)
#: LATERAL with LIMIT is one index probe a file; EXISTS was planned as one read of all records.
_PENDING: Final = Statement(
    f"SELECT {COLUMNS.format('u')}, coalesce(r.alive, false)"
    " FROM unnest(%(tenants)s::int[], %(domains)s::text[], %(records)s::text[], %(ids)s::uuid[])"
    f" AS w(t, d, r, i) CROSS JOIN LATERAL (SELECT * FROM upload_session WHERE state = {STORED}"
    " AND tenant_id = w.t AND (domain, record_id, upload_id) > (w.d, w.r, w.i)"
    " ORDER BY domain, record_id, upload_id LIMIT %(limit)s::int) AS u"
    " LEFT JOIN LATERAL (SELECT data IS NOT NULL AS alive FROM records WHERE tenant_id = u.tenant_id"
    " AND domain = u.domain AND id = u.record_id LIMIT 1) AS r ON true"
    " ORDER BY u.tenant_id, u.domain, u.record_id, u.upload_id"
)
_FILE: Final = Statement(
    f"SELECT {COLUMNS.format('u')} FROM upload_session AS u WHERE u.tenant_id = %(tenant)s::int"
    f" AND u.upload_id = %(id)s::uuid AND (u.state IN {IS_FILE} OR u.state = {DUPLICATE})"
    f" UNION ALL SELECT {COLUMNS.format('o')} FROM upload_session AS u JOIN upload_session AS o"
    " ON o.tenant_id = u.tenant_id AND o.domain = u.domain AND o.record_id = u.record_id"
    f" AND {may_be_same('o', 'u')} AND o.state IN {IN_ENTRY}"
    f" WHERE u.tenant_id = %(tenant)s::int AND u.upload_id = %(id)s::uuid AND u.state = {DUPLICATE}"
)
_FILES: Final = (
    "SELECT t.name, u.tenant_id, u.upload_id::text, u.device_id, u.domain, u.record_id, u.size_bytes"
    " FROM upload_session AS u JOIN tenants AS t ON t.tenant_id = u.tenant_id"
    f" WHERE {OF_TENANT} AND u.state IN {IS_FILE}"
    " AND (u.tenant_id, u.upload_id) > (%(after_tenant)s::int, %(after)s::uuid)"
    " ORDER BY u.tenant_id, u.upload_id LIMIT %(limit)s::int"
)


class PostgresPending:
    """``engine.uploads.blobs.PendingStore``."""

    def __init__(self, database: Database, sealing: Sealing) -> None:
        self._database = database
        self._sealing = sealing

    async def tenants(self, after: int, limit: int) -> list[int]:
        """List tenants with pending files."""
        values = {"after": str(after), "limit": str(limit)}
        return [row[0] for row in await self._database.query(_TENANTS, values, EVERYONE)]

    async def pending(self, after: Mapping[int, Upload | None], limit: int) -> list[PendingFile]:
        """List pending files, by tenant and record."""
        last = after.values()
        values = {
            "tenants": int_array(after),
            "domains": text_array([(one and one.domain) or "" for one in last]),
            "records": text_array([(one and one.record_id) or "" for one in last]),
            "ids": hex_array([_NOBODY if one is None else one.ref.upload_id for one in last]),
            "limit": str(limit),
        }
        return await self._sealing.opened(
            await self._database.query(_PENDING, values, after.keys()),
            lambda row: PendingFile(decode_upload(self._sealing, row), row[-1]),
        )


class PostgresFiles:
    """``engine.uploads.blobs.FileStore``."""

    def __init__(self, database: Database, sealing: Sealing) -> None:
        self._database = database
        self._sealing = sealing

    async def file(self, tenant_id: int, file_id: str) -> Upload | None:
        """Return a file, or the one that stands for a duplicate."""
        rows = await self._database.query(_FILE, {"tenant": str(tenant_id), "id": file_id}, [tenant_id])
        found = await self._sealing.opened(rows, partial(decode_upload, self._sealing))
        own = next((one for one in found if one.ref.upload_id == file_id), None)
        if own is None or own.state != "duplicate":
            return own
        same = own.sha256, own.file_name
        return next((one for one in found if one is not own and (one.sha256, one.file_name) == same), None)


class PostgresFileList:
    """``engine.uploads.verify.FileList``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def files(self, tenant: str | None, after: UploadRef | None, limit: int) -> list[ListedFile]:
        """List the files that rows name."""
        values = {
            "tenant": tenant,
            "after_tenant": 0 if after is None else after.tenant_id,
            "after": _NOBODY if after is None else after.upload_id,
            "limit": limit,
        }
        found = await self._database.query(_FILES, values, of_tenant(tenant))
        if not found and after is None:
            await check_tenant(self._database, tenant)
        return [
            ListedFile(UploadRef(number, upload_id.replace("-", "")), name, *about)
            for name, number, upload_id, *about in found
        ]
