"""Rows of uploads in PostgreSQL: any process on any host goes on where another stopped.

In a row, ``held_until`` is when the lock expires, null while it is free. ``holder`` is the lock's owner, and
stays after the release, so that an owner who repeats a statement of unknown outcome is recognized.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, Literal

from engine.model.uploads import Upload, UploadRef
from engine.uploads.ports import (
    LEASE_S,
    Claim,
    Claimed,
    Concatenated,
    Created,
    NewUpload,
    OffsetUpdate,
    StoredFile,
)
from storage.postgres.arrays import hex_array, int_array, number_array_or_null, text_array
from storage.postgres.connection import Statement
from storage.postgres.driver import Row
from storage.postgres.pool import Database
from storage.postgres.transactions import Transaction, transaction_settings
from storage.stores.sealed.checked import NUMBERED, Look, write_checked
from storage.stores.sealed.followed import ANY_SEALED_SQL
from storage.stores.sealed.sealing import (
    FILE_METADATA,
    FILE_NAME,
    FILE_SHA256,
    FILE_WANTED_SHA256,
    Sealing,
)
from storage.stores.upload_rows import COLUMNS, decode_upload
from storage.stores.upload_states import (
    CONCATENATED,
    COUNTS_FOR_QUOTA,
    IS_FINISHED,
    KIND_TEXTS,
    OPEN,
    PARTIAL,
    STATE_TEXTS,
    STORED,
)

#: A claim does not wait for the disk: after a crash nobody has a lock.
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
_MADE: Final = (
    "(tenant_id, upload_id, device_id, user_id, kind, parts, file_name, content_type, domain, record_id,"
    " metadata, size_bytes, reserved_bytes, offset_bytes, wanted_sha256, expires_at)"
)
#: What a tenant has reserved is a row of its own, which is locked, so that two uploads created at the same
#: time cannot both take the last room. An upload that exists already is from a first run of unknown outcome.
_RESERVE: Final = Statement(
    "INSERT INTO tenant_storage AS s (tenant_id, reserved_bytes)"
    " SELECT w.t, w.b FROM (SELECT %(tenant)s::int AS t, %(reserved)s::bigint AS b) AS w"
    " WHERE w.b <= %(quota)s::bigint AND NOT EXISTS (SELECT FROM upload_session"
    " WHERE tenant_id = %(tenant)s::int AND upload_id = %(id)s::uuid)"
    " ON CONFLICT (tenant_id) DO UPDATE SET reserved_bytes = s.reserved_bytes + excluded.reserved_bytes"
    " WHERE s.reserved_bytes + excluded.reserved_bytes <= %(quota)s::bigint RETURNING 1"
)
_RETURN: Final = Statement(
    "UPDATE tenant_storage SET reserved_bytes = reserved_bytes - %(reserved)s::bigint"
    " WHERE tenant_id = %(tenant)s::int"
)
_LOCK: Final = Statement("SELECT FROM tenant_storage WHERE tenant_id = %(tenant)s::int FOR NO KEY UPDATE")
_FILES_OF_RECORD: Final = (
    "(SELECT count(*) FROM upload_session WHERE tenant_id = %(tenant)s::int AND domain = %(domain)s::text"
    f" AND record_id = %(record)s::text AND state IN {COUNTS_FOR_QUOTA})"
)
_OPEN_OF_DEVICE: Final = (
    "(SELECT count(*) FROM upload_session WHERE tenant_id = %(tenant)s::int"
    f" AND device_id = %(device)s::text AND state = {OPEN})"
)
_BEGUN_BY_DEVICE: Final = (
    "(SELECT count(*) FROM upload_session WHERE tenant_id = %(tenant)s::int"
    " AND device_id = %(device)s::text AND created_at > now() - interval '24 hours')"
)
#: A statement of its own behind that lock: a statement that waits for a lock counts as of before its wait.
_MAKE: Final = Statement(
    f"WITH made {_MADE} AS MATERIALIZED (SELECT {_VALUES} WHERE {_FILES_OF_RECORD} < %(files)s::bigint"
    f" AND {_OPEN_OF_DEVICE} < %(open)s::bigint AND {_BEGUN_BY_DEVICE} < %(begun)s::bigint)"
    f" INSERT INTO upload_session {_MADE} SELECT * FROM made"
)
#: Whether that made a row, and whether something is sealed.
_HAS_MADE: Final = Statement(
    f"SELECT {ANY_SEALED_SQL} FROM upload_session WHERE tenant_id = %(tenant)s::int"
    " AND upload_id = %(id)s::uuid AND xmin = pg_current_xact_id()::xid"
)
#: Which bound it was. If it is none of the cheap ones it is that of a day, which is not counted again: 1.4 ms
#: for a device that began 2,000.
_BOUNDS: Final = Statement(
    f"SELECT {_OPEN_OF_DEVICE} >= %(open)s::bigint, {_FILES_OF_RECORD} >= %(files)s::bigint"
)
#: A final upload takes the place of its parts, so that the bounds of a device do not apply. It counts as
#: begun: of final uploads there are as many as of parts at most.
_NO_BOUND: Final = str(2**62)
_USE_PARTS: Final = Statement(
    "UPDATE upload_session SET joined_into = %(id)s::uuid, reserved_bytes = 0, updated_at = now()"
    f" WHERE tenant_id = %(tenant)s::int AND upload_id = ANY(%(parts_used)s::uuid[]) AND kind = {PARTIAL}"
    f" AND device_id = %(device)s::text AND state = {OPEN} AND joined_into IS NULL RETURNING upload_id"
)
_CLAIM: Final = Statement(
    "WITH w AS (SELECT * FROM unnest(%(tenants)s::int[], %(ids)s::uuid[], %(devices)s::text[],"
    " %(holders)s::text[]) AS w(t, i, d, h)), c AS (UPDATE upload_session AS u SET holder = w.h,"
    f" held_until = now() + interval '{LEASE_S} seconds' FROM w WHERE u.tenant_id = w.t AND u.upload_id = w.i"
    f" AND u.device_id = w.d AND u.state = {OPEN} AND u.joined_into IS NULL"
    " AND (u.held_until IS NULL AND u.expires_at > now() OR u.holder = w.h)"
    " RETURNING u.*)"
    f" SELECT {COLUMNS.format('u')} FROM (SELECT * FROM c UNION ALL SELECT u.*"
    " FROM w CROSS JOIN LATERAL (SELECT * FROM upload_session WHERE tenant_id = w.t AND upload_id = w.i"
    " LIMIT 1) AS u WHERE NOT EXISTS (SELECT FROM c WHERE c.tenant_id = w.t AND c.upload_id = w.i)) AS u"
)
_STEAL: Final = Statement(
    "WITH held AS (UPDATE upload_session AS u"
    " SET generation = u.generation + (u.holder IS DISTINCT FROM %(holder)s)::int,"
    f" holder = %(holder)s, held_until = now() + interval '{LEASE_S} seconds'"
    " WHERE u.tenant_id = %(tenant)s::int AND u.upload_id = %(id)s::uuid AND u.device_id = %(device)s::text"
    f" AND u.state = {OPEN} AND u.joined_into IS NULL RETURNING u.*)"
    f" SELECT {COLUMNS.format('held')} FROM held"
)
#: A late statement, repeated on another connection, moves no offset back and locks nothing that was released
#: since.
_SAVE_OFFSETS: Final = Statement(
    "UPDATE upload_session AS u SET offset_bytes = w.o, size_bytes = coalesce(w.s, u.size_bytes),"
    " pieces = w.p, updated_at = now(), expires_at = now() + %(expire)s::float8 * interval '1 second',"
    f" held_until = now() + CASE WHEN NOT w.r THEN interval '{LEASE_S} seconds' END"
    " FROM unnest(%(tenants)s::int[], %(ids)s::uuid[], %(holders)s::text[], %(offsets)s::bigint[],"
    " %(sizes)s::bigint[], %(pieces)s::text[], %(releases)s::bool[]) AS w(t, i, h, o, s, p, r)"
    f" WHERE u.tenant_id = w.t AND u.upload_id = w.i AND u.holder = w.h AND u.state = {OPEN}"
    " AND u.offset_bytes <= w.o AND (u.held_until IS NOT NULL OR w.r AND u.offset_bytes = w.o)"
    " RETURNING u.tenant_id, u.upload_id::text"
)
#: No owner of the lock is asked for: the bytes of a complete upload do not change, so that two requests make
#: the same file of it. What is reserved beyond its size is returned, and its parts end.
_MARK_STORED: Final = Statement(
    f"WITH stored AS (UPDATE upload_session AS u SET state = {STORED}, sha256 = %(sha256)s::text,"
    " content_type = coalesce(%(type)s::text, u.content_type), held_until = NULL, pieces = '',"
    " updated_at = now(), ended_at = now(), reserved_bytes = u.offset_bytes"
    " FROM (SELECT reserved_bytes FROM upload_session"
    " WHERE tenant_id = %(tenant)s::int AND upload_id = %(id)s::uuid) AS before"
    " WHERE u.tenant_id = %(tenant)s::int AND u.upload_id = %(id)s::uuid"
    f" AND u.offset_bytes = u.size_bytes AND u.state = {OPEN}"
    " RETURNING u.tenant_id, before.reserved_bytes - u.offset_bytes AS surplus),"
    f" parts AS (UPDATE upload_session SET state = {CONCATENATED}, updated_at = now(), ended_at = now()"
    " FROM stored WHERE upload_session.tenant_id = %(tenant)s::int"
    f" AND joined_into = %(id)s::uuid AND state = {OPEN}),"
    " freed AS (UPDATE tenant_storage AS s"
    " SET reserved_bytes = greatest(0, s.reserved_bytes - stored.surplus) FROM stored"
    " WHERE s.tenant_id = stored.tenant_id AND stored.surplus <> 0)"
    f" SELECT {ANY_SEALED_SQL} FROM stored UNION ALL SELECT NULL FROM upload_session"
    " WHERE tenant_id = %(tenant)s::int AND upload_id = %(id)s::uuid"
    f" AND state IN {IS_FINISHED}"
)
_DISCARD: Final = Statement(
    "WITH ended AS (UPDATE upload_session AS u SET state = %(state)s::text, held_until = NULL, pieces = '',"
    f" updated_at = now(), ended_at = now() WHERE u.tenant_id = %(tenant)s::int AND u.state = {OPEN}"
    " AND (u.upload_id = %(id)s::uuid AND u.joined_into IS NULL"
    " AND (%(holder)s::text IS NULL OR u.holder = %(holder)s::text)"
    " OR u.joined_into = %(id)s::uuid AND EXISTS (SELECT FROM upload_session AS whole"
    f" WHERE whole.tenant_id = %(tenant)s::int AND whole.upload_id = %(id)s::uuid AND whole.state = {OPEN}"
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

    def __init__(self, database: Database, sealing: Sealing) -> None:
        self._database = database
        self._sealing = sealing

    async def create(self, uploads: Sequence[NewUpload], expire_s: float) -> list[Created]:
        """Insert new uploads, each if there is room."""
        # Every process locks the tenants' reservations in ascending order, so that none waits in a circle.
        order = sorted(range(len(uploads)), key=lambda index: uploads[index].upload.ref.tenant_id)
        outcomes: dict[int, Created] = {}
        tenants = {one.upload.ref.tenant_id for one in uploads}

        async def write(transaction: Transaction, look: Look) -> None:
            sealed = [(index, _insert_values(uploads[index], expire_s, self._sealing)) for index in order]
            for index, values in sealed:
                outcomes[index] = await _create(transaction, values, look)

        await write_checked(self._database, self._sealing, tenants, write)
        return [outcomes[index] for index in range(len(uploads))]

    async def concatenate(self, upload: NewUpload, expire_s: float) -> Concatenated:
        """Insert a final upload and mark its parts as used."""

        async def write(transaction: Transaction, look: Look) -> None:
            values = _insert_values(upload, expire_s, self._sealing) | {
                "parts_used": hex_array(upload.upload.parts),
                "open": _NO_BOUND,
                "begun": _NO_BOUND,
            }
            await transaction.run((NUMBERED, _LOCK), values)
            if await transaction.run((_FIND,), values):
                return
            made = await transaction.run((_MAKE, _HAS_MADE), values)
            if not made:
                raise _UndoneError("record_full")
            look(made)
            used = await transaction.run((_USE_PARTS,), values)
            if len(used) != len(upload.upload.parts):
                raise _UndoneError("part_used")

        outcome: Concatenated = "created"
        try:
            await write_checked(self._database, self._sealing, [upload.upload.ref.tenant_id], write)
        except _UndoneError as undone:
            (outcome,) = undone.args
        return outcome

    async def find(self, ref: UploadRef) -> Upload | None:
        """Read an upload in any state."""
        rows = await self._database.query(_FIND, _named(ref), [ref.tenant_id])
        return await self._first(rows)

    async def _first(self, rows: list[Row]) -> Upload | None:
        found = await self._sealing.opened(rows, partial(decode_upload, self._sealing))
        return found[0] if found else None

    async def claim(self, claims: Sequence[Claim]) -> list[Claimed | None]:
        """Lock uploads that are open and unlocked."""
        values = {
            "tenants": int_array(one.ref.tenant_id for one in claims),
            "ids": hex_array(one.ref.upload_id for one in claims),
            "devices": text_array(one.device_id for one in claims),
            "holders": hex_array(one.lock_owner for one in claims),
        }
        rows = await self._database.execute(
            _CLAIM, values, _CLAIM_SETTINGS, {one.ref.tenant_id for one in claims}
        )
        uploads = await self._sealing.opened(rows, partial(decode_upload, self._sealing))
        found = {upload.ref: upload for upload in uploads}
        return [
            None if upload is None else Claimed(upload, upload.locked and upload.lock_owner == one.lock_owner)
            for one in claims
            for upload in [found.get(one.ref)]
        ]

    async def steal(self, claim: Claim) -> Upload | None:
        """Take a lock from any owner."""
        values = _named(claim.ref) | {"device": claim.device_id, "holder": claim.lock_owner}
        rows = await self._database.execute(_STEAL, values, tenants=[claim.ref.tenant_id])
        return await self._first(rows)

    async def save_offsets(self, updates: Sequence[OffsetUpdate], expire_s: float) -> list[bool]:
        """Save offsets; of two updates of one upload the last counts."""
        last = list({one.ref: one for one in updates}.values())
        values = {
            "tenants": int_array(one.ref.tenant_id for one in last),
            "ids": hex_array(one.ref.upload_id for one in last),
            "holders": hex_array(one.lock_owner for one in last),
            "offsets": int_array(one.offset_bytes for one in last),
            "sizes": number_array_or_null(one.size_bytes for one in last),
            "pieces": text_array(",".join(one.pieces) for one in last),
            "releases": hex_array("true" if one.release else "false" for one in last),
            "expire": str(expire_s),
        }
        tenants = {one.ref.tenant_id for one in last}
        rows = await self._database.execute(_SAVE_OFFSETS, values, tenants=tenants)
        saved = {(row[0], row[1].replace("-", "")) for row in rows}
        return [(one.ref.tenant_id, one.ref.upload_id) in saved for one in updates]

    async def mark_stored(self, files: Sequence[StoredFile]) -> list[bool]:
        """Record that uploads are files."""
        done = {}
        order = sorted(files, key=lambda one: one.ref.tenant_id)
        tenants = {one.ref.tenant_id for one in files}

        async def write(transaction: Transaction, look: Look) -> None:
            stored = [(one, _stored_values(one, self._sealing)) for one in order]
            for one, values in stored:
                marked = await transaction.run((NUMBERED, _MARK_STORED), values)
                look(marked)
                done[one.ref] = bool(marked)

        await write_checked(self._database, self._sealing, tenants, write)
        return [done[one.ref] for one in files]

    async def discard(
        self, ref: UploadRef, lock_owner: str | None, state: Literal["refused", "cancelled"]
    ) -> bool:
        """End an open upload without a file and return what it reserved."""
        values = _named(ref) | {"holder": lock_owner, "state": STATE_TEXTS[state]}
        return bool(await self._database.execute(_DISCARD, values, tenants=[ref.tenant_id]))


class _UndoneError(Exception):
    """The transaction is rolled back; its argument is the outcome."""


def _named(ref: UploadRef) -> dict[str, object]:
    return {"tenant": str(ref.tenant_id), "id": ref.upload_id}


async def _create(transaction: Transaction, values: dict[str, object], look: Look) -> Created:
    if not await transaction.run((_RESERVE,), values):
        return "created" if await transaction.run((_FIND,), values) else "tenant_full"
    if made := await transaction.run((_MAKE, _HAS_MADE), values):
        look(made)
        return "created"
    await transaction.run((_RETURN,), values)
    ((device_is_full, record_is_full),) = await transaction.run((_BOUNDS,), values)
    if device_is_full:
        return "device_full"
    return "record_full" if record_is_full else "too_many_begun"


def _insert_values(new: NewUpload, expire_s: float, sealing: Sealing) -> dict[str, object]:
    upload, quota = new.upload, new.quota

    def sealed(place: str, text: str | None) -> str | None:
        return sealing.seal_text(place, upload.ref.tenant_id, upload.domain, upload.ref.upload_id, 0, text)

    return _named(upload.ref) | {
        "quota": str(quota.tenant_bytes),
        "files": str(quota.files_per_record),
        "open": str(quota.open_per_device),
        "begun": str(quota.begun_per_device),
        "device": upload.device_id,
        "user": upload.user,
        "kind": KIND_TEXTS[upload.kind],
        "parts": ",".join(upload.parts),
        "name": sealed(FILE_NAME, upload.file_name),
        "type": upload.content_type,
        "domain": upload.domain,
        "record": upload.record_id,
        "metadata": sealed(FILE_METADATA, upload.metadata),
        "size": None if upload.size_bytes is None else str(upload.size_bytes),
        "reserved": str(upload.reserved_bytes),
        "offset": str(upload.offset_bytes),
        "wanted": sealed(FILE_WANTED_SHA256, upload.expected_sha256),
        "expire": str(expire_s),
    }


def _stored_values(file: StoredFile, sealing: Sealing) -> dict[str, object]:
    ref = file.ref
    sha256 = sealing.seal_text(FILE_SHA256, ref.tenant_id, file.domain, ref.upload_id, 0, file.sha256)
    return _named(ref) | {"sha256": sha256, "type": file.content_type}
