"""Sessions of uploads in PostgreSQL: any process, on whatever host, takes up where another stopped.

``held_until`` is null while nobody has an upload. ``holder`` stays: who runs a statement again, not knowing
what became of the first run, is recognized by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from engine.model.uploads import State, Upload, UploadRef
from engine.uploads.ports import LEASE_S, Claim, Claimed, Created, Joined, NewUpload, OffsetUpdate, Stored
from storage.postgres.arrays import hex_array, int_array, int_array_or_null, text_array
from storage.postgres.connection import Statement
from storage.postgres.driver import Row
from storage.postgres.pool import Database
from storage.postgres.transactions import Transaction, transaction_settings

#: Of ``upload_session`` under the name that is put in.
COLUMNS: Final = (
    "{0}.tenant_id, {0}.upload_id::text, {0}.device_id, {0}.user_id, {0}.kind, {0}.file_name,"
    " {0}.content_type, {0}.domain, {0}.record_id, {0}.metadata, {0}.size_bytes, {0}.reserved_bytes,"
    " {0}.offset_bytes, {0}.parts, {0}.joined_into::text, {0}.pieces, {0}.generation,"
    " {0}.holder, {0}.held_until IS NOT NULL, coalesce({0}.held_until < now(), false),"
    " {0}.wanted_sha256, {0}.sha256, {0}.state,"
    " (extract(epoch FROM {0}.created_at) * 1000000)::bigint,"
    " (extract(epoch FROM {0}.expires_at) * 1000000)::bigint"
)


#: Of claims: after a crash nobody has an upload that was claimed just before it.
_CLAIM_SETTINGS: Final = transaction_settings(synchronous_commit="off")
_FIND: Final = Statement(
    f"SELECT {COLUMNS.format('u')} FROM upload_session AS u"
    " WHERE u.tenant_id = %(tenant)s::int AND u.upload_id = %(id)s::uuid"
)
_VALUES: Final = (
    "%(tenant)s::int, %(id)s::uuid, %(device)s::text, %(user)s::text, %(kind)s::text, %(parts)s::text,"
    " %(name)s::text, %(type)s::text, %(domain)s::text, %(record)s::text, %(metadata)s::text,"
    " %(size)s::bigint, %(reserved)s::bigint, %(offset)s::bigint, %(wanted)s::text,"
    " now() + %(expire)s::float8 * interval '1 second'"
)
_INSERT: Final = (
    "INSERT INTO upload_session (tenant_id, upload_id, device_id, user_id, kind, parts, file_name,"
    " content_type, domain, record_id, metadata, size_bytes, reserved_bytes, offset_bytes, wanted_sha256,"
    f" expires_at) SELECT {_VALUES}"
)
#: What a tenant has reserved is a row of its own that is locked: two who create at once cannot both take the
#: last of the room. An upload that is there already is one's own, of a first run whose outcome was not known.
_RESERVE: Final = Statement(
    "WITH mine AS (SELECT FROM upload_session WHERE tenant_id = %(tenant)s::int"
    " AND upload_id = %(id)s::uuid), reserve AS (INSERT INTO tenant_storage AS s (tenant_id, reserved_bytes)"
    " SELECT w.t, w.b FROM (SELECT %(tenant)s::int AS t, %(reserved)s::bigint AS b) AS w"
    " WHERE w.b <= %(quota)s::bigint AND NOT EXISTS (SELECT FROM mine)"
    " ON CONFLICT (tenant_id) DO UPDATE SET reserved_bytes = s.reserved_bytes + excluded.reserved_bytes"
    " WHERE s.reserved_bytes + excluded.reserved_bytes <= %(quota)s::bigint RETURNING 1)"
    " SELECT (SELECT count(*) FROM mine), (SELECT count(*) FROM reserve)"
)
_RETURN: Final = Statement(
    "UPDATE tenant_storage SET reserved_bytes = reserved_bytes - %(reserved)s::bigint"
    " WHERE tenant_id = %(tenant)s::int"
)
_LOCK: Final = Statement("SELECT FROM tenant_storage WHERE tenant_id = %(tenant)s::int FOR NO KEY UPDATE")
#: Counted behind that lock, in a statement of its own: one that waits counts as of before its wait.
_MAKE: Final = Statement(
    f"{_INSERT} WHERE (SELECT count(*) FROM upload_session WHERE tenant_id = %(tenant)s::int"
    " AND domain = %(domain)s::text AND record_id = %(record)s::text"
    " AND state IN ('open', 'stored', 'attached', 'lent')) < %(files)s::bigint"
    " AND (SELECT count(*) FROM upload_session WHERE tenant_id = %(tenant)s::int"
    " AND device_id = %(device)s::text AND state = 'open') < %(open)s::bigint RETURNING 1"
)
_OPEN: Final = Statement(
    "SELECT count(*) >= %(open)s::bigint FROM upload_session WHERE tenant_id = %(tenant)s::int"
    " AND device_id = %(device)s::text AND state = 'open'"
)
#: One that is put together of parts takes no more than they did.
_NO_BOUND: Final = str(2**62)
_SPEND: Final = Statement(
    "UPDATE upload_session SET joined_into = %(id)s::uuid, reserved_bytes = 0, updated_at = now()"
    " WHERE tenant_id = %(tenant)s::int AND upload_id = ANY(%(spent)s::uuid[]) AND kind = 'part'"
    " AND device_id = %(device)s::text AND state = 'open' AND joined_into IS NULL RETURNING upload_id"
)
_CLAIM: Final = Statement(
    "WITH w AS (SELECT * FROM unnest(%(tenants)s::int[], %(ids)s::uuid[], %(devices)s::text[],"
    " %(holders)s::text[]) AS w(t, i, d, h)), c AS (UPDATE upload_session AS u SET holder = w.h,"
    f" held_until = now() + interval '{LEASE_S} seconds' FROM w WHERE u.tenant_id = w.t AND u.upload_id = w.i"
    " AND u.device_id = w.d AND u.state = 'open' AND u.joined_into IS NULL"
    " AND (u.held_until IS NULL AND u.expires_at > now() OR u.holder = w.h)"
    f" RETURNING {COLUMNS.format('u')})"
    f" SELECT * FROM c UNION ALL SELECT {COLUMNS.format('u')}"
    " FROM w CROSS JOIN LATERAL (SELECT * FROM upload_session WHERE tenant_id = w.t AND upload_id = w.i"
    " LIMIT 1) AS u WHERE NOT EXISTS (SELECT FROM c WHERE c.tenant_id = w.t AND c.upload_id = w.i::text)"
)
_SEIZE: Final = Statement(
    "UPDATE upload_session AS u SET generation = u.generation + (u.holder IS DISTINCT FROM %(holder)s)::int,"
    f" holder = %(holder)s, held_until = now() + interval '{LEASE_S} seconds'"
    " WHERE u.tenant_id = %(tenant)s::int AND u.upload_id = %(id)s::uuid AND u.device_id = %(device)s::text"
    f" AND u.state = 'open' AND u.joined_into IS NULL RETURNING {COLUMNS.format('u')}"
)
#: One that comes late, because its connection broke and it was asked again, moves nothing back and holds
#: nothing that was given back by then.
_ADVANCE: Final = Statement(
    "UPDATE upload_session AS u SET offset_bytes = w.o, size_bytes = coalesce(w.s, u.size_bytes),"
    " pieces = w.p, updated_at = now(), expires_at = now() + %(expire)s::float8 * interval '1 second',"
    f" held_until = CASE WHEN w.r THEN NULL ELSE now() + interval '{LEASE_S} seconds' END"
    " FROM unnest(%(tenants)s::int[], %(ids)s::uuid[], %(holders)s::text[], %(offsets)s::bigint[],"
    " %(sizes)s::bigint[], %(pieces)s::text[], %(releases)s::bool[]) AS w(t, i, h, o, s, p, r)"
    " WHERE u.tenant_id = w.t AND u.upload_id = w.i AND u.holder = w.h AND u.state = 'open'"
    " AND u.offset_bytes <= w.o AND (u.held_until IS NOT NULL OR w.r AND u.offset_bytes = w.o)"
    " RETURNING u.tenant_id, u.upload_id::text"
)
#: Whoever has it by now: the bytes of an upload that has all of them do not change, so that two who make a
#: file of it make the same. What is reserved beyond its size is given back, and its parts are spent.
_STORE: Final = Statement(
    "WITH stored AS (UPDATE upload_session AS u SET state = 'stored', sha256 = %(sha256)s::text,"
    " content_type = coalesce(%(type)s::text, u.content_type), held_until = NULL, pieces = '',"
    " updated_at = now(), ended_at = now(), reserved_bytes = u.offset_bytes"
    " FROM (SELECT reserved_bytes FROM upload_session"
    " WHERE tenant_id = %(tenant)s::int AND upload_id = %(id)s::uuid) AS before"
    " WHERE u.tenant_id = %(tenant)s::int AND u.upload_id = %(id)s::uuid"
    " AND u.offset_bytes = u.size_bytes AND u.state = 'open'"
    " RETURNING u.tenant_id, before.reserved_bytes - u.offset_bytes AS spare),"
    " spent AS (UPDATE upload_session SET state = 'joined', updated_at = now(), ended_at = now() FROM stored"
    " WHERE upload_session.tenant_id = %(tenant)s::int AND joined_into = %(id)s::uuid AND state = 'open'),"
    " freed AS (UPDATE tenant_storage AS s SET reserved_bytes = greatest(0, s.reserved_bytes - stored.spare)"
    " FROM stored WHERE s.tenant_id = stored.tenant_id AND stored.spare <> 0)"
    " SELECT 1 FROM stored UNION ALL SELECT 1 FROM upload_session WHERE tenant_id = %(tenant)s::int"
    " AND upload_id = %(id)s::uuid AND state IN ('stored', 'attached', 'duplicate')"
)
_DISCARD: Final = Statement(
    "WITH ended AS (UPDATE upload_session AS u SET state = %(state)s::text, held_until = NULL, pieces = '',"
    " updated_at = now(), ended_at = now() WHERE u.tenant_id = %(tenant)s::int AND u.state = 'open'"
    " AND (u.upload_id = %(id)s::uuid AND u.joined_into IS NULL"
    " AND (%(holder)s::text IS NULL OR u.holder = %(holder)s::text)"
    " OR u.joined_into = %(id)s::uuid AND EXISTS (SELECT FROM upload_session AS whole"
    " WHERE whole.tenant_id = %(tenant)s::int AND whole.upload_id = %(id)s::uuid AND whole.state = 'open'"
    " AND (%(holder)s::text IS NULL OR whole.holder = %(holder)s::text)))"
    " RETURNING u.upload_id, u.tenant_id, u.reserved_bytes), freed AS (UPDATE tenant_storage AS s"
    " SET reserved_bytes = greatest(0, s.reserved_bytes - w.b)"
    " FROM (SELECT tenant_id, sum(reserved_bytes) AS b FROM ended GROUP BY tenant_id) AS w"
    " WHERE s.tenant_id = w.tenant_id)"
    " SELECT 1 FROM ended WHERE upload_id = %(id)s::uuid UNION ALL SELECT 1 FROM upload_session"
    " WHERE tenant_id = %(tenant)s::int AND upload_id = %(id)s::uuid AND state = %(state)s::text"
)


class PostgresUploads:
    """``engine.uploads.ports.UploadStore``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, uploads: Sequence[NewUpload], expire_s: float) -> list[Created]:
        """Keep new uploads, those for which there is room."""
        # In ascending order, as every process does: each locks what its tenant has reserved.
        order = sorted(range(len(uploads)), key=lambda index: uploads[index].upload.ref.tenant_id)
        outcomes: dict[int, Created] = {}
        async with self._database.transaction() as transaction:
            for index in order:
                outcomes[index] = await _created(transaction, uploads[index], expire_s)
        return [outcomes[index] for index in range(len(uploads))]

    async def concatenate(self, upload: NewUpload, expire_s: float) -> Joined:
        """Keep an upload that is put together, and spend its parts."""
        values = _inserted(upload, expire_s) | {"spent": hex_array(upload.upload.parts), "open": _NO_BOUND}
        joined: Joined = "created"
        with suppress(_UndoneError):
            async with self._database.transaction() as transaction:
                await transaction.run((_LOCK,), values)
                if await transaction.run((_FIND,), values):
                    return "created"
                if not await transaction.run((_MAKE,), values):
                    joined = "record_full"
                    raise _UndoneError
                spent = await transaction.run((_SPEND,), values)
                if len(spent) != len(upload.upload.parts):
                    joined = "spent"
                    raise _UndoneError
        return joined

    async def find(self, ref: UploadRef) -> Upload | None:
        """Find an upload."""
        rows = await self._database.query(_FIND, {"tenant": str(ref.tenant_id), "id": ref.upload_id})
        return decode_upload(rows[0]) if rows else None

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed | None]:
        """Give uploads to those who want them, if nobody has them."""
        values = {
            "tenants": int_array(one.ref.tenant_id for one in claims),
            "ids": hex_array(one.ref.upload_id for one in claims),
            "devices": text_array(one.device_id for one in claims),
            "holders": hex_array(one.holder for one in claims),
        }
        rows = await self._database.execute(_CLAIM, values, _CLAIM_SETTINGS)
        found = {upload.ref: upload for upload in map(decode_upload, rows)}
        return [
            None if upload is None else Claimed(upload, upload.held and upload.holder == one.holder)
            for one in claims
            for upload in [found.get(one.ref)]
        ]

    async def steal(self, claim: Claim) -> Upload | None:
        """Take an upload from whoever has it."""
        values = _named(claim.ref) | {"device": claim.device_id, "holder": claim.holder}
        rows = await self._database.execute(_SEIZE, values)
        return decode_upload(rows[0]) if rows else None

    async def advance(self, advances: Sequence[OffsetUpdate], expire_s: float) -> list[bool]:
        """Move offsets."""
        asked, advances = advances, list({one.ref: one for one in advances}.values())
        values = {
            "tenants": int_array(one.ref.tenant_id for one in advances),
            "ids": hex_array(one.ref.upload_id for one in advances),
            "holders": hex_array(one.holder for one in advances),
            "offsets": int_array(one.offset_bytes for one in advances),
            "sizes": int_array_or_null(one.size_bytes for one in advances),
            "pieces": text_array(",".join(one.pieces) for one in advances),
            "releases": hex_array("true" if one.release else "false" for one in advances),
            "expire": str(expire_s),
        }
        moved = {(row[0], row[1].replace("-", "")) for row in await self._database.execute(_ADVANCE, values)}
        return [(one.ref.tenant_id, one.ref.upload_id) in moved for one in asked]

    async def store(self, stored: Sequence[Stored]) -> list[bool]:
        """Note that uploads are files."""
        done = {}
        async with self._database.transaction() as transaction:
            for one in sorted(stored, key=lambda one: one.ref.tenant_id):
                values = _named(one.ref) | {"sha256": one.sha256, "type": one.content_type}
                done[one.ref] = bool(await transaction.run((_STORE,), values))
        return [done[one.ref] for one in stored]

    async def discard(self, ref: UploadRef, holder: str | None, state: State) -> bool:
        """End an open upload and free what it reserved."""
        return bool(await self._database.execute(_DISCARD, _named(ref) | {"holder": holder, "state": state}))


class _UndoneError(Exception):
    """A transaction is given up."""


def _named(ref: UploadRef) -> dict[str, object]:
    return {"tenant": str(ref.tenant_id), "id": ref.upload_id}


async def _created(transaction: Transaction, creating: NewUpload, expire_s: float) -> Created:
    values = _inserted(creating, expire_s)
    ((mine, reserved),) = await transaction.run((_RESERVE,), values)
    if mine:
        return "created"
    if not reserved:
        return "tenant_full"
    if await transaction.run((_MAKE,), values):
        return "created"
    await transaction.run((_RETURN,), values)
    ((device_is_full,),) = await transaction.run((_OPEN,), values)
    return "device_full" if device_is_full else "record_full"


def _inserted(creating: NewUpload, expire_s: float) -> dict[str, object]:
    upload, quota = creating.upload, creating.quota
    return _named(upload.ref) | {
        "quota": str(quota.tenant_bytes),
        "files": str(quota.files_per_record),
        "open": str(quota.open_per_device),
        "device": upload.device_id,
        "user": upload.user,
        "kind": upload.kind,
        "parts": ",".join(upload.parts),
        "name": upload.file_name,
        "type": upload.content_type,
        "domain": upload.domain,
        "record": upload.record_id,
        "metadata": upload.metadata,
        "size": None if upload.size_bytes is None else str(upload.size_bytes),
        "reserved": str(upload.reserved_bytes),
        "offset": str(upload.offset_bytes),
        "wanted": upload.expected_sha256,
        "expire": str(expire_s),
    }


def decode_upload(row: Row) -> Upload:
    """Read a row of ``COLUMNS``."""
    return Upload(
        ref=UploadRef(row[0], row[1].replace("-", "")),
        device_id=row[2],
        user=row[3],
        kind=row[4],
        file_name=row[5],
        content_type=row[6],
        domain=row[7],
        record_id=row[8],
        metadata=row[9],
        size_bytes=row[10],
        reserved_bytes=row[11],
        offset_bytes=row[12],
        parts=_names(row[13]),
        final_id=None if row[14] is None else row[14].replace("-", ""),
        pieces=_names(row[15]),
        generation=row[16],
        holder=row[17],
        held=row[18],
        lock_expired=row[19],
        expected_sha256=row[20],
        sha256=row[21],
        state=row[22],
        created_at_us=row[23],
        expires_at_us=row[24],
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()
