"""The files of a record: adds a stored file to the record's entry in the feed, or removes it.

This takes a new ``seq`` and no new version, so that no edit conflicts with a photo.
"""

from __future__ import annotations

import msgspec

from engine.model.rows import Record, RecordKey
from engine.model.uploads import FINISHED, State, Upload, UploadRef
from engine.plan.context import PlanContext
from engine.plan.unit_of_work import Reads, UnitOfWork
from engine.plan.work import Attach, AttachAnswer
from engine.wire.messages import Attachment
from engine.wire.timestamps import to_text

_encode = msgspec.json.encode
_decode = msgspec.json.Decoder(list[Attachment]).decode


def entry(upload: Upload, at_us: int) -> bytes:
    """Return the entry of a stored upload in its record's list of files, as JSON."""
    assert upload.file_name is not None
    assert upload.content_type is not None
    assert upload.sha256 is not None
    return _encode(
        Attachment(
            upload.ref.upload_id,
            upload.file_name,
            upload.content_type,
            upload.offset_bytes,
            upload.sha256,
            upload.device_id,
            to_text(at_us),
        )
    )


def attaching(upload: Upload, now_us: int) -> Attach:
    """Return the work that adds a stored upload to its record's entry."""
    return msgspec.structs.replace(freeing(upload, now_us), entry=entry(upload, now_us))


def freeing(upload: Upload, now_us: int) -> Attach:
    """Return the work that removes a file from its record's entry, for its device."""
    assert upload.domain is not None
    assert upload.record_id is not None
    ref = upload.ref
    return Attach(
        ref.tenant_id, upload.device_id, upload.domain, upload.record_id, ref.upload_id, None, now_us
    )


def attach_reads(work: Attach, _: PlanContext, reads: Reads) -> None:
    """Add the rows that a file reads: the upload, its record, and its duplicates if it is freed."""
    reads.uploads[ref := UploadRef(work.tenant_id, work.upload_id)] = None
    if work.entry is None:
        reads.duplicates[ref] = None
    reads.records[RecordKey(work.tenant_id, work.domain, work.record_id)] = None


def attach(work: Attach, unit: UnitOfWork) -> AttachAnswer:
    """Add a file to its record's entry, or remove it. Doing it twice changes nothing."""
    ref = UploadRef(work.tenant_id, work.upload_id)
    key = RecordKey(work.tenant_id, work.domain, work.record_id)
    row = unit.records.get(key)
    state = unit.uploads.get(ref)
    if state not in FINISHED:
        return AttachAnswer("freed", None, work.upload_id if state == "freed" else None)
    if work.entry is None and work.only_if_deleted and row is not None and row.data is not None:
        return _left_alone(state)
    if work.entry is None:
        return _freed(ref, key, row, unit)
    if state == "duplicate":  # its own bytes may be gone already
        return AttachAnswer("duplicate", None, work.upload_id)
    files = [] if row is None else _files(row)
    if row is not None and any(file.file_id == work.upload_id for file in files):
        return AttachAnswer("attached", row.seq)
    if row is None or row.data is None:
        return AttachAnswer("waiting", None)
    own = msgspec.json.decode(work.entry, type=Attachment)
    if any(file.filename == own.filename and file.sha256 == own.sha256 for file in files):
        unit.set_upload_state(ref, "duplicate")
        return AttachAnswer("duplicate", None, work.upload_id)
    stored = row.attachments[:-1] + b"," if row.attachments and files else b"["
    seq = _put(key, row, stored + work.entry + b"]", unit)
    unit.set_upload_state(ref, "attached")
    return AttachAnswer("attached", seq)


def _left_alone(state: State | None) -> AttachAnswer:
    if state == "stored":
        return AttachAnswer("waiting", None)
    return AttachAnswer("duplicate" if state == "duplicate" else "attached", None)


def _freed(ref: UploadRef, key: RecordKey, row: Record | None, unit: UnitOfWork) -> AttachAnswer:
    """Free an upload for its device. The file stays while a duplicate of it that was acknowledged is left.

    The bytes are those of the first of these uploads, whichever of them is freed last.
    """
    states = unit.uploads
    others = unit.duplicates.get(ref, ())
    holder = next((one for one in (ref, *others) if states[one] in ("attached", "retained")), None)
    shared = any(states[one] in ("attached", "duplicate") for one in others)
    if shared and holder == ref:
        unit.set_upload_state(ref, "retained")
        return AttachAnswer("freed", None)
    unit.set_upload_state(ref, "freed")
    if shared or holder is None:
        return AttachAnswer("freed", None, ref.upload_id)
    unit.set_upload_state(holder, "freed")
    seq = None if row is None else _taken_out(holder.upload_id, key, row, unit)
    return AttachAnswer("freed", seq, holder.upload_id)


def _taken_out(upload_id: str, key: RecordKey, row: Record, unit: UnitOfWork) -> int | None:
    """Remove a file. Of a tombstone the feed shows no files, so this is not announced."""
    files = _files(row)
    left = [file for file in files if file.file_id != upload_id]
    if len(left) == len(files):
        return None
    if row.data is not None:
        return _put(key, row, _encode(left), unit)
    unit.put_silently(key, msgspec.structs.replace(row, attachments=_encode(left)))
    return None


def _put(key: RecordKey, row: Record, attachments: bytes, unit: UnitOfWork) -> int:
    seq = unit.next_seq(key.tenant_id)
    # No session: the device that sent the file gets this change, too, because it does not know the rest of
    # the entry.
    unit.put(key, msgspec.structs.replace(row, seq=seq, attachments=attachments), "")
    return seq


def _files(row: Record) -> list[Attachment]:
    return [] if row.attachments is None else _decode(row.attachments)
