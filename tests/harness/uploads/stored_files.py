"""Files that were uploaded some time before the test begins, and are waiting or attached."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from engine.model.uploads import Draft, Upload, UploadRef
from storage.blobs.directory import DirectoryBlobs
from storage.stores.upload_states import STATE_TEXTS
from tests.harness.services import execute


def upload(number: int = 1, tenant: int = 1, **fields: object) -> Upload:
    """Make the upload of a JPEG that is stored."""
    made = Upload(
        ref=UploadRef(tenant, f"{number:032x}"),
        device_id="phone",
        user=None,
        kind="single",
        file_name=f"gate {number}.jpg",
        content_type="image/jpeg",
        domain="task",
        record_id="a",
        metadata="",
        size_bytes=1000 + number,
        reserved_bytes=1000 + number,
        offset_bytes=1000 + number,
        sha256=f"{number:064x}",
        state="stored",
    )
    return msgspec.structs.replace(made, **fields)


def keep(dsn: str, *uploads: Upload) -> None:
    """Write uploads down."""
    for one in uploads:
        assert one.file_name is not None
        name = one.file_name.replace("'", "''").replace("%", "%%")
        execute(
            dsn,
            "INSERT INTO upload_session (tenant_id, upload_id, device_id, kind, file_name, content_type,"
            " domain, record_id, metadata, size_bytes, reserved_bytes, offset_bytes, sha256, state,"
            f" created_at, expires_at) VALUES ({one.ref.tenant_id}, '{one.ref.upload_id}', '{one.device_id}',"
            f" 'whole', '{name}', '{one.content_type}', '{one.domain}', '{one.record_id}', '',"
            f" {one.size_bytes}, {one.reserved_bytes}, {one.offset_bytes}, '{one.sha256}',"
            f" '{STATE_TEXTS[one.state]}',"
            " 'epoch', 'epoch')",
        )


async def publish(data_dir: Path, content: bytes, one: Upload) -> Upload:
    """Put a file's bytes where a server of ``data_dir`` finds them, and give the upload that fits them."""
    blobs = DirectoryBlobs(data_dir / "uploads", 1)
    try:
        appending = blobs.open_draft(Draft(one.ref, 0, 0))
        await appending.flush([content])
        await blobs.publish([Draft(one.ref, 0, len(content))], one.ref)
    finally:
        blobs.close()
    size_bytes = len(content)
    return msgspec.structs.replace(
        one,
        size_bytes=size_bytes,
        reserved_bytes=size_bytes,
        offset_bytes=size_bytes,
        sha256=hashlib.sha256(content).hexdigest(),
    )
