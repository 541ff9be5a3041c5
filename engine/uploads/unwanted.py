"""Bytes that nobody wants any more. What cannot be removed now is found by the clean-up."""

from __future__ import annotations

import structlog

from engine.model.uploads import UploadRef
from engine.uploads.blobs import Blobs, BlobsError

_log = structlog.get_logger()


async def drop_draft(blobs: Blobs, ref: UploadRef) -> bool:
    """Remove a draft; False, and a warning in the log, where that has to wait."""
    try:
        await blobs.drop_draft(ref)
    except BlobsError as error:
        _log.warning("draft_left", tenant_id=ref.tenant_id, upload_id=ref.upload_id, reason=str(error))
        return False
    return True


async def drop_file(blobs: Blobs, ref: UploadRef) -> bool:
    """Remove a file; False, and a warning in the log, where that has to wait."""
    try:
        await blobs.drop_file(ref)
    except BlobsError as error:
        _log.warning("file_left", tenant_id=ref.tenant_id, upload_id=ref.upload_id, reason=str(error))
        return False
    return True
