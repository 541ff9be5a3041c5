"""Statements of the clean-up of uploads, over all tenants, a page at a time, each by an index of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from engine.model.rows import RecordKey
from engine.model.uploads import State, UploadRef
from engine.uploads.cleanup import Abandonment, GoneFile, OpenUpload
from storage.postgres.arrays import hex_array, int_array
from storage.postgres.driver import Row, Values
from storage.postgres.pool import Database
from storage.postgres.roles.named_tenants import EVERYONE, Tenants, of_tenant
from storage.stores.admin_reads import OF_TENANT
from storage.stores.upload_states import (
    ENDED,
    EXPIRED,
    FINAL,
    FINISHED_OR_EXPIRED,
    OPEN,
    PLACED,
    STATES_BY_TEXT,
    STORED,
)

_NOBODY: Final = "0" * 32
_NOW: Final = "to_timestamp(%(now)s::float8 / 1000000)"
#: A part of a final upload has no expiry of its own: it ends with the final upload.
_DUE: Final = (
    f"u.joined_into IS NULL AND u.expires_at <= {_NOW} AND (u.held_until IS NULL OR u.held_until < {_NOW})"
)
_OPEN: Final = (
    f"SELECT u.tenant_id, u.upload_id::text, {_DUE} FROM upload_session AS u WHERE u.state = {OPEN}"
    " AND (u.tenant_id, u.upload_id) > (%(tenant)s::int, %(id)s::uuid)"
    " ORDER BY u.tenant_id, u.upload_id LIMIT %(limit)s::int"
)
_EXPIRE_SET: Final = (
    f"state = {EXPIRED}, held_until = NULL, pieces = '', updated_at = now(), ended_at = now()"
)
#: Parts expire with a final upload whose row was changed here, never with one that a request has just locked.
_EXPIRE: Final = (
    f"WITH whole AS (UPDATE upload_session AS u SET {_EXPIRE_SET} WHERE u.tenant_id = %(tenant)s::int"
    f" AND u.upload_id = ANY(%(ids)s::uuid[]) AND u.state = {OPEN} AND {_DUE}"
    " RETURNING u.upload_id, u.reserved_bytes),"
    f" part AS (UPDATE upload_session AS u SET {_EXPIRE_SET} FROM whole"
    f" WHERE u.tenant_id = %(tenant)s::int AND u.joined_into = whole.upload_id AND u.state = {OPEN}"
    " RETURNING u.upload_id), freed AS (UPDATE tenant_storage AS s SET reserved_bytes = greatest(0,"
    " s.reserved_bytes - w.b) FROM (SELECT sum(reserved_bytes) AS b FROM whole) AS w"
    " WHERE s.tenant_id = %(tenant)s::int AND w.b > 0)"
    " SELECT upload_id::text FROM whole UNION ALL SELECT upload_id::text FROM part"
)
_MARK: Final = (
    "WITH dead AS MATERIALIZED (SELECT tenant_id, domain, id FROM records WHERE data IS NULL"
    " AND attachments::text <> '[]' AND (tenant_id, domain, id)"
    " > (%(tenant)s::int, %(domain)s::text, %(record)s::text)"
    " ORDER BY tenant_id, domain, id LIMIT %(limit)s::int),"
    f" marked AS (UPDATE upload_session AS u SET gone_at = {_NOW} FROM dead"
    " WHERE u.tenant_id = dead.tenant_id AND u.domain = dead.domain AND u.record_id = dead.id"
    f" AND u.state IN {PLACED} AND u.gone_at IS NULL)"
    " SELECT count(*) OVER (), tenant_id, domain, id FROM dead ORDER BY tenant_id DESC, domain DESC, id DESC"
    " LIMIT 1"
)
_GONE: Final = (
    "SELECT u.tenant_id, u.upload_id::text, u.device_id, u.domain, u.record_id, coalesce(r.alive, false),"
    " greatest((extract(epoch FROM {since}) * 1000000)::bigint, r.at_us) FROM upload_session AS u"
    " LEFT JOIN LATERAL (SELECT data IS NOT NULL AS alive, {deleted} AS at_us FROM records"
    " WHERE tenant_id = u.tenant_id AND domain = u.domain AND id = u.record_id LIMIT 1) AS r ON true"
)
#: A record that was restored and deleted again after the mark is gone since the later deletion.
_MARKED: Final = (
    _GONE.format(since="u.gone_at", deleted="at_us") + f" WHERE u.gone_at IS NOT NULL AND u.state IN {PLACED}"
    " AND (u.tenant_id, u.upload_id) > (%(tenant)s::int, %(id)s::uuid)"
    " ORDER BY u.tenant_id, u.upload_id LIMIT %(limit)s::int"
)
_UNPLACED: Final = (
    _GONE.format(since="u.updated_at", deleted="NULL::bigint")
    + f" WHERE u.state = {STORED} AND (u.tenant_id, u.domain, u.record_id, u.upload_id)"
    " > (%(tenant)s::int, %(domain)s::text, %(record)s::text, %(id)s::uuid)"
    " ORDER BY u.tenant_id, u.domain, u.record_id, u.upload_id LIMIT %(limit)s::int"
)
_UNMARK: Final = (
    "UPDATE upload_session AS u SET gone_at = NULL"
    " FROM unnest(%(tenants)s::int[], %(ids)s::uuid[]) AS w(t, i)"
    " WHERE u.tenant_id = w.t AND u.upload_id = w.i"
)
_DELETE_ENDED: Final = (
    "WITH old AS (SELECT tenant_id AS t, upload_id AS i FROM upload_session"
    f" WHERE state IN {ENDED}"
    f" AND created_at < {_NOW} AND updated_at < {_NOW} ORDER BY created_at LIMIT %(limit)s::int),"
    " forgotten AS (DELETE FROM upload_session AS u USING old"
    " WHERE u.tenant_id = old.t AND u.upload_id = old.i RETURNING 1) SELECT count(*) FROM forgotten"
)
_STATES: Final = (
    "SELECT w.t, w.i::text, u.state FROM unnest(%(tenants)s::int[], %(ids)s::uuid[]) AS w(t, i)"
    " CROSS JOIN LATERAL (SELECT state FROM upload_session WHERE tenant_id = w.t AND upload_id = w.i LIMIT 1)"
    " AS u"
)
_ABANDONMENT: Final = (
    f"SELECT t.name, count(*) FILTER (WHERE u.state <> {EXPIRED}),"
    f" count(*) FILTER (WHERE u.state = {EXPIRED})"
    " FROM upload_session AS u JOIN tenants AS t ON t.tenant_id = u.tenant_id"
    f" WHERE {OF_TENANT} AND u.ended_at > {_NOW} AND u.kind <> {FINAL}"
    f" AND u.state IN {FINISHED_OR_EXPIRED}"
    " GROUP BY t.name ORDER BY t.name"
)


class PostgresCleanup:
    """``engine.uploads.cleanup.CleanupStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_open(self, after: UploadRef | None, limit: int, now_us: int) -> list[OpenUpload]:
        """List open uploads by tenant and id."""
        values = _after(after) | {"limit": str(limit), "now": str(now_us)}
        return [OpenUpload(_ref(row), row[2]) for row in await self._run(_OPEN, values, EVERYONE)]

    async def expire(self, tenant_id: int, upload_ids: Sequence[str], now_us: int) -> list[UploadRef]:
        """Expire uploads that are due."""
        values = {"tenant": str(tenant_id), "ids": hex_array(upload_ids), "now": str(now_us)}
        rows = await self._run(_EXPIRE, values, [tenant_id])
        return [UploadRef(tenant_id, row[0].replace("-", "")) for row in rows]

    async def mark_gone(self, after: RecordKey | None, limit: int, now_us: int) -> RecordKey | None:
        """Mark the files of deleted records."""
        values = {
            "tenant": "0" if after is None else str(after.tenant_id),
            "domain": "" if after is None else after.domain,
            "record": "" if after is None else after.id,
            "limit": str(limit),
            "now": str(now_us),
        }
        for looked_at, *last in await self._run(_MARK, values, EVERYONE):
            if looked_at == limit:
                return RecordKey(*last)
        return None

    async def list_gone(
        self, state: Literal["attached", "stored"], after: GoneFile | None, limit: int
    ) -> list[GoneFile]:
        """List files without a record."""
        values = _after(None if after is None else after.ref) | {
            "domain": "" if after is None else after.domain,
            "record": "" if after is None else after.record_id,
            "limit": str(limit),
        }
        rows = await self._run(_MARKED if state == "attached" else _UNPLACED, values, EVERYONE)
        return [GoneFile(_ref(row), *row[2:]) for row in rows]

    async def unmark(self, refs: Sequence[UploadRef]) -> None:
        """Remove marks."""
        await self._run(_UNMARK, _named(refs), _tenants(refs))

    async def delete_ended(self, before_us: int, limit: int) -> int:
        """Delete rows of ended uploads, the oldest first."""
        ((count,),) = await self._run(_DELETE_ENDED, {"now": str(before_us), "limit": str(limit)}, EVERYONE)
        return int(count)

    async def states(self, refs: Sequence[UploadRef]) -> dict[UploadRef, State]:
        """Read states."""
        rows = await self._run(_STATES, _named(refs), _tenants(refs))
        return {_ref(row): STATES_BY_TEXT[row[2]] for row in rows}

    async def abandonment(self, since_us: int, tenant: str | None = None) -> list[Abandonment]:
        """Count by tenant how uploads ended; of all tenants, or of one."""
        values = {"now": str(since_us), "tenant": tenant}
        return [Abandonment(*row) for row in await self._run(_ABANDONMENT, values, of_tenant(tenant))]

    async def _run(self, statement: str, values: Values, tenants: Tenants) -> list[Row]:
        """Run one statement as a transaction, planned each time, since the tables grow."""
        return await self._database.execute(statement, values, tenants=tenants)


def _tenants(refs: Sequence[UploadRef]) -> set[int]:
    return {ref.tenant_id for ref in refs}


def _ref(row: Row) -> UploadRef:
    return UploadRef(row[0], row[1].replace("-", ""))


def _after(after: UploadRef | None) -> dict[str, object]:
    return {
        "tenant": "0" if after is None else str(after.tenant_id),
        "id": _NOBODY if after is None else after.upload_id,
    }


def _named(refs: Sequence[UploadRef]) -> dict[str, object]:
    return {
        "tenants": int_array(ref.tenant_id for ref in refs),
        "ids": hex_array(ref.upload_id for ref in refs),
    }
