"""An upload as ``upload_session`` keeps it."""

from __future__ import annotations

from typing import Final

from engine.model.uploads import Upload, UploadRef
from storage.postgres.driver import Row
from storage.stores.sealed.sealing import (
    FILE_METADATA,
    FILE_NAME,
    FILE_SHA256,
    FILE_WANTED_SHA256,
    Sealing,
)
from storage.stores.upload_states import KINDS_BY_TEXT, STATES_BY_TEXT

#: The columns of ``decode_upload``; ``{0}`` is the name of the table in the statement.
COLUMNS: Final = (
    "{0}.tenant_id, {0}.upload_id::text, {0}.device_id, {0}.user_id, {0}.kind, {0}.file_name,"
    " {0}.content_type, {0}.domain, {0}.record_id, {0}.metadata, {0}.size_bytes, {0}.reserved_bytes,"
    " {0}.offset_bytes, {0}.parts, {0}.joined_into::text, {0}.pieces, {0}.generation,"
    " {0}.holder, {0}.held_until IS NOT NULL, coalesce({0}.held_until < now(), false),"
    " {0}.wanted_sha256, {0}.sha256, {0}.state,"
    " (extract(epoch FROM {0}.created_at) * 1000000)::bigint,"
    " (extract(epoch FROM {0}.expires_at) * 1000000)::bigint"
)


def decode_upload(sealing: Sealing, row: Row) -> Upload:
    """Make an upload of a row of ``COLUMNS``. Raises as ``Sealing.open``."""
    ref = UploadRef(row[0], row[1].replace("-", ""))

    def opened(place: str, text: str | None) -> str | None:
        return sealing.open_text(place, ref.tenant_id, row[7], ref.upload_id, 0, text)

    return Upload(
        ref=ref,
        device_id=row[2],
        user=row[3],
        kind=KINDS_BY_TEXT[row[4]],
        file_name=opened(FILE_NAME, row[5]),
        content_type=row[6],
        domain=row[7],
        record_id=row[8],
        metadata=opened(FILE_METADATA, row[9]) or "",
        size_bytes=row[10],
        reserved_bytes=row[11],
        offset_bytes=row[12],
        parts=_names(row[13]),
        final_id=None if row[14] is None else row[14].replace("-", ""),
        pieces=_names(row[15]),
        generation=row[16],
        lock_owner=row[17],
        locked=row[18],
        lock_expired=row[19],
        expected_sha256=opened(FILE_WANTED_SHA256, row[20]),
        sha256=opened(FILE_SHA256, row[21]),
        state=STATES_BY_TEXT[row[22]],
        created_at_us=row[23],
        expires_at_us=row[24],
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()
